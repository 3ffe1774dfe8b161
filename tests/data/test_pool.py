"""A pool is whole or absent, can be resumed and grown, and is a function of (generator, seed) alone."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.mask_features import mask_features
from scripts.data.pool import load_sample, partial_dir, read_pool, write_pool
from scripts.data.provenance import build_provenance, write_provenance
from scripts.data.slices import load_slices
from scripts.errors import InputError
from scripts.networks.hvae import HVAE
from scripts.sampling.latent import LatentSampler, latent_noise

from .toy import write_preprocessed

NETWORK = {"spatial_size": [16, 16], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2,
           "attention_heads": 1, "attention_head_dim": 8, "num_leapfrog_steps": 1}  # fmt: skip


def make_generator(folder: Path, channels: int = 1, regions: bool = False, masked: bool = False) -> dict:
    """An untrained generator with the record that a training would leave; returns the sampler's arguments."""
    data = write_preprocessed(folder / "Dataset901_Toy", channels=channels, regions=regions, masked=masked)
    slices = load_slices(open_cases(data), (16, 16))
    arguments = {"num_channels": slices.num_channels, **NETWORK}
    torch.manual_seed(0)
    network = HVAE(**arguments)
    with torch.no_grad():  # an untrained decoder says 1/2 everywhere; make it say something
        network.decoder[-1].weight.mul_(300)
    torch.save(network.state_dict(), folder / "model.pt")
    record = build_provenance(slices, {"name": "toy", "version": "0"}, 0, arguments, {})
    write_provenance(folder / "provenance.json", record, folder / "model.pt")
    return {
        "network": HVAE(**arguments),
        "checkpoint": folder / "model.pt",
        "provenance": folder / "provenance.json",
        "min_foreground": 4,
    }


@pytest.fixture
def sampler(tmp_path):
    return LatentSampler(**make_generator(tmp_path / "generator"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_files_whatever_the_batch_size(sampler, tmp_path):
    one = write_pool(sampler, tmp_path / "one", 7, seed=3, batch_size=1)
    five = write_pool(sampler, tmp_path / "five", 7, seed=3, batch_size=5)
    other = write_pool(sampler, tmp_path / "other", 7, seed=4, batch_size=5)
    assert contents(one) == contents(five)
    assert contents(one) != contents(other)


def test_noise_depends_on_seed_and_index_alone():
    drawn = {(seed, index): latent_noise((2, 3), seed, index) for seed in (0, 1) for index in (0, 1)}
    assert torch.equal(latent_noise((2, 3), 1, 1), drawn[1, 1])
    assert len({tuple(x.flatten().tolist()) for x in drawn.values()}) == 4
    many = torch.stack([latent_noise((8,), 0, index) for index in range(2000)])
    assert many.mean().abs() < 0.03 and (many.std() - 1).abs() < 0.03


class Stop(Exception):
    pass


@pytest.mark.parametrize("whole_batches", [0, 1, 2])
def test_interrupted_pool_is_refused_and_the_same_command_finishes_it(sampler, tmp_path, monkeypatch, whole_batches):
    folder = tmp_path / "pool"

    def cut(*args, **kwargs):
        for number, batch in enumerate(type(sampler).__call__(sampler, *args, **kwargs)):
            if number == whole_batches:
                raise Stop
            yield batch

    stopping = type("Stopping", (), {"__call__": staticmethod(cut), **{
        name: getattr(sampler, name) for name in ("provenance", "description", "settings", "dimension", "check")
    }})()  # fmt: skip
    with pytest.raises(Stop):
        write_pool(stopping, folder, 6, batch_size=2, progress=False)
    assert not folder.exists() and partial_dir(folder).is_dir()
    with open(partial_dir(folder) / "records.jsonl", "a") as log:
        log.write('{"id": "syn_0000')  # the stop cut a line short
    with pytest.raises(InputError, match="is not finished"):
        read_pool(folder)
    with pytest.raises(InputError, match="other settings"):
        write_pool(sampler, folder, 6, seed=9, progress=False)
    write_pool(sampler, folder, 6, batch_size=2, progress=False)
    assert not partial_dir(folder).exists()
    assert contents(folder) == contents(write_pool(sampler, tmp_path / "straight", 6, progress=False))


def test_pool_grows_to_what_one_run_gives(sampler, tmp_path):
    grown = write_pool(sampler, tmp_path / "pool", 3, progress=False)
    write_pool(sampler, grown, 8, progress=False)
    assert contents(grown) == contents(write_pool(sampler, tmp_path / "straight", 8, progress=False))
    before = contents(grown)
    write_pool(sampler, grown, 8, progress=False)
    assert contents(grown) == before
    with pytest.raises(InputError, match="holds 8 samples"):
        write_pool(sampler, grown, 5, progress=False)
    with pytest.raises(InputError, match="holds 8 samples"):
        write_pool(sampler, grown, 9, seed=1, progress=False)
    assert contents(grown) == before


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_samples_are_what_the_contract_says(tmp_path, regions, masked):
    sampler = LatentSampler(**make_generator(tmp_path / "g", channels=2, regions=regions, masked=masked))
    folder = write_pool(sampler, tmp_path / "pool", 4, progress=False)
    record = read_pool(folder)
    assert record["dimension"] == 2 and record["space"]["kind"] == "nnunet_preprocessed"
    assert record["dataset"]["regions_class_order"] == ([1, 2] if regions else None)
    for sample in record["samples"]:
        image, label = load_sample(folder, sample["id"], 2)
        assert image.shape == (2, 1, 20, 18) and label.shape == (1, 20, 18)
        assert image.dtype == np.float32 and np.isfinite(image).all()
        assert set(np.unique(label)) <= {0, 1, 2} and (label > 0).sum() >= 4
        if masked:
            outside = (image == 0).all(axis=0)
            assert (label[outside] == 0).all()
        affine = nib.load(folder / "labels" / f"{sample['id']}.nii.gz").affine
        assert np.array_equal(np.diag(affine), [1.0, 1.5, 4.0, 1.0])
        assert sample["features"]["volume"] == pytest.approx((label > 0).sum() * 1.5)
        assert sample["decision"] == "keep"
    assert [sample["seed"] for sample in record["samples"]] == sorted(sample["seed"] for sample in record["samples"])


def test_every_sample_can_be_made_again(sampler, tmp_path):
    folder = write_pool(sampler, tmp_path / "pool", 5, seed=2, progress=False)
    sample = read_pool(folder)["samples"][3]
    batch = next(sampler(1, seed=2, start=sample["seed"]))
    image, label = load_sample(folder, sample["id"], 1)
    assert np.array_equal(batch["image"][0], image[:, 0]) and np.array_equal(batch["label"][0], label[0])


def test_checkpoint_of_another_architecture(tmp_path):
    arguments = make_generator(tmp_path / "g")
    other = HVAE(num_channels=3, **{**NETWORK, "channels": [8, 8]})
    with pytest.raises(InputError, match="another architecture.*") as caught:
        LatentSampler(**{**arguments, "network": other})
    assert "[8, 16]" in str(caught.value)


def test_settings_out_of_range_write_nothing(sampler, tmp_path):
    for wrong in ({"num_samples": 0}, {"num_samples": 3, "batch_size": 0}, {"num_samples": 3, "seed": -1}):
        with pytest.raises(InputError):
            write_pool(sampler, tmp_path / "pool", **wrong)
    with pytest.raises(InputError, match="unconditional"):
        write_pool(sampler, tmp_path / "pool", 2, condition={"volume": 1}, progress=False)
    assert not (tmp_path / "pool").exists() and not partial_dir(tmp_path / "pool").exists()


def test_generator_that_makes_no_mask_is_stopped(tmp_path):
    sampler = LatentSampler(**{**make_generator(tmp_path / "g"), "min_foreground": 10**6})
    with pytest.raises(InputError, match="0 of them with 1000000 pixels"):
        write_pool(sampler, tmp_path / "pool", 2, progress=False)
    assert not partial_dir(tmp_path / "pool").exists()  # so that another min_foreground can be tried


def test_stop_around_the_rename_is_mended(sampler, tmp_path):
    """Between the rename and the last clean-up, and between the last record and the rename."""
    straight = contents(write_pool(sampler, tmp_path / "straight", 4, progress=False))
    folder = write_pool(sampler, tmp_path / "pool", 4, progress=False)
    settings = json.dumps(
        {k: v for k, v in read_pool(folder)["sampling"].items() if k not in ("num_samples", "candidates")}
    )
    (folder / "settings.json").write_text(settings)
    write_pool(sampler, folder, 4, progress=False)
    assert contents(folder) == straight
    (folder / "settings.json").write_text(settings)
    folder.rename(partial_dir(folder))
    with pytest.raises(InputError, match="4 samples already"):
        write_pool(sampler, folder, 3, progress=False)
    with pytest.raises(InputError, match="other settings"):
        write_pool(sampler, folder, 4, seed=1, progress=False)
    write_pool(sampler, folder, 4, progress=False)
    assert contents(folder) == straight


def test_other_formats_are_refused(sampler, tmp_path):
    folder = write_pool(sampler, tmp_path / "pool", 2, progress=False)
    record = json.loads((folder / "pool.json").read_text())
    (folder / "pool.json").write_text(json.dumps({**record, "format_version": 2}))
    with pytest.raises(InputError, match="format"):
        read_pool(folder)
    with pytest.raises(InputError, match=r"no pool\.json"):
        read_pool(tmp_path)


def test_mask_features_of_known_shapes():
    z, y, x = np.mgrid[:40, :40, :40]
    ball = (z - 20) ** 2 + (y - 20) ** 2 + (x - 20) ** 2 <= 12**2
    features = mask_features(ball, (1, 1, 1))
    assert features["volume"] == pytest.approx(4 / 3 * np.pi * 12**3, rel=0.02)
    assert features["surface_area"] == pytest.approx(4 * np.pi * 12**2, rel=0.1)
    assert features["sphericity"] == pytest.approx(1, abs=0.1)
    assert features["centre"] == pytest.approx([20.5] * 3) and features["extent"] == [25.0] * 3
    stretched = mask_features(ball, (3, 1, 1))
    assert stretched["volume"] == pytest.approx(3 * features["volume"])
    assert stretched["sphericity"] < 0.9 * features["sphericity"]
    disc = mask_features(ball[20], (2, 2))
    assert disc["volume"] == pytest.approx(np.pi * 24**2, rel=0.03)
    assert disc["surface_area"] == pytest.approx(2 * np.pi * 24, rel=0.1)
    assert mask_features(np.zeros((4, 4)), (1, 1))["volume"] == 0
