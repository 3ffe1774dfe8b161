"""The bundle of slice-based latent diffusion: volumes with a tumour as asked for."""

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from scripts.pool.writing import read_pool

from ..data.toy import write_preprocessed
from .two_stages import ROOT, network, run

GIVEN = {"spatial_size": [24, 24, 8], "chunk_size": 3}
STAGES = {"autoencoder_epochs": 2, "max_epochs": 3, **GIVEN}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy")


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    root = tmp_path_factory.mktemp("straight")
    run("sbldm", ["train"], root, dataset_dir=dataset, **STAGES)
    return root


@pytest.fixture
def in_bundle(monkeypatch):
    monkeypatch.chdir(ROOT / "bundles/sbldm")


@pytest.mark.slow
def test_network_def_is_what_the_metadata_says(in_bundle, tmp_path):
    generator = network("sbldm", [], tmp_path).eval()
    formats = json.loads(Path("configs/metadata.json").read_text())["network_data_format"]
    given, made = formats["inputs"]["image"], formats["outputs"]["pred"]
    assert generator.latent_shape == (given["num_channels"], *given["spatial_shape"])
    with torch.no_grad():
        out = generator.sample(torch.randn(1, *generator.latent_shape), num_steps=2)
    assert out.shape == (1, made["num_channels"], *made["spatial_shape"])


def test_paper_preset_has_the_size_of_the_paper(in_bundle, tmp_path):
    generator = network("sbldm", ["paper"], tmp_path, device="meta")
    assert generator.latent_shape == (4, 24, 24, 96)
    assert sum(p.numel() for p in generator.parameters()) == pytest.approx(159e6, rel=0.005)
    assert not any(type(m).__name__ == "SpatialAttentionBlock" for m in generator.denoiser.modules())


def test_paper_preset_trains_as_the_paper(in_bundle):
    """Kebaili et al. 2024b, section 3.2, and the authors' code: Adam, two volumes a step, L1 loss of the noise."""
    parser = ConfigParser()
    parser.read_config(["configs/train.json", "configs/paper.json"])
    wanted = {"prediction_type": "epsilon", "noise_loss": "l1", "batch_size": 2, "learning_rate": 1e-5,
              "autoencoder_learning_rate": 1e-5, "weight_decay": 0.0, "kl_weight": 1e-6}  # fmt: skip
    assert {name: parser.get_parsed_content(name) for name in wanted} == wanted


@pytest.mark.slow
def test_train_then_sample_as_asked_for(straight, tmp_path):
    record = json.loads((straight / "models/provenance.json").read_text())
    assert record["bundle"]["name"] == "sbldm" and len(record["training"]["conditions"]["cases"]) == 4
    run("sbldm", ["inference"], straight, num_samples=2, guidance_scale=2.0, **GIVEN)
    samples = read_pool(straight / "pool")["samples"]
    assert len(samples) == 2
    assert all(set(sample["condition"]) == {"volume", "surface_area", "sphericity", "centre", "extent"}
               for sample in samples)  # fmt: skip
    volume = record["training"]["conditions"]["cases"][0]["volume"]
    run("sbldm", ["inference"], straight, num_samples=2, output_dir=tmp_path / "asked",
        condition=json.dumps({"volume": volume}), **GIVEN)  # fmt: skip
    assert [s["condition"]["volume"] for s in read_pool(tmp_path / "asked")["samples"]] == [volume, volume]
