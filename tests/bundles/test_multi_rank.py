"""Two processes of `torchrun` train as one process does: the same losses, one writer, and they go on alike."""

from pathlib import Path

import pytest
import torch

from ..data.toy import write_preprocessed
from ..processes import python
from . import test_bundles, two_stages
from .two_stages import losses

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
# Twelve training items: every batch can be dealt out evenly, as the equality of the losses wants. In float32: in
# bfloat16, which "auto" takes where the CPU has it, a sum of four items is not two sums of two, and by how much is a
# matter of the CPU.
SETTINGS = {
    "dhvae": {**test_bundles.TINY, "feature_steps": 2, "discriminator_start": 2, "learning_rate": 1e-4},
    "ldm": {**two_stages.TINY, "autoencoder_epochs": 2, "spatial_size": [24, 24],
            "autoencoder_learning_rate": 1e-4, "learning_rate": 1e-4},
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy")


def train(name: str, root: Path, dataset: Path, ranks: int, max_epochs: int = 2, check=True, **changes):
    files = ["configs/train.json"] + (["configs/multi_gpu_train.json"] if ranks > 1 else [])
    known = (ROOT / "bundles" / name / "configs/train.json").read_text()
    given = {"bundle_root": root, "dataset_dir": dataset, "max_epochs": max_epochs, "background_share": 0.0,
             "autocast": "$None", **{k: v for k, v in SETTINGS[name].items() if f'"{k}"' in known},
             **changes}  # fmt: skip
    words = [str(word) for key, value in given.items() for word in (f"--{key}", value)]
    words = ["-m", "monai.bundle", "run", "--config_file", str(files), *words]
    done = python(*words, cwd=ROOT / "bundles" / name, ranks=ranks)
    assert not check or done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    return done


def numbers(folder: Path) -> list[list[float]]:
    return [[float(value or "nan") for value in row] for row in losses(folder)[1:]]


@pytest.mark.parametrize("name", SETTINGS)
def test_two_ranks_train_as_one(name, dataset, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    train(name, one, dataset, 1)
    done = train(name, two, dataset, 2)
    assert done.stderr.count("fold 0: ") == 2  # both took part
    stages = ["models", "models/autoencoder"] if name == "ldm" else ["models"]
    for stage in stages:
        assert losses(one / stage)[0] == losses(two / stage)[0]
        for ours, theirs in zip(numbers(one / stage), numbers(two / stage), strict=True):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-4, nan_ok=True)
    a, b = (torch.load(root / "models/model.pt", weights_only=True) for root in (one, two))
    assert all(torch.allclose(a[key], b[key], rtol=1e-2, atol=1e-3) for key in a)
    written = sorted(str(path.relative_to(one)) for path in one.rglob("*") if "tensorboard" not in str(path))
    assert written == sorted(str(path.relative_to(two)) for path in two.rglob("*") if "tensorboard" not in str(path))
    for stage in stages:  # one writer of the curves: one event file for losses, pictures, and each evaluator
        events = [len(list((root / stage / "tensorboard").iterdir())) for root in (one, two)]
        assert events[0] == events[1]


def test_two_ranks_go_on_where_one_or_two_stopped(dataset, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    train("dhvae", straight, dataset, 2, max_epochs=3)
    train("dhvae", resumed, dataset, 2, max_epochs=1)
    train("dhvae", resumed, dataset, 2, max_epochs=3)
    assert losses(straight / "models") == losses(resumed / "models")
    a, b = (torch.load(root / "models/model.pt", weights_only=True) for root in (straight, resumed))
    assert all(torch.equal(a[key], b[key]) for key in a)
    train("dhvae", resumed, dataset, 1, max_epochs=4)  # the number of processes is no setting of the training
    assert len(losses(resumed / "models")) == 5


def test_batches_that_cannot_be_dealt_out_are_refused(dataset, tmp_path):
    done = train("dhvae", tmp_path, dataset, 2, check=False, batch_size=3)
    assert done.returncode != 0 and "batch_size 3 for 2 processes" in done.stderr
    assert not (tmp_path / "models").exists()
