"""Identities of preprocessed cases, kept while their files stay as they are: the voxels are read once for them."""

from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from .errors import InputError
from .identity import Identity
from .leakage import identify_cases
from .pool_format import is_sha256
from .preprocessed import PreprocessedDataset, read_json, write_json

_FORMAT = "synthaug-identities"
_ENDINGS = (".b2nd", "_seg.b2nd", ".npz", ".npy", "_seg.npy")  # of a case's voxels, in nnU-Net's formats


def kept_identities(
    dataset: PreprocessedDataset,
    data_identifier: str,
    load: Callable[[str], tuple[Any, Any, Any, Any]],
    names: Iterable[str],
) -> dict[str, Identity]:
    """Return the identities of preprocessed cases; those that are read now are kept in the data set's folder.

    A case is read again when the size, the times or the place on the disk of one of its files is another. Where the
    folder cannot be written, or files are of another format, nothing is kept.

    Args:
        dataset, data_identifier: of the cases.
        load: `load_case` of nnU-Net's data sets.
        names: the cases.
    """
    file = dataset.folder / "synthaug" / f"identities_{data_identifier}.json"
    kept, states = _read(file), {name: _state(dataset.folder / data_identifier, name) for name in sorted(set(names))}
    known = {name: Identity(*kept[name]["identity"]) for name, state in states.items()
             if state and name in kept and kept[name]["files"] == state}  # fmt: skip
    read = identify_cases(load, states.keys() - known.keys())
    new = {name: {"files": states[name], "identity": list(of)} for name, of in read.items() if states[name]}
    if new:
        with suppress(OSError):
            file.parent.mkdir(exist_ok=True)
            write_json(file, {"format": _FORMAT, "format_version": 1, "cases": {**kept, **new}})
    return {name: known.get(name) or read[name] for name in states}


def _state(folder: Path, name: str) -> list[list[Any]]:
    """What changes when a file of a case is written, replaced or renamed, before it is read."""
    found = []
    for ending in _ENDINGS:
        with suppress(OSError):
            state = (folder / f"{name}{ending}").stat()
            found.append([ending, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino])
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file, "")
    except InputError:
        return {}
    cases = content.get("cases") if (content.get("format"), content.get("format_version")) == (_FORMAT, 1) else None
    return {name: case for name, case in cases.items() if _is_case(case)} if isinstance(cases, dict) else {}


def _is_case(case: Any) -> bool:
    identity: Any = case.get("identity") if isinstance(case, dict) else None
    is_pair = isinstance(identity, list) and len(identity) == 2 and is_sha256(identity[0])
    return is_pair and "files" in case and isinstance(identity[1], str) and Identity(*identity).is_readable()
