"""Laws of where lesions go: the same part of the body, however much of it an image shows."""

import numpy as np
import pytest
from nnunet_plugin.transplant.anatomy import planes_with_body, read_anatomy
from nnunet_plugin.transplant.bank import WINDOW
from nnunet_plugin.transplant.looks import Context, Looks
from nnunet_plugin.transplant.making import make_bank

SPACING = (4.0, 1.0, 1.0)


def body(levels: np.ndarray, seed: int, lesion: int | None = None) -> tuple[np.ndarray, np.ndarray, tuple]:
    """A body whose planes show a dark hole that turns with the level, and a lesion in one of the planes."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(*[np.linspace(-1, 1, 48)] * 2, indexing="ij")
    image = np.zeros((1, len(levels), 48, 48))
    for plane, level in enumerate(levels):
        angle = np.pi * level
        along, across = y * np.cos(angle) + x * np.sin(angle), x * np.cos(angle) - y * np.sin(angle)
        image[0, plane][np.hypot(y, x) < 0.9] = 100
        image[0, plane][np.hypot(along - 0.45, across) < 0.25] = 40
    labels = np.zeros(image.shape[1:], np.int16)
    if lesion is not None:
        labels[lesion][np.hypot(y + 0.5, x - 0.5) < 0.15] = 1
        image[0][labels > 0] = 180
    return image + rng.normal(size=image.shape) * 3 * (image > 0), labels, SPACING


DONOR = np.linspace(0.0, 0.9, 10)
OTHERS = [np.linspace(*of, 19) for of in ((-0.9, 0.9), (-0.45, 0.45), (0.3, 1.2), (-0.9, 0.9))]


@pytest.mark.parametrize("mirrored", [False, True])
def test_planes_alike_show_the_same_level(mirrored):
    """Whatever their relative height is."""
    looks, levels = Looks([1]), []
    for number, of in enumerate([DONOR, *OTHERS]):
        image, labels, spacing = body(of, number, 3 if number == 0 else None)
        if mirrored and number:
            image, labels = image[..., ::-1], labels[..., ::-1]
        anatomy = read_anatomy(image, labels, spacing, 2, [1])
        looks.add(anatomy, planes := planes_with_body(number, anatomy))
        levels += [(plane.case, of[plane.number]) for plane in planes]
    looks.finish()
    unlike = looks.unlikeness(0, 3 / 9, -1 if mirrored else None, np.arange(len(levels)))
    cases, levels = np.array(levels).T
    for case in (1, 2, 3, 4):
        best = levels[cases == case][unlike[cases == case].argmin()]
        assert abs(best - DONOR[3]) < 0.11 or (mirrored and abs(best + DONOR[3]) < 0.11)  # it turns back in a mirror
    assert looks.healthy.sum() == len(levels) - 1


@pytest.mark.slow
@pytest.mark.parametrize("dimension", [2, 3])
def test_lesions_go_to_their_own_level(dimension):
    """In bodies that are shown from elsewhere on: by relative height it would be another level."""
    given = [body(of, number, {0: 3, 1: 0}.get(number)) for number, of in enumerate([DONOR, *OTHERS])]
    made = make_bank(given, dimension, [1])
    went = [
        (fit, made.places[fit.where])
        for fit in made.fits
        if made.lesions[fit.lesion].case == 0 and made.places[fit.where].case
    ]
    assert len({place.case for _, place in went}) >= 2
    levels = np.array([([DONOR, *OTHERS][place.case])[place.number] for _, place in went])
    # A mirrored plane turns the other way.
    assert (np.minimum(np.abs(levels - DONOR[3]), np.abs(levels + DONOR[3])) < 0.16).mean() > 0.9
    if dimension == 3:
        depths = np.array([fit.centre[0] for fit, _ in went]) - [place.number for _, place in went]
        assert np.abs(depths).max() <= 0.25 * 19


@pytest.mark.slow
def test_where_nothing_like_it_has_room_a_lesion_stays_near_its_height():
    """In its own patient, from which decoys come where there are but two, and in a third who has no room there."""
    fine = np.linspace(0.0, 0.9, 19)
    third = body(fine, 2)
    third[0][:, 3:10] *= 0.3  # as dark as the hole
    for given in ([body(fine, 0, 6), body(fine, 1)], [body(fine, 0, 6), body(fine, 1), third]):
        made = make_bank(given, 2, [1])
        went = [made.places[fit.where] for fit in made.fits]
        assert len({place.case for place in went}) >= 2
        assert all(abs(place.height - 3 / 9) <= WINDOW + 0.01 for place in went if place.case == 0)
        levels = np.array([place.height for place in went if place.case])
        assert (np.abs(levels - 3 / 9) < 0.25).all()


@pytest.mark.slow
def test_lesions_are_mirrored_along_the_first_axis():
    given = [body(np.zeros(10), number, 2 if number == 0 else None) for number in range(3)]
    made = make_bank(given, 3, [1], mirror_axis=-3)
    heights = {True: [], False: []}
    for fit in made.fits:
        if made.places[fit.where].case:
            heights[bool(np.linalg.det(fit.warp.matrix) < 0)].append(fit.centre[0] / 9)
    assert np.mean(heights[True]) > 0.6 and np.mean(heights[False]) < 0.4


@pytest.mark.slow
def test_of_many_patients_some_are_looked_at_for_each_lesion(monkeypatch):
    """Others for the next one, and the same for the same seed."""
    monkeypatch.setattr("nnunet_plugin.transplant.bank.LOOKED_AT", 2)
    given = [body(DONOR, number, 3) for number in range(8)]
    made, again = (make_bank(given, 2, [1]) for _ in range(2))
    went = [(fit.lesion, made.places[fit.where].case) for fit in made.fits]
    assert went == [(fit.lesion, again.places[fit.where].case) for fit in again.fits]
    assert {len({case for of, case in went if of == lesion}) for lesion in range(8)} <= {1, 2}
    assert len(made.receiving) >= 6


@pytest.mark.parametrize("dimension", [2, 3])
def test_surroundings_are_told_apart(dimension):
    """A place like the lesion's own is more alike than any other, its mirror image only where it is mirrored."""
    image, labels, spacing = body(DONOR, 0, 3)
    plain, _, _ = body(DONOR, 1)
    own, other, turned = (
        read_anatomy(of, marks, spacing, dimension, [1])
        for of, marks in ((image, labels), (plain, 0 * labels), (plain[..., ::-1], 0 * labels))
    )
    centre = np.array([3, *np.round(np.argwhere(labels > 0).mean(axis=0))[1:]])[-dimension:] / own.stride[-dimension:]
    if dimension == 2:
        own, other, turned = (of.plane(3) for of in (own, other, turned))
    context = Context(own, own.relative(centre), np.full(dimension, 4.0), [1])
    here, last = context.unlikeness(other, centre, None), other.labels.shape[-1] - 1
    mirrored = np.append(centre[:-1], last - centre[-1])
    assert here < 0.3 * min(context.unlikeness(other, centre + step, None) for step in np.eye(dimension)[-2:] * 8)
    assert context.unlikeness(turned, mirrored, -1) < 0.3 * context.unlikeness(turned, mirrored, None)
    assert context.unlikeness(other, centre + 1000, None) == np.inf
