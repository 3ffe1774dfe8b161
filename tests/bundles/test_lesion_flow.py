"""The bundle that paints lesions: trains, goes on exactly where it stopped, samples in every mode, inserts."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from scripts.packaging.pack import refuse_real_anatomy
from scripts.pool.writing import read_pool
from scripts.report.insertion import insert
from scripts.runtime.errors import InputError

from ..data.toy import body_case, write_preprocessed
from .two_stages import ROOT, losses, network, run, same, weights

TINY = {"spatial_size": [24, 24], "num_steps": 2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy", cases=8, case=body_case)


@pytest.fixture(scope="module")
def straight(dataset, tmp_path_factory):
    root = tmp_path_factory.mktemp("straight")
    run("lesion_flow", ["train"], root, dataset_dir=dataset, max_epochs=4, val_interval=2, **TINY)
    return root


def test_network_def_is_what_the_metadata_says(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT / "bundles/lesion_flow")
    painter = network("lesion_flow", [], tmp_path).eval()
    assert sum(p.numel() for p in painter.parameters()) == pytest.approx(3e6, rel=0.1)
    formats = json.loads(Path("configs/metadata.json").read_text())["network_data_format"]
    given, made = formats["inputs"]["image"], formats["outputs"]["pred"]
    painter.num_steps = 2
    x = torch.randn(1, given["num_channels"], *given["spatial_shape"])
    with torch.no_grad():
        out = painter(x)
    assert out.shape == (1, made["num_channels"], *made["spatial_shape"])
    assert out.min() >= made["value_range"][0] and out.max() <= made["value_range"][1]
    assert torch.equal(out[:, :1][x[:, 3:] <= 0], x[:, 1:2][x[:, 3:] <= 0])


@pytest.mark.slow
def test_train_then_sample_in_every_mode(straight, dataset, tmp_path):
    record = json.loads((straight / "models/provenance.json").read_text())
    assert record["bundle"]["name"] == "lesion_flow" and record["training"]["epochs"] == 4
    assert np.shape(record["training"]["windows"]["values"]) == (2, 1)
    assert (straight / "models/samples.png").is_file() and len(losses(straight / "models")) == 5
    for mode in ("insert", "replace", "remove"):
        pool = tmp_path / mode
        run(
            "lesion_flow",
            ["inference"],
            straight,
            dataset_dir=dataset,
            mode=mode,
            num_samples=3,
            output_dir=pool,
            **TINY,
        )
        content = read_pool(pool)
        assert len(content["samples"]) == 3 and content["real_anatomy"] is True and (pool / "samples.png").is_file()
    with pytest.raises(InputError, match="a pool of real anatomy"):
        refuse_real_anatomy(tmp_path)
    alone = run("lesion_flow", ["inference"], straight, check=False, num_samples=3, **TINY)
    assert alone.returncode != 0 and "weights that learnt from" in alone.stderr and "Traceback" not in alone.stderr


@pytest.mark.slow
def test_resumed_training_is_the_uninterrupted_one(straight, dataset, tmp_path):
    for epochs in (2, 4):
        run("lesion_flow", ["train"], tmp_path, dataset_dir=dataset, max_epochs=epochs, val_interval=2, **TINY)
    assert same(weights(straight), weights(tmp_path))
    assert losses(straight / "models") == losses(tmp_path / "models")
    a, b = (torch.load(root / "models/checkpoint.pt", weights_only=True)["best"] for root in (straight, tmp_path))
    assert torch.isfinite(a["loss"]) and same(a, b)


@pytest.mark.slow
def test_volumes(dataset, tmp_path):
    given = {**TINY, "spatial_size": [16, 24, 24]}
    run("lesion_flow", ["train", "volume"], tmp_path, dataset_dir=dataset, max_epochs=1, **given)
    run("lesion_flow", ["inference", "volume"], tmp_path, dataset_dir=dataset, mode="remove", num_samples=2, **given)
    assert read_pool(tmp_path / "pool")["dimension"] == 3
    image, label = body_case(30)
    for name, values in (("image", image[0].T), ("mask", label.T)):
        nib.save(nib.Nifti1Image(values, np.diag([1.0, 1.5, 4.0, 1.0])), tmp_path / f"{name}.nii.gz")
    picture = insert(
        tmp_path / "image.nii.gz", tmp_path / "out.nii.gz", tmp_path, tmp_path / "mask.nii.gz", num_steps=2
    )
    assert picture.is_file() and (tmp_path / "out_mask.nii.gz").is_file()
    for image, out in (("image", "image"), ("image", "mask"), ("out", "image")):
        with pytest.raises(InputError, match="the image itself|did not write"):
            insert(tmp_path / f"{image}.nii.gz", tmp_path / f"{out}.nii.gz", tmp_path, tmp_path / "mask.nii.gz")
