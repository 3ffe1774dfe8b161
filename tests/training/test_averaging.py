"""The weights that a training ends with: those of the lowest held-out loss, also when it was stopped on the way."""

import logging
import math

import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from scripts.runtime.errors import InputError
from scripts.training.averaging import PATIENCE, BestWeights, WeightAverage
from scripts.training.checkpoints import Checkpoints

RISING = [5.0, 3.0, 4.0, 3.5, 6.0, 7.0]


def train(folder, held_out, epochs, keep="best", trained=None, interval=1):
    """A training whose only weight counts the epochs; `held_out` and `trained` are its losses, epoch by epoch."""
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)

    def step(engine, _):
        with torch.no_grad():
            network.weight.fill_(engine.state.epoch)
        average.update_parameters(network)
        return {"loss": 1 / engine.state.epoch if trained is None else trained[engine.state.epoch - 1]}

    def validate(engine):
        evaluator.state.metrics["val"] = held_out[engine.state.epoch - 1]
        evaluator.run([0], max_epochs=engine.state.epoch, epoch_length=1)

    average = WeightAverage(network, 0.0)
    best = BestWeights(average, "val", keep)
    engine, evaluator = Engine(step), Engine(lambda *_: None)
    evaluator.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", engine.state.epoch - 1))
    best.attach_validator(evaluator)
    checkpoints = Checkpoints(folder, {"network": network, "average": average, "best": best}, model=best.model)
    checkpoints.attach_start(engine)
    best.attach(engine)
    if held_out is not None:
        engine.add_event_handler(Events.EPOCH_COMPLETED(every=interval), validate)
    checkpoints.attach_end(engine)
    engine.run([0, 1], max_epochs=epochs)
    return float(torch.load(folder / "model.pt", weights_only=True)["weight"]), best


def test_the_lowest_held_out_loss_decides(tmp_path):
    weight, best = train(tmp_path, RISING, 6)
    assert weight == 2 and best.as_record() == {"keep": "best", "epoch": 2, "val": 3.0}


def test_where_it_was_stopped_makes_no_difference(tmp_path):
    for stop in range(1, 6):
        train(tmp_path / str(stop), RISING, stop)
        weight, best = train(tmp_path / str(stop), RISING, 6)
        assert weight == 2 and best.as_record() == {"keep": "best", "epoch": 2, "val": 3.0}


@pytest.mark.parametrize("held_out, keep", [(RISING, "last"), (None, "best"), ([math.nan] * 6, "best")])
def test_without_a_judgement_the_last_are_kept(tmp_path, held_out, keep):
    weight, best = train(tmp_path, held_out, 6, keep)
    assert weight == 6 and best.as_record()["epoch"] == 6


def test_epochs_that_nobody_judged_are_not_taken(tmp_path):
    weight, _ = train(tmp_path, RISING, 5, interval=2)
    assert weight == 2


def test_learning_by_heart_is_said_once(tmp_path, caplog):
    rising = [3.0] + [4.0 + i for i in range(PATIENCE + 2)]
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "rising", rising, len(rising))
    assert len(caplog.records) == 1 and "learns its cases by heart" in caplog.text and "of epoch 1" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        train(tmp_path / "stopped", rising, 2)
        train(tmp_path / "stopped", rising, len(rising))
        assert len(caplog.records) == 1
        caplog.clear()
        train(tmp_path / "both", rising, len(rising), trained=rising)  # the training's own loss rises as well
        train(tmp_path / "falling", rising[::-1], len(rising))
    assert not caplog.records


def test_another_word_is_refused():
    with pytest.raises(InputError, match="keep_weights 'first'"):
        BestWeights(WeightAverage(nn.Linear(1, 1)), "val", "first")
