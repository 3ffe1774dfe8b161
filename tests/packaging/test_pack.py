"""A packed bundle trains and samples with its own code from any folder, and is the same to the byte each time."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import torch
import yaml
from monai.bundle import ConfigParser
from packaging.requirements import Requirement

from scripts.packaging import pack
from scripts.packaging.bundle_files import bundle_names
from scripts.packaging.pack import pack_bundle
from scripts.packaging.verify import SCHEMA
from scripts.pool.writing import read_pool
from scripts.runtime.errors import InputError
from scripts.runtime.files import file_sha256, write_json

from .. import processes
from ..data.toy import write_preprocessed

ROOT = Path(__file__).resolve().parents[2]
LSGAN = "least_squares_gan_image_mask_generation"
TINY = {
    "spatial_size": [24, 24], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2, "attention_heads": 1,
    "num_leapfrog_steps": 1, "batch_size": 4, "grid_interval": 100, "feature_steps": 2,
}  # fmt: skip


SMALL = {"spatial_size": [16, 16], "channels": [8, 8], "latent_size": 4}
# Two image channels and two labels, where the bundle's own metadata knows a phantom of one each.
TWO = {"name": "Dataset7_Two", "channel_names": {"0": "T1", "1": "FLAIR"},
       "labels": {"background": 0, "core": 2, "edema": 1}, "regions_class_order": None}  # fmt: skip
ONE = {"name": "Dataset7_One", "channel_names": {"0": "PET"}, "labels": {"background": 0, "tumor": 1},
       "regions_class_order": None}  # fmt: skip


def weights(folder: Path, name: str, version: str = "0.1.0", description: dict = ONE, **settings) -> Path:
    """What a training leaves, with an untrained network of these settings, as far as packing looks at it."""
    folder.mkdir(parents=True)
    parser = ConfigParser()
    parser.read_config(str(ROOT / "bundles" / name / "configs/inference.json"))
    known = {"ckpt_dir": str(folder), "num_channels": 2 if description is ONE else 4, "device": "cpu", **settings}
    parser.update({key: value for key, value in known.items() if key in parser.get()})
    torch.save(parser.get_parsed_content("network_def").state_dict(), folder / "model.pt")
    key = "network_record" if "network_record" in parser.get() else "network_arguments"
    images = len(description["channel_names"])
    record = {
        "format_version": 1, "bundle": {"name": name, "version": version}, "description": description,
        "dataset": description["name"], "fold": 0, "cases": [{"id": "a", "sha256": "0"}, {"id": "b", "sha256": "1"}],
        "scaling": {"low": [0.0] * images, "high": [250.0] * images, "per_case": False, "masked": False},
        "geometry": {"spatial_size": parser.get("spatial_size")}, "network": parser.get_parsed_content(key),
        "training": {"pool": None}, "weights_sha256": file_sha256(folder / "model.pt"),
    }  # fmt: skip
    write_json(folder / "provenance.json", record)
    return folder / "model.pt"


@pytest.fixture
def unchecked(monkeypatch):
    """Leave out the last check, which starts a process that loads the packed bundle."""
    monkeypatch.setattr(pack, "check_loads", lambda *_: None)


def unpack(path: Path, folder: Path) -> Path:
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder)
        return folder / archive.namelist()[0].split("/")[0]


def python(*words, cwd: Path, **environment) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return processes.python(*words, cwd=cwd, env={**clean, "OMP_NUM_THREADS": "1", **environment})


def flags(**settings) -> list[str]:
    return [str(word) for key, value in settings.items() for word in (f"--{key}", value)]


@pytest.mark.slow
def test_same_input_gives_the_same_bytes(tmp_path, capsys, unchecked):
    model = weights(tmp_path / "models", "lsgan", **SMALL)
    first = pack_bundle(ROOT / "bundles/lsgan", tmp_path / "a", model)
    assert f"sha256 {file_sha256(first)}" in capsys.readouterr().out
    os.utime(model, (0, 0))
    second = pack_bundle(ROOT / "bundles/lsgan", tmp_path / "b", model)
    assert first.read_bytes() == second.read_bytes() and first.name == f"{LSGAN}_v0.1.0.zip"
    with zipfile.ZipFile(first) as archive:
        names = {name.removeprefix(f"{LSGAN}/") for name in archive.namelist()}
        packed = json.loads(archive.read(f"{LSGAN}/scripts/packed.json"))
        train = archive.read(f"{LSGAN}/configs/train.json").decode()
    assert {"LICENSE", "docs/README.md", "models/model.pt", "models/provenance.json", "configs/metadata.json",
            "scripts/networks/lsgan.py", "scripts/training/lsgan.py"} <= names  # fmt: skip
    # what other bundles and the command line need, and the bundles themselves, stay out
    assert not [name for name in names if name.startswith(("scripts/bundles", "scripts/networks/hvae",
                                                           "scripts/__main__", "nnunet_plugin/trainer"))]  # fmt: skip
    assert [name for name in names if name.startswith("nnunet_plugin")] != []  # its `InputError` is everyone's
    # records and checkpoints keep the short name, whatever the zoo calls the bundle
    assert packed["bundle"] == "lsgan" and "%configs" not in train
    assert json.loads(train)["record"]["bundle"] == {"name": "lsgan", "version": "0.1.0"}
    assert json.loads(train)["spatial_size"] == [16, 16]  # as the weights were trained, not as the bundle's preset
    test = (tmp_path / f"a/test_{LSGAN}.py").read_text()
    assert f'BUNDLE = "{LSGAN}"' in test and "tests." not in test


@pytest.mark.slow
def test_large_weights_stay_beside_the_zip(tmp_path, monkeypatch, unchecked):
    monkeypatch.setattr(pack, "LARGEST", 1000)
    model, url = weights(tmp_path / "models", "lsgan", **SMALL), "https://host/a: b #1/model.pt"
    for wrong in (None, "host/model.pt"):
        with pytest.raises(InputError, match="give --url"):
            pack_bundle(ROOT / "bundles/lsgan", tmp_path / "dist", model, wrong)
    assert not (tmp_path / "dist").exists()
    path = pack_bundle(ROOT / "bundles/lsgan", tmp_path / "dist", model, url)
    beside = tmp_path / f"dist/{LSGAN}_v0.1.0_model.pt"
    assert beside.read_bytes() == model.read_bytes()
    with zipfile.ZipFile(path) as archive:
        assert f"{LSGAN}/models/model.pt" not in archive.namelist()
        (entry,) = yaml.safe_load(archive.read(f"{LSGAN}/large_files.yml"))["large_files"]
    assert entry["path"] == "models/model.pt" and entry["url"] == url and entry["hash_type"] == "sha256"
    assert entry["hash_val"] == hashlib.sha256(beside.read_bytes()).hexdigest()


@pytest.mark.slow
def test_what_does_not_belong_together_is_refused(tmp_path, unchecked):
    for name, version in (("hvae", "0.1.0"), ("lsgan", "0.0.9")):
        model = weights(tmp_path / f"{name}{version}", name, version)
        with pytest.raises(InputError, match="weights of lsgan"):
            pack_bundle(ROOT / "bundles/lsgan", tmp_path, model)
    with pytest.raises(InputError, match="no trained generator"):
        pack_bundle(ROOT / "bundles/lsgan", tmp_path, tmp_path / "nowhere/model.pt")

    model = weights(tmp_path / "run/models", "lsgan", **SMALL)
    record = json.loads(model.with_name("provenance.json").read_text())

    def refused(words: str, changes: dict | None = None, **more) -> None:
        write_json(model.with_name("provenance.json"), {**record, **(changes or {})})
        with pytest.raises(InputError, match=words):
            pack_bundle(ROOT / "bundles/lsgan", tmp_path, model, **more)

    refused("variables that the network lacks", {"network": {**record["network"], "channels": [8, 16]}})
    refused("a network with {'num_channels': 2}", {"description": TWO})
    refused("overlay other.json", overlays=["other.json"])
    write_json(tmp_path / "run/evaluation/evaluation.json", {"metrics": {"val_score": 1.0}, "weights_sha256": "0"})
    refused("evaluation.json of other weights")
    assert not list(tmp_path.glob("*.zip"))


def described(name: str, folder: Path, **more) -> dict:
    """The metadata of a packed bundle."""
    path = pack_bundle(ROOT / "bundles" / name, folder, **more)
    with zipfile.ZipFile(path) as archive:
        file = next(file for file in archive.namelist() if file.endswith("configs/metadata.json"))
        (folder / "metadata.json").write_bytes(archive.read(file))
    metadata = json.loads((folder / "metadata.json").read_text())
    jsonschema.validate(metadata, json.loads(SCHEMA.read_text()))
    return metadata


def channels(form: dict) -> list[str]:
    assert form["num_channels"] == len(form["channel_def"])
    return list(form["channel_def"].values())


@pytest.mark.slow
def test_metadata_is_true_of_the_weights(tmp_path, unchecked):
    """Channels, labels, shapes, values, data and figures come from the record, not from the bundle's phantom."""
    model = weights(tmp_path / "run/models", "lsgan", description=TWO, **SMALL)
    sha256 = file_sha256(model)
    write_json(tmp_path / "run/evaluation/evaluation.json", {"metrics": {"val_score": 0.25}, "weights_sha256": sha256})
    metadata = described("lsgan", tmp_path, checkpoint=model)
    forms = metadata["network_data_format"]
    assert channels(forms["inputs"]["image"]) == ["latent"] * 4 and forms["inputs"]["image"]["spatial_shape"] == []
    assert channels(forms["outputs"]["pred"]) == [
        "T1, scaled to [0, 1] (from 0 to 250)", "FLAIR, scaled to [0, 1] (from 0 to 250)", "core mask probability",
        "edema mask probability",
    ]  # fmt: skip
    assert forms["outputs"]["pred"]["spatial_shape"] == [16, 16] and metadata["eval_metrics"] == {"val_score": 0.25}
    assert metadata["data_source"].startswith("2 cases of Dataset7_Two (fold 0);")
    assert "phantom" not in json.dumps([metadata["data_source"], forms]).lower()
    assert metadata["pytorch_version"] == importlib.metadata.version("torch").split("+")[0]

    sizes = {"spatial_size": [32, 32], "channels": [8] * 5, "in_channels": 2, "out_channels": 2}
    model = weights(tmp_path / "unet", "segmentation", description=TWO, **sizes)
    with pytest.raises(InputError, match="features"):  # of `channels`, which the record does not name
        described("segmentation", tmp_path, checkpoint=model)
    write_json(tmp_path / "own.json", {"channels": [8] * 5})
    metadata = described("segmentation", tmp_path, checkpoint=model, overlays=[str(tmp_path / "own.json")])
    forms = metadata["network_data_format"]
    assert channels(forms["outputs"]["pred"]) == ["core", "edema"] and forms["inputs"]["image"]["modality"] == "MR"
    after = forms["post_processed_outputs"]["pred"]
    assert after["channel_def"] == {"0": "background", "1": "edema", "2": "core"} and after["value_range"] == [0, 2]


@pytest.mark.slow
def test_weights_of_others_get_no_figures_and_no_licence_of_the_bundle(tmp_path, unchecked):
    """What metadata.json and docs say of the weights in the repository is packed with these alone."""
    repository = json.loads((ROOT / "bundles/segmentation/configs/metadata.json").read_text())
    metadata = described("segmentation", tmp_path)
    assert metadata["eval_metrics"] == repository["eval_metrics"] != {}
    assert metadata["data_source"] == repository["data_source"]
    model = weights(tmp_path / "unet", "segmentation", spatial_size=[64, 64], in_channels=1, out_channels=1)
    assert described("segmentation", tmp_path, checkpoint=model)["eval_metrics"] == {}

    def docs(folder: str, checkpoint: Path | None) -> list[str]:
        bundle = unpack(pack_bundle(ROOT / "bundles/dhvae", tmp_path / folder, checkpoint), tmp_path / folder)
        return [(bundle / "docs" / name).read_text() for name in ("README.md", "data_license.txt")]

    given = [(ROOT / "bundles/dhvae/docs" / name).read_text() for name in ("README.md", "data_license.txt")]
    assert docs("own", None) == given
    for text, before in zip(docs("other", weights(tmp_path / "models", "dhvae")), given, strict=True):
        assert text.endswith(before) and "learnt from 2 cases of Dataset7_One (fold 0)" in text.removesuffix(before)


@pytest.mark.slow
def test_a_packed_bundle_that_does_not_load_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "LOADING", "import sys; sys.exit('wrong variables')")
    with pytest.raises(RuntimeError, match="wrong variables"):
        pack_bundle(ROOT / "bundles/lsgan", tmp_path / "dist", weights(tmp_path / "models", "lsgan", **SMALL))
    assert not list((tmp_path / "dist").iterdir())


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
def test_a_second_packed_bundle_in_one_process_is_refused_clearly(tmp_path, unchecked):
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


def only(names: set[str], folder: Path) -> Path:
    """Links to these distributions and all that they need, for a Python that sees no other."""
    waiting, found = [(name, "") for name in names], set()
    while waiting:
        name, extra = waiting.pop()
        if (name, extra) not in found:
            found.add((name, extra))
            try:
                requirements = map(Requirement, importlib.metadata.requires(name) or ())
            except importlib.metadata.PackageNotFoundError:  # of another system
                continue
            needed = [one for one in requirements if not one.marker or one.marker.evaluate({"extra": extra})]
            waiting += [(one.name, extra) for one in needed for extra in ("", *one.extras)]
    folder.mkdir()
    for name in {name for name, _ in found}:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            files = importlib.metadata.distribution(name).files or ()
            for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
                with contextlib.suppress(FileExistsError):
                    (folder / top).symlink_to(importlib.metadata.distribution(name).locate_file(top))
    return folder


# Of a Python with certain packages alone, which has loaded the largest: a fork of it runs the program of each line.
FORKING = """
import importlib, json, os, sys, traceback
for name in ("torch", "monai.bundle", "matplotlib.pyplot", "nibabel", "scipy.stats", "skimage.measure"):
    importlib.import_module(name)
for line in sys.stdin:
    program, folder, name, cwd, said = json.loads(line)
    child = os.fork()
    if not child:
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        os.chdir(cwd)
        sys.path.insert(1, os.path.join(folder, name))
        sys.argv, status = ["-c", folder, name], 1
        try:
            exec(program, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(os.waitpid(child, 0)[1], flush=True)
"""
NAMED = """
import importlib, sys
from pathlib import Path
folder, name = sys.argv[1:]
for file in sorted(Path(folder, name).glob("[sn]*/**/*.py")):
    parts = file.relative_to(Path(folder, name)).with_suffix("").parts
    importlib.import_module(".".join(parts).removesuffix(".__init__"))
import monai.bundle
monai.bundle.load(name, bundle_dir=folder, source="github", workflow_type="inference")
"""


@pytest.fixture(scope="module")
def pythons(tmp_path_factory):
    """A Python for every set of packages; it sees no other, and says nothing of this project."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    with contextlib.ExitStack() as held:

        @functools.cache
        def with_packages(names: frozenset[str]):
            packages = only(set(names), tmp_path_factory.mktemp("python") / "packages")
            assert not (packages / "synthaug").exists() and not (packages / "scripts").exists()
            process = subprocess.Popen(
                [sys.executable, "-S", "-c", FORKING], cwd=packages.parent, stdin=subprocess.PIPE, text=True,
                stdout=subprocess.PIPE, env={**clean, "PYTHONPATH": str(packages), "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
            return held.enter_context(process)

        yield with_packages


@pytest.mark.slow
@pytest.mark.parametrize("name", bundle_names())
def test_metadata_names_all_that_a_packed_bundle_needs(name, tmp_path, monkeypatch, unchecked, pythons):
    """With these packages alone every module of it is imported, and its weights are loaded from an unrelated folder."""
    monkeypatch.setattr(pack, "LARGEST", 1 << 30)
    path = pack_bundle(ROOT / "bundles" / name, tmp_path, weights(tmp_path / "models", name))
    bundle = unpack(path, tmp_path / "unpacked")
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    (tmp_path / "elsewhere").mkdir()
    process = pythons(frozenset({"monai", "torch", "numpy", *metadata["required_packages_version"]}))
    asked = NAMED, bundle.parent, bundle.name, tmp_path / "elsewhere", tmp_path / "said"
    process.stdin.write(json.dumps(asked, default=str) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "0\n", (tmp_path / "said").read_text()[-3000:]
    assert not list((tmp_path / "elsewhere").iterdir())
    programs = "".join(file.read_text() for file in (bundle / "docs").rglob("*.py"))
    modules = re.findall(r"^from (scripts\S*) import", programs, re.MULTILINE)
    assert bool(modules) == (name == "lesion_flow")
    assert all((bundle / f"{module.replace('.', '/')}.py").is_file() for module in modules)
