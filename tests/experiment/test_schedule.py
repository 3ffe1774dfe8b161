"""The scheduler: order, what is not repeated, what goes on beside a failure, and the folder's settings."""

import json
import os
import time

import pytest
from tqdm import tqdm

from scripts.experiment.cells import Cell, plan_cells
from scripts.experiment.experiment import devices_of, prepare
from scripts.experiment.parent import timed
from scripts.experiment.progress import Progress, read_fraction
from scripts.experiment.run_folder import RunFolder, held
from scripts.experiment.schedule import BUSY, DONE, FAILED, Processes, Schedule
from scripts.report.experiment_results import read_results
from scripts.runtime.errors import InputError

from .fake import PROTOCOL, finish, settings, start, write_protocol, write_result


class FakeJob:
    """Ends at its second look, as the executor's plan says."""

    def __init__(self, run, cell, outcome):
        self.run, self.cell, self.outcome, self.looks = run, cell, outcome, 0
        self.stopped = False

    def status(self):
        self.looks += 1
        if self.looks < 2:
            return None
        if self.outcome == DONE:
            write_result(self.run, self.cell.id, {})
        if isinstance(self.outcome, BaseException):
            raise self.outcome
        return self.outcome

    def stop(self):
        self.stopped = True


class FakeExecutor:
    def __init__(self, slots=2, outcomes=None):
        self.slots, self.outcomes, self.jobs, self.most = slots, outcomes or {}, [], 0

    def start(self, run, cell, slot):
        for need in cell.needs.values():
            assert run.result(need) is not None, f"{cell.id} before {need}"
        outcome = next((o for word, o in self.outcomes.items() if word in cell.id), DONE)
        self.jobs.append(FakeJob(run, cell, outcome))
        self.most = max(self.most, sum(job.looks < 2 for job in self.jobs))
        return self.jobs[-1]

    @property
    def started(self):
        return [job.cell.id for job in self.jobs]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("scripts.experiment.schedule.POLL_SECONDS", 0)


@pytest.mark.parametrize("devices, gpus, visible, words", [
    ("cuda:9", 0, None, "no GPU"), (0, 0, None, "no GPU"), ("cpu", 0, None, "no GPU"), (9, 2, None, "of 0, 1"),
    ((0, 2), 2, None, "--devices 2"), ("cuda:0", 1, None, "numbers of GPUs"), (0, 2, "2,3", "of 2, 3"),
    (-1, 1, None, "--devices -1"), (True, 1, None, "--devices True"), (0, 0, "", "no GPU"), ([[0]], 1, None, "numbers"),
    ("GPU-5a", 0, None, "no GPU"), ("GPU-5a", 1, None, None), ("MIG-5a", 1, "GPU-5a", None), (1, 2, "0, 1", None),
    ((0, 1), 2, None, None), ("1", 2, None, None), ((3, 2), 2, "2,3", None), (None, 0, None, None),
])  # fmt: skip
def test_gpus_that_are_not_there_are_refused_before_anything_starts(
    devices, gpus, visible, words, tmp_path, monkeypatch
):
    monkeypatch.setattr("torch.cuda.device_count", lambda: gpus)
    monkeypatch.setattr("scripts.experiment.experiment.check_networks", lambda settings: None)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    path = write_protocol(tmp_path)
    if words is None:
        slots = prepare(path, tmp_path / "run", processes=1, devices=devices_of(devices)).slots
        assert slots.devices == devices_of(devices)
        return
    with pytest.raises(InputError, match=words):
        prepare(path, tmp_path / "run", processes=1, devices=devices_of(devices))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("slots", [1, 3])
def test_every_cell_once_after_those_that_it_needs(slots, tmp_path, capsys):
    run, executor = start(tmp_path), FakeExecutor(slots)
    schedule = Schedule(run, executor)
    schedule.run()
    assert sorted(executor.started) == sorted(run.cells) and schedule.finished == set(run.cells)
    assert executor.most == slots
    again = FakeExecutor(slots)
    Schedule(run, again).run()
    assert not again.started  # nothing that is finished is repeated
    assert f"{len(run.cells)} cells, {len(run.cells)} of them finished before" in capsys.readouterr().out


def test_what_goes_on_was_started_when_it_began(tmp_path):
    run = start(tmp_path)
    for text, started in ((PROTOCOL, "today"), (PROTOCOL.replace("audit: true", "audit: false"), "tomorrow")):
        RunFolder.start(run.path, settings(tmp_path, text), {"command": "synthaug ...", "started": "tomorrow"})
        assert json.loads((run.path / "run.json").read_text())["started"] == started


def test_a_failure_stops_what_needs_it_and_nothing_else(tmp_path, capsys):
    run = start(tmp_path)
    bad = "generator/model_real-all_fold0"
    executor = FakeExecutor(2, {bad: FAILED})
    schedule = Schedule(run, executor)
    schedule.run()
    lost = {cell.id for cell in plan_cells(run.settings) if "fold0" in cell.id and "model" in cell.id}
    assert schedule.failed == [bad] and set(schedule.blocked()) == lost - {bad}
    assert schedule.finished == set(run.cells) - lost
    assert str(run.log(bad)) in capsys.readouterr().out
    after = FakeExecutor(2)
    Schedule(run, after).run()
    assert set(after.started) == lost  # tried again, with what needed it


def test_interrupted_children_are_stopped(tmp_path):
    run, executor = start(tmp_path), FakeExecutor(3, {"pool/pasted": KeyboardInterrupt()})
    with pytest.raises(KeyboardInterrupt):
        Schedule(run, executor).run()
    left = [job for job in executor.jobs if run.result(job.cell.id) is None]
    assert left and all(job.stopped for job in left)


def test_a_cell_that_another_process_holds_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr("scripts.experiment.schedule.BUSY_SECONDS", 0)
    run = start(tmp_path)
    executor = FakeExecutor(1, {"data/": BUSY})
    original = executor.start

    def other(run, cell, slot):
        job = original(run, cell, slot)
        if cell.kind == "data" and len(executor.jobs) > 3:  # the other one finishes it
            write_result(run, cell.id, {})
            job.outcome = BUSY
        return job

    executor.start = other
    schedule = Schedule(run, executor)
    schedule.run()
    assert schedule.finished == set(run.cells) and not schedule.failed


@pytest.mark.parametrize("useful", [False, True, None])
def test_a_pool_that_will_hardly_help_is_said_before_it_trains_anything(useful, tmp_path, capsys):
    run = start(tmp_path)
    audit = "audit/model_real-all_fold1"
    finish(run, without=("train/", "evaluate/", audit))
    write_result(run, audit, {"usefulness": {"useful": useful, "words": "Usefulness 0.40: UNLIKELY"}})
    Schedule(run, FakeExecutor(1)).run()
    said = capsys.readouterr().out
    assert ("*** model all, fold 1: Usefulness 0.40: UNLIKELY ***" in said) == (useful is False)


def test_time_left_is_that_of_cells_alike(tmp_path):
    run = start(tmp_path)
    finish(run, without=("evaluate/UNETR", "train/U-Net_model"))  # each of the others took 2 s
    schedule = Schedule(run, FakeExecutor(2))
    schedule.take_finished()
    left, known = schedule.seconds_left()
    assert known and left == pytest.approx(2 * len(schedule.waiting) / 2)
    fresh = Schedule(start(tmp_path / "new") if (tmp_path / "new").mkdir() is None else run, FakeExecutor(2))
    assert fresh.seconds_left() == (0, False)


def results_of(run):
    return {path.relative_to(run.path): path.stat().st_mtime_ns for path in run.path.glob("cells/*/*/result.json")}


def test_other_settings_repeat_only_what_they_change(tmp_path):
    run = start(tmp_path)
    finish(run)
    before = results_of(run)
    changed = PROTOCOL.replace("model: {bundle: hvae}", "model: {bundle: hvae, settings: {learning_rate: 0.002}}")
    other = RunFolder.start(tmp_path / "run", settings(tmp_path, changed), {})
    executor = FakeExecutor(2)
    Schedule(other, executor).run()
    ours = {cell for cell in other.cells if "model" in cell}  # its generator, pools, audits, metrics and trainings
    assert set(executor.started) == ours and len(ours) > 10
    assert {file: time for file, time in results_of(other).items() if "model" not in str(file)} == {
        file: time for file, time in before.items() if "model" not in str(file)
    }
    back = RunFolder.start(tmp_path / "run", run.settings, {})  # as before: nothing is done again
    again = FakeExecutor(2)
    Schedule(back, again).run()
    assert not again.started and results_of(back) == before
    more = RunFolder.start(tmp_path / "run", settings(tmp_path, PROTOCOL.replace("seeds: [0, 1]", "seeds: [0, 2]")), {})
    third = FakeExecutor(2)
    Schedule(more, third).run()
    assert third.started and all("seed2" in cell for cell in third.started)


def test_another_protocol_or_somebody_elses_folder_is_refused(tmp_path):
    run = start(tmp_path)
    with pytest.raises(InputError, match="holds an experiment of the protocol 'made_up'"):
        RunFolder.start(run.path, {**run.settings, "name": "other"}, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="not empty"):
        RunFolder.start(tmp_path / "full", run.settings, {})
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


def test_one_command_a_folder(tmp_path):
    with held(tmp_path / "run"):
        with pytest.raises(InputError, match="another command is at work"), held(tmp_path / "run"):
            pass
    with held(tmp_path / "run"):  # free again
        pass


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100_000], ids=len)
def test_a_damaged_record_of_a_run_is_one_error(damage, tmp_path):
    run = start(tmp_path)
    cell = next(iter(run.cells))
    write_result(run, cell, {})
    (run.folder(cell) / "result.json").write_bytes(damage)
    for read in (run.result, lambda _: read_results(run.path)):
        with pytest.raises(InputError, match="result.json"):
            read(cell)
    (run.path / "run.json").write_bytes(damage)
    for read in (RunFolder, read_results):
        with pytest.raises(InputError, match="run.json"):
            read(run.path)


def test_results_alone_are_gone_on_with(tmp_path):
    """Kept results stand; a cell whose files are gone is done again only where one to be done reads them."""
    run = start(tmp_path)
    finish(run, without=("evaluate/UNETR_model",))
    for name in (
        "pool/model_real-all_fold0",
        "generator/model_real-all_fold0",
        "train/UNETR_real-only_n0_real-all_fold0_seed0",
    ):
        path = run.folder(name) / "result.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "files": [f"cells/{name}/gone"]}))
    executor = FakeExecutor(1)
    Schedule(run, executor).run()
    assert set(executor.started) == {cell for cell in run.cells if cell.startswith("evaluate/UNETR_model")}
    train = run.folder("train/UNETR_model_n10_real-all_fold0_seed0") / "result.json"
    train.unlink()  # which reads the pool, which comes from the generator
    executor = FakeExecutor(1)
    Schedule(run, executor).run()
    assert set(executor.started) == {
        "train/UNETR_model_n10_real-all_fold0_seed0", "pool/model_real-all_fold0", "generator/model_real-all_fold0"
    }  # fmt: skip


@pytest.mark.parametrize("kind, text, share", [
    ("generator", "epoch 3/60: x\nepoch 15/60: y", 0.25),
    ("pool", "sampling:  10%|#  | 40/400 [00:03", 0.1),
    ("data", "epoch 3/60:", None),
])  # fmt: skip
def test_how_far_a_cell_is(tmp_path, kind, text, share):
    run = start(tmp_path)
    cell = next(cell for cell in run.cells.values() if cell.kind == kind)
    assert read_fraction(cell, text) == share


def test_warm_up_is_no_part_of_the_time_left(tmp_path):
    """Two minutes of imports, then 1 % a second: 90 s are left at 10 %, and not twenty minutes."""
    run = start(tmp_path)
    cell = run.cells["generator/model_real-all_fold0"]
    log = run.log(cell.id)
    log.parent.mkdir(parents=True)
    log.write_text("epoch 90/100: of an earlier attempt\n")
    progress = Progress(cell, log, log.stat().st_size)
    progress.look(100.0)
    assert progress.fraction is None and progress.seconds_left(100.0) is None
    for second in range(11):
        with log.open("a") as file:
            file.write(f"epoch {second}/100: loss\n")
        progress.look(120.0 + second)
    assert progress.seconds_left(130.0) == pytest.approx(90)
    assert progress.seconds_left(133.0) == pytest.approx(87)  # also while nothing is printed
    with log.open("a") as file:
        file.write("epoch 1/200: the second stage\n")
    progress.look(140.0)
    assert progress.seconds_left(140.0) is None


@pytest.mark.parametrize("kind", ["audit", "metrics"])
def test_a_cell_of_several_bars_says_which_and_promises_no_time(tmp_path, kind):
    log = tmp_path / "log"
    progress = Progress(Cell(kind, "of_a_pool", {}), log, 0)
    with log.open("w") as file:
        for title, total in (("reading the pool", 4), ("training segmenters", 8)):
            for step in tqdm(range(total), title, file=file, mininterval=0):
                file.flush()
                progress.look(float(step))
                assert step == 0 or progress.words == f"{title} {100 * step / total:.0f} %"
                assert progress.seconds_left(float(step)) is None


def test_interrupted_attempts_count(tmp_path):
    with pytest.raises(KeyboardInterrupt), timed(tmp_path):
        raise KeyboardInterrupt
    began = time.time() - 1000
    (tmp_path / "attempt.json").write_text(json.dumps({"earlier": 30.0, "started": began}))
    os.utime(tmp_path / "attempt.json", (began + 50, began + 50))  # and was killed then
    with timed(tmp_path) as before:
        assert before["earlier"] == pytest.approx(80, abs=0.1)
    with timed(tmp_path) as before:
        assert before["earlier"] == 0  # that one is finished


def test_a_result_of_other_settings_is_refused(tmp_path):
    run = start(tmp_path)
    write_result(run, "source/dataset", {})
    path = run.folder("source/dataset") / "result.json"
    path.write_text(path.read_text().replace('"settings_sha256": "', '"settings_sha256": "0'))
    with pytest.raises(InputError, match="other settings"):
        run.result("source/dataset")


def test_slots_share_the_cores_or_have_a_gpu_each(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr("scripts.experiment.schedule.num_cores", lambda: 8)
    monkeypatch.setattr("scripts.experiment.schedule.subprocess.Popen", lambda *_, env, **__: seen.append(env))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    run = start(tmp_path)
    cell = run.cells["source/dataset"]
    for executor in (Processes(3), Processes(4, ["2", "5"])):
        for slot in range(executor.slots):
            executor.start(run, cell, slot)
    assert [env["OMP_NUM_THREADS"] for env in seen] == ["2"] * 7
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in seen] == [None] * 3 + ["2", "5", "2", "5"]
