"""Command line: `python -m nnunet_plugin add-pool | cpu-plans | ext-path | export-model | hash-pool | transplant`."""

import sys
from collections.abc import Sequence

from . import ext_path
from .command_line import Command, run_commands

COMMANDS: dict[str, Command | str] = {
    "add-pool": "nnunet_plugin.import_pool:add_pool",
    "cpu-plans": "nnunet_plugin.cpu_plans:write_cpu_plans",
    "ext-path": ext_path,
    "export-model": "nnunet_plugin.export:export_model",
    "hash-pool": "nnunet_plugin.pool_format:hash_pool",
    "transplant": "nnunet_plugin.transplant.command:add_transplants",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command of the plugin."""
    return run_commands(COMMANDS, "nnunet_plugin", argv=argv)


if __name__ == "__main__":
    sys.exit(main())
