"""Least-squares adversarial losses against their formulas, and who gets a gradient from which."""

import pytest
import torch
from torch import nn

from scripts.losses.adversarial import discriminator_loss, generator_loss, patch_discriminator
from scripts.runtime.errors import InputError


class Scores(nn.Module):
    """Score of a sample = scale * its mean, behind a first map that must not count."""

    def __init__(self, scale):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, x):
        score = self.scale * x.mean((1, 2, 3), keepdim=True)
        return [1000 + x, score.expand(-1, 1, 2, 2)]


@pytest.fixture
def discriminator():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = patch_discriminator(3, (24, 32), channels=8)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.2)  # MONAI's 0.02 leaves scores so near 0 that traps do not show
    return network


def pairs(seed, n=2, size=(24, 32)):
    return torch.rand(n, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("scale", [-3.0, 0.5, 2.0])
def test_known_scores_give_the_losses_of_the_paper(scale):
    real, fake = torch.full((2, 1, 4, 4), 0.5), torch.full((2, 1, 4, 4), 0.25)
    d_real, d_fake = 0.5 * scale, 0.25 * scale
    assert discriminator_loss(Scores(scale), real, fake).item() == 0.5 * ((d_real - 1) ** 2 + d_fake**2)
    assert generator_loss(Scores(scale), fake).item() == 0.5 * (d_fake - 1) ** 2


def test_losses_equal_the_formulas_on_the_last_map(discriminator):
    real, fake = pairs(1), pairs(2)
    d_real, d_fake = discriminator(real)[-1], discriminator(fake)[-1]
    assert d_real.min() < 0 < d_real.max()  # both sides of the activation that must not be there
    expected = 0.5 * ((d_real - 1) ** 2).mean() + 0.5 * (d_fake**2).mean()
    torch.testing.assert_close(discriminator_loss(discriminator, real, fake), expected)
    torch.testing.assert_close(generator_loss(discriminator, fake), 0.5 * ((d_fake - 1) ** 2).mean())


def test_the_discriminator_loss_trains_the_discriminator_only(discriminator):
    real, fake = pairs(1), pairs(2).requires_grad_(True)
    discriminator_loss(discriminator, real, fake).backward()
    assert fake.grad is None
    assert discriminator.initial_conv.conv.weight.grad.norm() > 0


def test_the_generator_loss_trains_the_generator_only(discriminator):
    fake = pairs(2).requires_grad_(True)
    generator_loss(discriminator, fake).backward()
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert all(parameter.requires_grad for parameter in discriminator.parameters())
    expected = torch.autograd.grad(0.5 * ((discriminator(fake)[-1] - 1) ** 2).mean(), fake)
    torch.testing.assert_close(fake.grad, expected[0])
    assert fake.grad[:, 0].norm() > 0 and fake.grad[:, 2].norm() > 0  # image and mask channels


def test_a_trained_discriminator_tells_real_from_fake(discriminator):
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
    for step in range(40):
        smooth = pairs(step, n=4).mean((2, 3), keepdim=True).expand(-1, -1, 24, 32)
        loss = discriminator_loss(discriminator, pairs(step, n=4), smooth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert discriminator(pairs(99))[-1].mean() > 0.7
    assert discriminator(pairs(99).mean((2, 3), keepdim=True).expand(-1, -1, 24, 32))[-1].mean() < 0.3


def test_samples_do_not_see_each_other(discriminator):
    batch = pairs(1)
    torch.testing.assert_close(discriminator(batch)[-1][:1], discriminator(batch[:1])[-1])


@pytest.mark.parametrize(("size", "patches"), [(64, 6), (128, 14), (24, 1)])
def test_a_score_per_patch(size, patches):
    scores = patch_discriminator(2, (size, size), channels=4)(torch.rand(1, 2, size, size))[-1]
    assert scores.shape == (1, 1, patches, patches)


def test_losses_are_float32_under_autocast(discriminator):
    real, fake = pairs(1), pairs(2)
    exact = discriminator_loss(discriminator, real, fake), generator_loss(discriminator, fake)
    with torch.autocast("cpu", torch.bfloat16):
        low = discriminator_loss(discriminator, real, fake), generator_loss(discriminator, fake)
    for got, expected in zip(low, exact, strict=True):
        assert got.dtype == torch.float32
        assert got.item() == pytest.approx(expected.item(), rel=0.05)


@pytest.mark.parametrize(("size", "layers"), [((64, 23), 3), ((11, 64), 2)])
def test_slices_too_small_for_the_layers_are_refused(size, layers):
    with pytest.raises(InputError, match="PatchGAN discriminator"):
        patch_discriminator(2, size, layers=layers)
