"""Feature reconstruction: reconstructions should look alike to a frozen network, not only pixel by pixel."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..networks.features import FeatureExtractor
from ..runtime.errors import InputError


class FeatureReconstruction(NamedTuple):
    """The terms of dHVAE (Kebaili et al. 2024), eq. 10: scalars, per sample, averaged over the batch."""

    feature: Tensor  # squared distance of the feature maps, eq. 9
    pixel: Tensor  # L1 distance of the images, summed over channels and pixels

    @property
    def total(self) -> Tensor:
        """L_rec of eq. 10."""
        return self.feature + self.pixel


class FeatureReconstructionLoss(nn.Module):
    """L_rec of dHVAE (Kebaili et al. 2024), eq. 9 and 10, after Johnson et al. (2016).

    The paper adds it to an ELBO in nats per sample, so both terms are sums per sample and means over the
    batch: the squared norms to the letter. The paper's VGG16 layers hold 120 feature values a pixel, 64 of
    them in the first layer, which leads the term. A plain mean over all values would be thousands of times
    smaller than the ELBO, and not felt beside it.
    """

    def __init__(self, extractor: FeatureExtractor):
        super().__init__()
        self.extractor = extractor

    def forward(self, reconstruction: Tensor, target: Tensor) -> FeatureReconstruction:
        """Compare image channels (batch, image channels, height, width) in [0, 1], without mask channels.

        The gradient flows to the reconstruction only. Raises InputError if the shapes differ.
        """
        if reconstruction.shape != target.shape:
            raise InputError(
                f"a reconstruction {tuple(reconstruction.shape)} for a target {tuple(target.shape)}",
                "equal shapes (batch, image channels, height, width)",
                "pass the image channels of both",
            )
        target = target.detach()
        with torch.no_grad():
            wanted = self.extractor(target)
        feature = torch.zeros((), device=target.device)
        for got, want in zip(self.extractor(reconstruction), wanted, strict=True):
            squared = (_at_least_float32(got) - _at_least_float32(want)).square().flatten(1)
            feature = feature + squared.sum(1).mean()
        difference = _at_least_float32(reconstruction) - _at_least_float32(target)
        return FeatureReconstruction(feature, difference.abs().flatten(1).sum(1).mean())


def _at_least_float32(x: Tensor) -> Tensor:
    """Autocast yields bfloat16 maps, whose sums over thousands of values would lose the small differences."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
