import importlib.util
import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from scripts.losses.hvae import hvae_objective
from scripts.networks.hvae import HVAE
from scripts.runtime.errors import InputError

_spec = importlib.util.spec_from_file_location("plain_hvae", Path(__file__).with_name("plain_hvae.py"))
plain = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(plain)


def tiny(dtype=torch.float64, **settings):
    """A small network whose weights, biases and step sizes are away from their start."""
    torch.manual_seed(0)
    settings = {
        "num_channels": 2,
        "spatial_size": 16,
        "channels": (8, 16, 16),
        "norm_groups": 4,
        "attention_heads": 2,
        "attention_head_dim": 4,
        "initial_step_size": 0.02,
        **settings,
    }
    network = HVAE(**settings)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network.to(dtype)


def batch(dtype=torch.float64, size=16):
    x = torch.rand(2, 2, size, size, generator=torch.Generator().manual_seed(1), dtype=dtype)
    x[:, 1] = (x[:, 1] > 0.7).to(dtype)
    return x


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def gradients(network, loss):
    names, parameters = zip(*network.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, parameters, allow_unused=True), strict=True))


def relative_error(a, b):
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_equals_the_plain_transcription(num_steps):
    network, x = tiny(num_leapfrog_steps=num_steps, initial_step_size=0.05), batch()
    fast = hvae_objective(network, x, seeded()).loss
    slow = plain.plain_hvae_loss(network, x, seeded())
    assert relative_error(fast, slow) < 1e-10
    fast, slow = gradients(network, fast), gradients(network, slow)
    for name in slow:
        assert slow[name].norm() > 0, name
        assert relative_error(fast[name], slow[name]) < 1e-10, name


def test_gradients_are_the_exact_ones():
    network, x = tiny(), batch()
    direction = {name: torch.randn_like(p) * p.std() for name, p in network.named_parameters() if p.numel() > 1}
    exact = gradients(network, hvae_objective(network, x, seeded()).loss)
    slope = sum((exact[name] * direction[name]).sum() for name in direction).item()

    def moved(step):
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name in direction:
                    parameter += step * direction[name]
            value = hvae_objective(network, x, seeded()).loss.item()
            for name, parameter in network.named_parameters():
                if name in direction:
                    parameter -= step * direction[name]
        return value

    step = 1e-5
    assert slope == pytest.approx((moved(step) - moved(-step)) / (2 * step), rel=1e-6)


def test_terms_add_up_and_belong_to_the_returned_tensors():
    network, x = tiny(), batch()
    terms = hvae_objective(network, x, seeded())
    torch.testing.assert_close(
        terms.loss, terms.reconstruction + terms.prior + terms.kinetic + terms.posterior, rtol=1e-14, atol=0
    )
    torch.testing.assert_close(terms.logits, network.decode(terms.latent))
    nll = F.binary_cross_entropy(terms.logits.sigmoid(), x, reduction="sum") / 2
    torch.testing.assert_close(terms.reconstruction, nll)
    normal = torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(terms.prior, -normal.log_prob(terms.latent).sum() / 2)


@pytest.mark.slow
def test_without_steps_it_is_the_vae_objective():
    network, x = tiny(num_leapfrog_steps=0), batch()
    terms = hvae_objective(network, x, seeded())
    noise = torch.randn(terms.mean.shape, generator=seeded(), dtype=x.dtype)
    torch.testing.assert_close(terms.latent, terms.mean + (0.5 * terms.log_var).exp() * noise)
    posterior = torch.distributions.Normal(terms.mean, (0.5 * terms.log_var).exp())
    torch.testing.assert_close(terms.posterior, posterior.log_prob(terms.latent).sum() / 2)
    assert terms.kinetic == 0
    # The closed Kullback-Leibler divergence is the mean of prior + posterior.
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum() / 2
    generator = seeded()
    with torch.no_grad():
        draws = [hvae_objective(network, x, generator) for _ in range(200)]
    estimates = torch.stack([draw.prior + draw.posterior for draw in draws])
    assert abs(estimates.mean() - divergence) < 4 * estimates.std() / math.sqrt(len(draws))
    assert estimates.std() / math.sqrt(len(draws)) < 0.05 * divergence


def test_tiny_steps_approach_the_vae_objective():
    network, x = tiny(initial_step_size=1e-9), batch()
    dynamic = hvae_objective(network, x, seeded()).loss.item()
    network.num_leapfrog_steps = 0
    assert dynamic == pytest.approx(hvae_objective(network, x, seeded()).loss.item(), rel=1e-6)


@pytest.mark.slow
def test_bound_is_tight_in_expectation():
    """exp(-loss) has mean p(x), so that no density and no determinant is missing."""
    torch.manual_seed(3)
    network = HVAE(
        num_channels=2,
        spatial_size=1,
        channels=(8,),
        latent_channels=1,
        norm_groups=1,
        num_leapfrog_steps=2,
        initial_step_size=0.4,
        beta_zero=0.3,
    ).double()
    with torch.no_grad():
        network.decoder[-1].weight *= 20
        network.encoder[-1].bias += torch.tensor([0.3, 0.2])
    x = torch.tensor([1.0, 0.0], dtype=torch.float64).reshape(1, 2, 1, 1)
    with torch.no_grad():
        z = torch.linspace(-8, 8, 2001, dtype=torch.float64)
        nll = F.binary_cross_entropy_with_logits(
            network.decode(z.reshape(-1, 1, 1, 1)), x.expand(len(z), -1, -1, -1), reduction="none"
        ).sum(dim=(1, 2, 3))
        evidence = torch.trapezoid(torch.exp(-nll - 0.5 * z**2) / math.sqrt(2 * math.pi), z)
        generator = seeded()
        weights = torch.stack([-hvae_objective(network, x, generator).loss for _ in range(400)]).exp()
    error = weights.std() / math.sqrt(len(weights))
    assert error < 0.05 * evidence
    assert abs(weights.mean() - evidence) < 4 * error


def test_gradients_reach_encoder_decoder_and_step_sizes():
    network, x = tiny(), batch()
    for name, gradient in gradients(network, hvae_objective(network, x, seeded()).kinetic).items():
        assert gradient is not None and gradient.norm() > 0, name


def test_first_order_keeps_the_value_and_cuts_the_potential():
    network, x = tiny(), batch()
    exact = hvae_objective(network, x, seeded())
    first = hvae_objective(network, x, seeded(), first_order=True)
    assert first.loss.item() == exact.loss.item()
    assert not torch.allclose(
        gradients(network, first.loss)["log_step_size"], gradients(network, exact.loss)["log_step_size"]
    )
    # The momentum then depends on the step sizes alone, the position on the encoder too.
    first = hvae_objective(network, x, seeded(), first_order=True)
    reached = {name for name, value in gradients(network, first.kinetic).items() if value is not None}
    assert reached == {"log_step_size"}
    first = hvae_objective(network, x, seeded(), first_order=True)
    prior = {name for name, value in gradients(network, first.prior).items() if value is not None}
    assert prior == {n for n, _ in network.named_parameters() if n.startswith("encoder")} | {"log_step_size"}


@pytest.mark.parametrize("first_order", [False, True])
@pytest.mark.parametrize("num_steps", [0, 1, 3])
def test_decodes_once_per_position(num_steps, first_order, monkeypatch):
    network, x = tiny(num_leapfrog_steps=num_steps), batch()
    calls, decode = [], network.decode
    monkeypatch.setattr(network, "decode", lambda z: calls.append(1) or decode(z))
    hvae_objective(network, x, seeded(), first_order=first_order).loss.backward()
    assert len(calls) == num_steps + 1


def test_same_seed_same_result_and_another_seed_another():
    network, x = tiny(), batch()
    one, same, other = (hvae_objective(network, x, seeded(seed)).loss.item() for seed in (5, 5, 6))
    assert one == same != other


def test_without_gradients_the_value_is_the_same_and_no_graph_is_left():
    network, x = tiny(), batch()
    expected = hvae_objective(network, x, seeded()).loss.item()
    with torch.no_grad():
        terms = hvae_objective(network, x, seeded())
    assert terms.loss.item() == expected
    assert not any(tensor.requires_grad for tensor in terms)


def test_bfloat16_stays_near_float32():
    network, x = tiny(torch.float32), batch(torch.float32)
    exact = hvae_objective(network, x, seeded())
    coarse = hvae_objective(network, x, seeded(), autocast_dtype=torch.bfloat16)
    assert all(tensor.dtype == torch.float32 for tensor in coarse)
    assert coarse.loss.item() != exact.loss.item()
    assert relative_error(coarse.loss, exact.loss) < 0.01
    coarse, exact = (
        torch.cat([g.flatten() for g in gradients(network, terms.loss).values()]) for terms in (coarse, exact)
    )
    assert F.cosine_similarity(coarse, exact, dim=0) > 0.98


@pytest.mark.slow
def test_a_few_steps_of_training_lower_the_loss():
    torch.manual_seed(0)
    network = HVAE(2, 16, channels=(8, 16), norm_groups=4, attention_heads=2, attention_head_dim=4)
    x = batch(torch.float32)
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        terms = hvae_objective(network, x, seeded())
        optimiser.zero_grad()
        terms.loss.backward()
        optimiser.step()
        losses.append(terms.loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 2, 24, 24), (2, 16, 16)])
def test_a_batch_of_another_shape_is_refused(shape):
    with pytest.raises(InputError, match="set num_channels and spatial_size"):
        hvae_objective(tiny(), torch.zeros(shape, dtype=torch.float64))
