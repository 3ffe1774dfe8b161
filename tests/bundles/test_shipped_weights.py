"""The weights that come with two bundles: they work at once, and their provenance says what made them."""

import json
import shutil
from pathlib import Path

import pytest

from scripts.data.provenance import read_provenance
from scripts.phantom.dataset import write_phantom
from scripts.pool.writing import load_sample, read_pool

from ..processes import python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def downloaded(tmp_path, monkeypatch):
    """A copy of a bundle as it would be downloaded, to run in."""

    def copy(name: str) -> Path:
        for part in ("configs", "docs", "models"):
            shutil.copytree(ROOT / "bundles" / name / part, tmp_path / name / part)
        monkeypatch.setenv("PYTHONPATH", str(ROOT))
        return tmp_path / name

    return copy


def run(folder: Path, *files: str, **overrides) -> None:
    stack = str([f"configs/{file}.json" for file in files])
    words = [word for key, value in overrides.items() for word in (f"--{key}", str(value))]
    done = python("-m", "monai.bundle", "run", "--config_file", stack, *words, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["dhvae", "segmentation"])
def test_provenance_is_of_these_weights_and_of_phantoms(name):
    models = ROOT / "bundles" / name / "models"
    record = read_provenance(models / "provenance.json", models / "model.pt")
    version = json.loads((ROOT / "bundles" / name / "configs/metadata.json").read_text())["version"]
    assert record["bundle"] == {"name": name, "version": version}
    assert record["dataset"] == "Dataset801_PhantomFLAIR" and len(record["cases"]) == 24
    assert (models / "model.pt").stat().st_size < 25 * 2**20


@pytest.mark.slow
def test_dhvae_samples_after_the_download(downloaded):
    folder = downloaded("dhvae")
    run(folder, "inference", num_samples=8)
    samples = [load_sample(folder / "pool", sample["id"], 1) for sample in read_pool(folder / "pool")["samples"]]
    brighter = [image[0][labels > 0].mean() > image[0][labels == 0].mean() for image, labels in samples]
    assert len(samples) == 8 and all(brighter)


@pytest.mark.slow
def test_segmentation_finds_tumours_after_the_download(downloaded, tmp_path):
    """In phantoms of another seed than those that it was trained on."""
    dataset = write_phantom(tmp_path / "Dataset802_Others", "flair", 5, 4, seed=17)
    folder = downloaded("segmentation")
    run(folder, "train", "evaluate", dataset_dir=dataset, split="test", raw_dir=dataset)
    found = json.loads((folder / "evaluation/metrics.json").read_text())
    assert len(found["cases"]) == 4 and found["summary"]["tumor"]["dice"]["mean"] > 0.6
