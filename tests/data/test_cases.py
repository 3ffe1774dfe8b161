"""Real cases: what is read is what was written, and what cannot be used is refused with its name."""

import errno
import gzip
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

from scripts.data.cases import open_cases
from scripts.data.description import read_description
from scripts.data.folds import crossval_folds
from scripts.data.lesion_crops import load_lesion_crops
from scripts.data.scaling import Scaling
from scripts.data.training_set import load_training_set
from scripts.runtime.errors import InputError

from .toy import toy_case, write_preprocessed, write_raw


@pytest.fixture
def raw(tmp_path):
    return write_raw(tmp_path / "Dataset901_Toy")


def overwrite(path: Path, array=None, affine=None):
    image = nib.load(path)
    array = np.asarray(image.dataobj) if array is None else array
    nib.save(nib.Nifti1Image(array, image.affine if affine is None else affine), path)


def test_raw_and_array_axes_agree(raw):
    cases = open_cases(raw)
    case = cases.load("toy_002")
    image, label = toy_case(2)
    assert np.array_equal(case.image, image) and np.array_equal(case.label, label)
    assert cases.spacing == (4.0, 1.5, 1.0)
    assert cases.space["kind"] == "raw"


def test_preprocessed_arrays_are_read_as_they_are(tmp_path):
    cases = open_cases(write_preprocessed(tmp_path / "Dataset901_Toy", masked=True), configuration="2d_small")
    case = cases.load("toy_001")
    assert cases.masked and not case.inside[:, :3].any() and case.inside[:, 3:].all()
    assert case.label.min() == 0 and set(np.unique(case.label)) == {0, 1, 2}
    assert cases.spacing == (4.0, 1.5, 1.0)
    assert cases.space["data_identifier"] == "nnUNetPlans_2d"


def test_space_does_not_depend_on_batch_size(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")
    a, b = (open_cases(folder, configuration=name).space for name in ("2d", "2d_small"))
    assert {k: v for k, v in a.items() if k not in ("sha256", "configuration")} == {
        k: v for k, v in b.items() if k not in ("sha256", "configuration")
    }


def test_hash_sees_every_voxel(raw):
    before = open_cases(raw).load("toy_000").identity.sha256
    array = np.asarray(nib.load(raw / "imagesTr/toy_000_0000.nii.gz").dataobj).copy()
    array[0, 0, 0] += 1
    overwrite(raw / "imagesTr/toy_000_0000.nii.gz", array)
    assert open_cases(raw).load("toy_000").identity.sha256 != before
    assert open_cases(raw).load("toy_001").identity.sha256 not in (
        before,
        open_cases(raw).load("toy_000").identity.sha256,
    )


def test_folds_are_those_of_nnunet(tmp_path):
    from nnunetv2.utilities.crossval_split import generate_crossval_split

    ids = [f"case_{i:02d}" for i in range(13)]
    assert crossval_folds(ids[::-1]) == [
        {k: [str(i) for i in v] for k, v in split.items()} for split in generate_crossval_split(ids, 12345, 5)
    ]


def test_fold_is_stored_for_nnunet_and_a_given_split_is_obeyed(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")
    first = open_cases(folder, fold=1).fold
    stored = json.loads((folder / "splits_final.json").read_text())
    assert stored[1] == {"train": first.train, "val": first.val}
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["toy_000"], "val": ["toy_003"]}]))
    given = open_cases(folder, fold=0).fold
    assert (given.train, given.val) == (["toy_000"], ["toy_003"])
    assert given.sha256 != first.sha256
    assert open_cases(folder, fold="all").fold.val == []


def test_regions_become_nested_channels_and_come_back(tmp_path):
    description = read_description(write_raw(tmp_path / "Dataset901_Toy", regions=True))
    label = toy_case(0)[1]
    channels = description.to_channels(label)
    assert (channels[1] <= channels[0]).all() and channels[1].any()
    assert np.array_equal(description.to_label_map(channels.astype(float)), label)


def test_labels_become_channels_and_come_back(raw):
    description = read_description(raw)
    label = toy_case(3)[1]
    assert np.array_equal(description.to_label_map(description.to_channels(label).astype(float)), label)
    assert description.num_channels == 3


def test_background_of_an_unmasked_space_is_kept(tmp_path):
    """nnU-Net marks the outside with -1 in every data set; without a masked normalisation its voxels are data."""
    folder = write_preprocessed(tmp_path / "Dataset901_Toy", masked=True)
    plans = json.loads((folder / "nnUNetPlans.json").read_text())
    plans["configurations"]["2d"]["use_mask_for_norm"] = [False]
    (folder / "nnUNetPlans.json").write_text(json.dumps(plans))
    case = open_cases(folder).load("toy_000")
    assert case.inside.all() and case.label.min() == 0
    scaling = Scaling.fit([case], per_case=False, masked=False)
    assert np.allclose(scaling.invert(scaling.apply(case))[0][:, :, :3], 0, atol=1e-4)


@pytest.mark.parametrize("splits", ["[", '[{"train": [], "val": []}]', '[{"train": ["toy_000"], "val": ["toy_000"]}]',
                                    '[{"train": ["toy_000"], "val": ["other"]}]',
                                    '[{"train": ["toy_000", "toy_000"], "val": []}]'])  # fmt: skip
def test_split_that_cannot_be_used(tmp_path, splits):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")
    (folder / "splits_final.json").write_text(splits)
    with pytest.raises(InputError, match="splits_final"):
        open_cases(folder)
    assert open_cases(folder, fold="all").fold.val == []


@pytest.mark.parametrize("fold", [5, -1, "some"])
def test_fold_that_does_not_exist(raw, fold):
    with pytest.raises(InputError, match="fold"):
        open_cases(raw, fold=fold)
    assert not (raw / "splits_final.json").exists()


def damage_missing_label(raw):
    (raw / "labelsTr/toy_003.nii.gz").unlink()


def damage_missing_image(raw):
    (raw / "imagesTr/toy_003_0000.nii.gz").unlink()


def damage_shape(raw):
    overwrite(raw / "labelsTr/toy_003.nii.gz", np.zeros((18, 20, 5), np.uint8))


def damage_affine(raw):
    overwrite(raw / "labelsTr/toy_003.nii.gz", affine=np.diag([1.0, 1.5, 5.0, 1.0]))


def damage_nan(raw):
    array = np.asarray(nib.load(raw / "imagesTr/toy_003_0000.nii.gz").dataobj, np.float32).copy()
    array[0, 0, 0] = np.nan
    overwrite(raw / "imagesTr/toy_003_0000.nii.gz", array)


def damage_empty(raw):
    overwrite(raw / "imagesTr/toy_003_0000.nii.gz", np.zeros((18, 20, 6), np.float32))


def damage_unknown_label(raw):
    array = np.asarray(nib.load(raw / "labelsTr/toy_003.nii.gz").dataobj).copy()
    array[0, 0, 0] = 7
    overwrite(raw / "labelsTr/toy_003.nii.gz", array)


def damage_one_empty_channel(raw):
    for case in range(6):
        path = raw / f"imagesTr/toy_{case:03d}_0001.nii.gz"
        image = nib.load(raw / f"imagesTr/toy_{case:03d}_0000.nii.gz")
        array = np.asarray(image.dataobj) * (case != 3)
        nib.save(nib.Nifti1Image(array.astype(np.float32), image.affine), path)
    description = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**description, "channel_names": {"0": "a", "1": "b"}}))


def damage_fractional_label(raw):
    array = np.asarray(nib.load(raw / "labelsTr/toy_003.nii.gz").dataobj, np.float32)
    overwrite(raw / "labelsTr/toy_003.nii.gz", np.where(array == 2, 1.9, array).astype(np.float32))


def damage_spacing_of_one_case(raw):
    for name in ("imagesTr/toy_003_0000", "labelsTr/toy_003"):
        overwrite(raw / f"{name}.nii.gz", affine=np.diag([1.0, 3.0, 4.0, 1.0]))


def damage_unreadable(raw):
    (raw / "imagesTr/toy_003_0000.nii.gz").write_bytes(b"no image")


def damage_directions(raw):
    """Of the first case, by whose axes the others are turned."""
    for path in raw.glob("*Tr/toy_000*.nii.gz"):
        image = bytearray(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), np.eye(4)).to_bytes())
        image[280:328] = bytes(48)  # the rows of the sform
        path.write_bytes(gzip.compress(image))


@pytest.mark.filterwarnings("ignore:.*:UserWarning")
@pytest.mark.parametrize(
    "damage, words",
    [
        (damage_missing_label, "without a label: toy_003"),
        (damage_missing_image, "toy_003_0000"),
        (damage_shape, "same grid"),
        (damage_affine, "same grid"),
        (damage_nan, "NaN"),
        (damage_empty, "empty"),
        (damage_unknown_label, r"\[7\]"),
        (damage_one_empty_channel, "toy_003, channel 1 is empty"),
        (damage_fractional_label, "toy_003.*whole numbers"),
        (damage_spacing_of_one_case, r"case toy_003 .*spacing"),
        (damage_unreadable, "cannot be read"),
        (damage_directions, "where its axes point"),
    ],
)
def test_damaged_raw_data(raw, damage, words):
    damage(raw)
    with pytest.raises(InputError, match=words) as caught:
        cases = open_cases(raw, fold="all")
        for _ in cases.training():
            pass
    assert "remedy" in str(caught.value)


def test_damaged_preprocessed_data(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")
    with pytest.raises(InputError, match="nnUNetPlans.json"):
        open_cases(folder, configuration="3d_lowres")
    with pytest.raises(InputError, match="Other"):
        open_cases(folder, plans="Other")
    good = (folder / "nnUNetPlans_2d/toy_003_seg.b2nd").read_bytes()
    (folder / "nnUNetPlans_2d/toy_003_seg.b2nd").write_bytes(good[:40])
    with pytest.raises(InputError, match="toy_003.*cannot be read"):
        open_cases(folder).load("toy_003")
    for name in ("toy_003.b2nd", "toy_003_seg.b2nd", "toy_003.pkl"):
        (folder / "nnUNetPlans_2d" / name).unlink()
    with pytest.raises(InputError, match="5 preprocessed cases"):  # preprocessing was interrupted
        open_cases(folder)
    (folder / "nnUNetPlans_2d").rename(folder / "elsewhere")
    with pytest.raises(InputError, match="nnUNetv2_plan_and_preprocess -d 901"):
        open_cases(folder)
    with pytest.raises(InputError, match="no folder"):
        open_cases(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_cases(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": {"background": 0}},
        {"labels": {"tumour": 1}},
        {"labels": {"background": 0, "a": [1, 2]}},
        {"labels": {"background": 0, "a": "1"}},
        {"labels": {"background": 0, "a": 300}},
        {"labels": [0, 1]},
        {"channel_names": {}},
        {"channel_names": {"1": "a"}},
    ],
)
def test_labels_that_cannot_be_used(tmp_path, changes):
    folder = write_raw(tmp_path / "Dataset901_Toy", **changes)
    with pytest.raises(InputError, match=r"dataset\.json"):
        open_cases(folder)


def test_the_files_that_dataset_json_lists_are_the_cases(tmp_path, monkeypatch):
    raw = write_raw(tmp_path / "Dataset901_Toy", cases=7)
    (raw / "labelsTr").rename(raw / "elsewhere")
    monkeypatch.setenv("TOY_ROOT", str(raw))
    listed = {
        f"p{i}": {"images": [f"imagesTr/toy_{i:03d}_0000.nii.gz"], "label": f"$TOY_ROOT/elsewhere/toy_{i:03d}.nii.gz"}
        for i in range(1, 6)
    }
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))
    cases = open_cases(raw)
    assert sorted([*cases.fold.train, *cases.fold.val]) == sorted(listed)
    assert np.array_equal(cases.load("p2").image, toy_case(2)[0])
    (raw / "imagesTr").rename(raw / "pictures")
    with pytest.raises(InputError, match="missing images"):
        open_cases(raw)
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": {"p1": {"images": []}}}))
    with pytest.raises(InputError, match="`dataset`"):
        open_cases(raw)


@pytest.mark.parametrize("axes", ["LPS", "RAI", "ARS", "SPL"])
def test_files_of_another_voxel_order_are_turned_to_that_of_the_first(tmp_path, axes):
    raw = write_raw(tmp_path / "Dataset901_Toy", channels=2)
    before = open_cases(raw)
    straight = before.load("toy_003")
    for name in ("imagesTr/toy_003_0000", "imagesTr/toy_003_0001", "labelsTr/toy_003"):
        path = raw / f"{name}.nii.gz"
        image = nib.Nifti1Image(np.asarray(nib.load(path).dataobj), nib.load(path).affine)
        turn = ornt_transform(io_orientation(image.affine), axcodes2ornt(axes))
        nib.save(image.as_reoriented(turn), path)
    cases = open_cases(raw)
    turned = cases.load("toy_003")
    assert np.array_equal(turned.image, straight.image) and np.array_equal(turned.label, straight.label)
    assert turned.identity == straight.identity and cases.space == before.space
    assert np.allclose(cases.affine_of("toy_003"), cases.affine_of("toy_000"))


def test_a_single_channel_needs_no_number_and_hidden_files_are_no_cases(tmp_path):
    raw = write_raw(tmp_path / "Dataset901_Toy")
    (raw / "imagesTr/toy_002_0000.nii.gz").rename(raw / "imagesTr/toy_002.nii.gz")
    for folder in ("imagesTr", "labelsTr"):
        (raw / folder / "._toy_001.nii.gz").write_bytes(b"resource fork")
    cases = open_cases(raw)
    assert len([*cases.fold.train, *cases.fold.val]) == 6
    assert np.array_equal(cases.load("toy_002").image, toy_case(2)[0])


def test_one_file_for_three_channels_is_refused_in_words(tmp_path):
    raw = write_raw(tmp_path / "Dataset120_Roads", channel_names={"0": "R", "1": "G", "2": "B"})
    with pytest.raises(InputError, match="one image file a case for 3 channels"):
        open_cases(raw)


@pytest.mark.parametrize("ending", [".mha", ".nrrd", ".tif", ".Nii.gz"])
def test_raw_volumes_of_other_formats_are_for_nnunet_to_preprocess(tmp_path, ending):
    raw = write_raw(tmp_path / "Dataset901_Toy", file_ending=ending)
    with pytest.raises(InputError, match=rf"file_ending \{ending}.*allowed: .nii.gz or .nii.*nnUNet_preprocessed"):
        open_cases(raw)


def test_a_folder_that_cannot_be_written_is_read_all_the_same(tmp_path, monkeypatch, caplog):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")

    def refused(path, content):
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr("scripts.data.folds.write_json", refused)
    assert open_cases(folder).fold.train and "splits_final.json cannot be written" in caplog.text


def test_a_linked_folder_is_the_same_data_set(tmp_path):
    folder = write_preprocessed(tmp_path / "Dataset901_Toy")
    link = tmp_path / "Dataset902_Link"
    link.symlink_to(folder, target_is_directory=True)
    one, two = open_cases(folder), open_cases(link)
    assert (one.description, one.space, one.fold) == (two.description, two.space, two.fold)


@pytest.mark.parametrize("dtype, slope", [
    (np.float32, 1.0), (np.uint8, 3.0), (np.int16, 5.0), (np.float64, 1e-9), (np.float32, -2.0),
])  # fmt: skip
def test_one_image_in_training_and_validation_is_refused(tmp_path, dtype, slope):
    """Whatever the type of its voxels, and however they were scaled."""
    raw = write_raw(tmp_path / "Dataset901_Toy")
    fold = open_cases(raw).fold
    one, two = fold.train[0], fold.val[0]
    image = nib.load(raw / f"imagesTr/{one}_0000.nii.gz")
    values = slope * (np.asarray(image.dataobj, np.float64) - 7)
    if np.issubdtype(dtype, np.integer):
        values = (values - values.min()) / np.ptp(values) * 200
    nib.save(nib.Nifti1Image(values.astype(dtype), image.affine), raw / f"imagesTr/{two}_0000.nii.gz")
    for load in (load_training_set, load_lesion_crops):
        with pytest.raises(InputError, match=f"{two} .seen as {one}"):
            load(open_cases(raw), (24, 24))


def test_files_of_other_editors_say_the_same(tmp_path):
    """With a byte order mark, and lines that end as on Windows."""
    write_preprocessed(tmp_path / "Dataset901_Toy")
    before = open_cases(tmp_path / "Dataset901_Toy", 1)
    for name in ("dataset.json", "splits_final.json", "nnUNetPlans.json"):
        file = tmp_path / "Dataset901_Toy" / name
        file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    after = open_cases(tmp_path / "Dataset901_Toy", 1)
    assert (after.description, after.fold, after.space) == (before.description, before.fold, before.space)
