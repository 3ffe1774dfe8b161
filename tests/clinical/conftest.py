"""A packed segmentation bundle with weights, as a hospital gets it: a folder that knows nothing of this project."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from monai.bundle import create_workflow

from scripts.packaging.pack import pack_bundle
from scripts.phantom.dataset import write_phantom

BUNDLE = Path(__file__).resolve().parents[2] / "bundles/segmentation"
# Neither program can be told settings of a bundle: the packed one is a small one.
SMALL = {"spatial_size": [32, 32], "channels": [8, 8, 8, 8, 8], "batch_size": 8}
TRAINING = {"iterations_per_epoch": 20, "learning_rate": 0.01, "val_interval": 1}


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """What a Python program prints; it must end well."""
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return done.stdout


def write_site(folder: Path, seed: int) -> Path:
    """Five training cases and a test case, volumes of 32 x 32 x 8 voxels."""
    return write_phantom(folder / "Dataset801_PhantomFLAIR", "flair", 5, 1, seed=seed, shape=(32, 32, 8))


@pytest.fixture(scope="session")
def packed(tmp_path_factory) -> Path:
    """The unpacked folder of `synthaug pack segmentation`, trained on the phantoms of seed 1."""
    folder = tmp_path_factory.mktemp("packed")
    small = folder / "segmentation"
    shutil.copytree(BUNDLE, small, ignore=lambda *_: ["scripts", "nnunet_plugin", "models"])
    for name, settings in (("inference", SMALL), ("train", TRAINING | {"batch_size": SMALL["batch_size"]})):
        path = small / f"configs/{name}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(small)
        create_workflow(
            config_file="configs/train.json", workflow_type="train", bundle_root=str(folder / "run"), max_epochs=3,
            dataset_dir=str(write_site(folder / "first", seed=1)), logging_file=False,
        ).run()  # fmt: skip
    path = pack_bundle(small, folder, folder / "run/models/model.pt")
    with zipfile.ZipFile(path) as archive:
        archive.extractall(folder / "app/model")
    (bundle,) = (folder / "app/model").iterdir()
    return bundle
