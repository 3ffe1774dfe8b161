"""The rooms of the architecture: imports point one way, no room is a junk room, nothing imports nnU-Net early."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = [  # each room stands above all that it imports, so that no two folders need each other
    {"__main__"},
    {"experiment"},
    {"audit", "training", "packaging"},
    {"report"},
    {"metrics", "sampling", "segmentation"},
    {"converters", "pool"},
    {"data", "losses"},
    {"networks", "phantom"},
    {"dynamics", "runtime"},
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


def floor(room: str) -> int:
    return next(i for i, rooms in enumerate(FLOORS) if room in rooms)


@pytest.mark.parametrize("path", sorted((ROOT / "scripts").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_scripts_import_one_way(path):
    parts = path.relative_to(ROOT / "scripts").with_suffix("").parts
    if parts == ("__init__",):
        return
    for name in imports(path):
        if name.startswith("scripts."):
            room = name.split(".")[1]
            assert room == parts[0] or floor(room) > floor(parts[0]), f"{path} imports {name}"


def test_folders_have_no_circle():
    needs: dict[str, set[str]] = {}
    for path in (ROOT / "scripts").rglob("*.py"):
        room = path.relative_to(ROOT / "scripts").with_suffix("").parts[0]
        found = {name.split(".")[1] for name in imports(path) if name.startswith("scripts.")}
        needs.setdefault(room, set()).update(found - {room})
    assert len(needs) > 15
    graphlib.TopologicalSorter(needs).prepare()  # raises CycleError, which names the circle


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
    code = "import sys, nnunet_plugin, scripts.runtime.errors; assert not {'torch', 'nnunetv2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
