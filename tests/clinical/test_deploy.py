"""MONAI Deploy: an application around its bundle operator, and the TorchScript that MONAI exports of the bundle."""

import importlib.util
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from .conftest import run, write_site

if importlib.util.find_spec("monai.deploy") is None:
    pytest.skip("MONAI Deploy is not installed: pip install monai-deploy-app-sdk", allow_module_level=True)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*_target_.*:UserWarning"),  # of every bundle: it can run code
    pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning"),  # MONAI calls itself so
    pytest.mark.filterwarnings("ignore:.*nvImageCodec.*"),  # of MONAI's readers, once there is pydicom
]


def test_bundle_operator_in_an_application(packed, tmp_path):
    """The application's label map is, to the voxel, the bundle's own prediction of the same file."""
    bundle = shutil.copytree(packed, tmp_path / "segmentation")
    configs = [f"--config_file={bundle}/configs/inference.json", f"--bundle_root={bundle}"]
    run(
        "-m", "monai.bundle", "ckpt_export", "network_def", f"--filepath={bundle}/models/model.ts",
        f"--ckpt_file={bundle}/models/model.pt", f"--meta_file={bundle}/configs/metadata.json", *configs,
        "--use_trace=True", "--input_shape=[1,1,32,32]", cwd=bundle,
    )  # fmt: skip
    image = tmp_path / "images/new_0000.nii.gz"
    image.parent.mkdir()
    shutil.copy(write_site(tmp_path / "second", seed=2) / "imagesTs/flair_test_000_0000.nii.gz", image)
    run("-m", "monai.bundle", "run", *configs, f"--dataset_dir={image.parent}", cwd=tmp_path)
    (bundle / "models/model.pt").unlink()  # only the TorchScript can have made what follows

    said = run(Path(__file__).with_name("deploy_app.py"), "models/model.ts", image, tmp_path / "label.npy", cwd=bundle,
               PYTHONPATH=str(bundle))  # fmt: skip
    label, ours = np.load(tmp_path / "label.npy"), nib.load(bundle / "predictions/new.nii.gz")
    assert label.any() and np.array_equal(np.swapaxes(label, 0, 2), np.asarray(ours.dataobj)), said
