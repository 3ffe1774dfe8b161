"""The rooms of the architecture: imports point one way, no room is a junk room, nothing imports nnU-Net early."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAYERS = [  # each may import from itself, from those after it, and from scripts.errors
    {"__main__", "packaging", "chain", "experiment"},
    {"training", "sampling", "report", "settings", "workflow", "audit"},
    {"networks", "losses", "metrics", "data"},
    {"dynamics"},
    {"errors", "packed"},
]


def imports(path: Path) -> set[str]:
    found = set()
    package = list(path.relative_to(ROOT).with_suffix("").parts[:-1])
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            found.add(".".join([*start, *([node.module] if node.module else [])]))
    return found


def layer(room: str) -> int:
    return next(i for i, rooms in enumerate(LAYERS) if room in rooms)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_import_one_way(path):
    parts = path.relative_to(ROOT / "scripts").with_suffix("").parts
    if parts == ("__init__",):
        return
    here = layer(parts[0])
    for name in imports(path):
        if name.startswith("scripts."):
            assert layer(name.split(".")[1]) >= here, f"{path} imports {name}"
        if name.startswith("nnunet_plugin"):  # the rule of mixing is the plugin's, and there is one
            assert here == 0 or path.name == "mixing.py", f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "nnunet_plugin").rglob("*.py")), ids=lambda p: p.name)
def test_plugin_knows_no_generator(path):
    assert not any(name == "scripts" or name.startswith("scripts.") for name in imports(path))


def test_no_room_is_too_large_or_nameless():
    files = [path for room in ("scripts", "nnunet_plugin") for path in (ROOT / room).rglob("*.py")]
    assert len(files) > 20
    assert not [path for path in files if path.read_text().count("\n") > 450]
    assert not [path for path in files if path.stem in ("utils", "helpers", "misc", "common")]


def test_import_is_light():
    """Importing the packages imports neither nnU-Net (which reads its environment) nor torch."""
    code = "import sys, scripts, nnunet_plugin, scripts.errors; assert not {'torch', 'nnunetv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
