"""Kinds of settings: what a bundle, its docs or a remedy itself says is taken; what a training needs cannot go."""

from typing import Any

import pytest
from monai.bundle import ConfigParser

from scripts.runtime import kinds
from scripts.runtime.kinds import EXAMPLES, OPEN, WORDS, same_kind

from .test_bundles import BUNDLES

FILES = [path for folder in BUNDLES for path in sorted(folder.glob("configs/*.json")) if path.stem != "metadata"]
SAVES = [{"_target_": "scripts.training.handlers.TrainingHandlers"}]
LOADS = [{"_target_": "CheckpointLoader"}]


def places(content: Any, name: str = ""):
    if name:
        yield name.lstrip("+"), content
    for key in content if isinstance(content, dict) else range(len(content)) if isinstance(content, list) else ():
        yield from places(content[key], f"{name}#{key}" if name else key)


@pytest.mark.parametrize("file", FILES, ids=lambda path: f"{path.parts[-3]}/{path.stem}")
def test_what_a_bundle_says_itself_is_taken(file):
    for name, value in places(ConfigParser.load_config_file(file)):
        assert same_kind(name, value, value), name


def test_what_a_remedy_says_is_taken():
    assert all(same_kind(name, value, None) for name, value in OPEN.items())
    assert all(same_kind(name, value, WORDS[name]) and same_kind(name, WORDS[name], value)
               for name, value in EXAMPLES.items())  # fmt: skip


def test_items_of_a_list_have_one_of_its_kinds():
    for value in ([[0, 0.5], [10, 0.25]], [[0, 1], [10, 0]], [(0, 0.5)]):
        assert same_kind("steps", value, None)
    for value in (0.5, [0, 0.5], [[0, "half"]], [[0, True]], [], [[]], [[0, float("nan")]]):
        assert not same_kind("steps", value, None)
    assert same_kind("betas", [0.5, 0.9], [1, 0.9]) and not same_kind("channels", [8, 16.5], [8, 16])


def test_components_are_known_by_their_class():
    for value in (
        [{"_target_": "synthaug.training.handlers.TrainingHandlers"}], [*SAVES, {"_target_": "StatsHandler"}],
        [SAVES[0] | {"_disabled_": False}], [SAVES[0] | {"_disabled_": "$not @listed"}],
    ):  # fmt: skip
        assert same_kind("train#handlers", value, SAVES)
    for off in (True, "True", 1):
        assert not same_kind("train#handlers", [SAVES[0] | {"_disabled_": off}], SAVES)
        assert same_kind("handlers", [LOADS[0] | {"_disabled_": off}], LOADS)  # an exported network in its place
    assert same_kind("handlers", [{"_target_": "monai.handlers.CheckpointLoader"}], LOADS)
    assert not same_kind("handlers", [{"_target_": "StatsHandler"}], LOADS)
    assert same_kind("train#handlers", SAVES, [LOADS[0] | {"_disabled_": "$not @listed"}, *SAVES])


def test_an_installed_bundle_names_its_own_components(monkeypatch):
    monkeypatch.setattr(kinds, "__package__", "synthaug.runtime")
    for own in ("scripts", "synthaug"):
        saves = [{"_target_": f"{own}.training.handlers.TrainingHandlers"}]
        assert same_kind("train#handlers", SAVES, saves) and not same_kind("train#handlers", [], saves)
