"""Every voxel of a file is read, or the file is refused by its name."""

import tracemalloc

import nibabel as nib
import numpy as np
import pytest
from nnunet_plugin.errors import InputError
from nnunet_plugin.raw_cases import _voxels
from nnunet_plugin.voxels import ROUNDING, as_image, as_label

from scripts.converters.nifti import read_voxels
from scripts.data.cases import RawCases
from scripts.data.description import read_description
from scripts.experiment.given_data import check_types, stored_type
from scripts.pool.adopt import _load
from scripts.sampling.insertion import _read_mask, read_volume

from ..data.toy_nnunet import write_dataset

SHAPE = (6, 5, 4)
COLOUR = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
RAMP = np.arange(120).reshape(SHAPE)


def colours() -> np.ndarray:
    array = np.zeros(SHAPE, COLOUR)
    array["R"] = RAMP % 2
    return array


IMAGES = {
    "complex64": RAMP + np.complex64(1j), "complex128": RAMP.astype(np.complex128),
    "colours": colours(), "int32": (RAMP + 2**30).astype(np.int32),
    "int64 beyond 2^53": RAMP + 2**53, "uint64": RAMP.astype(np.uint64) + np.uint64(2**63),
    "an offset": RAMP + 1e9, "beyond float32": RAMP * 1e38,
}  # fmt: skip
LABELS = {
    "complex": (RAMP % 2).astype(np.complex64), "colours": colours(), "fractions": (RAMP % 2) * 0.5,
    "nan": np.where(RAMP == 7, np.nan, RAMP % 2), "infinite": np.where(RAMP == 7, np.inf, RAMP % 2),
    "beyond int16": (RAMP % 2) * 65537,
}  # fmt: skip


def write(path, array):
    array = array.astype(np.int64) if array.dtype == int else array
    nib.save(nib.Nifti1Image(array, np.eye(4), dtype=array.dtype), path)
    return path


@pytest.mark.parametrize("kind", IMAGES)
def test_images_are_read_whole_or_refused_by_name(kind, tmp_path):
    path = write(tmp_path / "wrong_0000.nii.gz", IMAGES[kind])
    label = write(tmp_path / "label.nii.gz", (RAMP % 2).astype(np.uint8))
    ways = [
        lambda: as_image(IMAGES[kind], path),
        lambda: RawCases._load_file(None, path),
        lambda: _voxels([str(path)], str(label)),
        lambda: read_volume([path], 1),
    ]
    if kind in ("complex64", "complex128", "colours"):
        ways += [lambda: read_voxels("wrong_0000", path, scaled=False), lambda: check_types([path], [])]
    for way in ways:
        with pytest.raises(InputError, match="wrong_0000"):
            way()


@pytest.mark.parametrize("kind", LABELS)
def test_labels_are_whole_numbers_or_refused_by_name(kind, tmp_path):
    folder = write_dataset(tmp_path)[0]
    image = write(tmp_path / "image.nii.gz", RAMP.astype(np.float32))
    path = write(tmp_path / "wrong.nii.gz", LABELS[kind])
    ways = [
        lambda: as_label(LABELS[kind], path),
        lambda: _voxels([str(image)], str(path)),
        lambda: _read_mask(path, read_volume([image], 1), read_description(folder)),
    ]
    if kind != "beyond int16":  # which nnU-Net's own check of labels names
        ways += [lambda: check_types([], [path])]
    for way in ways:
        with pytest.raises(InputError, match="wrong.nii.gz"):
            way()
    cases = RawCases(folder, 0)
    name = cases.fold.train[0]
    target = cases.files_of(name)[1]
    old = nib.load(target)
    array = np.resize(LABELS[kind], old.shape).astype(LABELS[kind].dtype)
    nib.save(nib.Nifti1Image(array, old.affine, dtype=array.dtype), target)
    with pytest.raises(InputError, match=target.name):
        cases.load(name)


@pytest.mark.parametrize("dtype", ["u1", "i2", "u2", "i4", "i8", "u8", "f4", "f8", ">f4", ">i2"])
def test_what_float32_holds_is_read_to_the_bit(dtype, tmp_path):
    path = write(tmp_path / "a.nii", RAMP.astype(dtype))
    assert stored_type(path) == np.dtype(dtype).newbyteorder("=")
    voxels = np.asarray(nib.load(path).dataobj)
    assert np.array_equal(as_image(voxels, path), RAMP) and as_image(voxels, path).dtype == np.float32
    assert np.array_equal(as_label(voxels, path), RAMP) and as_label(voxels, path).dtype == np.int16
    check_types([path], [path])
    assert np.array_equal(_load(path).dataobj, RAMP)


def test_a_slope_makes_numbers_of_integers(tmp_path):
    image = nib.Nifti1Image(RAMP * 0.5, np.eye(4))
    image.set_data_dtype(np.int16)
    nib.save(image, tmp_path / "a.nii")
    assert stored_type(tmp_path / "a.nii").kind == "f"
    with pytest.raises(InputError, match="whole numbers"):
        check_types([], [tmp_path / "a.nii"])
    holes = np.where(RAMP == 3, np.nan, RAMP)  # told apart from what float32 cannot hold, and refused elsewhere
    assert np.array_equal(as_image(holes, "a"), holes, equal_nan=True)
    constant = np.full(SHAPE, 0.1)  # a channel without an image, refused where it has to be scaled
    assert np.array_equal(as_image(constant, "a"), constant.astype(np.float32))


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "f8", ">f8", "longdouble"])
@pytest.mark.parametrize("order", ["C", "F", "turned"])
def test_a_range_tells_what_rounding_may_move(dtype, order):
    """The bound of the range never takes what the comparison voxel by voxel would refuse, and the other way round."""
    taken = 0
    for power in range(31):
        for step in (1, 3, 128):
            array = (RAMP * step + 2**power).astype(dtype, order="F" if order == "F" else "C")
            array = array.transpose(2, 0, 1)[::-1] if order == "turned" else array
            exact = array.astype(np.longdouble)
            fits = np.abs(array.astype(np.float32) - exact).max() <= ROUNDING * (exact.max() - exact.min())
            if fits:
                assert np.array_equal(as_image(array, "a"), array.astype(np.float32))
            else:
                with pytest.raises(InputError, match="rounding"):
                    as_image(array, "a")
            taken += fits
    assert 0 < taken < 93


def test_one_value_but_for_its_rounding_is_one_value():
    for pair in ((0.1 + 0.2, 0.3), (1e9 / 3, 1e9 / 3 * (1 + 2**-52)), (1e-310, 1e-310), (2**53 + 1,) * 2):
        array = np.resize(pair, SHAPE)
        assert np.array_equal(as_image(array, "a"), array.astype(np.float32))
    with pytest.raises(InputError, match="rounding"):
        as_image(np.resize([1e9, 1e9 + 1e-5], SHAPE), "a")
    with pytest.raises(InputError, match="rounding"):
        as_image(np.resize([1e-46, 3e-46], SHAPE), "a")  # below the smallest number of float32


def test_numbers_beyond_float32_are_refused_without_a_warning():
    for wrong in (np.resize([-1.7e308, 1.7e308], SHAPE), np.where(RAMP == 3, np.inf, RAMP * 1e300)):
        with pytest.raises(InputError, match="float32"):
            as_image(wrong, "a")
    for missing in (
        np.full(SHAPE, np.nan),
        np.full(SHAPE, -np.inf),
        np.where(RAMP == 3, np.inf, RAMP),
        np.zeros((0, 3)),
    ):
        assert np.array_equal(as_image(missing, "a"), missing, equal_nan=True)


def test_float32_is_not_copied_and_float64_needs_no_third_volume():
    image = RAMP.astype(np.float32)
    assert as_image(image, "a") is image
    array = np.random.default_rng(0).normal(size=(64, 64, 64))
    tracemalloc.start()
    as_image(array, "a")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.1 * array.nbytes / 2
