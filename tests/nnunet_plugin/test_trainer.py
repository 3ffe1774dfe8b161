"""nnUNetTrainerSynthAug on stock nnU-Net: batches, shares, workers, ranks, resuming, refusals."""

import json
import multiprocessing
import os
import pickle
import random
import shutil
import signal
import time
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import nnunet_plugin
import numpy as np
import pytest
import torch
from nnunet_plugin.errors import InputError
from nnunet_plugin.import_pool import add_pool
from nnunet_plugin.trainer import EPOCHS_FILE, SynthAugMixin, nnUNetTrainerSynthAug, read_epochs
from nnunetv2.run.run_training import maybe_load_checkpoint
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA
from nnunetv2.training.nnUNetTrainer.variants.lr_schedule.nnUNetTrainer_warmup import nnUNetTrainer_warmup
from nnunetv2.training.nnUNetTrainer.variants.optimizer.nnUNetTrainerAdam import nnUNetTrainerAdam
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name

from ..processes import start, wait_until

PLAIN, REGIONS, IGNORE = "Dataset901_Plain", "Dataset902_Regions", "Dataset903_Ignore"
SHORT = {"num_epochs": 4, "num_iterations_per_epoch": 3, "num_val_iterations_per_epoch": 1, "seed": 0}
ROOT = Path(nnunet_plugin.__file__).parents[1]


class NoAugmentation(SynthAugMixin, nnUNetTrainerNoDA):
    """The mixin before another of nnU-Net's trainers; its batches hold the samples' own values."""


class WarmedUp(SynthAugMixin, nnUNetTrainer_warmup):
    """One that asks for its optimiser again, by the stage of its schedule."""


class WithAdam(SynthAugMixin, nnUNetTrainerAdam):
    """One with an optimiser of its own."""


class OfTwentyEpochs(nnUNetTrainerSynthAug):
    """A trainer as users write them."""

    def __init__(self, plans, configuration, fold, dataset_json, device=torch.device("cuda")):  # noqa: B008
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.num_epochs = 20


class OfTwoPasses(nnUNetTrainer):
    """One that changes its weights between two passes, as sharpness-aware minimisation does."""

    def train_step(self, batch):
        with torch.autocast("cpu", torch.bfloat16):
            before = self.network(batch)
        with torch.no_grad():
            self.network.weight.mul_(2)
        with torch.autocast("cpu", torch.bfloat16):
            return {"loss": float((self.network(batch) / before).mean().detach())}


class OfTwoPassesMixed(SynthAugMixin, OfTwoPasses):
    """The same behind the mixin."""


@pytest.fixture
def mixed(make_pool, make_trainer):
    """Return a function that imports a pool and constructs a trainer on it."""

    def make(share=0.5, configuration="2d", dataset=PLAIN, kind=None, pool=None, volumes=False, **settings):
        pool = pool or make_pool(dataset=dataset, configuration="3d_fullres" if volumes else configuration,
                                 kind="raw" if volumes else "nnunet_preprocessed")  # fmt: skip
        settings = {"training": SHORT, **settings}
        result = add_pool(pool, dataset, 0, configuration, share, "nnUNetPlansCPU", **settings)
        return make_trainer(result["configuration"], 0, dataset, kind=kind)

    return make


def start_loaders(trainer, seed=0):
    """Build the loaders as on_train_start does, with every random number generator seeded."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (nnU-Net draws from the global generator)
    torch.manual_seed(seed)
    trainer._set_batch_size_and_oversample()
    return trainer.get_dataloaders()


def synthetic(batch) -> torch.Tensor:
    """Which samples of a batch are synthetic, by the values that only these have."""
    return batch["data"].flatten(1).amax(1) > 400


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_share_zero_is_bit_identical_to_stock(mixed, make_trainer, configuration):
    trainers = {
        "stock": make_trainer(configuration, plans="nnUNetPlansCPU", kind=nnUNetTrainer),
        "none": mixed(0.0, configuration),
        "half": mixed(0.5, configuration),
    }
    batches = {}
    for name, trainer in trainers.items():
        train, val = start_loaders(trainer)
        batches[name] = [next(train) for _ in range(4)] + [next(val) for _ in range(2)]
    for stock, none in zip(batches["stock"], batches["none"], strict=True):
        assert torch.equal(stock["data"], none["data"]) and list(stock["keys"]) == list(none["keys"])
        assert all(torch.equal(a, b) for a, b in zip(stock["target"], none["target"], strict=True))
    assert not torch.equal(batches["stock"][0]["data"], batches["half"][0]["data"])


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_share_of_each_epoch_is_exact(mixed, share, configuration):
    training = {**SHORT, "num_iterations_per_epoch": 6}
    trainer = mixed(share, configuration, training=training)
    train, val = start_loaders(trainer)
    places = []
    for epoch in range(3):
        marks = torch.stack([synthetic(next(train)) for _ in range(6)])
        assert marks.sum() == share * marks.numel()
        loaded = trainer.synthaug_ledger.loaded(epoch)
        assert (loaded.synthetic, loaded.real) == (int(marks.sum()), int((~marks).sum()))
        places.append(marks)
    assert not any(synthetic(next(val)).any() for _ in range(10))
    assert share == 1.0 or not torch.equal(places[0], places[1])


def test_each_sample_is_drawn_once_an_epoch_and_never_a_dropped_one(mixed, make_pool):
    pool = make_pool(samples=12, dropped=5)
    trainer = mixed(1.0, kind=NoAugmentation, pool=pool)  # 3 batches of 4: the pool exactly
    train, _ = start_loaders(trainer)
    for _ in range(3):
        values = torch.cat([next(train)["data"].flatten(1).amax(1) for _ in range(3)])
        assert sorted((values - 1000).floor().int().tolist()) == list(range(12))


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
# nnU-Net's collecting thread may still receive a tensor when the loaders shut down. A worker that fails earlier
# makes next() raise.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Exception in thread .*results_loop")
def test_background_workers(mixed, monkeypatch, method):
    """Workers run ahead and take turns, and every epoch still loads what its plan says."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "2")
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(method, force=True)
    try:
        trainer = mixed(0.5)
        train, val = start_loaders(trainer)
        try:
            for epoch in range(3):
                marks = torch.stack([synthetic(next(train)) for _ in range(3)])
                assert marks.sum() == marks.numel() // 2
                while trainer.synthaug_ledger.loaded(epoch) != expected(trainer, epoch):
                    time.sleep(0.02)
            assert not synthetic(next(val)).any()
        finally:
            train._finish()
            val._finish()
    finally:
        multiprocessing.set_start_method(before, force=True)


def expected(trainer, epoch):
    from nnunet_plugin.dataset import planned

    return planned(trainer.synthaug_plans, epoch)


RANK = """
import json, os, sys, warnings
import torch, torch.distributed as dist
rank, store, base, out = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group("gloo", rank=rank, world_size=2, init_method=f"file://{store}")
from nnunet_plugin.trainer import nnUNetTrainerSynthAug
plans, dataset = (json.load(open(f"{base}/{n}.json")) for n in ("nnUNetPlansCPUSynthAug", "dataset"))
warnings.simplefilter("ignore")  # nnU-Net's trainer takes CUDA for granted under DDP
trainer = nnUNetTrainerSynthAug({**plans, "continue_training": False}, "2d_syn50", 0, dataset)
trainer._set_batch_size_and_oversample()
train, val = trainer.get_dataloaders()
counts, draws = [], []
for epoch in range(2):
    counts += [sum(int((next(train)["data"].flatten(1).amax(1) > 400).sum()) for _ in range(3))]
    plan = trainer.synthaug_plans.of(epoch)
    draws += [sorted(plan[plan >= 0].tolist())]
json.dump([trainer.batch_size, counts, draws], open(f"{out}/{rank}.json", "w"))
dist.barrier()
"""


@pytest.mark.slow
def test_ranks_draw_apart(mixed, nnunet):
    """Two gloo ranks share each epoch's deck and each keep the share; nnU-Net halves the batch between them."""
    mixed(0.5)
    base = nnunet / "preprocessed" / PLAIN
    ranks = [start("-c", RANK, rank, nnunet / "store", base, nnunet) for rank in range(2)]
    assert [rank.wait() for rank in ranks] == [0, 0]
    first, second = (json.loads((nnunet / f"{rank}.json").read_text()) for rank in range(2))
    assert first[0] == second[0] == 2 and first[1] == second[1] == [3, 3]
    for ours, theirs in zip(first[2], second[2], strict=True):
        assert len(ours) == len(theirs) == 3 and not set(ours) & set(theirs)


class Killed(Exception):
    """Stands for the end of a process."""


def interrupted(at_epoch: int) -> type:
    """Return a trainer that dies in an epoch, after its first step."""

    class Dies(nnUNetTrainerSynthAug):
        def train_step(self, batch):
            if self.current_epoch == at_epoch and self.synthaug_ledger.loaded(at_epoch).real > 2:
                raise Killed
            return super().train_step(batch)

    Dies.__name__ = nnUNetTrainerSynthAug.__name__  # names the results folder
    return Dies


@pytest.mark.slow
def test_training_continues_where_it_was_killed(mixed, make_trainer, nnunet, monkeypatch):
    """With a training seed and no workers, the continued run is the uninterrupted one: draws and weights."""
    whole = mixed(0.5, training={**SHORT, "optimizer": "AdamW", "initial_lr": 1e-3})
    whole.run_training()
    reference = read_epochs(Path(whole.output_folder) / EPOCHS_FILE)
    assert [r["epoch"] for r in reference] == [0, 1, 2, 3]
    assert all(r["as_planned"] and r["share"] == 0.5 and r["synthetic"] == 6 for r in reference)
    assert len({r["draws"] for r in reference}) == 4
    assert "synthetic share 0.5000 (6 of 12 samples" in Path(whole.log_file).read_text()

    assert "syn_000000" not in (Path(whole.output_folder) / "debug.json").read_text()  # no lists of samples there

    (nnunet / "other_results").mkdir()
    monkeypatch.setenv("nnUNet_results", str(nnunet / "other_results"))
    with pytest.raises(Killed):
        make_trainer("2d_syn50", kind=interrupted(2)).run_training()
    trainer = make_trainer("2d_syn50", resume=True)
    with open(Path(trainer.output_folder) / EPOCHS_FILE, "a") as file:
        file.write('{"epoch": 2, "rank": 0, "real": 12, "synthetic": 0, "draws": "0"}\n{"epoch": 3, "ra')
    maybe_load_checkpoint(trainer, continue_training=True, validation_only=False)
    assert trainer.current_epoch == 2
    trainer.run_training()
    assert read_epochs(Path(trainer.output_folder) / EPOCHS_FILE) == reference
    for (name, a), b in zip(whole.network.state_dict().items(), trainer.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.slow
def test_command_killed_in_an_epoch_and_continued(mixed, nnunet):
    """nnUNetv2_train itself, with a background worker: SIGKILL in the third epoch, then --c."""
    training = {**SHORT, "num_iterations_per_epoch": 10}
    trainer = mixed(0.5, training=training)
    reference = [expected_record(trainer, epoch) for epoch in range(4)]
    output = Path(trainer.output_folder)
    shutil.rmtree(output)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_WAIT_POLICY": "PASSIVE",  # on a CPU nnUNetv2_train takes all cores, and spins on them
        "nnUNet_n_proc_DA": "1",
        "nnUNet_extTrainer": str(nnunet_plugin.ext_path()),
    }
    command = ["901", "2d_syn50", "0", "-p", "nnUNetPlansCPUSynthAug", "-tr", "nnUNetTrainerSynthAug", "-device", "cpu"]
    run = partial(run_until, command, environment, nnunet)
    run(lambda: "Epoch 2 " in "".join(file.read_text() for file in output.glob("training_log*.txt")))
    assert len(read_epochs(output / EPOCHS_FILE)) == 2
    run(lambda: len(read_epochs(output / EPOCHS_FILE)) == 4, "--c")
    records = read_epochs(output / EPOCHS_FILE)
    assert [(r["epoch"], r["synthetic"], r["draws"]) for r in records] == reference


TRAIN = """
import os
os.setsid()
import matplotlib
matplotlib.rcParams["figure.dpi"] = 10
from nnunetv2.run.run_training import run_training_entry
run_training_entry()
"""


def run_until(command, environment, folder, condition, *arguments):
    """Run nnUNetv2_train until the condition holds, then end it and its workers with SIGKILL."""
    process = start("-c", TRAIN, *command, *arguments, env=environment, cwd=folder, output=folder)
    try:
        wait_until(condition, process)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def expected_record(trainer, epoch):
    """The record of an uninterrupted epoch, from the plan alone."""
    trainer.batch_size = trainer.configuration_manager.batch_size
    trainer.dataset_class = None
    if not hasattr(trainer, "synthaug_plans"):
        trainer.do_split()
        trainer.get_tr_and_val_datasets()
    loaded = expected(trainer, epoch)
    return epoch, loaded.synthetic, f"{loaded.draws:016x}"


@pytest.mark.slow
def test_validation_needs_no_pool(mixed, make_trainer, nnunet):
    trainer = mixed(1.0, training={**SHORT, "num_epochs": 1})
    trainer.run_training()
    shutil.rmtree(nnunet / "preprocessed" / PLAIN / "synthaug")
    again = make_trainer("2d_syn100", resume=True)
    maybe_load_checkpoint(again, continue_training=False, validation_only=True)
    in_process = SimpleNamespace(Pool=ThreadPool)
    with mock.patch("multiprocessing.get_context", lambda method=None: in_process):
        again.perform_actual_validation()
    summary = json.loads((Path(again.output_folder) / "validation" / "summary.json").read_text())
    assert len(summary["metric_per_case"]) == 2


@pytest.mark.slow
def test_pretrained_weights(mixed, make_trainer):
    first = mixed(0.5, training={**SHORT, "num_epochs": 1})
    first.run_training()
    second = mixed(0.25)
    file = str(Path(first.output_folder) / "checkpoint_final.pth")
    maybe_load_checkpoint(second, False, False, pretrained_weights_file=file)
    ours, theirs = second.network.state_dict(), first.network.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours if ".seg_layers." not in key)
    second.on_train_start()
    assert np.isfinite(second.train_step(next(second.dataloader_train))["loss"])


def test_training_settings_reach_nnunet(mixed, make_trainer):
    training = {**SHORT, "optimizer": "AdamW", "initial_lr": 2e-3, "weight_decay": 0.01}
    trainer, stock = mixed(0.5, training=training), make_trainer("2d", plans="nnUNetPlansCPU", kind=nnUNetTrainer)
    assert (trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch) == (4, 3, 1)
    trainer.initialize()
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    assert trainer.optimizer.param_groups[0]["lr"] == 2e-3 and trainer.optimizer.defaults["weight_decay"] == 0.01
    plain = mixed(0.25, training=None)
    plain.initialize()
    stock.initialize()
    for name in ("num_epochs", "num_iterations_per_epoch", "initial_lr", "weight_decay", "save_every"):
        assert getattr(plain, name) == getattr(stock, name)
    assert plain.optimizer.defaults == stock.optimizer.defaults


@pytest.mark.parametrize("optimizer", [None, "SGD", "AdamW"])
@pytest.mark.parametrize("kind", [WarmedUp, WithAdam])
def test_the_optimiser_is_the_one_asked_for_with_any_trainer(mixed, kind, optimizer):
    trainer = mixed(0.5, kind=kind, training={**SHORT, "optimizer": optimizer, "initial_lr": 0.02})
    trainer.initialize()
    first = trainer.optimizer
    trainer.on_train_epoch_start()
    own = {WarmedUp: torch.optim.SGD, WithAdam: torch.optim.AdamW}[kind]
    assert trainer.optimizer is first
    assert type(first) is {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, None: own}[optimizer]
    is_warmed_up = kind is WarmedUp and optimizer is None
    assert (first.param_groups[0]["lr"] < 0.01) == is_warmed_up
    if kind is WarmedUp:
        trainer.configure_optimizers("train")
        assert trainer.optimizer is first


def test_a_step_is_that_of_the_trainer_behind(mixed):
    batch, losses = torch.ones(1, 4), []
    for trainer in (object.__new__(OfTwoPasses), mixed(0.5, kind=OfTwoPassesMixed)):
        trainer.network = torch.nn.Linear(4, 4, bias=False)
        losses.append(trainer.train_step(batch)["loss"])
    assert losses == [2.0, 2.0]


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_bfloat16_on_the_cpu_makes_the_same_step(mixed, make_pool, configuration):
    losses, weights = {}, {}
    pool = make_pool(configuration=configuration)
    for autocast in (None, "bfloat16"):
        training = {**SHORT, "autocast": autocast, "seed": 0}
        trainer = mixed(0.5, configuration, pool=pool, training=training, overwrite=True)
        trainer.initialize()
        train, _ = start_loaders(trainer)
        seen = []
        trainer.network.register_forward_hook(lambda *call, seen=seen: seen.append(call[2]))
        trainer.network.train()
        trainer.on_train_epoch_start()
        losses[autocast] = [float(trainer.train_step(next(train))["loss"]) for _ in range(2)]
        logits = seen[0] if isinstance(seen[0], torch.Tensor) else seen[0][0]
        assert (logits.dtype == torch.bfloat16) == (autocast is not None)
        assert not torch.is_autocast_enabled("cpu")
        weights[autocast] = torch.cat([value.flatten() for value in trainer.network.parameters()])
        assert weights[autocast].dtype == torch.float32
    assert losses[None] != losses["bfloat16"] and losses[None] == pytest.approx(losses["bfloat16"], abs=0.02)
    assert (weights[None] - weights["bfloat16"]).abs().mean() < 0.05 * SHORT.get("initial_lr", 0.01)


def test_threads_are_those_of_the_environment(mixed, monkeypatch):
    """nnUNetv2_train sets as many as there are cores, before it makes the trainer."""
    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", str(before + 1))
    mixed(0.5)
    after = torch.get_num_threads()
    torch.set_num_threads(before)
    assert after == before + 1


def test_arms_start_from_the_same_weights(mixed, make_pool):
    pool = make_pool()
    networks = []
    for share in (0.0, 0.5):
        trainer = mixed(share, pool=pool)
        trainer.initialize()
        networks.append(trainer.network.state_dict())
    assert all(torch.equal(networks[0][key], networks[1][key]) for key in networks[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "configuration", "volumes"),
    [(REGIONS, "2d", False), (IGNORE, "2d", False), (REGIONS, "3d_fullres", False), (PLAIN, "2d", True)],
)
def test_regions_ignore_label_channels_and_volumes(mixed, dataset, configuration, volumes):
    training = {**SHORT, "num_epochs": 1}
    trainer = mixed(1.0, configuration, dataset, volumes=volumes, training=training)
    trainer.run_training()
    (record,) = read_epochs(Path(trainer.output_folder) / EPOCHS_FILE)
    assert record["real"] == 0 and record["as_planned"]
    assert all(np.isfinite(trainer.logger.get_value(key, step=0)) for key in ("train_losses", "val_losses"))


def test_composes_with_other_trainers(mixed):
    train, _ = start_loaders(mixed(0.5, kind=NoAugmentation))
    assert synthetic(next(train)).sum() == 2


# nnU-Net's search imports all its trainers, one of them timm and its torch.jit decorators.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
def test_nnunet_finds_the_trainer(nnunet, monkeypatch):
    monkeypatch.setenv("nnUNet_extTrainer", str(nnunet_plugin.ext_path()))
    found = recursive_find_trainer_class_by_name("nnUNetTrainerSynthAug")
    assert found is nnUNetTrainerSynthAug and pickle.loads(pickle.dumps(found)) is found


def test_leak_is_refused_at_training_start(mixed, nnunet, split):
    """The split may change between add-pool and training."""
    trainer = mixed(0.5)
    file = nnunet / "preprocessed" / PLAIN / "splits_final.json"
    splits = json.loads(file.read_text())
    moved = splits[0]["train"].pop()
    splits[0]["val"].append(moved)
    file.write_text(json.dumps(splits))
    with pytest.raises(InputError, match=f"a leak: .* fold 0: {moved}"):
        start_loaders(trainer)


def test_refusals_at_construction(mixed, make_trainer, nnunet, monkeypatch):
    mixed(0.5)
    file = nnunet / "preprocessed" / PLAIN / "nnUNetPlansCPUSynthAug.json"
    plans = json.loads(file.read_text())
    configurations = plans["configurations"]
    configurations["typo"] = {"inherits_from": "2d", "synthaug": {"pool": "pool", "ratio": 0.5}}
    configurations["cascade"] = {**configurations["2d_syn50"], "previous_stage": "2d"}
    file.write_text(json.dumps(plans))
    for configuration, named in {
        "2d": "no synthaug block",
        "typo": "unknown setting `ratio`",
        "cascade": "the cascade configuration",
        "2d_syn75": "no configuration 2d_syn75",
    }.items():
        with pytest.raises(InputError, match=named):
            make_trainer(configuration)
    for variable in ("nnUNet_results", "nnUNet_preprocessed"):
        with monkeypatch.context() as patch:
            patch.delenv(variable)
            with pytest.raises(InputError, match=f"export {variable}="):
                make_trainer("2d_syn50")
    monkeypatch.setenv("nnUNet_results", str(nnunet / "made by nnU-Net"))
    make_trainer("2d_syn50")


@pytest.mark.parametrize("kind", [nnUNetTrainerSynthAug, OfTwentyEpochs])
def test_schedules_are_checked_against_the_epochs_that_are_trained(mixed, make_pool, kind):
    pool, epochs = make_pool(), 20 if kind is OfTwentyEpochs else 1000
    for warmup, finish, said in ((epochs - 1, 2, f"at most the {epochs} epochs"), (epochs - 1, 1, None)):
        trainer = mixed(0.5, kind=kind, pool=pool, training=None, warmup_epochs=warmup, finish_epochs=finish,
                        overwrite=True)  # fmt: skip
        trainer._set_batch_size_and_oversample()
        if said is None:
            assert trainer.get_tr_and_val_datasets()[0].identifiers
        else:
            with pytest.raises(InputError, match=said):
                trainer.get_tr_and_val_datasets()


@pytest.mark.slow
def test_refusals_at_training_start(mixed, make_trainer, make_pool, nnunet):
    """A pool that is gone, of another fold, of another configuration, or of plans that were made anew."""
    trainer = mixed(0.5)
    with pytest.raises(InputError, match="no imported pool"):
        start_loaders(make_trainer("2d_syn50", fold=1))
    volumes = make_pool("volumes", configuration="3d_fullres", kind="raw", samples=2)
    add_pool(volumes, 901, 0, "3d_fullres", plans="nnUNetPlansCPU")
    file = nnunet / "preprocessed" / PLAIN / "nnUNetPlansCPUSynthAug.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["other"] = {"inherits_from": "2d", "synthaug": {"pool": "volumes"}}
    plans["configurations"]["moved"] = {"inherits_from": "2d_syn50", "spacing": [2.0, 2.0]}
    file.write_text(json.dumps(plans))
    with pytest.raises(InputError, match="imported for nnUNetPlans_3d_fullres"):
        start_loaders(make_trainer("other"))
    with pytest.raises(InputError, match="another space"):
        start_loaders(make_trainer("moved"))
    shutil.rmtree(nnunet / "preprocessed" / PLAIN / "synthaug")
    with pytest.raises(InputError, match="run add-pool"):
        start_loaders(trainer)
