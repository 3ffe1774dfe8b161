"""The command line: help, one clear error, nothing half-written."""

import gzip
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK
from filelock import FileLock
from skimage.io import imsave

from scripts.data.cases import open_cases
from scripts.data.description import read_description
from scripts.experiment.dataset import SPLITS, link_dataset, link_raw, make_source
from scripts.experiment.experiment import list_protocols
from scripts.experiment.given_data import check_test_cases, data_settings, same_image
from scripts.experiment.nnunet_commands import dataset_number
from scripts.experiment.protocol import protocol_names, read_protocol
from scripts.experiment.run import run_dataset, settings_of
from scripts.experiment.run_folder import RunFolder
from scripts.experiment.work import call
from scripts.runtime.errors import InputError

from ..data.toy import write_raw
from ..processes import python

ROOT = Path(__file__).resolve().parents[2]


def synthaug(*words: str) -> subprocess.CompletedProcess:
    return python("-m", "scripts", *words)


@pytest.fixture
def raw(tmp_path):
    return with_test_cases(write_raw(tmp_path / "Dataset901_Toy"))


def with_test_cases(folder):
    for name in ("images", "labels"):
        (folder / f"{name}Ts").mkdir()
        for path in sorted((folder / f"{name}Tr").glob("toy_00[01]*")):
            shutil.copyfile(path, folder / f"{name}Ts" / path.name)
            if name == "images":
                other_patient(folder / "imagesTs" / path.name)
    return folder


def other_patient(path: Path) -> None:
    image = nib.Nifti1Image.from_filename(path)
    noise = np.random.default_rng(len(path.name)).normal(size=image.shape)
    nib.save(nib.Nifti1Image(noise, image.affine), path)


OPTIONS = {
    "bundle": "dhvae", "overlays": [], "generator": {}, "configuration": "2d", "num_samples": 400, "share": 0.5,
    "transplants": False, "folds": 0, "seeds": 0, "num_epochs": 12, "num_iterations_per_epoch": 40, "full_plans": False,
    "seed": 0, "audit": True,
}  # fmt: skip


def run(raw, out, **options):
    return run_dataset(raw, out, {**OPTIONS, **options})


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["run", "{raw}", "{out}", "--num_sample", "3"],  # an unknown setting, noticed before any work
        ["phantom", "{out}", "--modality", "ct"],
        ["run", "{out}/nothing", "{out}"],
    ],
    ids=lambda words: " ".join(words[-2:]),
)
def test_bad_words_change_nothing(raw, tmp_path, words):
    out = tmp_path / "out"
    done = synthaug(*(word.format(raw=raw, out=out) for word in words))
    assert done.returncode != 0
    assert "error" in done.stderr.lower() and "Traceback" not in done.stderr
    assert not out.exists()


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"share": 1.5}, "--share"),
        ({"share": 0}, "--share"),
        ({"folds": 7}, "fold 7"),
        ({"folds": [0, 0]}, "--folds"),
        ({"bundle": "gan"}, "--bundle 'gan'"),
        ({"bundle": "segmentation"}, "--bundle"),
        ({"configuration": "3d"}, "3d_fullres"),
        ({"num_epochs": 0}, "--num_epochs"),
        ({"num_samples": "abc"}, "--num_samples 'abc'"),
        ({"seeds": []}, "--seeds"),
        ({"seeds": [0, 0]}, "--seeds"),
        ({"full_plans": "false?"}, "--full_plans"),
        ({"transplants": 0.3}, "--transplants"),
        ({"overlays": ["papers.json"]}, "overlays"),
        ({"generator": {"max_epoch": 3}}, "--generator(.|\n)*did you mean max_epochs"),
        ({"generator": {"max_epochs": "many"}}, "max_epochs of --generator .many.(.|\n)*whole number"),
        ({"generator": {"first_order": 1}}, "True or False"),
        ({"generator": {"beta": "$__import__('os').getcwd()"}}, "would evaluate"),
        ({"generator": {"fold": 3}}, "for all its stages"),
        ({"generator": {"spatial_size": [60, 60]}}, "cannot be built(.|\n)*multiples of 16"),
        ({"bundle": "sbldm"}, "volumes with the configuration 2d"),
        ({"configuration": "3d_fullres"}, "slices with the configuration 3d_fullres"),
    ],
)
def test_wrong_settings_are_refused_before_any_work(raw, tmp_path, wrong, words):
    with pytest.raises(InputError, match=words):
        run(raw, tmp_path / "out", **wrong)
    assert not (tmp_path / "out").exists()


def test_jsons_words_and_pythons_are_the_same():
    said = [
        settings_of({**OPTIONS, "generator": {"first_order": word, "gradient_clip": none}, "full_plans": word})
        for word, none in ((True, None), ("true", "null"))
    ]
    assert said[0] == said[1] and said[0]["generators"]["dhvae"]["settings"]["first_order"] is True


def test_a_run_plans_what_it_was_told(tmp_path):
    over = settings_of({**OPTIONS, "folds": [0, 2], "seeds": [1, 2], "num_samples": 20, "share": 0.25})
    s = read_protocol("run", over=over) | {"dataset_dir": None, "raw_dir": None}
    folder = RunFolder.start(tmp_path / "run", s, {})
    kinds = [cell.kind for cell in folder.cells.values()]
    assert {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)} == {
        "source": 1, "data": 1, "generator": 2, "pool": 2, "audit": 2, "metrics": 2, "train": 8, "evaluate": 8,
    }  # fmt: skip
    pool = folder.cells["pool/dhvae_real-all_fold2"]
    assert pool.settings["num_samples"] == 25  # a quarter more, for the audit
    arms = read_protocol("run", over=settings_of({**OPTIONS, "transplants": True}))["arms"]
    assert [name for name, arm in arms.items() if "transplant" in arm] == ["real + transplants"] and len(arms) == 3
    mixed = folder.cells["train/nnU-Net_real-synthetic_n20_real-all_fold2_seed1"]
    assert {"pool", "audit"} <= set(mixed.needs) and mixed.settings["mixing"] == {"share": 0.25}
    assert {cell.settings["split"] for cell in folder.cells.values() if cell.kind == "evaluate"} == {"test"}


def test_the_first_line_comes_before_any_work(raw, tmp_path):
    """Nothing is imported between the start of the command and its first line: what takes time comes behind it."""
    code = (
        "import sys, builtins; from scripts import __main__ as m; before = set(sys.modules)\n"
        "def say(*words, **_):\n"
        "    sys.stdout.write(words[0]); assert set(sys.modules) == before; sys.exit()\n"
        "builtins.print = say\n"
        f"m.run({str(raw)!r}, {str(tmp_path / 'out')!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "checking" in done.stdout, done.stderr


def test_what_there_is_to_run():
    words = list_protocols()
    for name in protocol_names():
        assert name in ("run", "demo", "tune") or f"{name}: " in words
    assert "synthaug experiment smoke" in words and "32 cells, about" in words


def test_failed_command_shows_its_last_words(capfd):
    words = [sys.executable, "-c", "import sys; print('epoch 1/2: x'); sys.stdout.write('the reason'); sys.exit(3)"]
    with pytest.raises(InputError, match="status 3:[^$]*the reason"):
        call(words)
    assert "the reason" in capfd.readouterr().out
    words = [sys.executable, "-c", "print('error: got x'); print('  remedy: y'); print('noise\\n' * 20); exit(1)"]
    with pytest.raises(InputError, match="error: got x remedy: y"):  # and not the noise behind it
        call(words)


@pytest.mark.slow
def test_help_and_paths():
    assert "add-pool" in synthaug("--help").stdout + synthaug("--help").stderr
    folder = Path(synthaug("ext-path").stdout.strip())
    assert (folder / "nnUNetTrainerSynthAug.py").is_file()
    assert (Path(synthaug("bundle-path", "dhvae").stdout.strip()) / "configs/train.json").is_file()
    assert "allowed" in synthaug("bundle-path", "gan").stderr


@pytest.mark.slow
def test_phantom_command_is_reproducible(tmp_path):
    for name in ("a", "b"):
        done = synthaug(
            "phantom", str(tmp_path / name / "Dataset802_P"), "--cases", "2", "--seed", "4", "--shape", "[48,48,12]"
        )
        assert done.returncode == 0, done.stderr
    files = [sorted(p for p in (tmp_path / name).rglob("*") if p.is_file()) for name in ("a", "b")]
    assert len(files[0]) == 7 and [p.read_bytes() for p in files[0]] == [p.read_bytes() for p in files[1]]


def test_a_run_refuses_what_it_cannot_use(raw, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        run(raw, tmp_path / "full")
    same = raw / "imagesTr/toy_004_0000.nii.gz"
    shutil.copyfile(same, raw / "imagesTs/toy_001_0000.nii.gz")
    with pytest.raises(InputError, match="toy_004"):  # a patient in both sets
        run(raw, tmp_path / "out")
    other_patient(raw / "imagesTs/toy_001_0000.nii.gz")
    (raw / "imagesTs/toy_000_0000.nii.gz").unlink()
    with pytest.raises(InputError, match="toy_000"):
        run(raw, tmp_path / "out")
    with pytest.raises(InputError, match="DatasetNNN"):
        run(raw.rename(tmp_path / "Toy"), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["notes.txt"]


def rescaled(image, path, dtype=np.float32, slope=3.0, offset=-7.0, compressed=True):
    """The same patient with other numbers, header and bytes."""
    values = slope * np.asarray(image.dataobj, np.float64) + offset
    values = (values - values.min()) / np.ptp(values) * 200 if np.issubdtype(dtype, np.integer) else values
    other = nib.Nifti1Image(values.astype(dtype), np.diag([3.0, 2, 1, 1]))
    if compressed:
        path.write_bytes(gzip.compress(other.to_bytes(), 1))
    else:
        nib.save(other, path)


@pytest.mark.parametrize("change", [
    {}, {"dtype": np.uint8}, {"dtype": np.int16, "slope": 1.0}, {"slope": -2.0}, {"dtype": np.float64, "slope": 1e-9},
    {"compressed": False},
])  # fmt: skip
def test_a_training_case_is_known_by_its_voxels(raw, change):
    description = read_description(raw)
    check_test_cases(raw, description)  # other patients
    image = nib.Nifti1Image.from_filename(raw / "imagesTr/toy_003_0000.nii.gz")
    rescaled(image, raw / "imagesTs/toy_001_0000.nii.gz", **change)
    with pytest.raises(InputError, match="training images.*toy_003"):
        check_test_cases(raw, description)


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_a_training_case_is_known_in_every_format_that_nnunet_reads(raw, ending):
    for path in sorted(raw.glob("*T[rs]/*.nii.gz")):
        values = nib.Nifti1Image.from_filename(path).get_fdata().T
        SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values), path.with_name(path.name[: -len(".nii.gz")] + ending))
        path.unlink()
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "file_ending": ending}))
    check_test_cases(raw, read_description(raw))
    shutil.copy(raw / f"imagesTr/toy_003_0000{ending}", raw / f"imagesTs/toy_001_0000{ending}")
    with pytest.raises(InputError, match="training images.*toy_003"):
        check_test_cases(raw, read_description(raw))


def test_a_colour_image_is_one_file_and_other_readers_are_not_heard(tmp_path, capfd):
    """As nnU-Net reads PNG; of a TIFF volume it asks its reader of colour images first, which says that it is none."""
    rng = np.random.default_rng(0)
    for kind, ending, shape in (("Dataset901_Rgb", ".png", (40, 36, 3)), ("Dataset902_Tif", ".tif", (7, 40, 36))):
        raw, images = tmp_path / kind, rng.integers(0, 255, (6, *shape), np.uint8)
        for part, numbers in (("Tr", range(5)), ("Ts", [5])):
            for name in (f"images{part}", f"labels{part}"):
                (raw / name).mkdir(parents=True)
            for k in numbers:
                imsave(raw / f"images{part}/c{k}_0000{ending}", images[k], check_contrast=False)
                label = images[k] // 128 if ending == ".tif" else images[k][..., 0] // 128
                imsave(raw / f"labels{part}/c{k}{ending}", label, check_contrast=False)
        names = {str(c): f"C{c}" for c in range(3 if ending == ".png" else 1)}
        content = {"channel_names": names, "labels": {"background": 0, "a": 1}, "numTraining": 5, "file_ending": ending}
        (raw / "dataset.json").write_text(json.dumps(content))
        s = read_protocol("run", over=settings_of(OPTIONS))
        assert data_settings(s, raw, None)["space"] == "nnunet" and capfd.readouterr() == ("", "")
        with pytest.raises(InputError, match="segmenter 'U-Net' on .(png|tif) images"):
            data_settings({**s, "segmenters": {"U-Net": {}}}, raw, None)
        shutil.copyfile(raw / f"imagesTr/c2_0000{ending}", raw / f"imagesTs/c5_0000{ending}")
        with pytest.raises(InputError, match="c5_0000.*c2_0000"):
            data_settings(s, raw, None)


def test_like_patients_are_not_the_same(raw):
    rng = np.random.default_rng(0)
    anatomy = rng.normal(size=20_000)
    first, second = (anatomy + 0.2 * rng.normal(size=20_000) for _ in range(2))
    assert np.corrcoef(first, second)[0, 1] > 0.95 and not same_image(first, second)
    assert not same_image(np.round(20 * first), np.round(20 * second))
    assert same_image(first, np.round(20 * first)) and same_image(np.floor(9 * first), -first)


def test_missing_modalities_and_hidden_files_are_no_training_images(tmp_path):
    raw = with_test_cases(write_raw(tmp_path / "Dataset902_Toy", channels=2))
    for name in ("imagesTr/toy_004_0001.nii.gz", "imagesTs/toy_000_0001.nii.gz"):
        image = nib.Nifti1Image.from_filename(raw / name)
        nib.save(nib.Nifti1Image(np.zeros(image.shape), image.affine), raw / name)
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        (raw / name / "._toy_000_0000.nii.gz").write_bytes(b"macOS")
    check_test_cases(raw, read_description(raw))
    linked = link_raw(raw, tmp_path / "linked")
    for name in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
        expected = sorted(path.name for path in (raw / name).iterdir() if not path.name.startswith("."))
        assert sorted(path.name for path in (linked / name).iterdir()) == expected
    assert link_raw(raw, tmp_path / "linked") == linked  # again


def list_files(raw):
    """Move the training files aside, and name them by paths that are relative to the data set, as nnU-Net allows."""
    names = [path.name[: -len(".nii.gz")] for path in sorted((raw / "labelsTr").iterdir())]
    for name in ("imagesTr", "labelsTr"):
        (raw / name).rename(raw.parent / f"{name}_aside")
    listed = {
        name: {"images": [f"../imagesTr_aside/{name}_0000.nii.gz"], "label": f"../labelsTr_aside/{name}.nii.gz"}
        for name in names
    }
    content = json.loads((raw / "dataset.json").read_text())
    (raw / "dataset.json").write_text(json.dumps({**content, "dataset": listed}))


def test_what_the_plugin_keeps_in_a_data_set_is_no_part_of_a_view(tmp_path):
    """An `add-pool` that was ended leaves its lock: it could not be held through a link."""
    source = tmp_path / "Dataset901_Toy"
    (source / "synthaug").mkdir(parents=True)
    for name in ("dataset.json", "nnUNetPlans.json", "synthaug.lock"):
        (source / name).write_text("{}")
    view = link_dataset(source, tmp_path / "view")
    assert sorted(path.name for path in view.iterdir()) == ["dataset.json", "nnUNetPlans.json"]
    with FileLock(view / "synthaug.lock", blocking=False):
        assert (source / "synthaug.lock").read_text() == "{}"


def test_a_data_set_that_lists_its_files_can_be_run(raw, tmp_path):
    list_files(raw)
    s = read_protocol("run", over=settings_of(OPTIONS))
    before = data_settings(s, raw, None)
    linked = link_raw(raw, tmp_path / "far" / "away" / raw.name)
    view = link_dataset(linked, tmp_path / "view" / raw.name)
    for folder in (linked, view):
        cases = open_cases(folder)
        assert len(cases.fold.train) + len(cases.fold.val) == len(list(tmp_path.glob("labelsTr_aside/*")))
        assert np.array_equal(cases.load(cases.fold.train[0]).image, open_cases(raw).load(cases.fold.train[0]).image)
    source = make_source({**s, "dataset_dir": str(raw), "space": "raw", "raw_dir": None}, tmp_path, lambda _: None)
    assert source == {"dataset_dir": raw, "raw_dir": raw}
    label = next(iter(sorted(tmp_path.glob("labelsTr_aside/*"))))
    image = nib.Nifti1Image.from_filename(label)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), label)
    assert data_settings(s, raw, None)["data_sha256"] != before["data_sha256"]
    rescaled(nib.load(tmp_path / "imagesTr_aside/toy_003_0000.nii.gz"), raw / "imagesTs/toy_001_0000.nii.gz")
    with pytest.raises(InputError, match="training images.*toy_003"):
        check_test_cases(raw, read_description(raw))


def test_data_that_a_cell_would_refuse_are_refused_before(raw):
    s = read_protocol("run", over=settings_of(OPTIONS))
    data_settings(s, raw, None)
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["toy_000"], "val": ["nobody"]}]))
    with pytest.raises(InputError, match="nobody"):
        data_settings(s, raw, None)
    (raw / "splits_final.json").unlink()
    path = raw / "labelsTs/toy_001.nii.gz"
    content = path.read_bytes()
    image = nib.load(path)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj) * 0.5, image.affine), path)
    with pytest.raises(InputError, match="toy_001.nii.gz with the label 0.5"):
        data_settings(s, raw, None)
    path.write_bytes(content)
    for label in sorted((raw / "labelsTr").iterdir())[4:]:
        label.unlink()
    with pytest.raises(InputError, match="at least 5 for 5 folds"):
        data_settings(s, raw, None)


def test_what_a_run_knows_is_not_read_again(raw, monkeypatch):
    read = []
    monkeypatch.setattr("scripts.experiment.given_data.check_types", lambda images, labels: read.extend(labels))
    s = read_protocol("run", over=settings_of(OPTIONS))
    before = data_settings(s, raw, None)
    folders = {path.parent.name for path in read}
    assert "labelsTr" in folders
    read.clear()
    assert data_settings(s, raw, None, before) == before and not read
    for folder in folders:
        path = next((raw / folder).iterdir())
        path.write_bytes(path.read_bytes() + b" ")  # another file
        assert data_settings(s, raw, None, before) != before
        assert {label.parent.name for label in read} >= {folder}
        read.clear()


def test_names_that_nnunet_accepts(raw, tmp_path, monkeypatch):
    for name, number in {
        "Dataset066_MR-liver": "66",
        "Dataset030_WORD-V0.1.0": "30",
        "Dataset1234_URDE": "1234",
        "Dataset901": "901",
        "Dataset005_Zwölf Fälle (a+b)": "5",
    }.items():
        assert dataset_number(name) == number
    link = tmp_path / "Dataset066_MR-liver"
    stored = raw.rename(tmp_path / "somewhere")
    link.symlink_to(stored)
    s = read_protocol("run", over=settings_of(OPTIONS))
    by_link = data_settings(s, link, None)
    assert by_link["dataset_dir"] == str(link)
    monkeypatch.chdir(tmp_path / "somewhere")
    assert data_settings(s, "../Dataset066_MR-liver/.", None)["data_sha256"] == by_link["data_sha256"]


def test_data_are_known_by_what_they_are_and_not_by_their_place(raw, tmp_path):
    s = read_protocol("run", over=settings_of(OPTIONS))
    before = data_settings(s, raw, None)
    moved = raw.rename(tmp_path / "moved")
    (tmp_path / "Dataset901_Toy").symlink_to(moved)
    after = data_settings(s, tmp_path / "Dataset901_Toy", None)
    assert {k: v for k, v in before.items() if "sha" in k} == {k: v for k, v in after.items() if "sha" in k}
    label = next(iter(sorted((moved / "labelsTr").iterdir())))
    image = nib.Nifti1Image.from_filename(label)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), label)  # a corrected label
    changed = data_settings(s, tmp_path / "Dataset901_Toy", None)
    assert changed["data_sha256"] != before["data_sha256"] and changed["test_sha256"] == before["test_sha256"]


@pytest.mark.parametrize("given, wanted", [("0", "1"), ("3", "3"), (None, None)])
def test_own_folds_are_taken_over_and_the_planner_has_a_thread(raw, tmp_path, monkeypatch, given, wanted):
    """A data set that keeps the scans of a patient together says so in its splits_final.json."""
    folds = '[{"train": ["toy_000", "toy_001"], "val": ["toy_002", "toy_003"]}]'
    (raw / SPLITS).write_text(folds)
    monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)
    if given is not None:
        monkeypatch.setenv("nnUNet_n_proc_DA", given)
    seen = []

    def preprocess(command):
        seen.append(os.environ.get("nnUNet_n_proc_DA"))
        (Path(os.environ["nnUNet_preprocessed"]) / raw.name).mkdir()

    folder = tmp_path / "source"
    folder.mkdir()
    s = read_protocol("run") | {"dataset_dir": str(raw), "raw_dir": None}
    made = make_source(s, folder, preprocess)
    assert (made["dataset_dir"] / SPLITS).read_text() == folds and made["raw_dir"].name == raw.name
    assert seen == [wanted] and os.environ.get("nnUNet_n_proc_DA") == given
