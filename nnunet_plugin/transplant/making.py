"""Makes a bank of cases, and says which labels are lesions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from .anatomy import Anatomy, planes_with_body, read_anatomy
from .bank import Bank, Fit
from .lesions import Lesion, lesions_of
from .looks import Looks
from .place import usual_surroundings
from .store import ROOM, Maps, OpenFile, Written, files_without_names

LEAST_VARIATION = 0.5  # of a label's volume over cases that have it: 0.14 and 0.17 in hippocampi, 0.8 to 1.1 in tumours


class NoLesionError(ValueError):
    """No case holds a lesion."""


def lesion_labels(volumes: Mapping[int, Sequence[float]]) -> list[int]:
    """Return the labels whose volumes over the cases (0 where a case has none) vary as lesions' do, not as organs'.

    That is a coefficient of variation of 0.5 and more. Organs that some images show in part vary as much.
    """
    return [label for label, sizes in volumes.items() if variation(sizes) >= LEAST_VARIATION]


def variation(sizes: Sequence[float]) -> float:
    """Return the coefficient of variation, the standard deviation over the mean, of the volumes above 0.

    A label that is absent in some cases may be an organ that was cut out or lies outside the image. 0 where less than
    two have it.
    """
    present = [size for size in sizes if size > 0]
    return float(np.std(present) / np.mean(present)) if present else 0.0


def make_bank(
    cases: Iterable[tuple[np.ndarray, np.ndarray, Sequence[float]]],
    dimension: int,
    labels: Sequence[int],
    mirror_axis: int | None = -1,
    seed: int = 0,
    open_file: OpenFile | None = None,
    room: float = ROOM,
) -> Bank:
    """Make the bank of cases `(image (channels, planes, rows, columns), label map, spacing in mm)`, one at a time.

    Label maps hold `UNKNOWN` where nobody looked, and -1 outside of what the image shows.
    With `dimension` 2 its lesions are those of the planes along the first axis (single images have one plane).
    Lesions, anatomies and fits go to files (see `store.files_in`; by default without names), of which about `room`
    bytes are in memory.
    """
    open_file, maps = open_file or files_without_names(), Maps(room)
    written, seen, places, looks = Written(Lesion, open_file), Written(Anatomy, open_file), [], Looks(labels)
    for number, (image, label_map, spacing) in enumerate(cases):
        anatomy = read_anatomy(image, label_map, spacing, dimension, labels)
        seen.append(anatomy)
        planes = planes_with_body(number, anatomy)
        looks.add(anatomy, planes)
        places += planes
        for lesion in _lesions(number, image, label_map, spacing, anatomy, labels, dimension):
            written.append(lesion)
    lesions, anatomies = written.stored(maps), seen.stored(maps)
    if not lesions:
        raise NoLesionError
    bank = Bank(lesions, anatomies, places, usual_surroundings(lesions), [], dimension, tuple(labels), mirror_axis)
    fits = Written(Fit, open_file)
    looks.finish()
    for fit in bank.find_fits(np.random.default_rng(seed), looks):
        fits.append(fit)
    bank.fits = fits.stored(maps)
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
