"""MONAI's own readers find real and synthetic cases at the ratio, and real ones alone to validate on."""

import json

import nibabel as nib
import numpy as np
import pytest
from monai.apps.auto3dseg import AutoRunner
from monai.auto3dseg.utils import datafold_read
from monai.data import DataLoader, load_decathlon_datalist
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged, MapTransform, Orientationd, Randomizable
from monai.utils import set_determinism

from scripts.data.cases import open_cases
from scripts.data.folds import listed_cases
from scripts.pool.adopt import adopt_pool
from scripts.runtime.errors import InputError
from scripts.segmentation.datalist import write_datalist
from scripts.segmentation.mixed_volumes import MixedVolumes

from ..data.toy import toy_case, write_preprocessed, write_raw
from ..data.toy_nnunet import seen_by

AFFINE = np.diag([-1.0, -1.5, 4.0, 1.0])


@pytest.fixture(scope="module", params=[1, 2], ids=["one channel", "two channels"])
def made(request, tmp_path_factory):
    """A data set stored as LPS, and a pool of three volumes."""
    folder, channels = tmp_path_factory.mktemp("datalist"), request.param
    data = write_raw(folder / "Dataset901_Toy", cases=10, channels=channels)
    for path in data.rglob("*.nii.gz"):
        nib.save(nib.Nifti1Image(np.asarray(nib.load(path).dataobj), AFFINE), path)
    for name in ("imagesTr", "labelsTr"):
        (folder / "gan" / name).mkdir(parents=True)
    for index in range(3):
        image, label = toy_case(100 + index, channels)
        for channel, values in enumerate(image):
            nib.save(nib.Nifti1Image(values.T, AFFINE), folder / f"gan/imagesTr/gan_{index}_{channel:04d}.nii.gz")
        nib.save(nib.Nifti1Image(label.T.astype(np.uint8), AFFINE), folder / f"gan/labelsTr/gan_{index}.nii.gz")
    return data, adopt_pool(folder / "gan", folder / "pool", data, "MyGAN", "none")


@pytest.mark.parametrize(("share", "synthetic"), [(0, 0), (0.2, 2), (0.5, 8)])
def test_the_list_is_the_fold_and_the_share(share, synthetic, made, tmp_path):
    data, pool = made
    out = tmp_path / "list.json"
    assert "MyGAN" in write_datalist(pool, data, out, fold=1, share=share)
    before = out.read_bytes()
    write_datalist(pool, data, out, fold=1, share=share)
    assert out.read_bytes() == before
    training = load_decathlon_datalist(str(out), data_list_key="training")
    validation = load_decathlon_datalist(str(out), data_list_key="validation")
    fold = open_cases(data, 1).fold
    named = [str(item["label"]).split("/")[-1].removesuffix(".nii.gz") for item in training if not item["synthetic"]]
    assert named == fold.train
    assert [str(item["label"]).split("/")[-1].removesuffix(".nii.gz") for item in validation] == fold.val
    assert not any(item["synthetic"] or "pool" in str(item["image"]) for item in validation)
    drawn = [str(item["label"]) for item in training if item["synthetic"]]
    assert len(drawn) == synthetic and all(str(pool) in name for name in drawn)
    counts = [drawn.count(name) for name in set(drawn)]
    assert not counts or max(counts) - min(counts) <= 1  # none twice while the pool lasts


def test_monai_reads_samples_as_it_reads_real_cases(made, tmp_path):
    data, pool = made
    write_datalist(pool, data, tmp_path / "list.json", share=0.2)
    items = load_decathlon_datalist(str(tmp_path / "list.json"))
    keys = ("image", "label")
    load = Compose([LoadImaged(keys), EnsureChannelFirstd(keys), Orientationd(keys, axcodes="RAS", labels=None)])
    real, synthetic = load(dict(items[0])), load(dict(items[-1]))
    assert np.allclose(real["image"].affine[:3, :3], synthetic["image"].affine[:3, :3])
    index = int(json.loads((pool / "pool.json").read_text())["samples"][0]["file"][-1])
    assert items[-1]["synthetic"] and synthetic["image"].shape == real["image"].shape and index == 0
    number = int(str(items[-1]["label"]).split("_")[-1].split(".")[0])
    image = toy_case(100 + number, len(real["image"]))[0].transpose(0, 3, 2, 1)[:, ::-1, ::-1]
    assert np.array_equal(np.asarray(synthetic["image"]), image)


def test_auto3dseg_finds_one_fold(made, tmp_path, caplog):
    """It may rewrite the list, and then trains on what was to train on, and validates on real cases."""
    data, pool = made
    out = tmp_path / "list.json"
    write_datalist(pool, data, out, share=0.2)
    fold = open_cases(data, 0).fold
    runner = AutoRunner.__new__(AutoRunner)  # the constructor looks for GPUs and folders
    runner.data_src_cfg = {}
    caplog.set_level("WARNING", "monai.apps.auto3dseg.auto_runner")  # it logs a message that cannot be formatted
    assert runner.inspect_datalist_folds(str(out)) == 1
    training, validation = datafold_read(str(out), "", fold=0)
    assert len(training) == len(fold.train) + 2 and not any(item["synthetic"] for item in validation)
    assert sorted(item["label"].split("/")[-1] for item in validation) == sorted(f"{name}.nii.gz" for name in fold.val)


def test_a_leak_and_other_spaces_are_refused(made, tmp_path):
    data, pool = made
    leaky = json.loads((pool / "pool.json").read_text())
    cases = open_cases(data, 2)
    cases.fold = listed_cases(data, cases.fold.val[:1], [*cases.fold.train, *cases.fold.val])
    leaky["provenance"] |= seen_by(cases)
    copy = tmp_path / "pool"
    copy.mkdir()
    for name in ("images", "labels"):
        (copy / name).symlink_to(pool / name)
    (copy / "pool.json").write_text(json.dumps(leaky))
    with pytest.raises(InputError, match="leak"):
        write_datalist(copy, data, tmp_path / "list.json", fold=2)
    write_datalist(copy, data, tmp_path / "list.json", fold=3)
    (tmp_path / "list.json").unlink()
    other = write_preprocessed(tmp_path / "Dataset901_Toy")
    for arguments, message in (((pool, other), "raw data set"), ((pool, data), "share")):
        with pytest.raises(InputError, match=message):
            write_datalist(*arguments, tmp_path / "list.json", share=1 if message == "share" else 0.5)
    assert not (tmp_path / "list.json").exists()
    (tmp_path / "notes.json").write_text("mine")
    for path in (tmp_path / "notes.json", tmp_path):
        with pytest.raises(InputError, match="did not write"):
            write_datalist(pool, data, path)
    assert (tmp_path / "notes.json").read_text() == "mine"


def epochs_of(dataset: MixedVolumes, workers: int) -> list[list[tuple[str, bool]]]:
    """Names and kinds of the items of six epochs, as MONAI's loader gives them with this seed."""
    set_determinism(3)
    loader = DataLoader(dataset, batch_size=1, shuffle=True, num_workers=workers, collate_fn=list)
    found = [[(item["name"], item["synthetic"]) for (item,) in loader] for _ in range(6)]
    set_determinism(None)
    return found


class Named(Randomizable, MapTransform):
    """Stands for a zoo bundle's transforms: a random one that shows what an item is."""

    def __init__(self):
        super().__init__(["label"])

    def __call__(self, item):
        return {**item, "name": str(item["label"]).split("/")[-1], "drawn": self.R.random()}


@pytest.mark.slow
def test_a_data_set_that_draws_other_samples_every_epoch(made):
    data, pool = made
    fold = open_cases(data, 1).fold
    for share, places in ((0, 0), (0.2, 2), (0.5, 8)):  # of three samples
        dataset = MixedVolumes(data, pool, Named(), fold=1, share=share, cache_num=2)
        assert [item["label"].split("/")[-1] for item in dataset.validation] == [f"{name}.nii.gz" for name in fold.val]
        workers = 1 if places == 2 else 0
        epochs = epochs_of(dataset, workers)
        assert epochs_of(dataset, workers) == epochs
        for items in epochs:
            real = sorted(name for name, synthetic in items if not synthetic)
            drawn = [name for name, synthetic in items if synthetic]
            assert real == sorted(f"{name}.nii.gz" for name in fold.train) and len(drawn) == places
            assert len(set(drawn)) == min(places, 3)  # none twice while the pool lasts
        if places == 2:
            assert len({tuple(sorted(name for name, synthetic in items if synthetic)) for items in epochs}) > 1
    values = [dataset[i]["drawn"] for i in range(len(dataset))]
    assert len(set(values)) == len(dataset) and dataset[-1]["synthetic"]
    with pytest.raises(IndexError):
        dataset[len(dataset)]
