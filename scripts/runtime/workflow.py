"""Bundles in Python: MONAI's workflow, which takes unknown settings without a word, made strict."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigWorkflow

from .settings import check_overrides, refuse_unknown_keys, say_errors_plainly


class StrictWorkflow(ConfigWorkflow):
    """For `monai.bundle.create_workflow("scripts.runtime.workflow.StrictWorkflow", config_file=..., SETTING=...)`.

    On the command line, `python -m monai.bundle run --workflow_name scripts.runtime.workflow.StrictWorkflow ...`. MONAI
    follows names such as `train#optimizer#lr` while it makes a workflow, before anything of a bundle runs: this class
    alone can say plainly that there is no such name.

    Raises:
        InputError: a setting that the bundle does not have; names the nearest.
    """

    def __init__(self, config_file: Any, *arguments: Any, **settings: Any):
        say_errors_plainly()
        nested = {name: settings[name] for name in settings if "#" in name or "::" in name}
        check_overrides(nested, config_file, settings.get("tracking"))
        super().__init__(config_file, *arguments, **settings)
        refuse_unknown_keys(self)
