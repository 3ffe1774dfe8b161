"""What stands in the files that the handlers write."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn
from torch.utils.data import DistributedSampler

from scripts.data.cases import open_cases
from scripts.data.training_set import load_training_set
from scripts.report import sheets
from scripts.runtime.errors import InputError
from scripts.runtime.precision import TrainingDiverged, check_finite
from scripts.runtime.settings import prepare_training
from scripts.training.checkpoints import Checkpoints
from scripts.training.loading import EpochSeeds
from scripts.training.pictures import SampleGrid

from ..data.toy import write_preprocessed


@pytest.fixture(scope="module", params=[(24, 24), (20, 18, 6)], ids=["slices", "volumes"])
def data(request, tmp_path_factory):
    cases = open_cases(write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy"))
    return load_training_set(cases, request.param)


class Copier(nn.Module):
    """Reconstructs what it is given, times a factor."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(0.5))

    def reconstruct(self, x):
        return x * self.factor


class Generator(nn.Module):
    """Noise of the shape of a sample, as it is."""

    def __init__(self, latent_shape):
        super().__init__()
        self.latent_shape, self.factor = latent_shape, nn.Parameter(torch.tensor(1.0))

    def forward(self, z):
        return torch.sigmoid(z * self.factor)


def rows_of(monkeypatch, tmp_path, *arguments, **more) -> list:
    """The rows that the picture would show."""
    drawn = []
    draw_sheet = sheets.draw_sheet
    monkeypatch.setattr(sheets, "draw_sheet", lambda rows, *a, **k: drawn.append(rows) or draw_sheet(rows, *a, **k))
    engine = SimpleNamespace(state=SimpleNamespace(epoch=3, iteration=30))
    SampleGrid(*arguments, tmp_path, 1, **more)(engine)
    assert (tmp_path / "samples.png").is_file()
    return drawn[0]


@pytest.mark.slow
def test_rows_are_what_the_network_can_do(data, monkeypatch, tmp_path):
    rows = rows_of(monkeypatch, tmp_path, data, Copier())
    assert [name for name, *_ in rows] == ["real (training)", "reconstruction"]
    real, copied = rows[0][1], rows[1][1]
    assert np.allclose(copied, real / 2) and len(real) >= 4  # the same slices of the same items
    assert all(label.any() for label in rows[0][2])


@pytest.mark.slow
def test_volumes_show_the_slice_with_the_largest_mask(data, monkeypatch, tmp_path):
    rows = rows_of(monkeypatch, tmp_path, data, Copier())
    items = [item["image"] for item in data.training]
    for image, label in zip(rows[0][1], rows[0][2], strict=True):
        if items[0].ndim == 3:
            assert any(np.array_equal(image, item[:1]) for item in items)
            continue
        item = next(x for x in items if any(np.array_equal(image, x[:1, ..., i]) for i in range(6)))
        areas = item[1:].any(0).sum((0, 1))
        assert (label > 0).sum() == areas.max()


@pytest.mark.slow
def test_samples_come_from_what_is_given_to_make_them(data, monkeypatch, tmp_path):
    shape = tuple(data.training[0]["image"].shape)
    rows = rows_of(monkeypatch, tmp_path, data, Generator(shape))
    assert [name for name, *_ in rows] == ["real (training)", "sample"]
    again = rows_of(monkeypatch, tmp_path, data, Generator(shape))
    assert np.array_equal(rows[1][1], again[1][1])
    empty = rows_of(monkeypatch, tmp_path, data, Generator(shape), sample=lambda noise: torch.zeros_like(noise))
    assert not empty[1][1].any() and not empty[1][2].any()


def test_model_file_holds_the_given_model(tmp_path):
    network, averaged = nn.Linear(2, 2), nn.Linear(2, 2)
    for name, model in (("plain", None), ("averaged", averaged)):
        engine = Engine(lambda *_: None)
        Checkpoints(tmp_path / name, {"network": network}, model=model).attach(engine)
        engine.run([0], max_epochs=1)
        stored = torch.load(tmp_path / name / "model.pt", weights_only=True)
        assert torch.equal(stored["weight"], (model or network).weight)
        whole = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        assert torch.equal(whole["network"]["weight"], network.weight)


def test_the_same_training_leaves_the_same_bytes_whatever_its_process(tmp_path, monkeypatch):
    network, left = nn.Linear(2, 2), []
    for process in (7, 12345):
        monkeypatch.setattr("os.getpid", lambda process=process: process)
        engine = Engine(lambda *_: None)
        Checkpoints(tmp_path / str(process), {"network": network}).attach(engine)
        engine.run([0], max_epochs=1)
        left.append((tmp_path / str(process) / "model.pt").read_bytes())
    assert left[0] == left[1]


def test_an_epoch_is_saved_when_every_handler_is_done_with_it(tmp_path):
    """A training killed in a later handler, such as the log of the losses, runs the epoch again."""
    engine, died = Engine(lambda *_: None), []
    Checkpoints(tmp_path, {"network": nn.Linear(2, 2)}).attach(engine)

    @engine.on(Events.EPOCH_COMPLETED(once=2))
    def die(_):
        died.append(True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.run([0], max_epochs=3)
    assert died and torch.load(tmp_path / "checkpoint.pt", weights_only=True)["trainer"]["iteration"] == 1


def test_broken_numbers_are_named():
    check_finite({"loss": torch.tensor(1.0)}, 3)
    with pytest.raises(TrainingDiverged, match="step 3: norm is not finite .*loss 1"):
        check_finite({"loss": torch.tensor(1.0), "norm": torch.tensor(float("inf"))}, 3)


def test_every_seed_that_is_taken_can_be_trained_with():
    for wrong in (-1, 2**32, 1.0, True):
        with pytest.raises(InputError, match="seed"):
            prepare_training(wrong)
    engine: Any = SimpleNamespace(state=SimpleNamespace(epoch=2**20))
    EpochSeeds(2**32 - 1, torch.Generator(), DistributedSampler(range(4), 1, 0))(engine)
