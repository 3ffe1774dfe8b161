"""Slices on the generator's grid: scaling and geometry can be inverted, and nothing of validation is learnt from."""

import numpy as np
import pytest
import torch

from scripts.data.cases import open_cases
from scripts.data.geometry import SliceGeometry
from scripts.data.provenance import build_provenance, read_provenance, trained_num_channels, write_provenance
from scripts.data.scaling import Scaling
from scripts.data.slices import load_slices
from scripts.errors import InputError

from .toy import write_preprocessed, write_raw


@pytest.fixture(params=[False, True], ids=["whole", "masked"])
def cases(request, tmp_path):
    return open_cases(write_preprocessed(tmp_path / "Dataset901_Toy", channels=2, masked=request.param))


def test_scaling_inverts(cases):
    training = list(cases.training())
    scaling = Scaling.fit(training, per_case=False, masked=cases.masked)
    for case in training:
        scaled = scaling.apply(case)
        assert scaled.min() >= 0 and scaled.max() <= 1
        back, inside = scaling.invert(scaled)
        low, high = (np.array(x).reshape(-1, 1, 1, 1) for x in (scaling.low, scaling.high))
        expected = np.where(case.inside, np.clip(case.image, low, high), 0)
        assert np.allclose(back, expected, atol=1e-4)
        assert np.array_equal(inside, case.inside)
        assert (back[:, ~case.inside] == 0).all()  # exactly: nnU-Net's background
        assert (case.image < low).mean() < 0.01 and (case.image > high).mean() < 0.01
    assert Scaling.from_record(scaling.as_record()) == scaling


def test_raw_cases_are_scaled_one_by_one(tmp_path):
    cases = open_cases(write_raw(tmp_path / "Dataset901_Toy"))
    slices = load_slices(cases, (24, 24))
    means = {case: [] for case in cases.fold.train}
    for item in slices.training:
        means[item["case"]].append(float(item["image"][0].mean()))
    levels = [np.mean(v) for v in means.values()]
    assert np.ptp(levels) < 0.1  # the toy's offsets of 10 a case are gone
    assert slices.scaling.per_case


@pytest.mark.parametrize("size", [(24, 24), (16, 16), (32, 16)])
def test_geometry_gives_back_what_it_got(size):
    geometry = SliceGeometry.fit([(20, 18), (17, 22)], size)
    assert geometry.field_of_view == (20, 22)
    y, x = np.mgrid[:20, :22] / 20
    smooth = np.stack([y + 0.3 * x, np.sin(2 * y) * x])[None].astype(np.float32)
    grid = geometry.to_grid(smooth, smooth.min(axis=(0, 2, 3)))
    assert tuple(grid.shape) == (1, 2, *size)
    back = geometry.from_grid(grid).numpy()
    assert back.shape == smooth.shape
    exact = all(view <= side for view, side in zip(geometry.field_of_view, size, strict=True))
    inner = (slice(None), slice(None), slice(3, -3), slice(3, -3))
    assert np.abs(back[inner] - smooth[inner]).max() < (1e-6 if exact else 0.05)
    assert SliceGeometry.from_record(geometry.as_record()) == geometry


def test_zoom_is_isotropic():
    geometry = SliceGeometry((64, 64), (200, 100))
    ratios = [canvas / side for canvas, side in zip(geometry.canvas, geometry.spatial_size, strict=True)]
    assert ratios[0] == pytest.approx(ratios[1], rel=0.02)


def test_training_slices_are_those_of_the_fold(cases):
    slices = load_slices(cases, (24, 24), background_share=0.0)
    assert {item["case"] for item in slices.training} == set(cases.fold.train)
    assert {item["case"] for item in slices.validation} == set(cases.fold.val)
    assert [case["id"] for case in slices.seen] == cases.fold.train
    assert len(slices.training) == 3 * len(cases.fold.train)  # three slices of each toy hold foreground
    joint = slices.training_tensor()
    assert joint.shape[1] == slices.num_channels == 4
    assert set(joint[:, 2:].unique().tolist()) == {0.0, 1.0}
    assert all(item["image"][2:].any() for item in slices.training)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5])
def test_share_of_slices_without_foreground(cases, share):
    slices = load_slices(cases, (24, 24), background_share=share, seed=3)
    empty = sum(not item["image"][2:].any() for item in slices.training)
    assert empty == pytest.approx(share * len(slices.training), abs=0.5)
    again = load_slices(cases, (24, 24), background_share=share, seed=3)
    assert [(i["case"], i["slice"]) for i in slices.training] == [(i["case"], i["slice"]) for i in again.training]


def test_slices_with_the_ignore_label_are_left_out(tmp_path):
    folder = write_raw(tmp_path / "Dataset901_Toy", labels={"background": 0, "inner": 1, "ignore": 2})
    slices = load_slices(open_cases(folder), (24, 24), background_share=0.9)
    assert slices.num_channels == 2
    assert {item["slice"] for item in slices.training if item["image"][1].any()} == {2}  # 3 and 4 hold label 2


def test_settings_out_of_range(cases):
    with pytest.raises(InputError, match="background_share"):
        load_slices(cases, (24, 24), background_share=1.0)
    with pytest.raises(InputError, match="spatial_size"):
        load_slices(cases, (24, 24, 24))


def test_provenance_belongs_to_its_checkpoint(cases, tmp_path):
    slices = load_slices(cases, (24, 24))
    checkpoint = tmp_path / "model.pt"
    torch.save({"weight": torch.zeros(2)}, checkpoint)
    record = build_provenance(slices, {"name": "toy", "version": "0"}, 0, {"num_channels": 4}, {})
    path = write_provenance(tmp_path / "provenance.json", record, checkpoint)
    read = read_provenance(path, checkpoint)
    assert [case["id"] for case in read["cases"]] == cases.fold.train
    assert not {case["id"] for case in read["cases"]} & set(cases.fold.val)
    assert trained_num_channels(path, 2) == 4 and trained_num_channels(tmp_path / "none.json", 2) == 2
    torch.save({"weight": torch.ones(2)}, checkpoint)
    with pytest.raises(InputError, match="is not the checkpoint"):
        read_provenance(path, checkpoint)
    with pytest.raises(InputError, match="no trained generator"):
        read_provenance(tmp_path / "none.json")
    path.write_text('{"format_version": 99}')
    with pytest.raises(InputError, match="99"):
        read_provenance(path)
