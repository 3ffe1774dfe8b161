import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from scripts.phantom import dataset as phantom
from scripts.phantom.dataset import write_phantom
from scripts.runtime.errors import InputError

SMALL = (40, 40, 10)
KINDS = [("flair", 1), ("flair", 4), ("pet", 1)]


def read(path):
    return np.asarray(nib.load(path).dataobj)


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def cases(folder, split="Tr"):
    """(images (channel x y z), label) of every case."""
    for label in sorted((folder / f"labels{split}").iterdir()):
        stem = label.name.removesuffix(".nii.gz")
        images = sorted((folder / f"images{split}").glob(f"{stem}_[0-9][0-9][0-9][0-9].nii.gz"))
        yield np.stack([read(p) for p in images]), read(label)


@pytest.fixture(scope="module", params=KINDS, ids=["flair", "four channels", "pet"])
def dataset(request, tmp_path_factory):
    modality, channels = request.param
    folder = tmp_path_factory.mktemp("phantom") / "Dataset900_Phantom"
    return write_phantom(folder, modality, cases=3, test_cases=1, seed=3, channels=channels)


@pytest.fixture(scope="module")
def flair(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("flair") / "out", cases=6, test_cases=0, seed=1)


@pytest.mark.slow
@pytest.mark.parametrize(("modality", "channels"), KINDS)
def test_same_seed_same_bytes_and_more_cases_change_none(tmp_path, modality, channels):
    options = {"modality": modality, "channels": channels, "shape": SMALL}
    first = files(write_phantom(tmp_path / "a", cases=2, test_cases=1, seed=5, **options))
    again = files(write_phantom(tmp_path / "b", cases=2, test_cases=1, seed=5, **options))
    assert first == again
    more = files(write_phantom(tmp_path / "c", cases=3, test_cases=1, seed=5, **options))
    shared = {name for name in first if name != "dataset.json"}
    assert shared < set(more)
    assert all(first[name] == more[name] for name in shared)
    other = files(write_phantom(tmp_path / "d", cases=1, test_cases=0, seed=6, **options))
    assert all(first[name] != other[name] for name in other if name != "dataset.json")


def test_training_and_test_patients_differ(tmp_path):
    folder = write_phantom(tmp_path / "out", cases=2, test_cases=2, shape=SMALL)
    labels = [label for split in ("Tr", "Ts") for _, label in cases(folder, split)]
    assert all((a != b).any() for i, a in enumerate(labels) for b in labels[:i])


@pytest.mark.slow
def test_layout_and_geometry(dataset):
    description = json.loads((dataset / "dataset.json").read_text())
    channels = len(description["channel_names"])
    assert description["numTraining"] == len(list((dataset / "labelsTr").iterdir())) == 3
    assert len(list((dataset / "labelsTs").iterdir())) == 1
    assert len(list((dataset / "imagesTr").iterdir())) == 3 * channels
    expected = (2.34, 2.34, 5.0) if "PET" in description["channel_names"].values() else (2.0, 2.0, 5.0)
    shapes = set()
    for label_path in sorted((dataset / "labelsTr").iterdir()):
        label = nib.load(label_path)
        shapes.add(label.shape)
        assert label.get_data_dtype() == np.uint8
        for image_path in (dataset / "imagesTr").glob(label_path.name.removesuffix(".nii.gz") + "_*"):
            image = nib.load(image_path)
            assert image.shape == label.shape
            np.testing.assert_array_equal(image.affine, label.affine)
            np.testing.assert_allclose(image.header.get_zooms(), expected, rtol=1e-6)
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            # The patient lies about the scanner's isocentre.
            middle = image.affine @ [*((np.array(image.shape) - 1) / 2), 1]
            assert np.abs(middle[:3]).max() <= 15.01 and np.abs(image.affine[:3, 3]).min() > 1
    assert len(shapes) > 1


@pytest.mark.slow
def test_another_grid_shows_the_same_patient(tmp_path):
    volumes = []
    for shape in [(64, 64, 18), (96, 96, 27)]:
        folder = write_phantom(tmp_path / str(shape[0]), cases=2, test_cases=0, shape=shape)
        pictures = list(cases(folder))
        assert all(image.shape == (1, *shape) for image, _ in pictures)
        voxel = np.prod(np.array([192, 192, 110]) / shape)
        volumes.append([[(image[0] > 0).sum() * voxel, (label > 0).sum() * voxel] for image, label in pictures])
    np.testing.assert_allclose(*volumes, rtol=0.15)


@pytest.mark.slow
def test_labels_are_those_declared_and_every_case_has_a_tumour(dataset):
    declared = json.loads((dataset / "dataset.json").read_text())["labels"]
    allowed = set(np.unique(np.concatenate([np.atleast_1d(v) for v in declared.values()])))
    found = set()
    for split in ("Tr", "Ts"):
        for _, label in cases(dataset, split):
            found |= set(np.unique(label))
            for name, values in declared.items():
                assert name == "background" or np.isin(label, values).sum() >= 8
            assert ((label > 0).sum((0, 1)) == 0).any()  # slices without tumour
    assert found == allowed


@pytest.mark.slow
def test_flair_background_is_exactly_zero_and_the_brain_is_not(flair):
    for image, label in cases(flair):
        assert image.dtype == np.int16
        background = image[0] == 0
        assert 0.4 < background.mean() < 0.85
        assert not label[background].any()
        # The background lies around the brain: no zero voxel is enclosed by brain within a slice.
        for z in range(image.shape[3]):
            assert ndimage.binary_fill_holes(~background[:, :, z]).sum() == (~background[:, :, z]).sum()


@pytest.mark.slow
def test_flair_tumour_is_bright_but_no_threshold_finds_it(flair):
    best = []
    for image, label in cases(flair):
        picture, tumour = image[0].astype(float), label > 0
        healthy = (picture > 0) & ~tumour
        # White matter is the most frequent tissue.
        counts, edges = np.histogram(picture[healthy], bins=60)
        white = edges[counts.argmax() : counts.argmax() + 2].mean()
        assert picture[tumour].mean() > 1.25 * white
        dice = [
            2 * ((picture > t) & tumour).sum() / ((picture > t).sum() + tumour.sum())
            for t in np.linspace(white, picture.max(), 40)
        ]
        best.append(max(dice))
    assert np.mean(best) < 0.85


@pytest.mark.slow
def test_flair_tumours_vary_in_size_place_and_intensity(tmp_path):
    pictures = list(cases(write_phantom(tmp_path / "out", cases=12, test_cases=0, shape=SMALL)))
    sizes = [(label > 0).sum() for _, label in pictures]
    places = np.array([np.argwhere(label).mean(0) / label.shape for _, label in pictures])
    levels = [np.median(image[image > 0]) for image, _ in pictures]
    assert max(sizes) > 3 * min(sizes)
    assert (np.ptp(places, axis=0) > 0.1).all()
    assert max(levels) > 1.3 * min(levels)


@pytest.mark.slow
def test_four_channels_show_the_patients_of_one_with_plausible_contrasts(tmp_path):
    options = {"cases": 2, "test_cases": 0, "seed": 2}
    one = list(cases(write_phantom(tmp_path / "one", **options)))
    four = list(cases(write_phantom(tmp_path / "four", channels=4, **options)))
    for (_, tumour), (images, label) in zip(one, four, strict=True):
        np.testing.assert_array_equal(tumour > 0, label > 0)
        t1, t1c, t2, flair = (image / np.median(image[image > 0]) for image in images)
        oedema, necrosis, enhancing = (label == value for value in (1, 2, 3))
        healthy = (images[0] > 0) & (label == 0)
        assert t1c[enhancing].mean() > 1.2 * t1c[healthy].mean() and t1c[enhancing].mean() > t1[enhancing].mean()
        assert flair[oedema].mean() > 1.2 * flair[healthy].mean()
        assert t2[oedema].mean() > 1.2 * t2[healthy].mean()
        if necrosis.sum() > 30:
            assert t1[necrosis].mean() < t1[oedema].mean() < t1[healthy].mean()
        fluid = (t2 > np.percentile(t2[healthy], 98)) & healthy
        assert flair[fluid].mean() < 0.7 and t1[fluid].mean() < 0.7


@pytest.mark.slow
def test_regions_are_nested_in_space(tmp_path):
    folder = write_phantom(tmp_path / "out", cases=3, test_cases=0, channels=4, shape=(96, 96, 12))
    declared = json.loads((folder / "dataset.json").read_text())["labels"]
    for _, label in cases(folder):
        whole, core, enhancing = (np.isin(label, declared[k]) for k in ("whole_tumor", "tumor_core", "enhancing_tumor"))
        assert whole.sum() > core.sum() >= enhancing.sum() > 0
        assert not (core & ~whole).any() and not (enhancing & ~core).any()
        # Necrosis lies within the rim: little of it touches oedema or healthy tissue in the slice.
        necrosis = core & ~enhancing
        if necrosis.any():
            ring = ndimage.binary_dilation(necrosis, np.ones((3, 3, 1))) & ~necrosis
            assert enhancing[ring].mean() > 0.6


@pytest.mark.slow
def test_pet_hot_spots_outside_the_mask_reach_the_uptake_of_lesions(tmp_path):
    folder = write_phantom(tmp_path / "out", "pet", cases=4, test_cases=0)
    neck_spots = 0
    for image, label in cases(folder):
        suv, tumour = image[0], label > 0
        assert image.dtype == np.float32 and np.isfinite(suv).all() and suv.min() >= 0 and suv.max() < 40
        muscle = np.median(suv[suv > 0.4])
        lesion = suv[tumour]
        assert lesion.mean() > 2 * muscle
        away = ~ndimage.binary_dilation(tumour, iterations=4)
        assert suv[away].max() > np.median(lesion)  # the brain
        neck = away.copy()
        neck[:, :, suv.shape[2] // 2 :] = False
        neck_spots += suv[neck].max() > 0.6 * np.median(lesion)
    assert neck_spots >= 2


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of nnU-Net and what it imports
@pytest.mark.parametrize("dataset", KINDS[1:2], ids=["four channels"], indirect=True)
def test_nnunet_accepts_the_data_set(dataset):
    from nnunetv2.experiment_planning.verify_dataset_integrity import verify_dataset_integrity
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    verify_dataset_integrity(str(dataset), num_processes=1)
    description = json.loads((dataset / "dataset.json").read_text())
    order = description.get("regions_class_order")
    manager = LabelManager(description["labels"], order)
    assert manager.has_regions == (order is not None)
    if order:
        assert manager.foreground_regions == [(1, 2, 3), (2, 3), (3,)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"modality": "ct"}, "modality 'ct'"),
        ({"channels": 3}, "channels 3"),
        ({"channels": True}, "channels True"),
        ({"modality": "pet", "channels": 4}, "channels 4 for modality pet"),
        ({"cases": 0}, "cases 0"),
        ({"cases": 2.5}, "cases 2.5"),
        ({"test_cases": -1}, "test_cases -1"),
        ({"seed": -1}, "seed -1"),
        ({"seed": "0"}, "seed '0'"),
        ({"shape": (96, 96)}, "shape (96, 96)"),
        ({"shape": (96, 96, 4)}, "shape (96, 96, 4)"),
        ({"shape": 128}, "shape 128"),
        ({"shape": (96, 96, 1000)}, "shape (96, 96, 1000)"),
    ],
)
def test_bad_settings_are_refused_before_any_work(tmp_path, settings, words):
    with pytest.raises(InputError) as error:
        write_phantom(tmp_path / "deep" / "out", **settings)
    assert words in str(error.value)
    assert not any(tmp_path.iterdir())


def test_a_target_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    (tmp_path / "file").write_text("keep")
    for name in ("out", "file"):
        with pytest.raises(InputError, match="new or empty folder"):
            write_phantom(tmp_path / name, cases=1, shape=SMALL)
    assert files(tmp_path) == {"out/mine.txt": b"keep", "file": b"keep"}


def test_an_empty_target_is_filled(tmp_path):
    (tmp_path / "out").mkdir()
    assert write_phantom(tmp_path / "out", cases=1, test_cases=0, shape=SMALL) == tmp_path / "out"
    assert (tmp_path / "out" / "dataset.json").is_file()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_nothing_stays_of_a_run_that_fails(tmp_path, monkeypatch):
    written = []

    def fail_at_the_third(path: Path, array, affine):
        if len(written) == 3:
            raise OSError("disk full")
        path.write_bytes(b"x")
        written.append(path)

    monkeypatch.setattr(phantom, "_write_nifti", fail_at_the_third)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path / "out", cases=3, shape=SMALL)
    assert len(written) == 3
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("modality", ["flair", "pet"])
def test_progress_goes_to_standard_error(tmp_path, capsys, modality):
    write_phantom(tmp_path / "out", modality, cases=1, test_cases=0, shape=(32, 32, 8))
    captured = capsys.readouterr()
    assert captured.out == "" and f"phantom {modality}" in captured.err
