"""One lesion into one volume of a user's own, or one out of it: NIfTI in and out, the rest of the file untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.inferers import SimpleInferer
from nnunet_plugin.transplant.anatomy import read_anatomy
from nnunet_plugin.transplant.warp import SPLINES, draw_warp
from nnunet_plugin.voxels import as_image, as_label
from scipy import ndimage
from torch.nn import functional

from ..data.cases import array_axes
from ..data.description import DatasetDescription
from ..data.holes import Intensities, hole_around
from ..data.provenance import read_provenance
from ..networks.lesion_flow import LesionFlow
from ..runtime.errors import InputError
from .painting import Painter, Request
from .sampler import latent_noise, load_weights, same_rounding

BORDER = 3.5  # voxels of the model's finest spacing that a hole reaches around a lesion: the mean of the training
SQUEEZE = 0.15  # standard deviation of the logarithm of a drawn lesion's axes
COARSE, FINE = 8, 1.6  # pixels: the width of the Gaussians along which noise goes from slice to slice
MARK = b"synthaug insert"  # in the header of every mask that is written
SAME = 0.02  # spacings that differ less are not resampled


@dataclass(frozen=True)
class Volume:
    """An image of one file a channel, and what it takes to write it again.

    Attributes:
        files: the images.
        values: `(channels, x, y, z)` float32, in the unit that the header says.
        spacing: millimetres along x, y, z.
    """

    files: list[nib.Nifti1Image]
    values: np.ndarray
    spacing: np.ndarray

    @property
    def affine(self) -> np.ndarray:
        """Voxels to millimetres, any rotation."""
        return np.asarray(self.files[0].affine)


@dataclass(frozen=True)
class Insertion:
    """What was done: the volume, its values then, the label map and the hole `(x, y, z)`, and names of the labels."""

    volume: Volume
    painted: np.ndarray
    label: np.ndarray
    hole: np.ndarray
    labels: dict[str, int]


def insert_lesion(
    image: Sequence[str | Path],
    models: str | Path,
    mask: str | Path | None = None,
    volume: float | None = None,
    centre: Sequence[int] | None = None,
    remove: bool = False,
    seed: int = 0,
    num_steps: int = 16,
) -> Insertion:
    """Paint a lesion into an image, or healthy tissue over one.

    The image's axes are taken as those of the training cases' files; its spacing and rotation may be any, its
    intensities any affine function of theirs. A painter of slices paints them from `slice_noise`.

    Args:
        image: one file a channel.
        models: folder of `model.pt` and `provenance.json`.
        mask: label map on the image's grid: the lesion that is wanted, or with `remove` the one to take away.
        volume, centre: instead of a mask: mm3, and the voxel (x, y, z) around which a lesion of that size is drawn.
        remove: paint healthy tissue over it.
        seed: of the shape and of the noise.
        num_steps: Heun steps.

    Raises:
        InputError: files or settings that cannot be used.
    """
    _check(mask, volume, centre)
    painter, space = _open_painter(Path(models), num_steps)
    description = painter.description
    given = read_volume(image, description.num_image_channels)
    if mask is not None:
        wanted = _read_mask(mask, given, description)
    else:
        assert volume is not None and centre is not None
        wanted = _draw_shape(given, float(volume), centre, description, np.random.default_rng(seed))
    order = _axes_order(space)
    steps, sides = _model_grid(space, given, order, len(painter.steps))
    finest = min(steps[-len(painter.steps) :])
    hole = hole_around(wanted > 0, BORDER * finest / float(given.spacing.min()), given.spacing.tolist())
    label = np.zeros_like(wanted) if remove else wanted

    there = _Resampling(order, given.values.shape[1:], sides)
    values = np.stack([there.image(channel) for channel in given.values])
    masked = any(space["use_mask_for_norm"] or [])
    outside = (values == 0).all(axis=0) if masked else np.zeros(sides, bool)
    anatomy = read_anatomy(values, np.where(outside, -1, 0).astype(np.int16), steps, len(painter.steps))
    intensities = Intensities(anatomy.median, anatomy.scale)
    model_label = np.where(outside, -1, there.label(label)).astype(np.int16)
    model_hole = there.hole(hole) & ~outside
    if not model_hole.any():
        raise InputError("a lesion outside the body", "one inside", "give another --mask or --centre")
    painted = _paint(painter, values, model_label, model_hole, intensities, seed, steps[0])
    back = np.stack([there.back(channel) for channel in painted])
    done = given.values.copy()
    changed = hole & ~(there.back(outside.astype(np.float32)) > 0.5)
    done[:, changed] = back[:, changed]
    return Insertion(given, done, label, changed, description.painted)


def _check(mask: Any, volume: Any, centre: Any) -> None:
    drawn = volume is not None and centre is not None
    if drawn == (mask is not None) or (volume is None) != (centre is None):
        raise InputError(
            f"mask {mask}, volume {volume}, centre {centre}", "a mask, or both a volume and a centre",
            "give --mask FILE, or --volume MM3 --centre '[X,Y,Z]'",
        )  # fmt: skip
    if drawn and (not isinstance(volume, (int, float)) or not 0 < volume < np.inf or len(centre) != 3):
        raise InputError(f"volume {volume}, centre {centre}", "mm3 above 0, and three voxel indices",
                         "mend --volume or --centre")  # fmt: skip


def _open_painter(models: Path, num_steps: int) -> tuple[Painter, dict]:
    record = read_provenance(models / "provenance.json", models / "model.pt")
    if "windows" not in record["training"]:
        raise InputError(f"{models} of the bundle {record['bundle']['name']}", "weights of lesion_flow",
                         "give --bundle_root of a lesion_flow training")  # fmt: skip
    network = LesionFlow(**record["network"], num_steps=num_steps)
    load_weights(network, models / "model.pt", record)
    windows = record["training"]["windows"]
    description = DatasetDescription(**record["description"])
    painter = Painter(
        network.eval(), description, np.array(windows["values"]), tuple(windows["steps"]), SimpleInferer()
    )
    return painter, record["space"]


def read_volume(paths: Sequence[str | Path], channels: int) -> Volume:
    """Read one NIfTI file a channel.

    Raises:
        InputError: they cannot be read, are no volumes, or do not lie on one grid.
    """
    if len(paths) != channels:
        raise InputError(f"{len(paths)} image files", f"{channels}, one a channel of the training cases",
                         "give CASE_0000.nii.gz with CASE_0001.nii.gz, ... beside it")  # fmt: skip
    files = [_load(path) for path in paths]
    for path, file in zip(paths, files, strict=True):
        if file.ndim != 3 or file.shape != files[0].shape or not np.allclose(file.affine, files[0].affine, atol=1e-3):
            raise InputError(f"{path} of shape {file.shape}", "volumes of three axes on one grid",
                             "resample the channels to one grid")  # fmt: skip
    values = np.stack([as_image(np.asarray(file.dataobj), path) for file, path in zip(files, paths, strict=True)])
    if not np.isfinite(values).all():
        raise InputError(f"{paths[0]} with NaN or infinite voxels", "finite intensities", "mend the image")
    return Volume(files, values, np.asarray(nib.affines.voxel_sizes(files[0].affine)))


def _load(path: str | Path) -> nib.Nifti1Image:
    try:
        return nib.Nifti1Image.from_filename(path)
    except (OSError, ValueError, EOFError, nib.filebasedimages.ImageFileError) as error:
        raise InputError(f"{path} cannot be read ({error})", "NIfTI", "check the path") from error


def _read_mask(path: str | Path, given: Volume, description: DatasetDescription) -> np.ndarray:
    file = _load(path)
    label = as_label(np.asarray(file.dataobj), path)
    if label.shape != given.values.shape[1:] or not np.allclose(file.affine, given.affine, atol=1e-3):
        raise InputError(f"{path} of shape {label.shape} on another grid than the image",
                         f"{given.values.shape[1:]}, the image's affine", "resample the mask to the image")  # fmt: skip
    known = description.known_integers - {description.ignore_label}
    if unknown := sorted(set(np.unique(label).tolist()) - known) or (not label.any() and ["nothing"]):
        raise InputError(f"{path} with the labels {unknown}", f"some of {sorted(known - {0})}", "mend the mask")
    return label


def _draw_shape(
    given: Volume, volume: float, centre: Sequence[int], description: DatasetDescription, rng: np.random.Generator
) -> np.ndarray:
    """A ball, squeezed and bent as transplanted lesions are, of so many voxels as the volume says."""
    shape = given.values.shape[1:]
    if len(description.foreground) != 1:
        raise InputError(f"a volume for the labels {[name for name, _ in description.foreground]}",
                         "a data set with one label", "give --mask, which says where each label lies")  # fmt: skip
    if any(not 0 <= c < side for c, side in zip(centre, shape, strict=True)):
        raise InputError(f"centre {list(centre)}", f"a voxel of the image {shape}", "mend --centre")
    count = round(volume / float(np.prod(given.spacing)))
    diameter = 2 * (volume * 3 / (4 * np.pi)) ** (1 / 3)
    warp = draw_warp(rng, np.full(3, diameter / 2), diameter, None, given.spacing)
    reach = np.ceil(1.5 * diameter / given.spacing).astype(int)
    box = [slice(max(0, c - r), min(side, c + r + 1)) for c, r, side in zip(centre, reach, shape, strict=True)]
    axes = [(np.arange(b.start, b.stop) - c) * s for b, c, s in zip(box, centre, given.spacing, strict=True)]
    old = warp.old_offsets(axes) / np.exp(rng.normal(0, SQUEEZE, 3)).reshape(3, 1, 1, 1)
    distance = np.sqrt((old**2).sum(axis=0)).ravel()
    if count < 1 or count > len(distance) / 2:
        raise InputError(f"volume {volume} mm3, {count} voxels", "1 voxel to what the image has room for around it",
                         "give another --volume or --centre")  # fmt: skip
    part = np.zeros(len(distance), bool)
    part[np.argsort(distance, kind="stable")[:count]] = True
    label = np.zeros(shape, np.int16)
    label[tuple(box)] = part.reshape([b.stop - b.start for b in box]) * next(iter(description.painted.values()))
    return label


def _axes_order(space: dict) -> tuple[int, int, int]:
    """Order of the file's axes x, y, z that gives the arrays' depth, height, width."""
    if space["kind"] == "raw":
        return array_axes(space["slice_axis"])
    depth, height, width = (2 - int(axis) for axis in space["transpose_forward"])  # which counts z, y, x
    return depth, height, width


def _model_grid(
    space: dict, given: Volume, order: Sequence[int], dimension: int
) -> tuple[list[float], tuple[int, ...]]:
    """Millimetres and voxels along depth, height, width; for a painter of slices the depth stays as it is."""
    own = given.spacing[list(order)]
    wanted = np.array([float(step or 1.0) for step in space["spacing"]])
    wanted = np.where(np.abs(wanted / own - 1) < SAME, own, wanted)
    if dimension == 2:
        wanted[0] = own[0]
    sides = np.array(given.values.shape[1:])[list(order)]
    new = [max(1, round(float(side * a / b))) for side, a, b in zip(sides, own, wanted, strict=True)]
    return [float(side * step / n) for side, step, n in zip(sides, own, new, strict=True)], tuple(new)


@dataclass(frozen=True)
class _Resampling:
    """Between the file's grid `(x, y, z)` and the model's `(depth, height, width)`; voxels tile the same box."""

    order: Sequence[int]
    shape: Sequence[int]
    sides: Sequence[int]

    def image(self, values: np.ndarray) -> np.ndarray:
        """Intensities on the model's grid; smoothed first where it is coarser."""
        return self._there(values, SPLINES)

    def label(self, label: np.ndarray) -> np.ndarray:
        """Label map on the model's grid: the likeliest label where they are foreground by half or more."""
        present = np.unique(label[label != 0])
        if not len(present):
            return np.zeros(self.sides, label.dtype)
        shares = np.stack([self._there((label == value).astype(np.float32), 1) for value in present])
        return np.where(shares.sum(axis=0) >= 0.5, present[shares.argmax(axis=0)], 0)

    def hole(self, hole: np.ndarray) -> np.ndarray:
        """Every voxel of the model that the hole touches."""
        return self._there(hole.astype(np.float32), 1) > 0.01

    def back(self, values: np.ndarray) -> np.ndarray:
        """Intensities of the model's grid on the file's."""
        shape = [self.shape[axis] for axis in self.order]
        return self._resampled(values, shape, SPLINES).transpose(np.argsort(self.order))

    def _there(self, values: np.ndarray, order: int) -> np.ndarray:
        values = values.transpose(self.order)
        factors = np.array(values.shape) / self.sides
        smooth = np.where(factors > 1, (factors - 1) / 2, 0)
        return self._resampled(ndimage.gaussian_filter(values, smooth) if smooth.any() else values, self.sides, order)

    @staticmethod
    def _resampled(values: np.ndarray, sides: Sequence[int], order: int) -> np.ndarray:
        """Splines of this order, within the range of the values."""
        if tuple(values.shape) == tuple(sides):
            return values
        factors = [new / old for new, old in zip(sides, values.shape, strict=True)]
        moved = ndimage.zoom(values, factors, order=order, mode="nearest", grid_mode=True)
        return moved.clip(values.min(), values.max())


def _paint(
    painter: Painter, values: np.ndarray, label: np.ndarray, hole: np.ndarray, intensities: Intensities, seed: int,
    depth: float,
) -> np.ndarray:  # fmt: skip
    """The volume `(channels, depth, height, width)` painted: whole, or slices that lie `depth` mm apart."""
    with same_rounding(torch.get_num_threads()):
        if len(painter.steps) == 3:
            whole_noise = partial(latent_noise, seed=seed, index=0)
            return painter.paint([Request(values, label, hole, intensities, whole_noise)])[0]
        done = values.copy()
        planes = np.flatnonzero(hole.any(axis=(1, 2))).tolist()
        whole = np.asarray(hole.any(axis=0))  # one window for all of them

        @cache
        def noises(shape: tuple[int, ...]) -> torch.Tensor:
            apart = depth / float(np.prod(painter.steps)) ** 0.5
            return slice_noise(shape, planes[-1] - planes[0] + 1, apart, seed)

        def noise(shape: Sequence[int], plane: int) -> torch.Tensor:
            return noises(tuple(shape))[plane - planes[0]]

        requests = [
            Request(values[:, plane], label[plane], hole[plane], intensities, partial(noise, plane=plane), whole)
            for plane in planes
        ]
        for plane, painted in zip(planes, painter.paint(requests), strict=True):
            done[:, plane] = painted
        return done


def slice_noise(shape: Sequence[int], count: int, apart: float, seed: int) -> torch.Tensor:
    """Standard normal noise of neighbouring slices `(count, channels, height, width)`, white in each of them.

    From the same noise in all slices a lesion becomes a bundle of stripes across them, from independent noise it
    flickers. So that of squares of `COARSE` pixels, which says where a lesion is bright or dark, changes over as many
    pixels' way across the slices, and what is finer, its texture, over `FINE`.

    Args:
        shape: of a slice's noise, `(channels, height, width)`.
        count: of slices.
        apart: from one slice to the next, in pixels.
        seed: of the noise.
    """
    coarse, fine = (
        _changing(latent_noise((count, *shape), seed, number), width / apart)
        for number, width in enumerate((COARSE, FINE))
    )
    return _squares(coarse) + fine - _squares(fine)


def _changing(noise: torch.Tensor, width: float) -> torch.Tensor:
    """Noise smoothed along its first axis by a Gaussian of this width, of variance 1 as before."""
    distance = torch.arange(len(noise), dtype=torch.float64)
    weights = torch.exp(-((distance[:, None] - distance) ** 2) / (2 * width**2))
    weights /= weights.square().sum(dim=1, keepdim=True).sqrt()
    return torch.einsum("ij,j...->i...", weights.float(), noise)


def _squares(noise: torch.Tensor) -> torch.Tensor:
    """The mean of each square, in all of its pixels."""
    means = functional.avg_pool2d(noise, COARSE, ceil_mode=True, count_include_pad=False)
    height, width = noise.shape[-2:]
    return means.repeat_interleave(COARSE, -2).repeat_interleave(COARSE, -1)[..., :height, :width]


def refuse_foreign_insertion(paths: Sequence[Path], mask_out: Path) -> None:
    """Refuse to write over files that are there, unless the mask among them says that `write_insertion` wrote them.

    Raises:
        InputError: names the first of them.
    """
    there = [path for path in (*paths, mask_out) if path.exists()]
    try:
        is_ours = nib.Nifti1Image.from_filename(mask_out).header["descrip"].item() == MARK
    except Exception:  # no NIfTI file: readers raise many kinds
        is_ours = False
    if there and not is_ours:
        raise InputError(f"{there[0]}, which this command did not write", "a name that is free", "give another OUT")


def write_insertion(done: Insertion, out: Sequence[str | Path], mask_out: str | Path) -> None:
    """Write the label map and the channels; voxels outside the hole keep their bits, and every file its type.

    The mask, by which a file is known to be of this command, gets its name first, when all are written.
    """
    paths = [Path(path) for path in (mask_out, *out)]
    temporary = [path.with_name(f".partial.{path.name}") for path in paths]
    try:
        for image, path in zip(_images(done), temporary, strict=True):
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(image, path)  # type: ignore[attr-defined]
        for path, target in zip(temporary, paths, strict=True):
            path.replace(target)
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)


def _images(done: Insertion) -> Iterator[nib.Nifti1Image]:
    """The label map, then the channels."""
    label = nib.Nifti1Image(done.label.astype(np.uint8), done.volume.affine, done.volume.files[0].header)
    label.set_data_dtype(np.uint8)
    label.header.set_slope_inter(1, 0)
    label.header["descrip"] = MARK
    label.header["cal_min"] = label.header["cal_max"] = 0
    yield label
    for file, values in zip(done.volume.files, done.painted, strict=True):
        stored_as: Any = file.dataobj
        raw, slope, inter = np.array(stored_as.get_unscaled()), float(stored_as.slope), float(stored_as.inter)
        stored = (values[done.hole] - inter) / slope
        if np.issubdtype(raw.dtype, np.integer):
            limits = np.iinfo(raw.dtype)
            stored = np.clip(np.round(stored), limits.min, limits.max)
        raw[done.hole] = stored.astype(raw.dtype)
        image = nib.Nifti1Image(raw, file.affine, file.header)
        image.header.set_slope_inter(slope, inter)
        yield image
