"""The command line: help, one clear error, nothing half-written."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scripts.chain import pipeline
from scripts.chain.pipeline import run_chain
from scripts.chain.settings import ChainSettings

from scripts.data.description import read_description
from scripts.experiment.record import read_dice
from scripts.runtime.errors import InputError

from ..data.toy import write_raw
from ..processes import python

ROOT = Path(__file__).resolve().parents[2]


def synthaug(*words: str) -> subprocess.CompletedProcess:
    return python("-m", "scripts", *words)


@pytest.fixture
def raw(tmp_path):
    folder = write_raw(tmp_path / "Dataset901_Toy")
    for name in ("images", "labels"):
        (folder / f"{name}Ts").mkdir()
        for path in sorted((folder / f"{name}Tr").iterdir())[:2]:
            (folder / f"{name}Ts" / path.name).write_bytes(path.read_bytes() + b"\0")  # another patient, to a hash
    return folder


@pytest.mark.parametrize(
    "words",
    [
        ["run", "{raw}", "{out}", "--num_sample", "3"],  # an unknown setting, noticed before any work
        ["phantom", "{out}", "--modality", "ct"],
        ["run", "{out}/nothing", "{out}"],
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_bad_words_change_nothing(raw, tmp_path, words):
    out = tmp_path / "out"
    done = synthaug(*(word.format(raw=raw, out=out) for word in words))
    assert done.returncode != 0
    assert "error" in done.stderr.lower() and "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"share": 1.5}, "share"),
        ({"share": 0}, "share"),
        ({"fold": 7}, "fold"),
        ({"bundle": "gan"}, "bundle"),
        ({"configuration": "3d"}, "3d_fullres"),
        ({"num_epochs": 0}, "num_epochs"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": (0, 0)}, "seeds"),
        ({"overlays": ("papers.json",)}, "overlays"),
        ({"generator": (("max_epoch", 3),)}, "generator"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(raw, tmp_path, wrong, words):
    with pytest.raises(InputError, match=words):
        run_chain(raw, tmp_path / "out", ChainSettings(**wrong), "")
    assert not (tmp_path / "out").exists()


def test_settings_of_a_started_run_cannot_change(raw, tmp_path, monkeypatch):
    """A stage that fails says where its output is; the same command goes on; other settings are refused."""
    out, calls = tmp_path / "out", []

    def stage(self, title, command, done, **_):
        calls.append(title)
        if len(calls) == 3:
            raise InputError("stopped", "", "")

    monkeypatch.setattr(pipeline._Chain, "_stage", stage)
    for _ in range(2):
        with pytest.raises(InputError, match="stopped"):
            run_chain(raw, out, ChainSettings(), "")
        assert len(calls) == 3 and "generator" in calls[2]
        calls.clear()
    with pytest.raises(InputError, match=r"num_samples 400 \(now 5\)"):
        run_chain(raw, out, ChainSettings(num_samples=5), "")


def test_failed_command_shows_its_last_words(raw, tmp_path):
    chain = pipeline._Chain(raw, tmp_path / "out", ChainSettings(), "")
    (chain.out / "logs").mkdir()
    words = [sys.executable, "-c", "import sys; print('epoch 1/2: x'); sys.stdout.write('the reason'); sys.exit(3)"]
    with pytest.raises(InputError, match="status 3:[^$]*the reason"):
        chain._stage("toy", words, done=tmp_path / "never")
    assert "the reason" in (chain.out / "logs/toy.log").read_text()
    words = [sys.executable, "-c", "print('error: got x'); print('  remedy: y'); print('noise\\n' * 20); exit(1)"]
    with pytest.raises(InputError, match="error: got x\n.*remedy: y"):  # and not the noise behind it
        chain._stage("clear", words, done=tmp_path / "never")
    done = tmp_path / "done"
    chain._stage("good", [sys.executable, "-c", "pass"], done=done, then=done.touch)
    chain._stage("good", ["/no/such/command"], done=done)  # finished before: not run again
    assert "good" in chain._timings()


def test_dice_is_read_with_regions_and_empty_cases(tmp_path):
    description = read_description(write_raw(tmp_path / "Dataset902_Toy", regions=True))
    metrics = {"(1, 2)": {"Dice": 0.5}, "(2,)": {"Dice": float("nan")}}
    case = {"reference_file": "/x/toy_000.nii.gz", "metrics": metrics}
    (tmp_path / "summary.json").write_text(json.dumps({"metric_per_case": [case]}))
    assert read_dice(tmp_path / "summary.json", description) == {"toy_000": {"whole": 0.5, "core": None}}


def test_help_and_paths():
    assert "add-pool" in synthaug("--help").stdout + synthaug("--help").stderr
    folder = Path(synthaug("ext-path").stdout.strip())
    assert (folder / "nnUNetTrainerSynthAug.py").is_file()
    assert (Path(synthaug("bundle-path", "dhvae").stdout.strip()) / "configs/train.json").is_file()
    assert "allowed" in synthaug("bundle-path", "gan").stderr


def test_phantom_command_is_reproducible(tmp_path):
    for name in ("a", "b"):
        done = synthaug(
            "phantom", str(tmp_path / name / "Dataset802_P"), "--cases", "2", "--seed", "4", "--shape", "[48,48,12]"
        )
        assert done.returncode == 0, done.stderr
    files = [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("a", "b")]
    assert len(files[0]) == 7 and [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_chain_refuses_what_it_cannot_go_on_with(raw, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run_chain(raw, tmp_path / "full", ChainSettings(), "")
    same = raw / "imagesTr/toy_004_0000.nii.gz"
    (raw / "imagesTs/toy_001_0000.nii.gz").write_bytes(same.read_bytes())
    with pytest.raises(InputError, match="toy_004"):  # a patient in both sets
        run_chain(raw, tmp_path / "out", ChainSettings(), "")
    (raw / "imagesTs/toy_001_0000.nii.gz").write_bytes(same.read_bytes() + b"\0")
    (raw / "imagesTs/toy_000_0000.nii.gz").unlink()
    with pytest.raises(InputError, match="toy_000"):
        run_chain(raw, tmp_path / "out", ChainSettings(), "")
    with pytest.raises(InputError, match="DatasetNNN"):
        run_chain(raw.rename(tmp_path / "Toy"), tmp_path / "out", ChainSettings(), "")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def test_own_folds_are_taken_over(raw, tmp_path):
    """A data set that keeps the scans of a patient together says so in its splits_final.json."""
    folds = '[{"train": ["toy_000", "toy_001"], "val": ["toy_002", "toy_003"]}]'
    (raw / "splits_final.json").write_text(folds)
    chain = pipeline._Chain(raw, tmp_path / "out", ChainSettings(), "")
    chain._preprocessed()
    assert (chain.preprocessed_set / "splits_final.json").read_text() == folds
    assert (chain.preprocessed_set / "preprocessed.done").is_file()
