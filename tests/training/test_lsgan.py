"""A step of the least-squares GAN is the two losses of the paper, and a collapse is noticed."""

import copy
import logging
from types import SimpleNamespace

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.losses.least_squares import discriminator_loss, generator_loss
from scripts.metrics.energy import EnergyScore
from scripts.networks.lsgan import Discriminator, Generator
from scripts.runtime.errors import InputError
from scripts.runtime.precision import TrainingDiverged
from scripts.sampling.sampler import latent_noise
from scripts.training.averaging import WeightAverage
from scripts.training.lsgan import CollapseMonitor, LSGANEvaluation, LSGANUpdate

REAL = torch.rand(6, 2, 16, 16, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def setup():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Generator(2, (16, 16), (16, 8), latent_size=4)
        # without spectral norm, whose forward passes change its buffers, so that gradients can be computed again
        return SimpleNamespace(network=network, discriminator=Discriminator(2, (16, 16), (8, 8), spectral_norm=False))


def step(setup, rates=(0.0, 0.0), real=REAL, ema_decay=0.9, **settings):
    """One step with plain gradient descent; `rates` of generator and discriminator."""
    engine = SimpleNamespace(
        network=setup.network, optimizer=torch.optim.SGD(setup.network.parameters(), lr=rates[0]), non_blocking=False,
        state=SimpleNamespace(iteration=7, device=torch.device("cpu")),
    )  # fmt: skip
    judge = torch.optim.SGD(setup.discriminator.parameters(), lr=rates[1])
    setup.average = WeightAverage(setup.network, ema_decay)
    setup.average.update_parameters(setup.network)  # the first is a copy
    update = LSGANUpdate(setup.discriminator, judge, torch.Generator().manual_seed(5), setup.average, **settings)
    return update(engine, {"image": real})


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


def gradients(module):
    return torch.cat([p.grad.flatten() for p in module.parameters()])


def fakes(setup):
    return setup.network(torch.randn((6, 4), generator=torch.Generator().manual_seed(5)))


def test_losses_are_those_computed_by_hand():
    real, fake = torch.tensor([[1.0], [0.5]]), torch.tensor([[0.0], [0.2]])
    assert discriminator_loss(real, fake).item() == pytest.approx(0.5 * ((0 + 0.25) / 2 + (0 + 0.04) / 2))
    assert discriminator_loss(real, fake, 0.9).item() == pytest.approx(0.5 * ((0.01 + 0.16) / 2 + (0 + 0.04) / 2))
    assert generator_loss(fake).item() == pytest.approx(0.5 * (1 + 0.64) / 2)
    assert generator_loss(fake, 0.9).item() == pytest.approx(0.5 * (0.81 + 0.49) / 2)


@pytest.mark.parametrize("real_label", [1.0, 0.7])
def test_terms_of_a_step(setup, real_label):
    terms = step(setup, real_label=real_label)
    on_real, on_fake = setup.discriminator(REAL), setup.discriminator(fakes(setup))
    judging, making = discriminator_loss(on_real, on_fake, real_label), generator_loss(on_fake, real_label)
    assert terms == pytest.approx({
        "loss": (judging + making).item(), "generator": making.item(), "discriminator": judging.item(),
        "score_real": on_real.mean().item(), "score_fake": on_fake.mean().item(),
    }, abs=1e-6)  # fmt: skip


def test_each_network_learns_from_its_own_loss_alone(setup):
    step(setup, real_label=0.9)
    of_generator, of_discriminator = gradients(setup.network), gradients(setup.discriminator)
    fake = fakes(setup)
    on_real, on_fake = setup.discriminator(REAL), setup.discriminator(fake.detach())
    expected = torch.autograd.grad(discriminator_loss(on_real, on_fake, 0.9), list(setup.discriminator.parameters()))
    torch.testing.assert_close(of_discriminator, torch.cat([g.flatten() for g in expected]))
    making = generator_loss(setup.discriminator(fake), 0.9)
    expected = torch.autograd.grad(making, list(setup.network.parameters()))
    torch.testing.assert_close(of_generator, torch.cat([g.flatten() for g in expected]))
    assert of_generator.norm() > 0 and of_discriminator.norm() > 0
    assert all(p.requires_grad for p in setup.discriminator.parameters())  # frozen for the generator's turn only


@pytest.mark.parametrize("rates", [(0.1, 0.0), (0.0, 0.1)])
def test_each_optimizer_moves_its_own_network(setup, rates):
    before = weights(setup.network), weights(setup.discriminator)
    step(setup, rates)
    moved = [
        (weights(m) - w).norm().item() > 0 for m, w in zip((setup.network, setup.discriminator), before, strict=True)
    ]
    assert moved == [rate > 0 for rate in rates]


def test_the_average_follows_the_generator(setup):
    before = weights(setup.network)
    step(setup, (0.5, 0.1), ema_decay=0.75)
    decay = 2 / 11  # the warm-up of the second step, below 0.75
    torch.testing.assert_close(weights(setup.average.module), decay * before + (1 - decay) * weights(setup.network))


def test_gradients_are_clipped(setup):
    step(setup, gradient_clip=1e-4)
    assert gradients(setup.network).norm().item() == pytest.approx(1e-4, rel=0.02)
    assert gradients(setup.discriminator).norm().item() == pytest.approx(1e-4, rel=0.02)


def test_autocast_computes_nearly_the_same_in_float32_losses(setup):
    exact, low = step(copy.deepcopy(setup)), step(copy.deepcopy(setup), autocast="bfloat16")
    assert low != exact and low == pytest.approx(exact, abs=0.02)


def test_a_broken_number_stops_before_the_weights(setup):
    before = weights(setup.network), weights(setup.discriminator)
    with pytest.raises(TrainingDiverged, match="step 7: discriminator is not finite"):
        step(setup, (0.1, 0.1), real=REAL.masked_fill(REAL > 0.99, float("nan")))
    assert torch.equal(weights(setup.network), before[0]) and torch.equal(weights(setup.discriminator), before[1])


def test_what_the_discriminator_sees_is_moved_by_whole_pixels(setup):
    """Both ways along both axes, at most as far as asked for, nothing else; the generator learns through it."""
    update = LSGANUpdate(setup.discriminator, None, torch.Generator().manual_seed(5), None, shift=0.25)
    x = torch.zeros(200, 1, 16, 8, requires_grad=True)
    with torch.no_grad():
        x[:, :, 8, 4] = 1
    moved = update._moved(x)
    places = moved.detach().nonzero()
    assert len(places) == 200 and set((places[:, 2] - 8).tolist()) == set(range(-4, 5))
    assert set((places[:, 3] - 4).tolist()) == set(range(-2, 3))
    moved.sum().backward()
    assert x.grad[:, :, 8, 4].eq(1).all() and x.grad.eq(0).any()


def test_real_and_fake_are_moved_apart_and_none_by_default(setup):
    assert step(setup) == step(setup, shift=0.0)
    assert step(setup)["score_real"] != step(setup, shift=0.25)["score_real"]
    with pytest.raises(InputError, match="shift 0.6"):
        step(setup, shift=0.6)


@pytest.mark.parametrize("real_label", [0, 1.1])
def test_label_out_of_range_is_refused(setup, real_label):
    with pytest.raises(InputError, match="label smoothing"):
        step(setup, real_label=real_label)


def test_held_out_items_are_scored_by_the_discriminator_and_against_the_samples(setup):
    engine = SimpleNamespace(network=setup.network, state=SimpleNamespace(iteration=1, device=torch.device("cpu")))
    data = SimpleNamespace(training=[{"image": item} for item in REAL])
    found = LSGANEvaluation(data, setup.discriminator)(engine, {"image": REAL})
    assert found["score_held_out"] == pytest.approx(setup.discriminator(REAL)[:, 0].tolist(), abs=1e-6)
    noise = torch.stack([latent_noise((4,), 0, index) for index in range(len(REAL))])
    score = EnergyScore(setup.network(noise).detach(), REAL)
    assert found["energy"] == pytest.approx([float(score(item[None])) for item in REAL], rel=1e-4)
    assert set(LSGANEvaluation(data)(engine, {"image": REAL})) == {"energy"}


class Made(nn.Module):
    """Noise to one of `items`, or always to nearly the first; `masks_only` where the images still differ."""

    latent_shape = (1,)

    def __init__(self, items, collapsed=False, masks_only=False):
        super().__init__()
        self.items = nn.Parameter(items)
        self.collapsed, self.masks_only = collapsed, masks_only

    def forward(self, noise):
        index = (torch.special.ndtr(noise[:, 0]) * len(self.items)).long()
        chosen = self.items[index]
        if self.collapsed:
            image = chosen[:, :1] if self.masks_only else self.items[:1, :1].expand(len(noise), -1, -1, -1)
            chosen = torch.cat([image, self.items[:1, 1:].expand(len(noise), -1, -1, -1)], 1)
        return chosen + 0.01 * noise[:, :, None, None]


def watch(network, epochs=3, interval=2, items=REAL):
    """The outputs that a logging handler sees at the end of each epoch, and what was noted."""
    notes, seen = {}, []
    data = SimpleNamespace(training=[{"image": item} for item in items], num_image_channels=1)
    record = SimpleNamespace(noting=lambda **values: notes.update(values))
    engine = Engine(lambda engine, batch: {"loss": 1.0})
    CollapseMonitor(data, network, record, interval=interval, threshold=0.3).attach(engine)
    engine.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(dict(engine.state.output)))
    engine.run([0, 1], max_epochs=epochs)
    return seen, notes


def test_a_generator_that_repeats_the_training_set_has_its_diversity(caplog):
    items = torch.rand(40, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    seen, notes = watch(Made(items), items=items)
    assert [set(output) for output in seen] == [
        {"loss"}, {"loss", "diversity", "mask_diversity"}, {"loss", "diversity", "mask_diversity"},
    ]  # fmt: skip
    assert notes == {name: pytest.approx(1, abs=0.15) for name in ("diversity", "mask_diversity")}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_the_measure_is_the_ratio_of_mean_distances():
    """Two samples that differ by 1 in the 4 pixels of the mask, two items that differ by 3 (image) and 4 (mask)."""

    class BlackAndWhite(nn.Module):
        latent_shape = (1,)

        def __init__(self):
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, noise):
            return torch.tensor([[0.0, 0.0], [0.0, 1.0]]).reshape(2, 2, 1, 1).expand(-1, -1, 2, 2)

    real = torch.zeros(2, 2, 2, 2)
    real[1, 0, 0, 0], real[1, 1, 1, 1] = 3, 4
    data = SimpleNamespace(training=[{"image": item} for item in real], num_image_channels=1)
    measured = CollapseMonitor(data, BlackAndWhite(), None, interval=1, threshold=0.3).measure()
    assert measured == pytest.approx({"diversity": 2 / 5, "mask_diversity": 2 / 4})


@pytest.mark.parametrize("masks_only", [False, True])
def test_a_collapsed_generator_is_warned_of(caplog, masks_only):
    with caplog.at_level(logging.WARNING):
        seen, notes = watch(Made(REAL, collapsed=True, masks_only=masks_only), epochs=3)
    assert notes["mask_diversity"] < 0.1
    assert (notes["diversity"] < 0.1) == (not masks_only)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2  # epoch 2, and the last
    assert "mode collapse" in caplog.text and "usual is" in caplog.text and "train anew" in caplog.text
