"""Whether trainings ended on a plateau: the mean of each arm, and a warning for a reference that rises."""

import pytest

from scripts.report.experiment import write_experiment_report
from scripts.report.experiment_plateau import plateaus, rising_words
from scripts.report.experiment_results import read_results

from ..experiment.fake import finish, start, write_result


@pytest.mark.slow
@pytest.mark.parametrize("last, rises", [(0.72, True), (0.705, False), (0.6, False)])
def test_a_reference_that_rises_is_warned_of(last, rises, tmp_path):
    run = start(tmp_path)
    finish(run)
    for number, cell in enumerate(cell for cell in run.cells.values() if cell.kind == "train"):
        s = cell.settings
        end = last if s["reference"] else 0.9
        plateau = {"0.6": 0.6, "0.8": 0.7 + 0.001 * (-1) ** number, "1.0": end}
        values = {"steps": 600, "num_synthetic": s["num_synthetic"], "share": 0.5, "plateau": plateau}
        write_result(run, cell.id, values if s["segmenter"] == "U-Net" else {**values, "plateau": None})
    results = read_results(run.path)
    rows = {one["arm"]: one for one in plateaus(results)}
    assert rows["real only"]["rising"] is rises and rows["x5"]["rising"] is True
    assert rows["real only"]["dice"] == pytest.approx([0.6, 0.7, last], abs=0.002) and rows["x5"]["runs"] == 4
    words = rising_words(results)
    assert len(words) == rises  # of the reference alone: UNETR recorded nothing
    page = write_experiment_report(run.path).read_text()
    assert ("not trained to a plateau" in page) == rises and "Plateau" in page


@pytest.mark.slow
def test_without_records_nothing_is_said(tmp_path):
    run = start(tmp_path)
    finish(run)
    assert not plateaus(read_results(run.path)) and "Plateau" not in write_experiment_report(run.path).read_text()
