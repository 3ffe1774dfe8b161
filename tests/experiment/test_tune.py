"""`synthaug tune`: it looks at no other patient, keeps to its hours, chooses by the lower bound, writes its choice."""

import json
import pickle

import numpy as np
import pytest
from nnunet_plugin.preprocessed import read_json
from scipy.ndimage import gaussian_filter

from scripts.data.cases import open_cases
from scripts.data.training_set import load_training_set
from scripts.experiment import tune as module
from scripts.experiment.dataset import make_view
from scripts.experiment.protocol import read_protocol
from scripts.experiment.schedule import DONE, FAILED
from scripts.experiment.tune import REAL, TRANSPLANTS, decide, most_arms, tune
from scripts.experiment.work import run_cell
from scripts.metrics.comparison import compare_paired, holm
from scripts.runtime.errors import InputError
from scripts.sampling.copy_paste import write_copy_paste
from scripts.segmentation.mixing import load_pool

from ..data.toy import body_case, write_preprocessed
from .fake import write_result
from .test_schedule import FakeExecutor, FakeJob

POOLS = ["pool 25 %, falling", "pool 25 %", "pool 50 %, falling", "pool 50 %"]
IN_HERE = ("source/", "data/", "pool/")  # cells that are done in this process; trainings are made up
SECONDS = 2.0  # that a made-up cell says it took


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("scripts.experiment.schedule.POLL_SECONDS", 0)


def organs(index, channels=1):
    """Bodies of different tissue, with a ball of label 1 of one size."""
    image, label = body_case(index, channels)
    folds = gaussian_filter(np.random.default_rng(index).normal(size=label.shape), (1, 2, 2))
    return image + (60 * folds / folds.std() * (image > 50)).astype(np.float32), np.minimum(label, 1)


def lesions(index, channels=1):
    """The same with lesions of all sizes."""
    image, label = organs(index, channels)
    return image, label if index % 2 else (body_case(index)[1] == 2).astype(np.int16)


def preprocessed(root, monkeypatch, case, cases=12):
    folder = write_preprocessed(root / "preprocessed" / "Dataset901_Toy", cases, case=case,
                                labels={"background": 0, "tumour": 1})  # fmt: skip
    shape = case(0)[1].shape
    properties = {"spacing": [4.0, 1.5, 1.0], "shape_after_cropping_and_before_resampling": shape}
    for path in folder.rglob("*.pkl"):
        path.write_bytes(pickle.dumps({"class_locations": {}, **properties}))
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"] |= {"architecture": {}, "preprocessor_name": "DefaultPreprocessor"}
    plans |= {"foreground_intensity_properties_per_channel": {"0": {"mean": 100.0}}, "transpose_backward": [0, 1, 2]}
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans | {"image_reader_writer": "SimpleITKIO"}))
    (folder / "gt_segmentations").mkdir()
    monkeypatch.setenv("nnUNet_preprocessed", str(root / "preprocessed"))
    return folder


class Made(FakeExecutor):
    """Real data and pools; Dice of the arms as `gains` say, patients differing."""

    def __init__(self, gains=None, outcomes=None):
        super().__init__(1, outcomes)
        self.gains = gains or {}

    def start(self, run, cell, slot):
        outcome = next((o for word, o in self.outcomes.items() if word in cell.id), DONE)
        if outcome == DONE and cell.id.startswith(IN_HERE):
            outcome = run_cell(run.path, cell.id)
            self.jobs.append(MadeJob(run, cell, outcome, None))
        else:
            self.jobs.append(MadeJob(run, cell, outcome, self.values(run, cell) if outcome == DONE else None))
        return self.jobs[-1]

    def values(self, run, cell):
        if cell.kind != "evaluate":
            return {"steps": 20, "num_synthetic": 4, "share": 0.5, "plateau": {"0.6": 0.5, "0.8": 0.6, "1.0": 0.7}}
        s = cell.settings
        cases = {}
        for patient in run.needed(cell, "data")["folds"][s["fold"]]["val"]:
            rng = np.random.default_rng([int(patient[-3:]), s["fold"]])
            dice = 0.5 + rng.uniform(-0.1, 0.1) + self.gains.get(s["arm"], 0.0) * rng.uniform(0.5, 1.5)
            cases[patient] = {"tumour": {"dice": dice, "iou": dice, "hd95": 1.0, "nsd": dice}}
        return {"split": "validation", "cases": cases, "summary": {}}


class MadeJob(FakeJob):
    def __init__(self, run, cell, outcome, values):
        super().__init__(run, cell, outcome)
        self.values = values

    def status(self):
        if self.values is not None:
            write_result(self.run, self.cell.id, self.values)
        return self.outcome


def test_the_highest_lower_bound_of_the_arms_that_did_better_is_chosen():
    a, b = ({"interval": interval, "conclusion": "higher"} for interval in ([0.001, 0.1], [0.01, 0.02]))
    c = {"interval": [-0.01, 0.3], "conclusion": "undecided"}
    assert decide({"a": a, "b": b, "c": c}) == "b"
    worse = {"interval": [-0.2, -0.1], "conclusion": "lower"}
    assert decide({"c": c}) == decide({"d": worse}) == decide({}) == REAL
    assert decide({"e": {"interval": None, "conclusion": "too few"}}) == REAL


def test_a_bound_above_zero_alone_is_not_enough():
    """Of six patients the interval is too short: Wilcoxon's p is 0.06 here."""
    gains = [0.20, 0.15, 0.10, 0.08, 0.05, -0.01]
    real = {0: {f"p{k}": 0.5 for k in range(6)}}
    found = compare_paired(real, {0: {f"p{k}": 0.5 + gain for k, gain in enumerate(gains)}})
    assert found["interval"][0] > 0 and decide({"arm": found}) == REAL


@pytest.mark.parametrize("patients", [6, 7, 8, 16])
def test_an_arm_that_gains_in_every_patient_is_chosen_among_as_many_arms_as_are_tried_and_no_more(patients):
    real = {0: {f"p{k}": 0.5 for k in range(patients)}}
    p = compare_paired(real, {0: {f"p{k}": 0.6 + 0.01 * k for k in range(patients)}})["p"]
    most = most_arms(patients)
    assert holm([p] + [1.0] * (most - 1))[0] < 0.05 <= holm([p] + [1.0] * most)[0]
    assert most_arms(2000) > 1000


@pytest.mark.slow
def test_more_arms_than_the_patients_can_tell_apart_are_left_out(tmp_path, monkeypatch):
    preprocessed(tmp_path, monkeypatch, lesions, cases=8)  # six of them train
    executor = Made({TRANSPLANTS: 0.05})
    page, record = run_tune(tmp_path, monkeypatch, executor)
    assert len(record["training_cases"]) == 6 and record["chosen"] == TRANSPLANTS
    assert all("of 6 training patients p by Holm stays above 0.05" in record["arms"][arm]["why"] for arm in POOLS)
    assert not any("pool" in cell for cell in executor.started) and "more than 1 of these arms" in page


@pytest.mark.parametrize("fold", [0, 1, "all"])
def test_inner_folds_hold_the_training_patients_of_the_fold_once_and_nobody_else(fold, tmp_path):
    source = write_preprocessed(tmp_path / "Dataset901_Toy", cases=10)
    outer = make_view(source, tmp_path / "outer", "all", "nnUNetPlans", "2d")[1]
    inner = {"fold": fold, "folds": 3}
    view, folds = make_view(source, tmp_path / "inner", "all", "nnUNetPlans", "2d", inner)
    known = sorted({case for split in outer for case in split["val"]} if fold == "all" else outer[fold]["train"])
    assert len(folds) == 3 and sorted(case for split in folds for case in split["val"]) == known
    assert all(sorted(split["train"] + split["val"]) == known for split in folds)
    assert json.loads((view / "splits_final.json").read_text()) == folds
    few = make_view(source, tmp_path / "few", 3, "nnUNetPlans", "2d", inner)[1]
    assert all(set(a["train"]) < set(b["train"]) and len(a["train"]) == 3 for a, b in zip(few, folds, strict=True))


def test_a_pool_of_an_inner_fold_trains_that_fold_alone(tmp_path):
    """The rule of leaks holds inside: its generator saw two thirds of the patients, whom no other fold may validate."""
    source = write_preprocessed(tmp_path / "Dataset901_Toy", cases=12, case=organs)
    plans = json.loads((source / "nnUNetPlans.json").read_text())
    filled = {"foreground_intensity_properties_per_channel": {"0": {"mean": 100.0}}}
    (source / "nnUNetPlans.json").write_text(json.dumps(plans | filled))
    view, _ = make_view(source, tmp_path / "view", "all", "nnUNetPlans", "2d", {"fold": 0, "folds": 3})
    pool = write_copy_paste(view, tmp_path / "pool", 3, fold=0)
    cases = open_cases(view, 0)
    assert len(load_pool(pool, cases, load_training_set(cases, (20, 18))).items) == 3
    other = open_cases(view, 1)
    with pytest.raises(InputError, match="leak"):
        load_pool(pool, other, load_training_set(other, (20, 18)))


@pytest.mark.parametrize("over, words", [
    ({"inner": {"fold": 0, "fodls": 3}}, "did you mean folds"),
    ({"inner": {"fold": 0, "folds": 2}}, "0 to 1"),
    ({"inner": {"fold": "some", "folds": 3}}, "such as"),
    ({"evaluate": ["test"]}, "validation"),
])  # fmt: skip
def test_wrong_inner_folds_are_refused(over, words):
    with pytest.raises(InputError, match=words):
        read_protocol("tune", "smoke", over)


def run_tune(tmp_path, monkeypatch, executor, **options):
    monkeypatch.setattr("scripts.experiment.experiment._executor", lambda *_: executor)
    page = tune("901", output_dir=str(tmp_path / "run"), preset="smoke", **options)
    return page.read_text(), json.loads((tmp_path / "run/tune.json").read_text())


@pytest.mark.slow
def test_transplants_that_help_are_written_as_a_configuration(tmp_path, monkeypatch):
    data = preprocessed(tmp_path, monkeypatch, lesions)
    page, record = run_tune(tmp_path, monkeypatch, Made({TRANSPLANTS: 0.05}), num_epochs=50)
    assert record["chosen"] == TRANSPLANTS and list(record["arms"]) == [TRANSPLANTS, *POOLS]
    plans = read_json(data / "nnUNetPlansSynthAug.json", "")
    assert plans["configurations"]["2d_tuned"]["synthaug"]["training"] == {"num_epochs": 50}
    block = plans["configurations"]["2d_tuned"]["synthaug"]["transplant"]
    assert (block["share"], block["decoys"], block["finish_epochs"]) == (0.3, 0.25, 10)
    labels = "_".join(map(str, block["labels"]))
    assert (data / f"synthaug/transplants_nnUNetPlans_2d_labels_{labels}/fold_0").is_dir()
    assert record["train_command"] in page and "of Dice over real cases only, Holm p" in page and "RISING" not in page
    assert "not trained to a plateau" in page  # the made-up reference still rises
    again = Made({TRANSPLANTS: 0.05})
    assert run_tune(tmp_path, monkeypatch, again, num_epochs=50)[1] == record and not again.started


@pytest.mark.slow
def test_a_pool_that_helps_is_made_anew_of_all_training_patients(tmp_path, monkeypatch):
    data = preprocessed(tmp_path, monkeypatch, organs)
    executor = Made({POOLS[0]: 0.03, POOLS[1]: 0.01})
    page, record = run_tune(tmp_path, monkeypatch, executor, num_epochs=100, name="2d_best")
    assert record["chosen"] == POOLS[0]
    assert "labels that look like organs" in record["arms"][TRANSPLANTS]["why"]
    assert not any("transplants" in cell for cell in executor.started)
    block = read_json(data / "nnUNetPlansSynthAug.json", "")["configurations"]["2d_best"]["synthaug"]
    assert block["pool"] == "2d_best" and block["finish_epochs"] == 35  # falling to 0 by 65 %
    assert (block["schedule"], block["share"], block["share_end"]) == ("linear", 0.25, 0.0)
    pool = read_json(tmp_path / "run/pool/cells/pool/pool_real-all_fold0/pool/pool.json", "")
    assert sorted(case["id"] for case in pool["provenance"]["cases"]) == record["training_cases"]
    assert "left out" in page and "2d_best" in page


@pytest.mark.slow
def test_real_only_where_nothing_helps(tmp_path, monkeypatch):
    data = preprocessed(tmp_path, monkeypatch, organs)
    page, record = run_tune(tmp_path, monkeypatch, Made(dict.fromkeys(POOLS, -0.02)))
    assert record["chosen"] == REAL and record["written"] is None
    assert record["train_command"] == "nnUNetv2_train Dataset901_Toy 2d 0 -p nnUNetPlans"
    assert not (data / "nnUNetPlansSynthAug.json").exists() and "no proof that it does not help" in page


@pytest.mark.slow
def test_it_keeps_to_its_hours_and_goes_on_with_more(tmp_path, monkeypatch):
    preprocessed(tmp_path, monkeypatch, lesions)
    arm = 6 * SECONDS  # three trainings, three evaluations
    first = Made({TRANSPLANTS: 0.05})
    # Nothing is known of the first arm; of the second that it takes `arm` seconds, of which there are fewer.
    page, record = run_tune(tmp_path, monkeypatch, first, hours=0.9 * arm / 3600)
    assert not any("transplants" in cell or "pool" in cell for cell in first.started)
    assert all("does not fit into" in one["why"] for one in record["arms"].values()) and record["chosen"] == REAL
    assert "no arm could be compared" in page
    second = Made({TRANSPLANTS: 0.05})
    page, record = run_tune(tmp_path, monkeypatch, second, hours=1.0)
    assert record["chosen"] == TRANSPLANTS and not any("real-only" in cell for cell in second.started)


@pytest.mark.slow
def test_what_fails_is_left_out_and_named(tmp_path, monkeypatch):
    preprocessed(tmp_path, monkeypatch, lesions)
    executor = Made({POOLS[0]: 0.05}, {"train/U-Net_transplants": FAILED, "pool/pool_real-all_fold1": FAILED})
    _, record = run_tune(tmp_path, monkeypatch, executor)
    assert record["chosen"] == REAL
    assert "train/U-Net_transplants" in record["arms"][TRANSPLANTS]["why"]
    assert all("pool/pool_real-all_fold1 failed" in record["arms"][arm]["why"] for arm in POOLS)
    assert executor.started.count("pool/pool_real-all_fold1") == 1
    with pytest.raises(InputError, match="cells failed"):  # without real only there is nothing to say
        (tmp_path / "other").mkdir()
        run_tune(tmp_path / "other", monkeypatch, Made(outcomes={"train/U-Net_real-only": FAILED}))


@pytest.mark.parametrize("options, words", [
    ({"configuration": "3d_fullres"}, "2d"),
    ({"hours": 0.0}, "--hours"),
    ({"fold": 9}, "fold 9"),
    ({"bundle": "lmd"}, "bundle"),
    ({"preset": "gpus"}, "did you mean gpu"),
])  # fmt: skip
def test_bad_options_are_refused_before_any_work(options, words, tmp_path, monkeypatch):
    preprocessed(tmp_path, monkeypatch, organs)
    with pytest.raises(InputError, match=words):
        tune("901", output_dir=str(tmp_path / "run"), **{"preset": "cpu", **options})
    assert not (tmp_path / "run").exists()
    few = tmp_path / "few"
    preprocessed(few, monkeypatch, organs, cases=6)
    with pytest.raises(InputError, match="4 training cases"):
        module.tune("901", output_dir=str(tmp_path / "run"))
