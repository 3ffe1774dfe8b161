"""Where the bundles lie (beside this package in a checkout, inside it when installed), and how one is run."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..runtime.errors import InputError


def bundle_dir(name: str) -> Path:
    """Folder of a bundle.

    Raises:
        InputError: there is none of this name.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package / "bundles", package.parent / "bundles"):
        if (root / name / "configs").is_dir():
            return root / name
    raise InputError(f"bundle {name!r}", f"one of {bundle_names()}", "give the name of a bundle")


def bundle_names() -> list[str]:
    """All bundles."""
    package = Path(__file__).resolve().parents[1]
    roots = (package / "bundles", package.parent / "bundles")
    return sorted(path.parent.name for root in roots for path in root.glob("*/configs"))


def known_settings(configs: Path, config: str) -> set[str]:
    """The settings that a config file of a bundle defines."""
    return set(json.loads((configs / config).read_text()))


def bundle_command(files: Sequence[str], overrides: Mapping[str, Any], processes: int = 1) -> list[str]:
    """The command that runs config files of a bundle, to be started in its folder.

    Args:
        files: of its `configs`, the later ones over the earlier.
        overrides: settings; None stays None, which MONAI would drop without a word.
        processes: how many share the work by `torchrun`.
    """
    torchrun: list[str] = []
    if processes > 1:
        torchrun = ["torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", "-m"]
    config = str([f"configs/{name}" for name in files])
    flags = [
        word for key, value in overrides.items() for word in (f"--{key}", "$None" if value is None else str(value))
    ]
    return [sys.executable, "-m", *torchrun, "monai.bundle", "run", "--config_file", config, *flags]
