"""Obedience in words and as a picture: n, the comparison and the selection are always there."""

import json
import re

import pytest

from scripts.metrics.obedience import summarise_obedience
from scripts.pool.writing import read_pool, write_pool
from scripts.report.figures import png_bytes
from scripts.report.obedience import obedience_figure, obedience_words, report_obedience
from scripts.runtime.errors import InputError

from ..pool.volume_pool import ToySampler

SWEEP = {"sweep": {"feature": "volume", "start": 2000, "stop": 8000, "steps": 2}, "centre": [48, 40, 32]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sampler = ToySampler(min_foreground=400)
    return write_pool(sampler, tmp_path_factory.mktemp("pools") / "pool", 24, progress=False)


@pytest.mark.slow
def test_command_writes_numbers_and_picture(folder):
    words = report_obedience(str(folder))
    content = json.loads((folder / "obedience.json").read_text())
    assert words.startswith(content["words"]) and words.endswith("obedience.png")
    assert (folder / "obedience.png").read_bytes().startswith(b"\x89PNG")
    measures = content["measures"]
    assert measures["centre_distance"]["verdict"] == "closer" and measures["centre_distance"]["median"] < 2
    assert 0.9 < measures["volume_ratio"]["median"] < 1.1 and measures["box_iou"]["median"] > 0.7


def test_words_hold_n_comparison_and_selection(folder):
    record = read_pool(folder)
    summary = summarise_obedience(record)
    lines = obedience_words(summary).splitlines()
    rejected, candidates = summary["rejected"], record["sampling"]["candidates"]
    assert rejected > 0
    assert lines[0] == (
        f"One trained generator, n = 24 samples, 0 with an empty mask, {rejected} of {candidates} candidates rejected."
    )
    for line in lines[1:5]:
        assert re.search(r"median \S+( mm)? \(quartiles .*; 95 % interval of the median .* to .*\)", line), line
        assert re.search(r"with the rejected counted as empty; with shuffled requests .*\(95 % of 1000 shuffles", line)
    assert all(line.endswith("): closer than shuffled.") for line in lines[2:5]) and lines[1].endswith(").")
    assert "choice of samples (24), not another training" in lines[5]
    assert f"{rejected} of {candidates} candidates had fewer than 400 voxels" in lines[6]


def test_sweep_of_few_groups_gets_no_verdict(tmp_path):
    record = read_pool(write_pool(ToySampler(), tmp_path / "pool", 8, condition=SWEEP, progress=False))
    words = obedience_words(summarise_obedience(record))
    assert "in 4 groups of a sweep over volume, 0 of 8 candidates rejected" in words
    assert "too few for an interval" in words and "than shuffled" not in words
    assert "choice of groups of a sweep over volume (4)" in words and "is a selection" not in words


@pytest.mark.slow
def test_figure_shows_every_sample(folder):
    record = read_pool(folder)
    record["samples"][0]["features"] = {
        "volume": 0.0, "surface_area": 0.0, "sphericity": 0.0, "centre": [0.0] * 3, "extent": [0.0] * 3,
    }  # fmt: skip
    summary = summarise_obedience(record)
    figure = obedience_figure(record, summary)
    volume, *centres = figure.axes
    assert len(centres) == 3 and figure.get_suptitle().startswith("n = 24 samples, 1 with an empty mask")
    for axes in figure.axes:
        (dots,) = axes.collections
        assert len(dots.get_offsets()) == 23
        low, high = axes.get_xlim()
        assert axes.get_ylim() == (low, high) and ((dots.get_offsets() > low) & (dots.get_offsets() < high)).all()
        assert "mm" in axes.get_xlabel()
    assert volume.get_xscale() == volume.get_yscale() == "log"
    assert [line.get_label() for line in volume.get_lines()][1:] == ["empty mask"]
    assert volume.collections[0].get_offsets()[0].tolist() == pytest.approx(
        [record["samples"][1][key]["volume"] for key in ("condition", "features")]
    )
    assert png_bytes(figure) == png_bytes(obedience_figure(record, summary))


def test_pool_without_a_single_mask_can_be_drawn(folder):
    record = read_pool(folder)
    for sample in record["samples"]:
        sample["features"] = {**record["samples"][0]["features"], "volume": 0.0}
    figure = obedience_figure(record, summarise_obedience(record))
    assert figure.get_suptitle().startswith("n = 24 samples, 24 with an empty mask")
    assert not any(len(dots.get_offsets()) for axes in figure.axes for dots in axes.collections)
    assert png_bytes(figure)


def test_folder_that_is_no_pool(tmp_path):
    with pytest.raises(InputError, match=r"no pool\.json"):
        report_obedience(str(tmp_path))
    assert not list(tmp_path.iterdir())
