"""Where the bundles lie: beside this package in a checkout, inside it when installed."""

from __future__ import annotations

from pathlib import Path

from scripts.errors import InputError


def bundle_dir(name: str) -> Path:
    """Folder of a bundle.

    Raises:
        InputError: there is none of this name.
    """
    package = Path(__file__).resolve().parents[1]
    for root in (package.parent / "bundles", package / "bundles"):
        if (root / name / "configs").is_dir():
            return root / name
    known = sorted(
        path.parent.name
        for root in (package.parent / "bundles", package / "bundles")
        for path in root.glob("*/configs")
    )
    raise InputError(f"bundle {name!r}", f"one of {known}", "give the name of a bundle")
