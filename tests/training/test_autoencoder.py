"""A step of the autoencoder, on whole items and on slices with their positions, and the hand-over of the result."""

import json
from types import SimpleNamespace

import pytest
import torch

from scripts.losses.adversarial import generator_loss, patch_discriminator
from scripts.losses.autoencoder import autoencoder_objective
from scripts.networks.autoencoder import JointAutoencoder, SliceAutoencoder
from scripts.runtime.errors import InputError
from scripts.runtime.files import file_sha256
from scripts.runtime.precision import TrainingDiverged
from scripts.training.autoencoder import AutoencoderEvaluation, AutoencoderUpdate, load_autoencoder, volume_slices
from scripts.training.averaging import WeightAverage

TINY = {"channels": [8, 8], "num_res_blocks": 1, "latent_channels": 2, "attention_levels": [False, False],
        "norm_groups": 4}  # fmt: skip


def engine(network, lr=0.0, iteration=1):
    return SimpleNamespace(
        network=network, optimizer=torch.optim.SGD(network.parameters(), lr=lr),
        state=SimpleNamespace(iteration=iteration, device=torch.device("cpu")),
    )  # fmt: skip


@pytest.fixture
def setup():
    torch.manual_seed(0)
    network = JointAutoencoder(2, [24, 24], **TINY)
    return SimpleNamespace(network=network, batch={"image": (torch.rand(3, 2, 24, 24) > 0.6).float()})


def update(**settings):
    return AutoencoderUpdate(1, torch.Generator().manual_seed(5), **settings)


def test_slices_of_volumes_know_where_they_lie():
    volumes = [{"image": torch.rand(2, 4, 4, 5)} for _ in range(3)]
    items = volume_slices(volumes)
    assert len(items) == 15
    assert torch.equal(items[7]["image"], volumes[1]["image"][..., 2])
    assert [float(item["position"]) for item in items[5:10]] == [0, 0.25, 0.5, 0.75, 1]


def test_step_is_the_objective_at_a_draw_of_the_posterior(setup):
    named = update(kl_weight=0.1)(engine(setup.network), setup.batch)
    x = setup.batch["image"]
    mean, std = setup.network.encode(x)
    z = mean + std * torch.randn(mean.shape, generator=torch.Generator().manual_seed(5))
    expected = autoencoder_objective(setup.network.decode(z), x, mean, std, 1, 0.1)
    assert named == {name: pytest.approx(float(value.detach())) for name, value in expected._asdict().items()}


def test_slices_are_coded_at_their_position():
    torch.manual_seed(0)
    network = SliceAutoencoder(2, [8, 8, 4], **TINY)
    items = volume_slices([{"image": torch.rand(2, 8, 8, 4)}])
    batch = {name: torch.stack([item[name] for item in items]) for name in ("image", "position")}
    shuffled = {**batch, "position": batch["position"].flip(0)}
    assert update()(engine(network), batch)["loss"] != update()(engine(network), shuffled)["loss"]
    update()(engine(network, lr=0.1), batch)
    assert network.position_embedding[0].weight.grad.abs().max() > 0


def test_discriminator_waits_and_then_learns(setup):
    discriminator = patch_discriminator(2, (24, 24), channels=8)
    judge = {"discriminator": discriminator, "discriminator_start": 10, "adversarial_weight": 0.5,
             "discriminator_optimizer": torch.optim.SGD(discriminator.parameters(), lr=0.1)}  # fmt: skip
    before = [p.clone() for p in discriminator.parameters()]
    assert "discriminator" not in update(**judge)(engine(setup.network, iteration=10), setup.batch)
    assert all(torch.equal(a, b) for a, b in zip(before, discriminator.parameters(), strict=True))
    alone = update()(engine(setup.network, iteration=11), setup.batch)
    named = update(**judge)(engine(setup.network, iteration=11), setup.batch)
    assert not all(torch.equal(a, b) for a, b in zip(before, discriminator.parameters(), strict=True))
    assert named["loss"] == pytest.approx(alone["loss"] + 0.5 * named["generator"])


def test_the_patch_discriminator_takes_volumes():
    fake = torch.rand(1, 2, 24, 24, 32, requires_grad=True)
    generator_loss(patch_discriminator(2, (24, 24, 32), channels=4), fake).backward()
    assert fake.grad.abs().max() > 0


def test_step_goes_downhill(setup):
    first = update()(engine(setup.network), setup.batch)["loss"]
    for _ in range(5):
        update(gradient_clip=1.0)(engine(setup.network, lr=0.05), setup.batch)
    assert update()(engine(setup.network), setup.batch)["loss"] < first


def test_average_follows_each_step(setup):
    average = WeightAverage(setup.network)
    rule = update(average=average)
    for _ in range(2):
        rule(engine(setup.network, lr=0.05), setup.batch)
    assert average.n_averaged == 2
    weight, averaged = next(setup.network.parameters()), next(average.module.parameters())
    assert not torch.equal(weight, averaged)


def test_non_finite_term_is_named_and_weights_are_kept(setup):
    before = {name: value.clone() for name, value in setup.network.state_dict().items()}
    setup.batch["image"][0, 0, 0, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match="step 7: loss, image"):
        update()(engine(setup.network, lr=0.1, iteration=7), setup.batch)
    assert all(torch.equal(value, before[name]) for name, value in setup.network.state_dict().items())


def test_evaluation_is_the_same_each_time_and_changes_nothing(setup):
    evaluation = AutoencoderEvaluation(1, seed=0)
    first, second = (evaluation(engine(setup.network), setup.batch) for _ in range(2))
    assert first == second and {"loss", "image", "mask", "kl"} == set(first)
    assert all(parameter.grad is None for parameter in setup.network.parameters())


class Record:
    """Stands for the `TrainingRecord` of the first stage."""

    def __init__(self, ckpt_dir, same=True):
        self.ckpt_dir, self.same = ckpt_dir, same

    def check_resume(self):
        if not self.same:
            raise InputError("a training with other settings", "the same", "another bundle_root")


def test_the_second_stage_gets_the_finished_first(setup, tmp_path):
    trained = JointAutoencoder(2, [24, 24], **TINY)
    holder = SimpleNamespace(autoencoder=setup.network)
    with pytest.raises(InputError, match="no trained autoencoder"):
        load_autoencoder(holder, Record(tmp_path))
    torch.save(trained.state_dict(), tmp_path / "model.pt")
    sha256 = file_sha256(tmp_path / "model.pt")
    provenance = {"format_version": 1, "weights_sha256": sha256, "training": {"kl_weight": 1e-6}}
    (tmp_path / "provenance.json").write_text(json.dumps(provenance))
    with pytest.raises(InputError, match="no trained autoencoder"):  # the first stage is not finished
        load_autoencoder(holder, Record(tmp_path))
    for name in ("checkpoint.pt", "training.json"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="other settings"):
        load_autoencoder(holder, Record(tmp_path, same=False))
    assert load_autoencoder(holder, Record(tmp_path)) == {"weights_sha256": sha256, "kl_weight": 1e-6}
    assert all(torch.equal(a, b) for a, b in zip(setup.network.parameters(), trained.parameters(), strict=True))
