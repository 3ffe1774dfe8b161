"""Plots: what is read from logs, what is drawn, same bytes twice."""

import json
import warnings

import numpy as np
import pytest

from scripts.report.figures import png_bytes
from scripts.report.plots import loss_figure, paired_dice_figure, read_series, share_figure
from scripts.runtime.errors import InputError


def test_csv_and_jsonl_agree_and_the_last_row_of_an_iteration_counts(tmp_path):
    (tmp_path / "a.csv").write_text("iteration,elbo,adversarial\n0,5,\n20,3,0.5\n10,9,\n10,4,\n")
    rows = [{"iteration": 0, "elbo": 5}, {"iteration": 20, "elbo": 3, "adversarial": 0.5}]
    rows += [{"iteration": 10, "elbo": 9}, {"iteration": 10, "elbo": 4, "adversarial": None}]
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    for name in ("a.csv", "a.jsonl"):
        series = read_series(tmp_path / name)
        np.testing.assert_array_equal(series["iteration"], [0, 10, 20])
        np.testing.assert_array_equal(series["elbo"], [5, 4, 3])
        np.testing.assert_array_equal(series["adversarial"], [np.nan, np.nan, 0.5])


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("a.csv", "epoch,loss\n0,1\n", "iteration"),
        ("a.csv", "iteration,loss\n0,low\n", "low"),
        ("a.csv", "iteration,loss\n", "no rows"),
        ("a.jsonl", '{"iteration": 0, "loss": 1}\n{"iteration": 1, "lo', "unfinished last line"),
    ],
)
def test_logs_that_cannot_be_read_are_refused(tmp_path, name, text, match):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=match):
        read_series(tmp_path / name)


def test_missing_log_is_refused(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_series(tmp_path / "none.csv")


def test_losses_get_a_panel_each_and_the_wide_one_is_logarithmic():
    iteration = np.arange(100.0)
    late = np.where(iteration < 40, np.nan, 0.5 - iteration)
    series = {"iteration": iteration, "elbo": 1e5 * np.exp(-iteration / 10), "adversarial": late}
    series["never"] = np.full(100, np.nan)
    series["val"] = np.where(iteration % 5 == 4, iteration, np.nan)  # every fifth epoch
    figure = loss_figure(series)
    panels = [axes for axes in figure.axes if axes.axison]
    assert [axes.get_title(loc="left") for axes in panels] == ["elbo (log scale)", "adversarial", "val"]
    assert [axes.get_yscale() for axes in panels] == ["log", "linear", "linear"]
    np.testing.assert_array_equal(panels[2].lines[0].get_xydata(), np.repeat(iteration[4::5, None], 2, axis=1))
    raw, smooth = (line.get_ydata() for line in panels[1].lines)
    np.testing.assert_array_equal(raw, late)
    np.testing.assert_array_equal(np.isnan(smooth), np.isnan(late))
    np.testing.assert_allclose(smooth[80], np.median(late[78:83]))


def test_one_row_can_be_drawn_and_none_is_refused():
    png_bytes(loss_figure({"iteration": np.array([0.0]), "loss": np.array([1.0])}))
    with pytest.raises(InputError, match="no finite loss"):
        loss_figure({"iteration": np.array([0.0]), "loss": np.array([np.inf])})


@pytest.fixture
def arms():
    rng = np.random.default_rng(0)
    return [{seed: {f"c{i}": rng.uniform(0.3, 0.9) for i in range(6)} for seed in (0, 1)} for _ in range(2)]


def test_dots_are_patients_averaged_over_seeds(arms):
    arms[0][0]["c4"] = None
    figure = paired_dice_figure(*arms)
    (axes,) = figure.axes
    assert axes.get_title(loc="left") == "n = 5 patients, 1 left out, seeds 0, 1"
    dots = np.asarray(axes.collections[-1].get_offsets())
    patients = ["c0", "c1", "c2", "c3", "c5"]
    expected = [[np.mean([arm[seed][p] for seed in (0, 1)]) for arm in arms] for p in patients]
    np.testing.assert_allclose(dots, expected)
    marks = np.asarray(axes.collections[1].get_offsets())
    np.testing.assert_allclose(marks, [[arm[1][p] for arm in arms] for p in patients])
    identity = axes.lines[0].get_xydata()
    np.testing.assert_array_equal(identity[:, 0], identity[:, 1])


def test_dots_need_a_patient():
    with pytest.raises(InputError, match="no patient"):
        paired_dice_figure({0: {"a": None}}, {0: {"a": 0.5}})


def test_shares_are_drawn_in_percent():
    epochs = np.arange(4.0)
    figure = share_figure({"50 %, seed 0": {"epoch": epochs, "realised": epochs / 4, "planned": np.full(4, 0.5)}})
    planned, realised = figure.axes[0].lines
    np.testing.assert_allclose(realised.get_ydata(), [0, 25, 50, 75])
    np.testing.assert_allclose(planned.get_ydata(), 50)
    with pytest.raises(InputError, match="realised"):
        share_figure({"a": {"epoch": epochs}})


@pytest.mark.slow
def test_same_bytes_twice_and_no_warnings(arms):
    series = {"iteration": np.arange(50.0), "a": np.random.default_rng(0).normal(size=50)}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for make in (lambda: loss_figure(series, title="T"), lambda: paired_dice_figure(*arms)):
            first, second = png_bytes(make()), png_bytes(make())
            assert first == second
            assert len(first) < 400_000
