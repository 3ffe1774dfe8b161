"""Settings of a bundle, from the command line or from files of one's own: used, recorded, or refused in one line."""

import json
import pickle
import signal

import pytest
import torch
from monai.bundle import ConfigWorkflow

from scripts.runtime.errors import InputError, nearest
from scripts.runtime.settings import check_device, check_overrides, check_values, refuse_unknown_keys, told
from scripts.runtime.workflow import StrictWorkflow

from ..data.toy import write_preprocessed
from ..processes import python, start, wait_until
from .test_bundles import BUNDLES, GENERATORS, TINY, bundle

pytestmark = pytest.mark.filterwarnings("ignore:.*Logging file.*")
NESTED = {"train#optimizer#lr": 0.01, "train#dataloader#batch_size": 3}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy")


def workflow(name: str, monkeypatch, config: str = "train", **overrides) -> ConfigWorkflow:
    monkeypatch.chdir(bundle(name))
    made = ConfigWorkflow(f"configs/{config}.json", logging_file=False, **overrides)
    made.initialize()
    return made


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:invalid value encountered in scalar subtract")  # quantiles of lesion_flow's crops
@pytest.mark.parametrize("name", GENERATORS)
def test_the_record_holds_what_nested_overrides_say(name, dataset, tmp_path, monkeypatch):
    size = [24, 24, 8] if name == "sbldm" else [24, 24]
    given = {"dataset_dir": str(dataset), "bundle_root": str(tmp_path), "spatial_size": size}
    records = [workflow(name, monkeypatch, run=["$@record"], **given, **nested).run()[0] for nested in (NESTED, {})]
    assert records[0].settings["learning_rate"] == 0.01 and records[0].settings["batch_size"] == 3
    assert records[1].settings["learning_rate"] != 0.01 and records[1].settings["batch_size"] > 3
    assert {**records[1].used, **NESTED} == records[0].used
    other = workflow(name, monkeypatch, run=["$@record"], **given, **{"train#update#gradient_clip": 7.5}).run()[0]
    assert other.settings["gradient_clip"] == 7.5 and other.used != records[1].used
    # Handlers, too, decide which weights there will be in the end.
    assert {"val_interval", "best#metric", "best#keep"} <= records[0].kept.keys() and records[0].kept == records[1].kept
    changes = {"best#metric": "other", "val_interval": 3, "validate#evaluator#metric_cmp_fn": "$max"}
    other = workflow(name, monkeypatch, run=["$@record"], **given, **changes).run()[0]
    assert other.kept == {**records[1].kept, **changes}


def test_the_schedule_of_a_segmenter_is_recorded_and_stays_when_it_goes_on(dataset, tmp_path, monkeypatch):
    given = {"dataset_dir": str(dataset), "bundle_root": str(tmp_path), "spatial_size": [32, 32]}

    def recorded(**settings):
        return workflow("segmentation", monkeypatch, run=["$@record"], **given, **settings).run()[0]

    first = recorded()
    assert first.kept["train#lr_scheduler#power"] == 0.9
    (tmp_path / "models").mkdir()
    (tmp_path / "models/checkpoint.pt").touch()
    first._start(None)
    recorded(device="cpu", save_interval=7, grid_interval=9).check_resume()
    for setting, value in {"train#lr_scheduler#power": 0.5, "val_interval": 2}.items():
        with pytest.raises(InputError, match=f"{setting} .* \\(now {value}\\)"):
            recorded(**{setting: value}).check_resume()
    path = tmp_path / "models/training.json"
    older = json.loads(path.read_text())
    del older["kept"]
    path.write_text(json.dumps(older))
    first.check_resume()  # of a version that did not record it


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize(
    "config, wrong, words",
    [
        ("inference", {"num_samples": "abc"}, "a whole number, such as 200"),
        ("inference", {"num_samples": 2.5}, "a whole number"),
        ("inference", {"compile": "false"}, "True or False"),
        ("inference", {"output_dir": 2024}, "write --output_dir ./2024"),
        ("train", {"max_epochs": True}, "a whole number"),
        ("train", {"max_epochs": 0}, "a whole number from 1, such as"),
        ("train", {"batch_size": -8}, "a whole number from 1"),
        ("train", {"val_interval": -1}, "a whole number from 0"),
        ("train", {"learning_rate": float("inf")}, "a number, such as"),
        ("train", {"learning_rate": float("nan")}, "a number, such as"),
        ("train", {"learning_rate": "fast"}, "a number, such as"),
        ("train", {"gradient_clip": "hard"}, "a number, such as"),
        ("train", {"spatial_size": 64}, "a list, or auto, such as"),
        ("train", {"amp": "yes"}, "True or False"),
        ("train", {"fold": "none"}, "a whole number, or all"),
        ("train", {"device": "cuda:99"}, "leave --device out"),
        ("train", {"device": "gpu"}, "leave --device out"),
        ("train", {"device": "meta"}, "leave --device out"),
        ("train", {"device": "$'cuda:99'"}, "leave --device out"),
        ("train", {"train#trainer#device": "cuda:99"}, "leave --device out"),
        ("inference", {"sampler#device": "cuda:99"}, "leave --device out"),
    ],
)
def test_values_of_another_kind_are_refused(name, config, wrong, words, monkeypatch):
    with pytest.raises(InputError, match="allowed") as error:
        check_values(workflow(name, monkeypatch, config, **wrong))
    assert words in str(error.value)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow asks SQLAlchemy for what it will not keep
@pytest.mark.parametrize("uri, words", [
    ("/tmp/runs", "sqlite:////tmp/runs/mlruns.db"), ("mlruns", "/mlruns/mlruns.db"), ("sqlite://x", "can keep runs"),
    ("sqlite:////dev/null/x.db", "can keep runs"), ("ftp://h/x", "can keep runs"), ("nonsense://x", "can keep runs"),
    ("http://127.0.0.1:1", "of a server that runs"), (7, "can keep runs"),
])  # fmt: skip
@pytest.mark.parametrize("name, config", [
    ("hvae", "train"), ("hvae", "inference"), ("segmentation", "train"), ("segmentation", "inference"),
])  # fmt: skip
def test_where_no_runs_can_be_kept_is_refused(name, config, uri, words, monkeypatch, tmp_path):
    pytest.importorskip("mlflow", reason="the extra `tracking` is not installed")
    given = {"tracking": "mlflow", "bundle_root": str(tmp_path), "tracking_uri": uri}
    with pytest.raises(InputError, match="tracking_uri") as error:
        check_values(workflow(name, monkeypatch, config, **given))
    assert words in str(error.value) and len(str(error.value).splitlines()) == 1
    with pytest.raises(InputError, match="write --tracking mlflow"):
        StrictWorkflow(f"configs/{config}.json", tracking="mlflw", logging_file=False)


@pytest.mark.parametrize("name", GENERATORS)
def test_values_that_can_be_used_are_taken(name, monkeypatch, tmp_path):
    given = {"amp": True, "fold": "all", "learning_rate": 1, "bundle_root": tmp_path, "device": "cpu", "plans": "p"}
    made = workflow(name, monkeypatch, **given)
    check_values(made)
    refuse_unknown_keys(made)
    assert made.parser.get_parsed_content("autocast") == "auto"
    assert workflow(name, monkeypatch, amp=False).parser.get_parsed_content("autocast") is None
    assert workflow(name, monkeypatch, "inference", amp=True).parser.get_parsed_content("autocast") == "auto"
    check_device(torch.device("cpu"))


@pytest.mark.parametrize("name", [*GENERATORS, "segmentation"])
def test_lists_of_files_are_refused_where_nothing_reads_them(name, monkeypatch):
    files = [{"image": "a.nii.gz", "label": "b.nii.gz"}]
    made = workflow(name, monkeypatch)
    check_values(made)
    made.parser["train#dataset#data"] = files
    if name == "segmentation":
        return check_values(made)
    with pytest.raises(InputError, match="takes lists of files"):
        check_values(made)


def of_files(name: str, monkeypatch, folder, **content) -> ConfigWorkflow:
    """A training with a config file of one's own."""
    monkeypatch.chdir(bundle(name))
    (folder / "mine.json").write_text(json.dumps(content))
    made = ConfigWorkflow(["configs/train.json", str(folder / "mine.json")], logging_file=False)
    made.initialize()
    return made


@pytest.mark.parametrize("name", [*GENERATORS, "segmentation"])
@pytest.mark.parametrize("place, value, words", [
    ("train#handlers", [], "one that holds"), ("train#handlers", [{"_target_": "StatsHandler"}], "one that holds"),
    ("train::handlers", [], "one that holds"), ("train#update", {}, "one that holds"),
    ("train#optimizer", {"lr": 1.0}, "one that holds"), ("validate#evaluator", 3, "one that holds"),
    ("train#optimizer#lr", "fast", "a number, such as"), ("train", {}, "one that holds"),
])  # fmt: skip
def test_sections_and_lists_of_components_keep_what_a_training_needs(name, place, value, words, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle(name))
    if place != "train":  # names of one part are seen in the whole configuration alone
        with pytest.raises(InputError, match=words):
            check_overrides({place: value}, "configs/train.json")
    with pytest.raises(InputError, match=words):
        check_values(workflow(name, monkeypatch, **{place: value}))
    with pytest.raises(InputError, match=words):
        check_values(of_files(name, monkeypatch, tmp_path, **{place: value}))


@pytest.mark.parametrize("name", [*GENERATORS, "segmentation"])
def test_parts_may_be_added_replaced_and_left_out_where_nothing_needs_them(name, monkeypatch, tmp_path):
    own = json.loads((bundle(name) / "configs/train.json").read_text())
    sgd = {"_target_": "torch.optim.SGD", "params": "$@network_def.parameters()", "lr": 0.1, "nesterov": True}
    validate = {key: value for key, value in own["validate"].items() if key != "key_metric"}
    validate["evaluator"] = {key: value for key, value in validate["evaluator"].items() if key != "key_val_metric"}
    validate["handlers"] = [*validate["handlers"], {"_target_": "StatsHandler"}]
    for content in (
        {"train#handlers": [*own["train"]["handlers"], {"_target_": "StatsHandler"}]},
        {"+train#handlers": [{"_target_": "StatsHandler"}]}, {"train#optimizer": sgd}, {"validate": validate},
    ):  # fmt: skip
        check_values(of_files(name, monkeypatch, tmp_path, **content))
        check_overrides(content, "configs/train.json")
    with pytest.raises(InputError, match="--evaluator 3|--handlers"):  # predictions of random weights
        check_values(workflow(name, monkeypatch, "inference", handlers=[], evaluator=3))


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_every_file_of_a_bundle_is_taken_beside_its_training(folder, monkeypatch):
    monkeypatch.chdir(folder)
    for file in sorted((folder / "configs").glob("*.json")):
        if file.stem not in ("metadata", "train"):
            made = ConfigWorkflow(["configs/train.json", f"configs/{file.name}"], logging_file=False)
            check_values(made)


@pytest.mark.parametrize("config, given", [
    ("train", {"schedule": "steps", "steps": [[0, 0.5], [10, 0.25]]}),
    ("inference", {"handlers#0#_disabled_": True, "network_def": "$torch.jit.load('models/model.ts')"}),
])  # fmt: skip
def test_what_the_docs_of_the_segmenter_say_is_taken(config, given, monkeypatch):
    check_overrides(given, f"{bundle('segmentation')}/configs/{config}.json")
    check_values(workflow("segmentation", monkeypatch, config, **given))


@pytest.mark.parametrize("where", ["$lambda storage, place: storage", {"cuda:0": "cpu"}, "cpu"])
def test_weights_may_be_mapped_as_torch_takes_it(where, monkeypatch):
    check_values(workflow("segmentation", monkeypatch, "inference", **{"handlers#0#map_location": where}))
    with pytest.raises(InputError, match="leave --device out"):
        check_values(workflow("segmentation", monkeypatch, "inference", **{"handlers#0#map_location": "cuda:99"}))


def test_why_a_device_cannot_be_used_is_said(monkeypatch):
    def full(*shape, device):
        raise RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors might")

    monkeypatch.setattr(torch, "zeros", full)
    with pytest.raises(InputError, match=r"device cuda:0 \(CUDA error: all CUDA-capable devices are busy or unavai"):
        check_device("cuda:0")


def test_the_nearest_name_is_found_by_letters_words_or_initials(monkeypatch):
    known = set(json.loads((bundle("ldm") / "configs/train.json").read_text()))
    pairs = {"max_epoch": "max_epochs", "epochs": "max_epochs", "lr": "learning_rate", "batch": "batch_size"}
    assert {name: nearest(name, known) for name in pairs} == pairs
    assert nearest("epochs", ["num_epochs", "num_samples"]) == "num_epochs" and nearest("xyz", known) is None


@pytest.mark.parametrize("own", ["own.yaml", "own.json"])
@pytest.mark.parametrize("first", [False, True])
def test_config_files_of_ones_own_may_lie_anywhere(own, first, monkeypatch, tmp_path):
    monkeypatch.chdir(bundle("hvae"))
    files = ["configs/train.json", str(tmp_path / own)][:: -1 if first else 1]

    def made(**content) -> ConfigWorkflow:
        (tmp_path / own).write_text(json.dumps(content))
        workflow = ConfigWorkflow(files, logging_file=False)
        workflow.initialize()
        return workflow

    found = made(max_epochs=2, mine=3, **({} if first else {"grid_interval": "@mine"}))
    assert found.parser["max_epochs"] == (60 if first else 2)  # what a later file says counts
    check_values(found)
    if not first:
        refuse_unknown_keys(found)
        handlers = made(**{"+train#handlers": [{"_target_": "StatsHandler", "iteration_log": False}]})
        assert len(handlers.parser["train#handlers"]) == 2
    with pytest.raises(InputError, match="did you mean max_epochs"):
        refuse_unknown_keys(made(max_epoch=2))


def test_errors_are_told_in_words():
    def raised(error):
        try:
            try:
                raise error
            except BaseException as inner:
                raise RuntimeError("wrapped") from inner
        except RuntimeError as outer:
            return told(outer)

    assert "the same command goes on" in raised(KeyboardInterrupt())
    assert "No space left on device (/a)" in raised(OSError(28, "No space left on device", "/a"))
    error = InputError("got\n  more", "allowed", "remedy")
    assert str(error) == "got more; allowed: allowed; remedy: remedy"
    error.args = (f"arm 1: {error}",)
    passed_on = pickle.loads(pickle.dumps(error))  # as from a worker process
    assert (type(passed_on), str(passed_on), passed_on.got) == (InputError, str(error), "got\n  more")
    assert "name another place" in raised(NotADirectoryError(20, "Not a directory", "/a/b"))
    assert "smaller batch" in raised(MemoryError()) and "smaller batch" in raised(ValueError("iterator is too large"))
    assert raised(KeyError("a fault of the program")) is None and raised(FileNotFoundError(2, "gone", "/a")) is None
    assert raised(InputError("got", "allowed", "remedy")) == "got; allowed: allowed; remedy: remedy"


@pytest.mark.slow
def test_what_a_user_meets(dataset, tmp_path):
    """Own files in both orders, a refused resume, divergence, Ctrl-C: one error, no traceback."""

    def words(*files, root=tmp_path, **settings):
        given = {"bundle_root": root, "dataset_dir": dataset, **TINY, **settings}
        flags = [word for key, value in given.items() for word in (f"--{key}", str(value))]
        return ["-m", "monai.bundle", "run", "--config_file", str(list(files)), *flags]

    (tmp_path / "own.yaml").write_text("max_epochs: 1\nlearning_rate: 0.002\n")
    folder, train, own = bundle("hvae"), "configs/train.json", str(tmp_path / "own.yaml")
    done = python(*words(train, own, **NESTED), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    record = json.loads((tmp_path / "models/provenance.json").read_text())
    assert record["training"]["learning_rate"] == 0.01 and record["training"]["batch_size"] == 3
    assert record["bundle"]["name"] == "hvae" and record["training"]["epochs"] == 1
    other = python(*words(own, train, max_epochs=2), cwd=folder)
    assert other.returncode != 0 and "train#optimizer#lr 0.01 (now 0.001)" in other.stderr
    diverged = python(*words(train, root=tmp_path / "wild", learning_rate=1e30, max_epochs=2), cwd=folder)
    assert diverged.returncode != 0 and "lower learning_rate" in diverged.stderr
    process = start(*words(train, root=tmp_path / "long", max_epochs=10000), cwd=folder, output=tmp_path)
    wait_until((tmp_path / "long/models/checkpoint.pt").is_file, process)
    process.send_signal(signal.SIGINT)
    assert process.wait() != 0
    interrupted = (tmp_path / "stderr").read_text()
    assert "the same command goes on" in interrupted
    for said in (other.stderr, diverged.stderr, interrupted):
        assert "Traceback" not in said and said.count("error: ") == 1
