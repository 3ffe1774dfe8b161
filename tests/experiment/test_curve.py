"""The curve of a training: points that a shorter training would end with, measured once."""

import json

import numpy as np
import pytest
import torch

from scripts.experiment import curve
from scripts.experiment.curve import write_curve
from scripts.runtime.errors import InputError

from ..data.toy import write_preprocessed
from ..processes import python

TINY = {"spatial_size": [24, 24], "channels": [8, 16], "num_res_blocks": 1, "latent_channels": 2, "attention_heads": 1,
        "num_leapfrog_steps": 1, "batch_size": 4, "val_interval": 1, "grid_interval": 100}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy", cases=9)


def forked(command, cwd):
    """What `call` does, without four interpreters that load torch and MONAI."""
    done = python(*command[1:], cwd=cwd)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_points_are_measured_once_and_the_training_goes_on(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(curve, "call", forked)
    options = {"generator": {**TINY, "max_epochs": 2}, "sampling": {"min_foreground": 0}, "num_samples": 8}
    picture = write_curve("hvae", dataset, tmp_path, points=1, **options)
    first = json.loads((tmp_path / "curve.json").read_text())["points"]
    options["generator"]["max_epochs"] = 4
    write_curve("hvae", dataset, tmp_path, points=2, **options)
    record = json.loads((tmp_path / "curve.json").read_text())
    assert picture.is_file() and record["points"][:1] == first
    assert [point["epochs"] for point in record["points"]] == [2, 4]
    assert {"fid", "kid", "precision", "recall", "copies", "lowest_val_neg_elbo"} <= set(record["points"][1])
    assert set(record["real"]) == {"fid", "kid", "precision", "recall"}
    minutes = [point["minutes"] for point in record["points"]]
    assert 0 < minutes[0] < minutes[1] and all(np.isfinite(list(p.values())).all() for p in record["points"])
    assert torch.load(tmp_path / "generator/models/checkpoint.pt", weights_only=True)["trainer"]["epoch_length"] > 0
    with pytest.raises(InputError, match="num_samples 8 .now 9"):
        write_curve("hvae", dataset, tmp_path, points=2, **{**options, "num_samples": 9})


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"generator": {"max_epoch": 3}}, "max_epochs"),
        ({"generator": {"fold": 1}}, "setting fold"),
        ({"points": 20}, "first point"),
        ({"overlays": ["evenings.json"]}, "overlay"),
        ({"weights_vgg": "nowhere.pth"}, "no such file"),
        ({}, "no folder nowhere"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(wrong, words, tmp_path):
    with pytest.raises(InputError, match=words):
        write_curve("hvae", "nowhere", tmp_path / "curve", **wrong)
    assert not (tmp_path / "curve").exists()
