"""What a generator of raw volumes has seen, brought to where nnU-Net trains: its raw files, preprocessed."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from itertools import permutations, product
from typing import Any

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from tqdm import tqdm

from .errors import InputError
from .identity import Identity, identify, same_case
from .preprocessed import PreprocessedDataset, environment_folder
from .voxels import as_image, as_label


def preprocessed_identities(
    seen: Mapping[str, Identity],
    dataset: PreprocessedDataset,
    plans: dict[str, Any],
    configuration: dict[str, Any],
    present: Mapping[str, Identity],
) -> dict[str, Identity]:
    """Return what nnU-Net's preprocessing makes of raw cases that are still those that were seen.

    Args:
        seen: raw cases, by id.
        dataset: whose raw files lie in `nnUNet_raw`.
        plans: of the training.
        configuration: of the training, resolved.
        present: its preprocessed cases; where one is not like its raw case without resampling, it is resampled, too.

    Raises:
        InputError: a raw file is missing, or no longer what was seen.
    """
    from nnunetv2.utilities.utils import get_filenames_of_train_images_and_targets

    folder = environment_folder("nnUNet_raw") / dataset.name
    if not folder.is_dir():
        raise InputError(
            f"a pool of raw volumes, and no {folder}",
            "the raw data set, so that its cases can be compared with those that the generator saw",
            "restore it, or set nnUNet_raw",
        )
    files = get_filenames_of_train_images_and_targets(str(folder), deepcopy(dataset.dataset_json))  # it writes in it
    found = {}
    for name, identity in tqdm(seen.items(), desc="comparing raw cases", unit="case", mininterval=1.0):
        if name not in files:
            raise InputError(f"no raw case {name} in {folder}", "the cases that the generator saw", "restore it")
        images, label = files[name]["images"], files[name]["label"]
        if not any(same_case(identity, identify(*turned)) for turned in _turned(*_voxels(images, label), identity)):
            raise InputError(
                f"the raw case {name}, which is not the one that the generator was trained on",
                "the voxels whose hashes its provenance holds",
                "restore it, or train a generator on the data set as it is",
            )
        for resample in (False, True):
            found[name] = _preprocessed(images, label, plans, configuration, dataset.dataset_json, resample)
            if same_case(found[name], present[name]):
                break
    return found


def _voxels(images: list[str], label: str) -> tuple[np.ndarray, np.ndarray]:
    """Image `(channel, x, y, z)` and label `(x, y, z)` in the order of the files."""
    arrays = []
    for path in (*images, label):
        try:
            if path.endswith((".nii", ".nii.gz")):
                arrays.append(np.asarray(nib.Nifti1Image.from_filename(path).dataobj))
            else:
                arrays.append(sitk.GetArrayFromImage(sitk.ReadImage(path)).T)
        except Exception as error:  # readers raise many kinds
            raise InputError(f"{path} cannot be read ({error})", "a readable image", "restore the file") from error
    return np.stack([*map(as_image, arrays, images)]), as_label(arrays[-1], label)


def _turned(image: np.ndarray, label: np.ndarray, seen: Identity) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same case along its axes in every order and direction, the likely ones first.

    Generators learn from raw volumes with the slices first, some in another direction; the fingerprint, unlike the
    hash, was made after that.
    """
    for likely in ((2, 1, 0), (1, 2, 0), (0, 2, 1)):
        yield image.transpose(0, *(1 + axis for axis in likely)), label.transpose(likely)
    if seen.fingerprint is not None:
        for axes, steps in product(permutations(range(3)), product((1, -1), repeat=3)):
            cut = tuple(slice(None, None, step) for step in steps)
            turned = image.transpose(0, *(1 + axis for axis in axes))
            yield turned[(slice(None), *cut)], label.transpose(axes)[cut]


def _preprocessed(
    images: list[str], label: str, plans: dict[str, Any], configuration: dict[str, Any], content: dict[str, Any],
    resample: bool,
) -> Identity:  # fmt: skip
    from nnunetv2.preprocessing.cropping.cropping import crop_to_nonzero
    from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

    manager, config = PlansManager(plans), ConfigurationManager(configuration)
    preprocessor = config.preprocessor_class(verbose=False)
    if resample:
        data, seg, _ = preprocessor.run_case(images, label, manager, config, content)
    else:
        reader = manager.image_reader_writer_class()
        data, seg = reader.read_images(images)[0].astype(np.float32), reader.read_seg(label)[0]
        order = [0, *(1 + axis for axis in manager.transpose_forward)]
        data, seg, _ = crop_to_nonzero(data.transpose(order), seg.transpose(order))
        data = preprocessor._normalize(data, seg, config, manager.foreground_intensity_properties_per_channel)
    return identify(data, seg[0])
