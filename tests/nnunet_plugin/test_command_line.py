"""The command line's machinery, on commands made for it."""

import errno
import importlib.metadata
import os
from pathlib import Path
from typing import Any

import pytest
from nnunet_plugin.command_line import describe, run_commands
from nnunet_plugin.errors import InputError

NO_MEMORY = 1000  # no number of the system's
calls: list[dict[str, Any]] = []


def measure(
    pool: str | Path,
    dataset: int | str,
    fold: int | str,
    configuration: str = "2d",
    share: float = 0.5,
    plans: str = "nnUNetPlans",
    steps: list | None = None,
    training: dict[str, Any] | None = None,
    overwrite: bool = False,
) -> str:
    """Measure a pool.

    More words.

    Args:
        pool: The folder
            of a pool.
        share: A part.

    Example:
        tool measure pool 501 2d 0
    """
    calls.append(dict(locals()))
    return "done"


def fail(number: int) -> None:
    """Fail as a disk does."""
    if number == 0:
        raise KeyboardInterrupt
    if number == NO_MEMORY:
        raise MemoryError("cannot allocate 9 GB")
    raise OSError(number, os.strerror(number), "/data/pool.json")


def check(*bundles: str) -> str:
    """Check bundles."""
    return " ".join(bundles)


def report() -> dict[str, Any]:
    """Return what a command has done."""
    return {"folders": [Path("a"), Path("b")], "made": [True, False], "labels": []}


LATE = "nnunet_plugin.import_pool:add_pool"
COMMANDS = {"report": report, "measure": measure, "fail": fail, "check": check, "late": LATE}
FOUR = ["measure", "pool", "501", "2d", "0"]


@pytest.fixture(autouse=True)
def no_calls():
    calls.clear()


def tool(*words: str) -> int:
    return run_commands(COMMANDS, "tool", words)


@pytest.mark.parametrize(
    "words",
    [
        ["pool", "501", "3d_fullres", "0"],  # nnU-Net's order, whatever that of the function
        ["pool", "-d", "501", "-c", "3d_fullres", "-f", "0"],
        ["-f=0", "pool", "501", "3d_fullres"],
        ["--fold", "0", "--configuration=3d_fullres", "--pool", "pool", "--dataset", "501"],
    ],
)
def test_arguments_and_short_flags_are_nnunets(words):
    assert tool("measure", *words) == 0
    (call,) = calls
    assert (call["pool"], call["dataset"], call["configuration"], call["fold"]) == ("pool", 501, "3d_fullres", 0)
    assert call["share"] == 0.5 and call["overwrite"] is False


@pytest.mark.parametrize(
    "words, values",
    [
        (["--pool=1e5"], {"pool": "1e5"}),
        (["--pool", "2024"], {"pool": "2024"}),
        (["--pool", "[1]"], {"pool": "[1]"}),
        (["--plans", "007", "-p", "True"], {"plans": "True"}),
        (["--dataset", "1e5"], {"dataset": "1e5"}),
        (["--overwrite"], {"overwrite": True}),
        (["--overwrite", "false"], {"overwrite": False}),
        (["--share", "1e-1", "--plans=~/x"], {"share": 0.1, "plans": os.path.expanduser("~/x")}),
        (["--steps", "[[0, 0.5], [3, 1]]"], {"steps": [[0, 0.5], [3, 1]]}),
        (["--training", '{"first_order": true}'], {"training": {"first_order": True}}),
        (["--training", "{'first_order': True}"], {"training": {"first_order": True}}),
    ],
)
def test_each_option_takes_its_kind(words, values):
    given = [] if "--pool" in words[0] else ["pool"]
    given += [] if "--dataset" in words[0] else ["501"]
    assert tool("measure", *given, "2d", "0", *words) == 0
    assert {key: calls[0][key] for key in values} == values


@pytest.mark.parametrize(
    "words, status, said",
    [
        ([*FOUR, "--shre", "1"], 2, "did you mean --share?"),
        ([*FOUR, "-s", "1"], 2, "unknown option -s"),
        ([*FOUR, "-tr", "x"], 2, "unknown option -tr"),
        ([*FOUR, "--share"], 2, "--share without a value"),
        ([*FOUR, "--plans", "--overwrite"], 2, "--plans without a value"),
        ([*FOUR, "0.5", "plans", "[]", "{}", "True", "more"], 2, "too many arguments: more"),
        (FOUR[:4], 2, "no FOLD"),
        (["measur"], 2, "error: unknown command measur; remedy: did you mean measure?; allowed: report, measure, "),
        ([*FOUR, "--overwrite", "flase"], 1, "True or False"),
        ([*FOUR, "--overwrite", "1"], 1, "True or False"),
        ([*FOUR, "--share", "half"], 1, "a number"),
        ([*FOUR, "--share", "-1"], 1, "--share -1; allowed: a number from 0"),  # a value, and no flag
        (["fail", "two"], 1, "a whole number"),
    ],
)
def test_what_is_wrong_is_said_once_and_nothing_is_done(capsys, words, status, said):
    assert tool(*words) == status
    error = capsys.readouterr().err
    assert said in error and error.count("error: ") == 1 and "Traceback" not in error
    assert not calls


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOMEM, NO_MEMORY])
def test_what_the_machine_lacks_is_one_error(capsys, number):
    assert tool("fail", str(number)) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "Traceback" not in error
    assert ("memory" in error) == (number in (errno.ENOMEM, NO_MEMORY))


def test_ctrl_c_says_that_the_command_goes_on(capsys):
    assert tool("fail", "0") == 130
    assert capsys.readouterr().err == "error: interrupted; the same command goes on\n"


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(OSError):
        tool("fail", str(errno.EBADF))


def test_help_is_plain_and_whole(capsys):
    for words in ([], ["--help"], ["-h"], ["help"]):
        assert tool(*words) == 0
        said = capsys.readouterr().out
        assert all(command in said for command in COMMANDS) and "Measure a pool." in said and "OMP_NUM_THREADS" in said
    for words in (["measure", "--help"], ["measure", "x", "-h"]):
        assert tool(*words) == 0
        said = capsys.readouterr().out
        assert said.startswith(
            "tool measure POOL DATASET CONFIGURATION FOLD [options]\n\nMeasure a pool.\n\nMore words.\n"
        )
        assert "The folder of a pool." in said and "-p, --plans" in said and "A part (default: 0.5)." in said
        assert "Example:\n  tool measure pool 501 2d 0\n" in said and "\x1b" not in said
    assert not calls
    assert describe(check, "tool check").startswith("tool check [BUNDLES ...]")
    assert tool("check", "a", "b") == 0 and capsys.readouterr().out == "a b\n"


def test_the_version_is_that_of_the_package(capsys):
    assert tool("--version") == 0
    assert capsys.readouterr().out == f"tool {importlib.metadata.version('synthaug')}\n"


def test_input_error_is_what_a_user_reads(capsys):
    def refuse() -> None:
        """Refuse."""
        raise InputError("x", "y", "z")

    assert run_commands({"refuse": refuse}, "tool", ["refuse"]) == 1
    assert capsys.readouterr().err == "error: x; allowed: y; remedy: z\n"


def test_what_is_told_can_be_copied(capsys):
    assert tool("report") == 0
    assert capsys.readouterr().out == "folders: a, b\nmade: True, False\nlabels: \n"
