"""The energy score: lowest for draws of the true distribution, in any number of axes."""

import pytest
import torch
from torch.nn import functional as F

from scripts.metrics.energy import EnergyScore, octaves


def draws(count, seed, size=(16, 16)):
    """Smooth blobs with fine noise, of random height."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn((count, 1, *[4] * len(size)), generator=generator)
    mode = "bilinear" if len(size) == 2 else "trilinear"
    return F.interpolate(coarse, size, mode=mode) + 0.1 * torch.randn((count, 1, *size), generator=generator)


def score(samples, held_out, reference):
    rule = EnergyScore(samples, reference)
    return float(torch.stack([rule(x[None]) for x in held_out]).mean())


@pytest.mark.parametrize("size", [(16, 16), (16, 8, 8)])
def test_true_draws_do_best(size):
    held_out, reference, true = (draws(64, seed, size) for seed in (0, 1, 2))
    best = score(true, held_out, reference)
    assert best == pytest.approx(0.5, abs=0.05)
    blurred = [true - octaves(true)[0]]  # the fine noise alone is gone, a hundredth of the energy
    collapsed = [true[:1] + 1e-3 * true, true.mean(0, keepdim=True) + 1e-3 * true]
    for worse in (*blurred, *collapsed, 2 * true):
        assert score(worse, held_out, reference) > best + 0.03


def test_bands_are_the_whole():
    x = draws(3, 0, (16, 12))
    total = 0
    for band in reversed(octaves(x)):
        total = band if isinstance(total, int) else F.interpolate(total, band.shape[2:], mode="nearest") + band
    torch.testing.assert_close(total, x)
