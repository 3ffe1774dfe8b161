"""PSNR, SSIM and LPIPS against their libraries, and pairs against search by hand."""

import warnings

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchvision.models import alexnet

from scripts.metrics.fidelity import (
    HIGHEST_PSNR,
    LearnedPerceptualDistance,
    PerceptualDistance,
    mean_squared_differences,
    nearest_items,
    pair_values,
    psnr,
    random_items,
    ssim,
)
from scripts.networks.features import SegmentationFeatures


def images(n, seed, channels=1, size=(24, 20)):
    """Smooth random images in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, channels, 6, 5, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bilinear")


def noisy(x, level, seed=9):
    return (x + level * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        state = alexnet(weights=None).features.state_dict()
    path = tmp_path_factory.mktemp("alexnet") / "weights.pth"
    torch.save({f"features.{key}": value for key, value in state.items()}, path)
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_psnr_and_ssim_are_those_of_skimage(channels):
    a, b = images(4, 0, channels), noisy(images(4, 0, channels), 0.1)
    for i in range(4):
        x, y = a[i].double().numpy(), b[i].double().numpy()
        assert psnr(a, b)[i] == pytest.approx(peak_signal_noise_ratio(x, y, data_range=1), rel=1e-5)
        window = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        expected = structural_similarity(x, y, data_range=1, channel_axis=0, **window)
        assert ssim(a, b)[i] == pytest.approx(expected, abs=1e-4)


def test_psnr_follows_its_formula_with_the_fixed_range():
    dark = torch.full((1, 1, 12, 12), 0.1)  # the range of this pair is 0.02, the pool's is 1
    assert psnr(dark, dark + 0.02).item() == pytest.approx(20 * np.log10(1 / 0.02), rel=1e-4)


def test_identical_pairs_have_the_highest_psnr_not_an_infinite_one():
    a = images(3, 0)
    assert psnr(a, a).tolist() == [HIGHEST_PSNR] * 3
    assert psnr(a, a + 1e-7).tolist() == [HIGHEST_PSNR] * 3
    assert ssim(a, a).tolist() == pytest.approx([1, 1, 1])


def test_noise_lowers_psnr_and_ssim():
    a = images(5, 0)
    for measure in (psnr, ssim):
        found = torch.stack([measure(noisy(a, level), a) for level in (0.0, 0.02, 0.1, 0.3)])
        assert (found.diff(dim=0) < 0).all()


@pytest.mark.slow
def test_lpips_is_that_of_the_library(alexnet_file):
    """The same trunk and the library's learnt weights, in its own range of -1 to 1."""
    import lpips

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips asks torchvision for the network in an outdated way
        library = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    state = torch.load(alexnet_file, weights_only=True)
    for module in (getattr(library.net, f"slice{i}") for i in range(1, 6)):
        for number, layer in module.named_children():
            if isinstance(layer, torch.nn.Conv2d):
                layer.load_state_dict(
                    {part: state[f"features.{number}.{part}"] for part in ("weight", "bias")}
                )  # fmt: skip
    measure = LearnedPerceptualDistance(alexnet_file)
    a, b = images(3, 0, size=(64, 64)), images(3, 1, size=(64, 64))
    with torch.no_grad():
        expected = library(2 * a.repeat(1, 3, 1, 1) - 1, 2 * b.repeat(1, 3, 1, 1) - 1).flatten()
    found = measure(a, b)
    torch.testing.assert_close(found, expected)
    assert found.min() > 0
    torch.testing.assert_close(measure(a, a), torch.zeros(3))
    two = measure(torch.cat([a, b], 1), torch.cat([b, b], 1))  # a mean over channels, each seen as grey
    torch.testing.assert_close(two, expected / 2)
    assert measure.name.startswith("lpips-0.1-alexnet(")


@pytest.mark.slow
def test_lpips_leaves_the_global_random_state(alexnet_file):
    before = torch.get_rng_state()
    LearnedPerceptualDistance(alexnet_file)
    assert torch.equal(torch.get_rng_state(), before)


def test_perceptual_distance_is_its_formula():
    extractor = SegmentationFeatures(1, 1, channels=(4, 8), seed=0)
    a, b = images(2, 0, size=(16, 16)), images(2, 1, size=(16, 16))
    expected = torch.zeros(2)
    for x, y in zip(extractor(a), extractor(b), strict=True):
        for i in range(2):
            for p in range(x.shape[2]):
                for q in range(x.shape[3]):
                    u, v = x[i, :, p, q], y[i, :, p, q]
                    gap = u / (u.norm() + 1e-10) - v / (v.norm() + 1e-10)
                    expected[i] += gap.square().sum() / (x.shape[2] * x.shape[3])
    measure = PerceptualDistance(extractor)
    torch.testing.assert_close(measure(a, b), expected)
    assert measure(a, a).tolist() == [0, 0]
    torch.testing.assert_close(measure(a[[0, 0, 1]], b[[0, 1, 1]])[[0, 2]], expected)  # a candidate twice
    levels = torch.stack([measure(noisy(a, level), a) for level in (0.0, 0.05, 0.4)])
    assert (levels.diff(dim=0) > 0).all()


def test_distances_to_the_nearest_are_mean_squared_errors():
    a, b = images(4, 0, 2), images(5, 1, 2)
    found = mean_squared_differences(a, b)
    for i in range(4):
        for j in range(5):
            assert found[i, j] == pytest.approx((a[i] - b[j]).square().mean().item(), rel=1e-5)
    assert np.abs(np.diag(mean_squared_differences(a, a))).max() < 1e-14


def test_the_nearest_item_is_searched_among_the_patients_of_the_draw():
    rng = np.random.default_rng(0)
    distances, groups = rng.random((6, 9)), np.array([0, 0, 0, 1, 1, 2, 2, 2, 3])
    weights = np.array([[1, 1, 1, 1], [0, 2, 0, 1], [4, 0, 0, 0]])[:, groups].astype(float)
    found = nearest_items(distances, groups, weights)
    for draw in range(3):
        allowed = np.where(weights[draw] > 0, distances, np.inf)
        np.testing.assert_array_equal(found[draw], allowed.argmin(axis=1))


def test_every_pair_is_measured_once():
    a, b = images(5, 0), images(4, 1)
    chosen = np.array([[0, 1, 2, 3, 0], [0, 1, 2, 2, 2], [0, 1, 2, 3, 0]])
    measured = []

    def measure(x, y):
        measured.extend(range(len(x)))
        return psnr(x, y)

    found = pair_values(measure, a, b, chosen, batch_size=3)
    assert len(measured) == 7
    for draw in range(3):
        expected = psnr(a, b[torch.from_numpy(chosen[draw])])
        np.testing.assert_allclose(found[draw], expected, rtol=1e-6)


def test_random_pairs_follow_their_seed():
    first = random_items(500, 7, seed=3)
    np.testing.assert_array_equal(first, random_items(500, 7, seed=3))
    assert not np.array_equal(first, random_items(500, 7, seed=4))
    assert set(first) == set(range(7))
