"""Command line: `python -m nnunet_plugin add-pool | cpu-plans | ext-path | export-model | hash-pool`."""

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import fire
from fire.decorators import SetParseFns

from . import ext_path
from .cpu_plans import write_cpu_plans
from .errors import InputError
from .export import export_model
from .import_pool import add_pool
from .options import checked, parsers
from .pool_format import hash_pool


class _Bound:
    """A command that is bound but has not run: Fire notices unknown flags only after a call."""

    def __init__(self, run: Callable[[], Any]):
        self._run = run


def _deferred(function: Callable[..., Any]) -> Callable[..., _Bound]:
    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> _Bound:
        return _Bound(lambda: checked(function)(*args, **kwargs))

    return SetParseFns(**parsers(function))(bind)


COMMANDS: dict[str, Callable[..., Any]] = {
    "add-pool": add_pool,
    "cpu-plans": write_cpu_plans,
    "ext-path": ext_path,
    "export-model": export_model,
    "hash-pool": hash_pool,
}


def run_commands(
    commands: dict[str, Callable[..., Any]],
    name: str,
    argv: Sequence[str] | None = None,
) -> int:
    """Run one of the commands as the command line says, and print what it returns.

    Returns the exit status: 1 after bad input (`InputError`), 2 after wrong usage (raised by
    Fire).
    """
    bound = fire.Fire(
        {command: _deferred(function) for command, function in commands.items()},
        command=list(argv) if argv is not None else None,
        name=name,
        serialize=lambda result: None if isinstance(result, _Bound) else result,
    )
    if not isinstance(bound, _Bound):
        return 0
    try:
        result = bound._run()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if isinstance(result, dict):
        print("\n".join(f"{key}: {value}" for key, value in result.items()))
    else:
        print(result)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the plugin."""
    return run_commands(COMMANDS, "nnunet_plugin", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
