"""Bundles in Python: MONAI's workflow, which takes unknown settings without a word, made strict."""

from __future__ import annotations

from typing import Any

from monai.bundle import ConfigWorkflow

from .settings import refuse_unknown_keys


class StrictWorkflow(ConfigWorkflow):
    """For `monai.bundle.create_workflow("scripts.runtime.workflow.StrictWorkflow", config_file=..., SETTING=...)`.

    Raises:
        InputError: a setting that the bundle does not have; names the nearest.
    """

    def __init__(self, *arguments: Any, **settings: Any):
        super().__init__(*arguments, **settings)
        refuse_unknown_keys(self)
