"""Feature reconstruction against its formula, and what a distance between images must do."""

import pytest
import torch
from torch.nn import functional

from scripts.losses.feature_reconstruction import FeatureReconstructionLoss
from scripts.networks.features import SegmentationFeatures
from scripts.runtime.errors import InputError


@pytest.fixture
def extractor():
    return SegmentationFeatures(2, 1, channels=(6, 9, 12), seed=1).double()


def images(n=3, seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 2, size, size, dtype=torch.float64, generator=generator)


def blur(x, sigma):
    offsets = torch.arange(-12, 13, dtype=x.dtype)
    kernel = torch.exp(-(offsets**2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(x.shape[1], 1, -1)
    x = functional.conv2d(x, kernel.unsqueeze(2), padding=(0, 12), groups=x.shape[1])
    return functional.conv2d(x, kernel.unsqueeze(3), padding=(12, 0), groups=x.shape[1])


def test_equals_the_formula_written_out(extractor):
    x_hat, x = images(seed=1), images(seed=2)
    feature, pixel = 0.0, 0.0
    for n in range(3):
        one, other = extractor(x_hat[n : n + 1]), extractor(x[n : n + 1])
        for phi_hat, phi in zip(one, other, strict=True):
            squared_norm = torch.linalg.vector_norm(phi_hat - phi).item() ** 2
            feature += squared_norm / 3
        pixel += (x_hat[n] - x[n]).abs().sum().item() / 3
    terms = FeatureReconstructionLoss(extractor)(x_hat, x)
    assert terms.feature.item() == pytest.approx(feature, rel=1e-10)
    assert terms.pixel.item() == pytest.approx(pixel, rel=1e-10)
    assert terms.total.item() == pytest.approx(feature + pixel, rel=1e-10)


def test_zero_for_equal_images_only(extractor):
    loss, x = FeatureReconstructionLoss(extractor), images()
    assert loss(x, x.clone()).total == 0
    changed = x.clone()
    changed[1, 0, 12, 12] += 0.1
    terms = loss(changed, x)
    assert terms.feature > 0
    assert terms.pixel.item() == pytest.approx(0.1 / 3)


def test_grows_with_the_blur_of_the_reconstruction(extractor):
    loss, x = FeatureReconstructionLoss(extractor), images()
    terms = [loss(blur(x, sigma), x) for sigma in (0.3, 0.5, 0.8, 1.2, 2.0)]
    for before, after in zip(terms, terms[1:], strict=False):
        assert 0 < before.feature < after.feature
        assert 0 < before.pixel < after.pixel


def test_gradient_reaches_the_reconstruction_only(extractor):
    x_hat, x = images(seed=1).requires_grad_(True), images(seed=2).requires_grad_(True)
    loss = FeatureReconstructionLoss(extractor).train()
    loss(x_hat, x).feature.backward()
    assert x.grad is None
    assert (x_hat.grad.flatten(1).norm(dim=1) > 0).all()
    assert all(parameter.grad is None for parameter in loss.parameters())
    before, after = loss(x_hat, x).feature, loss(x_hat - 1e-4 * x_hat.grad / x_hat.grad.norm(), x).feature
    assert (before - after).item() == pytest.approx(1e-4 * x_hat.grad.norm().item(), rel=0.01)


def test_sums_the_maps_of_autocast_in_float32():
    class Low(torch.nn.Module):
        def forward(self, x):
            return [x.bfloat16()]

    x_hat, x = images(seed=1).bfloat16(), images(seed=2).bfloat16()
    terms = FeatureReconstructionLoss(Low())(x_hat, x)
    difference = (x_hat.double() - x.double()).flatten(1)
    assert terms.feature.dtype == terms.pixel.dtype == torch.float32
    assert terms.feature.item() == pytest.approx(difference.square().sum(1).mean().item(), rel=1e-5)
    assert terms.pixel.item() == pytest.approx(difference.abs().sum(1).mean().item(), rel=1e-5)


def test_bad_input_is_refused(extractor):
    with pytest.raises(InputError, match="equal shapes"):
        FeatureReconstructionLoss(extractor)(images(), images(n=1))
