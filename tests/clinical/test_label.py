"""MONAI Label: its inference task and its training task, on a packed bundle and a datastore of images and labels."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from scripts.data.cases import open_cases

from .conftest import run, write_site

pytest.importorskip("monailabel", reason="MONAI Label is not installed: pip install monailabel")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*_target_.*:UserWarning"),  # of every bundle: it can run code
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calls itself so
]


def voxels(path: Path) -> np.ndarray:
    return np.asarray(nib.load(path).dataobj)


def test_training_and_inference_tasks(packed, tmp_path):
    """It learns from the labels of the datastore, starting from the weights at hand, and its record says all of that.

    The label map that a reader gets is, to the voxel, the bundle's own prediction with the weights of that moment.
    """
    bundle = shutil.copytree(packed, tmp_path / "model/segmentation")
    site, studies = write_site(tmp_path / "second", seed=2), tmp_path / "studies"
    (studies / "labels/final").mkdir(parents=True)
    names = sorted(path.name.removesuffix(".nii.gz") for path in (site / "labelsTr").iterdir())
    for name in names:
        shutil.copy(site / f"imagesTr/{name}_0000.nii.gz", studies / f"{name}_own.nii.gz")
    for name in names[:4]:
        shutil.copy(site / f"labelsTr/{name}.nii.gz", studies / f"labels/final/{name}_own.nii.gz")
    shipped = json.loads((bundle / "models/provenance.json").read_text())
    image = tmp_path / "images/new_0000.nii.gz"
    image.parent.mkdir()
    shutil.copy(site / "imagesTs/flair_test_000_0000.nii.gz", image)

    said = run(Path(__file__).with_name("label_session.py"), bundle, studies, image, tmp_path, cwd=tmp_path)
    assert "labels {'tumor': 0}" in said and "val_mean_dice" in said
    first, second = (json.loads((tmp_path / f"provenance{turn}.json").read_text()) for turn in (1, 2))
    cases = open_cases(site, "all")
    labelled = [{"id": f"{name}_own", **cases.load(name).identity._asdict()} for name in names[:4]]
    read = [case for case in labelled if case in first["cases"]]  # MONAI Label validates on one of its choice
    assert first["cases"] == second["cases"] == read and len(read) == 3 and first["training"]["epochs"] == 2
    assert first["training"]["started_from"]["weights_sha256"] == shipped["weights_sha256"]
    assert first["training"]["started_from"]["cases"] == shipped["cases"] and len(shipped["cases"]) == 4
    assert second["training"]["started_from"]["weights_sha256"] == first["weights_sha256"]
    assert second["training"]["started_from"]["cases"] == shipped["cases"] + read
    assert len({record["weights_sha256"] for record in (shipped, first, second)}) == 3

    where = (
        f"--config_file={bundle}/configs/inference.json",
        f"--bundle_root={bundle}",
        f"--dataset_dir={image.parent}",
    )
    run("-m", "monai.bundle", "run", *where, cwd=tmp_path)
    labels = [voxels(tmp_path / f"label{turn}.nii.gz") for turn in range(3)]
    assert np.array_equal(labels[2], voxels(bundle / "predictions/new.nii.gz")) and labels[2].any()
    assert np.allclose(nib.load(tmp_path / "label2.nii.gz").affine, nib.load(image).affine)
    assert not np.array_equal(labels[0], labels[1])
