"""One training step is the objective of the paper, and stops before it can spoil anything."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from scripts.losses.adversarial import generator_loss, patch_discriminator
from scripts.losses.feature_reconstruction import FeatureReconstructionLoss
from scripts.losses.hvae import hvae_objective
from scripts.networks.features import SegmentationFeatures
from scripts.networks.hvae import HVAE
from scripts.runtime.errors import InputError
from scripts.runtime.precision import TrainingDiverged
from scripts.training.averaging import WeightAverage
from scripts.training.hvae import HVAEUpdate


@pytest.fixture
def setup():
    torch.manual_seed(0)
    network = HVAE(2, (24, 24), channels=(8, 16), num_res_blocks=1, latent_channels=2, attention_heads=1,
                   attention_head_dim=8, num_leapfrog_steps=1)  # fmt: skip
    x = (torch.rand(3, 2, 24, 24) > 0.6).float()
    return SimpleNamespace(
        network=network,
        x=x,
        features=FeatureReconstructionLoss(SegmentationFeatures(1, 1).freeze()),
        discriminator=patch_discriminator(2, (24, 24), channels=8),
    )


def step(setup, iteration=1, lr=0.0, **settings):
    optimizer = torch.optim.SGD(setup.network.parameters(), lr=lr)
    engine = SimpleNamespace(
        network=setup.network, optimizer=optimizer, non_blocking=False,
        state=SimpleNamespace(iteration=iteration, device=torch.device("cpu")),
    )  # fmt: skip
    update = HVAEUpdate(1, torch.Generator().manual_seed(5), **settings)
    return update(engine, {"image": setup.x})


def test_loss_is_the_weighted_sum_of_the_paper(setup):
    judge = {"discriminator": setup.discriminator,
             "discriminator_optimizer": torch.optim.SGD(setup.discriminator.parameters(), lr=0.0)}  # fmt: skip
    terms = step(
        setup, beta=0.2, feature_loss=setup.features, **judge, discriminator_start=0, discriminator_weight=50.0
    )
    reference = hvae_objective(setup.network, setup.x, torch.Generator().manual_seed(5))
    probabilities = torch.sigmoid(reference.logits)
    rec = setup.features(probabilities[:, :1], setup.x[:, :1])
    adversarial = generator_loss(setup.discriminator, probabilities)
    expected = 0.8 * reference.loss + 0.2 * (rec.total + 50 * adversarial)
    assert terms["neg_elbo"] == pytest.approx(reference.loss.item(), rel=1e-5)
    assert terms["loss"] == pytest.approx(expected.item(), rel=1e-5)
    assert terms["loss"] != pytest.approx(0.8 * reference.loss.item(), rel=1e-3)


def test_the_adaptive_weight_makes_the_discriminator_as_loud_as_it_says(setup):
    judge = {"discriminator": setup.discriminator,
             "discriminator_optimizer": torch.optim.SGD(setup.discriminator.parameters(), lr=0.0)}  # fmt: skip
    settings = {"beta": 0.2, "feature_loss": setup.features, **judge, "discriminator_start": 0}
    terms = step(setup, **settings, discriminator_weight=0.5, adaptive_weight=True)
    reference = hvae_objective(setup.network, setup.x, torch.Generator().manual_seed(5))
    logits = reference.logits.detach().requires_grad_()
    probabilities = torch.sigmoid(logits)
    told = 0.8 * F.binary_cross_entropy_with_logits(logits, setup.x, reduction="sum") / len(setup.x)
    told = told + 0.2 * setup.features(probabilities[:, :1], setup.x[:, :1]).total
    adversarial = generator_loss(setup.discriminator, probabilities)
    norms = [torch.autograd.grad(x, logits, retain_graph=True)[0].norm().item() for x in (told, adversarial)]
    assert terms["balance"] == pytest.approx(norms[0] / norms[1], rel=1e-4)
    plain = step(setup, **settings)
    loud = 0.5 * terms["balance"] * terms["generator"]
    assert terms["loss"] == pytest.approx(plain["loss"] - 0.2 * plain["generator"] + loud, rel=1e-4)


def test_the_average_follows(setup):
    average = WeightAverage(setup.network, 0.9)
    step(setup, lr=1e-4, average=average)  # the first is a copy
    before = average.module.get_parameter("log_step_size").clone()
    step(setup, lr=1e-4, average=average)
    now = setup.network.log_step_size
    torch.testing.assert_close(average.module.log_step_size, before + 9 / 11 * (now - before))


def test_beta_zero_is_the_hvae(setup):
    terms = step(setup)
    assert terms["loss"] == terms["neg_elbo"]
    assert set(terms) == {"loss", "neg_elbo", "reconstruction", "prior", "kinetic", "posterior"}
    parts = sum(terms[name] for name in ("reconstruction", "prior", "kinetic", "posterior"))
    assert parts == pytest.approx(terms["loss"], rel=1e-5)


def test_discriminator_waits_and_then_learns(setup):
    def weights():
        return torch.cat([p.detach().flatten() for p in setup.discriminator.parameters()]).clone()

    judge = {"discriminator": setup.discriminator, "beta": 0.1, "discriminator_start": 10,
             "discriminator_optimizer": torch.optim.SGD(setup.discriminator.parameters(), lr=0.1)}  # fmt: skip
    before = weights()
    assert "discriminator" not in step(setup, iteration=10, **judge)
    assert torch.equal(weights(), before)
    assert {"discriminator", "generator"} <= set(step(setup, iteration=11, **judge))
    assert not torch.equal(weights(), before)


def test_step_goes_downhill(setup):
    first = step(setup)["loss"]
    for _ in range(5):
        step(setup, lr=1e-4, gradient_clip=100.0)
    assert step(setup)["loss"] < first


def test_non_finite_term_is_named_and_weights_are_kept(setup):
    before = {name: value.clone() for name, value in setup.network.state_dict().items()}
    setup.x[0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 7: loss, neg_elbo, reconstruction"):
        step(setup, iteration=7, lr=0.1)
    assert all(torch.equal(value, before[name]) for name, value in setup.network.state_dict().items())


@pytest.mark.parametrize("wrong", [{"beta": 1.0}, {"beta": 0.1}, {"autocast": "float16"}, {"first_order": "false"}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        HVAEUpdate(1, torch.Generator(), **wrong)
