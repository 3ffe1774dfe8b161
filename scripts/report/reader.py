"""`synthaug reader`: one page on which a radiologist tells held-out real images from synthetic ones, blinded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..data.geometry import SliceGeometry
from ..metrics.item_sets import OpenedPool, open_pool, scaled_sample
from ..pool.adopt import origin, user_word
from ..runtime.errors import InputError
from ..runtime.files import refuse_foreign, write_text
from .sheets import grey_window

TEMPLATE = Path(__file__).with_name("reader.html")
TITLE = "<title>Reader's test</title>"
LEVELS = 4095  # 12 bits, so that a narrow window does not show steps
PERCENTILES = (0.5, 99.5)


class Picture(NamedTuple):
    """What a reader judges: image (depth channels height width) in [0, 1], label (depth height width), its origin."""

    image: np.ndarray
    label: np.ndarray
    source: str


def write_reader(
    pool_dir: str | Path, dataset_dir: str | Path, output: str | Path, count: int = 40, slices: int = 1, seed: int = 0
) -> Path:
    """Write a page on which a radiologist tells real images from synthetic ones, in an order that a seed shuffles.

    No server: the page works offline, and ends with the accuracy, its interval, and a JSON file to save. Half of the
    images are of patients that the generator never saw (of its training patients where it saw all), half are samples
    that the audit keeps. Each shows foreground, in a field of the median size of the real cases, on the pool's grid and
    in the generator's scaling; all are windowed and encoded alike, so that only the picture tells them apart.

    Args:
        pool_dir: A finished pool, of slices or volumes.
        dataset_dir: The data set that its generator was trained on.
        output: The HTML file; the same arguments give the same bytes.
        count: Images in all; an odd number is one less.
        slices: Of volumes, the slices that an image has, to be scrolled through; the lesion is in the middle one.
        seed: The seed of choice and order.

    Example:
        synthaug reader pool_fold0 /data/nnUNet_preprocessed/Dataset501_LGG reader.html --count 60

    Raises:
        InputError: pool, data set or settings cannot be used, or there are too few images.
    """
    for name, value, least in (("count", count, 2), ("slices", slices, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"--{name} {value!r}", f"a whole number of at least {least}", f"mend --{name}")
    refuse_foreign(output, TITLE)
    pool = open_pool(pool_dir, dataset_dir)
    if slices > 1 and pool.dimension == 2:
        raise InputError(f"--slices {slices} of a pool of slices", "1", "leave --slices out, or give a pool of volumes")
    rng, cut = np.random.default_rng(seed), _Cutter(pool, slices)
    real = _real(pool, count // 2, cut, rng)
    synthetic = _synthetic(pool, count // 2, cut, rng)
    if min(len(real), len(synthetic)) < count // 2:
        raise InputError(
            f"{len(real)} real and {len(synthetic)} synthetic images with foreground and {slices} slices",
            f"{count // 2} of each (--count {count})",
            "sample a larger pool, or lower --count or --slices",
        )
    kinds = ["real"] * len(real) + ["synthetic"] * len(synthetic)
    order = rng.permutation(len(kinds))
    pictures = [[*real, *synthetic][i] for i in order]
    about = {
        "words": _words(pool, len(real)),
        "pool": Path(pool_dir).resolve().name,
        "dataset": pool.description.name,
        "real_cases": "held-out" if pool.held_out else "training",
        "seed": seed,
        "slices": slices,
    }
    key = {"truth": [kinds[i] for i in order], "sources": [picture.source for picture in pictures], "about": about}
    return write_text(output, page(pictures, key, pool))


def page(pictures: list[Picture], key: dict[str, Any], pool: OpenedPool) -> str:
    """The page of these pictures, all of one shape."""
    content: dict[str, Any] = {
        "shape": [pictures[0].image.shape[0], *pictures[0].image.shape[2:]],
        "spacing": list(pool.cases.spacing[1:]),
        "channels": list(pool.description.channel_names.values()),
        "labels": [{"name": name, "value": value} for name, value in pool.description.painted.items()],
        "windows": [[round(x, 4) for x in window] for window in _window(pictures)],
        "images": [_text(np.rint(LEVELS * picture.image.clip(0, 1)).astype("<u2")) for picture in pictures],
        "masks": [_text(picture.label.astype(np.uint8)) for picture in pictures],
    }
    study = hashlib.sha256(json.dumps([content, key], sort_keys=True).encode()).hexdigest()[:16]
    content |= {"study": study, "key": _text(hidden(json.dumps(key).encode(), study))}
    return TEMPLATE.read_text().replace("@DATA@", json.dumps(content).replace("<", "\\u003c"))


def hidden(data: bytes, study: str) -> np.ndarray:
    """Bytes that nobody reads in passing, and the page can; twice gives them back.

    Exclusive or with the high bytes of a congruential generator (Numerical Recipes) that starts at the study's number.
    """
    number, stream = int(study[:8], 16), bytearray()
    for _ in data:
        number = (number * 1664525 + 1013904223) % 2**32
        stream.append(number >> 24)
    return np.frombuffer(data, np.uint8) ^ np.frombuffer(bytes(stream), np.uint8)


def _window(pictures: list[Picture]) -> list[tuple[float, float]]:
    return grey_window(np.concatenate([picture.image for picture in pictures]), PERCENTILES)


def _text(array: np.ndarray) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")


def _words(pool: OpenedPool, each: int) -> str:
    """What the reader is told at the end."""
    patients = "that the generator never saw" if pool.held_out else "of the generator's training: it saw all"
    own = user_word(pool.record)
    return (
        f"{each} real images of patients {patients}, and {each} samples of {origin(pool.record)}. The interval takes "
        "images as independent, though some are of one patient." + (f" {own}" if own else "")
    )


class _Cutter:
    """Cuts images out of cases and samples, all of one shape.

    The field has the median height and width of the real cases: around small cases it would show the padding, which
    real images have exactly, and samples only nearly.
    """

    def __init__(self, pool: OpenedPool, slices: int):
        self.slices, self.shape = slices, (pool.shape[1], pool.shape[2])
        shapes = np.array([pool.cases.load(name).label.shape[1:] for name in (*pool.training, *pool.held_out)])
        self.field = np.minimum(np.median(shapes, axis=0).astype(int), self.shape)

    def __call__(
        self, name: str, image: np.ndarray, label: np.ndarray, usable: np.ndarray, rng: np.random.Generator
    ) -> Iterator[Picture]:
        """Images of one case or sample in random order; no slice is in two of them, nor are neighbours.

        Args:
            name: of the case or sample.
            image: `(channel, depth, height, width)` in [0, 1].
            label: `(depth, height, width)`, painted.
            usable: `(depth,)` bool, which slices may be shown.
            rng: decides on the order.
        """
        plane = SliceGeometry(self.shape, self.shape)  # pads and cuts, no zoom
        grid = plane.to_grid(np.ascontiguousarray(image.swapaxes(0, 1)), image.min(axis=(1, 2, 3))).numpy()
        painted = plane.to_grid(label[:, None].astype(np.float32), np.zeros(1))[:, 0].numpy().astype(np.uint8)
        free = usable.copy()
        for centre in rng.permutation(np.flatnonzero(painted.any(axis=(1, 2)))).tolist():
            start = centre - self.slices // 2
            part = slice(start, start + self.slices)
            if start < 0 or part.stop > len(grid) or not free[part].all():
                continue
            free[max(0, start - 1) : part.stop + 1] = False
            rows, columns = self._around(painted[centre])
            where = f", slice {centre}" if len(grid) > 1 else ""
            yield Picture(grid[part, :, rows, columns], painted[part, rows, columns], name + where)

    def _around(self, mask: np.ndarray) -> tuple[slice, slice]:
        middle = np.argwhere(mask).mean(axis=0)
        first = np.clip(np.rint(middle - self.field / 2).astype(int), 0, np.array(self.shape) - self.field)
        rows, columns = (slice(int(a), int(a + size)) for a, size in zip(first, self.field, strict=True))
        return rows, columns


def _real(pool: OpenedPool, wanted: int, cut: _Cutter, rng: np.random.Generator) -> list[Picture]:
    """Images of the held-out patients, as many of each as of the others where they have them."""
    description = pool.description
    each = []
    for name in rng.permutation(pool.held_out or pool.training).tolist():
        case = pool.cases.load(name)
        painted = description.to_label_map(description.to_channels(case.label))
        ignored = case.label == (-1 if description.ignore_label is None else description.ignore_label)
        each.append(cut(name, pool.scaling.apply(case), painted, ~ignored.any(axis=(1, 2)), rng))
    rounds = zip_longest(*each)  # one of every patient, then another of every patient
    return list(islice((picture for turn in rounds for picture in turn if picture is not None), wanted))


def _synthetic(pool: OpenedPool, wanted: int, cut: _Cutter, rng: np.random.Generator) -> list[Picture]:
    """One image of each sample."""
    found: list[Picture] = []
    for name in rng.permutation(pool.kept).tolist():
        image, label = scaled_sample(pool, name)
        found += islice(cut(name, image, label, np.ones(len(label), bool), rng), 1)
        if len(found) == wanted:
            break
    return found
