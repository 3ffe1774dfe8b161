"""The picture of a sweep: groups down, steps across, asked for above, measured beneath, contours on the masks."""

import numpy as np
import pytest
from PIL import Image

from scripts.pool.writing import load_sample, read_pool, write_pool
from scripts.report.pool import pool_sheet
from scripts.report.sweep import _figure, sweep_sheet
from scripts.runtime.errors import InputError

from ..pool.volume_pool import SPACING, ToySampler

SWEEP = {"sweep": {"feature": "volume", "start": 2000, "stop": 8000, "steps": 3}, "centre": [48, 40, 32]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pools") / "sweep"
    return write_pool(ToySampler(channels=2), folder, 8, condition=SWEEP, progress=False)


@pytest.fixture(scope="module")
def axes(folder):
    record = read_pool(folder)
    return _figure(folder, record, record["samples"]).axes[0]


def test_asked_for_above_and_measured_beneath(folder, axes):
    found = [(text.get_text(), text.get_position()) for text in axes.texts]
    texts = dict(reversed(found))
    heads = ["2,000 mm³", "4,000 mm³", "8,000 mm³"]
    x = [texts[head][0] for head in heads]
    assert x == sorted(x) and len({texts[head][1] for head in heads}) == 1
    samples = read_pool(folder)["samples"]
    tiles = sorted(axes.images, key=lambda image: (image.get_extent()[3], image.get_extent()[0]))
    assert len(tiles) == 8  # the last group lacks a step
    for sample, tile in zip(samples, tiles, strict=True):
        left, _, bottom, _ = tile.get_extent()
        beneath = [text for text, place in found if place[0] == left and 0 < place[1] - bottom < 10]
        assert beneath == [f"{sample['features']['volume']:,.0f} mm³"]
        assert left == x[sample["condition"]["sweep"]["step"]]
    assert any("3 groups, n = 8 samples, none rejected" in text for text in texts)


def test_contours_lie_on_the_masks_and_boxes_where_they_were_asked_for(folder, axes):
    boxes, contours = axes.collections
    samples = read_pool(folder)["samples"]
    tiles = sorted(axes.images, key=lambda image: (image.get_extent()[3], image.get_extent()[0]))
    assert len(boxes.get_segments()) == len(contours.get_segments()) == 8
    for sample, tile, box, line in zip(samples, tiles, boxes.get_segments(), contours.get_segments(), strict=True):
        left, right, bottom, top = tile.get_extent()
        label = load_sample(folder, sample["id"], 2)[1]
        mask = label[int(48 / SPACING[0])] > 0
        scale = np.array([(right - left) / mask.shape[1], (bottom - top) / mask.shape[0]])
        assert scale[1] / scale[0] == pytest.approx(SPACING[1] / SPACING[2], rel=0.02)  # square millimetres
        places = np.argwhere(mask)[:, ::-1]
        assert np.allclose(line.min(axis=0), places.min(axis=0) * scale + (left, top), atol=1)
        assert np.allclose(line.max(axis=0), (places.max(axis=0) + 1) * scale + (left, top), atol=1)
        millimetres = np.array(SPACING[:0:-1]) / scale
        extent = np.array(sample["condition"]["extent"])[:0:-1]
        assert np.allclose(np.ptp(box, axis=0) * millimetres, extent, rtol=0.02)
        assert np.allclose((box.min(axis=0) + np.ptp(box, axis=0) / 2 - (left, top)) * millimetres, [32, 40], atol=0.5)


@pytest.mark.slow
def test_files(folder, tmp_path):
    first = sweep_sheet(folder, path=tmp_path / "a.png").read_bytes()
    assert sweep_sheet(folder, path=tmp_path / "b.png").read_bytes() == first
    with Image.open(tmp_path / "a.png") as whole, Image.open(sweep_sheet(folder, 2, tmp_path / "c.png")) as two:
        assert two.height < whole.height and two.width == whole.width
    pool_sheet(folder)
    assert (folder / "sweep.png").read_bytes() == first


def test_sweep_of_a_centre(tmp_path):
    sweep = {"feature": "centre", "start": [40, 30, 30], "stop": [56, 50, 34], "steps": 2}
    folder = write_pool(ToySampler(), tmp_path / "pool", 2, condition={"sweep": sweep}, progress=False)
    record = read_pool(folder)
    texts = [text.get_text() for text in _figure(folder, record, record["samples"]).axes[0].texts]
    assert "40, 30, 30 mm" in texts and "56, 50, 34 mm" in texts


def test_other_pools_are_refused(tmp_path):
    folder = write_pool(ToySampler(), tmp_path / "pool", 1, progress=False)
    with pytest.raises(InputError, match="no sweep"):
        sweep_sheet(folder)
    assert not (folder / "sweep.png").exists()
