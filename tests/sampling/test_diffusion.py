"""Samples of a diffusion model: a function of seed and number alone, asked for what the record says."""

import json

import fire
import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.conditions import ConditionModel
from scripts.data.provenance import build_provenance, write_provenance
from scripts.data.training_set import load_training_set
from scripts.networks.latent_diffusion import LatentDiffusion
from scripts.pool.writing import load_sample, read_pool, write_pool
from scripts.runtime.errors import InputError
from scripts.sampling.diffusion import DiffusionSampler

from ..data.toy import write_preprocessed

NETWORK = {
    "spatial_size": [16, 16, 4], "channels": [8, 8], "num_res_blocks": 1, "latent_channels": 2,
    "attention_levels": [False, False], "denoiser_channels": [8, 8], "denoiser_res_blocks": 1,
    "denoiser_attention": [False, False], "norm_groups": 4, "num_train_timesteps": 10, "num_inference_steps": 5,
}  # fmt: skip


class Watched(LatentDiffusion):
    """Remembers what it was asked to sample."""

    def sample(self, noise, condition=None, *, noises=None, **how):
        steps = None if noises is None else torch.stack([noises(step) for step in range(3)], dim=1)
        self.__dict__.setdefault("calls", []).append((noise, condition, steps, how))
        return super().sample(noise, condition, noises=noises, **how)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Arguments of a sampler for untrained networks with the records that trainings would leave."""
    folder = tmp_path_factory.mktemp("generators")
    data = load_training_set(
        open_cases(write_preprocessed(folder / "Dataset901_Toy"), configuration="3d_fullres"), NETWORK["spatial_size"]
    )
    result = {}
    for number in (0, 9):
        arguments = {"num_channels": data.num_channels, "num_conditions": number, **NETWORK}
        torch.manual_seed(1)
        network = LatentDiffusion(**arguments)
        with torch.no_grad():  # an untrained denoiser says nothing: its last layer is 0
            for parameter in network.denoiser.parameters():
                parameter += 0.2 * torch.randn(parameter.shape)
        room = folder / str(number)
        room.mkdir()
        torch.save(network.state_dict(), room / "model.pt")
        settings = {"conditions": ConditionModel.fit(data).as_record() if number else None}
        record = build_provenance(data, {"name": "toy", "version": "0"}, 0, arguments, settings)
        write_provenance(room / "provenance.json", record, room / "model.pt")
        result[number] = room, arguments
    return result


def make(trained, conditions=9, **settings):
    room, arguments = trained[conditions]
    files = {"checkpoint": room / "model.pt", "provenance": room / "provenance.json"}
    return DiffusionSampler(Watched(**arguments), **files, **{"num_steps": 2, "min_foreground": 0, **settings})


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_record_says_what_was_asked_for(trained, tmp_path):
    sampler = make(trained, samples_per_pass=2)
    record = read_pool(write_pool(sampler, tmp_path / "pool", 4, seed=5, progress=False))
    asked = [sample["condition"] for sample in record["samples"]]
    assert asked == [sampler.conditions.for_candidate(None, 5, index)[0] for index in range(4)]
    scaled = torch.cat([condition for _, condition, _, _ in sampler.network.calls])
    assert np.allclose(scaled, [sampler.conditions.scale(features) for features in asked], atol=1e-6)
    assert scaled.shape == (4, 9) and 0 <= scaled.min() and scaled.max() <= 1
    assert record["dimension"] == 3 and record["sampling"]["num_steps"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "ddpm"])
def test_pool_does_not_depend_on_batches_or_stops(trained, tmp_path, scheduler):
    settings = {"scheduler": scheduler, "num_steps": 10, "samples_per_pass": 2}
    pools = []
    for name, sizes in {"one": [1], "five": [5], "grown": [2]}.items():
        folder = tmp_path / name
        if name == "grown":
            write_pool(make(trained, **settings), folder, 3, seed=1, batch_size=3, progress=False)
        write_pool(make(trained, **settings), folder, 5, seed=1, batch_size=sizes[0], progress=False)
        pools.append(contents(folder))
    assert pools[0] == pools[1] == pools[2]
    assert len({value for name, value in pools[0].items() if name.startswith("images")}) == 5


def test_noise_of_every_step_belongs_to_its_candidate(trained):
    together, alone = (make(trained, scheduler="ddpm", num_steps=10, samples_per_pass=passes) for passes in (3, 1))
    together.draw(range(3), 0)
    alone.draw(range(2, 3), 0)
    (noise, _, steps, _), (one, _, its_steps, _) = together.network.calls[0], alone.network.calls[0]
    assert torch.equal(noise[2], one[0]) and torch.equal(steps[2], its_steps[0])
    every = torch.cat([noise[:, None], steps], dim=1).flatten(0, 1).flatten(1)
    correlation = torch.corrcoef(every) - torch.eye(len(every))
    assert correlation.abs().max() < 0.5  # 12 independent draws of 128 numbers
    other = make(trained, scheduler="ddpm", num_steps=10, samples_per_pass=1)
    other.draw(range(2, 3), 1)
    assert not torch.equal(other.network.calls[0][2], its_steps)


def test_condition_changes_the_sample_and_guidance_decides_how_much(trained):
    volume = np.nanmedian(make(trained).conditions.table[:, 0]).item()
    images = {}
    for scale in (0.0, 1.0, 3.0):
        sampler = make(trained, guidance_scale=scale)
        for name, condition in {"drawn": None, "asked": {"volume": volume, "centre": [12, 14, 8]}}.items():
            images[scale, name] = sampler.draw(range(1), 0, condition)[0]["image"]
    assert np.array_equal(images[0.0, "drawn"], images[0.0, "asked"])
    effect = {scale: np.abs(images[scale, "drawn"] - images[scale, "asked"]).mean() for scale in (1.0, 3.0)}
    assert 0 < effect[1.0] < effect[3.0]


def test_sweep_shares_noise_and_keeps_every_candidate(trained, tmp_path):
    sampler = make(trained, samples_per_pass=2, min_foreground=10**6)
    low, high = (float(end) for end in np.nanquantile(sampler.conditions.table[:, 0], [0.0, 1.0]))
    sweep = {"sweep": {"feature": "volume", "start": low, "stop": high, "steps": 3}}
    folder = write_pool(sampler, tmp_path / "pool", 6, condition=json.loads(json.dumps(sweep)), progress=False)
    samples = read_pool(folder)["samples"]
    assert [s["seed"] for s in samples] == list(range(6))
    assert [tuple(s["condition"]["sweep"].values()) for s in samples] == [("volume", i % 3, i // 3) for i in range(6)]
    noise = torch.cat([call[0] for call in sampler.network.calls])
    assert all(torch.equal(noise[i], noise[3 * (i // 3)]) for i in range(6)) and not torch.equal(noise[0], noise[3])
    assert not np.array_equal(load_sample(folder, "syn_000000", 1)[0], load_sample(folder, "syn_000001", 1)[0])
    nothing = np.zeros((6, 20, 18), np.uint8)
    assert sampler.accepts(nothing, sweep) and not sampler.accepts(nothing, {"volume": low})


def test_unconditional_network(trained, tmp_path):
    sampler = make(trained, conditions=0)
    with pytest.raises(InputError, match="unconditional"):
        write_pool(sampler, tmp_path / "pool", 1, condition={"volume": 5000}, progress=False)
    record = read_pool(write_pool(sampler, tmp_path / "pool", 2, progress=False))
    assert [sample["condition"] for sample in record["samples"]] == [None, None]
    assert sampler.network.calls[0][1] is None


def test_what_cannot_be_sampled_is_refused_before_any_work(trained, tmp_path):
    for wrong in ({"scheduler": "euler"}, {"num_steps": 3}, {"scheduler": "ddpm", "num_steps": 5}):
        with pytest.raises(InputError):
            make(trained, **wrong)
    with pytest.raises(InputError, match="unconditional"):
        make(trained, conditions=0, guidance_scale=2.0)
    for words in ('{"volum": 5}', '{"volume": null}', '{"volume": 5'):  # as Fire, and so MONAI, reads them
        with pytest.raises(InputError):
            write_pool(make(trained), tmp_path / "pool", 1, condition=fire.parser.DefaultParseValue(words))
    assert not list(tmp_path.iterdir())


def test_compiled_denoiser_is_asked_for(trained, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(self))
    sampler = make(trained, compile=True)
    assert compiled == [sampler.network.denoiser]
