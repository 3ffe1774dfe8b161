"""Which networks give the features of the image metrics: local ImageNet weights, and the project's own extractor."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from ..networks.features import (
    ALEXNET_FILE,
    VGG16_FILE,
    AlexNetFeatures,
    FeatureExtractor,
    VGG16Features,
    hub_weights,
    pretrained_state,
    sha256_buffer,
    sha256_prefix,
    weights_file,
)
from ..runtime.errors import InputError

# The network of FID (Heusel et al. 2017) as ported by pytorch-fid and torch-fidelity, and torchvision's own.
INCEPTION_FID_FILES = ("pt_inception-2015-12-05-6726825d.pth", "weights-inception-2015-12-05-6726825d.pth")
INCEPTION_FILE = "inception_v3_google-0cc3c7bd.pth"
_FID_CLASSES = 1008


class InceptionFeatures(FeatureExtractor):
    """The last feature map of InceptionV3 (2048 channels), whose spatial mean is what FID and KID are defined on.

    Two networks of one shape of weights exist, and their figures do not compare: the one that FID was defined
    with (1008 classes, named `inception-v3-fid` here) and torchvision's (1000 classes). The file says which it is.
    In the former, average pooling leaves the padding out and the last block pools by maximum, as in TensorFlow's
    graph of 2015.

    Every image channel in [0, 1] is repeated to three, resized to 299 x 299 (bilinear, antialiased) and mapped to
    about [-1, 1]; the features of several channels are stacked. Published figures are of images rounded to bytes.

    `weights` is a state dict file, or None for one in the torch hub cache; nothing is downloaded. Raises InputError
    for no file, and for one that does not fit.
    """

    source_sha256: Tensor

    def __init__(self, weights: str | Path | None = None):
        super().__init__()
        from torchvision.models.inception import Inception3

        if weights is None:
            weights = hub_inception()
        path = weights_file("Inception", INCEPTION_FID_FILES[0], weights)
        with torch.device("meta"):
            network = Inception3(aux_logits=False, init_weights=False)
        blocks = OrderedDict((name, block) for name, block in network.named_children() if name not in _HEAD)
        self.blocks = nn.Sequential(blocks)
        wanted = {key: value for key, value in self.blocks.state_dict().items() if "num_batches" not in key}
        state = pretrained_state(path, wanted, "Inception weights", INCEPTION_FID_FILES[0])
        counters = {key: torch.zeros((), dtype=torch.long) for key in self.blocks.state_dict() if key not in wanted}
        self.blocks.load_state_dict({**state, **counters}, assign=True)
        self.is_fid = self._classes(path) == _FID_CLASSES
        if self.is_fid:
            self._pool_as_tensorflow()
        self.register_buffer("source_sha256", sha256_buffer(path))
        self.freeze()

    @staticmethod
    def _classes(path: Path) -> int:
        bias = torch.load(path, map_location="cpu", weights_only=True).get("fc.bias")
        if not isinstance(bias, Tensor) or bias.shape not in ((_FID_CLASSES,), (1000,)):
            raise InputError(
                f"Inception weights {path}: fc.bias is {None if bias is None else tuple(bias.shape)}",
                f"{_FID_CLASSES} classes (the network of FID) or 1000 (torchvision's)",
                f"use the whole {INCEPTION_FID_FILES[0]} or {INCEPTION_FILE}",
            )
        return len(bias)

    def _pool_as_tensorflow(self) -> None:
        """Change the pooling of the blocks, which torchvision has no setting for."""

        def leave_padding_out(_block: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            ones = torch.ones_like(inputs[0][:1, :1])
            return (inputs[0] / functional.avg_pool2d(ones, 3, stride=1, padding=1),)

        def pool_by_maximum(block: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
            pooled = block.branch_pool(functional.max_pool2d(inputs[0], 3, stride=1, padding=1))  # type: ignore[operator]
            return torch.cat([output[:, : -pooled.shape[1]], pooled], dim=1)

        for name, block in self.blocks.named_children():
            if name == "Mixed_7c":
                block.register_forward_hook(pool_by_maximum)
            elif hasattr(block, "branch_pool"):
                block.branch_pool.register_forward_pre_hook(leave_padding_out)  # type: ignore[union-attr, operator]

    @property
    def name(self) -> str:
        """Such as `inception-v3-fid(sha256=6726825d)`, or `inception-v3-torchvision(...)`."""
        return f"inception-v3-{'fid' if self.is_fid else 'torchvision'}(sha256={sha256_prefix(self.source_sha256)})"

    def forward(self, images: Tensor) -> list[Tensor]:
        """One map (batch, image channels * 2048, 8, 8)."""
        batch, channels = images.shape[:2]
        x = images.reshape(batch * channels, 1, *images.shape[2:])
        x = functional.interpolate(x, (299, 299), mode="bilinear", align_corners=False, antialias=True)
        x = (255 * x - 128) / 128 if self.is_fid else 2 * x - 1
        return [self.blocks(x.expand(-1, 3, -1, -1)).reshape(batch, -1, 8, 8)]


_HEAD = ("AuxLogits", "avgpool", "dropout", "fc")


def hub_inception() -> Path | None:
    """The first Inception file that lies in the torch hub cache, FID's own before torchvision's, or None."""
    found = (hub_weights(file) for file in (*INCEPTION_FID_FILES, INCEPTION_FILE))
    return next((path for path in found if path is not None), None)


def pretrained_extractors(
    inception: str | Path | None = None, alexnet: str | Path | None = None, vgg: str | Path | None = None
) -> list[FeatureExtractor]:
    """The ImageNet extractors that are at hand: each from its path, for None from the torch hub cache, else absent.

    Nothing is downloaded. Raises InputError for a path that is given and cannot be used.
    """
    extractors: list[FeatureExtractor] = []
    if inception is not None or hub_inception() is not None:
        extractors.append(InceptionFeatures(inception))
    if alexnet is not None or hub_weights(ALEXNET_FILE) is not None:
        extractors.append(AlexNetFeatures(alexnet))
    if vgg is not None or hub_weights(VGG16_FILE) is not None:
        extractors.append(VGG16Features(vgg))
    return extractors


@torch.no_grad()
def pooled_features(extractor: FeatureExtractor, batches: Iterable[Tensor]) -> np.ndarray:
    """Spatial means of all feature maps, one after the other: (images, features) float32.

    `batches` yields images (batch, image channels, height, width) in [0, 1].
    """
    rows = [torch.cat([found.mean(dim=(2, 3)) for found in extractor(images)], dim=1) for images in batches]
    return torch.cat(rows).numpy()
