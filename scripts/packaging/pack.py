"""Pack a bundle as one zip file that needs nothing of this project around it."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from ..data.provenance import read_provenance
from ..runtime.errors import InputError
from ..runtime.files import file_sha256, replacing
from .needed import PACKAGE, SOURCES, needed_files
from .verify import LARGEST

DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows; the true one would change the bytes
PACKED = "scripts/packed.json"


def pack_bundle(
    bundle: Path, output_dir: str | Path, checkpoint: str | Path | None = None, url: str | None = None
) -> Path:
    """Write `NAME_vVERSION.zip`, print its SHA-256, and return its path.

    It holds the folder NAME: configs (self-contained: what they take from each other stands in each), docs, licence,
    models/model.pt with its provenance, and those parts of this project that the configs need, as `scripts`. Weights
    of more than 25 MB stay beside the zip, and `large_files.yml` says where they are: the zoo wants them on a server.

    Args:
        bundle: its folder.
        output_dir: where the file goes.
        checkpoint: model.pt of a finished training with provenance.json beside it; the bundle's own by default.
        url: the address at which you put weights of more than 25 MB; smaller ones need none.

    Raises:
        InputError: no weights, weights of another bundle or version, a version that the changelog does not know, a
            pool of real anatomy in the bundle's folder, or large weights without an address.
    """
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    name, version = metadata["name"], metadata["version"]
    if version not in metadata["changelog"]:
        raise InputError(
            f"version {version} of {name}", f"one of the changelog: {sorted(metadata['changelog'])}",
            "say in configs/metadata.json what is new",
        )  # fmt: skip
    weights = Path(checkpoint) if checkpoint is not None else bundle / "models/model.pt"
    record = weights.with_name("provenance.json")
    trained = read_provenance(record, weights)["bundle"]
    if trained != {"name": name, "version": version}:
        raise InputError(
            f"{weights} of the bundle {trained['name']} {trained['version']}", f"weights of {name} {version}",
            "give the --checkpoint of a training of this bundle, or pack the version that trained it",
        )  # fmt: skip
    refuse_real_anatomy(bundle)
    output = Path(output_dir)
    large, beside = weights.stat().st_size > LARGEST, output / f"{name}_v{version}_model.pt"
    if large and not str(url).startswith(("https://", "http://")):
        raise InputError(
            f"{weights} of {weights.stat().st_size / 2**20:.0f} MB, url {url}",
            f"weights of at most {LARGEST >> 20} MB, or the address, https://..., that they will have",
            f"give --url, and put the file {beside.name} there, which is then written beside the zip",
        )
    files = {**_configs(bundle), **_rest(bundle), **_code(bundle, {"bundle": name, "version": version})}
    files["models/provenance.json"] = record.read_bytes()
    output.mkdir(parents=True, exist_ok=True)
    if large:
        with replacing(beside) as temporary:
            temporary.write_bytes(weights.read_bytes())
        entry = {"path": "models/model.pt", "url": url, "hash_val": file_sha256(beside), "hash_type": "sha256"}
        files["large_files.yml"] = yaml.safe_dump({"large_files": [entry]}, sort_keys=False).encode()
        print(f"put {beside} at {url}")
    else:
        files["models/model.pt"] = weights.read_bytes()
    path = output / f"{name}_v{version}.zip"
    _write(path, name, files)
    print(f"sha256 {file_sha256(path)}")
    return path


def refuse_real_anatomy(bundle: Path) -> None:
    """Raise `InputError` when the bundle's folder holds a pool that shows patients as they are."""
    for path in sorted(bundle.rglob("pool.json")):
        if json.loads(path.read_text()).get("real_anatomy"):
            raise InputError(
                f"{path.parent}, a pool of real anatomy in the bundle",
                "no pool, or one of a generator that makes whole images",
                "move it away: it is as private as the patients' images",
            )


def _configs(bundle: Path) -> dict[str, bytes]:
    """The configs; where one says %configs/OTHER.json::KEY, the packed one holds what stands there.

    MONAI looks for such a file in the current folder, and a packed bundle should run from any.
    """
    files = {}
    for path in sorted((bundle / "configs").iterdir()):
        content = path.read_bytes()
        if path.suffix == ".json":
            text = json.dumps(_resolved(json.loads(content), bundle), indent=4) + "\n"
            content = re.sub(rf"\b{PACKAGE}\.", "scripts.", text).encode()  # where an installation says `synthaug.`
        files[f"configs/{path.name}"] = content
    return files


def _resolved(config: Any, bundle: Path) -> Any:
    if isinstance(config, dict):
        return {key: _resolved(value, bundle) for key, value in config.items()}
    if isinstance(config, list):
        return [_resolved(value, bundle) for value in config]
    if isinstance(config, str) and config.startswith("%configs/"):
        file, key = ConfigParser.split_path_id(config[1:])
        return _resolved(ConfigParser(ConfigParser.load_config_file(bundle / file))[key], bundle)
    return config


def _rest(bundle: Path) -> dict[str, bytes]:
    names = ["LICENSE", *(str(path.relative_to(bundle)) for path in sorted((bundle / "docs").rglob("*")))]
    return {name: (bundle / name).read_bytes() for name in names if (bundle / name).is_file()}


def _code(bundle: Path, identity: dict[str, str]) -> dict[str, bytes]:
    needed = {file: (SOURCES / file).read_bytes() for file in needed_files(bundle)}
    files = {re.sub(rf"^{PACKAGE}/", "scripts/", file.as_posix()): content for file, content in needed.items()}
    digest = hashlib.sha256(b"".join(f"{name}\0".encode() + files[name] for name in sorted(files))).hexdigest()
    files[PACKED] = (json.dumps({**identity, "code_sha256": digest}, indent=4) + "\n").encode()
    return files


def _write(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with replacing(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_STORED, 0o644 << 16
            entry.create_system = 3  # the same on every system
            archive.writestr(entry, files[name])
