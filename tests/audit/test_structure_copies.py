"""Copies that were turned, scaled, bent, inverted or cut in two: the laws of the search, and what it finds."""

import numpy as np
import pytest
import torch
from scipy import ndimage

from scripts.audit.items import Items
from scripts.audit.memorisation import NEXT_PATIENTS, flips, patient_distances
from scripts.audit.structure import (
    SIDE,
    Detail,
    Structure,
    coarse_fields,
    coarse_places,
    gradient_fields,
    place_names,
    placed_fields,
    squared,
    with_bodies,
)

PATIENTS = 10


def all_of(items, title):
    return items


def heads(count: int, sizes: tuple[int, ...], seed: int, small: float = 0.75) -> np.ndarray:
    """Images (count, *sizes) in [0, 1]: a body that differs, with folds of its own, on a dark ground."""
    rng = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*[np.linspace(-1, 1, n) for n in sizes[:2]], indexing="ij"))
    images = []
    for _ in range(count):
        folds = ndimage.gaussian_filter(rng.normal(size=sizes), sizes[0] / 24)
        radius = np.hypot(*(places / rng.uniform(small - 0.1, small, (2, 1, 1))))
        radius = radius.reshape(*sizes[:2], *[1] * (len(sizes) - 2))
        images.append(np.where(radius < 1, 0.5 + 0.12 * folds / folds.std(), 0.02))
    return np.clip(images, 0, 1)


def items(images: np.ndarray, groups) -> Items:
    tensor = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).half()
    masks = torch.zeros(tensor.shape, dtype=torch.bool)
    masks[:, :, 4:8, 4:8] = True
    return Items(tensor, masks, np.asarray(groups), [f"{group}, {i}" for i, group in enumerate(groups)])


def moved(
    image: np.ndarray, turn: float = 0, zoom: float = 1, shift: float = 0, around: float | None = None
) -> np.ndarray:
    """Turned by degrees, enlarged, and shifted along both axes by a share of the side; `around` it another ground."""
    angle = np.deg2rad(turn)
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / zoom
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ (centre + shift * np.array(image.shape))
    return ndimage.affine_transform(
        image, matrix, offset, order=1, cval=float(image.min()) if around is None else around
    )


def bent(image: np.ndarray, pixels: float, seed: int = 0) -> np.ndarray:
    """Moved by at most so many pixels, smoothly."""
    rng = np.random.default_rng(seed)
    move = np.stack([ndimage.gaussian_filter(rng.normal(size=image.shape), 8) for _ in range(2)])
    move *= pixels / np.hypot(*move).max()
    return ndimage.map_coordinates(image, np.indices(image.shape) + move, order=1, mode="nearest")


def test_fields_see_neither_brightness_nor_its_sign():
    images = torch.from_numpy(heads(2, (SIDE, SIDE), 0)).unsqueeze(1).float()
    everywhere = torch.ones(1, 1, SIDE, SIDE)
    fields = gradient_fields(images, everywhere)
    assert fields.shape == (2, 2, SIDE, SIDE) and fields.norm(dim=1).max() <= 1
    for other in (0.7 - images, 30 * images + 5, images.expand(-1, 3, -1, -1)):
        torch.testing.assert_close(gradient_fields(other, everywhere), fields, atol=1e-4, rtol=1e-3)
    assert gradient_fields(everywhere, everywhere).abs().max() < 1e-3


def test_turned_fields_are_those_of_turned_images():
    images = with_bodies(torch.from_numpy(heads(2, (SIDE, SIDE), 1, 0.6)).unsqueeze(1))
    places = coarse_places()
    found = coarse_fields(images)
    assert found.shape[:3] == (2, len(places), 3)
    affine = torch.cat([places, torch.zeros(len(places), 2, 1)], dim=2)
    for number, image in enumerate(images):
        true = torch.nn.functional.avg_pool2d(placed_fields(image.expand(len(places), -1, -1, -1), affine), 2)
        same = torch.cosine_similarity(found[number, :, :2].flatten(1), true[:, :2].flatten(1))
        assert same.min() > 0.85 and same.median() > 0.95
        assert (found[number, :, 2] <= true[:, 2] + 1e-4).float().mean() > 0.95  # corners may be lost


def test_places_without_turn_or_scale_are_the_flips():
    images = with_bodies(torch.from_numpy(heads(1, (SIDE, SIDE), 2)).unsqueeze(1))
    names, found = place_names(), coarse_fields(images)[0]
    assert len(names) == len(coarse_places())
    for name, flipped in flips(images):
        wanted = torch.nn.functional.avg_pool2d(placed_fields(flipped, torch.eye(2, 3)[None])[:, :2], 2)
        index = names.index("up-down and left-right" if " and " in name else name)
        assert torch.cosine_similarity(found[index, :2].flatten(), wanted.flatten(), dim=0) > 0.95


def test_frames_and_outlines_have_no_edges():
    images = torch.from_numpy(heads(3, (64, 64), 6, 0.6)).unsqueeze(1).float()
    framed = images.clone()
    framed[..., :4, :], framed[..., -6:] = 0.4, 0.3  # within the range, which is what constants are measured by
    plain, other = (placed_fields(squared(with_bodies(x)), torch.eye(2, 3).repeat(3, 1, 1)) for x in (images, framed))
    torch.testing.assert_close(other, plain)
    assert (plain[:, 2].mean(dim=(1, 2)) < 0.3).all() and plain[:, 2].any(dim=2).any(dim=1).all()
    assert with_bodies(torch.ones(1, 1, 64, 64))[:, 1].all(), "without a body, all is looked at"


@pytest.fixture(scope="module")
def known():
    """Two slices of each patient, and how near patients are to each other."""
    groups = [f"p{i}" for i in range(PATIENTS) for _ in range(2)]
    return heads(2 * PATIENTS, (64, 64), 3), groups


CHANGES = {
    "turned by 15": lambda x: moved(x, turn=15),
    "turned by 22": lambda x: moved(x, turn=-22),
    "turned by 90": lambda x: np.rot90(x),
    "shifted by 10 %": lambda x: moved(x, shift=0.1),
    "scaled by 0.7": lambda x: moved(x, zoom=0.7),
    "enlarged by 1.15": lambda x: moved(x, zoom=1.15),
    "gamma 1.5": lambda x: x**1.5,
    "inverted": lambda x: 1 - x,
    "bent by 5 pixels": lambda x: bent(x, 5),
    "noise of 10 %": lambda x: x + 0.1 * np.random.default_rng(0).normal(size=x.shape),
    "turned in a frame": lambda x: moved(x, turn=25, around=0.3),
    "shifted in a frame": lambda x: moved(x, shift=-0.1, around=1),
    "inverted in a frame": lambda x: np.pad(moved(1 - x, zoom=0.9)[4:60, 4:60], 4),
    "flipped, turned and scaled": lambda x: moved(x[:, ::-1], turn=160, zoom=0.9),
}


@pytest.mark.slow
def test_changed_copies_are_nearer_than_any_other_patient(known):
    images, groups = known
    reference = items(images, groups)
    apart = patient_distances(Structure(), reference, reference, all_of, "", apart=True)
    assert (reference.groups[apart.match] != reference.groups).all()
    new = items(heads(PATIENTS, (64, 64), 4), ["s"] * PATIENTS)
    others = patient_distances(Structure(), new, reference, all_of, "", apart=False)
    limit = min(apart.relative.min(), others.relative.min())
    chosen = [1, 6, 11, 16]
    planted = [change(images[i]) for change in CHANGES.values() for i in chosen]
    copies = items(np.clip(planted, 0, 1), ["s"] * len(planted))
    found = patient_distances(Structure(), copies, reference, all_of, "", apart=False)
    by_change = found.relative.reshape(-1, len(chosen)).max(axis=1)
    missed = [name for name, far in zip(CHANGES, by_change, strict=True) if far >= limit]
    assert not missed, (by_change, limit)
    assert (found.match.reshape(-1, len(chosen)) == chosen).all()
    named = dict(zip(CHANGES, np.array(found.change).reshape(-1, len(chosen)).tolist(), strict=True))
    assert all(words == "turned by 90 degrees" for words in named["turned by 90"])
    assert all("turned by 15 degrees" in words for words in named["turned by 15"])


@pytest.mark.slow
def test_a_body_of_few_cells_is_like_nobody_and_changes_no_threshold():
    count = NEXT_PATIENTS + 2  # so that distances are relative to large bodies, whether there are others or not
    groups, large = [f"p{i}" for i in range(count)], heads(count, (64, 64), 3)
    noise = 0.5 + 0.4 * ndimage.gaussian_filter(np.random.default_rng(0).normal(size=(2, 64, 64)), (0, 2, 2))
    tiny = np.where(np.hypot(*(np.indices((64, 64)) - 31.5)) < 9, noise, 0.02)
    reference, both = items(large, groups), items(np.concatenate([large, tiny]), [*groups, "t0", "t1"])

    def distances(chosen, of):
        return np.concatenate([d for _, d, _, _ in Structure().distances(chosen, of, all_of, "", apart=False)])

    found = distances(both, both)
    assert (found[:, count:] == 1).all(), "not even itself"
    np.testing.assert_allclose(found[:, :count], distances(both, reference), atol=1e-6)
    apart = patient_distances(Structure(), both, both, all_of, "", apart=True).relative
    alone = patient_distances(Structure(), reference, reference, all_of, "", apart=True).relative
    assert apart.argmin() == alone.argmin() and apart.min() == pytest.approx(alone.min(), abs=1e-6)


@pytest.mark.parametrize("share", [0.6, 0.7, 0.9])
def test_detail_of_a_blend_points_at_its_larger_part(known, share):
    images, groups = known
    reference = items(images, groups)
    detail = Detail("detail", halves=False)
    limit = patient_distances(detail, reference, reference, all_of, "", apart=True).relative.min()
    blends = [share * images[i] + (1 - share) * images[i - 3, ::-1] for i in (1, 6, 11, 16)]
    found = patient_distances(detail, items(np.stack(blends), ["s"] * 4), reference, all_of, "", apart=False)
    assert found.relative.max() < limit
    assert found.match.tolist() == [1, 6, 11, 16] and set(found.change) == {""}


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
def test_a_half_is_enough(known, axis, share):
    images, groups = known
    reference = items(images, groups)
    limit = patient_distances(
        Detail("halves", halves=True), reference, reference, all_of, "", apart=True
    ).relative.min()
    planted = images[[0, 5, 10, 15]].copy()
    rest = np.moveaxis(planted, axis + 1, 1)[:, round(share * 64) :]
    rest[:] = np.moveaxis(images[[7, 12, 17, 2]], axis + 1, 1)[:, round(share * 64) :]
    found = patient_distances(
        Detail("halves", halves=True), items(planted, ["s"] * 4), reference, all_of, "", apart=False
    )
    assert found.relative.max() < limit
    of = np.array([[0, 7], [5, 12], [10, 17], [15, 2]])
    assert (found.match[:, None] == of).any(axis=1).all()


@pytest.mark.slow
def test_volumes_are_found_by_a_slice():
    images = heads(6, (48, 40, 8), 5)
    reference = items(images, [f"p{i}" for i in range(6)])
    turned = np.rot90(images[3], 2, (0, 1))[..., ::-1]
    for comparison in (Structure(), Detail("halves", halves=True)):
        found = patient_distances(comparison, items(turned[None], ["s"]), reference, all_of, "", apart=False)
        apart = patient_distances(comparison, reference, reference, all_of, "", apart=True)
        assert found.match.tolist() == [3] and found.relative[0] < apart.relative.min()
