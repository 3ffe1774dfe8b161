"""The autoencoder's objective against its closed forms."""

import math

import pytest
import torch
from monai.losses import DiceLoss
from torch.nn import functional as F

from scripts.losses.autoencoder import autoencoder_objective


def terms(logits, x, mean=None, std=None, **settings):
    mean = torch.zeros(len(x), 1, 2, 2) if mean is None else mean
    std = torch.ones_like(mean) if std is None else std
    return autoencoder_objective(logits, x, mean, std, 1, **settings)


def test_kl_is_that_of_two_gaussians():
    x = torch.rand(2, 2, 4, 4)
    mean, std = torch.randn(2, 3, 2, 2), torch.rand(2, 3, 2, 2) + 0.1
    prior = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(std))
    expected = torch.distributions.kl_divergence(torch.distributions.Normal(mean, std), prior)
    got = terms(torch.zeros(2, 2, 4, 4), x, mean, std, kl_weight=0.5)
    torch.testing.assert_close(got.kl, expected.flatten(1).sum(1).mean())
    torch.testing.assert_close(got.loss - terms(torch.zeros(2, 2, 4, 4), x, mean, std, kl_weight=0).loss, 0.5 * got.kl)
    assert terms(torch.zeros(2, 2, 4, 4), x).kl == 0


def test_image_is_the_mean_absolute_difference_and_mask_the_cross_entropy():
    x = torch.zeros(1, 2, 4, 4)
    x[:, 0] = 0.9
    logits = torch.zeros(1, 2, 4, 4)  # probability 1/2 everywhere
    got = terms(logits, x)
    assert got.image.item() == pytest.approx(0.4)
    dice_of_no_mask = 1 - 1e-2 / (8 + 1e-2)
    assert got.mask.item() == pytest.approx(math.log(2) + dice_of_no_mask, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 4)])
def test_the_mask_term_is_cross_entropy_and_monais_dice_over_the_batch(size):
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(3, 3, *size, generator=generator) > 0.7).float()
    logits = torch.randn(x.shape, generator=generator)
    x[0, 1:] = 0  # an item without mask
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=1e-2, smooth_dr=1e-2)(logits[:, 1:], x[:, 1:])
    expected = F.binary_cross_entropy_with_logits(logits[:, 1:], x[:, 1:]) + dice
    torch.testing.assert_close(terms(logits, x).mask, expected)


@pytest.mark.parametrize("size", [(8, 8), (8, 8, 4)])
def test_the_loss_is_least_at_the_input(size):
    """Following the gradient ends at the input, image and mask, in two and three dimensions."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, *size, generator=generator)
    x[:, 1:] = (x[:, 1:] > 0.8).float()
    logits = torch.zeros_like(x, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        terms(logits, x).loss.backward()
        optimizer.step()
    probabilities = torch.sigmoid(logits)
    assert (probabilities - x)[:, :1].abs().mean() < 0.02
    assert ((probabilities[:, 1:] > 0.5) == (x[:, 1:] > 0.5)).all()


def test_image_and_mask_channels_do_not_mix():
    x = torch.rand(1, 2, 4, 4)
    logits = torch.randn(1, 2, 4, 4, requires_grad=True)
    got = terms(logits, x)
    (of_image,) = torch.autograd.grad(got.image, logits, retain_graph=True)
    (of_mask,) = torch.autograd.grad(got.mask, logits)
    assert of_image[:, 1:].abs().max() == 0 < of_image[:, :1].abs().max()
    assert of_mask[:, :1].abs().max() == 0 < of_mask[:, 1:].abs().max()


def test_terms_are_float32_under_autocast():
    logits, x = torch.randn(1, 2, 4, 4).bfloat16(), torch.rand(1, 2, 4, 4)
    got = terms(logits, x, torch.randn(1, 1, 2, 2).bfloat16(), torch.rand(1, 1, 2, 2).bfloat16() + 0.1)
    assert {value.dtype for value in got} == {torch.float32}
