"""The scheduler: order, what is not repeated, what goes on beside a failure, and the folder's settings."""

import pytest

from scripts.experiment.cells import plan_cells
from scripts.experiment.run_folder import RunFolder
from scripts.experiment.schedule import BUSY, DONE, FAILED, Processes, Schedule
from scripts.runtime.errors import InputError

from .fake import PROTOCOL, finish, settings, start, write_result


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


def test_time_left_is_that_of_cells_alike(tmp_path):
    run = start(tmp_path)
    finish(run, without=("evaluate/UNETR", "train/U-Net_model"))  # each of the others took 2 s
    schedule = Schedule(run, FakeExecutor(2))
    schedule._take_finished()
    left, known = schedule.seconds_left()
    assert known and left == pytest.approx(2 * len(schedule.waiting) / 2)
    fresh = Schedule(start(tmp_path / "new") if (tmp_path / "new").mkdir() is None else run, FakeExecutor(2))
    assert fresh.seconds_left() == (0, False)


def test_a_folder_goes_on_with_its_own_settings_alone(tmp_path):
    run = start(tmp_path)
    assert list(start(tmp_path).cells) == list(run.cells)
    other = settings(tmp_path, PROTOCOL.replace("seeds: [0, 1]", "seeds: [0, 2]"))
    with pytest.raises(InputError, match=r"seeds \[0, 1\] \(now \[0, 2\]\)"):
        RunFolder.start(tmp_path / "run", other, {})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")
    with pytest.raises(InputError, match="not empty"):
        RunFolder.start(tmp_path / "full", other, {})


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
