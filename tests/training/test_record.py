"""The record holds what was used, and a training ends alike wherever it was ended."""

import json

import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigWorkflow
from torch import nn

from scripts.data.cases import open_cases
from scripts.data.provenance import read_provenance
from scripts.data.training_set import load_training_set
from scripts.networks.lsgan import Generator
from scripts.runtime.errors import InputError
from scripts.runtime.running import one_spelling
from scripts.training.checkpoints import Checkpoints
from scripts.training.lsgan import CollapseMonitor
from scripts.training.record import TrainingRecord

from ..data.toy import write_preprocessed

CONFIG = {
    "imports": ["$import torch", "$from scripts.runtime.running import settings_behind"],
    "device": "cpu", "rate": 0.1, "decay": "@rate", "unused": 1, "max_epochs": 3,
    "network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 2},
    "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.to(@device).parameters()", "lr": "@decay"},
    "trainer": {"optimizer": "@optimizer", "max_epochs": "@max_epochs", "sizes": [1, 2]},
    "run": ["$settings_behind('trainer')"],
}  # fmt: skip


def used(folder, **overrides) -> dict:
    (folder / "train.json").write_text(json.dumps(CONFIG))
    workflow = ConfigWorkflow(str(folder / "train.json"), logging_file=False, **overrides)
    workflow.initialize()
    return workflow.run()[0]


@pytest.mark.filterwarnings("ignore:.*Logging file.*")
def test_what_reaches_the_trainer_is_known_by_its_value(tmp_path):
    plain = used(tmp_path)
    assert plain["optimizer#lr"] == 0.1 and plain["trainer#sizes"] == [1, 2]
    assert not {"unused", "max_epochs", "device", "trainer#max_epochs"} & set(plain)
    assert used(tmp_path, device="cuda", max_epochs=9, unused=2) == plain
    assert used(tmp_path, rate=0.2) == used(tmp_path, decay=0.2) == used(tmp_path, **{"optimizer#lr": 0.2}) != plain
    assert used(tmp_path, **{"network#out_features": 3}) == {**plain, "network#out_features": 3}
    spelled = one_spelling("$@train#dataset.data")
    assert spelled == one_spelling("$@train::dataset.data") == "$@train::dataset.data" and one_spelling("a#b") == "a#b"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    cases = open_cases(write_preprocessed(tmp_path_factory.mktemp("data") / "Dataset901_Toy"))
    return load_training_set(cases, (16, 16))


def train(data, folder, epochs, killed=False, threshold=0.0):
    """A training whose weights count the steps; killed behind its last checkpoint, or not."""
    network = Generator(2, (16, 16), (8, 8), latent_size=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=0.3)

    def step(engine, _):
        with torch.no_grad():
            network.get_parameter(next(iter(dict(network.named_parameters())))).add_(1)
        return {"loss": 0.0}

    engine = Engine(step)
    record = TrainingRecord(data, folder, {"name": "toy", "version": "1"}, 0, {}, {"rate": 1})
    record.check_resume()
    checkpoints = Checkpoints(folder, {"network": network})
    checkpoints.attach_start(engine)
    CollapseMonitor(data, network, record, interval=100, threshold=threshold, count=4).attach(engine)
    if killed:
        engine.add_event_handler(Events.COMPLETED, lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    checkpoints.attach_end(engine)
    record.attach(engine)
    engine.run([0, 1], max_epochs=epochs)


def ended(folder) -> tuple[dict, dict]:
    record = read_provenance(folder / "provenance.json", folder / "model.pt")
    return torch.load(folder / "model.pt", weights_only=True), record


@pytest.mark.parametrize("before", [2, 4], ids=["grown", "first"])
def test_killed_behind_its_last_checkpoint_it_ends_as_an_uninterrupted_one(data, tmp_path, before):
    train(data, tmp_path / "straight", 4)
    if before < 4:
        train(data, tmp_path / "killed", before)
    with pytest.raises(KeyboardInterrupt):
        train(data, tmp_path / "killed", 4, killed=True)
    train(data, tmp_path / "killed", 4)
    (a, record), (b, other) = ended(tmp_path / "straight"), ended(tmp_path / "killed")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert record == other and record["training"]["epochs"] == 4
    assert {"diversity", "mask_diversity"} <= set(other["training"])  # what a monitor measured at the last step
    stamp = (tmp_path / "killed/model.pt").stat().st_mtime_ns
    train(data, tmp_path / "killed", 4)  # finished: nothing is written
    assert (tmp_path / "killed/model.pt").stat().st_mtime_ns == stamp


def test_a_record_of_before_is_gone_on_with_and_options_that_are_no_more_do_not_count(data, tmp_path):
    train(data, tmp_path, 1)
    path = tmp_path / "training.json"
    before = json.loads(path.read_text())
    del before["used"]
    path.write_text(json.dumps({**before, "settings": {"rate": 1, "fakes": "reconstruction"}}))
    train(data, tmp_path, 2)
    path.write_text(json.dumps({**before, "settings": {"rate": 2}}))
    with pytest.raises(InputError, match="other settings"):
        train(data, tmp_path, 3)
