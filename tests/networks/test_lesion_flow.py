"""The painter: its path is straight, only the hole changes, and it sees nothing of what was there."""

import pytest
import torch

from scripts.networks.lesion_flow import LesionFlow
from scripts.runtime.errors import InputError

SMALL = {"channels": [8, 8], "attention_levels": [False, False], "norm_groups": 4, "num_steps": 3}


def painter(size=(16, 16)) -> LesionFlow:
    torch.manual_seed(0)
    network = LesionFlow(4, 2, size, **SMALL)
    torch.nn.init.normal_(network.denoiser.unet.out[2].conv.weight, std=0.1)
    return network.eval()


def parts(size=(16, 16)):
    generator = torch.Generator().manual_seed(1)
    image, noise = (torch.randn(3, 2, *size, generator=generator) for _ in range(2))
    distance = torch.rand(3, 2, *size, generator=generator) * 2 - 1
    hole = torch.zeros(3, 1, *size)
    hole[:, :, 4:11, 5:9] = 1
    return noise, image, distance, hole


@pytest.mark.parametrize("size", [(16, 16), (24, 20), (8, 16, 16)])
def test_only_the_hole_is_painted(size):
    network, (noise, image, distance, hole) = painter((16,) * len(size)), parts(size)
    with torch.no_grad():
        out = network(torch.cat([noise, image, distance, hole], dim=1))
    inside = (hole > 0).expand_as(image)
    assert torch.equal(out[:, :2][~inside], image[~inside]) and (out[:, :2][inside] != image[inside]).all()
    assert torch.equal(out[:, 2:], (distance < 0).float())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_script_equals_eager(tmp_path):
    """As MONAI exports networks; also in another batch and size than those of the traces inside."""
    network, given = painter(), torch.cat(parts((24, 20)), dim=1)
    torch.jit.save(torch.jit.script(network), tmp_path / "network.ts")
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(tmp_path / "network.ts")(given), network(given))


def test_what_lay_in_the_hole_is_not_seen():
    network, (noise, image, distance, hole) = painter(), parts()
    other = torch.where(hole > 0, image + 5, image)
    with torch.no_grad():
        assert torch.equal(network.paint(noise, image, distance, hole), network.paint(noise, other, distance, hole))


def test_the_path_is_straight_and_its_velocity_is_image_minus_noise():
    network, (noise, image, _, hole) = painter(), parts()
    inside = (hole > 0).expand_as(image)
    early, late = (network.noised(image, noise, torch.full((3,), t), hole) for t in (0.7, 0.2))
    assert torch.allclose((late - early)[inside] / 0.5, (image - noise)[inside], atol=1e-5)
    assert torch.equal(early[~inside], image[~inside])
    assert torch.allclose(network.noised(image, noise, torch.ones(3), hole)[inside], noise[inside])
    assert torch.allclose(network.noised(image, noise, torch.zeros(3), hole)[inside], image[inside])


def test_a_perfect_velocity_paints_the_image(monkeypatch):
    network, (noise, image, distance, hole) = painter(), parts()
    monkeypatch.setattr(network, "velocity", lambda x, t, *_: image - noise)
    painted = network.paint(noise, torch.where(hole > 0, 0 * image, image), distance, hole)
    assert torch.allclose(painted, image, atol=1e-5)


def test_sizes_and_settings_that_cannot_be():
    with pytest.raises(InputError, match="num_steps"):
        LesionFlow(2, 1, (16, 16), **{**SMALL, "num_steps": 0})
    with pytest.raises(InputError, match="norm_groups"):
        LesionFlow(2, 1, (16, 16), **{**SMALL, "norm_groups": 3})
