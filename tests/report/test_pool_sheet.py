"""The picture of a pool: slices as before; volumes by three planes in true proportions, real above synthetic."""

import json

import numpy as np
import pytest

from scripts.data.cases import open_cases
from scripts.pool.writing import load_sample, read_pool, write_pool
from scripts.report import pool as pool_module
from scripts.report.pool import _planes, _true, pool_sheet
from scripts.report.sheets import draw_sheet

from ..data.toy import write_preprocessed
from ..pool.test_pool import make_generator
from ..pool.volume_pool import SPACING, ToySampler


@pytest.fixture
def sheets(monkeypatch):
    """What is handed to `sample_sheet`, which runs as well."""
    calls = []
    real = pool_module.sample_sheet
    monkeypatch.setattr(
        pool_module, "sample_sheet", lambda rows, path, **more: calls.append((rows, more)) or real(rows, path, **more)
    )
    return calls


def test_planes_have_true_proportions():
    spacing = np.array([3.0, 1.0, 2.0])
    shape = (16, 40, 30)
    places = (np.moveaxis(np.indices(shape), 0, -1) + 0.5) * spacing
    ball = (((places - (24, 20, 30)) ** 2).sum(axis=-1) <= 12**2)[None].astype(float)
    picture = _planes(ball, np.zeros(1), [8, 20, 15], shape, spacing)[0]
    assert picture.shape == (48, 60 + 2 + 60 + 2 + 40)  # at 1 mm a pixel: width, width, height across
    for start, width in ((0, 60), (62, 60), (124, 40)):
        places = np.argwhere(picture[:, start : start + width])
        assert np.allclose(np.ptp(places, axis=0) + 1, 24, atol=3)  # a circle; voxels are up to 3 mm
        assert np.allclose(places.mean(axis=0), [23.5, width / 2], atol=1.5)


def test_slices_have_true_proportions():
    spacing = (5.0, 2.0, 3.0)  # of the slices' axis, then height and width
    places = (np.moveaxis(np.indices((40, 30)), 0, -1) + 0.5) * spacing[1:]
    disc = (((places - (40, 45)) ** 2).sum(axis=-1) <= 30**2)[None, None]
    shown = _true(disc, spacing)[0, 0]
    assert shown.shape == (40, 45)  # at 2 mm a pixel
    assert np.allclose(np.ptp(np.argwhere(shown), axis=0) + 1, 30, atol=2)
    assert np.array_equal(_true(disc, (5.0, 1.0, 1.0)), disc)


def test_last_slice_is_at_the_top_and_planes_go_through_the_given_place():
    x = np.arange(4 * 6 * 5).reshape(1, 4, 6, 5).astype(float)
    picture = _planes(x, np.full(1, -1.0), [1, 2, 3], (4, 6, 5), (1, 1, 1))[0]
    assert np.array_equal(picture[:, :5], x[0, 1])
    assert np.array_equal(picture[1:5, 7:12], x[0, ::-1, 2]) and np.array_equal(picture[1:5, 14:20], x[0, ::-1, :, 3])
    assert (picture[:, [5, 6, 12, 13]] == -1).all() and (picture[[0, 5], 7:] == -1).all()


def test_smaller_volumes_are_centred_in_the_room():
    x = np.ones((1, 2, 4, 4))
    picture = _planes(x, np.zeros(1), [1, 2, 2], (4, 8, 8), (1, 1, 1))[0]
    assert picture.shape == (8, 8 + 2 + 8 + 2 + 8) and picture.sum() == 16 + 8 + 8
    assert picture[2:6, 2:6].all() and picture[3:5, 12:16].all()


@pytest.mark.slow
def test_volumes_are_cut_through_the_middle_of_their_masks(tmp_path, sheets):
    folder = write_pool(ToySampler(channels=2), tmp_path / "pool", 5, progress=False)
    assert pool_sheet(folder, count=6) == folder / "samples.png" and not (folder / "sweep.png").exists()
    rows, settings = sheets[0]
    assert [len(row.images) for row in rows] == [3] and rows[0].images.shape[1] == 2
    assert settings["columns"] == 1 and settings["unit"] == "volume"
    for caption, picture in zip(rows[0].captions, rows[0].labels, strict=True):
        label = load_sample(folder, caption[:10], 2)[1]
        centre = np.argwhere(label).mean(axis=0).astype(int)
        assert caption.endswith(f"depth {centre[0]}, height {centre[1]}, width {centre[2]}")
        height, width = label.shape[1] * 2, label.shape[2]  # 2 mm and 1 mm
        top = (picture.shape[0] - height) // 2
        plane = picture[top : top + height, :width]
        assert np.array_equal(plane[::2], label[centre[0]]) and np.array_equal(plane[1::2], label[centre[0]])


def test_real_volumes_stand_above_on_the_same_scale(tmp_path, sheets):
    data = write_preprocessed(tmp_path / "Dataset901_Toy", masked=True)
    folder = write_pool(ToySampler(masked=True), tmp_path / "pool", 2, progress=False)
    cases = open_cases(data, configuration="3d_fullres")
    record = {**read_pool(folder), "dataset": cases.description.as_record()}
    (folder / "pool.json").write_text(json.dumps(record))
    pool_sheet(folder, cases, path=tmp_path / "sheet.png")
    real, synthetic = sheets[0][0]
    assert real.name == "real (training cases)" and real.images.shape == synthetic.images.shape
    shape = np.rint(np.array([96, 80, 64]) / SPACING)
    assert synthetic.images.shape[-2:] == (96, 64 + 2 + 64 + 2 + 80) and shape.tolist() == [24, 40, 64]
    # Around the smaller real volumes, and where nnU-Net masked, it is as dark as their darkest tissue.
    assert (real.images[:, 0, 0] == real.images.min()).all() and not (real.images == 0).any()
    assert set(np.unique(real.labels)) == {0, 1, 2} and (tmp_path / "sheet.png").stat().st_size > 1000
    assert all(caption.startswith("toy_00") for caption in real.captions)


def test_volume_without_a_mask_is_cut_through_its_middle():
    volume = pool_module._Volume("a", np.zeros((1, 4, 6, 8)), np.zeros((4, 6, 8)), np.zeros(1))
    row = pool_module._volume_row("b", [volume], (4, 6, 8), (1, 1, 1))
    assert row.captions == ["a: the planes at depth 2, height 3, width 4"]


def test_slices_are_shown_whole(tmp_path, sheets):
    from scripts.sampling.latent import LatentSampler

    folder = write_pool(LatentSampler(**make_generator(tmp_path / "g")), tmp_path / "pool", 4, progress=False)
    pool_sheet(folder, open_cases(tmp_path / "g" / "Dataset901_Toy"), count=3)
    (real, synthetic), settings = sheets[0]
    assert settings["columns"] == 4 and "unit" not in settings and synthetic.captions[0] == "syn_000000"
    for caption, image, label in zip(synthetic.captions, synthetic.images, synthetic.labels, strict=True):
        expected = load_sample(folder, caption, 1)
        spacing = read_pool(folder)["space"]["spacing"]
        assert np.array_equal(image, _true(expected[0][:, 0], spacing)) and np.isin(expected[0], image).all()
        assert np.array_equal(label, _true(expected[1][0], spacing))
    assert len(real.images) == len(synthetic.images) == 3


def test_captions_speak_of_volumes():
    rows = [("real", np.zeros((1, 1, 8, 8)), np.zeros((1, 8, 8), int))]
    texts = {
        unit: " ".join(text.get_text() for text in draw_sheet(rows, {"a": 1}, unit=unit).axes[0].texts)
        for unit in ("slice", "volume")
    }
    assert "n = 1 volume" in texts["volume"] and "slice" not in texts["volume"]
    assert texts["volume"].replace("volume", "slice") == texts["slice"]
