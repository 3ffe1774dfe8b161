"""Experiments as they are run: real processes, killed in the middle and gone on with, and through submitit."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from scripts.experiment.dataset import make_view
from scripts.experiment.experiment import prepare, run_experiment
from scripts.experiment.run_folder import RunFolder
from scripts.experiment.work import BUSY, run_cell
from scripts.runtime.errors import InputError

from ..data.toy import write_preprocessed, write_raw
from ..processes import python, start, wait_until
from .fake import write_protocol

ROOT = Path(__file__).resolve().parents[2]
POOL = """
num_synthetic: [4]
generators:
  pasted: {bundle: copy_paste, settings: {spatial_size: [20, 18]}}
"""
SEGMENTER = (
    POOL
    + """
arms:
  real only: {}
  pasted: {pool: pasted, share: added}
segmenters:
  U-Net:
    settings: {spatial_size: [32, 32], channels: [4, 4, 4, 4, 8], max_epochs: 1, iterations_per_epoch: 2, batch_size: 4}
"""
)


def command(protocol, folder, data, *words):
    return ["-m", "scripts", "experiment", str(protocol), "--output_dir", str(folder),
            "--dataset_dir", str(data), *words]  # fmt: skip


def processes_of(folder: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(folder) in words and "pytest" not in words:
            found.append(words)
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_killed_and_gone_on_with(tmp_path):
    """Nothing finished is done again, nothing is left running, and every number of the report is a cell's."""
    data, run_dir = write_raw(tmp_path / "Dataset901_Toy"), tmp_path / "run"
    words = command(write_protocol(tmp_path, SEGMENTER), run_dir, data)
    process = start(*words, output=tmp_path)
    training = run_dir / "cells/train/U-Net_real-only_n0_real-all_fold0_seed0"
    wait_until((training / "settings.json").is_file, process)
    process.send_signal(signal.SIGTERM)
    status = process.wait()
    said = (tmp_path / "stdout").read_text() + (tmp_path / "stderr").read_text()
    assert status == 1 and "Traceback" not in said, said
    assert not processes_of(run_dir)
    before = {path: path.stat().st_mtime_ns for path in run_dir.glob("cells/*/*/result.json")}
    assert 0 < len(before) < 7  # how far it came, beside what was waited for, depends on the machine
    assert f"interrupted after {len(before)} of 7 cells" in said, said
    done = python(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"7 cells, {len(before)} of them finished before" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    run = RunFolder(run_dir)
    values = {cell: run.result(cell)["values"] for cell in run.cells}
    steps = {value["steps"] for cell, value in values.items() if cell.startswith("train/")}
    assert steps == {2}  # every arm
    pasted = values["train/U-Net_pasted_n4_real-all_fold0_seed0"]
    assert pasted["num_synthetic"] == 4 and 0 < pasted["share"] < 0.5
    fold = values["data/real-all"]["folds"][0]
    for cell, value in values.items():
        if cell.startswith("evaluate/"):
            assert sorted(value["cases"]) == sorted(fold["val"])
            metrics = json.loads((run.folder(cell) / "metrics.json").read_text())
            assert metrics["cases"] == value["cases"]
    assert (run_dir / "report/report.html").is_file() and (run_dir / "report/arms.csv").is_file()
    assert not (data / "splits_final.json").exists()  # the user's folder stays as it was
    again = python(*words, "--raw_dir", data)
    assert again.returncode == 0 and "7 cells, 7 of them finished before" in again.stdout  # it decides no result


CHILD = """
import subprocess, sys, time
from scripts.experiment.parent import end_with_parent
end_with_parent(int(sys.argv[1]))
subprocess.Popen(["sleep", "600"])
print("up", flush=True)
time.sleep(600)
"""
PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], str(os.getpid())], start_new_session=True)
print(child.pid, flush=True)
child.wait()
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="looks for processes in /proc")
def test_cells_end_with_the_command_that_is_killed(tmp_path):
    """`kill -9` leaves it no time to end them: they notice, and end what they started."""
    words = [sys.executable, "-c", PARENT, CHILD]
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        cell = int(process.stdout.readline())
        assert process.stdout.readline() == "up\n"
        group = [int(path.parent.name) for path in Path("/proc").glob("[0-9]*/stat") if session_of(path) == cell]
        assert cell in group and len(group) == 2
        process.kill()
    while any(running(number) for number in group):  # pytest's own limit ends this if they do not
        time.sleep(0.1)


def session_of(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[3])
    except OSError:
        return 0


def running(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_submitit_runs_the_same_cells(tmp_path):
    pytest.importorskip("submitit")
    data = write_raw(tmp_path / "Dataset901_Toy")
    protocol = write_protocol(tmp_path, POOL)
    report = run_experiment(prepare(protocol, tmp_path / "run", dataset_dir=data, executor="local", processes=2))
    assert report.is_file()
    run = RunFolder(tmp_path / "run")
    assert all(run.result(cell) for cell in run.cells)
    assert "sampling" in run.log("pool/pasted_real-all_fold0").read_text()  # its output is in the cell's log
    with pytest.raises(InputError, match="cluster"):
        prepare(protocol, tmp_path / "run", dataset_dir=data, cluster={"timeout_min": 3})


def test_a_held_cell_is_left_alone(tmp_path):
    from filelock import FileLock

    from .fake import start

    run = start(tmp_path)
    place = run.folder("source/dataset")
    place.mkdir(parents=True)
    with FileLock(place / ".lock"):
        assert run_cell(run.path, "source/dataset") == BUSY
    assert not (place / "settings.json").exists()


@pytest.mark.parametrize("write", [write_raw, write_preprocessed])
def test_fewer_patients_are_a_part_of_more_and_validation_stays(write, tmp_path):
    source = write(tmp_path / "Dataset901_Toy", cases=10)
    views = {n: make_view(source, tmp_path / str(n), n, "nnUNetPlans", "2d") for n in (3, 5, "all")}
    for few, more in ((3, 5), (5, "all")):
        for a, b in zip(views[few][1], views[more][1], strict=True):
            assert set(a["train"]) < set(b["train"]) and a["val"] == b["val"]
            assert few == len(a["train"]) and not set(a["train"]) & set(a["val"])
    stored = json.loads((views[3][0] / "splits_final.json").read_text())
    assert stored == views[3][1]
    assert not (source / "splits_final.json").exists()
    with pytest.raises(InputError, match="at most 8"):
        make_view(source, tmp_path / "too_many", 9, "nnUNetPlans", "2d")
