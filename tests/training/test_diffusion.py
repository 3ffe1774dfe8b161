"""Latents, noise loss, condition dropout and averaged weights against what they should be."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from scripts.networks.latent_diffusion import LatentDiffusion
from scripts.runtime.errors import InputError
from scripts.runtime.precision import TrainingDiverged
from scripts.training.averaging import WeightAverage
from scripts.training.diffusion import DiffusionEvaluation, DiffusionUpdate, LatentSet, sample_of


def tiny(**settings):
    torch.manual_seed(0)
    return LatentDiffusion(
        2, [16, 16], [8, 8], 1, 2, [False, False], [8, 8], 1, [False, False], norm_groups=4, **settings
    )


def training_set(n=5):
    items = torch.rand(n, 2, 16, 16, generator=torch.Generator().manual_seed(3))
    return SimpleNamespace(training=[{"image": item} for item in items], training_tensor=lambda: items)


def engine(network, lr=0.0, iteration=1):
    return SimpleNamespace(
        network=network, optimizer=torch.optim.SGD(network.denoiser.parameters(), lr=lr),
        state=SimpleNamespace(iteration=iteration, device=torch.device("cpu")),
    )  # fmt: skip


def update(**settings):
    return DiffusionUpdate(torch.Generator().manual_seed(5), **settings)


def batch(n=4, conditions=False):
    generator = torch.Generator().manual_seed(1)
    made = {"mean": torch.randn(n, 2, 8, 8, generator=generator), "std": torch.rand(n, 2, 8, 8, generator=generator)}
    return {**made, "condition": torch.rand(n, 9, generator=generator)} if conditions else made


def test_draws_of_the_encoded_set_have_standard_deviation_one():
    network, data = tiny(), training_set()
    with torch.no_grad():
        network.autoencoder.coder.quant_conv_mu.conv.weight.mul_(5)
    for _ in range(2):  # a second call, as after a resume, gives the same
        latents = LatentSet(data, network, batch_size=2)
        latents(None)
        draws = latents.mean + latents.std * torch.randn(2000, *latents.mean.shape)
        assert draws.std().item() == pytest.approx(1, abs=0.01)
        assert network.latent_std != 1
    mean, std = network.encode_latents(torch.stack([item["image"] for item in data.training]))
    torch.testing.assert_close(torch.stack([latents[i]["mean"] for i in range(5)]), mean)
    torch.testing.assert_close(torch.stack([latents[i]["std"] for i in range(5)]), std)
    assert set(latents[0]) == {"mean", "std"} and len(latents) == 5


def test_items_get_their_own_condition():
    table = torch.rand(5, 9)
    latents = LatentSet(training_set(), tiny(), SimpleNamespace(training_conditions=lambda: table))
    latents(None)
    assert torch.equal(torch.stack([latents[i]["condition"] for i in range(5)]), table)


@pytest.mark.parametrize("name, power", [("l1", 1), ("l2", 2)])
def test_a_denoiser_that_says_nothing_has_the_loss_of_the_noise(name, power):
    network = tiny()  # MONAI's last convolution starts at 0
    loss = update(noise_loss=name)(engine(network), batch(200))["loss"]
    expected = {1: (2 / torch.pi) ** 0.5, 2: 1.0}[power]
    assert loss == pytest.approx(expected, rel=0.02)


class Oracle(nn.Module):
    """Knows z_0, so that it can tell the noise in z_t."""

    def __init__(self, z_0, alpha_bar, velocity=False):
        super().__init__()
        self.z_0, self.alpha_bar, self.velocity = z_0, alpha_bar, velocity
        self.weight = nn.Parameter(torch.zeros(()))
        self.times = []

    def forward(self, z_t, t, condition=None, keep=None):
        self.times.append(t)
        a = self.alpha_bar[t].reshape(-1, 1, 1, 1)
        noise = (z_t - a.sqrt() * self.z_0) / (1 - a).sqrt() + self.weight
        return a.sqrt() * noise - (1 - a).sqrt() * self.z_0 if self.velocity else noise


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_the_target_is_the_noise_that_was_added_or_the_velocity(kind):
    network, given = tiny(prediction_type=kind), batch(500)
    given["std"].zero_()
    network.denoiser = oracle = Oracle(given["mean"], network.ddpm.alphas_cumprod, kind == "v_prediction")
    assert update()(engine(network), given)["loss"] < 1e-6
    times = torch.cat(oracle.times).float()
    assert times.min() < 20 and times.max() > 979 and times.mean() == pytest.approx(499.5, abs=40)


def test_fresh_draws_each_step():
    network, rule = tiny(), update()
    seen = []
    network.denoiser.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    for _ in range(2):
        rule(engine(network), batch())
    assert not torch.equal(*seen)
    again = update()
    again(engine(network), batch())
    assert torch.equal(seen[0], seen[2])  # the same generator, the same draws


def test_conditions_are_dropped_per_sample():
    rule, table = update(condition_dropout=0.25), torch.rand(8, 9)
    kept = torch.stack([rule.drop(table)[1] for _ in range(5000)])
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (kept.float().mean(0) - 0.75).abs().max() < 0.03  # whatever the place in the batch
    correlation = torch.corrcoef(kept.T.float()) - torch.eye(8)
    assert correlation.abs().max() < 0.06  # each sample for itself
    assert update(condition_dropout=0.0).drop(table)[1].all()
    assert not update(condition_dropout=1.0).drop(table)[1].any()
    assert rule.drop(None) == (None, None)


def test_the_picture_asks_for_a_condition_that_there_is():
    """The first training mask may be so small that nothing of it is left at the cases' own spacing."""
    network, table = tiny(num_conditions=9), torch.rand(3, 9)
    table[0] = float("nan")
    sample = sample_of(network, SimpleNamespace(training_conditions=lambda: table), num_steps=2)
    assert torch.equal(sample.keywords["condition"], table[1:2])
    assert sample(torch.randn(1, *network.latent_shape)).isfinite().all()


def test_a_sample_without_condition_is_trained_on_without():
    network = tiny(num_conditions=9)
    with torch.no_grad():
        for parameter in network.denoiser.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    given = batch(conditions=True)
    given["condition"][1] = float("nan")
    condition, keep = update(condition_dropout=0.0).drop(given["condition"])
    assert keep.tolist() == [True, False, True, True] and condition.isfinite().all()
    assert update(condition_dropout=0.0)(engine(network), given)["loss"] > 0
    gradients = [p.grad for p in network.denoiser.condition_embedding.parameters()]
    assert all(g.isfinite().all() for g in gradients) and any(g.abs().max() > 0 for g in gradients)
    assert network.denoiser.null_embedding.grad.abs().max() > 0


def test_average_is_the_closed_form():
    """Weights of the average: the product of the decays since, times 1 - decay; a short training forgets its start."""
    module = nn.Linear(1, 1, bias=False).double()
    average, decay, values = WeightAverage(module, 0.9), 0.9, []
    expected = None
    for step in range(200):
        values.append(float(torch.sin(torch.tensor(float(step)))))
        with torch.no_grad():
            module.weight.fill_(values[-1])
        average.update_parameters(module)
        now = min(decay, (1 + step) / (10 + step))
        expected = values[-1] if expected is None else now * expected + (1 - now) * values[-1]
        assert average.module.weight.item() == pytest.approx(expected, abs=1e-12)
    tail = sum((1 - decay) * decay**k * value for k, value in enumerate(reversed(values[-100:])))
    assert average.module.weight.item() == pytest.approx(tail, abs=1e-4)
    assert module.weight.item() == values[-1]


def test_average_can_be_stored_and_goes_on():
    network = tiny()
    straight, resumed = WeightAverage(network.denoiser), WeightAverage(network.denoiser)
    for step in range(6):
        with torch.no_grad():
            for parameter in network.denoiser.parameters():
                parameter.add_(0.01)
        straight.update_parameters(network.denoiser)
        if step == 3:
            resumed.load_state_dict(straight.state_dict())
        elif step > 3:
            resumed.update_parameters(network.denoiser)
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_step_trains_the_denoiser_alone_and_moves_the_average():
    network = tiny()
    average = WeightAverage(network.denoiser)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rule = update(average=average)
    losses = [rule(engine(network, lr=0.1), batch())["loss"] for _ in range(20)]
    assert sum(losses[-5:]) < sum(losses[:5])
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert changed and all(name.startswith("denoiser.") for name in changed)
    assert average.n_averaged == 20


def test_non_finite_loss_is_named_and_weights_are_kept():
    network, given = tiny(), batch()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    given["mean"][0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 7: loss"):
        update()(engine(network, lr=0.1, iteration=7), given)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_evaluation_looks_at_every_quarter_and_is_the_same_each_time():
    network = tiny()
    images = torch.rand(1, 2, 16, 16).expand(50, -1, -1, -1)  # one oracle knows one
    network.denoiser = oracle = Oracle(network.encode_latents(images[:1])[0], network.ddpm.alphas_cumprod)
    first, second = (DiffusionEvaluation(0)(engine(network), {"image": images}) for _ in range(2))
    assert first == second and max(map(max, first.values())) < 1e-5
    assert set(first) == {"noise_loss", *(f"noise_loss_q{i}" for i in (1, 2, 3, 4))}
    assert len(oracle.times) == 2 * 4 * 50 and len({int(times) for times in oracle.times}) > 100
    for call, times in enumerate(oracle.times):
        assert (times // 250 == call % 4).all()


@pytest.mark.parametrize("wrong", [{"noise_loss": "huber"}, {"condition_dropout": 1.5}, {"autocast": "float16"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        update(**wrong)
    with pytest.raises(InputError, match="ema_decay"):
        WeightAverage(nn.Linear(1, 1), 1.0)
