"""Laws of the transplants themselves: millimetres, margins, labels with their image, decoys, places, determinism."""

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from nnunet_plugin.errors import InputError
from nnunet_plugin.preprocessed import PreprocessedDataset, write_json
from nnunet_plugin.transplant.anatomy import UNKNOWN, read_anatomy
from nnunet_plugin.transplant.bank import Bank
from nnunet_plugin.transplant.body import body_mask, depth_in
from nnunet_plugin.transplant.cases import PastedImage, PastedLabels, in_plane, moved_locations, window_around
from nnunet_plugin.transplant.folds import (
    FORMAT,
    RECORD,
    bank_folder,
    choose_labels,
    left_right,
    own_spacing,
    read_fold,
)
from nnunet_plugin.transplant.lesions import Lesion, Surroundings, lesions_of, surface
from nnunet_plugin.transplant.making import lesion_labels, make_bank
from nnunet_plugin.transplant.paste import blend, make_patch, relabel
from nnunet_plugin.transplant.render import render
from nnunet_plugin.transplant.store import files_in, load_bank, save_bank
from nnunet_plugin.transplant.warp import Warp, draw_warp, rotation
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient
from scipy import ndimage
from scipy.spatial.transform import Rotation

SHAPE, SPACING = (12, 48, 40), (3.0, 1.0, 1.5)


def case(number: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    """Two channels of an ellipsoid body with noise, a bone-dark rod in it, and a lesion of two labels."""
    rng = np.random.default_rng(number)
    grid = np.indices(SHAPE).astype(float)
    body = ((grid[1] - 24) / 21) ** 2 + ((grid[2] - 20) / 17) ** 2 < 1
    rod = (grid[1] - 33) ** 2 + (grid[2] - 20) ** 2 < 9
    centre = np.array([rng.integers(4, 8), rng.integers(16, 24), rng.integers(12, 26)])
    distance = np.sqrt((((grid.T - centre) * SPACING) ** 2).sum(-1)).T
    labels = np.where(distance < 3, 2, np.where(distance < rng.uniform(4.5, 6), 1, 0)).astype(np.int16)
    image = 100 + 8 * rng.standard_normal((2, *SHAPE)) + 60 * labels * np.array([1, -0.5])[:, None, None, None]
    image[:, rod & (labels == 0)] = 10 + rng.standard_normal((2, (rod & (labels == 0)).sum()))
    return np.where(body, image, rng.standard_normal((2, *SHAPE))).astype(np.float32), labels, SPACING


@cache
def cases() -> list:
    return [case(number) for number in range(6)]


@cache
def bank(dimension: int) -> Bank:
    return make_bank(cases(), dimension, [1, 2])


def in_space(dimension, array, plane):
    return array[..., plane, :, :] if dimension == 2 else array


def drawn(dimension, decoys, count=25):
    """Transplants with the case that they go into, as (transplant, image, labels, patch)."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        transplant = bank(dimension).draw(rng, decoys)
        assert transplant is not None
        image, labels, _ = cases()[transplant.case]
        source = in_space(dimension, cases()[transplant.source][0], transplant.source_plane)
        image, labels = (in_space(dimension, of, transplant.plane) for of in (image, labels))
        patch = render(bank(dimension), transplant, labels.shape, source if transplant.is_decoy else None)
        yield transplant, image, labels, patch


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_ball_in_millimetres_stays_a_ball(ndim):
    """Rotated and scaled on an anisotropic grid, its extents are 2 x radius x scale in mm along every axis."""
    old, new = np.array([4.0, 0.8, 1.3])[:ndim], np.array([2.5, 1.0, 0.7])[:ndim]
    shape, centre = np.array([15, 61, 41])[:ndim], np.array([7, 30, 20.0])[:ndim]
    grid = np.indices(shape).astype(float)
    distance = np.sqrt((((grid.T - centre) * old) ** 2).sum(-1)).T
    ball = (distance < 12).astype(np.int16)
    scale, target = 1.3, np.array([20, 45, 60])[:ndim]
    turn = rotation(0.5, np.array([1.0, 2.0, -1.0]) if ndim == 3 else None) / scale
    still = Warp(turn, np.zeros((ndim, *[6] * ndim)), np.full(ndim, 20.0))
    around = Surroundings(np.zeros(1), np.ones(1), np.zeros((1, 3)))
    lesion = Lesion(0, ball[None].astype(np.float32), *surface(ball > 0, ball, old), old, centre, np.full(ndim, 12.0),
                    24.0, np.full(ndim, 0.5), 0.5, 1.0, 1.0, 0, around)  # fmt: skip
    one, zero = np.ones(1), np.zeros(1)
    patch = make_patch(lesion.image, lesion, still, target, new, (41, 91, 121)[:ndim], one, zero, zero, 3.0)
    where = (np.argwhere(patch.labels) + patch.start - target) * new
    assert np.abs(np.sqrt((where**2).sum(1)).max() - 12 * scale) < new.max()
    extents = where.max(0) - where.min(0)
    np.testing.assert_allclose(extents, 2 * 12 * scale, atol=2 * new.max())
    volume = patch.labels.sum() * new.prod()
    expected = np.pi * (12 * scale) ** 2 if ndim == 2 else 4 / 3 * np.pi * (12 * scale) ** 3
    assert volume == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("ndim", [2, 3])
def test_warps_stay_in_their_bounds(ndim):
    rng = np.random.default_rng(0)
    for _ in range(50):
        warp = draw_warp(rng, np.full(ndim, 10.0), 20.0, ndim - 1, np.ones(ndim))
        scales = 1 / np.linalg.svd(warp.matrix)[1]
        np.testing.assert_allclose(scales, scales[0])
        assert 0.7 <= scales[0] <= 1.4 and np.linalg.det(warp.matrix) < 0
        turn = warp.matrix * scales[0] @ np.diag([*[1] * (ndim - 1), -1])
        assert np.arccos(np.clip((np.trace(turn) - (ndim - 2)) / 2, -1, 1)) <= np.pi / 6 + 1e-6
        axes = [np.linspace(-15, 15, 9)] * ndim
        bend = warp.old_offsets(axes) - np.einsum(
            "ij,j...->i...", warp.matrix, np.stack(np.meshgrid(*axes, indexing="ij"))
        )
        assert 0 < np.abs(bend).max() < 10


@pytest.mark.parametrize("across", [0, 2])
def test_slices_far_apart_stay_slices(across):
    """A lesion is turned and bent within them, and its parts keep their order and distances (scaled) across them."""
    spacing = np.where(np.arange(3) == across, 3.1, 1.0)
    axes = [np.linspace(-15, 15, 5)] * 3
    for seed in range(10):
        thick = draw_warp(np.random.default_rng(seed), np.full(3, 10.0), 20.0, None, spacing)
        fine = draw_warp(np.random.default_rng(seed), np.full(3, 10.0), 20.0, None, np.where(spacing > 1, 3.0, 1.0))
        assert thick.scale == pytest.approx(fine.scale)
        where = np.meshgrid(*axes, indexing="ij")[across] / thick.scale
        np.testing.assert_allclose(thick.old_offsets(axes)[across], where, atol=1e-9)
        assert np.abs(fine.old_offsets(axes)[across] - where).max() > 0.1
        assert np.abs(thick.knots).max(axis=(1, 2, 3)).min(where=np.arange(3) != across, initial=1) > 0


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_nothing_outside_the_margin_changes(dimension):
    for transplant, image, labels, patch in drawn(dimension, 0.25):
        start = np.zeros(dimension, int)
        new_image, new_labels = blend(image, patch, start), relabel(labels, patch, start)
        whole = np.zeros(labels.shape)
        whole[tuple(slice(a, a + n) for a, n in zip(patch.start, patch.alpha.shape, strict=True))] = patch.alpha
        assert np.array_equal(new_image[:, whole == 0], image[:, whole == 0])
        assert np.array_equal(new_labels[whole == 0], labels[whole == 0])
        spacing = np.array(SPACING)[-dimension:]
        distance = ndimage.distance_transform_edt(whole < 1, sampling=spacing)
        # The free-form deformation and the grid, on which a lesion has corners, change the border's width a little.
        widest = 1.3 * transplant.border * spacing.min() + spacing.max()
        assert 2 <= transplant.border <= 5 and distance[whole > 0].max() < widest
        assert np.isfinite(new_image).all() and not np.array_equal(new_image, image)


@pytest.mark.parametrize("dimension", [2, 3])
def test_labels_move_with_their_image(dimension):
    """In a lesion that has two labels of two intensities, the pasted labels lie where the pasted intensities do."""
    for _, _, labels, patch in drawn(dimension, 0.0):
        new_labels = relabel(labels, patch, np.zeros(dimension, int))
        box = tuple(slice(a, a + n) for a, n in zip(patch.start, patch.labels.shape, strict=True))
        assert np.array_equal(new_labels[box][patch.labels > 0], patch.labels[patch.labels > 0])
        assert (patch.alpha[patch.labels > 0] == 1).all()
        if (patch.labels == 2).sum() >= 8 and (patch.labels == 1).sum() >= 8:
            first, second = (patch.image[:, patch.labels == label].mean(axis=1) for label in (1, 2))
            assert first[0] < second[0] and first[1] > second[1]


@pytest.mark.parametrize("dimension", [2, 3])
def test_decoys_carry_no_label(dimension):
    lesions = np.concatenate([c[0][0][c[1] > 0] for c in cases()])
    for transplant, image, labels, patch in drawn(dimension, 1.0, 10):
        assert transplant.is_decoy and transplant.source != transplant.case
        assert not patch.labels.any() and np.array_equal(relabel(labels, patch, np.zeros(dimension, int)), labels)
        new = blend(image, patch, np.zeros(dimension, int))
        assert not np.array_equal(new, image)
        assert patch.image[0][patch.alpha == 1].mean() < lesions.mean() - 20


@pytest.mark.parametrize("dimension", [2, 3])
def test_places_are_tissue_of_another_patient(dimension):
    """Not air, not bone, not the own patient, and not half over another lesion."""
    for transplant, image, labels, patch in drawn(dimension, 0.0, 40):
        assert bank(dimension).lesions[transplant.lesion].case != transplant.case
        box = tuple(slice(a, a + n) for a, n in zip(patch.start, patch.labels.shape, strict=True))
        covered = patch.labels > 0
        healthy = covered & (labels[box] == 0)
        assert np.quantile(image[0][box][healthy], 0.1) > 50
        around = ndimage.binary_dilation(covered, iterations=1) & ~covered
        assert not (labels[box][around] > 0).any()


def healed(number: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    """A case with tissue where its lesion was."""
    image, labels, spacing = case(number)
    image[:, labels > 0] = np.random.default_rng(number).normal(100, 8, (2, (labels > 0).sum()))
    return image, 0 * labels, spacing


def middle_plane(image: np.ndarray, labels: np.ndarray, spacing: tuple) -> tuple[np.ndarray, np.ndarray, tuple]:
    """The plane through a lesion, as a case of its own."""
    plane = round(np.nonzero(labels)[0].mean()) if labels.any() else 6
    return image[:, plane : plane + 1], labels[plane : plane + 1], spacing


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_one_healthy_patient_does_not_receive_all(dimension):
    """Single images and volumes: one place a patient."""
    given = [*cases()[:5], healed(9)]
    made = make_bank([middle_plane(*of) for of in given] if dimension == 2 else given, dimension, [1, 2])
    assert len(made.receiving) >= 3
    rng = np.random.default_rng(0)
    draws = [made.draw(rng, 0.5) for _ in range(200)]
    assert all(made.lesions[t.lesion].case != t.case for t in draws if not t.is_decoy)
    assert np.bincount([t.case for t in draws]).max() < 0.7 * len(draws)
    assert 0.35 < np.mean([t.is_decoy for t in draws]) < 0.65


@pytest.mark.slow
def test_planes_without_a_lesion_are_preferred_in_each_volume():
    made = make_bank([*cases()[:3], healed(9)], 2, [1, 2])
    with_lesion = [(labels > 0).any(axis=(1, 2)) for _, labels, _ in cases()[:3]]
    went = [made.places[fit.where] for fit in made.fits]
    assert {place.case for place in went} > {3}
    assert all(place.case == 3 or not with_lesion[place.case][place.number] for place in went)


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_two_patients_have_decoys(dimension):
    given = cases()[:2]
    made = make_bank(given, dimension, [1, 2])
    rng = np.random.default_rng(0)
    for transplant in [made.draw(rng, 1.0) for _ in range(20)]:
        assert transplant.is_decoy and transplant.source != transplant.case
        source, labels = (in_space(dimension, of, transplant.source_plane) for of in given[transplant.source][:2])
        patch = render(made, transplant, labels.shape, source)
        assert patch.image[0][patch.alpha == 1].mean() < 120
    assert all(made.lesions[t.lesion].case != t.case for t in [made.draw(rng, 0.0) for _ in range(20)])


def specks(number: int, count: int) -> tuple[np.ndarray, np.ndarray, tuple]:
    """A case with small lesions that shine; every other one has no other lesion."""
    image, labels, spacing = healed(number) if number % 2 else case(number)
    rng = np.random.default_rng(number)
    for _ in range(count):
        z, y, x = rng.integers((1, 10, 9), (11, 40, 32))
        box = (slice(z, z + 1), slice(y, y + 2), slice(x, x + 2))
        labels[box], image[(slice(None), *box)] = 1, 1000
    return image, labels, spacing


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_lesions_finer_than_the_grid_are_seen(dimension, monkeypatch):
    """No decoy holds any of them, and no transplant hides one but where it has to."""
    monkeypatch.setattr("nnunet_plugin.transplant.anatomy.MAX_SIZE", {2: 16, 3: 24})
    given = [specks(number, 5 if dimension == 2 else 1) for number in range(4)]
    made = make_bank(given, dimension, [1, 2])
    for (_, labels, _), anatomy in zip(given, made.anatomies, strict=True):
        assert (anatomy.stride[1:] >= 2).all()
        places = (np.argwhere(labels > 0) + anatomy.stride // 2) // anatomy.stride
        assert np.isin(anatomy.labels[tuple(places.clip(0, np.array(anatomy.labels.shape) - 1).T)], (1, 2)).all()
    rng, count = np.random.default_rng(0), np.zeros(2, int)
    covering = {fit.centre.tobytes() for fit in made.fits if fit.covers}
    for transplant in [made.draw(rng, 0.6) for _ in range(60)]:
        count[int(transplant.is_decoy)] += 1
        source, _ = (in_space(dimension, of, transplant.source_plane) for of in given[transplant.source][:2])
        labels = in_space(dimension, given[transplant.case][1], transplant.plane)
        patch = render(made, transplant, labels.shape, source if transplant.is_decoy else None)
        box = tuple(slice(a, a + n) for a, n in zip(patch.start, patch.alpha.shape, strict=True))
        if transplant.is_decoy:
            assert patch.image[0][patch.alpha > 0].max() < 150
        if transplant.centre.tobytes() not in covering:
            assert not (labels[box][patch.alpha > 0] > 0).any()
    assert (count > 10).all()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("beside", [1, -1, UNKNOWN, 2], ids=["lesion", "outside", "unknown", "organ"])
def test_a_soft_border_shows_tissue_alone(ndim, beside):
    """Not what lies beyond the image that cuts a lesion off, nor another lesion beside it, nor what is unknown."""
    rng = np.random.default_rng(0)
    shape = (12, 48, 48)
    away = np.linalg.norm(np.indices(shape) - np.array([6, 0, 20]).reshape(3, 1, 1, 1), axis=0)
    labels = (away < 6).astype(np.int16)
    labels[5:8, 1:4, 29:32] = beside
    image = np.where(labels != 0, 200, np.where(np.indices(shape)[1] < 36, 100, 0)) + rng.normal(size=(1, *shape))
    anatomy, spacing = read_anatomy(image, labels, (1, 1, 1), ndim, [1]), np.ones(ndim)
    if ndim == 2:
        anatomy, image, labels = anatomy.plane(6), image[:, 6], labels[6]
    (lesion,) = lesions_of(0, image, labels, spacing, anatomy, [1])
    assert lesion.host == 0
    np.testing.assert_allclose(lesion.around.mean * anatomy.scale + anatomy.median, 100, atol=1)
    one = np.ones(1)
    for _ in range(8):
        warp = draw_warp(rng, lesion.extent, lesion.diameter, None, spacing)
        patch = make_patch(
            lesion.image, lesion, warp, np.full(ndim, 24.0), spacing, (48,) * ndim, one, 0 * one, 0 * one, 5.0
        )
        assert (patch.labels >= 0).all() and (patch.alpha[patch.labels > 0] == 1).all()
        border = (patch.alpha > 0) & (patch.labels == 0)
        assert border.sum() > 10 and patch.image[0][border].max() < 156  # less than half of a voxel of the lesion
        far = border & ~ndimage.binary_dilation(patch.labels > 0, iterations=3)
        assert 94 < patch.image[0][far].min() and patch.image[0][far].max() < 107  # splines swing a little beyond edges


@pytest.mark.parametrize("ndim", [2, 3])
def test_a_pasted_lesion_keeps_its_grain(ndim):
    """Smoother than what is around it, it would be known by that; nothing leaves the range of the lesion's values."""

    def grain(image, where):
        inner = ndimage.binary_erosion(where, iterations=2)
        return (image - ndimage.uniform_filter(image, 3))[inner].std()

    rng, shape = np.random.default_rng(0), (32,) * ndim
    labels = (np.linalg.norm(np.indices(shape) - 15.5, axis=0) < 11).astype(np.int16)
    image = 100 * ndimage.gaussian_filter(rng.normal(size=(1, *shape)), (0, *[0.7] * ndim)) + 100 * labels
    volume = (image, labels) if ndim == 3 else (image[:, None], labels[None])
    anatomy = read_anatomy(*volume, (1, 1, 1), ndim, [1])
    anatomy, spacing, one = anatomy if ndim == 3 else anatomy.plane(0), np.ones(ndim), np.ones(1)
    (lesion,) = lesions_of(0, image, labels, spacing, anatomy, [1])
    kept = []
    for _ in range(8):
        warp = draw_warp(rng, lesion.extent, lesion.diameter, None, spacing)
        centre = np.full(ndim, 32.0)
        patch = make_patch(lesion.image, lesion, warp, centre, spacing, (64,) * ndim, one, 0 * one, -999 * one, 2.0)
        kept.append(grain(patch.image[0], patch.labels > 0) / grain(image[0], labels > 0))
        inside = patch.image[0][patch.labels > 0]
        assert lesion.image.min() <= inside.min() and inside.max() <= lesion.image.max()
    assert np.mean(kept) > 0.8  # with straight lines 0.6


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_nothing_goes_to_or_comes_from_what_is_unknown(dimension):
    """Sparse annotation: in each case the half of the body beside the lesion, and in one the lesion's own border."""
    given = []
    for number, (image, labels, spacing) in enumerate(cases()[:4]):
        unknown = np.indices(labels.shape)[1] >= np.nonzero(labels)[1].max() + (1 if number == 0 else 3)
        image = np.where(unknown, 500 + image, image)  # which is told by its brightness here
        given.append((image, np.where(unknown, UNKNOWN, labels).astype(np.int16), spacing))
    made = make_bank(given, dimension, [1, 2])
    assert {lesion.host for lesion in made.lesions} == {0}
    donors = {lesion.case for lesion in made.lesions}
    assert donors == {1, 2, 3} if dimension == 3 else donors >= {1, 2, 3}  # a plane in which it does not touch is known
    rng = np.random.default_rng(0)
    for transplant in [made.draw(rng, 0.3) for _ in range(40)]:
        labels = in_space(dimension, given[transplant.case][1], transplant.plane)
        source = in_space(dimension, given[transplant.source][0], transplant.source_plane)
        patch = render(made, transplant, labels.shape, source if transplant.is_decoy else None)
        box = tuple(slice(a, a + n) for a, n in zip(patch.start, patch.alpha.shape, strict=True))
        assert (labels[box][patch.labels > 0] >= 0).all() and patch.image[0][patch.alpha > 0].max() < 400


@pytest.mark.slow
def test_where_lesions_leave_no_room_they_overlap_and_both_are_labelled():
    """As in images that were cropped around their tumours."""
    tight = []
    for image, labels, spacing in cases():
        y, x = (int(np.median(places)) for places in np.nonzero(labels)[1:])
        box = (slice(None), slice(max(0, y - 9), y + 9), slice(max(0, x - 7), x + 7))
        tight.append((image[(slice(None), *box)], labels[box], spacing))
    cropped = make_bank(tight, 3, [1, 2])
    assert len(cropped.fitting) == len(cropped.lesions) == len(tight)
    overlaps = 0
    rng = np.random.default_rng(0)
    for _ in range(25):
        transplant = cropped.draw(rng, 0.0)
        assert transplant is not None
        labels = tight[transplant.case][1]
        patch = render(cropped, transplant, labels.shape)
        new, pasted = relabel(labels, patch, np.zeros(3, int)), relabel(np.zeros_like(labels), patch, np.zeros(3, int))
        assert np.array_equal(new, np.where(pasted > 0, pasted, labels))
        overlaps += bool(((pasted > 0) & (labels > 0)).any() and ((labels > 0) & (pasted == 0)).any())
    assert overlaps > 0


@pytest.mark.slow
def test_ring_is_harmonised():
    """A lesion from a patient twice as bright looks like the new patient around its border."""
    bright = [
        (image * (2 if number == 0 else 1), labels, spacing) for number, (image, labels, spacing) in enumerate(cases())
    ]
    made = make_bank(bright, 2, [1, 2])
    rng = np.random.default_rng(1)
    found = [t for t in (made.draw(rng, 0.0) for _ in range(80)) if made.lesions[t.lesion].case == 0]
    assert found
    for transplant in found:
        lesion = made.lesions[transplant.lesion]
        ring = lesion.around.mean * made.anatomies[0].scale + made.anatomies[0].median
        assert np.abs(transplant.gain * ring + transplant.offset - 100).max() < 15
        assert (0.6 <= transplant.gain).all() and (transplant.gain <= 1.6).all()


@pytest.mark.parametrize("dimension", [2, 3])
def test_stored_banks_draw_the_same(tmp_path, dimension):
    save_bank(make_bank(cases(), dimension, [1, 2], open_file=files_in(tmp_path), room=0), tmp_path)
    stored = load_bank(tmp_path)
    for seed in range(12):
        ours, theirs = (of.draw(np.random.default_rng(seed), 0.3) for of in (bank(dimension), stored))
        assert (ours.lesion, ours.case, ours.plane, ours.source) == (
            theirs.lesion,
            theirs.case,
            theirs.plane,
            theirs.source,
        )
        assert np.array_equal(ours.centre, theirs.centre) and np.array_equal(ours.warp.knots, theirs.warp.knots)
        shape = in_space(dimension, cases()[ours.case][1], ours.plane).shape
        source = in_space(dimension, cases()[ours.source][0], ours.source_plane) if ours.is_decoy else None
        patches = [render(of, t, shape, source) for of, t in ((bank(dimension), ours), (stored, theirs))]
        assert np.array_equal(patches[0].image, patches[1].image) and np.array_equal(
            patches[0].labels, patches[1].labels
        )


def test_lazy_regions_are_those_of_the_whole():
    _, image, labels, patch = next(iter(drawn(3, 0.0, 1)))
    lazy, whole = PastedImage(image, patch), blend(image, patch, np.zeros(3, int))
    lazy_labels, whole_labels = PastedLabels(labels[None], patch), relabel(labels, patch, np.zeros(3, int))
    assert lazy.shape == image.shape and np.array_equal(lazy[:], whole)
    assert np.array_equal(np.asarray(lazy_labels)[0], whole_labels)
    part = (slice(None), slice(1, 4), slice(3, 9), slice(2, None))
    assert np.array_equal(lazy[part], whole[part])


def test_a_patch_of_a_plane_is_one_of_the_volume():
    transplant, image, labels, patch = next(iter(drawn(2, 0.0, 1)))
    stack = np.stack([image] * 3, axis=1)
    lazy = PastedImage(stack, in_plane(patch, 1))
    assert np.array_equal(lazy[:][:, 1], blend(image, patch, np.zeros(2, int)))
    assert np.array_equal(lazy[:][:, [0, 2]], stack[:, [0, 2]])
    inside = PastedLabels(np.stack([labels] * 3)[None], in_plane(patch, 1))[:, :, 5:40, 3:]
    assert np.array_equal(inside[0, 1], relabel(labels, patch, np.zeros(2, int))[5:40, 3:])


@pytest.mark.parametrize("centre", [0, 3, 20, 47])
def test_every_patch_shows_the_lesion(centre):
    """Whichever patch the loader takes of the window, it holds the centre, and it needs no padding."""
    (window,) = window_around(np.array([centre]), (16,), (48,))
    assert 0 <= window.start and window.stop <= 48 and window.stop - window.start >= 16
    assert window.stop - 16 <= centre < window.start + 16


@pytest.mark.parametrize("present", [(), (1,), (1, 2)])
def test_locations_move_with_the_patch(present):
    """Also in a case without a lesion, or without one of the classes, regions or ignored voxels."""
    _, _, labels, patch = next(iter(drawn(3, 0.0, 1)))
    classes = [1, 2, 3, (1, 2), (2, 3), (3,), (-1, 0, 1, 2)]
    before = np.where(np.isin(labels, present), labels, 0)

    def rows_of(label_map, of):  # as nnU-Net's: an empty list where a class is absent
        found = np.argwhere(np.isin(label_map, of))
        return np.insert(found, 0, 0, axis=1) if len(found) else []

    moved = moved_locations({of: rows_of(before, of) for of in classes}, patch, classes)
    after = relabel(before, patch, np.zeros(3, int))
    for of in classes:
        ours, every = ({tuple(row) for row in np.reshape(where, (-1, 4)).tolist()} for where in
                       (moved[of], rows_of(after, of)))  # fmt: skip
        assert ours == every and len(moved[of]) == len(ours)
        assert len(moved[of]) == 0 or moved[of].dtype.kind == "i"


def test_body_leaves_out_air_and_keeps_the_skull():
    grid = np.indices((40, 40)) - 19.5
    radius = np.sqrt((grid**2).sum(0))
    image = np.select([radius < 10, radius < 13, radius < 15], [100.0, 5.0, 200.0], 2.0)
    body = body_mask(image[None], np.zeros(radius.shape, int))
    assert body[radius < 14.5].all() and not body[radius > 17].any()
    outside = np.where(radius < 10, 0, -1)
    assert np.array_equal(body_mask(np.where(radius < 10, image, 0)[None], outside) & (radius >= 11), radius < 0)
    anatomy = read_anatomy(image[None, None], np.zeros((1, 40, 40), int), (3.0, 1.0, 1.0), 2)
    assert anatomy.depth[0, 20, 20] > 13 and anatomy.depth[0, 0, 0] == 0


def test_a_crop_without_air_has_a_depth():
    """Its lesions are compared with each other by it: deeper than anything in an image with air, and finite."""
    spacing = (3.0, 1.0, 2.0)
    body = np.ones((4, 9, 7), bool)
    whole = depth_in(body, spacing)
    body[0, 0, 0] = False
    assert np.isfinite(whole).all() and whole.min() == whole.max() > depth_in(body, spacing).max()


def test_organs_are_told_by_their_volumes(capsys):
    hippocampus, tumour = [100.0, 120.0, 90.0, 110.0], [10.0, 200.0, 0.0, 90.0]
    assert choose_labels({1: hippocampus, 2: tumour}, None) == [2]
    for absent in (1, 20):  # cut out, or outside of the image: what is absent says nothing of the size
        assert choose_labels({1: hippocampus + absent * [0.0], 2: tumour}, None) == [2]
    assert not lesion_labels({1: [100.0] * 80 + [0.0] * 20, 2: [0.0] * 5, 3: [0.0, 7.0]})
    assert choose_labels({1: hippocampus}, [1]) == [1]
    with pytest.raises(InputError, match="look like organs: .* label 1 0.1"):
        choose_labels({1: hippocampus}, None)
    with pytest.raises(InputError, match="labels = "):
        choose_labels({1: hippocampus}, [3])
    many = {1: hippocampus, 2: tumour, 5: tumour, 7: tumour}
    two = {2: tumour, 5: tumour}
    for volumes, wanted, said in ((two, None, []), (many, [2, 5, 7], []), (many, None, ["2", "5", "7"])):
        capsys.readouterr()
        choose_labels(volumes, wanted)
        text = capsys.readouterr().err
        assert re.findall(r"(\d) \(coefficient", text) == said and ("--labels" in text) == bool(said)


def test_core_knows_no_nnunet():
    """The segmentation bundle uses it without nnU-Net."""
    room = Path(__file__).parents[3] / "nnunet_plugin" / "transplant"
    core = ("anatomy", "bank", "body", "lesions", "making", "paste", "place", "render", "store", "warp")
    assert not [name for name in core if "nnunetv2" in (text := (room / f"{name}.py").read_text()) or "from .." in text]


@pytest.mark.parametrize("decoys", [0.0, 0.5, 1.0])
def test_where_nothing_fits_nothing_is_drawn(decoys):
    empty = replace(bank(2), fits=[])
    assert all(empty.draw(np.random.default_rng(seed), decoys) is None for seed in range(8))


def test_millimetres_of_a_preprocessed_case_are_its_own():
    """Resampled or not, its extent in mm is that of the image along each axis, which plans may have transposed."""
    raw = np.array([0.9, 1.1, 4.0])
    properties = {"spacing": raw.tolist(), "shape_after_cropping_and_before_resampling": (20, 180, 150)}
    assert own_spacing(properties, (20, 180, 150), [2, 0, 1]) == [4.0, 0.9, 1.1]
    resampled = own_spacing(properties, (20, 162, 165), [2, 0, 1])
    np.testing.assert_allclose(np.multiply(resampled, (20, 162, 165)), [20 * 4, 180 * 0.9, 150 * 1.1])
    np.testing.assert_allclose(resampled, [4.0, 1.0, 1.0])


@pytest.mark.parametrize("order", [[0, 1, 2], [1, 0, 2], [2, 0, 1]])
@pytest.mark.parametrize("reader", [SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient])
def test_left_and_right_are_where_the_reader_says(tmp_path, reader, order):
    """Of an image that is turned and has slices far apart: the axis along which its voxels' x changes the most."""
    turned = Rotation.from_euler("xyz", [20, 25, -15], degrees=True).as_matrix()
    affine = np.eye(4)
    # Slices from left to right, 1 mm apart, in planes with steps of 4 mm: oblique, those go farther along x.
    affine[:3, :3] = turned @ np.array([[0, 0, 1.0], [4.0, 0, 0], [0, 4.0, 0]])
    x = np.einsum("i,i...->...", affine[0, :3], np.indices((10, 12, 14)))
    file = tmp_path / "image.nii.gz"
    nib.save(nib.Nifti1Image(x.astype(np.float32), affine), file)
    image, properties = reader().read_images([str(file)])
    image, steps = image[0].transpose(order), np.array(properties["spacing"])[order]
    change = [abs(float(np.diff(image, axis=axis).mean())) / step for axis, step in enumerate(steps)]
    axis = int(np.argmax(change)) - 3
    assert left_right(properties, order, 3) == axis
    assert left_right(properties, order, 2) == (None if axis == -3 else axis)


def test_images_without_a_direction_have_left_and_right_in_their_rows():
    assert left_right({"spacing": [999, 1, 1]}, [0, 1, 2], 2) == -1
    assert left_right({"sitk_stuff": {"direction": (1.0, 0.0, 0.0, 1.0)}}, [0, 1, 2], 2) == -1


def test_banks_of_another_version_are_refused(tmp_path):
    dataset = PreprocessedDataset(tmp_path, {})
    folder = bank_folder(dataset, "nnUNetPlans_2d", 0, [1])
    folder.mkdir(parents=True)
    write_json(folder / RECORD, {"format": FORMAT, "format_version": 1, "seen": {}})
    with pytest.raises(InputError, match="version 1.*version 3.*run transplant"):
        read_fold(dataset, "nnUNetPlans_2d", 0, [1])
