"""The laws of the audit's pieces, one by one."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from scripts.audit.agreement import augment, best_dice
from scripts.audit.duplicates import find_duplicates
from scripts.audit.items import Items
from scripts.audit.memorisation import NEXT_PATIENTS, Memorisation, find_copies, flips, patient_distances, thumbnails
from scripts.audit.plausibility import Body, joint_scores, range_scores
from scripts.audit.thresholds import LEVELS, Check, check_levels, patient_interval, wilson_interval
from scripts.runtime.errors import InputError


def all_of(items, title):
    return items


def check(real, samples=(0.0,), level=0.05, low=True, **more) -> Check:
    real = np.asarray(real, float)
    groups = more.pop("groups", np.arange(len(real)))
    return Check(
        "agreement", "", low, level, real, np.asarray(samples, float), groups, np.zeros(len(real), bool), **more
    )


@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("level", [0.0, 0.01, 0.05, 0.2])
def test_a_threshold_drops_at_most_its_level_of_what_it_was_made_from(low, level):
    real = np.random.default_rng(0).normal(size=997)
    found = check(real, real, level, low)
    assert found.flagged.mean() <= level
    assert found.flagged.mean() >= level - 2 / len(real)
    extreme = -100.0 if low else 100.0
    assert check(real, [extreme], level, low).flagged.all()


def test_new_patients_are_dropped_as_often_as_the_level_says():
    """Scores of a patient are alike; thresholds of other patients drop the level's share all the same."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(400), 5)
    real = rng.normal(size=400)[groups] + 0.2 * rng.normal(size=2000)
    assert check(real, level=0.05, groups=groups).real_flagged.mean() == pytest.approx(0.05, abs=0.01)


def test_each_bin_has_its_own_threshold_and_nan_flags_nothing():
    real, bins = np.r_[np.arange(100.0), np.arange(1000.0, 1100.0)], np.repeat([0, 1], 100)
    found = check(real, [500, 500, np.nan], real_bins=bins, sample_bins=np.array([0, 1, 1]))
    assert found.thresholds.tolist() == [4, 1004]
    assert found.flagged.tolist() == [False, True, False]
    with_nan = check(np.r_[real, np.nan], [500], real_bins=np.r_[bins, 1], sample_bins=np.array([1]))
    assert with_nan.thresholds.tolist() == [4, 1004] and with_nan.defined.sum() == 200


def test_levels():
    assert check_levels(None) == LEVELS
    assert check_levels({"agreement": 0.1}) == {**LEVELS, "agreement": 0.1}
    with pytest.raises(InputError, match="did you mean 'outside_body'"):
        check_levels({"outside": 0.1})


def test_intervals():
    """Newcombe (1998), table I: 81 of 263, 0 of 20, 1 of 29."""
    for count, n, low, high in ((81, 263, 0.2553, 0.3662), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)):
        assert wilson_interval(count, n) == pytest.approx([low, high], abs=1e-4)
    assert wilson_interval(5, 5)[1] == 1.0 and wilson_interval(0, 0) is None
    groups = np.repeat(np.arange(50), 20)
    patients = (np.arange(50) < 10)[groups]  # all items of a patient are alike: 50 observations, not 1000
    low, high = patient_interval(patients, groups)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.2 * 0.8 / 50), rel=0.15)
    assert patient_interval(np.ones(4), np.arange(4)) is None
    assert patient_interval(np.zeros(400), np.repeat(np.arange(20), 20)) == wilson_interval(0, 20)
    assert patient_interval(np.ones(400, bool), np.repeat(np.arange(20), 20)) == wilson_interval(20, 20)


def test_joint_scores_are_mahalanobis_and_range_scores_name_the_feature():
    rng = np.random.default_rng(2)
    mixing = np.array([[1.0, 0.9, 0], [0, 0.5, 0], [0, 0, 3]])
    reference = rng.normal(size=(5000, 3)) @ mixing
    others = rng.normal(size=(20, 3)) @ mixing
    covariance = np.cov(reference.T)
    away = others - reference.mean(0)
    expected = np.sqrt(np.einsum("ij,jk,ik->i", away, np.linalg.inv(covariance), away))
    assert joint_scores(reference, others)[0] == pytest.approx(expected, rel=0.02)
    # Each feature is in its own range, but not together.
    odd = np.array([[1.5, -1.5, 0.0]])
    assert joint_scores(reference, odd)[0] > np.quantile(joint_scores(reference, reference)[0], 0.999)
    assert range_scores(reference, odd)[0] < 1.2
    scores, which = range_scores(reference, np.array([[0, 0, 30.0], [-9, 0, 0]]))
    assert which.tolist() == [2, 0] and (scores > 5).all()


def test_best_dice():
    masks = torch.zeros(5, 2, 4, 4, dtype=torch.bool)
    logits = torch.full((5, 2, 4, 4), -5.0)
    masks[0, 0, :2] = True
    logits[0, 0, :2] = -1.0  # not sure enough, but in the right place
    masks[1, 0, :2] = True
    logits[1, 0, 1:3] = 3.0  # half of it
    logits[2, 1] = 3.0  # something where nothing is
    masks[3, 0, :2], masks[3, 1, 0] = True, True
    logits[3, 0, :2] = 3.0  # one label right, the other not found: all voxels fit it best, 2 * 4 / (16 + 4)
    found = best_dice(logits, masks)
    assert found.tolist() == pytest.approx([1.0, 2 / 3, 0.0, (1 + 0.4) / 2, 1.0])
    everything = 2 * 8 / (16 + 8)  # all that a prediction without any difference can offer
    assert best_dice(torch.zeros(1, 1, 4, 4), masks[:1, :1]).item() == pytest.approx(everything)


def test_augmentation_moves_image_and_mask_together():
    generator = torch.Generator().manual_seed(0)
    for shape in ((16, 1, 24, 24), (4, 1, 24, 24, 8)):
        masks = torch.zeros(shape)
        masks[:, :, 6:12, 8:18] = 1
        images, moved = augment(0.2 + 0.6 * masks, masks, generator)
        inside = moved > 0
        assert images[inside].mean() - images[~inside].mean() > 0.4
        assert 0.4 < moved.mean() / masks.mean() < 2
        assert not torch.equal(moved[0], moved[1])
    centre = torch.stack([m.nonzero().float().mean(0) for m in augment(masks, masks, generator)[1][:, 0]])
    assert ((centre[:, :2] - torch.tensor([8.5, 12.5])).abs() < 9).all()


def smooth(count: int, sizes: tuple[int, ...], seed: int) -> torch.Tensor:
    """Images (count, 1, *sizes) in [0, 1] that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 1, *[max(2, size // 4) for size in sizes], generator=generator)
    mode = "bilinear" if len(sizes) == 2 else "trilinear"
    return torch.nn.functional.interpolate(coarse, sizes, mode=mode)


def items(images: torch.Tensor, patients: np.ndarray) -> Items:
    return Items(images.half(), images > 0.5, patients, [f"p{p}, {i}" for i, p in enumerate(patients)])


@pytest.mark.parametrize("sizes", [(64, 64), (32, 48), (32, 32, 16)])
def test_a_copy_is_near_to_one_patient_however_it_was_changed(sizes):
    patients = np.repeat(np.arange(8), 2)
    images = smooth(16, sizes, 0)
    reference = items(images, patients)
    original = images[6:7]
    noise = 0.02 * torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    step = max(sizes) // 32
    changed = [original, original + noise, original.roll((step, -step), (2, 3)), original.flip(2, 3) + noise]
    changed += [flipped for _, flipped in flips(original)]
    copies = items(torch.cat(changed).clamp(0, 1), np.array(["s"] * len(changed)))
    found = patient_distances(thumbnails(), copies, reference, all_of, "", apart=False)
    new = patient_distances(thumbnails(), items(smooth(16, sizes, 5), patients), reference, all_of, "", apart=False)
    assert (found.match == 6).all() and found.relative.max() < 0.4 < new.relative.min()
    assert found.distance[0] < 1e-3
    names = [name for name, _ in flips(original)]
    assert len(set(names)) == 2 ** len(sizes) and found.change[4:] == names

    apart = patient_distances(thumbnails(), reference, reference, all_of, "", apart=True)
    assert (reference.groups[apart.match] != reference.groups).all()
    assert apart.relative.min() > 0.4


def test_relative_distance_is_to_the_patients_after_the_nearest():
    """Constant images: the distance of two is the difference of their values."""
    values = torch.tensor([0.0, 0.125, 0.25, 0.375, 0.5, 0.625, 0.75, 0.75])
    reference = items(values.view(-1, 1, 1, 1).expand(-1, 1, 16, 16), np.array([0, 1, 2, 3, 4, 5, 6, 0]))
    sample = items(torch.full((1, 1, 16, 16), 0.0625), np.array(["s"]))
    found = patient_distances(thumbnails(), sample, reference, all_of, "", apart=False)
    nearest = [0.0625, 0.0625, 0.1875, 0.3125, 0.4375, 0.5625, 0.6875]
    assert found.distance[0] == pytest.approx(0.0625, abs=1e-3)
    assert found.scale[0] == pytest.approx(np.mean(nearest[1 : 1 + NEXT_PATIENTS]), abs=1e-3)
    with pytest.raises(InputError, match="at least 3"):
        patient_distances(thumbnails(), sample, reference.subset(np.array([0, 1])), all_of, "", apart=False)


def of_real_items(real: Items, **more):
    """What the checks for copies and duplicates look at, of real items alone."""
    return SimpleNamespace(
        real=real, samples=real.subset(np.arange(2)), held_out=np.zeros(len(real), bool),
        judged=np.ones(len(real), bool), painted=None, **more,
    )  # fmt: skip


def test_without_a_patient_others_are_compared_as_if_nobody_had_seen_it():
    patients = np.repeat([f"p{i:02d}" for i in range(10)], 2)
    real = items(smooth(20, (16, 16), 0), patients)
    found = patient_distances(thumbnails(), real, real, all_of, "", apart=True)
    pairs = find_duplicates(of_real_items(real), found, found, LEVELS, all_of).check
    for patient in np.unique(patients):
        left = patients != patient
        rest = real.subset(left)
        known = patient_distances(thumbnails(), rest, rest, all_of, "", apart=True)
        for got, expected in zip(found.without(patient), (known.relative, known.distance, known.scale), strict=True):
            np.testing.assert_allclose(got[left], expected, rtol=1e-6)
        of_rest = find_duplicates(of_real_items(rest), known, known, LEVELS, all_of).check
        np.testing.assert_allclose(pairs.without(patient)[left], of_rest.real, rtol=1e-6)
    three = real.subset(np.arange(6))  # one patient less leaves nobody to be relative to
    assert np.isnan(patient_distances(thumbnails(), three, three, all_of, "", apart=True).without("p00")[0][2:]).all()


def test_three_patients_are_judged_by_each_other_as_they_are():
    """Without one of them nobody is left to be relative to, and a check that flags nothing would reassure."""
    real, groups = np.array([0.1, 0.9, 0.8, 1.0]), np.array(["a", "b", "b", "c"])
    found = Check("memorisation_pixels", "", True, 0.002, real, real[:0], groups, np.zeros(4, bool),
                  without=lambda patient: np.full(4, np.nan))  # fmt: skip
    assert found.real_flagged.tolist() == [True, False, False, False]


def test_two_patients_who_are_alike_do_not_hide_each_other():
    """As a new patient, either of them would be called a copy of the other."""
    patients = np.repeat([f"p{i:02d}" for i in range(10)], 2)
    images = smooth(20, (32, 32), 0)
    images[18:] = (images[16:18] + 0.02 * torch.randn(2, 1, 32, 32, generator=torch.Generator().manual_seed(1))).clamp(
        0, 1
    )
    audit = of_real_items(items(images, patients))
    audit.painted = audit.real.foreground  # thumbnails and features alone
    copies = find_copies(audit, lambda x: [x], LEVELS, all_of)
    pixels = copies.real["pixels"], copies.nearest["pixels"]
    for one in (*copies.checks, find_duplicates(audit, *pixels, LEVELS, all_of).check):
        assert patients[one.real_flagged].tolist() == ["p08"] * 2 + ["p09"] * 2, one.key


def test_a_check_by_which_two_patients_are_one_is_named_and_judges_nothing():
    sharp, blind = check([0.5, 0.8], [0.1, 0.9]), check([0.0, 0.8], [0.0, 0.2])
    found = Memorisation([blind, sharp], check([1.0]), {}, {}, items(smooth(3, (8, 8), 0), np.arange(3)))
    assert found.blind == [blind.key]
    np.testing.assert_allclose(found.closeness, [0.2, 1.8])  # by the other check alone, and without a warning
    nobody = Memorisation([check([1.0, 1.0])], check([1.0]), {}, {}, items(smooth(3, (8, 8), 0), np.arange(3)))
    assert nobody.blind == [blind.key], "nothing was compared"


def test_body_is_what_is_not_background():
    y, x = np.indices((64, 64))
    rng = np.random.default_rng(0)
    inside = np.hypot(y - 30, x - 34) < 20
    image = np.where(inside, 0.6, 0.05) + rng.normal(0, 0.02, (64, 64))
    image[25:35, 30:38] = 0.05  # a dark hole is still body
    image[2, 2:5] = 0.6  # a speck is not
    found = Body(np.array([0.2]))(image[None])
    assert (found & inside).sum() / (found | inside).sum() > 0.95
    assert not found[2, 2:5].any() and found[25:35, 30:38].all()
    cut = np.where(np.hypot(y - 0, x - 32) < 30, 0.6, 0.0)
    assert Body(np.array([0.2]))(cut[None])[0, 10:50].all()
    lesion = np.hypot(y - 56, x - 8) < 7
    away, alone = np.where(lesion, 0.9, image), np.where(lesion, 0.9, 0.05)
    assert Body(np.array([0.2]))(away[None])[lesion].mean() > 0.9, "large enough to be a body"
    assert not Body(np.array([0.2]))(away[None], lesion)[lesion].any()
    assert Body(np.array([0.2]))(alone[None], lesion)[lesion].mean() > 0.9, "nothing else to go by"
    attached = np.hypot(y - 30, x - 15) < 7  # half of it bulges out
    bulging = np.where(attached, 0.9, image)[None]
    assert np.array_equal(Body(np.array([0.2]))(bulging, attached), Body(np.array([0.2]))(bulging))
    two_channels = np.stack([np.zeros((64, 64)), image])
    assert np.array_equal(Body(np.array([0.2, 0.2]))(two_channels), found)
