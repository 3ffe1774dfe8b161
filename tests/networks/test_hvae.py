import math

import pytest
import torch

from scripts.dynamics.leapfrog import PhaseState, leapfrog_step
from scripts.networks.hvae import HVAE, WeightStandardisedConv2d
from scripts.runtime.errors import InputError

TINY = {"channels": (8, 16, 16), "norm_groups": 4, "attention_heads": 2, "attention_head_dim": 4}


def tiny(**settings):
    torch.manual_seed(0)
    return HVAE(**{"num_channels": 3, "spatial_size": 16, **TINY, **settings})


def test_paper_size_has_about_23_million_parameters():
    network = HVAE(num_channels=2, spatial_size=128)
    assert network.latent_shape == (3, 16, 16)
    assert 22e6 < sum(parameter.numel() for parameter in network.parameters()) < 24e6


def test_shapes_and_ranges():
    network = tiny(spatial_size=(16, 24), latent_channels=5)
    assert network.latent_shape == (5, 4, 6)
    mean, log_var = network.encode(torch.rand(2, 3, 16, 24))
    assert mean.shape == log_var.shape == (2, 5, 4, 6)
    z = 3 * torch.randn(2, 5, 4, 6)
    probabilities = network(z)
    assert probabilities.shape == (2, 3, 16, 24)
    assert 0 <= probabilities.min() and probabilities.max() <= 1
    torch.testing.assert_close(probabilities, network.decode(z).sigmoid())


def test_encoder_and_decoder_are_mirror_images():
    network = tiny()

    def shapes(module):
        return sorted(
            tuple(sorted(weight.weight.shape[:2]))
            for weight in module.modules()
            if isinstance(weight, WeightStandardisedConv2d)
        )

    assert shapes(network.encoder) == shapes(network.decoder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated:FutureWarning")  # MONAI exports to TorchScript
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # torch's own check inside group_norm
def test_export_gives_the_same_output(tmp_path):
    network = tiny().eval()
    z = torch.randn(2, *network.latent_shape)
    other = torch.randn(3, *network.latent_shape)
    for name, exported in (("script", torch.jit.script(network)), ("trace", torch.jit.trace(network, z))):
        torch.jit.save(exported, tmp_path / f"{name}.ts")
        loaded = torch.jit.load(tmp_path / f"{name}.ts")
        torch.testing.assert_close(loaded(other), network(other))


def test_no_layer_mixes_the_samples_of_a_batch():
    network = tiny().double()
    z = torch.randn(3, *network.latent_shape, dtype=torch.float64, requires_grad=True)
    logits = network.decode(z)
    (gradient,) = torch.autograd.grad(logits[1].sum(), z)
    assert gradient[1].abs().max() > 0
    assert gradient[0].abs().max() == 0 and gradient[2].abs().max() == 0
    torch.testing.assert_close(network.decode(z[1:2])[0], logits[1])


def test_standardised_weights_are_centred_with_norm_one():
    network = tiny().double()
    for weight in network.standardised_weights():
        assert weight.mean(dim=(1, 2, 3)).abs().max() < 1e-15
        torch.testing.assert_close(
            weight.square().sum(dim=(1, 2, 3)), torch.ones(len(weight), dtype=torch.float64), rtol=1e-4, atol=0
        )


def test_using_weights_standardises_nothing_inside_and_leaves_no_trace(monkeypatch):
    network = tiny()
    z = torch.randn(2, *network.latent_shape)
    expected = network.decode(z)
    calls = []
    original = WeightStandardisedConv2d.standardised_weight
    monkeypatch.setattr(
        WeightStandardisedConv2d, "standardised_weight", lambda convolution: calls.append(1) or original(convolution)
    )
    weights = network.standardised_weights()
    assert len(calls) == len(weights)
    with network.using_weights(weights):
        torch.testing.assert_close(network.decode(z), expected, rtol=0, atol=0)
    assert len(calls) == len(weights)
    with pytest.raises(RuntimeError, match="stop"), network.using_weights([2 * w for w in weights]):
        raise RuntimeError("stop")
    torch.testing.assert_close(network.decode(z), expected, rtol=0, atol=0)


@pytest.mark.parametrize("num_steps", [0, 3])  # without steps there is nothing to learn
def test_step_sizes_start_as_told_and_stay_positive(num_steps):
    network = tiny(num_leapfrog_steps=num_steps, initial_step_size=0.02)
    assert network.step_size().shape == (3, 4, 4)
    torch.testing.assert_close(network.step_size(), torch.full((3, 4, 4), 0.02))
    assert sum(name == "log_step_size" for name, _ in network.named_parameters()) == (num_steps > 0)
    assert "log_step_size" in network.state_dict()
    with torch.no_grad():
        network.log_step_size -= 50
    assert (network.step_size() > 0).all()


def test_energy_error_of_leapfrog_on_a_decoder_is_of_second_order():
    network = tiny().double()
    network.decoder[-1].weight.data *= 10
    torch.manual_seed(1)
    x = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    start = PhaseState(*torch.randn(2, 1, *network.latent_shape, dtype=torch.float64))

    def potential(z):
        nll = torch.nn.functional.binary_cross_entropy_with_logits(network.decode(z), x, reduction="sum")
        return nll + 0.5 * z.square().sum()

    def gradient(z):
        z = z.detach().requires_grad_()
        return torch.autograd.grad(potential(z), z)[0]

    def energy(state):
        return (potential(state.position) + 0.5 * state.momentum.square().sum()).item()

    step_sizes, errors = [0.02, 0.01, 0.005], []
    for step_size in step_sizes:
        state, here = start, gradient(start.position)
        for _ in range(round(0.1 / step_size)):
            state, here = leapfrog_step(state, here, gradient, step_size)
        errors.append(abs(energy(state) - energy(start)))
    logs = [torch.tensor([math.log(v) for v in values]) for values in (step_sizes, errors)]
    centred = [values - values.mean() for values in logs]
    order = ((centred[0] * centred[1]).sum() / centred[0].square().sum()).item()
    assert 1.8 < order < 2.2, errors


@pytest.mark.parametrize(
    "setting, words",
    [
        ({"spatial_size": 18}, "multiples of 4"),
        ({"spatial_size": (16, 0)}, "multiples of 4"),
        ({"channels": (8, 10)}, "multiples of norm_groups"),
        ({"num_res_blocks": 0}, "1 or more"),
        ({"num_leapfrog_steps": -1}, "num_leapfrog_steps -1"),
        ({"initial_step_size": 0.0}, "above 0"),
        ({"beta_zero": 0.0}, "no tempering"),
        ({"beta_zero": 1.5}, "no tempering"),
    ],
)
def test_settings_out_of_range_are_refused(setting, words):
    with pytest.raises(InputError, match=words):
        tiny(**setting)


def test_latent_density_is_that_of_the_posterior():
    """Noise through the fitted map has the mean and covariance of the aggregate posterior."""
    torch.manual_seed(0)
    network = HVAE(2, 16, channels=(8, 8), num_res_blocks=1, latent_channels=1, norm_groups=2, attention_heads=1)
    with torch.no_grad():
        network.encoder[-1].weight.mul_(10)  # means that differ
    x = torch.rand(50, 2, 16, 16)
    noise = torch.randn(3, *network.latent_shape)
    assert torch.equal(network(noise), torch.sigmoid(network.decode(noise)))  # the prior, before the fit
    network.fit_latent_density(x, batch_size=16)
    mean, log_var = network.encode(x)
    draws = (mean + torch.exp(0.5 * log_var) * torch.randn(400, *mean.shape)).flatten(0, 1).flatten(1).detach()
    fitted = network.density_factor @ network.density_factor.T
    assert torch.allclose(network.density_mean.flatten(), draws.mean(0), atol=0.05)
    assert (fitted - torch.cov(draws.T)).abs().max() < 0.05 * fitted.diagonal().max()
    assert not torch.allclose(fitted, torch.eye(len(fitted)), atol=0.1)
    placed = network.density_mean + (noise.flatten(1) @ network.density_factor.T).reshape(noise.shape)
    assert torch.allclose(network(noise), torch.sigmoid(network.decode(placed)))


def test_fixed_weights_change_no_bit():
    torch.manual_seed(0)
    network = HVAE(2, 16, channels=(8, 8), num_res_blocks=1, latent_channels=2, attention_heads=1).eval()
    noise = torch.randn(3, *network.latent_shape)
    with torch.no_grad():
        before = network(noise)
        network.fix_weights()
        assert torch.equal(network(noise), before)


@pytest.mark.parametrize("upsampling, jumps", [("nearest", True), ("bilinear", False)])
def test_bilinear_enlargement_leaves_no_grid_of_the_latent(upsampling, jumps):
    """A smooth latent through identity layers: copies are flat inside a cell and jump between cells."""
    network = HVAE(2, 32, channels=(8, 8, 8, 8), num_res_blocks=1, latent_channels=2, attention_heads=1,
                   upsampling=upsampling)  # fmt: skip
    x = torch.linspace(0, 1, 4).expand(1, 1, 4, 4)
    for layer in network.decoder.modules():
        if isinstance(layer, torch.nn.Upsample):
            x = layer(x)
    steps = x[0, 0, 0].diff()[8:24]
    assert (steps.max() > 4 * steps.mean()) == jumps and x.shape[-1] == 32


def test_an_unknown_upsampling_is_refused():
    with pytest.raises(InputError, match="upsampling"):
        HVAE(2, 16, channels=(8, 8), upsampling="cubic")
