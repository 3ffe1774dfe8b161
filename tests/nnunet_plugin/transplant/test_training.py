"""Transplants in nnU-Net's training: shares, places, validation, refusals."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from nnunet_plugin.__main__ import main
from nnunet_plugin.errors import InputError
from nnunet_plugin.import_pool import add_pool
from nnunet_plugin.trainer import EPOCHS_FILE, read_epochs
from nnunet_plugin.transplant.command import add_transplants
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from ...processes import files_of_at_most
from ..test_trainer import IGNORE, PLAIN, REGIONS, SHORT, NoAugmentation, start_loaders, synthetic


@pytest.fixture
def with_transplants(roomy, make_trainer):
    """Return a function that adds a configuration with transplants and constructs a trainer on it."""

    def make(share=0.5, configuration="2d", dataset=PLAIN, kind=None, labels=(1,), **settings):
        settings = {"training": SHORT, **settings}
        result = add_transplants(
            dataset, configuration, 0, share, labels=list(labels), plans="nnUNetPlansCPU", **settings
        )
        return make_trainer(result["configuration"], 0, dataset, kind=kind)

    return make


@pytest.mark.slow
@pytest.mark.parametrize("size", [300, 6000, 60000])
def test_a_limit_on_the_size_of_files_leaves_nothing_behind(roomy, snapshot, size):
    before = snapshot()
    with files_of_at_most(size), pytest.raises(OSError, match="File too large"):
        add_transplants(PLAIN, "2d", 0, labels=[1])
    assert {name: sha256 for name, sha256 in snapshot().items() if before.get(name) != sha256} == {}
    assert add_transplants(PLAIN, "2d", 0, labels=[1])["made"] == [True]


def transplants_of(trainer, epoch=0):
    """The transplants of an epoch as its loader gets them."""
    cases = trainer.get_tr_and_val_datasets()[0]._transplants
    plan = trainer.synthaug_plans.of(epoch)
    return [cases.load(epoch, batch, place) for batch, place in np.argwhere(plan == -2)]


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_share_zero_is_bit_identical_to_stock(with_transplants, make_trainer, configuration):
    trainers = {
        "stock": make_trainer(configuration, plans="nnUNetPlansCPU", kind=nnUNetTrainer),
        "none": with_transplants(0.0, configuration, name="none"),
        "half": with_transplants(0.5, configuration, name="half"),
    }
    batches = {}
    for name, trainer in trainers.items():
        train, val = start_loaders(trainer)
        batches[name] = [next(train) for _ in range(4)] + [next(val) for _ in range(2)]
    for stock, none in zip(batches["stock"], batches["none"], strict=True):
        assert torch.equal(stock["data"], none["data"]) and list(stock["keys"]) == list(none["keys"])
        assert all(torch.equal(a, b) for a, b in zip(stock["target"], none["target"], strict=True))
    assert not torch.equal(batches["stock"][0]["data"], batches["half"][0]["data"])


@pytest.mark.slow
@pytest.mark.parametrize(("dataset", "configuration", "labels"), [
    (REGIONS, "2d", (1, 2)), (IGNORE, "3d_fullres", (1, 2)), (IGNORE, "2d", (2,)),
])  # fmt: skip
def test_training_with_transplants(with_transplants, dataset, configuration, labels):
    """Regions, several labels and channels, an ignore label; the last fifth of the epochs is on real cases only."""
    training = {
        **SHORT,
        "num_epochs": 3,
        "num_val_iterations_per_epoch": 4,
    }  # nnU-Net divides by the voxels of every class
    trainer = with_transplants(0.5, configuration, dataset, labels=labels, training=training)
    trainer.run_training()
    records = read_epochs(Path(trainer.output_folder) / EPOCHS_FILE)
    assert all(record["as_planned"] and record["synthetic"] == 0 for record in records)
    assert [record["transplant_share"] for record in records] == [0.5, 0.5, 0.0]
    assert [record["planned_transplant_share"] for record in records] == [0.5, 0.5, 0.0]
    assert all(np.isfinite(trainer.logger.get_value(key, step=2)) for key in ("train_losses", "val_losses"))


@pytest.mark.slow
def test_pool_and_transplants_keep_their_shares(roomy, make_pool, make_trainer):
    add_pool(make_pool(), PLAIN, 0, "2d", 0.25, "nnUNetPlansCPU", training=SHORT)
    result = add_transplants(PLAIN, "2d_syn25", 0, 0.5, labels=[1], plans="nnUNetPlansCPU")
    trainer = make_trainer(result["configuration"])
    assert trainer.synthaug_settings.training.num_epochs == 4  # of the configuration that it was made from
    alone = make_trainer("2d_syn25")
    start_loaders(alone)
    train, val = start_loaders(trainer)
    for epoch in range(3):
        marks = torch.stack([synthetic(next(train)) for _ in range(3)])
        plan = trainer.synthaug_plans.of(epoch)
        assert np.array_equal(plan >= 0, marks.numpy()) and (plan == -2).sum() == 6
        assert np.array_equal(np.where(plan == -2, -1, plan), alone.synthaug_plans.of(epoch))
        loaded = trainer.synthaug_ledger.loaded(epoch)
        assert (loaded.synthetic, loaded.transplants, loaded.real) == (3, 6, 3)
    assert (trainer.synthaug_plans.of(3) == -2).sum() == 0
    assert not any(synthetic(next(val)).any() for _ in range(5))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dataset", "configuration", "classes"),
    [(REGIONS, "2d", {(1, 2), (2,)}), (IGNORE, "3d_fullres", {1, 2, (-1, 0, 1, 2)})],
)
def test_locations_are_true(with_transplants, dataset, configuration, classes):
    """Every place that the loader may centre a patch on has its label, and every label is found."""
    trainer = with_transplants(1.0, configuration, dataset, labels=(1, 2), decoys=0.25)
    trainer._set_batch_size_and_oversample()
    seen = set()
    for data, seg, previous, properties in transplants_of(trainer):
        assert previous is None and data.shape[1:] == seg.shape[1:]
        labels, image = np.asarray(seg[:])[0], np.asarray(data[:])
        assert image.shape == data.shape and np.isfinite(image).all()
        if configuration == "2d":  # patches are of one plane
            plane = properties["class_locations"].window[0].start
            labels[np.arange(len(labels)) != plane] = 0
        assert set(properties["class_locations"]) == classes
        for of, where in properties["class_locations"].items():
            places = np.asarray(where, int).reshape(-1, 4)
            assert np.isin(labels[tuple(places[:, 1:].T)], of).all() and (places[:, 0] == 0).all()
            assert len(places) > 0 or not np.isin(labels, of).any()
        seen |= set(np.unique(labels))
    assert {1, 2} <= seen


@pytest.mark.slow
@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_transplant_is_a_function_of_its_place(with_transplants, configuration):
    trainer = with_transplants(1.0, configuration)
    trainer._set_batch_size_and_oversample()
    cases = trainer.get_tr_and_val_datasets()[0]._transplants
    again = pickle.loads(pickle.dumps(cases))

    def image(source, *place):
        np.random.seed(np.random.randint(1000))  # noqa: NPY002 (nothing of the global state may matter)
        return np.asarray(source.load(*place)[0][:])

    first = image(cases, 0, 1, 2)
    assert np.array_equal(first, image(again, 0, 1, 2))
    others = [image(cases, *place) for place in ((1, 1, 2), (0, 2, 2), (0, 1, 0), (0, -1, 2))]
    assert not any(other.shape == first.shape and np.array_equal(first, other) for other in others)


def test_only_training_cases_are_in_the_bank(with_transplants, nnunet, split):
    trainer = with_transplants(0.5, kind=NoAugmentation)
    folder = nnunet / "preprocessed" / PLAIN / "synthaug" / "transplants_nnUNetPlans_2d_labels_1" / "fold_0"
    record = json.loads((folder / "transplants.json").read_text())
    assert sorted(record["seen"]) == sorted(split(0))
    file = nnunet / "preprocessed" / PLAIN / "splits_final.json"
    splits = json.loads(file.read_text())
    splits[0]["val"].append(splits[0]["train"].pop())
    file.write_text(json.dumps(splits))
    with pytest.raises(InputError, match="a leak"):
        start_loaders(trainer)


@pytest.mark.slow
def test_command(roomy, snapshot, capsys):
    """All folds by default; twice changes nothing; a fold or label that is none is refused."""
    arguments = ["transplant", "901", "2d", "--plans", "nnUNetPlansCPU", "--labels", "[1]"]
    assert main(arguments) == 0
    assert "nnUNetv2_train Dataset901_Plain 2d_transplant 0" in capsys.readouterr().out
    before = snapshot()
    assert sum(name.endswith("transplants.json") for name in before) == 5
    assert main(arguments) == 0
    assert snapshot() == before
    assert main([*arguments[:3], "--fold", "7", "--plans", "nnUNetPlansCPU", "--labels", "[1]"]) == 1
    assert main([*arguments[:5], "--labels", "[4]", "--name", "x"]) == 1
    assert main([*arguments[:5], "--labels", "[]"]) == 1  # also where the configuration keeps some
    assert snapshot() == before


def lesions_of(trainer) -> set[int]:
    """The labels of the lesions that a training takes, opened as at its start."""
    trainer._set_batch_size_and_oversample()
    return set(trainer.get_tr_and_val_datasets()[0]._transplants.bank.lesion_labels)


@pytest.mark.slow
def test_a_configuration_keeps_its_lesions(with_transplants, make_trainer, nnunet, snapshot):
    """Whatever other configurations are made of; and what lies there in its lesions' place is refused."""
    first = with_transplants(dataset=IGNORE, labels=(1,), name="first")
    before = snapshot()
    second = with_transplants(dataset=IGNORE, labels=(2,), name="second")
    after = snapshot()
    assert not {name for name in before if after[name] != before[name]} - {f"{IGNORE}/nnUNetPlansCPUSynthAug.json"}
    with pytest.raises(InputError, match="another configuration first"):
        with_transplants(dataset=IGNORE, labels=(2,), name="first")
    assert snapshot() == after
    assert lesions_of(first) == {1} and lesions_of(second) == {2}
    folder = nnunet / "preprocessed" / IGNORE / "synthaug"
    shutil.rmtree(folder / "transplants_nnUNetPlans_2d_labels_1")
    shutil.copytree(*[folder / f"transplants_nnUNetPlans_2d_labels_{label}" for label in (2, 1)])
    with pytest.raises(InputError, match=r"lesions of the labels \[2\] .* those of the labels \[1\]"):
        lesions_of(make_trainer("first", 0, IGNORE))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="no list of open files")
def test_nothing_is_open_in_a_bank_that_is_renamed(with_transplants, nnunet, renamed):
    """Nor in one that was made anew; and what a killed process left goes."""
    left = nnunet / "preprocessed" / PLAIN / "synthaug/transplants_nnUNetPlans_2d_labels_1/.fold_0.abc.partial"
    left.mkdir(parents=True)
    for overwrite in (False, True):
        with_transplants(overwrite=overwrite)
    assert len(renamed) == 3 and [path.name for path in left.parent.iterdir()] == ["fold_0"]


@pytest.mark.slow
def test_a_bank_is_replaced_on_request_alone(with_transplants, make_trainer, nnunet, snapshot):
    """Another bank, or what is none; and a training goes on with the bank that it began with."""
    lesions_of(with_transplants())
    base = nnunet / "preprocessed" / PLAIN
    splits = json.loads((base / "splits_final.json").read_text())
    splits[0]["train"].pop()
    (base / "splits_final.json").write_text(json.dumps(splits))
    before = snapshot()
    with pytest.raises(InputError, match=r"another bank of lesions in .* \(different: seen\)"):
        with_transplants(name="other")
    assert snapshot() == before
    trainer = make_trainer("2d_transplant")
    trainer.current_epoch = 1  # as when a checkpoint was loaded
    lesions_of(trainer)
    with_transplants(name="other", overwrite=True)
    with pytest.raises(InputError, match="began with other data: transplant changed since"):
        lesions_of(trainer)
    trainer.current_epoch = 0
    lesions_of(trainer)
    (base / "synthaug/transplants_nnUNetPlans_2d_labels_1/fold_0/thesis.txt").write_text("years")
    for overwrite in (True, False):
        with pytest.raises(InputError, match=r"transplant did not write: thesis\.txt"):
            with_transplants(overwrite=overwrite)


@pytest.mark.slow
def test_configurations_without_labels_go_on(with_transplants, make_trainer, nnunet, snapshot):
    """Those that were written before labels were kept in them, with their bank."""
    with_transplants()
    base = nnunet / "preprocessed" / PLAIN
    (base / "synthaug/transplants_nnUNetPlans_2d_labels_1").rename(base / "synthaug/transplants_nnUNetPlans_2d")
    file = base / "nnUNetPlansCPUSynthAug.json"
    plans = json.loads(file.read_text())
    del plans["configurations"]["2d_transplant"]["synthaug"]["transplant"]["labels"]
    file.write_text(json.dumps(plans, indent=4) + "\n")
    before = snapshot()
    trainer = with_transplants()
    assert snapshot() == before and lesions_of(trainer) == {1}
    with pytest.raises(InputError, match="another configuration 2d_transplant"):
        with_transplants(share=0.25)


def test_organs_are_refused(roomy, snapshot):
    """The toy's labels have nearly the same volume in every case."""
    before = snapshot()
    with pytest.raises(InputError, match=r"look like organs: .* label 1 0\.1"):
        add_transplants(PLAIN, "2d", 0, plans="nnUNetPlansCPU")
    assert snapshot() == before


@pytest.mark.parametrize("ending", [".b2nd", "_seg.b2nd", ".pkl"])
def test_a_case_of_the_split_that_is_gone_is_named(nnunet, snapshot, split, ending):
    """As add-pool names it."""
    base = nnunet / "preprocessed" / PLAIN
    (base / "splits_final.json").write_text(json.dumps([{"train": split(0), "val": []}]))
    (base / "nnUNetPlans_2d" / f"{split(0)[1]}{ending}").unlink()
    before = snapshot()
    with pytest.raises(InputError, match=f"case {split(0)[1]} cannot be read"):
        add_transplants(PLAIN, "2d", plans="nnUNetPlansCPU")
    assert snapshot() == before


@pytest.mark.slow
def test_refusals_at_training_start(with_transplants, make_trainer, nnunet, split):
    trainer = with_transplants(0.5)
    with pytest.raises(InputError, match="no lesions to transplant"):
        start_loaders(make_trainer("2d_transplant", fold=1))
    file = nnunet / "preprocessed" / PLAIN / "nnUNetPlansCPUSynthAug.json"
    plans = json.loads(file.read_text())
    plans["configurations"]["moved"] = {"inherits_from": "2d_transplant", "spacing": [2.0, 2.0]}
    file.write_text(json.dumps(plans))
    with pytest.raises(InputError, match="another space"):
        start_loaders(make_trainer("moved"))
    cases = nnunet / "preprocessed" / PLAIN / "nnUNetPlans_2d"
    first, second = split(0)[:2]
    for ending in (".b2nd", "_seg.b2nd", ".pkl"):
        (cases / f"{first}{ending}").rename(cases / "moving")
        (cases / f"{second}{ending}").rename(cases / f"{first}{ending}")
        (cases / "moving").rename(cases / f"{second}{ending}")
    with pytest.raises(InputError, match="cases that are not those"):
        start_loaders(trainer)
