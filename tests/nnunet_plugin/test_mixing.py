"""Laws of the plan of an epoch: exact shares, random places, fresh draws, pure functions."""

import numpy as np
import pytest
from nnunet_plugin.errors import InputError
from nnunet_plugin.mixing import REAL, TRANSPLANT, check_shares, draw, epoch_plan, few_samples_words, share_at
from nnunet_plugin.settings import SynthAugSettings, TransplantSettings


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9, 1.0])
@pytest.mark.parametrize(("batches", "batch_size"), [(250, 12), (7, 3), (5, 1)])
def test_share_is_exact_and_even(share, batches, batch_size):
    settings = SynthAugSettings("p", share=share)
    for epoch in range(3):
        plan = epoch_plan(settings, epoch, 10, 20, batches, batch_size)
        per_batch = (plan != REAL).sum(1)
        assert per_batch.sum() == int(share * batches * batch_size + 0.5)
        assert per_batch.max() - per_batch.min() <= 1
        assert plan.max(initial=REAL) < 20 and plan.min() >= REAL


def test_a_small_pool_at_a_large_share_is_worth_a_word():
    """Where one sample is more than 2 % of all that the network sees, at any time of the training."""
    assert "9 samples at a share of 50 %" in few_samples_words(SynthAugSettings("p", share=0.5), 9)
    assert few_samples_words(SynthAugSettings("p", share=0.5), 25) is None
    assert few_samples_words(SynthAugSettings("p", share=0.0), 1) is None
    for more in ({"schedule": "linear", "share_end": 0.5}, {"schedule": "steps", "steps": ((1, 0.5), (2, 0.0))}):
        assert "share of 50 %" in few_samples_words(SynthAugSettings("p", share=0.1, **more), 24)


def test_places_are_uniform():
    settings = SynthAugSettings("p", share=0.25)
    plans = np.stack([epoch_plan(settings, epoch, 100, 500, 50, 8) for epoch in range(100)])
    frequency = (plans != REAL).mean((0, 1))
    # 5000 batches: a standard deviation of 0.006 around 0.25 for every place.
    assert np.abs(frequency - 0.25).max() < 0.025


def test_draws_do_not_repeat_while_the_pool_lasts():
    for epoch in range(5):
        assert len(set(draw(100, 100, seed=3, epoch=epoch).tolist())) == 100
    counts = np.bincount(draw(100, 250, seed=3, epoch=0), minlength=100)
    assert counts.min() == 2 and counts.max() == 3
    assert len(draw(5, 0, seed=0, epoch=0)) == 0


def test_ranks_share_one_deck():
    ranks = [draw(99, 33, seed=1, epoch=4, rank=rank, world_size=3) for rank in range(3)]
    assert sorted(np.concatenate(ranks).tolist()) == list(range(99))
    settings = SynthAugSettings("p", share=0.5)
    plans = [epoch_plan(settings, 0, 10, 500, 20, 4, rank=rank, world_size=2) for rank in range(2)]
    assert not np.array_equal(plans[0] == REAL, plans[1] == REAL)


def test_plan_is_a_function_of_seed_rank_and_epoch():
    def plan(seed=0, epoch=2, rank=0):
        np.random.seed(np.random.randint(1000))  # noqa: NPY002 (nothing of the global state may matter)
        return epoch_plan(SynthAugSettings("p", seed=seed), epoch, 10, 50, 10, 4, rank, 2)

    assert np.array_equal(plan(), plan())
    for other in (plan(seed=1), plan(epoch=3), plan(rank=1)):
        assert not np.array_equal(plan(), other)


def test_schedules():
    def shares(epochs=11, **settings):
        return [share_at(SynthAugSettings("p", **settings), epoch, epochs) for epoch in range(epochs)]

    assert shares(share=0.3) == [0.3] * 11
    linear = shares(share=0.8, schedule="linear", share_end=0.2)
    assert linear[0] == 0.8 and linear[-1] == pytest.approx(0.2)
    np.testing.assert_allclose(np.diff(linear), -0.06)
    cosine = shares(share=0.0, schedule="cosine", share_end=1.0)
    np.testing.assert_allclose(np.add(cosine, cosine[::-1]), 1.0)
    assert cosine[1] < 0.1 * linear[0] and cosine[5] == pytest.approx(0.5)
    assert shares(6, share=0.5, schedule="steps", steps=((2, 0.25), (4, 0.0))) == [0.5, 0.5, 0.25, 0.25, 0.0, 0.0]
    edged = shares(share=0.8, schedule="linear", share_end=0.2, warmup_epochs=2, finish_epochs=3)
    assert edged[:2] == [1.0, 1.0] and edged[-3:] == [0.0] * 3
    assert edged[2] == 0.8 and edged[7] == pytest.approx(0.2)
    assert share_at(SynthAugSettings("p", finish_epochs=1), 99, 10) == 0.0


@pytest.mark.parametrize(("share", "transplants"), [(0.0, 0.3), (0.3, 0.3), (0.5, 0.5), (0.25, 0.1), (0.9, 0.05)])
@pytest.mark.parametrize(("batches", "batch_size"), [(50, 12), (7, 3), (5, 1)])
def test_transplants_are_exact_even_and_beside_the_pool(share, transplants, batches, batch_size):
    alone = SynthAugSettings("p", share=share)
    both = SynthAugSettings("p", share=share, transplant=TransplantSettings(share=transplants))
    for epoch in range(3):
        plan, pool = (epoch_plan(settings, epoch, 10, 20, batches, batch_size) for settings in (both, alone))
        assert np.array_equal(np.where(plan == TRANSPLANT, REAL, plan), pool)
        per_batch = (plan == TRANSPLANT).sum(1)
        left = batches * batch_size - (pool != REAL).sum()
        assert per_batch.sum() == min(int(transplants * batches * batch_size + 0.5), left)
        assert per_batch.max() - per_batch.min() <= 2
        per_batch = (plan != REAL).sum(1)
        assert per_batch.max() - per_batch.min() <= 1
    assert (epoch_plan(both, 8, 10, 20, batches, batch_size) != TRANSPLANT).all()  # the last fifth


def test_shares_over_one_are_refused():
    both = SynthAugSettings("p", share=0.5, transplant=TransplantSettings(share=0.6, finish_epochs=0))
    with pytest.raises(InputError, match="in epoch 0 a share 0.5 of the pool and a share 0.6"):
        check_shares(both, 10)
    later = SynthAugSettings("p", share=0.2, schedule="linear", share_end=0.9, transplant=TransplantSettings())
    check_shares(later, 4)
    with pytest.raises(InputError, match="together at most 1"):
        check_shares(later, 100)
