"""What is kept of a run: small, without paths, reported and gone on with elsewhere."""

import json

import pytest

from benchmarks.collect_run import collect
from scripts.experiment.run_folder import RunFolder
from scripts.experiment.schedule import Schedule
from scripts.report.experiment import write_experiment_report

from .fake import finish, settings, start
from .test_schedule import FakeExecutor


@pytest.mark.slow
def test_kept_records_are_a_run(tmp_path):
    run = start(tmp_path)
    finish(run, without=("fold1_seed1",))
    count = collect(run.path, tmp_path / "kept")
    files = [path for path in (tmp_path / "kept").rglob("*") if path.is_file()]
    assert len(files) == 1 + count and {path.name for path in files} == {"run.json", "result.json"}
    assert not any(str(tmp_path) in path.read_text() for path in files)
    assert "Unfinished" in write_experiment_report(tmp_path / "kept").read_text()
    executor = FakeExecutor(2)
    Schedule(RunFolder.start(tmp_path / "kept", settings(tmp_path), {}), executor).run()
    assert executor.started and all("fold1_seed1" in cell for cell in executor.started)
    assert json.loads((tmp_path / "kept/run.json").read_text())["cells"]
