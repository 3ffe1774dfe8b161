"""Pack a bundle as one zip file that needs nothing of this project around it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigParser

from ..data.provenance import read_provenance
from ..runtime.errors import InputError
from ..runtime.files import file_sha256, replacing, write_text
from .bundle_files import bundle_dir
from .metadata import built_network, measured, trained_configs, true_metadata
from .needed import PACKAGE, SOURCES, needed_files, needed_versions
from .verify import LARGEST

DATE = (1980, 1, 1, 0, 0, 0)  # the earliest that zip knows; the true one would change the bytes
PACKED = "scripts/packed.json"
UNIT_TEST = Path(__file__).with_name("unit_test.py")


# What a user of the zoo does: in a folder of one's own, with nothing of this project but the bundle.
LOADING = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import monai.bundle, torch
folder, name = sys.argv[1:]
weights = torch.load(Path(folder, name, "models/model.pt"), map_location="cpu", weights_only=True)
for kind in ("train", "inference"):  # the first is what `load` takes unasked
    network = monai.bundle.load(name, bundle_dir=folder, source="github", workflow_type=kind)
    state = network.cpu().state_dict()
    wrong = sorted(key for key in {*state, *weights}
                   if key not in state or key not in weights or not torch.equal(state[key], weights[key]))
    written = sorted(str(path) for path in Path().rglob("*"))
    if wrong or written:
        sys.exit(f"{kind}.json: wrong variables {wrong}, files written {written}")
"""


def pack(
    bundle: str,
    output_dir: str,
    checkpoint: str | None = None,
    url: str | None = None,
    overlays: list[str] | None = None,
) -> Path:
    """Pack a bundle as a zip file that runs where this project is not installed; prints its SHA-256 and its path.

    Its metadata.json says what the weights learnt from, in the figures of their record; what contradicts it is refused.
    The zip has the name that the model zoo would list, with the zoo's unit test beside it. The same bundle and weights
    give the same bytes.

    Args:
        bundle: Such as dhvae.
        output_dir: Where ZOO_NAME_v0.1.0.zip is written.
        checkpoint: The model.pt of a finished training, with its provenance.json beside it; by default the one in the
            bundle's own models folder.
        url: Where you put weights of more than 25 MB, for large_files.yml; they are written beside the zip.
        overlays: Config files that the training was given over train.json, such as '["volume.json"]'.

    Example:
        synthaug pack dhvae dist --checkpoint dhvae_fold0/models/model.pt
    """
    return pack_bundle(bundle_dir(bundle), output_dir, checkpoint, url, overlays or ())


def pack_bundle(
    bundle: Path,
    output_dir: str | Path,
    checkpoint: str | Path | None = None,
    url: str | None = None,
    overlays: Sequence[str] = (),
) -> Path:
    """Write `ZOO_NAME_vVERSION.zip`, print its SHA-256, and return its path.

    It holds the folder ZOO_NAME: configs (self-contained: what they take from each other stands in each) with the
    settings that the network was trained with, metadata that is true of the weights (see `true_metadata`), docs,
    licence, models/model.pt with its provenance, and those parts of this project that the configs need, as `scripts`.
    Weights of more than 25 MB stay beside the zip, and `large_files.yml` says where they are: the zoo wants them on a
    server. Beside it lies `test_ZOO_NAME.py`, the unit test that a pull request to the zoo brings. In the end the zip
    is unpacked and loaded as a user of the zoo would, and removed again if that fails.

    Args:
        bundle: its folder.
        output_dir: where the file goes.
        checkpoint: model.pt of a finished training with provenance.json beside it; the bundle's own by default.
        url: the address at which you put weights of more than 25 MB; smaller ones need none.
        overlays: config files that the training was given over train.json.

    Raises:
        InputError: no weights, weights of another bundle, version or network, an evaluation of others, a version that
            the changelog does not know, a pool of real anatomy in the bundle's folder, or large weights without an
            address.
        RuntimeError: the packed bundle does not load.
    """
    metadata = json.loads((bundle / "configs/metadata.json").read_text())
    name, version = metadata["bundle"], metadata["version"]
    if version not in metadata["changelog"]:
        raise InputError(
            f"version {version} of {name}", f"one of the changelog: {sorted(metadata['changelog'])}",
            "say in configs/metadata.json what is new",
        )  # fmt: skip
    weights = Path(checkpoint) if checkpoint is not None else bundle / "models/model.pt"
    record = weights.with_name("provenance.json")
    trained = read_provenance(record, weights)
    if trained["bundle"] != {"name": name, "version": version}:
        raise InputError(
            f"{weights} of the bundle {trained['bundle']['name']} {trained['bundle']['version']}",
            f"weights of {name} {version}",
            "give the --checkpoint of a training of this bundle, or pack the version that trained it",
        )
    refuse_real_anatomy(bundle)
    zoo_name = metadata["zoo_name"]
    output = Path(output_dir)
    large, beside = weights.stat().st_size > LARGEST, output / f"{zoo_name}_v{version}_model.pt"
    if large and not str(url).startswith(("https://", "http://")):
        raise InputError(
            f"{weights} of {weights.stat().st_size / 2**20:.0f} MB, url {url}",
            f"weights of at most {LARGEST >> 20} MB, or the address, https://..., that they will have",
            f"give --url, and put the file {beside.name} there, which is then written beside the zip",
        )
    configs = trained_configs(bundle, overlays, trained)
    network = built_network(configs, trained, weights)
    shipped = bundle / "models/model.pt"
    own = shipped.is_file() and file_sha256(shipped) == trained["weights_sha256"]
    figures = measured(weights) or (metadata["eval_metrics"] if own else {})
    configs["metadata.json"] = true_metadata(metadata, trained, network, figures, needed_versions(bundle))
    files = {**_configs(bundle, configs), **_rest(bundle), **_code(bundle, {"bundle": name, "version": version})}
    if shipped.is_file() and not own:
        files |= _of_other_weights(files, configs["metadata.json"]["data_source"])
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
    path = output / f"{zoo_name}_v{version}.zip"
    with replacing(path) as temporary:
        _write(temporary, zoo_name, files)
        check_loads(temporary, weights)
    test = UNIT_TEST.read_text().replace('"ZOO_NAME"', f'"{zoo_name}"')
    write_text(output / f"test_{zoo_name}.py", test)
    print(f"sha256 {file_sha256(path)}")
    return path


def check_loads(path: Path, weights: Path) -> None:
    """Unpack a packed bundle, and load its network from a folder that knows nothing of it.

    Raises:
        RuntimeError: that fails, a variable has another value than in the weights, or a file was written there.
    """
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(path) as archive:
        archive.extractall(Path(folder, "bundles"))
        name = archive.namelist()[0].split("/")[0]
        bundle, elsewhere = Path(folder, "bundles", name), Path(folder, "elsewhere")
        elsewhere.mkdir()
        (bundle / "models/model.pt").write_bytes(weights.read_bytes())
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        done = subprocess.run(
            [sys.executable, "-c", LOADING, str(bundle.parent), name], cwd=elsewhere, capture_output=True, text=True,
            env={**clean, "PYTHONPATH": str(bundle)},
        )  # fmt: skip
        if done.returncode:
            said = (done.stdout + done.stderr).strip().splitlines()
            raise RuntimeError(f"monai.bundle.load of the packed {name} fails: {' | '.join(said[-3:])}")


def refuse_real_anatomy(bundle: Path) -> None:
    """Raise `InputError` when the bundle's folder holds a pool that shows patients as they are."""
    for path in sorted(bundle.rglob("pool.json")):
        if json.loads(path.read_text()).get("real_anatomy"):
            raise InputError(
                f"{path.parent}, a pool of real anatomy in the bundle",
                "no pool, or one of a generator that makes whole images",
                "move it away: it is as private as the patients' images",
            )


def _configs(bundle: Path, configs: Mapping[str, dict]) -> dict[str, bytes]:
    """The configs, with the JSON ones as given; where one says %configs/OTHER.json::KEY stands what is found there.

    MONAI looks for such a file in the current folder, and a packed bundle should run from any.
    """
    files = {}
    for path in sorted((bundle / "configs").iterdir()):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = _renamed(json.dumps(_resolved(configs[path.name], configs), indent=4) + "\n")
        files[f"configs/{path.name}"] = content
    return files


def _resolved(config: Any, configs: Mapping[str, dict]) -> Any:
    if isinstance(config, dict):
        return {key: _resolved(value, configs) for key, value in config.items()}
    if isinstance(config, list):
        return [_resolved(value, configs) for value in config]
    if isinstance(config, str) and config.startswith("%configs/"):
        file, key = ConfigParser.split_path_id(config[1:])
        return _resolved(ConfigParser(configs[Path(file).name])[key], configs)
    return config


def _rest(bundle: Path) -> dict[str, bytes]:
    names = ["LICENSE", *(str(path.relative_to(bundle)) for path in sorted((bundle / "docs").rglob("*")))]
    there = [name for name in names if (bundle / name).is_file() and "__pycache__" not in name]
    files = {name: (bundle / name).read_bytes() for name in there}
    return {name: _renamed(file.decode()) if name.endswith(".py") else file for name, file in files.items()}


def _of_other_weights(files: Mapping[str, bytes], source: str) -> dict[str, bytes]:
    """README.md and data_license.txt, which speak of the weights in the repository, with what is true of these."""
    note = (
        f"The weights in this package (models/model.pt) learnt from {source}. What is said and shown below of weights "
        "that come with the bundle, their data, figures and licence, is of others. These may be bound by the licence "
        "of their data: whoever passes them on says here which that is.\n\n"
    )
    return {name: note.encode() + files[name] for name in ("docs/README.md", "docs/data_license.txt")}


def _renamed(text: str) -> bytes:
    """Where an installation says `synthaug.`."""
    return re.sub(rf"\b{PACKAGE}\.", "scripts.", text).encode()


def _code(bundle: Path, identity: dict[str, str]) -> dict[str, bytes]:
    needed = {file: (SOURCES / file).read_bytes() for file in needed_files(bundle)}
    files = {re.sub(rf"^{PACKAGE}/", "scripts/", file.as_posix()): content for file, content in needed.items()}
    digest = hashlib.sha256(b"".join(f"{name}\0".encode() + files[name] for name in sorted(files))).hexdigest()
    files[PACKED] = (json.dumps({**identity, "code_sha256": digest}, indent=4) + "\n").encode()
    return files


def _write(path: Path, folder: str, files: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(f"{folder}/{name}", DATE)
            entry.compress_type, entry.external_attr = zipfile.ZIP_STORED, 0o644 << 16
            entry.create_system = 3  # the same on every system
            archive.writestr(entry, files[name])
