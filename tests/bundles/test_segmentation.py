"""The segmentation bundle trains every network on slices and volumes, mixes as the plugin does, and evaluates."""

import csv
import json
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, verify_net_in_out

from scripts.data.cases import open_cases
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError
from scripts.training.checkpoints import Checkpoints

from ..data.toy_nnunet import AFFINE, write_dataset, write_pool
from ..processes import python

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calls itself so
    pytest.mark.filterwarnings("ignore:.*_target_.*:UserWarning"),  # of every bundle: it can run code
]

BUNDLE = Path(__file__).resolve().parents[2] / "bundles/segmentation"
NETWORKS = [None, "attention_unet", "unetr", "swin_unetr"]
TINY = {
    "spatial_size": [64, 32],
    "channels": [4, 4, 4, 4, 8],
    "batch_size": 4,
    "max_epochs": 1,
    "iterations_per_epoch": 2,
}
TINY_VOLUME = TINY | {"spatial_size": [64, 32, 32], "batch_size": 1}


@pytest.fixture(autouse=True)
def in_the_bundle(monkeypatch):
    monkeypatch.chdir(BUNDLE)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return write_dataset(tmp_path_factory.mktemp("data"))


def names(*configs: str | None) -> list[str]:
    return [f"configs/{name}.json" for name in configs if name]


def run(*configs: str | None, kind="train", **settings) -> ConfigWorkflow:
    """What `python -m monai.bundle run` does, in this process."""
    workflow = ConfigWorkflow(names(*configs), workflow_type=kind, logging_file=False, **settings)
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return workflow


def run_command(*configs: str | None, check=True, **settings) -> subprocess.CompletedProcess:
    words = [word for key, value in settings.items() for word in (f"--{key}", str(value))]
    done = python("-m", "monai.bundle", "run", "--config_file", names(*configs), *words, cwd=BUNDLE)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done


def first_cause(error: BaseException) -> InputError:
    """What a user of a bundle is shown (MONAI wraps what a configuration raises)."""
    while error.__cause__:
        error = error.__cause__
    assert isinstance(error, InputError)
    return error


def weights(root: Path) -> dict:
    return torch.load(root / "models/model.pt", weights_only=True)


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="module")
def pool(folders, tmp_path_factory):
    cases = open_cases(folders[1])
    items = load_training_set(cases, (64, 32)).training[:6]
    found = [(cases.load(item["case"]), item["slice"]) for item in items]
    drawn = [(case.image[:, [z]] + 0.5, case.label[[z]]) for case, z in found]
    return write_pool(tmp_path_factory.mktemp("pools") / "pool", cases, drawn)


def parsed(*configs: str | None, root: Path, **settings) -> ConfigParser:
    parser = ConfigParser()
    parser.read_config(names(*configs))
    parser.update({"bundle_root": str(root), **settings})
    return parser


def test_overlays_hold_only_what_differs():
    configs = {path.stem: json.loads(path.read_text()) for path in (BUNDLE / "configs").glob("*.json")}
    networks = {"unetr": {"unetr"}, "swin_unetr": {"swin_unetr"}}  # settings that only one network has
    base = {**configs["inference"], **{k: v for k, v in configs["train"].items() if not str(v).startswith("%")}}
    for overlay in (
        "attention_unet",
        "unetr",
        "swin_unetr",
        "volume",
        "paper",
        "paper_volume",
        "evidence",
        "seed_papers",
    ):
        for key, value in configs[overlay].items():
            assert key.partition("#")[0] in base or key in networks, f"{overlay}.json sets the unknown {key}"
            assert base.get(key) != value, f"{overlay}.json repeats {key}"
    repeated = [k for k, v in configs["train"].items() if k in configs["inference"] and v == configs["inference"][k]]
    assert set(repeated) <= {"bundle_root", "dataset_dir", "batch_size"}


def test_metadata_and_network_agree(tmp_path, capfd):
    metadata = json.loads((BUNDLE / "configs/metadata.json").read_text())
    image, pred = (metadata["network_data_format"][k][n] for k, n in (("inputs", "image"), ("outputs", "pred")))
    weights = json.loads((BUNDLE / "models/provenance.json").read_text())
    assert image["spatial_shape"] == pred["spatial_shape"] == weights["geometry"]["spatial_size"]
    verify_net_in_out(
        "network_def", "configs/metadata.json", "configs/inference.json", device="cpu", bundle_root=str(tmp_path)
    )


@pytest.mark.parametrize("network", NETWORKS)
def test_sizes_for_a_cpu(network, tmp_path):
    for volume in (None, "volume"):
        parser = parsed("inference", network, volume, root=tmp_path)
        module = parser.get_parsed_content("network_def")
        assert 0.3e6 < sum(p.numel() for p in module.parameters()) < 5e6


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore:.*torch.jit.trace.*:FutureWarning", "ignore::torch.jit.TracerWarning", "ignore:__array_wrap__"
)
@pytest.mark.parametrize("network", NETWORKS)
def test_networks_can_be_exported(network, tmp_path):
    module = parsed("inference", network, root=tmp_path).get_parsed_content("network_def").eval()
    image = torch.rand(1, 1, 96, 96)
    assert torch.allclose(torch.jit.trace(module, image)(image), module(image), atol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_loss_is_dice_and_binary_cross_entropy(channels, tmp_path):
    """Of each label by itself: labels may be regions that overlap."""
    loss = parsed("train", root=tmp_path).get_parsed_content("train#loss")
    logits, mask = torch.randn(2, channels, 8, 8), (torch.rand(2, channels, 8, 8) > 0.6).float()
    p = torch.sigmoid(logits)
    dice = 1 - 2 * (p * mask).sum((0, 2, 3)) / (p.sum((0, 2, 3)) + mask.sum((0, 2, 3)))
    expected = dice.mean() + torch.nn.functional.binary_cross_entropy(p, mask)
    assert loss(logits, mask) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("volume", [None, "volume"])
def test_evidence_is_the_small_fast_network(volume, tmp_path):
    parser = parsed("inference", "evidence", volume, root=tmp_path)
    network = parser.get_parsed_content("network_def").eval()
    assert type(network).__name__ == "DynUNet" and sum(p.numel() for p in network.parameters()) < 2e6
    size = parser.get_parsed_content("spatial_size")
    assert network(torch.rand(1, 1, *size)).shape == (1, 1, *size)


@pytest.mark.slow
@pytest.mark.parametrize("config, kind", [("train", "train"), ("inference", "infer")])
def test_monai_finds_every_property(config, kind, folders, tmp_path):
    raw, pre = folders
    workflow = ConfigWorkflow(
        names(config), workflow_type=kind, logging_file=False, bundle_root=str(tmp_path),
        dataset_dir=str(pre if kind == "train" else raw),
    )  # fmt: skip
    workflow.initialize()
    assert workflow.check_properties() == []


@pytest.mark.slow
@pytest.mark.parametrize("volume", [False, True], ids=["slices", "volumes"])
@pytest.mark.parametrize("network", NETWORKS)
def test_every_network_trains_evaluates_and_predicts(network, volume, folders, tmp_path):
    raw, pre = folders
    configs = (network, "volume" if volume else None)
    settings = {"bundle_root": str(tmp_path), **(TINY_VOLUME if volume else TINY)}
    run("train", *configs, dataset_dir=str(pre), **settings)
    record = json.loads((tmp_path / "models/provenance.json").read_text())
    assert len(record["cases"]) == 4 and record["training"]["iterations"] == 2 and record["training"]["pool"] is None
    run("train", "evaluate", *configs, dataset_dir=str(pre), raw_dir=str(raw), split="test", **settings)
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert set(metrics["cases"]) == {"toy_006", "toy_007"} and set(metrics["summary"]) == {"inner", "outer"}
    rows = list(csv.DictReader((tmp_path / "evaluation/metrics.csv").read_text().splitlines()))
    assert len(rows) == 4 and rows[0]["dice"] != ""
    known = {key: value for key, value in settings.items() if key not in ("max_epochs", "iterations_per_epoch")}
    run("inference", *configs, kind="infer", dataset_dir=str(raw), **known)
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == ["toy_006.nii.gz", "toy_007.nii.gz"]
    label, prediction = (nib.load(folder / "toy_006.nii.gz") for folder in (raw / "labelsTs", tmp_path / "predictions"))
    assert label.shape == prediction.shape and np.allclose(prediction.affine, AFFINE)
    measured = {name: values["predicted_voxels"] for name, values in metrics["cases"]["toy_006"].items()}
    voxels = np.asarray(prediction.dataobj)
    assert measured == {"inner": (voxels == 1).sum(), "outer": (voxels == 2).sum()}


@pytest.mark.slow
def test_it_learns_and_says_so_by_patient(folders, tmp_path):
    """The toy's boxes are bright: a small network finds them within seconds."""
    settings = TINY | {
        "max_epochs": 6,
        "iterations_per_epoch": 25,
        "channels": [8, 8, 8, 16, 16],
        "learning_rate": 0.01,
    }
    run("train", bundle_root=str(tmp_path), dataset_dir=str(folders[1]), **settings)
    run("train", "evaluate", bundle_root=str(tmp_path), dataset_dir=str(folders[1]), **settings)
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text())
    assert metrics["split"] == "validation" and len(metrics["cases"]) == 2
    assert metrics["summary"]["inner"]["dice"]["mean"] > 0.8
    assert metrics["summary"]["inner"]["hd95"]["n"] == 2


@pytest.fixture
def one_thread():
    """Sums are rounded in another order with another number of threads; equality to the bit needs the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def stopped(monkeypatch, root: Path, *configs: str, **settings) -> None:
    """A training that is interrupted after two epochs."""

    def stop(self, engine, save=Checkpoints._save):
        save(self, engine)
        if engine.state.epoch == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Checkpoints, "_save", stop)
        run("train", *configs, bundle_root=str(root), **settings)


@pytest.mark.slow
def test_online_augmentation_from_training_to_prediction(folders, pool, tmp_path, one_thread, monkeypatch):
    """Resumed is uninterrupted; what the network sees is recorded; prediction and evaluation agree."""
    raw, pre = folders
    arm = TINY | {"max_epochs": 4, "augmentation": "online", "pool_dir": str(pool), "share": 0.25, "val_interval": 0}
    settings = {"dataset_dir": str(pre), **arm}
    run("train", "evidence", bundle_root=str(tmp_path / "whole"), **settings)
    stopped(monkeypatch, tmp_path / "again", "evidence", **settings)
    run("train", "evidence", bundle_root=str(tmp_path / "again"), **settings)
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "again"))
    records = [json.loads((tmp_path / name / "models/provenance.json").read_text()) for name in ("whole", "again")]
    training = records[0]["training"]
    assert training["plateau"] == records[1]["training"]["plateau"] and list(training["plateau"]) == [
        "0.6",
        "0.8",
        "1.0",
    ]
    assert training["augmentation"] == "online" and training["z_score"]["per_case"] is False
    known = {"bundle_root": str(tmp_path / "again"), **{name: TINY[name] for name in ("spatial_size", "channels")}}
    run("train", "evidence", "evaluate", dataset_dir=str(pre), raw_dir=str(raw), split="test", **known)
    run("inference", "evidence", kind="infer", dataset_dir=str(raw), **known)
    metrics = json.loads((tmp_path / "again/evaluation/metrics.json").read_text())
    voxels = np.asarray(nib.load(tmp_path / "again/predictions/toy_006.nii.gz").dataobj)
    measured = {name: values["predicted_voxels"] for name, values in metrics["cases"]["toy_006"].items()}
    assert measured == {"inner": (voxels == 1).sum(), "outer": (voxels == 2).sum()}


@pytest.mark.slow
def test_share_zero_is_real_only_and_resumed_is_uninterrupted(folders, pool, tmp_path, one_thread, monkeypatch):
    settings = {"dataset_dir": str(folders[1]), **TINY, "max_epochs": 4, "augmentation": "x2"}
    mixed = settings | {"pool_dir": str(pool), "share": 0.5}
    run("train", bundle_root=str(tmp_path / "real"), **settings)
    run("train", bundle_root=str(tmp_path / "zero"), **{**mixed, "share": 0.0})
    run("train", bundle_root=str(tmp_path / "none"), **{**mixed, "num_synthetic": 0})
    assert same(weights(tmp_path / "real"), weights(tmp_path / "zero"))
    assert same(weights(tmp_path / "real"), weights(tmp_path / "none"))
    run("train", bundle_root=str(tmp_path / "mixed"), **mixed)
    assert not same(weights(tmp_path / "real"), weights(tmp_path / "mixed"))
    rows = list(csv.DictReader((tmp_path / "mixed/models/losses.csv").read_text().splitlines()))
    assert [float(row["synthetic_share"]) for row in rows] == [0.5] * 4
    training = json.loads((tmp_path / "mixed/models/provenance.json").read_text())["training"]
    assert training["pool"]["name"] == "pool" and training["mixing"]["share"] == 0.5
    assert len(training["pool"]["generator_cases"]) == 4 and len(training["pool"]["sha256"]) == 64

    stopped(monkeypatch, tmp_path / "again", **mixed)
    assert not (tmp_path / "again/models/model.pt").exists()
    run("train", bundle_root=str(tmp_path / "again"), **mixed)
    assert same(weights(tmp_path / "mixed"), weights(tmp_path / "again"))
    with pytest.raises(RuntimeError) as raised:
        run("train", bundle_root=str(tmp_path / "again"), **{**mixed, "share": 0.25})
    assert "other settings" in str(first_cause(raised.value))


@pytest.mark.slow
def test_what_is_refused_ends_in_one_clear_error(folders, pool, tmp_path):
    leaking = run_command(
        "train", check=False, bundle_root=tmp_path, dataset_dir=folders[1], pool_dir=pool, fold=1, **TINY
    )
    assert leaking.returncode != 0 and "a leak" in leaking.stderr and "Traceback" not in leaking.stderr
    assert not (tmp_path / "models").exists()
    untrained = run_command("inference", check=False, bundle_root=tmp_path, dataset_dir=folders[0])
    assert untrained.returncode != 0 and "train first" in untrained.stderr and "Traceback" not in untrained.stderr


@pytest.mark.slow
def test_cases_that_were_learnt_from_are_not_evaluated(folders, tmp_path):
    settings = {"bundle_root": str(tmp_path), "dataset_dir": str(folders[1]), **TINY}
    run("train", **settings)
    with pytest.raises(RuntimeError) as raised:
        run("train", "evaluate", **settings, fold=1)
    assert "was trained on" in str(first_cause(raised.value))


@pytest.mark.slow
@pytest.mark.parametrize("changes, seen", [({"num_real_cases": 2}, 2), ({"fold": "all"}, 6)])
def test_which_cases_it_learns_from(changes, seen, folders, tmp_path):
    run("train", bundle_root=str(tmp_path), dataset_dir=str(folders[0]), **TINY, **changes)
    record = json.loads((tmp_path / "models/provenance.json").read_text())
    assert len(record["cases"]) == seen and record["space"]["kind"] == "raw"


@pytest.mark.slow
def test_the_papers_training_is_rmsprop_without_a_schedule_on_slices_with_tumour(folders, tmp_path):
    settings = {**TINY, "max_epochs": 2, "dataset_dir": str(folders[1]), "bundle_root": str(tmp_path)}
    workflow = run("train", "seed_papers", **settings)
    optimiser = workflow.parser.get_parsed_content("train#optimizer")
    assert type(optimiser).__name__ == "RMSprop"
    assert optimiser.param_groups[0]["momentum"] == 0.999 and optimiser.param_groups[0]["lr"] == 1e-5
    items = workflow.parser.get_parsed_content("train#dataset").data
    assert all(item["foreground"] for item in items)
    assert json.loads((tmp_path / "models/provenance.json").read_text())["training"]["learning_rate"] == 1e-5
