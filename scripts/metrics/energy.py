"""Energy score: how well a set of samples stands for an image that nobody has seen."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

BANDS = 4  # octaves that are told apart; what is coarser is one more


class EnergyScore:
    """Energy score of samples against unseen items, octave by octave.

    ES(x) = E|Y - x| - E|Y - Y'| / 2 for samples Y, Y' (Gneiting and Raftery 2007, eq. 21): a strictly proper rule, so
    in expectation no set of samples does better than draws of the true distribution, and neither one sharp sample
    repeated nor a blurred mean does as well. Taken on whole images it would be decided by their coarse contents, which
    hold most of the energy; here it is the mean over the bands of a Laplacian pyramid (Burt and Adelson 1983), each in
    units of the mean distance of two reference items in that band. Samples that are to unseen items what other
    reference items are score about 0.5; lower is better.

    Args:
        samples: `(count, channels, *size)`, count at least 2.
        reference: items that set the units, `(count, channels, *size)`, at least 2, such as training items.
    """

    def __init__(self, samples: Tensor, reference: Tensor):
        self.bands = [band.flatten(1) for band in octaves(samples)]
        self.units = [_mean_distance(band.flatten(1)).clamp_min(1e-12) for band in octaves(reference)]
        self.spreads = [_mean_distance(band) for band in self.bands]

    def __call__(self, x: Tensor) -> Tensor:
        """Score of one item `(1, channels, *size)`, a scalar."""
        parts = zip(octaves(x), self.bands, self.spreads, self.units, strict=True)
        scores = [(torch.cdist(a.flatten(1), b).mean() - spread / 2) / unit for a, b, spread, unit in parts]
        return torch.stack(scores).mean()


def octaves(x: Tensor) -> Sequence[Tensor]:
    """Bands of `(batch, channels, *size)` from fine to coarse; what is left of it comes last.

    A side that can no longer be halved stays as it is.
    """
    bands: list[Tensor] = []
    pool = F.avg_pool2d if x.ndim == 4 else F.avg_pool3d
    for _ in range(BANDS):
        window = [2 if side >= 4 else 1 for side in x.shape[2:]]
        if max(window) == 1:
            break
        coarse = pool(x, window)
        bands.append(x - F.interpolate(coarse, size=x.shape[2:], mode="nearest"))
        x = coarse
    return [*bands, x]


def _mean_distance(x: Tensor) -> Tensor:
    """Mean distance of two different rows."""
    return torch.pdist(x).mean()
