"""Warped copies: masks move with their images, in millimetres, and stand beside what was there."""

import numpy as np
import pytest
import torch
from monai.data.utils import list_data_collate
from scipy import ndimage

from scripts.data.cases import Case, open_cases
from scripts.data.training_set import load_training_set
from scripts.data.warping import warped_case
from scripts.runtime.errors import InputError

from .toy import write_preprocessed

SPACING = (3.0, 1.0, 1.5)


def ball(radius=15.0, field=66.0, offset=0.0):
    """A case whose one image channel is how deep a voxel lies in a ball, in mm, and whose label is the ball."""
    sides = [round(field / step) for step in SPACING]
    axes = np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(sides, SPACING, strict=True)), indexing="ij")
    depth = radius - np.sqrt(axes[0] ** 2 + axes[1] ** 2 + (axes[2] - offset) ** 2)
    return Case("ball", depth[None].astype(np.float32), (depth > 0).astype(np.int16), np.ones(sides, bool))


def extents(label):
    places = np.argwhere(label)
    return (np.ptp(places, axis=0) + 1) * SPACING


@pytest.mark.parametrize("dimension", [2, 3])
def test_masks_move_with_their_images(dimension):
    rng, case = np.random.default_rng(0), ball()
    for _ in range(5):
        other = warped_case(case, SPACING, dimension, rng)
        wrong = (other.image[0] > 0) != (other.label > 0)
        assert (np.abs(other.image[0][wrong]) < 3).all()  # no further from the surface than half a voxel's diagonal
        assert 0 < (other.label != case.label).sum() and set(np.unique(other.label)) == {0, 1}
        assert other.image.dtype == np.float32 and other.label.dtype == np.int16 and other.inside.all()


def test_a_ball_in_slices_that_lie_apart_stays_a_ball():
    """In voxels it is three times as wide as deep: turned in voxels it would be sheared."""
    rng, case = np.random.default_rng(1), ball()
    before, ratios = extents(case.label), []
    for _ in range(20):
        after = extents(warped_case(case, SPACING, 3, rng).label)
        ratios.append(after / before)
    ratios = np.array(ratios)
    assert 0.6 < ratios.min() and ratios.max() < 1.6  # 0.82 to 1.22, the squeeze, the bend, and a voxel
    assert ratios.mean(axis=1).std() > 0.05
    assert (ratios.max(axis=1) / ratios.min(axis=1)).mean() < 1.35


def test_slices_are_warped_alike_and_in_their_plane():
    case = ball(offset=6)
    same = Case("same", case.image[:, 10:11].repeat(8, 1), case.label[10:11].repeat(8, 0), case.inside[:8])
    other = warped_case(same, SPACING, 2, np.random.default_rng(2))
    assert (other.label == other.label[0]).all() and np.allclose(other.image, other.image[:, :1])


def test_thick_slices_stay_where_they_lie():
    """Between them nothing is known: no slice of a warped volume is a blend of two."""
    rng = np.random.default_rng(4)
    levels = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1) * np.ones((1, 8, 40, 40), np.float32)
    case = Case("thick", levels, np.ones((8, 40, 40), np.int16), np.ones((8, 40, 40), bool))
    for _ in range(5):
        assert np.allclose(warped_case(case, (5.0, 1.0, 1.0), 3, rng).image, levels, atol=1e-5)
    thin = warped_case(case, (2.0, 1.0, 1.0), 3, rng).image
    assert not np.allclose(thin, levels, atol=0.1)


def test_half_are_mirrored_along_the_width():
    case, rng = ball(offset=12), np.random.default_rng(3)
    sides = [np.argwhere(warped_case(case, SPACING, 3, rng).label)[:, 2].mean() > 21.5 for _ in range(40)]
    assert 10 <= sum(sides) <= 30


@pytest.mark.parametrize("size", [(24, 24), (24, 24, 6)])
def test_copies_stand_beside_what_was_there(tmp_path, size):
    cases = open_cases(write_preprocessed(tmp_path / "Dataset901_Toy"))
    plain, more = (load_training_set(cases, size, None, warped_copies=copies) for copies in (0, 2))
    assert list_data_collate(list(more.training))["image"].shape[0] == len(more.training)  # what a batch is made with
    own = [item for item in more.training if not item["copy"]]
    for one, other in zip(plain.training, own, strict=True):
        assert torch.equal(one.pop("image"), other.pop("image")) and one == other
    copies = [item for item in more.training if item["copy"]]
    assert {item["copy"] for item in copies} == {1, 2} and len(copies) == 2 * len(own)
    for item in copies:
        assert not any(torch.equal(item["image"], real["image"]) for real in plain.training)
    assert more.seen == plain.seen and more.scaling == plain.scaling
    assert all("copy" not in item for item in more.validation) and len(more.validation) == len(plain.validation)
    again = load_training_set(cases, size, None, warped_copies=2)
    assert all(
        torch.equal(one["image"], other["image"]) for one, other in zip(more.training, again.training, strict=True)
    )
    with pytest.raises(InputError, match="warped_copies -1"):
        load_training_set(cases, size, warped_copies=-1)


@pytest.mark.parametrize("dimension", [2, 3])
def test_grain_stays(dimension):
    """A network that learns from smoothed copies draws smooth images; nothing leaves the range of the values."""

    def grain(image):
        return np.diff(np.diff(image, axis=-1), axis=-2).std()

    rng = np.random.default_rng(3)
    fine = ndimage.gaussian_filter(rng.normal(size=(1, 20, 60, 60)), (0, 0.7, 0.7, 0.7)).astype(np.float32)
    case = Case("noise", fine, np.ones((20, 60, 60), np.int16), np.ones((20, 60, 60), bool))
    kept = []
    for _ in range(8):
        warped = warped_case(case, (1, 1, 1), dimension, rng).image
        kept.append(grain(warped) / grain(fine))
        assert fine.min() <= warped.min() and warped.max() <= fine.max()
    assert 0.7 < np.mean(kept) < 1.1  # by straight lines 0.62 and 0.64
