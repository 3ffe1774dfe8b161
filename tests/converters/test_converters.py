"""Challenge layouts to nnU-Net raw: values, geometry, labels, patients, refusals, and interruptions."""

import json
import os
import signal
from multiprocessing.pool import ThreadPool
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.converters import convert, raw_dataset
from scripts.converters.raw_dataset import SourceCase, _patient_folds
from scripts.data.cases import open_cases
from scripts.runtime.errors import InputError

from ..processes import python

ROOT = Path(__file__).resolve().parents[2]
SHAPE = (12, 14, 10)
TURN = np.array([[0.96, -0.28, 0], [0.28, 0.96, 0], [0, 0, 1]])


def grid(spacing, first):
    """An affine: axes turned by TURN, with the spacing, from the first voxel."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = TURN * spacing, first
    return affine


# No round numbers: an affine that passes through other arithmetic comes back different.
AFFINE = grid((-1.1, -0.9, 1.3), (7.3, -239.7, 0.1))
BRATS_FILES = {
    "2021": ("BraTS2021_{:05d}", "_", ("t1", "t1ce", "t2", "flair"), (1, 2, 4)),
    "2023": ("BraTS-GLI-{:05d}-000", "-", ("t1n", "t1c", "t2w", "t2f"), (1, 2, 3)),
}


def write(path, array, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def read(path):
    return np.asarray(nib.load(path).dataobj)


def contents(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def names(folder):
    return sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []


def brats(folder, year="2021", cases=5, extra=()):
    """BraTS cases with all three tissues; `extra` are further names of cases."""
    pattern, separator, suffixes, integers = BRATS_FILES[year]
    for number, name in enumerate([*(pattern.format(i) for i in range(cases)), *extra]):
        rng = np.random.default_rng(number)
        for suffix in suffixes:
            write(folder / name / f"{name}{separator}{suffix}.nii.gz", rng.integers(0, 999, SHAPE).astype(np.int16))
        label = rng.choice([0, *integers], SHAPE).astype(np.int16)
        write(folder / name / f"{name}{separator}seg.nii.gz", label)
    return folder


SLOPE = np.array([0.05, -0.03, 0.04])
# PET coarse, CT and label finer, both obliquely placed with origins of their own.
PET_AFFINE = grid((-4.0, -4.0, 3.0), TURN @ (40.0, 40.0, -30.0))
CT_AFFINE = grid((-1.5, -1.5, 2.0), TURN @ (30.0, 30.0, -24.3))  # no voxel of 1 mm is as near to two voxels


def positions(shape, affine):
    return np.stack(np.indices(shape), -1) @ affine[:3, :3].T + affine[:3, 3]


def suv(points):
    return points @ SLOPE + 7


def hounsfield(points):
    return points @ SLOPE * 40 - 100


TUMOURS = {"CHUM-001": (5.0, -3.0, 2.0), "CHUM-002": (-20.0, 10.0, -15.0), "MDA-001": (12.0, 15.0, 20.0)}
NODE = np.array((-9.0, 0.0, -9.0))


def hecktor(folder, ct=True):
    """Patients whose intensities are linear in space: linear interpolation has to return them exactly."""
    for name, centre in TUMOURS.items():
        write(folder / f"imagesTr/{name}__PT.nii.gz", suv(positions((20, 20, 21), PET_AFFINE)), PET_AFFINE)
        points = positions((41, 41, 25), CT_AFFINE)
        if ct:
            write(folder / f"imagesTr/{name}__CT.nii.gz", hounsfield(points).astype(np.float32), CT_AFFINE)
        label = (np.linalg.norm(points - centre, axis=-1) < 6).astype(np.uint8)
        label[np.linalg.norm(points - centre - NODE, axis=-1) < 4] = 2
        write(folder / f"labelsTr/{name}.nii.gz", label, CT_AFFINE)
    points = positions((20, 20, 21), PET_AFFINE)
    write(folder / "imagesTr/CHUP-009__PT.nii.gz", suv(points), PET_AFFINE)
    write(folder / "imagesTr/CHUP-009__CT.nii.gz", suv(points), PET_AFFINE)
    write(folder / "labelsTr/CHUP-009.nii.gz", (np.arange(20 * 20 * 21) == 4211).reshape(20, 20, 21) * 2.0, PET_AFFINE)
    return folder


def msd(folder, channels=2, cases=5):
    """A task with scaled int16 images, channels last, and the hidden files that the archives hold."""
    rng = np.random.default_rng(1)
    training = []
    shape = SHAPE if channels == 1 else (*SHAPE, channels)
    for split, index in [*(("Tr", i) for i in range(cases)), ("Ts", 90), ("Ts", 91)]:
        image = nib.Nifti1Image(rng.integers(-300, 300, shape).astype(np.int16), AFFINE)
        image.header.set_slope_inter(0.37, -3)
        path = folder / f"images{split}" / f"prostate_{index:02d}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, path)
        (path.parent / f"._{path.name}").write_bytes(b"resource fork")
        if split == "Tr":
            write(folder / "labelsTr" / path.name, rng.integers(0, 3, SHAPE).astype(np.float32))
            training.append({"image": f"./imagesTr/{path.name}", "label": f"./labelsTr/{path.name}"})
    content = {
        "modality": {str(i): name for i, name in enumerate(["T2", "ADC", "DWI"][:channels])},
        "labels": {"0": "background", "1": "PZ", "2": "TZ"},
        "training": training,
        "test": ["./imagesTs/prostate_90.nii.gz", "./imagesTs/prostate_91.nii.gz"],
    }
    (folder / "dataset.json").write_text(json.dumps(content))
    return folder


WRITERS = {"brats": brats, "hecktor": hecktor, "msd": msd}
OPTIONS: dict = {"brats": {}, "hecktor": {"crop": 40}, "msd": {}}


class Threads:
    """Stands for a start method: nnU-Net starts processes that import torch; threads do the same work sooner."""

    Pool = ThreadPool


@pytest.fixture
def source(request, tmp_path):
    return WRITERS[request.param](tmp_path / "Task05_Source")


@pytest.mark.parametrize("year", BRATS_FILES)
def test_brats_voxels_affines_and_tissues(tmp_path, year):
    pattern, separator, suffixes, (necrosis, oedema, enhancing) = BRATS_FILES[year]
    source = brats(tmp_path / "src", year)
    made = convert("brats", source, tmp_path)
    assert made == tmp_path / "Dataset137_BraTS"
    description = json.loads((made / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "T1", "1": "T1c", "2": "T2", "3": "FLAIR"}
    assert description["numTraining"] == 5 and names(made) == ["dataset.json", "imagesTr", "labelsTr"]
    for number in range(5):
        case = pattern.format(number)
        for channel, suffix in enumerate(suffixes):
            copy = made / f"imagesTr/{case}_{channel:04d}.nii.gz"
            assert copy.read_bytes() == (source / case / f"{case}{separator}{suffix}.nii.gz").read_bytes()
        before = nib.load(source / case / f"{case}{separator}seg.nii.gz")
        after = nib.load(made / f"labelsTr/{case}.nii.gz")
        assert after.get_data_dtype() == np.uint8
        for form in ("get_sform", "get_qform"):
            (matrix, code), (expected, expected_code) = (getattr(i.header, form)(coded=True) for i in (after, before))
            assert code == expected_code and (matrix is expected or (matrix == expected).all())
        assert (after.affine == before.affine).all()
        tissues, label = read(source / case / f"{case}{separator}seg.nii.gz"), read(made / f"labelsTr/{case}.nii.gz")
        for mine, theirs in enumerate((0, oedema, necrosis, enhancing)):
            assert np.array_equal(label == mine, tissues == theirs)
    # The regions of BraTS, in the order in which they are painted.
    cases = open_cases(made)
    case = cases.load(pattern.format(3))
    tissues = read(source / case.id / f"{case.id}{separator}seg.nii.gz").T
    regions = [(necrosis, oedema, enhancing), (necrosis, enhancing), (enhancing,)]
    assert np.array_equal(
        cases.description.to_channels(case.label), np.stack([np.isin(tissues, values) for values in regions])
    )
    assert [name for name, _ in cases.description.foreground] == ["whole_tumor", "tumor_core", "enhancing_tumor"]
    assert np.array_equal(cases.description.to_label_map(cases.description.to_channels(case.label)), case.label)


def test_brats_one_channel_and_the_whole_tumour(tmp_path):
    source = brats(tmp_path / "src", cases=2)
    for case in source.iterdir():  # channels that are not asked for need not be there
        (case / f"{case.name}_t1.nii.gz").unlink()
    made = convert("brats", source, tmp_path / "Dataset007_WT", modalities=["flair"], target="whole")
    description = json.loads((made / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "FLAIR"} and "regions_class_order" not in description
    assert description["labels"] == {"background": 0, "whole_tumor": 1}
    case = "BraTS2021_00001"
    assert np.array_equal(read(made / f"imagesTr/{case}_0000.nii.gz"), read(source / case / f"{case}_flair.nii.gz"))
    assert np.array_equal(read(made / f"labelsTr/{case}.nii.gz"), read(source / case / f"{case}_seg.nii.gz") > 0)


@pytest.mark.slow
def test_scans_of_a_patient_stay_on_one_side(tmp_path):
    extra = [f"BraTS-GLI-{patient:05d}-{scan:03d}" for patient in (0, 2, 5, 7) for scan in (1, 2)]
    source = brats(tmp_path / "src", "2023", cases=8, extra=extra)
    drawn = set()
    for seed in range(4):
        made = convert("brats", source, tmp_path / f"Dataset{seed + 1:03d}_Held", test_fraction=0.25, seed=seed)
        sides = [{name[:15] for name in names(made / f"labels{split}")} for split in ("Tr", "Ts")]
        assert not sides[0] & sides[1] and len(sides[1]) == 2 and len(sides[0] | sides[1]) == 8
        assert len(names(made / "labelsTr")) + len(names(made / "labelsTs")) == 16
        assert len(names(made / "imagesTs")) == 4 * len(names(made / "labelsTs"))
        description = json.loads((made / "dataset.json").read_text())
        assert set(description["converted"]["test_patients"]) == sides[1]
        assert description["numTraining"] == len(names(made / "labelsTr"))
        drawn.add(tuple(sorted(sides[1])))
        validated = []
        for fold in range(5):
            parts = open_cases(made, fold=fold).fold
            assert not {case[:15] for case in parts.train} & {case[:15] for case in parts.val}
            assert len(parts.train) + len(parts.val) == description["numTraining"]
            validated += parts.val
        assert sorted(f"{case}.nii.gz" for case in validated) == names(made / "labelsTr")
    assert len(drawn) > 1
    counted = convert("brats", source, tmp_path / "Dataset009_Held", test_cases=2, seed=3)
    assert names(counted / "labelsTs") == names(made / "labelsTs")


@pytest.mark.parametrize("patients", [2, 3, 4])
def test_few_patients_of_several_scans_stay_on_one_side_in_all_five_folds(patients):
    scans = [f"p{patient}-{scan}" for patient in range(patients) for scan in range(3)]
    folds = _patient_folds([SourceCase(scan, scan[:2], (), None) for scan in scans])
    assert len(folds) == 5  # nnU-Net draws by scans where one is missing
    for fold in folds:
        assert sorted([*fold["train"], *fold["val"]]) == scans and fold["train"] and fold["val"]
        assert not {scan[:2] for scan in fold["train"]} & {scan[:2] for scan in fold["val"]}
    assert {scan for fold in folds for scan in fold["val"]} == {*scans}


def test_scans_of_one_patient_are_no_data_set_to_validate_on():
    with pytest.raises(InputError, match="patient p0"):
        _patient_folds([SourceCase(f"p0-{scan}", "p0", (), None) for scan in range(6)])


@pytest.mark.parametrize("target", ["GTVp", "both"])
def test_hecktor_is_the_same_patient_in_a_cube_of_1_mm(tmp_path, target, capsys):
    made = convert("hecktor", hecktor(tmp_path / "src"), tmp_path, target=target, ct=True, crop=40)
    assert made.name == "Dataset222_HECKTOR2022"
    description = json.loads((made / "dataset.json").read_text())
    assert description["channel_names"] == {"0": "PET", "1": "CT"}
    skipped = {} if target == "both" else {"CHUP-009": "no GTVp"}
    assert description["converted"]["skipped"] == skipped and ("CHUP-009" in capsys.readouterr().err) == bool(skipped)
    assert names(made / "labelsTr") == sorted(f"{n}.nii.gz" for n in [*TUMOURS, *([] if skipped else ["CHUP-009"])])
    padded = 0
    for name in TUMOURS:
        label = nib.load(made / f"labelsTr/{name}.nii.gz")
        assert label.shape == (40, 40, 40) and label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(label.affine[:3, :3], TURN * (-1, -1, 1), atol=1e-6)
        lattice = TURN.T @ (label.affine[:3, 3] - PET_AFFINE[:3, 3])
        np.testing.assert_allclose(lattice, np.round(lattice), atol=1e-4)
        # The label: the nearest voxel of the source, about the centre of its box.
        here = positions(label.shape, label.affine)
        values, source = read(made / f"labelsTr/{name}.nii.gz"), read(tmp_path / f"src/labelsTr/{name}.nii.gz")
        kept = source * (source <= (2 if target == "both" else 1))
        nearest = np.rint((here - CT_AFFINE[:3, 3]) @ np.linalg.inv(CT_AFFINE[:3, :3]).T).astype(int)
        inside = ((nearest >= 0) & (nearest < source.shape)).all(-1)
        expected = np.zeros(label.shape, int)
        expected[inside] = kept[tuple(nearest[inside].T)]
        assert np.array_equal(values, expected) and (values == 1).sum() > 500
        box = np.argwhere(kept)
        middle = positions((1, 1, 1), CT_AFFINE)[0, 0, 0] + CT_AFFINE[:3, :3] @ (box.min(0) + box.max(0)) / 2
        off = TURN.T @ (label.affine @ [19.5, 19.5, 19.5, 1])[:3] - TURN.T @ middle
        assert np.abs(off).max() <= 0.501
        # The images: linear in space as written, their minimum beyond the field of view.
        for channel, (law, kind, affine) in enumerate([(suv, "PT", PET_AFFINE), (hounsfield, "CT", CT_AFFINE)]):
            image = nib.load(made / f"imagesTr/{name}_{channel:04d}.nii.gz")
            np.testing.assert_allclose(image.affine, label.affine, atol=1e-5)
            original = read(tmp_path / f"src/imagesTr/{name}__{kind}.nii.gz")
            voxel = (here - affine[:3, 3]) @ np.linalg.inv(affine[:3, :3]).T
            within = ((voxel > 0) & (voxel < np.array(original.shape) - 1)).all(-1)
            beyond = ((voxel < -0.51) | (voxel > np.array(original.shape) - 0.49)).any(-1)
            array = read(made / f"imagesTr/{name}_{channel:04d}.nii.gz")
            assert array.dtype == np.float32 and within.sum() > 20000
            np.testing.assert_allclose(array[within], law(here)[within], atol=2e-3)
            np.testing.assert_allclose(array[beyond], original.min(), rtol=1e-5)
            padded += beyond.sum()
    assert padded > 1000


@pytest.mark.parametrize("channels", [1, 2])
def test_msd_channels_values_and_test_images(tmp_path, channels):
    source = msd(tmp_path / "Task05_Prostate", channels)
    made = convert("msd", source, tmp_path)
    assert made.name == "Dataset005_Prostate"
    description = json.loads((made / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "PZ": 1, "TZ": 2} and description["numTraining"] == 5
    assert list(description["channel_names"].values()) == ["T2", "ADC"][:channels]
    assert len(names(made / "imagesTr")) == 5 * channels and len(names(made / "imagesTs")) == 2 * channels
    assert not (made / "labelsTs").exists()
    for split in ("Tr", "Ts"):
        for path in (source / f"images{split}").glob("prostate_*"):
            original = nib.load(path)
            array = original.get_fdata().reshape(*SHAPE, channels)
            for channel in range(channels):
                copy = nib.load(made / f"images{split}" / path.name.replace(".nii", f"_{channel:04d}.nii"))
                assert copy.shape == SHAPE and copy.get_data_dtype() == np.int16
                assert (copy.get_fdata() == array[..., channel]).all() and (copy.affine == original.affine).all()
    for path in (source / "labelsTr").glob("prostate_*"):
        assert (made / "labelsTr" / path.name).read_bytes() == path.read_bytes()
    held = convert("msd", source, tmp_path / "Dataset006_Held", test_cases=2)
    assert len(names(held / "labelsTs")) == 2 and len(names(held / "imagesTs")) == 2 * channels
    assert (
        {n[:11] for n in names(held / "imagesTs")}
        == {n[:11] for n in names(held / "labelsTs")}
        <= {n[:11] for n in names(source / "labelsTr")}
    )


@pytest.mark.slow
@pytest.mark.parametrize("source", WRITERS, indirect=True)
def test_nnunet_and_the_project_accept_it_and_the_bytes_repeat(source, request, tmp_path, monkeypatch):
    format = request.node.callspec.params["source"]
    made = convert(format, source, tmp_path / "Dataset300_A", test_cases=1, **OPTIONS[format])
    again = convert(format, source, tmp_path / "Dataset301_B", test_cases=1, **OPTIONS[format])
    assert contents(made) == contents(again)
    assert {path.read_bytes()[4:8] for path in made.rglob("*.nii.gz")} == {bytes(4)}  # gzip's time of writing
    cases = open_cases(made, fold="all")
    assert len(list(cases.training())) == json.loads((made / "dataset.json").read_text())["numTraining"] > 1
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    from nnunetv2.experiment_planning import verify_dataset_integrity as nnunet

    monkeypatch.setattr("multiprocessing.get_context", lambda _: Threads)
    nnunet.verify_dataset_integrity(str(made), 1)
    path = next((made / "labelsTr").iterdir())
    write(path, read(path) + 7, nib.load(path).affine)
    with pytest.raises(RuntimeError, match="labels"):
        nnunet.verify_dataset_integrity(str(made), 1)


@pytest.mark.parametrize("channels", [1, 2])
def test_msd_is_what_nnunets_own_converter_makes(tmp_path, monkeypatch, channels):
    source = msd(tmp_path / "Task05_Prostate", channels)
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(tmp_path))
    from nnunetv2.dataset_conversion.convert_MSD_dataset import convert_msd_dataset

    monkeypatch.setattr("multiprocessing.get_context", lambda _: Threads)
    convert_msd_dataset(str(source), num_processes=1)
    theirs, mine = tmp_path / "Dataset005_Prostate", convert("msd", source, tmp_path / "mine")
    assert contents(theirs).keys() == contents(mine).keys()
    for path in theirs.rglob("*.nii.gz"):
        other = nib.load(mine / path.relative_to(theirs))
        np.testing.assert_allclose(nib.load(path).get_fdata(), other.get_fdata(), atol=1e-4)
        np.testing.assert_allclose(nib.load(path).affine, other.affine, atol=1e-4)
    described = [json.loads((folder / "dataset.json").read_text()) for folder in (theirs, mine)]
    for key in ("channel_names", "labels", "file_ending"):
        assert described[0][key] == described[1][key]


KILLED = """
import os, signal, sys
from scripts.converters import convert, raw_dataset
replace, seen = os.replace, []
def replace_or_die(source, target):
    if "unfinished" in str(source):
        seen.append(target)
        if len(seen) == int(sys.argv[4]):
            os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target)
raw_dataset.os.replace = replace_or_die
convert(sys.argv[1], sys.argv[2], sys.argv[3], test_cases=1)
"""


@pytest.mark.slow
def test_killed_it_leaves_no_data_set_and_goes_on(tmp_path):
    source, target = brats(tmp_path / "src"), tmp_path / "Dataset137_BraTS"
    arguments = ["brats", str(source), str(target), "13"]  # in the third of five cases, after two of its files
    died = python("-c", KILLED, *arguments)
    assert died.returncode == -signal.SIGKILL
    draft = tmp_path / "Dataset137_BraTS.partial"
    assert not target.exists() and not (draft / "dataset.json").exists()
    before = {path: path.stat().st_mtime_ns for path in draft.glob("labels*/*")}
    assert len(before) == 2
    changed = source / "BraTS2021_00001/BraTS2021_00001_t1.nii.gz"  # written anew, though finished before
    write(changed, read(changed)[::-1])
    convert("brats", source, target, test_cases=1)
    assert not draft.exists()
    kept = [path for path, time in before.items() if (target / path.relative_to(draft)).stat().st_mtime_ns == time]
    assert [path.name for path in kept] == ["BraTS2021_00000.nii.gz"]
    assert contents(target) == contents(convert("brats", source, tmp_path / "Dataset002_Whole", test_cases=1))


def test_interrupted_with_other_settings_it_starts_anew(tmp_path, monkeypatch):
    source, target = brats(tmp_path / "src"), tmp_path / "Dataset137_BraTS"
    expected = contents(convert("brats", source, tmp_path / "Dataset001_Whole", target="whole"))

    def stop(source, target, replace=os.replace):
        if "00002_0003" in str(target):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(raw_dataset.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            convert("brats", source, target)
    assert len(list((tmp_path / f"{target.name}.partial").glob("labelsTr/*"))) == 2
    assert contents(convert("brats", source, target, target="whole")) == expected
    assert not (tmp_path / f"{target.name}.partial").exists()


def spoil_brats_missing(folder):
    (folder / "BraTS2021_00003/BraTS2021_00003_t1ce.nii.gz").unlink()


def spoil_brats_grid(folder):
    path = folder / "BraTS2021_00003/BraTS2021_00003_t2.nii.gz"
    write(path, read(path), AFFINE + np.eye(4) * 0.01)


def spoil_brats_shape(folder):
    path = folder / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz"
    write(path, read(path)[:-1])


def spoil_brats_value(folder):
    path = folder / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz"
    write(path, np.full(SHAPE, 3, np.int16))


def spoil_brats_fraction(folder):
    path = folder / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz"
    write(path, np.full(SHAPE, 0.5, np.float32))


def spoil_brats_truncated(folder):
    path = folder / "BraTS2021_00003/BraTS2021_00003_seg.nii.gz"
    path.write_bytes(path.read_bytes()[:-300])


def spoil_brats_no_nifti(folder):
    (folder / "BraTS2021_00003/BraTS2021_00003_t1.nii.gz").write_bytes(b"no image")


def spoil_brats_mixed(folder):
    (folder / "BraTS-GLI-00003-000").mkdir()


def spoil_brats_unknown(folder):
    (folder / "BraTS20_Training_001").mkdir()


def spoil_hecktor_missing(folder):
    (folder / "imagesTr/CHUM-002__PT.nii.gz").unlink()


def spoil_hecktor_unlabelled(folder):
    (folder / "labelsTr/CHUM-002.nii.gz").unlink()


def spoil_hecktor_value(folder):
    path = folder / "labelsTr/CHUM-002.nii.gz"
    write(path, read(path) * 2, CT_AFFINE)


def spoil_hecktor_frame(folder):
    path = folder / "labelsTr/CHUM-002.nii.gz"
    write(path, read(path), grid((-1.5, -1.5, 2.0), (500.0, 0, 0)))


def spoil_hecktor_wide(folder):
    path = folder / "labelsTr/CHUM-002.nii.gz"
    write(path, np.ones_like(read(path)), CT_AFFINE)


def spoil_hecktor_small(folder):
    label = np.zeros((200, 200, 9), np.uint8)
    label[98, 98, 4] = 1
    write(folder / "labelsTr/CHUM-002.nii.gz", label, grid((-0.1, -0.1, 0.1), TURN @ (0.3, 0.3, 0.3)))


def spoil_hecktor_infinite(folder):
    path = folder / "imagesTr/CHUM-002__PT.nii.gz"
    array = read(path).copy()
    array[3, 4, 5] = np.inf
    write(path, array, PET_AFFINE)


def spoil_msd_missing(folder):
    (folder / "labelsTr/prostate_03.nii.gz").unlink()


def spoil_msd_unlisted(folder):
    write(folder / "imagesTr/prostate_33.nii.gz", np.zeros(SHAPE, np.int16))


def spoil_msd_twice(folder):
    content = json.loads((folder / "dataset.json").read_text())
    content["training"].append(content["training"][3])
    (folder / "dataset.json").write_text(json.dumps(content))


def spoil_msd_training_is_test(folder):
    content = json.loads((folder / "dataset.json").read_text())
    content["test"] = [
        "./imagesTs/prostate_90.nii.gz",
        "./imagesTs/prostate_91.nii.gz",
        "./imagesTr/prostate_03.nii.gz",
    ]
    (folder / "dataset.json").write_text(json.dumps(content))


def spoil_msd_channels(folder):
    path = folder / "imagesTr/prostate_03.nii.gz"
    write(path, read(path)[..., :1].astype(np.int16))


def spoil_msd_grid(folder):
    path = folder / "labelsTr/prostate_03.nii.gz"
    write(path, read(path), AFFINE + np.eye(4) * 0.01)


def spoil_msd_value(folder):
    write(folder / "labelsTr/prostate_03.nii.gz", np.full(SHAPE, 3, np.uint8))


def spoil_msd_no_json(folder):
    (folder / "dataset.json").unlink()


def spoil_msd_gap(folder):
    content = json.loads((folder / "dataset.json").read_text())
    content["labels"] = {"0": "background", "1": "PZ", "3": "TZ"}
    (folder / "dataset.json").write_text(json.dumps(content))


SPOILT = [
    (spoil_brats_missing, ["case BraTS2021_00003", "BraTS2021_00003_t1ce.nii.gz", "_seg.nii.gz"]),
    (spoil_brats_grid, ["case BraTS2021_00003", "BraTS2021_00003_t2.nii.gz", "another grid", "affine"]),
    (spoil_brats_shape, ["case BraTS2021_00003", "BraTS2021_00003_seg.nii.gz", "(11, 14, 10)"]),
    (spoil_brats_value, ["case BraTS2021_00003", "BraTS2021_00003_seg.nii.gz holds 3", "[0, 1, 2, 4]"]),
    (spoil_brats_fraction, ["case BraTS2021_00003", "BraTS2021_00003_seg.nii.gz holds 0.5"]),
    (spoil_brats_truncated, ["case BraTS2021_00003", "BraTS2021_00003_seg.nii.gz cannot be read"]),
    (spoil_brats_no_nifti, ["case BraTS2021_00003", "BraTS2021_00003_t1.nii.gz cannot be read"]),
    (spoil_brats_mixed, ["BraTS-GLI-00003-000 (2023)", "BraTS2021_00000 (2021/2022)"]),
    (spoil_brats_unknown, ["BraTS20_Training_001 (unknown)", "BraTS2021_00000 (2021/2022)"]),
    (spoil_hecktor_missing, ["case CHUM-002", "CHUM-002__PT.nii.gz"]),
    (spoil_hecktor_unlabelled, ["case CHUM-002", "labelsTr/CHUM-002.nii.gz"]),
    (spoil_hecktor_value, ["case CHUM-002", "labelsTr/CHUM-002.nii.gz holds 4", "[0, 1, 2]"]),
    (spoil_hecktor_frame, ["case CHUM-002", "labelsTr/CHUM-002.nii.gz lies outside", "CHUM-002__PT.nii.gz"]),
    (spoil_hecktor_wide, ["case CHUM-002", "labelsTr/CHUM-002.nii.gz extends over 60 mm", "--crop 61"]),
    (spoil_hecktor_small, ["case CHUM-002", "label [1] of", "CHUM-002.nii.gz is lost at 1 mm"]),
    (spoil_hecktor_infinite, ["case CHUM-002", "CHUM-002__PT.nii.gz", "NaN or infinite"]),
    (spoil_msd_missing, ["case prostate_03", "labelsTr/prostate_03.nii.gz"]),
    (spoil_msd_unlisted, ["case prostate_33", "imagesTr/prostate_33.nii.gz is not in dataset.json"]),
    (spoil_msd_twice, ["case prostate_03", "dataset.json", "twice"]),
    (spoil_msd_training_is_test, ["prostate_03", "training and test"]),
    (spoil_msd_channels, ["case prostate_03", "imagesTr/prostate_03.nii.gz", "(12, 14, 10, 1)", "T2, ADC"]),
    (spoil_msd_grid, ["case prostate_03", "labelsTr/prostate_03.nii.gz has another grid"]),
    (spoil_msd_value, ["case prostate_03", "labelsTr/prostate_03.nii.gz holds 3", "[0, 1, 2]"]),
    (spoil_msd_no_json, ["dataset.json", "TaskNN_NAME"]),
    (spoil_msd_gap, ["dataset.json", "numbered 0, 1, 2"]),
]


@pytest.mark.parametrize(("spoil", "words"), SPOILT, ids=[spoil.__name__ for spoil, _ in SPOILT])
def test_what_cannot_be_used_is_named_before_anything_is_written(tmp_path, spoil, words):
    format = spoil.__name__.split("_")[1]
    source = WRITERS[format](tmp_path / "src/Task05_Source")
    spoil(source)
    with pytest.raises(InputError) as error:
        convert(format, source, tmp_path / "out", **OPTIONS[format])
    for word in words:
        assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_hecktor_needs_no_ct_unless_it_is_asked_for(tmp_path):
    source = hecktor(tmp_path / "src", ct=False)
    made = convert("hecktor", source, tmp_path, crop=40)
    assert names(made / "imagesTr") == [f"{name}_0000.nii.gz" for name in sorted(TUMOURS)]
    with pytest.raises(InputError, match="case CHUM-001: no file .*CHUM-001__CT.nii.gz"):
        convert("hecktor", source, tmp_path / "Dataset001_CT", ct=True, crop=40)


def test_the_remedy_for_a_wide_target_works(tmp_path):
    source = hecktor(tmp_path / "src")
    spoil_hecktor_wide(source)
    made = convert("hecktor", source, tmp_path, crop=61)
    assert read(made / "labelsTr/CHUM-002.nii.gz").sum() > 59 * 59 * 47


def test_an_image_that_is_damaged_deep_inside_is_named_and_no_data_set_appears(tmp_path):
    source = brats(tmp_path / "src")
    path = source / "BraTS2021_00003/BraTS2021_00003_t2.nii.gz"
    whole = path.read_bytes()
    path.write_bytes(whole[:-300])
    with pytest.raises(InputError, match="case BraTS2021_00003: .*BraTS2021_00003_t2.nii.gz cannot be read"):
        convert("brats", source, tmp_path)
    assert not (tmp_path / "Dataset137_BraTS").exists()
    path.write_bytes(whole)
    made = convert("brats", source, tmp_path)
    assert (made / "imagesTr/BraTS2021_00003_0002.nii.gz").read_bytes() == whole


@pytest.mark.parametrize(
    ("format", "options", "word"),
    [
        ("nifti", {}, "brats, hecktor, msd"),
        ("brats", {"ct": True}, "--ct with format brats"),
        ("brats", {"modality": ["t1"]}, "write --modalities"),
        ("brats", {"modalities": "flair"}, "--modalities '[\"flair\"]'"),
        ("brats", {"modalities": ["flair", "flair"]}, "each once"),
        ("brats", {"modalities": ["pd"]}, "t1, t1c, t2, flair"),
        ("brats", {"target": "core"}, "regions, whole"),
        ("hecktor", {"target": "GTVn"}, "GTVp, both"),
        ("hecktor", {"ct": "yes"}, "True or False"),
        ("hecktor", {"crop": 0}, "16 to 512"),
        ("brats", {"test_cases": 5}, "at most 4"),
        ("brats", {"test_cases": 1, "test_fraction": 0.2}, "one of both"),
        ("brats", {"test_fraction": 1.0}, "below 1"),
        ("brats", {"test_cases": 1.5}, "whole number"),
        ("brats", {"seed": -1}, "seed"),
        ("brats", {"dataset_id": 0}, "from 1"),
        ("brats", {"name": "a/b"}, "name 'a/b'"),
    ],
)
def test_options_are_refused_by_name(tmp_path, format, options, word):
    source = WRITERS.get(format, brats)(tmp_path / "src")
    with pytest.raises(InputError) as error:
        convert(format, source, tmp_path / "out", **options)
    assert word in str(error.value)
    assert not (tmp_path / "out").exists()


def test_output_has_to_be_free(tmp_path):
    source = msd(tmp_path / "downloaded")
    with pytest.raises(InputError, match="--dataset_id"):  # the folder says no number
        convert("msd", source, tmp_path)
    made = convert("msd", source, tmp_path, dataset_id=12, name="Mine")
    assert made.name == "Dataset012_Mine"
    assert convert("msd", source, tmp_path / "large", dataset_id=1234, name="Mine").name == "Dataset1234_Mine"
    before = contents(made)
    with pytest.raises(InputError, match="not empty"):
        convert("msd", source, made)
    with pytest.raises(InputError, match="Dataset012_Mine"):  # nnU-Net finds data sets by number
        convert("msd", source, tmp_path / "Dataset012_Other")
    with pytest.raises(InputError, match="leave the options out"):
        convert("msd", source, tmp_path / "Dataset013_Other", dataset_id=14)
    (tmp_path / "Dataset013_Other.partial").mkdir()
    (tmp_path / "Dataset013_Other.partial/mine.txt").write_text("somebody's")
    with pytest.raises(InputError, match=r"Dataset013_Other\.partial exists"):
        convert("msd", source, tmp_path / "Dataset013_Other")
    assert contents(made) == before and names(tmp_path / "Dataset013_Other.partial") == ["mine.txt"]
    with pytest.raises(InputError, match="no folder"):
        convert("msd", tmp_path / "nowhere", tmp_path)
