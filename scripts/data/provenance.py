"""What a trained generator has seen and how it was made: `models/provenance.json`."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nnunet_plugin.leakage import cases_sha256

from ..runtime.errors import InputError, refuse_changes
from ..runtime.files import file_sha256, read_record, write_json
from ..runtime.packed import FILE as PACKED
from ..runtime.running import checkpoint_being_loaded

if TYPE_CHECKING:
    from .training_set import TrainingSet  # imports torch, which those who read a record need not wait for

FORMAT_VERSION = 1
PACKAGES = ("torch", "monai", "numpy", "nnunetv2", "synthaug")


def package_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide the numbers."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code_revision() -> str:
    """Commit of the checkout that this code lies in (with `+changes` when it was edited), else hash or version."""
    if PACKED.is_file():
        return str(json.loads(PACKED.read_text())["code_sha256"])
    root = Path(__file__).resolve().parents[2]
    if (root / ".git").exists():
        git = ["git", "-C", str(root)]
        revision = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        changes = subprocess.run([*git, "status", "--porcelain", "scripts", "bundles"], capture_output=True, text=True)
        if revision.returncode == 0:
            return revision.stdout.strip() + ("+changes" if changes.stdout.strip() else "")
    return package_versions().get("synthaug", "unknown")


def build_provenance(data: TrainingSet, bundle: dict, seed: int, network: dict, training: dict) -> dict:
    """The record of a generator.

    Args:
        data: what it was trained on.
        bundle: `{"name", "version"}`.
        seed: of the training.
        network: the arguments that rebuild the network; a checkpoint is refused by a network of others.
        training: other settings worth knowing (loss weights, feature extractor, iterations).
    """
    cases = data.cases
    return {
        "format_version": FORMAT_VERSION,
        "dataset": cases.description.name,
        "description": cases.description.as_record(),
        "cases": data.seen,
        "cases_sha256": cases_sha256(data.seen),
        "fold": cases.fold.name,
        "validation": cases.fold.val,
        "split_sha256": cases.fold.sha256,
        "space": cases.space,
        **({} if cases.directions is None else {"directions": cases.directions}),
        "scaling": data.scaling.as_record(),
        "geometry": data.geometry.as_record(),
        "bundle": bundle,
        "seed": seed,
        "network": network,
        "training": training,
        "code_revision": code_revision(),
        "packages": package_versions(),
    }


def write_provenance(path: str | Path, provenance: dict, checkpoint: str | Path) -> Path:
    """Store the record beside a finished checkpoint, whose hash ties the two together."""
    return write_json(path, {**provenance, "weights_sha256": file_sha256(checkpoint)})


def read_provenance(path: str | Path, checkpoint: str | Path | None = None) -> dict:
    """Read the record, and check that it belongs to the checkpoint when one is given.

    Raises:
        InputError: no finished training is there, or the two files do not belong together.
    """
    path = Path(path)
    if not path.is_file() or (checkpoint is not None and not Path(checkpoint).is_file()):
        raise InputError(
            f"no trained generator in {path.parent} (model.pt and provenance.json)",
            "the models folder that a finished training leaves",
            "train first: python -m monai.bundle run --config_file configs/train.json",
        )
    remedy = "restore the models folder, or train again"
    provenance = read_record(path, {"format_version": int}, remedy)
    if provenance["format_version"] != FORMAT_VERSION:
        raise InputError(
            f"{path} has format version {provenance['format_version']}",
            f"{FORMAT_VERSION}",
            "train again with this version, or install the one that wrote it",
        )
    provenance = read_record(path, {"weights_sha256": str}, remedy)
    if checkpoint is not None and file_sha256(checkpoint) != provenance["weights_sha256"]:
        raise InputError(
            f"{checkpoint} is not the checkpoint that {path} describes",
            "the two files of one training",
            "restore them together, or finish the interrupted training",
        )
    return provenance


def record_of_weights(path: str | Path) -> Path:
    """`path`, or while `monai.bundle.load` loads weights from elsewhere, the file of that name beside them."""
    loaded = checkpoint_being_loaded()
    return Path(path) if loaded is None else loaded.with_name(Path(path).name)


def refuse_other_network(
    trained: Mapping[str, Any], given: Mapping[str, Any], weights: str | Path, allowed: str, remedy: str
) -> None:
    """Raise `InputError` where arguments of a network are not those of its record.

    Shapes do not show all of them: heads, groups, noise or velocity. One that the record lacks is younger than it, and
    the configs know what its absence means.
    """
    given = json.loads(json.dumps(given))
    both = trained.keys() & given.keys()
    before, now = ({name: record[name] for name in both} for record in (trained, given))
    refuse_changes(before, now, f"{weights} holds a network", allowed, remedy)


def trained(path: str | Path, name: str, default: Any, before: Any = None) -> Any:
    """The argument `name` of the network described at `path`, or `default` where none is described.

    What follows from the data set, such as channels and grid, nobody has to repeat for sampling. `monai.bundle.load` is
    asked from any folder: then it is that of the record beside the weights that are loaded.

    Args:
        path: of a `provenance.json`, which need not be there.
        name: of the argument.
        default: before any training.
        before: of networks whose record is older than the argument.
    """
    path = record_of_weights(path)
    if not path.is_file():
        return default
    required = {f"network.{name}": type(default)} if before is None else {"network": dict}
    record = read_record(path, required, "restore the models folder, or train again")
    return record["network"].get(name, before)
