"""A packed bundle brings its own part of this package, and a process can hold that of one bundle alone."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError

FILE = Path(__file__).parents[1] / "packed.json"  # written by `synthaug pack`
REMEDY = "use a process for each bundle, or install synthaug, which holds all of them"


class OtherBundle:
    """Last in `sys.meta_path`: says why a module of `scripts` is not there."""

    def __init__(self, identity: Mapping[str, str]):
        self.identity = identity

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> None:
        """Refuse what only another bundle has."""
        if name.startswith("scripts."):
            raise ModuleNotFoundError(
                f"{name} is not in the packed bundle {self.identity['bundle']} {self.identity['version']} "
                f"({FILE.parent}), whose code this process has loaded: {REMEDY}",
                name=name,
            )


def guard() -> None:
    """Tell a user of two packed bundles what is wrong; does nothing in a checkout or an installation."""
    if FILE.is_file():
        sys.meta_path.append(OtherBundle(json.loads(FILE.read_text())))  # type: ignore[arg-type]


def check_same_bundle(metadata: Mapping[str, Any]) -> None:
    """Compare the loaded code with the bundle whose configs are run.

    Raises:
        InputError: the code came with another packed bundle, or with another version.
    """
    if FILE.is_file():
        ours = json.loads(FILE.read_text())
        theirs = {"bundle": metadata["bundle"], "version": metadata["version"]}
        if {key: ours[key] for key in theirs} != theirs:
            raise InputError(
                f"configs of {theirs['bundle']} {theirs['version']} with the code of {ours['bundle']} "
                f"{ours['version']} ({FILE.parent})", "both from one packed bundle", REMEDY,
            )  # fmt: skip
