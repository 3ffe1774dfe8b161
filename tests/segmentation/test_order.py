"""Real items, samples and transplants at their exact shares, by (seed, epoch) alone, for as long as the budget says."""

from collections import Counter

import numpy as np
import pytest
from nnunet_plugin.mixing import REAL, epoch_plan
from nnunet_plugin.settings import SynthAugSettings

from scripts.runtime.errors import InputError
from scripts.segmentation.order import TRANSPLANT, MixedOrder
from scripts.segmentation.transplants import TransplantSettings


def items(real: int, synthetic: int) -> list[dict]:
    shown = [{"synthetic": False, "foreground": i % 4 == 0} for i in range(real)]
    return shown + [{"synthetic": True}] * synthetic


def order(real: int, synthetic: int, epoch: int = 1, **more) -> np.ndarray:
    settings = {"batch_size": 6, "iterations": 10, "num_epochs": 5, "seed": 2} | more
    mixed = MixedOrder(items(real, synthetic), **settings)
    mixed.set_epoch(epoch)
    draws = list(mixed)
    assert len(mixed) == len(draws)
    assert [draw.place for draw in draws] == list(range(len(draws))) and {draw.epoch for draw in draws} == {epoch}
    return np.array([draw.number for draw in draws]).reshape(-1, settings["batch_size"])


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_share_is_exact_and_the_plan_is_the_plugins(share):
    plan = epoch_plan(SynthAugSettings("p", share=share, seed=2), 3, 5, 40, 10, 6)
    ours = order(100, 40, epoch=4, share=share)
    assert (ours >= 100).sum() == round(60 * share)
    assert np.array_equal(ours >= 100, plan != REAL) and np.array_equal(ours[ours >= 100] - 100, plan[plan != REAL])


def test_real_items_do_not_depend_on_the_share():
    alone = order(100, 0)
    for share in (0.0, 0.3, 0.7):
        mixed = order(100, 40, share=share)
        assert np.array_equal(mixed[mixed < 100], alone[mixed < 100])
    assert Counter(alone.ravel().tolist()).most_common(1)[0][1] == 1  # none twice before all were seen
    assert np.array_equal(order(100, 40, share=0.0), alone)


def test_an_epoch_is_a_function_of_seed_and_epoch():
    assert np.array_equal(order(30, 9, epoch=2), order(30, 9, epoch=2))
    assert not np.array_equal(order(30, 9, epoch=2), order(30, 9, epoch=3))
    assert not np.array_equal(order(30, 9, seed=5), order(30, 9, seed=6))


def test_share_of_the_union_and_schedules():
    assert (order(30, 10, share=None) >= 30).sum() == 15  # of 60: ten of forty
    assert (order(30, 0, share=None) >= 30).sum() == 0
    counts = [(order(30, 10, epoch, share=1.0, schedule="linear", share_end=0.0) >= 30).sum() for epoch in range(1, 6)]
    assert counts == [60, 45, 30, 15, 0]
    assert (order(30, 10, 5, finish_epochs=1) >= 30).sum() == 0
    with pytest.raises(InputError, match="share"):
        order(30, 10, share=1.5)
    with pytest.raises(InputError, match="finish_epochs"):
        order(30, 10, warmup_epochs=3, finish_epochs=3)
    with pytest.raises(InputError, match="batch_size"):
        order(30, 10, batch_size=0)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5])
@pytest.mark.parametrize("pool", [0.0, 0.25, 0.5])
def test_transplants_take_real_places_at_their_exact_share(share, pool):
    without = order(100, 40, share=pool)
    mixed = order(100, 40, share=pool, transplant=TransplantSettings(share=share))
    taken = mixed == TRANSPLANT
    assert taken.sum() == round(60 * share) and (mixed >= 100).sum() == round(60 * pool)
    assert np.array_equal(mixed[~taken], without[~taken]) and (without[taken] < 100).all()
    per_batch = taken.sum(axis=1)
    assert per_batch.max() - per_batch.min() <= 2  # spread over the batches, as far as the pool leaves room


def test_transplants_end_before_the_training_does():
    arm = {"transplant": TransplantSettings(share=0.5, until=0.8), "num_epochs": 5}
    counts = [(order(30, 0, epoch, **arm) == TRANSPLANT).sum() for epoch in range(1, 6)]
    assert counts == [30, 30, 30, 30, 0]
    assert not np.array_equal(order(30, 0, 1, **arm) == TRANSPLANT, order(30, 0, 2, **arm) == TRANSPLANT)
    with pytest.raises(InputError, match="110 %"):
        order(30, 10, share=0.6, **arm)


def test_foreground_is_oversampled_by_its_place_in_the_batch():
    drawn = order(100, 0, foreground_oversampling=0.5)
    assert (drawn[:, :3] % 4 == 0).all()
    assert 0.1 < (drawn[:, 3:] % 4 == 0).mean() < 0.5
    assert np.array_equal(order(100, 0), order(100, 0, foreground_oversampling=0.0))
    with pytest.raises(InputError, match="foreground_oversampling"):
        order(10, 0, foreground_oversampling=1.5)


def test_budgets():
    """Of 30 real and 10 synthetic items, batch 6: 10 steps an epoch; one pass; 60 real ones with others on top."""
    assert len(order(30, 10, share=0.5)) == 10
    assert len(order(30, 10, share=None, budget="epochs")) == 7
    on_top = {"budget": "real_exposures", "share": 0.5}
    seen = [order(30, 10, epoch, **on_top) for epoch in range(1, 6)]
    assert [(epoch < 30).sum() for epoch in seen] == [60] * 5 and len(seen[0]) == 20
    arm = on_top | {"transplant": TransplantSettings(share=0.25, until=0.8)}
    real = sum(((0 <= e) & (e < 30)).sum() for e in (order(30, 10, epoch, **arm) for epoch in range(1, 6)))
    assert abs(real - 300) <= 15  # whole iterations, and the last epoch without transplants
    for wrong in ({"budget": "hours"}, {"budget": "real_exposures", "share": 1.0}):
        with pytest.raises(InputError, match="budget"):
            order(30, 10, **wrong)
