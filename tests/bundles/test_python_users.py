"""Bundles in Python, as the README shows it: MONAI's `create_workflow`, the sampler, a batch."""

import json
import sys
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, create_workflow
from monai.bundle import load as monai_load

from scripts.packaging.bundle_files import bundle_dir, bundle_names
from scripts.pool.writing import read_pool
from scripts.runtime.errors import InputError

from ..pool.toy_generator import NETWORK, make_generator

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning")


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Settings that open a tiny generator of the bundle dhvae, and the hook that a run leaves behind taken back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    models = tmp_path / "models"
    models.mkdir()
    make_generator(models)
    known = json.loads((bundle_dir("dhvae") / "configs/inference.json").read_text())
    network = {key: value for key, value in NETWORK.items() if key in known}
    # the toy's attention head has another width than the bundle's
    return {"bundle_root": str(tmp_path), "network_arguments#attention_head_dim": 8, **network}


def config(bundle: str, name: str = "inference") -> str:
    return str(bundle_dir(bundle) / f"configs/{name}.json")


def test_a_batch_in_five_lines(trained):
    workflow = create_workflow(config_file=config("dhvae"), workflow_type="infer", logging_file=False, **trained)
    sampler = workflow.parser.get_parsed_content("sampler")
    batch = next(sampler(num_samples=3, seed=0, batch_size=3))
    assert len(batch["record"]) == 3
    assert batch["image"].shape[:2] == (3, 1) and batch["label"].shape == (3, *batch["image"].shape[2:])


def test_run_writes_the_pool_and_may_be_repeated(trained, tmp_path):
    settings = {**trained, "num_samples": 2, "min_foreground": 0, "output_dir": str(tmp_path / "pool")}
    workflow = create_workflow(config_file=config("dhvae"), workflow_type="infer", logging_file=False, **settings)
    workflow.run()
    before = (tmp_path / "pool/pool.json").read_bytes()
    assert len(read_pool(tmp_path / "pool")["samples"]) == 2
    assert workflow.evaluator.state.output["made"] == 2
    again = create_workflow(config_file=config("dhvae"), workflow_type="infer", logging_file=False, **settings)
    again.run()  # nothing is left to do
    assert (tmp_path / "pool/pool.json").read_bytes() == before


def test_two_bundles_in_one_process(trained):
    ours = create_workflow(config_file=config("dhvae"), workflow_type="infer", logging_file=False, **trained)
    theirs = create_workflow(config_file=config("lsgan"), workflow_type="infer", logging_file=False)
    assert type(ours.network_def).__name__ == "HVAE" and type(theirs.network_def).__name__ == "Generator"


def test_unknown_settings_are_refused_in_python_too(trained, tmp_path):
    wrong = {"config_file": config("dhvae"), "workflow_type": "infer", "logging_file": False, "num_sample": 2}
    listed = {name: value for name, value in trained.items() if "#" not in name}
    with pytest.raises(InputError, match="did you mean num_samples"):
        create_workflow("scripts.runtime.workflow.StrictWorkflow", **wrong, **listed)
    plain = create_workflow(**wrong, **trained)
    with pytest.raises(RuntimeError) as error:  # MONAI's own workflow says it when it runs
        plain.run()
    assert "did you mean num_samples" in str(error.value.__cause__)
    assert not Path(tmp_path / "pool").exists() and not Path(tmp_path / "pool.partial").exists()
    del wrong["num_sample"]
    create_workflow("scripts.runtime.workflow.StrictWorkflow", **wrong, num_samples=2, **listed)


@pytest.mark.slow
@pytest.mark.parametrize("name", bundle_names())
def test_names_that_lead_nowhere_are_refused_before_monai_follows_them(name, monkeypatch):
    """Whether a setting is spelt out, taken from another file, or a number: of what lies below it, one line tells."""
    monkeypatch.chdir(bundle_dir(name))
    strict = "scripts.runtime.workflow.StrictWorkflow"
    for file in sorted(map(str, Path("configs").glob("*.json"))):
        own = ConfigParser.load_config_file(file)
        files = [file] if "bundle_root" in own else ["configs/train.json", file]
        for key in ["nowhere", *ConfigParser.load_config_files(files)] if "run" in own else []:
            with pytest.raises(InputError, match="unknown setting|which lies inside"):
                create_workflow(strict, config_file=files, logging_file=False, **{f"{key}#no_such_key": 1})


def test_names_inside_what_another_file_spells_out_are_told_where_to_set_them(monkeypatch):
    monkeypatch.chdir(bundle_dir("ldm"))
    given = {"workflow_name": "scripts.runtime.workflow.StrictWorkflow", "config_file": "configs/train.json"}
    with pytest.raises(InputError, match=r"did you mean --autoencoder#optimizer#lr\?"):
        create_workflow(**given, logging_file=False, **{"autoencoder#optimizer#lrr": 1})
    with pytest.raises(InputError, match="write --autoencoder_batch_size"):
        create_workflow(**given, logging_file=False, **{"autoencoder#dataloader#batch_size": 4})
    with pytest.raises(InputError, match=r"did you mean --train#optimizer#lr\?"):
        create_workflow(**given, logging_file=False, **{"trian#optimizer#lr": 1.0})
    workflow = create_workflow(**given, logging_file=False, **{"train#optimizer#lr": 0.5})
    assert workflow.parser["train#optimizer#lr"] == 0.5


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "inference"])
@pytest.mark.parametrize("name", sorted(path.parents[1].name for path in ROOT.glob("bundles/*/configs/inference.json")))
def test_weights_are_loaded_whole_or_refused(name, kind, tmp_path, monkeypatch):
    """`monai.bundle.load` copies what fits and leaves the rest at random: from any folder it is all, or an error.

    By default it takes train.json, which before packing knows inference.json in the bundle's own folder alone; data it
    neither has nor makes.
    """
    counts = {"num_channels": 5, "num_labels": 2} if name != "segmentation" else {"in_channels": 3, "out_channels": 2}
    parser = ConfigParser()
    parser.read_config(config(name))
    known = {key: value for key, value in counts.items() if key in parser.get()}
    parser.update(known)
    trained = parser.get_parsed_content("network_def").state_dict()
    models = tmp_path / name / "models"
    models.mkdir(parents=True)
    (tmp_path / name / "configs").symlink_to(bundle_dir(name) / "configs")
    torch.save(trained, models / "model.pt")
    sizes = {"spatial_size": parser.get_parsed_content("spatial_size")}
    record = {
        "format_version": 1, "weights_sha256": "", "network": {**known, **sizes}, "cases": [], "fold": 0,
        "split_sha256": "", "space": {},
        "description": {"name": "Dataset7_Two", "channel_names": {"0": "A", "1": "B", "2": "C"},
                        "labels": {"background": 0, "a": 1, "b": 2}, "regions_class_order": None},
        "scaling": {"low": [0.0] * 3, "high": [1.0] * 3, "per_case": False, "masked": False},
        "geometry": {**sizes, "field_of_view": [96, 96], "depth": 16},
        "training": {"windows": {"values": [[0.0] * 3, [1.0] * 3], "steps": [1.0, 1.0]}},
    }  # fmt: skip
    (models / "provenance.json").write_text(json.dumps(record))
    monkeypatch.chdir(tmp_path / name if kind == "train" else tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def load(**more):
        return monai_load(name, bundle_dir=str(tmp_path), workflow_type=kind, source="github", **more)

    found = load().state_dict()
    assert all(torch.equal(value, found[key]) for key, value in trained.items()) and len(found) == len(trained)
    assert sorted(tmp_path.rglob("*")) == before
    (models / "provenance.json").unlink()
    with pytest.raises((InputError, RuntimeError)) as caught:  # of train.json MONAI tells the chain
        load()
    words = "no weights of the right shape for" if kind == "inference" else "no trained generator in"
    assert words in str(caught.value) + str(caught.value.__cause__)
