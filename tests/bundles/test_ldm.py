"""The bundle of latent diffusion: two stages, together or one by one, go on where they were stopped, and sample."""

import json
from pathlib import Path

import pytest
import torch

from scripts.pool.writing import read_pool

from ..data.toy import write_preprocessed
from .two_stages import ROOT, kill_when_there, losses, network, run, same, weights

STAGES = {"autoencoder_epochs": 8, "max_epochs": 8, "spatial_size": [24, 24], "adversarial_weight": 0.1,
          "discriminator_start": 2}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy")


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    """Both stages in one go."""
    root = tmp_path_factory.mktemp("straight")
    run("ldm", ["train"], root, dataset_dir=dataset, **STAGES)
    return root


@pytest.fixture
def in_bundle(monkeypatch):
    monkeypatch.chdir(ROOT / "bundles/ldm")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_network_def_is_what_the_metadata_says(in_bundle, tmp_path):
    generator = network("ldm", [], tmp_path).eval()
    formats = json.loads(Path("configs/metadata.json").read_text())["network_data_format"]
    given, made = formats["inputs"]["image"], formats["outputs"]["pred"]
    noise = torch.randn(1, given["num_channels"], *given["spatial_shape"])
    out = generator(noise)
    assert out.shape == (1, made["num_channels"], *made["spatial_shape"])
    assert out.min() >= made["value_range"][0] and out.max() <= made["value_range"][1]


@pytest.mark.parametrize(
    "overlay, latent_shape, parameters",
    [
        ("evening", (4, 32, 32), None),
        ("wavelets", (8, 32, 32), None),
        ("volume", (4, 16, 16, 8), None),
        ("evening_volume", (4, 16, 16, 16), None),
        ("paper", (3, 32, 32), 314e6),
        ("paper_volume", (4, 48, 48, 24), 728e6),
    ],
)
def test_overlays_have_their_size(overlay, latent_shape, parameters, in_bundle, tmp_path):
    generator = network("ldm", [overlay], tmp_path, device="meta")
    assert generator.latent_shape == latent_shape
    if parameters:
        assert sum(p.numel() for p in generator.parameters()) == pytest.approx(parameters, rel=0.01)


@pytest.mark.slow
def test_train_then_sample(straight):
    models = straight / "models"
    record = json.loads((models / "provenance.json").read_text())
    assert len(record["cases"]) == 4 and record["bundle"]["name"] == "ldm" and record["training"]["epochs"] == 8
    first = json.loads((models / "autoencoder/provenance.json").read_text())
    assert record["training"]["autoencoder"]["weights_sha256"] == first["weights_sha256"]
    assert record["training"]["autoencoder"]["epochs"] == 8
    assert [len(losses(folder)) for folder in (models, models / "autoencoder")] == [9, 9]
    assert "discriminator" in losses(models / "autoencoder")[0]
    assert (models / "samples.png").is_file() and (models / "autoencoder/samples.png").is_file()
    trained = weights(straight)
    autoencoder = torch.load(models / "autoencoder/model.pt", weights_only=True)
    assert all(torch.equal(trained[f"autoencoder.{key}"], value) for key, value in autoencoder.items())
    assert trained["latent_std"] != 1
    run("ldm", ["inference"], straight, num_samples=3, spatial_size=[24, 24])
    assert len(read_pool(straight / "pool")["samples"]) == 3


@pytest.mark.slow
def test_one_stage_after_the_other_is_both_in_one_go(straight, dataset, tmp_path):
    given = {"dataset_dir": dataset, **STAGES}
    alone = run("ldm", ["train", "train_diffusion"], tmp_path, check=False, **given)
    assert alone.returncode != 0 and "no trained autoencoder" in alone.stderr and "Traceback" not in alone.stderr
    first = {key: value for key, value in given.items() if key != "max_epochs"}
    run("ldm", ["train_autoencoder"], tmp_path, **first)
    assert not (tmp_path / "models/model.pt").exists()
    other = write_preprocessed(tmp_path / "Dataset902_Toy", cases=7)
    other = run("ldm", ["train", "train_diffusion"], tmp_path, check=False, **{**given, "dataset_dir": other})
    assert other.returncode != 0 and "other settings: cases_sha256" in other.stderr and "Traceback" not in other.stderr
    assert not (tmp_path / "models/training.json").exists()
    run("ldm", ["train", "train_diffusion"], tmp_path, **given)
    assert same(weights(straight), weights(tmp_path))


@pytest.mark.slow
def test_killed_in_both_stages_it_goes_on(straight, dataset, tmp_path):
    """One command for both; wherever it was ended, the same command ends where an uninterrupted one ends."""
    given, models = {"dataset_dir": dataset, **STAGES}, tmp_path / "models"
    kill_when_there("ldm", ["train"], tmp_path, models / "autoencoder/checkpoint.pt", **given)
    assert not (models / "autoencoder/model.pt").exists()
    kill_when_there("ldm", ["train"], tmp_path, models / "checkpoint.pt", **given)
    assert (models / "autoencoder/model.pt").exists() and not (models / "model.pt").exists()
    before = (models / "autoencoder/provenance.json").read_bytes()
    run("ldm", ["train"], tmp_path, **given)
    assert same(weights(straight), weights(tmp_path))
    for folder in ("models", "models/autoencoder"):
        assert losses(straight / folder) == losses(tmp_path / folder)
    assert (models / "autoencoder/provenance.json").read_bytes() == before
    longer = run("ldm", ["train"], tmp_path, check=False, **{**given, "autoencoder_epochs": 9})
    assert longer.returncode != 0 and "'autoencoder_epochs': 9" in longer.stderr
    assert len(losses(models / "autoencoder")) == 9  # refused before the first stage went on


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("ldm", [24, 24]), ("sbldm", [24, 24, 8])])
def test_wavelets_need_no_first_stage(name, size, dataset, tmp_path):
    """Stopped and gone on with, it is as in one go; its weights are refused where wavelets are not asked for."""
    given = {"dataset_dir": dataset, "spatial_size": size}
    run(name, ["train", "wavelets"], tmp_path / "once", max_epochs=4, **given)
    for epochs in (2, 4):
        run(name, ["train", "wavelets"], tmp_path / "twice", max_epochs=epochs, **given)
    assert same(weights(tmp_path / "once"), weights(tmp_path / "twice"))
    models = tmp_path / "once/models"
    assert not (models / "autoencoder").exists() and weights(tmp_path / "once")["autoencoder.scale"].std() > 0
    training = json.loads((models / "provenance.json").read_text())["training"]
    assert not any(name.startswith("autoencoder") for name in training)
    run(name, ["inference", "wavelets"], tmp_path / "once", num_samples=2)
    assert len(read_pool(tmp_path / "once/pool")["samples"]) == 2
    other = run(name, ["inference"], tmp_path / "once", check=False, num_samples=2)
    assert other.returncode != 0 and "overlay" in other.stderr and "Traceback" not in other.stderr
    levels = {"wavelet_levels": 1} if name == "ldm" else {"wavelet_levels": 2}
    given = {**given, **levels, "prediction_type": "v_prediction", "max_epochs": 4}
    run(name, ["train", "train_diffusion"], tmp_path / "by_name", **given)  # the number decides, not the overlay
    assert same(weights(tmp_path / "once"), weights(tmp_path / "by_name"))
    first = run(name, ["train_autoencoder", "wavelets"], tmp_path / "first", check=False, dataset_dir=dataset)
    assert first.returncode != 0 and "no autoencoder to train" in first.stderr and "Traceback" not in first.stderr


@pytest.mark.slow
def test_volumes(dataset, tmp_path):
    given = {"spatial_size": [24, 24, 8]}
    run("ldm", ["train", "volume"], tmp_path, dataset_dir=dataset, autoencoder_epochs=1, max_epochs=1, **given)
    run("ldm", ["inference", "volume"], tmp_path, num_samples=2, **given)
    assert read_pool(tmp_path / "pool")["dimension"] == 3
