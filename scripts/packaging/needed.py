"""What a bundle needs to run: modules of this project, and packages of others, read from its configs and the code."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[2]
PACKAGE = __name__.split(".")[0]  # `scripts` in a clone, `synthaug` when installed: so do the configs name it
OURS = (PACKAGE, "nnunet_plugin")
# Packages that others load for a feature, and that nobody imports by name.
BEHIND = {"torch.utils.tensorboard": "tensorboard", "ignite": "tqdm"}
# MONAI and what it cannot do without have keys of their own in metadata.json.
BASE = {"monai", "torch", "numpy"}


def needed_files(bundle: Path) -> list[Path]:
    """Python files, relative to this package's folder, that configs and docs of a bundle name, and all they import."""
    waiting = {name for file in sorted((bundle / "configs").glob("*.json")) for name in _named(_load(file))}
    docs = {name for file in (bundle / "docs").rglob("*.py") for name in _imports(file)}
    waiting |= {name for name in docs if name.split(".")[0] == PACKAGE}
    found: set[Path] = set()
    while waiting:
        name = waiting.pop()
        for file in _files(name):
            if file not in found:
                found.add(file)
                waiting |= {other for other in _imports(file) if other.split(".")[0] in OURS}
    return sorted(found)


def needed_packages(bundle: Path) -> dict[str, str]:
    """Distributions that these files import, and those behind MONAI's parts in the configs, as they are installed."""
    names = {name for file in needed_files(bundle) for name in _imports(file) if name.split(".")[0] not in OURS}
    # What MONAI's engines, its command line and its `verify_metadata` need, and do not install.
    names |= {"ignite", "fire", "jsonschema"}
    if any("TensorBoard" in file.read_text() for file in (bundle / "configs").glob("*.json")):
        names.add("torch.utils.tensorboard")
    names |= {behind for name in names for module, behind in BEHIND.items() if f"{name}.".startswith(f"{module}.")}
    distributions = _distributions()
    roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
    packages = {distributions[root][0] for root in roots if root in distributions} | (names & set(BEHIND.values()))
    packages = {package for package in packages if package not in BASE}
    return {package: importlib.metadata.version(package) for package in sorted(packages, key=str.lower)}


def needed_versions(bundle: Path) -> dict[str, str]:
    """Versions of `needed_packages`, and of MONAI, torch and numpy, as metadata.json gives them."""
    base = {name: importlib.metadata.version(name).split("+")[0] for name in sorted(BASE)}
    return {**base, **needed_packages(bundle)}


@functools.cache
def _distributions() -> Mapping[str, list[str]]:
    """Distributions by the packages that they install; nothing is installed while a process runs."""
    return importlib.metadata.packages_distributions()


def _load(file: Path) -> Any:
    return json.loads(file.read_text())


def _named(config: Any) -> Iterator[str]:
    """Dotted names of this project in the strings of a config: `_target_`s, and imports of expressions."""
    if isinstance(config, dict):
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _named(value)
    elif isinstance(config, str):
        for module, name in re.findall(rf"^\$from ({PACKAGE}[\w.]*) import (\w+)$", config):
            yield f"{module}.{name}"
        if re.fullmatch(rf"{PACKAGE}\.[\w.]+", config):
            yield config


def _files(name: str) -> list[Path]:
    """The packages above a dotted name and the module that holds it, as far as they exist."""
    parts = name.split(".")
    found = []
    for length in range(1, len(parts) + 1):
        path = Path(*parts[:length])
        found += [p for p in (path / "__init__.py", path.with_suffix(".py")) if (SOURCES / p).is_file()]
    return found


def _imports(file: Path) -> Iterable[str]:
    """Dotted names that a file imports, at its top or inside functions."""
    package = file.parts[:-1]
    for node in ast.walk(ast.parse((SOURCES / file).read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
