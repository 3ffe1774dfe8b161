"""The queue for a GPU, on a CPU: works from plain arrays without nnU-Net, stops in time, goes on, says what failed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.data.prepared import write_prepared

from ..data.toy import write_preprocessed

ROOT = Path(__file__).resolve().parents[2]
ABSENT = ("nnunetv2", "blosc2", "SimpleITK", "batchgenerators", "batchgeneratorsv2")


@pytest.fixture
def jobs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks/gpu"))
    import gpu_jobs
    import work_off

    yield gpu_jobs, work_off
    for name in ("gpu_jobs", "work_off"):
        sys.modules.pop(name, None)


@pytest.mark.slow
def test_a_queue_stops_in_time_goes_on_and_tries_twice(jobs, tmp_path):
    gpu_jobs, work_off = jobs
    out, mark = tmp_path / "out", "import pathlib, sys, time; p = pathlib.Path(sys.argv[1]) / 'mark'\n"

    def job(name, code, data=None):
        return gpu_jobs.Job(name, ["-c", mark + code, "{out}"], data)

    first, broken = job("first", "p.touch()"), job("broken", "sys.exit('error: no')")
    elsewhere, last = job("elsewhere", "", "Dataset999_None"), job("last", "")
    long = job("long", "if not p.exists():\n p.touch(); time.sleep(600)")
    states = work_off.work_off([first, broken, elsewhere], tmp_path, out, 600)
    assert states["first"] == "done" and states["broken"] == "failed: error: no" and "Dataset999" in states["elsewhere"]
    stamp = (out / "first/mark").stat().st_mtime_ns
    states = work_off.work_off([first, long, last], tmp_path, out, 20)
    assert states["long"].startswith("stopped") and states["last"] == "waits" and (out / "long/mark").is_file()
    states = work_off.work_off([first, broken, long, last], tmp_path, out, 600)
    assert states["long"] == states["last"] == "done" and (out / "first/mark").stat().st_mtime_ns == stamp
    assert work_off.work_off([broken], tmp_path, out, 600)["broken"] == "failed"  # not a third time
    assert json.loads((out / "broken/failure.json").read_text())["tries"] == 2


@pytest.mark.slow
def test_jobs_that_run_at_once_see_each_other(jobs, tmp_path):
    gpu_jobs, work_off = jobs
    meet = ("import pathlib, sys, time; p = pathlib.Path(sys.argv[1]); (p / 'here').touch()\n"
            "while not (p.parent / sys.argv[2] / 'here').is_file(): time.sleep(0.05)")  # fmt: skip
    pair = [gpu_jobs.Job(one, ["-c", meet, "{out}", other]) for one, other in (("a", "b"), ("b", "a"))]
    assert set(work_off.work_off(pair, tmp_path, tmp_path / "out", 60, at_once=2).values()) == {"done"}


@pytest.mark.slow
def test_an_interrupt_ends_what_runs(tmp_path):
    sleeper = "import os, sys, time; open(f'{sys.argv[1]}/{os.getpid()}', 'w').close(); time.sleep(600)"
    code = (
        # What a shell starts in the background ignores interrupts, and so do its children, such as this test's.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path; from gpu_jobs import Job; from work_off import work_off\n"
        f"jobs = [Job(name, ['-c', {sleeper!r}, '{{out}}']) for name in 'abc']\n"
        f"work_off(jobs, Path(), Path({str(tmp_path)!r}), 600, at_once=2)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT / "benchmarks/gpu", stderr=subprocess.DEVNULL)
    while len(running := [path for path in tmp_path.glob("*/*") if path.name.isdigit()]) < 2:
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(60) != 0
    assert not any(Path("/proc", path.name).exists() for path in running)  # ended, and reaped
    states = json.loads((tmp_path / "queue.json").read_text())
    assert states == dict.fromkeys("ab", "stopped; goes on next time") and not (tmp_path / "c").exists()


def test_every_job_names_files_that_are_there(jobs, tmp_path):
    gpu_jobs, _ = jobs
    found = gpu_jobs.queue(tmp_path)
    assert len({job.name for job in found}) == len(found) > 20 and found[0].name == "check_dhvae"
    for job in found:
        assert all(Path(word).is_file() for word in job.words if word.endswith(".py"))
        if "curve" in job.words:
            configs = ROOT / "bundles" / job.words[job.words.index("curve") + 1] / "configs"
            overlays = json.loads(job.words[job.words.index("--overlays") + 1])
            assert all((configs / name).is_file() for name in overlays)


@pytest.mark.slow
def test_tiny_jobs_end_from_a_folder_that_holds_only_arrays(tmp_path):
    source = write_preprocessed(tmp_path / "source/Dataset502_STSPET", cases=9)
    write_prepared(str(source), str(tmp_path / "prepared"))
    guard = tmp_path / "guard"
    guard.mkdir()
    (guard / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    python = tmp_path / "python"  # one that has none of these
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{guard}:$PYTHONPATH" exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "MORE": "--tiny", "OMP_NUM_THREADS": "1"}
    given = ["60", str(tmp_path / "prepared"), str(tmp_path / "out")]
    done = subprocess.run(
        ["sh", str(ROOT / "benchmarks/gpu/run.sh"), *given], env=environment, capture_output=True, text=True
    )
    logs = {path.parent.name: path.read_text()[-2000:] for path in (tmp_path / "out").rglob("log.txt")}
    assert done.returncode == 0, (done.stdout, done.stderr[-2000:], logs)
    states = json.loads((tmp_path / "out/queue.json").read_text())
    assert states == dict.fromkeys(("check_hvae", "curve_hvae_pet", "step_hvae"), "done")
    result = json.loads((tmp_path / "out/check_hvae/result.json").read_text())
    assert result["resumed_at_epoch"] == 2 and result["samples"] == 4
    assert result["relative_difference_to_the_cpu"]["device_float32"] == 0  # the device is the CPU
    assert (tmp_path / "out/curve_hvae_pet/curve.png").is_file()
