"""A packed bundle trains and samples with its own code from any folder, and is the same to the byte each time."""

import hashlib
import json
import os
import subprocess
import zipfile
from pathlib import Path

import pytest
import torch
import yaml

from scripts.packaging import pack
from scripts.packaging.pack import pack_bundle
from scripts.pool.writing import read_pool
from scripts.runtime.errors import InputError
from scripts.runtime.files import file_sha256, write_json

from .. import processes
from ..data.toy import write_preprocessed

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "spatial_size": [24, 24], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2, "attention_heads": 1,
    "num_leapfrog_steps": 1, "batch_size": 4, "grid_interval": 100, "feature_steps": 2,
}  # fmt: skip


def weights(folder: Path, name: str, version: str = "0.1.0", size: int = 4) -> Path:
    """What a training leaves, as far as packing looks at it."""
    folder.mkdir(parents=True)
    torch.save({"weight": torch.zeros(size)}, folder / "model.pt")
    record = {"format_version": 1, "bundle": {"name": name, "version": version},
              "weights_sha256": file_sha256(folder / "model.pt")}  # fmt: skip
    write_json(folder / "provenance.json", record)
    return folder / "model.pt"


def unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        return folder / archive.namelist()[0].split("/")[0]


def python(*words, cwd: Path, **environment) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return processes.python(*words, cwd=cwd, env={**clean, "OMP_NUM_THREADS": "1", **environment})


def flags(**settings) -> list[str]:
    return [str(word) for key, value in settings.items() for word in (f"--{key}", value)]


def test_same_input_gives_the_same_bytes(tmp_path, capsys):
    model = weights(tmp_path / "models", "lsgan")
    first = pack_bundle(ROOT / "bundles/lsgan", tmp_path / "a", model)
    assert f"sha256 {file_sha256(first)}" in capsys.readouterr().out
    os.utime(model, (0, 0))
    second = pack_bundle(ROOT / "bundles/lsgan", tmp_path / "b", model)
    assert first.read_bytes() == second.read_bytes() and first.name == "lsgan_v0.1.0.zip"
    with zipfile.ZipFile(first) as archive:
        names = {name.removeprefix("lsgan/") for name in archive.namelist()}
        packed = json.loads(archive.read("lsgan/scripts/packed.json"))
        train = archive.read("lsgan/configs/train.json").decode()
    assert {"LICENSE", "docs/README.md", "models/model.pt", "models/provenance.json", "configs/metadata.json",
            "scripts/networks/lsgan.py", "scripts/training/lsgan.py"} <= names  # fmt: skip
    # what other bundles and the command line need, and the bundles themselves, stay out
    assert not [name for name in names if name.startswith(("scripts/bundles", "scripts/networks/hvae",
                                                           "scripts/__main__", "nnunet_plugin/trainer"))]  # fmt: skip
    assert [name for name in names if name.startswith("nnunet_plugin")] != []  # its `InputError` is everyone's
    assert packed["bundle"] == "lsgan" and "%configs" not in train


def test_large_weights_stay_beside_the_zip(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "LARGEST", 1000)
    model, url = weights(tmp_path / "models", "lsgan", size=1000), "https://host/a: b #1/model.pt"
    for wrong in (None, "host/model.pt"):
        with pytest.raises(InputError, match="give --url"):
            pack_bundle(ROOT / "bundles/lsgan", tmp_path / "dist", model, wrong)
    assert not (tmp_path / "dist").exists()
    path = pack_bundle(ROOT / "bundles/lsgan", tmp_path / "dist", model, url)
    beside = tmp_path / "dist/lsgan_v0.1.0_model.pt"
    assert beside.read_bytes() == model.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert "lsgan/models/model.pt" not in archive.namelist()
        (entry,) = yaml.safe_load(archive.read("lsgan/large_files.yml"))["large_files"]
    assert entry["path"] == "models/model.pt" and entry["url"] == url and entry["hash_type"] == "sha256"
    assert entry["hash_val"] == hashlib.sha256(beside.read_bytes()).hexdigest()


def test_what_does_not_belong_together_is_refused(tmp_path):
    for name, version in (("hvae", "0.1.0"), ("lsgan", "0.0.9")):
        with pytest.raises(InputError, match="weights of lsgan"):
            pack_bundle(ROOT / "bundles/lsgan", tmp_path, weights(tmp_path / f"{name}{version}", name, version))
    with pytest.raises(InputError, match="no trained generator"):
        pack_bundle(ROOT / "bundles/lsgan", tmp_path, tmp_path / "nowhere/model.pt")
    assert not list(tmp_path.glob("*.zip"))


@pytest.mark.slow
def test_packed_bundle_runs_from_an_unrelated_folder(tmp_path):
    data = write_preprocessed(tmp_path / "Dataset901_Toy")
    run = ["-m", "monai.bundle", "run", "--config_file"]
    settings = {"dataset_dir": data, "max_epochs": 1, **TINY}
    known = json.loads((ROOT / "bundles/dhvae/configs/inference.json").read_text())
    sampling = {key: value for key, value in TINY.items() if key in known} | {"num_samples": 2, "min_foreground": 0}
    done = python(*run, "configs/train.json", *flags(bundle_root=tmp_path / "first", **settings),
                  cwd=ROOT / "bundles/dhvae")  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    path = pack_bundle(ROOT / "bundles/dhvae", tmp_path, tmp_path / "first/models/model.pt")
    bundle, elsewhere = unpack(path, tmp_path / "unpacked"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    code = json.loads((bundle / "scripts/packed.json").read_text())["code_sha256"]

    # from another folder: MONAI itself finds the code beside the configs
    where = f"config_file={str(bundle / 'configs/inference.json')!r}, bundle_root={str(bundle)!r}"
    program = f"import monai.bundle as b; b.run({where}, **{sampling}); import scripts; print('CODE', scripts.__file__)"
    done = python("-c", program, cwd=elsewhere)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"CODE {bundle / 'scripts/__init__.py'}" in done.stdout
    assert len(read_pool(bundle / "pool")["samples"]) == 2

    # training from there needs the code on the path before MONAI seeds, from the bundle's folder nothing
    for name, cwd, config, environment in (
        ("elsewhere", elsewhere, bundle / "configs/train.json", {"PYTHONPATH": str(bundle)}),
        ("inside", bundle, "configs/train.json", {}),
    ):
        done = python(*run, config, *flags(bundle_root=tmp_path / name, **settings), cwd=cwd, **environment)
        assert done.returncode == 0, done.stderr[-3000:]
        record = json.loads((tmp_path / name / "models/provenance.json").read_text())
        assert record["code_revision"] == code and record["bundle"] == {"name": "dhvae", "version": "0.1.0"}


@pytest.mark.slow
def test_a_second_packed_bundle_in_one_process_is_refused_clearly(tmp_path):
    folders = {}
    for name in ("dhvae", "hvae", "lsgan"):
        path = pack_bundle(ROOT / "bundles" / name, tmp_path, weights(tmp_path / f"models_{name}", name))
        folders[name] = unpack(path, tmp_path / "unpacked")
    configs = {name: str(folder / "configs/inference.json") for name, folder in folders.items()}
    program = (
        "import sys; from monai.bundle import create_workflow\n"
        f"sys.path.insert(0, {str(folders['dhvae'])!r})\n"
        f"create_workflow(config_file={configs['dhvae']!r}, workflow_type='infer').network_def\n"
        "other = create_workflow(config_file=sys.argv[1], workflow_type='infer')\n"
        "other.run() if len(sys.argv) > 2 else other.network_def\n"
    )
    done = python("-c", program, configs["lsgan"], cwd=tmp_path)
    assert done.returncode != 0
    assert "scripts.networks.lsgan is not in the packed bundle dhvae" in done.stderr
    done = python("-c", program, configs["hvae"], "run", cwd=tmp_path)  # hvae needs no other modules than dhvae
    assert done.returncode != 0 and "configs of hvae 0.1.0 with the code of dhvae 0.1.0" in done.stderr
