"""What a packed bundle says of its weights: configs and metadata.json, from the record of their training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from torch import nn

from ..data.description import DatasetDescription
from ..data.provenance import refuse_other_network
from ..networks.whole import read_weights
from ..runtime.errors import InputError

# What DICOM calls the images that channels of data sets are usually named after; others are n/a, as in the zoo.
MODALITIES = {
    "ct": "CT", "pet": "PT", "suv": "PT", "mr": "MR", "mri": "MR", "flair": "MR", "t1": "MR", "t1w": "MR",
    "t1ce": "MR", "t1gd": "MR", "t1c": "MR", "t1n": "MR", "t2": "MR", "t2w": "MR", "t2f": "MR", "adc": "MR",
    "dwi": "MR",
}  # fmt: skip
EVALUATIONS = ("evaluation.json", "metrics.json")


def trained_configs(bundle: Path, overlays: Sequence[str], trained: Mapping[str, Any]) -> dict[str, dict]:
    """The config files of a bundle, by name, with the settings that its weights were trained with.

    Args:
        bundle: its folder.
        overlays: config files that the training was given over `train.json`: names such as `volume.json`, or paths of
            files of one's own with the settings that its command line had.
        trained: provenance of the weights; says what else was set for the network.

    Raises:
        InputError: an overlay that is not there.
    """
    configs = {path.name: json.loads(path.read_text()) for path in sorted((bundle / "configs").glob("*.json"))}
    inference, train = configs["inference.json"], configs["train.json"]
    for overlay in overlays:
        if overlay not in configs and not Path(overlay).is_file():
            raise InputError(
                f"overlay {overlay}",
                f"one of {sorted(configs)} in {bundle / 'configs'}, or a path",
                "name one of these",
            )
        for key, value in (configs.get(overlay) or json.loads(Path(overlay).read_text())).items():
            known = [config for config in (inference, train) if key in config] or [inference, train]
            for config in known:
                if not str(config.get(key)).startswith("%"):  # it takes the value from inference.json
                    config[key] = value
    arguments = inference["network_arguments"]
    settings = {"spatial_size": "@spatial_size", **(arguments if isinstance(arguments, dict) else {})}
    numbers = {"spatial_size": trained["geometry"]["spatial_size"], **trained["network"]}
    for argument, setting in settings.items():
        name = str(setting).removeprefix("@")
        for config in (inference, train):
            # an expression follows the weights, or other settings, on its own; a reference, the other file
            if argument in numbers and name in config and not str(config[name]).startswith(("$", "%")):
                config[name] = numbers[argument]
    if train.get("spatial_size") == "auto":  # of these data; a training on others that goes on from here keeps the grid
        train["spatial_size"] = numbers["spatial_size"]
    return configs


def built_network(configs: Mapping[str, dict], trained: Mapping[str, Any], weights: Path) -> nn.Module:
    """The network of these configs with these weights.

    Raises:
        InputError: the configs make another network than the one that was trained.
    """
    parser = ConfigParser({**configs["inference.json"], "ckpt_dir": str(weights.parent), "device": "cpu"})
    key = "network_record" if "network_record" in configs["inference.json"] else "network_arguments"
    network, record = parser.get_parsed_content("network_def"), parser.get_parsed_content(key)
    remedy = (
        """give the config files of the training, such as --overlays '["volume.json"]', or your own with its settings"""
    )
    refuse_other_network(trained["network"], record, weights, "the network that was trained", remedy)
    state = read_weights(weights)
    ours = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in state.items()}
    if different := sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name)):
        raise InputError(
            f"{weights} with {len(different)} variables that the network lacks or has in another shape, such as "
            f"{different[0]}", "the variables of the network that inference.json makes", remedy,
        )  # fmt: skip
    network.load_state_dict(state)
    return network.eval()


def measured(weights: Path) -> dict[str, float]:
    """What `evaluate.json` found for these weights, if it was run: figures by name, such as `tumor dice`.

    Raises:
        InputError: it was run with other weights.
    """
    trained = json.loads(weights.with_name("provenance.json").read_text())
    for name in EVALUATIONS:
        path = weights.parent.parent / "evaluation" / name
        if not path.is_file():
            continue
        found = json.loads(path.read_text())
        if found.get("weights_sha256") != trained["weights_sha256"]:
            raise InputError(
                f"{path} of other weights", f"figures of {weights}", "run evaluate.json again, or move the file away"
            )
        if "metrics" in found:
            return found["metrics"]
        summary = found["summary"]
        return {
            f"{label} {measure}": values["mean"]
            for label in summary for measure, values in summary[label].items()
            if isinstance(values, dict) and values["mean"] is not None
        }  # fmt: skip
    return {}


def true_metadata(
    metadata: Mapping[str, Any],
    trained: Mapping[str, Any],
    network: nn.Module,
    figures: Mapping[str, float],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """`metadata.json` of a bundle with these weights: what the file in the repository leaves open is filled in.

    Args:
        metadata: of the bundle, written for the phantom.
        trained: provenance of the weights.
        network: that they belong to, see `built_network`.
        figures: of an evaluation.
        versions: of all packages that the bundle needs, MONAI, torch and numpy among them.

    Raises:
        InputError: the record contradicts itself.
    """
    description = DatasetDescription(**trained["description"])
    images = [description.channel_names[key] for key in sorted(description.channel_names, key=int)]
    labels = [name for name, _ in description.foreground]
    _check_channels(trained["network"], images, labels)
    others = {key: value for key, value in versions.items() if key not in ("monai", "torch", "numpy")}
    return {
        **metadata,
        "monai_version": versions["monai"],
        "pytorch_version": versions["torch"],
        "numpy_version": versions["numpy"],
        "required_packages_version": others,
        "data_source": _source(trained),
        "image_classes": f"{metadata['image_classes']}: {', '.join(images)}",
        "label_classes": f"{metadata['label_classes']}: {', '.join(labels)}",
        "pred_classes": f"{metadata['pred_classes']}: {', '.join(labels)}",
        "eval_metrics": dict(figures),
        "network_data_format": _formats(metadata["network_data_format"], trained, network, images, labels, description),
    }


def _check_channels(network: Mapping[str, Any], images: Sequence[str], labels: Sequence[str]) -> None:
    counts = {"in_channels": len(images), "out_channels": len(labels), "num_labels": len(labels),
              "num_channels": len(images) + len(labels)}  # fmt: skip
    if wrong := {name: network[name] for name in counts if name in network and network[name] != counts[name]}:
        raise InputError(
            f"a network with {wrong} for the images {list(images)} and the labels {list(labels)}",
            f"{ {name: counts[name] for name in wrong} }",
            "restore the provenance.json of the training",
        )


def _source(trained: Mapping[str, Any]) -> str:
    pool = trained["training"].get("pool")
    more = "" if not pool else f"; and a pool of samples ({pool['name']})"
    return (
        f"{len(trained['cases'])} cases of {trained['dataset']} (fold {trained['fold']}){more}; their names and hashes "
        "are in models/provenance.json"
    )


def _formats(
    formats: Mapping[str, Any], trained: Mapping[str, Any], network: Any, images: Sequence[str], labels: Sequence[str],
    description: DatasetDescription,
) -> dict[str, Any]:  # fmt: skip
    """`network_data_format`: shapes, channels and values of what the network takes and gives."""
    given, made = formats["inputs"]["image"], formats["outputs"]["pred"]
    size = list(trained["network"].get("spatial_size", trained["geometry"]["spatial_size"]))
    found = {key: value for key, value in formats.items() if key != "post_processed_outputs"}
    if "out_channels" in trained["network"]:
        z_score = trained["training"].get("z_score")
        given = {**given, "modality": _modality(images), "value_range": _z_range(z_score)}
        units = "with mean 0 and standard deviation 1" if z_score else "scaled to [0, 1]"
        inputs, outputs = [f"{name}, {units}" for name in images], list(labels)
        names = {str(value): name for name, value in sorted(description.painted.items(), key=lambda item: item[1])}
        label_map = formats["post_processed_outputs"]["pred"]
        found["post_processed_outputs"] = {
            "pred": {
                **label_map,
                "value_range": [0, max(description.painted.values())],
                "channel_def": {"0": "background", **names},
            }
        }
        shape = size
    elif "num_labels" in trained["network"]:
        inputs = [f"noise for {name}, standard normal" for name in images] + list(images)
        inputs += [f"signed distance to the wanted {name}, in [-1, 1]" for name in labels] + ["hole, 0 or 1"]
        outputs = [f"{name}, painted in the hole" for name in images] + [f"{name} mask" for name in labels]
        shape = size
    else:
        inputs, shape = ["latent"] * network.latent_shape[0], list(network.latent_shape[1:])
        scaling = trained["scaling"]
        ranges = zip(images, scaling["low"], scaling["high"], strict=True)
        which = " in the median case" if scaling["per_case"] else ""
        outputs = [f"{name}, scaled to [0, 1] (from {low:.6g} to {high:.6g}{which})" for name, low, high in ranges]
        outputs += [f"{name} mask probability" for name in labels]
    found["inputs"] = {"image": _tensor(given, inputs, shape)}
    found["outputs"] = {"pred": _tensor(made, outputs, size)}
    return found


def _tensor(form: Mapping[str, Any], channels: Sequence[str], shape: Sequence[int]) -> dict[str, Any]:
    definition = {str(index): name for index, name in enumerate(channels)}
    return {**form, "num_channels": len(channels), "spatial_shape": list(shape), "channel_def": definition}


def _modality(images: Sequence[str]) -> str:
    known = sorted({MODALITIES.get(name.lower(), "n/a") for name in images})
    return "n/a" if "n/a" in known else ", ".join(known)


def _z_range(z_score: Mapping[str, Any] | None) -> list[float]:
    """What images in [0, 1] become."""
    if z_score is None:
        return [0, 1]
    pairs = list(zip(z_score["mean"], z_score["sd"], strict=True))
    return [min(-mean / sd for mean, sd in pairs), max((1 - mean) / sd for mean, sd in pairs)]
