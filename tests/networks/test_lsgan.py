"""The GAN's networks: grids, ranges, and what may not depend on what."""

import pytest
import torch
from torch.nn.utils import parametrize

from scripts.networks.lsgan import Discriminator, Generator
from scripts.runtime.errors import InputError

SIZES = [(16, 24), (8, 16, 4)]


@pytest.fixture(autouse=True)
def seeded():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("num_channels", [2, 7])
def test_generator_fills_any_grid(size, num_channels):
    generator = Generator(num_channels, size, (16, 8, 8), latent_size=5)
    with torch.no_grad():  # group normalisation holds the last layer's input at about 1
        generator.body[-1].weight.mul_(100)
    out = generator(torch.randn(3, *generator.latent_shape))
    assert out.shape == (3, num_channels, *size)
    assert 0 <= out.min() < 0.01 and 0.99 < out.max() <= 1
    assert Discriminator(num_channels, size, (8, 16))(out).shape == (3, 1)


@pytest.mark.parametrize("size", SIZES)
def test_a_sample_depends_on_its_noise_alone(size):
    """Neither on the batch nor on train or eval mode, as it would with batch normalisation."""
    generator = Generator(2, size, (16, 8, 8))
    noise = torch.randn(4, 128)
    alone = torch.cat([generator.eval()(n[None]) for n in noise])
    torch.testing.assert_close(generator.train()(noise), alone)
    assert (alone[0] - alone[1]).abs().max() > 0.01


def test_doublings_leave_no_checkerboard():
    """A grid without structure stays without, far from the border; transposed convolutions would print theirs."""
    generator = Generator(2, (64, 64), (16, 16, 16))
    flat = torch.randn(1, 16, 1, 1).expand(1, 16, 16, 16)
    centre = generator.body(flat)[..., 24:40, 24:40]
    assert (centre - centre[..., :1, :1]).abs().max() < 1e-4 * centre.abs().max()
    assert not generator.body(flat)[..., 0, 0].allclose(centre[..., 0, 0])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("spectral_norm", [True, False])
def test_discriminator_judges_every_sample_on_its_own(size, spectral_norm):
    discriminator = Discriminator(2, size, (8, 16), spectral_norm=spectral_norm).eval()
    x = torch.rand(3, 2, *size)
    torch.testing.assert_close(discriminator(x)[1:2], discriminator(x[1:2]))
    changed = x.clone()
    changed[:, 1] = 0  # masks count
    assert (discriminator(changed) - discriminator(x)).abs().min() > 0


@pytest.mark.parametrize("size", SIZES)
def test_spectral_norm_holds_every_layer_at_one(size):
    discriminator = Discriminator(2, size, (8, 16), spectral_norm=True)
    layers = [layer for layer in discriminator.body if parametrize.is_parametrized(layer)]
    assert len(layers) == 3 == len([layer for layer in discriminator.body if hasattr(layer, "weight")])
    with torch.no_grad():
        for layer in layers:
            layer.parametrizations.weight.original.mul_(10)
        for _ in range(100):  # an iteration of the power method each
            discriminator(torch.rand(1, 2, *size))
    discriminator.eval()
    norms = [torch.linalg.matrix_norm(layer.weight.flatten(1), 2).item() for layer in layers]
    assert norms == pytest.approx([1, 1, 1], abs=1e-3)
    assert not any(
        parametrize.is_parametrized(layer) for layer in Discriminator(2, size, (8,), spectral_norm=False).body
    )


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Generator(2, (20, 16), (8, 8, 8, 8)), "positive multiples of 8"),
        (lambda: Generator(2, (16,), (8, 8)), "height, width"),
        (lambda: Generator(2, (16, 16), (12, 8)), "multiples of 8"),
        (lambda: Generator(2, (16, 16), ()), "multiples of 8"),
        (lambda: Discriminator(2, (16, 4), (8, 8, 8)), "fewer channels"),
        (lambda: Discriminator(2, (16, 16), (8,), spectral_norm="false"), "True or False"),
    ],
)
def test_settings_out_of_range_are_refused(build, words):
    with pytest.raises(InputError, match=words):
        build()
