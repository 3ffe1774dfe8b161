"""One rule for the options of every command: what is none of its kind is refused before the command does anything."""

import functools
import inspect
import math
from pathlib import Path

import pytest
from nnunet_plugin.command_line import _loaded
from nnunet_plugin.errors import InputError
from nnunet_plugin.options import _hints, _kinds, _kinds_of_items, checked

from scripts.__main__ import COMMANDS

NUMBERS = [math.nan, math.inf, -math.inf, -1, -0.5]
PLACEHOLDERS = {str: "x", int: 0, float: 0.5, bool: True, list: [], dict: {}}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_of_every_command_takes_its_kind_alone(name):
    function = _loaded(COMMANDS[name])

    @functools.wraps(function)
    def stub(*args, **kwargs):
        return "done"

    parameters = inspect.signature(function).parameters.values()
    kinds = {option: kind for option, hint in _hints(function).items() if (kind := _kinds(hint))}
    needed = {
        p.name: next((value for kind, value in PLACEHOLDERS.items() if kind in kinds.get(p.name, {str})), "x")
        for p in parameters
        if p.default is p.empty and p.kind is not p.VAR_POSITIONAL
    }
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    assert checked(stub)(**needed, **defaults) == "done"
    for option, kind in kinds.items():
        wrong = [*NUMBERS] if kind & {int, float} else []
        wrong += [5, "abc", math.nan] if kind & {list, dict} else []
        wrong += [""] if kind & {str, Path} else []
        wrong += [[]] if list not in kind else []
        wrong += [{}] if dict not in kind else []
        wrong += ["false", "yes", 0, 1] if bool in kind else []
        wrong += ["abc", "nan"] if kind & {int, float} and not kind & {str, bool} else []
        wrong += [2.5, 1e3] if int in kind and float not in kind else []
        wrong += [True] if bool not in kind else []
        wrong += [None] if type(None) not in kind else []
        for value in wrong:
            with pytest.raises(InputError, match=f"--{option} "):
                checked(stub)(**{**needed, option: value})
        if (of := _kinds_of_items(_hints(function)[option])) is not None:
            for value in ([None], [[1]], [{}], [True], ["x"] if not of & {str} else [1]):
                with pytest.raises(InputError, match=f"--{option} .*a list, each of it"):
                    checked(stub)(**{**needed, option: value})
