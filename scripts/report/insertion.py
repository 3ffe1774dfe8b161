"""What `synthaug insert` leaves: the images, the mask, and a picture of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage

from ..runtime.errors import InputError
from ..sampling.insertion import Insertion, insert_lesion, refuse_foreign_insertion, write_insertion
from .figures import save_png
from .sheets import SheetRow, draw_sheet

ENDINGS = (".nii.gz", ".nii")
SIDE = 128  # pixels of a plane
MARGIN = 2.0  # planes show so many times what was painted
LEAST = 60.0  # millimetres that they show at least


def insert(
    image: str | Path,
    out: str | Path,
    bundle_root: str | Path,
    mask: str | Path | None = None,
    volume: float | None = None,
    centre: Sequence[int] | None = None,
    remove: bool = False,
    seed: int = 0,
    num_steps: int = 16,
) -> Path:
    """See `insert_lesion`; writes OUT, OUT_mask and OUT.png, and returns the picture's path."""
    source = Path(image)
    name, ending = _split(source)
    images = [source]
    if name.endswith("_0000"):
        found = [source.with_name(f"{name[:-4]}{number:04d}{ending}") for number in range(1, 100)]
        images += [path for path in found if path.is_file()]
    base, out_ending = _split(Path(out))
    base = base.removesuffix("_0000")
    numbers = [f"_{number:04d}" for number in range(len(images))] if len(images) > 1 else [""]
    outputs = [Path(out).with_name(f"{base}{number}{out_ending}") for number in numbers]
    mask_out, picture = (Path(out).with_name(f"{base}{last}") for last in (f"_mask{out_ending}", ".png"))
    given = [*images, *([] if mask is None else [Path(mask)])]
    if {path.resolve() for path in given} & {path.resolve() for path in (*outputs, mask_out)}:
        raise InputError(f"{out}, which is the image itself, or the mask", "a name of its own", "give another OUT")
    refuse_foreign_insertion([*outputs, picture], mask_out)
    folder = Path(bundle_root)
    models = folder if (folder / "provenance.json").is_file() else folder / "models"
    done = insert_lesion(images, models, mask, volume, centre, remove, seed, num_steps)
    write_insertion(done, outputs, mask_out)
    return insertion_picture(done, picture)


def _split(path: Path) -> tuple[str, str]:
    ending = next((ending for ending in ENDINGS if path.name.endswith(ending)), None)
    if ending is None:
        raise InputError(f"{path}", f"a name that ends in {' or '.join(ENDINGS)}", "mend the name")
    return path.name.removesuffix(ending), ending


def insertion_picture(done: Insertion, path: Path) -> Path:
    """Write the three planes through the middle of what was painted, before and after, in square pixels."""
    places = np.argwhere(done.hole)
    spacing = done.volume.spacing
    low, high = places.min(axis=0), places.max(axis=0)
    reach = max(LEAST, MARGIN * float(((high - low + 1) * spacing).max())) / 2
    # The middle of the lesion, where one is left, lies in what is shown.
    middle = np.argwhere(done.label > 0).mean(axis=0) if (done.label[done.hole] > 0).any() else (low + high) / 2
    offsets = np.linspace(-reach, reach, SIDE)
    points = []
    for axis in range(3):
        first, second = (other for other in range(3) if other != axis)
        point = np.repeat(middle[:, None, None], SIDE, axis=1).repeat(SIDE, axis=2)
        # Rows run down the later axis, from its end: what is above in a patient is above in the picture.
        point[first] += offsets[None, :] / spacing[first]
        point[second] -= offsets[:, None] / spacing[second]
        points.append(point)

    def planes(values: np.ndarray, order: int) -> np.ndarray:
        shown = [ndimage.map_coordinates(values, point, order=order, mode="constant") for point in points]
        return np.stack(shown)

    def channels(values: np.ndarray) -> np.ndarray:
        return np.stack([planes(channel, 1) for channel in values], axis=1)

    label = planes(done.label.astype(np.uint8), 0)
    rows = [
        SheetRow("before", channels(done.volume.values), np.zeros_like(label), ["across x", "across y", "across z"]),
        SheetRow("after", channels(done.painted), label),
    ]
    both = np.concatenate([row.images for row in rows])
    window = [tuple(np.percentile(both[:, c], [0.5, 99.8]).tolist()) for c in range(both.shape[1])]
    window = [(low, high if high > low else low + 1) for low, high in window]
    origin = "0.5th to 99.8th percentile of before and after"
    sheet = draw_sheet(rows, done.labels, title="synthaug insert", window=window, unit="plane", origin=origin)
    return save_png(sheet, path)
