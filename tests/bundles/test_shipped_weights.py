"""The weights that come with bundles: they work at once, and their provenance says what made them."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.provenance import read_provenance
from scripts.pool.writing import load_sample, read_pool

from ..processes import python

ROOT = Path(__file__).resolve().parents[2]
PET = "Dataset502_STSPET", 16
SHIPPED = {"dhvae": ("Dataset801_PhantomFLAIR", 24), "lesion_flow": PET, "segmentation": PET}


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A copy of a bundle as it would be downloaded, to run in."""

    def copy(name: str) -> Path:
        for part in ("configs", "docs", "models"):
            shutil.copytree(ROOT / "bundles" / name / part, tmp_path / name / part)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return tmp_path / name

    return copy


@pytest.fixture(scope="module")
def uptake(tmp_path_factory):
    """A body with one hot tumour, as FDG-PET shows it: image and label of 40 x 40 x 30 voxels of 4 mm."""
    folder, rng = tmp_path_factory.mktemp("uptake"), np.random.default_rng(0)
    x, y, z = np.meshgrid(*(np.arange(side) for side in (40, 40, 30)), indexing="ij")
    body = ((x - 20) / 16) ** 2 + ((y - 20) / 14) ** 2 < 1
    tumour = ((x - 24) / 6) ** 2 + ((y - 18) / 5) ** 2 + ((z - 15) / 6) ** 2 < 1
    image = np.where(body, 0.6, 0.05) + np.where(tumour, 6.0, 0)
    image = (image * rng.gamma(20, 1 / 20, image.shape)).astype(np.float32)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    paths = folder / "images/sarcoma_0000.nii.gz", folder / "label.nii.gz"
    paths[0].parent.mkdir()
    for path, array in zip(paths, (image, tumour.astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    return paths


def run(folder: Path, *files: str, **overrides) -> None:
    stack = str([f"configs/{file}.json" for file in files])
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    done = python("-m", "monai.bundle", "run", "--config_file", stack, *words, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", SHIPPED)
def test_provenance_is_of_these_weights_and_the_licence_names_their_data(name):
    models = ROOT / "bundles" / name / "models"
    record = read_provenance(models / "provenance.json", models / "model.pt")
    metadata = json.loads((ROOT / "bundles" / name / "configs/metadata.json").read_text())
    assert record["bundle"] == {"name": name, "version": metadata["version"]}
    assert (record["dataset"], len(record["cases"])) == SHIPPED[name]
    licence = " ".join((ROOT / "bundles" / name / "docs/data_license.txt").read_text().split())
    if SHIPPED[name] == PET:
        assert metadata["data_source"].startswith("16 cases of Dataset502_STSPET") and metadata["eval_metrics"]
        assert "Soft-tissue-sarcoma" in licence and "Creative Commons Attribution 3.0" in licence
    else:
        assert "trained on the phantom alone" in licence
    assert (models / "model.pt").stat().st_size < 25 * 2**20


@pytest.mark.slow
def test_dhvae_samples_after_the_download(downloaded):
    folder = downloaded("dhvae")
    run(folder, "inference", num_samples=8)
    samples = [load_sample(folder / "pool", sample["id"], 1) for sample in read_pool(folder / "pool")["samples"]]
    brighter = [image[0][labels > 0].mean() > image[0][labels == 0].mean() for image, labels in samples]
    assert len(samples) == 8 and all(brighter)


@pytest.mark.slow
def test_segmentation_finds_uptake_after_the_download(downloaded, uptake):
    """On the grid that it was trained on, whatever spatial_size says, which is of trainings; exported, the same."""
    image, label = uptake
    folder, found = downloaded("segmentation"), {}
    exported = {"network_def": "$torch.jit.load('models/model.ts')", "handlers#0#_disabled_": True}  # as the zoo says
    files = {"filepath": "models/model.ts", "ckpt_file": "models/model.pt", "meta_file": "configs/metadata.json",
             "config_file": "configs/inference.json"}  # fmt: skip
    words = [word for key, value in files.items() for word in (f"--{key}", value)]
    done = python("-m", "monai.bundle", "ckpt_export", "network_def", *words, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    for name, settings in {"64": {}, "96": {"spatial_size": [96, 96]}, "exported": exported}.items():
        run(folder, "inference", dataset_dir=image.parent, output_dir=folder / name, **settings)
        (path,) = (folder / name).rglob("*.nii.gz")
        found[name] = np.asanyarray(nib.load(path).dataobj) > 0
    wanted = np.asanyarray(nib.load(label).dataobj) > 0
    assert np.array_equal(found["64"], found["96"]) and np.array_equal(found["64"], found["exported"])
    assert 2 * (found["64"] & wanted).sum() / (found["64"].sum() + wanted.sum()) > 0.6


@pytest.mark.slow
def test_lesion_flow_paints_after_the_download(downloaded, uptake, tmp_path):
    """A tumour where there was none, and out again the one that there was."""
    image, label = uptake
    folder, before = downloaded("lesion_flow"), nib.load(image).get_fdata()
    asked = {"inserted": ("--volume", "3000", "--centre", "[14,24,15]"), "removed": ("--mask", str(label), "--remove")}
    inside = {}
    for name, words in asked.items():
        out = tmp_path / f"{name}.nii.gz"
        done = python("-m", "scripts", "insert", str(image), str(out), "--bundle_root", str(folder), *words, cwd=ROOT)
        assert done.returncode == 0, done.stderr[-3000:]
        after = nib.load(out).get_fdata()
        hole = after != before
        assert 0 < hole.mean() < 0.2
        where = nib.load(tmp_path / f"{name}_mask.nii.gz" if name == "inserted" else label).get_fdata() > 0
        inside[name] = before[where].mean(), after[where].mean()
    assert inside["inserted"][1] > 1.5 * inside["inserted"][0]
    assert inside["removed"][1] < 0.5 * inside["removed"][0]
