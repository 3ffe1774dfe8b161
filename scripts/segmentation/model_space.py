"""Whole images to the grid of a trained network, and its predictions back to the grid of the image's own file."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.data.utils import affine_to_spacing, orientation_ras_lps
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TraceKeys
from nibabel.orientations import apply_orientation, axcodes2ornt, ornt_transform
from torch.nn import functional as F

from ..data.cases import Case, PreprocessedCases, RawCases, array_axes
from ..data.description import DatasetDescription
from ..data.geometry import SliceGeometry, VolumeGeometry, geometry_from_record
from ..data.preprocessing import mask_of, preprocess, read_plans
from ..data.reading import WholeReader
from ..data.scaling import Scaling
from ..data.training_set import TrainingSet
from ..runtime.errors import InputError
from ..runtime.files import read_record
from .normalisation import ZScore

OUTSIDE = -100.0  # logit where nnU-Net cropped the image away: surely no foreground
READERS = {  # of nnU-Net: to which axes they turn a file; None: they leave it as it is
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NibabelIOWithReorient": "RAS",
}
TRAINED: dict[str, type | tuple[type, ...]] = {
    "description.name": str, "space": dict, "scaling.low": list, "geometry.field_of_view": list, "training": dict,
}  # fmt: skip
ARRAY_ENDINGS = (".b2nd", ".npz")  # of nnU-Net's preprocessed cases, the second before its version 2.6
PROPERTIES = "nnunet_properties"
SEGMENTATION = "nnunet_segmentation"


@dataclass(frozen=True)
class ModelSpace:
    """What was done to the training cases, for images of any size.

    Attributes:
        description: channels and labels.
        space: record of axes, spacing and normalisation, as of `Cases`.
        scaling, geometry: the maps of the training set.
        plans: nnU-Net's plans with the one configuration, resolved; None in a raw space.
        z_score: what follows the scaling to [0, 1]; None: nothing.
        axes: voxel order of the raw training files, such as "LPS", to which other files are turned; None in a
            preprocessed space.
    """

    description: DatasetDescription
    space: dict
    scaling: Scaling
    geometry: SliceGeometry | VolumeGeometry
    plans: dict | None
    z_score: ZScore | None = None
    axes: str | None = None

    @classmethod
    def of(cls, data: TrainingSet, z_score: ZScore | None = None) -> ModelSpace:
        """The space of a training set.

        Raises:
            InputError: images that no prediction could be brought back to.
        """
        plans = read_plans(data.cases) if isinstance(data.cases, PreprocessedCases) else data.cases.plans
        space = cls(
            data.cases.description, data.cases.space, data.scaling, data.geometry, plans, z_score, _axes_of(data)
        )
        if plans is not None:
            space._axes_of_reader()  # said before a training, not at its first validation
        return space

    @classmethod
    def open(cls, space: ModelSpace | str | Path) -> ModelSpace:
        """The space itself, or that of the network that `provenance.json` describes.

        Raises:
            InputError: nothing was trained there.
        """
        if isinstance(space, ModelSpace):
            return space
        if not Path(space).is_file():
            raise InputError(
                f"no {space}",
                "the models folder that a finished training leaves",
                "train first: python -m monai.bundle run --config_file configs/train.json",
            )
        record = read_record(space, TRAINED, "restore the models folder, or train again")
        return cls(
            DatasetDescription(**record["description"]),
            record["space"],
            Scaling.from_record(record["scaling"]),
            geometry_from_record(record["geometry"]),
            record["training"]["plans"],
            ZScore.from_record(record["training"].get("z_score")),
            record["training"].get("axes"),
        )

    def to_grid(self, image: MetaTensor) -> tuple[torch.Tensor, dict]:
        """Image of a file `(channel, x, y, z)` to `(channel, height, width, depth)`, and the way back.

        It is in [0, 1], or normalised as that of the training was.

        Slices keep their number, volumes get the depth of the grid. An image larger than those of the training gets
        a larger grid of the same resolution, so that nothing is cut off.

        Raises:
            InputError: the image is of another kind than the training cases.
        """
        if image.shape[0] != self.description.num_image_channels or image.ndim != 4:
            raise InputError(
                f"{_name(image)} of shape {tuple(image.shape)} (channel x y z)",
                f"three axes and the channels {self.description.channel_names}",
                "give the channels as CASE_0000, CASE_0001, ...",
            )
        case, way = self._to_space(image)
        geometry = _geometry_of(self.geometry, case.label.shape)
        scaled = self.scaling.apply(case)
        fill = scaled.min(axis=(1, 2, 3))
        if isinstance(geometry, SliceGeometry):
            grid = geometry.to_grid(np.ascontiguousarray(scaled.swapaxes(0, 1)), fill).permute(1, 2, 3, 0)
        else:
            grid = geometry.to_grid(scaled[None], fill)[0]
        grid = grid.clamp(0, 1).contiguous()
        if self.z_score is not None:
            grid = self.z_score.of_case(scaled, case.inside)(grid)
        return grid, {"shape": case.label.shape, **way}

    def to_file(self, logits: torch.Tensor, way: Mapping[str, Any]) -> torch.Tensor:
        """Logits `(label, height, width, depth)` of a grid to `(label, x, y, z)` of the image's file."""
        shape = way["shape"]
        geometry = _geometry_of(self.geometry, shape)
        if isinstance(geometry, SliceGeometry):
            plane = geometry
            room = geometry.from_grid(logits.permute(3, 0, 1, 2)).transpose(0, 1)
        else:
            plane = geometry.plane
            room = geometry.from_grid(logits[None])[0]
        sides = zip(shape[1:], plane.canvas, plane.field_of_view, strict=True)
        top, left = ((canvas - side) // 2 - (canvas - view) // 2 for side, canvas, view in sides)
        array = room[:, :, top : top + shape[1], left : left + shape[2]]
        if way["properties"] is None:
            array = _resized(array, way["plane"])
            array = array.permute(0, *(1 + np.argsort(array_axes(self.space["slice_axis"]))))
        else:
            array = self._uncrop(array, way["properties"]).permute(0, 3, 2, 1)
        turned = way.get("turned")
        return array if turned is None else torch.from_numpy(_turn(array.numpy(), *reversed(turned)))

    def _to_space(self, image: MetaTensor) -> tuple[Case, dict]:
        """The image as the training cases were, and what the way back needs."""
        array, name = np.asarray(image, np.float32), _name(image)
        wanted = self.axes if self.plans is None else self._axes_of_reader()
        turned = None if wanted is None else (_axes(image.affine), wanted)
        way = {"properties": None, "turned": turned}
        if PROPERTIES in image.meta:  # an array was turned before it was preprocessed
            properties = image.meta[PROPERTIES]
            return _case(name, array, self._inside(image.meta[SEGMENTATION])), {**way, "properties": properties}
        spacing = np.asarray(affine_to_spacing(image.affine, 3))
        if turned is not None:
            array = _turn(array, *turned)
            spacing = spacing[_order(*turned)]
        if self.plans is None:
            order = array_axes(self.space["slice_axis"])
            volume = array.transpose(0, *(1 + axis for axis in order))
            plane = volume.shape[2:]
            # Only in the plane, as nnU-Net's 2d configuration: slices are taken as they are, and volumes are brought
            # to one depth anyway.
            ratio = spacing[list(order[1:])] / np.asarray(self.space["spacing"][1:])
            if not np.allclose(ratio, 1, rtol=0.05):
                size = [max(1, round(side * factor)) for side, factor in zip(plane, ratio, strict=True)]
                volume = _resized(torch.from_numpy(np.ascontiguousarray(volume)), size).numpy()
            return _case(name, volume, np.ones(volume.shape[1:], bool)), {**way, "plane": plane}
        data, seg, properties = self._preprocess(array, None, spacing)
        return _case(name, data, self._inside(seg[0])), {**way, "properties": properties}

    def _axes_of_reader(self) -> str | None:
        """The axes that nnU-Net's reader turns files to, if it does.

        Raises:
            InputError: a reader of other images than volumes.
        """
        assert self.plans is not None
        reader = self.plans["image_reader_writer"]
        if reader not in READERS:
            raise InputError(
                f"plans that read images with {reader}",
                f"plans with one of {', '.join(READERS)}",
                "plan the data set with one of these readers",
            )
        return READERS[reader]

    def to_case(self, name: str, image: MetaTensor, label: np.ndarray) -> Case:
        """Image `(channel, x, y, z)` and label `(x, y, z)` of files as nnU-Net preprocesses a training case."""
        spacing = np.asarray(affine_to_spacing(image.affine, 3))
        data, seg, _ = self._preprocess(np.asarray(image, np.float32), label, spacing)
        return Case(name, data, np.maximum(seg[0], 0).astype(np.int16), self._inside(seg[0]))

    @property
    def is_3d(self) -> bool:
        """The space is that of a 3D configuration of nnU-Net."""
        return self.plans is not None and len(self._nnunet()[1].spacing) == 3

    def _preprocess(self, image: np.ndarray, label: np.ndarray | None, spacing: np.ndarray) -> tuple[Any, Any, dict]:
        assert self.plans is not None
        return preprocess(image, label, spacing, self.plans, self.space["configuration"], self.description)

    def _inside(self, seg: np.ndarray) -> np.ndarray:
        return mask_of(seg, self.space)

    def _uncrop(self, logits: torch.Tensor, properties: Mapping[str, Any]) -> torch.Tensor:
        """`(label, depth, height, width)` as preprocessed to `(label, z, y, x)` as in the file, as nnU-Net does it."""
        manager, configuration = self._nnunet()
        spacing = [properties["spacing"][axis] for axis in manager.transpose_forward]
        current = [*spacing[: 3 - len(configuration.spacing)], *configuration.spacing]
        cropped = configuration.resampling_fn_probabilities(
            logits.cpu(), properties["shape_after_cropping_and_before_resampling"], current, spacing
        )
        whole = torch.full((len(logits), *properties["shape_before_cropping"]), OUTSIDE)
        box = (slice(*bounds) for bounds in properties["bbox_used_for_cropping"])
        whole[(slice(None), *box)] = torch.as_tensor(cropped, dtype=torch.float32)
        return whole.permute(0, *(1 + axis for axis in manager.transpose_backward))

    def _nnunet(self) -> tuple[Any, Any]:
        from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

        manager = PlansManager(self.plans)
        return manager, manager.get_configuration(self.space["configuration"])


def window(space: ModelSpace | str | Path, untrained: Sequence[int]) -> list[int]:
    """The grid that a network was trained on, as the window of an inferer; before any training, `untrained`.

    With a larger one, which is filled up with zeros where the image ends, a network sees what no training showed.
    """
    if not isinstance(space, ModelSpace) and not Path(space).is_file():
        return list(untrained)
    return list(ModelSpace.open(space).geometry.spatial_size)


def _geometry_of(geometry: SliceGeometry | VolumeGeometry, shape: Sequence[int]) -> SliceGeometry | VolumeGeometry:
    """The geometry for a case `(depth, height, width)`: the same, or with more room at the same resolution."""
    plane = geometry if isinstance(geometry, SliceGeometry) else geometry.plane
    size, view = [], []
    for side, grid, canvas, seen in zip(shape[1:], plane.spatial_size, plane.canvas, plane.field_of_view, strict=True):
        size.append(round(grid * max(canvas, side) / canvas))
        view.append(max(seen, side))
    larger = SliceGeometry((size[0], size[1]), (view[0], view[1]))
    if isinstance(geometry, SliceGeometry):
        return larger
    return replace(
        geometry,
        spatial_size=(*larger.spatial_size, geometry.spatial_size[2]),
        field_of_view=larger.field_of_view,
        depth=shape[0],
    )


def _axes_of(data: TrainingSet) -> str | None:
    """Voxel order of raw training files, as of the first of them."""
    if not isinstance(data.cases, RawCases) or data.cases.plans is not None:
        return None
    return _axes(data.cases.affine_of(data.cases.fold.train[0]))


def _axes(affine: np.ndarray | torch.Tensor) -> str:
    """Where the axes of a file point, such as "LPS"."""
    return "".join(nib.aff2axcodes(np.asarray(affine)))


def _turn(array: np.ndarray, before: str, after: str) -> np.ndarray:
    """Array `(channel, x, y, z)` of one voxel order in another one."""
    transform = ornt_transform(axcodes2ornt(before), axcodes2ornt(after))
    return np.ascontiguousarray(np.moveaxis(apply_orientation(np.moveaxis(array, 0, -1), transform), -1, 0))


def _order(before: str, after: str) -> list[int]:
    """Which axis before stands at each place after."""
    transform = ornt_transform(axcodes2ornt(before), axcodes2ornt(after))
    return np.argsort(transform[:, 0]).tolist()


def _resized(volume: torch.Tensor, plane: Sequence[int]) -> torch.Tensor:
    """`(channel, depth, height, width)` with slices of another size."""
    if tuple(volume.shape[2:]) == tuple(plane):
        return volume
    return F.interpolate(volume, tuple(plane), mode="bilinear", align_corners=False, antialias=True)


def _case(name: str, image: np.ndarray, inside: np.ndarray) -> Case:
    return Case(name, image, np.zeros(image.shape[1:], np.int16), inside)


def _name(image: MetaTensor) -> str:
    return str(image.meta.get("filename_or_obj", "an image"))


class ImageReader(WholeReader):
    """Reads NIfTI, and arrays as nnU-Net preprocessed them `(channel, depth, height, width)`, for MONAI's `LoadImage`.

    The affine of an array is that of the image it was made from, so that a prediction can be brought back to it.
    """

    def verify_suffix(self, filename: Any) -> bool:
        """Whether the file is of one of the two kinds."""
        return _array_path(filename) is not None or super().verify_suffix(filename)

    def read(self, data: Any, **kwargs: Any) -> Any:
        """Open images; an array is opened by `get_data`."""
        return _array_path(data) or super().read(data, **kwargs)

    def get_data(self, img: Any) -> tuple[np.ndarray, dict]:
        """Voxels and what is known of them.

        Raises:
            InputError: the file beside an array does not say where in the image it lies.
        """
        if not isinstance(img, Path):
            return super().get_data(img)
        from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2, nnUNetDatasetNumpy

        reader = nnUNetDatasetBlosc2 if img.suffix == ".b2nd" else nnUNetDatasetNumpy
        data, seg, _, properties = reader(str(img.parent), [img.stem]).load_case(img.stem)
        kept = ("spacing", "shape_before_cropping", "bbox_used_for_cropping",
                "shape_after_cropping_and_before_resampling")  # fmt: skip
        if not set(kept) <= set(properties):
            raise InputError(
                f"{img.with_suffix('.pkl')} without {', '.join(sorted(set(kept) - set(properties)))}",
                "what nnU-Net's preprocessing stores",
                "run nnUNetv2_preprocess again",
            )
        image = np.asarray(data[:], np.float32)
        return image, {
            "affine": _affine(properties, img),
            "original_channel_dim": 0,
            PROPERTIES: {name: properties[name] for name in kept},
            SEGMENTATION: np.asarray(seg[:])[0],
        }


def _array_path(filename: Any) -> Path | None:
    """The one file, if it is an array of nnU-Net."""
    paths = [Path(path) for path in (filename if isinstance(filename, (list, tuple)) else [filename])]
    return paths[0] if paths[0].suffix in ARRAY_ENDINGS else None


def _affine(properties: Mapping[str, Any], path: Path) -> np.ndarray:
    """Affine (RAS, x y z) of the image that an array was made from."""
    if "nibabel_stuff" in properties:
        return np.asarray(properties["nibabel_stuff"]["original_affine"])
    stuff = properties.get("sitk_stuff")
    if stuff is None or len(stuff["spacing"]) != 3:
        raise InputError(
            f"{path}, made from something else than a volume",
            f"volumes that nnU-Net read with one of {', '.join(READERS)}",
            "plan and preprocess the data set with one of these readers",
        )
    affine = np.eye(4)
    affine[:3, :3] = np.reshape(stuff["direction"], (3, 3)) * np.asarray(stuff["spacing"])
    affine[:3, 3] = stuff["origin"]
    return np.asarray(orientation_ras_lps(affine))


class ToGridd(MapTransform, InvertibleTransform):
    """`ModelSpace.to_grid` as a MONAI transform of `(channel, x, y, z)`; `Invertd` brings logits back to the file.

    Args:
        keys: of the images.
        space: the model's, or its `provenance.json`, which is read when the first image comes.
    """

    def __init__(self, keys: KeysCollection, space: ModelSpace | str | Path, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.space = space

    def __call__(self, data: Mapping[Hashable, Any]) -> dict:
        """To the grid."""
        done = dict(data)
        space = ModelSpace.open(self.space)
        for key in self.key_iterator(done):
            grid, way = space.to_grid(done[key])
            meta = {name: value for name, value in done[key].meta.items() if name not in (PROPERTIES, SEGMENTATION)}
            done[key] = MetaTensor(grid, meta=meta)
            self.push_transform(done[key], extra_info=way)
        return done

    def inverse(self, data: Mapping[Hashable, Any]) -> dict:
        """Back to the file."""
        done = dict(data)
        space = ModelSpace.open(self.space)
        for key in self.key_iterator(done):
            way = self.pop_transform(done[key])[TraceKeys.EXTRA_INFO]
            logits = space.to_file(done[key].as_tensor().float().cpu(), way)
            done[key] = MetaTensor(logits, meta=done[key].meta, applied_operations=done[key].applied_operations)
        return done


class ToLabelMapd(MapTransform):
    """Logits `(label, x, y, z)` to an integer label map `(1, x, y, z)`, uint8, as `dataset.json` numbers them."""

    def __init__(self, keys: KeysCollection, space: ModelSpace | str | Path, allow_missing_keys: bool = False):
        super().__init__(keys, allow_missing_keys)
        self.space = space

    def __call__(self, data: Mapping[Hashable, Any]) -> dict:
        """Paint."""
        done = dict(data)
        description = ModelSpace.open(self.space).description
        for key in self.key_iterator(done):
            probabilities = torch.sigmoid(done[key].as_tensor()).numpy()
            label = torch.from_numpy(description.to_label_map(probabilities))[None]
            done[key] = MetaTensor(label, meta=done[key].meta)
        return done
