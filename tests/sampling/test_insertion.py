"""`synthaug insert`: geometry, bits and type of the file stay; the lesion has the size that was asked for."""

from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
import pytest
import torch
from torch.nn import functional

from scripts.runtime.errors import InputError
from scripts.sampling import insertion
from scripts.sampling.insertion import (
    Insertion,
    insert_lesion,
    read_volume,
    refuse_foreign_insertion,
    slice_noise,
    write_insertion,
)

from ..data.toy import body_case
from ..processes import files_of_at_most
from .toy_painter import make_painter

SPACING = np.array([1.0, 1.5, 4.0])  # x y z of the toy


def one_label(index: int, channels: int = 1):
    image, label = body_case(index, channels)
    return image, np.minimum(label, 1)


def oblique(spacing=SPACING) -> np.ndarray:
    """An affine with a rotation about no axis of the image."""
    from scipy.spatial.transform import Rotation

    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_matrix() * spacing
    affine[:3, 3] = [-31.7, 12.3, 5.5]
    return affine


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painter")
    return make_painter(folder, case=one_label, labels={"background": 0, "lesion": 1})[1]["checkpoint"].parent


@pytest.fixture
def volume(tmp_path):
    """int16 with slope and intercept, oblique, with a description in the header."""
    values = np.round(body_case(21)[0][0].T * 10).astype(np.int16)
    image = nib.Nifti1Image(values, oblique())
    image.header.set_slope_inter(0.5, -7.0)
    image.header["descrip"] = b"kept"
    nib.save(image, tmp_path / "case.nii.gz")
    return tmp_path / "case.nii.gz"


def raw(path):
    file = nib.load(path)
    return file, np.array(file.dataobj.get_unscaled())


class Outputs(NamedTuple):
    """An insertion into two channels, where it goes, and what the folder then holds."""

    done: Insertion
    folder: Path
    images: list[Path]
    mask: Path

    def write(self) -> None:
        refuse_foreign_insertion(self.images, self.mask)
        write_insertion(self.done, self.images, self.mask)

    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}


@pytest.fixture
def outputs(tmp_path):
    values = np.random.default_rng(0).normal(size=(2, 30, 30, 20)).astype(np.float32)
    for channel in range(2):
        nib.save(nib.Nifti1Image(values[channel], np.eye(4)), tmp_path / f"case_{channel:04d}.nii")
    hole = np.zeros((30, 30, 20), bool)
    hole[5:9, 5:9, 5:9] = True
    volume = read_volume([tmp_path / f"case_{channel:04d}.nii" for channel in range(2)], 2)
    folder = tmp_path / "out"
    done = Insertion(volume, values + hole, hole.astype(np.int16), hole, {"lesion": 1})
    return Outputs(done, folder, [folder / f"new_{channel:04d}.nii" for channel in range(2)], folder / "new_mask.nii")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # nibabel leaves such files open
@pytest.mark.parametrize("size", [0, 1000, 30_000])  # before the mask, within it, within an image
def test_a_limit_on_the_size_of_files_leaves_nothing_half_written(outputs, size):
    for earlier in (False, True):  # another insertion of the same name stays as it is
        before = outputs.files() if earlier else {}
        with files_of_at_most(size), pytest.raises(OSError, match="File too large"):
            outputs.write()
        assert outputs.files() == before
        outputs.write()
        assert {path.name for path in outputs.folder.iterdir()} == {"new_0000.nii", "new_0001.nii", "new_mask.nii"}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("step", range(6))
def test_killed_at_every_step_the_same_command_ends_as_an_uninterrupted_one(outputs, step, monkeypatch):
    outputs.write()
    whole = outputs.files()
    for path in outputs.folder.iterdir():
        path.unlink()
    left = iter(range(step))

    def until_killed(function):
        def call(*args, **kwargs):
            if next(left, None) is None:
                raise Killed
            return function(*args, **kwargs)

        return call

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(nib, "save", until_killed(nib.save))
        patch.setattr(Path, "replace", until_killed(Path.replace))
        patch.setattr(Path, "unlink", lambda *_, **__: None)  # what is killed tidies nothing up
        outputs.write()
    assert all(whole[name] == content for name, content in outputs.files().items() if not name.startswith("."))
    outputs.write()
    assert outputs.files() == whole


@pytest.mark.slow
def test_an_oblique_file_keeps_all_but_the_hole(volume, models, tmp_path):
    done = insert_lesion([volume], models, volume=900.0, centre=[17, 20, 6])
    write_insertion(done, [tmp_path / "out.nii.gz"], tmp_path / "out_mask.nii.gz")
    (before, old), (after, new) = raw(volume), raw(tmp_path / "out.nii.gz")
    mask, label = raw(tmp_path / "out_mask.nii.gz")
    for name in before.header:
        assert np.array_equal(before.header[name], after.header[name], equal_nan=before.header[name].dtype.kind == "f")
    assert np.array_equal(before.affine, after.affine) and np.array_equal(before.affine, mask.affine)
    assert new.dtype == np.int16 and label.dtype == np.uint8 and set(np.unique(label)) == {0, 1}
    assert np.array_equal(old[~done.hole], new[~done.hole]) and (old != new).any()
    assert done.hole[label > 0].all()
    assert label.sum() * SPACING.prod() == pytest.approx(900, abs=SPACING.prod())
    assert np.abs(np.argwhere(label).mean(0) - [17, 20, 6]).max() < 2
    outputs = [tmp_path / "out.nii.gz", tmp_path / "out.png"]
    refuse_foreign_insertion(outputs, tmp_path / "out_mask.nii.gz")
    for mask_out in ("case.nii.gz", "other_mask.nii.gz"):  # what was there before, and nothing that says whose they are
        with pytest.raises(InputError, match="did not write"):
            refuse_foreign_insertion(outputs, tmp_path / mask_out)
    again = insert_lesion([volume], models, volume=900.0, centre=[17, 20, 6])
    assert np.array_equal(again.painted, done.painted) and np.array_equal(again.label, done.label)


@pytest.mark.slow
def test_another_spacing_is_brought_to_the_model_and_back(models, tmp_path):
    values = np.repeat(np.repeat(body_case(21)[0][0].T, 2, axis=0), 2, axis=1)
    nib.save(nib.Nifti1Image(values, oblique(SPACING / [2, 2, 1])), tmp_path / "fine.nii.gz")
    done = insert_lesion([tmp_path / "fine.nii.gz"], models, volume=900.0, centre=[34, 40, 6])
    assert done.painted.dtype == np.float32 and np.array_equal(done.painted[0][~done.hole], values[~done.hole])
    assert (done.painted[0] != values)[done.label > 0].mean() > 0.99
    assert done.label.sum() * SPACING.prod() / 4 == pytest.approx(900, abs=SPACING.prod())


def test_what_comes_back_onto_a_finer_file_keeps_its_grain():
    """By straight lines 0.68 of this noise would be left; no value is outside of the range there was."""
    noise = np.random.default_rng(0).normal(size=(8, 32, 32)).astype(np.float32)
    there = insertion._Resampling((2, 1, 0), (45, 45, 8), noise.shape)
    back = there.back(noise)
    assert back.shape == (45, 45, 8) and back.std() > 0.8 * noise.std()
    assert noise.min() <= back.min() and back.max() <= noise.max()
    hole = np.zeros((45, 45, 8), bool)
    hole[20, 20, 4] = True
    assert there.hole(hole).sum() <= 9  # splines swing; holes do not


def test_a_lesion_is_removed(volume, models, tmp_path):
    label = body_case(21)[1].T
    nib.save(nib.Nifti1Image((label > 0).astype(np.uint8), oblique()), tmp_path / "mask.nii.gz")
    done = insert_lesion([volume], models, mask=tmp_path / "mask.nii.gz", remove=True)
    assert not done.label.any() and done.hole[label > 0].all()
    wanted = insert_lesion([volume], models, mask=tmp_path / "mask.nii.gz")
    assert np.array_equal(wanted.label > 0, label > 0) and np.array_equal(wanted.hole, done.hole)
    asked = {"volume": 900.0, "centre": [17, 20, 6]}
    drawn, over = insert_lesion([volume], models, **asked), insert_lesion([volume], models, remove=True, **asked)
    assert not over.label.any() and drawn.label.any() and np.array_equal(over.hole, drawn.hole)


@pytest.mark.parametrize(
    "given, words",
    [
        ({}, "give --mask FILE, or"),
        ({"volume": 100.0}, "give --mask FILE, or"),
        ({"remove": True}, "give --mask FILE, or"),
        ({"volume": 100.0, "centre": [99, 0, 0]}, "a voxel of the image"),
        ({"volume": -1.0, "centre": [9, 9, 9]}, "mm3 above 0"),
        ({"volume": 1e9, "centre": [9, 9, 9]}, "has room for"),
    ],
)
def test_what_cannot_be_done_is_said(given, words, volume, models):
    with pytest.raises(InputError, match=words):
        insert_lesion([volume], models, **given)


def test_files_that_do_not_fit(volume, models, tmp_path):
    nib.save(nib.Nifti1Image(np.ones((36, 40, 12), np.uint8), np.eye(4)), tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="the image's affine"):
        insert_lesion([volume], models, mask=tmp_path / "mask.nii.gz")
    with pytest.raises(InputError, match="2 image files"):
        insert_lesion([volume, volume], models, volume=100.0, centre=[9, 9, 9])
    with pytest.raises(InputError, match="no trained generator"):
        insert_lesion([volume], tmp_path, volume=100.0, centre=[9, 9, 9])


@pytest.mark.parametrize("apart", [0.5, 1.7])
def test_noise_of_slices_is_white_in_each_and_changes_as_it_does_within(apart):
    noise = slice_noise((1, 60, 44), 120, apart, seed=3)
    assert torch.equal(noise, slice_noise((1, 60, 44), 120, apart, seed=3))
    assert abs(float(noise.mean())) < 0.03 and abs(float(noise.var()) - 1) < 0.03
    beside, below = ((noise.roll(1, axis) * noise).mean() for axis in (-1, -2))
    assert abs(float(beside)) < 0.01 and abs(float(below)) < 0.01  # in a slice: as what the painter has learnt from

    def alike(field, between):
        return float(np.corrcoef(field[between:].flatten(), field[:-between].flatten())[0, 1])

    squares = functional.avg_pool2d(noise, 8, ceil_mode=True, count_include_pad=False)
    texture = noise - squares.repeat_interleave(8, -2).repeat_interleave(8, -1)[..., :60, :44]
    near, far = 1, round(8 / apart)
    assert alike(squares, near) > alike(texture, near) > alike(texture, far)
    assert alike(squares, far) > 0.6 and abs(alike(texture, far)) < 0.05
    assert alike(texture, near) == pytest.approx(np.exp(-((apart / 1.6) ** 2) / 4), abs=0.05)
