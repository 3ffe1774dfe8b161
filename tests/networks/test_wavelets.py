"""The Haar transform: exact, orthonormal, measured on training items, and of no size that does not fit."""

import pytest
import torch

from scripts.networks.wavelets import WaveletTransform
from scripts.runtime.errors import InputError

SIZES = [((8, 12), 1, False, (8, 4, 6)), ((8, 16), 2, False, (32, 2, 4)), ((8, 12, 6), 1, False, (16, 4, 6, 3)),
         ((8, 12, 5), 2, True, (32, 2, 3, 5))]  # fmt: skip


def items(size, count=6):
    torch.manual_seed(0)
    images = torch.rand(count, 1, *size)
    return torch.cat([images, (images > 0.7).float()], 1)


@pytest.mark.parametrize("size, levels, in_plane, shape", SIZES)
def test_there_and_back_is_what_was_there(size, levels, in_plane, shape):
    transform, x = WaveletTransform(2, size, levels, in_plane), items(size)
    for _ in range(2):  # before and after the bands are measured
        mean, std = transform.encode(x)
        assert transform.code_shape == shape and mean.shape == (6, *shape) and not std.any()
        torch.testing.assert_close(transform.reconstruct(x), x)
        transform.fit([x[:4], x[4:]])


@pytest.mark.parametrize("size, levels, in_plane, shape", SIZES)
def test_white_noise_stays_white(size, levels, in_plane, shape):
    """Orthonormal: lengths and angles stay, so that noise of the bands is noise of the voxels."""
    transform, x = WaveletTransform(2, size, levels, in_plane), items(size)
    z = transform.encode(x)[0].flatten(1)
    flat = (2 * x - 1).flatten(1)
    torch.testing.assert_close(z @ z.T, flat @ flat.T)


def test_smooth_images_are_in_the_first_band():
    transform = WaveletTransform(1, (8, 8), 2)
    z = transform.encode(torch.full((1, 1, 8, 8), 0.75))[0]
    assert torch.allclose(z[:, 0], torch.tensor(2.0)) and z[:, 1:].abs().max() < 1e-6  # 0.5 times 2 for each level


def test_bands_are_measured():
    """Mean 0, and the square root of the deviation that they had; a band that never varies stays."""
    x = items((16, 16), 40)
    x[:, 1] = 0  # nothing is labelled
    transform = WaveletTransform(2, (16, 16), 1)
    before = transform.encode(x)[0]
    transform.fit(x.split(7))
    after = transform.encode(x)[0]
    torch.testing.assert_close(after.mean((0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(after.std((0, 2, 3))[::2], before.std((0, 2, 3))[::2].sqrt(), rtol=1e-2, atol=0)
    assert (transform.scale[1::2] == 1).all() and torch.isfinite(after).all()


@pytest.mark.parametrize("size, levels", [((9, 8), 1), ((8, 8), 4), ((8, 8), 0), ((8,), 1), ((12, 8, 6), 2)])
def test_what_does_not_fit_is_refused(size, levels):
    with pytest.raises(InputError, match="spatial_size"):
        WaveletTransform(2, size, levels)
