"""Laws of all commands: help that costs nothing, says everything, and gives an example that can be typed."""

import inspect
import re
import shlex
import signal
import subprocess
import sys

import pytest
from nnunet_plugin import command_line

from scripts.__main__ import COMMANDS

from .processes import ROOT, start, wait_until

HEAVY = {"torch", "monai", "nnunetv2", "numpy", "scipy", "fire", "nibabel", "SimpleITK", "matplotlib"}


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["add-pool", "--help"], ["export-model", "-h"]])
def test_help_imports_nothing_heavy(words):
    """0.06 s of CPU instead of two seconds: what takes time is imports."""
    program = f"""if True:
        import sys
        sys.argv = ["synthaug", *{words!r}]
        from scripts.__main__ import main
        main()
        print(*{HEAVY!r} & set(sys.modules), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("synthaug ") and done.stderr.split() == []


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_everything(name, monkeypatch):
    """Every argument is described, and the example is what the command takes."""
    outline = command_line._outline(COMMANDS[name])
    _, arguments, example = command_line._docstring(outline)
    assert set(arguments) == set(inspect.signature(outline).parameters)
    first, *words = shlex.split(re.search(r"synthaug [^)]*", example)[0])
    assert first == "synthaug" and words[0] == name
    function = command_line._loaded(COMMANDS[name])
    assert list(inspect.signature(function).parameters) == list(arguments)  # of the source and of the module
    command_line._bind(function, f"synthaug {name}", words[1:])  # bound, not called


def test_ctrl_c_in_a_command(tmp_path):
    """One line, a status that is not 0, and the same command goes on."""
    words = ["-m", "scripts", "phantom", tmp_path / "Dataset801_P", "--cases", "400", "--shape", "[32,32,8]"]
    process = start(*words, output=tmp_path)
    wait_until(lambda: "case" in (tmp_path / "stderr").read_text(), process)
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    lines = re.split(r"[\r\n]+", (tmp_path / "stderr").read_text().strip())
    assert lines[-1] == "error: interrupted; the same command goes on" and not any("Traceback" in x for x in lines)
