"""Figures of image pairs, PSNR, SSIM and LPIPS, and the two ways to pair a sample with a real slice.

A sample has no ground truth, so that PSNR and SSIM depend on the pairing more than on anything else: against its
nearest real slice they tell how close the closest one is, against a random one how much two slices have in common.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..networks.features import AlexNetFeatures, FeatureExtractor
from ..runtime.tensor_store import StoredRows
from .distributions import Weights

# Identical images have an infinite PSNR; a mean over pairs needs a number. At 100 dB the root mean squared
# difference is 1e-5 of the data range, below the rounding of any image file.
HIGHEST_PSNR = 100.0
_AT_ONCE = 512  # images

PairMeasure = Callable[[Tensor, Tensor], Tensor]  # images (pairs, channels, height, width) in [0, 1] -> (pairs,)


def psnr(candidates: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair in dB for data range 1 (dHVAE, eq. 13), at most `HIGHEST_PSNR`.

    Images (pairs, channels, height, width) in [0, 1], which is the fixed range of the pool's scaling and not that
    of the pair; the squared error is a mean over channels and pixels.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    found = peak_signal_noise_ratio(candidates, reference, data_range=1.0, dim=(1, 2, 3), reduction="none")
    return found.clamp(max=HIGHEST_PSNR)


def ssim(candidates: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity of each pair (Wang et al. 2004; Gaussian window of 11, sigma 1.5) for data range 1.

    Images (pairs, channels, height, width) in [0, 1], at least 11 pixels a side; a mean over channels and over the
    windows that lie within the image, as in the paper. (torchmetrics reflects the border and counts it.)
    """
    from monai.metrics.regression import compute_ssim_and_cs

    maps, _ = compute_ssim_and_cs(
        candidates, reference, spatial_dims=2, kernel_size=(11, 11), kernel_sigma=(1.5, 1.5), data_range=1.0
    )
    return maps.flatten(1).mean(dim=1)


class LearnedPerceptualDistance:
    """LPIPS with AlexNet (Zhang et al. 2018): the trunk from a local file, the learnt weights from package lpips.

    Called on images (pairs, channels, height, width) in [0, 1]; each channel is shown as grey, and the figure is
    their mean. Raises InputError as `AlexNetFeatures` does.
    """

    def __init__(self, weights: str | Path | None = None):
        import lpips

        trunk = AlexNetFeatures(weights)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")  # lpips asks torchvision for the network in an outdated way
            self.network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
        state = {key: tensor for key, tensor in trunk.features.state_dict().items()}
        places = {key.split(".", 1)[1]: key for key in self.network.net.state_dict()}  # 0.weight: slice1.0.weight
        self.network.net.load_state_dict({places[key]: tensor for key, tensor in state.items()})
        self.network.requires_grad_(False)
        self.name = f"lpips-0.1-{trunk.name}"

    @torch.no_grad()
    def __call__(self, candidates: Tensor, reference: Tensor) -> Tensor:
        """Distance of each pair (pairs,)."""
        pairs, channels = candidates.shape[:2]
        colour = [x.flatten(0, 1).unsqueeze(1).expand(-1, 3, -1, -1) for x in (candidates, reference)]
        return self.network(*colour, normalize=True).reshape(pairs, channels).mean(dim=1)


class PerceptualDistance:
    """Distance of unit-normalised feature maps without learnt weights (dHVAE, eq. 15), with any extractor.

    Squared differences are summed over features, averaged over pixels, summed over maps. Not on the scale of LPIPS.
    """

    def __init__(self, extractor: FeatureExtractor):
        self.extractor = extractor
        self.name = extractor.name

    @torch.no_grad()
    def __call__(self, candidates: Tensor, reference: Tensor) -> Tensor:
        """Distance of each pair (pairs,) of images (pairs, channels, height, width) in [0, 1]."""
        total = torch.zeros(len(candidates))
        # `pair_values` gives the pairs of a candidate one after the other: its features are computed once.
        different, place = candidates.unique_consecutive(dim=0, return_inverse=True)
        for a, b in zip(self.extractor(different), self.extractor(reference), strict=True):
            a, b = (x / (x.norm(dim=1, keepdim=True) + 1e-10) for x in (a, b))
            total += (a[place] - b).square().sum(dim=1).mean(dim=(1, 2))
        return total


def mean_squared_differences(candidates: Tensor, reference: Tensor | StoredRows) -> np.ndarray:
    """Mean over channels and pixels of the squared difference of every pair: (candidates, reference) float64."""
    a = candidates.flatten(1).double()
    squares = []
    for part in reference.split(_AT_ONCE):
        b = part.flatten(1).double()
        found = a.square().sum(1)[:, None] + b.square().sum(1)[None] - 2 * a @ b.T
        squares.append((found.clamp(min=0) / a.shape[1]).numpy())
    return np.concatenate(squares, axis=1)


def nearest_items(distances: np.ndarray, groups: np.ndarray, weights: Weights) -> np.ndarray:
    """The nearest reference item of each candidate among those that a draw holds: indices (draws, candidates).

    Args:
        distances: (candidates, reference).
        groups: (reference,) patient of each reference item; a draw holds whole patients.
        weights: (draws, reference).
    """
    count = int(groups.max()) + 1
    best = np.stack([np.flatnonzero(groups == g)[distances[:, groups == g].argmin(axis=1)] for g in range(count)], 1)
    order = np.argsort(np.take_along_axis(distances, best, axis=1), axis=1, kind="stable")
    best = np.take_along_axis(best, order, axis=1)  # of each patient the nearest item, nearest patient first
    first = [int(np.flatnonzero(groups == g)[0]) for g in range(count)]
    chosen = [(row[first] > 0)[order].argmax(axis=1) for row in weights]
    return np.stack([np.take_along_axis(best, place[:, None], axis=1)[:, 0] for place in chosen])


def random_items(candidates: int, reference: int, seed: int) -> np.ndarray:
    """A random reference item for each candidate: indices (candidates,)."""
    return np.random.default_rng(seed).integers(reference, size=candidates)


def pair_values(
    measure: PairMeasure, candidates: Tensor, reference: Tensor | StoredRows, chosen: np.ndarray, batch_size: int = 64
) -> np.ndarray:
    """The measure of each candidate with its chosen reference item: (draws, candidates) for such indices.

    Each pair is measured once, however many draws it is in.
    """
    keys = np.arange(len(candidates)) * len(reference) + chosen
    pairs, places = np.unique(keys, return_inverse=True)
    rows, columns = (torch.from_numpy(x) for x in np.divmod(pairs, len(reference)))
    values = [
        measure(candidates[a], reference[b]).double().numpy()
        for a, b in zip(rows.split(batch_size), columns.split(batch_size), strict=True)
    ]
    return np.concatenate(values)[places.reshape(chosen.shape)]
