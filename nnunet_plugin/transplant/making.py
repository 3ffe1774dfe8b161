"""Makes a bank of cases, and says which labels are lesions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from .anatomy import Anatomy, planes_with_body, read_anatomy
from .bank import Bank
from .lesions import Lesion, lesions_of
from .place import usual_surroundings

LEAST_VARIATION = 0.5  # of a label's volume over cases: 0.14 and 0.17 in hippocampi, 0.8 to 1.1 in tumours


def lesion_labels(volumes: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the labels whose volumes over the cases (0 where a case has none) vary as lesions' do, not as organs'.

    That is a coefficient of variation of 0.5 and more.
    """
    return [label for label, sizes in volumes.items() if np.mean(sizes) > 0 and variation(sizes) >= LEAST_VARIATION]


def variation(sizes: Sequence[float]) -> float:
    """Return the coefficient of variation: the standard deviation over the mean."""
    return float(np.std(sizes)) / max(float(np.mean(sizes)), 1e-12)


def make_bank(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
    dimension: int,
    labels: Sequence[int],
    mirror_axis: int | None = -1,
    seed: int = 0,
) -> Bank:
    """Make the bank of cases `(image (channels, planes, rows, columns), label map, spacing in mm)`.

    With `dimension` 2 its lesions are those of the planes along the first axis (single images have one plane).
    """
    lesions: list[Lesion] = []
    anatomies: list[Anatomy] = []
    for number, (image, label_map, spacing) in enumerate(cases):
        anatomy = read_anatomy(image, label_map, spacing, dimension)
        anatomies.append(anatomy)
        lesions += _lesions(number, image, label_map, spacing, anatomy, labels, dimension)
    if not lesions:
        raise ValueError("no lesion in any case")
    places = [place for case, anatomy in enumerate(anatomies) for place in planes_with_body(case, anatomy, dimension)]
    gates = usual_surroundings(lesions)
    bank = Bank(lesions, anatomies, places, gates, [], dimension, tuple(labels), mirror_axis)
    bank.find_fits(np.random.default_rng(seed))
    return bank


def _lesions(
    number: int,
    image: np.ndarray,
    label_map: np.ndarray,
    spacing: Sequence[float],
    anatomy: Anatomy,
    labels: Sequence[int],
    dimension: int,
) -> Iterator[Lesion]:
    if dimension == 3:
        yield from lesions_of(number, image, label_map, spacing, anatomy, labels)
        return
    for plane in np.flatnonzero(np.isin(label_map, labels).any(axis=(1, 2))).tolist():
        view = anatomy.plane(plane)
        yield from lesions_of(number, image[:, plane], label_map[plane], spacing[1:], view, labels)
