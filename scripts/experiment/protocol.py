"""What an experiment asks: a YAML file, read, merged with one of its presets, and checked before any work."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from nnunet_plugin.settings import parse_settings

from ..packaging.bundle_files import bundle_dir, known_settings
from ..pool.from_real import FROM_REAL
from ..runtime.errors import InputError
from ..runtime.settings import MOST_SEED
from .accepted import check_network, check_overlays, check_settings, near, refuse_expressions

PROTOCOLS = Path(__file__).parent / "protocols"
NNUNET = "nnunet"
SEGMENTATION = "segmentation"

HEAD = ("name", "title", "question", "takes", "presets")
DEFAULTS: dict[str, Any] = {
    "dataset": {"modality": "flair", "cases": 30, "test_cases": 0, "seed": 0, "channels": 1, "shape": None},
    "space": "raw",
    "plans": "nnUNetPlans",
    "configuration": "2d",
    "folds": [0],
    "inner": None,
    "seeds": [0],
    "generator_seed": 0,
    "real": ["all"],
    "num_synthetic": [],
    "generators": {},
    "arms": {},
    "segmenters": {},
    "evaluate": ["validation"],
    "budget": "steps",
    "reference": None,
    "audit": None,
    "pool_metrics": None,
}
GENERATOR_KEYS = ("bundle", "overlays", "settings", "sampling")
# What an arm says itself; anything else of it is a setting of its segmenters: of nnU-Net's `synthaug` block, or of the
# bundle.
ARM_KEYS = ("pool", "num_synthetic", "epochs_factor")
SEGMENTER_KEYS = ("bundle", "overlays", "settings", "arms", "budget")
# Kinds of what a generator, an arm or a segmenter says itself.
ENTRY_KINDS = {
    "bundle": str, "overlays": list, "settings": dict, "sampling": dict, "pool": str, "arms": list,
    "num_synthetic": list, "budget": str,
}  # fmt: skip
ADDED = "added"  # the share that the samples have of all items, as when they are added to the real ones
NNUNET_SETTINGS = {"num_epochs": 12, "num_iterations_per_epoch": 40, "full_plans": False}
AUDIT_KEYS = (
    "thresholds", "segmenter_folds", "segmenter_steps", "extractor_steps", "usefulness_steps", "usefulness_threshold",
)  # fmt: skip
METRIC_KEYS = ("feature_steps", "resamples", "num_samples", "weights_inception", "weights_alexnet", "weights_vgg")
SPACES = ("raw", "nnunet")
# `inner: {fold: 0, folds: 3}`: the folds are three new ones of the training cases of fold 0, whose validation cases are
# left out of everything, so that they can still judge what was chosen.
INNER_KEYS = ("fold", "folds")
# Every arm takes the same steps; or as many as give each real item the same number of looks, synthetic ones on top; or
# epochs over all items, as in the papers.
BUDGETS = ("steps", "real_exposures", "epochs")
# What the cells of an experiment decide, and what an arm of a segmenter may not decide either.
CELLS = {
    "bundle_root", "ckpt_dir", "output_dir", "device", "dataset_dir", "plans", "configuration", "fold", "seed",
    "num_real_cases", "pool_dir", "num_synthetic", "num_samples", "condition", "autoencoder_dir",
}  # fmt: skip
# A protocol that could set these for a generator or segmenter, too, could compare unlike with unlike.
DECIDED = CELLS | {
    "share", "augmentation", "transplant", "budget", "schedule", "share_end", "steps", "warmup_epochs", "finish_epochs",
}  # fmt: skip
# A longer training, or another seed, would be another reason for another Dice.
LENGTH = ("max_epochs", "iterations_per_epoch", "batch_size", "training", "learning_rate")


def protocol_names() -> list[str]:
    """The protocols that come with the package."""
    return sorted(path.stem for path in PROTOCOLS.glob("*.yaml"))


def read_protocol(
    protocol: str | Path, preset: str | None = None, over: Mapping[str, Any] | None = None, check: bool = True
) -> dict[str, Any]:
    """The settings of a protocol: those of the file, those of the preset over them, defaults for the rest.

    Args:
        protocol: name of one that comes with the package, or a YAML file.
        preset: one of its presets; None: the first.
        over: lies over both.
        check: look at every setting, for which seconds of imports may be needed.

    Raises:
        InputError: there is no such protocol or preset, or a setting of it cannot be used.
    """
    path = Path(protocol)
    if not path.is_file():
        path = PROTOCOLS / f"{protocol}.yaml"
    if not path.is_file():
        known = protocol_names()
        raise InputError(
            f"protocol {str(protocol)!r}", f"a YAML file, or one of {', '.join(known)}", near(str(protocol), known)
        )
    try:
        content = yaml.safe_load(path.read_text("utf-8-sig"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no YAML ({error})", "a protocol file", "mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings", "a protocol file", "see those that come with the package")
    presets = content.pop("presets", {}) or {}
    if not isinstance(presets, dict) or not all(isinstance(one, (dict, type(None))) for one in presets.values()):
        raise _refuse(f"presets {presets!r} of {path.name}", "settings by the name of the preset")
    name = preset or next(iter(presets), None)
    if name is not None and name not in presets:
        raise InputError(
            f"preset {name!r} of {path.name}", f"one of {', '.join(presets) or 'none'}", near(name, presets)
        )
    merged = _merge(content, presets.get(name, {}) or {}) if name else content
    merged = _merge(merged, dict(over or {}))
    _check_keys(merged, (*HEAD, *DEFAULTS), path.name)
    head = {"name": path.stem, "title": path.stem, "question": "", "takes": ""}
    settings = {**DEFAULTS, **head, **merged, "preset": name}
    if not isinstance(settings["dataset"], dict):
        raise _refuse(f"dataset {settings['dataset']!r} of {path.name}", f"such as {DEFAULTS['dataset']}")
    settings["dataset"] = {**DEFAULTS["dataset"], **settings["dataset"]}
    for key in ("audit", "pool_metrics"):  # true: with the defaults
        settings[key] = {True: {}, False: None}[settings[key]] if isinstance(settings[key], bool) else settings[key]
    try:
        settings = json.loads(json.dumps(settings))
    except TypeError as error:
        raise _refuse(f"{path.name} with a value that is neither text, number, list nor mapping ({error})",
                      "dates in quotes, and nothing binary") from error  # fmt: skip
    if check:
        _check(settings, path.name)
    return settings


def _merge(base: Any, over: Any) -> Any:
    """Mappings are merged key by key, null removes a key, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = {key: value for key, value in base.items() if not (key in over and over[key] is None)}
    return merged | {key: _merge(base.get(key), value) for key, value in over.items() if value is not None}


def _check_keys(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise InputError(f"{key!r} in {where}", f"one of {', '.join(known)}", near(str(key), known))


def _refuse(what: str, allowed: str) -> InputError:
    return InputError(what, allowed, "mend the protocol")


def _check(s: dict[str, Any], where: str) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        **{key: type(value) for key, value in DEFAULTS.items()},
        **dict.fromkeys(("audit", "pool_metrics"), (dict, type(None))),
        "reference": (str, type(None)),
        "inner": (dict, type(None)),
        **dict.fromkeys(("name", "title", "question", "takes"), str),
    }
    for key, kind in kinds.items():
        if not isinstance(s[key], kind):
            raise _refuse(f"{key} {s[key]!r} in {where}", f"such as {DEFAULTS.get(key, 'a text')!r}")
    _check_entries(s, where)
    refuse_expressions({key: value for key, value in s.items() if key not in HEAD}, where)
    _check_keys(s["dataset"], DEFAULTS["dataset"], f"dataset of {where}")
    if s["space"] not in SPACES:
        raise _refuse(f"space {s['space']!r}", " or ".join(SPACES))
    for key in ("folds", "seeds", "num_synthetic"):
        least = 1 if key == "num_synthetic" else 0
        whole = [value for value in s[key] if not (key == "folds" and value == "all")]
        if len(set(s[key])) < len(s[key]) or not all(type(value) is int and value >= least for value in whole):
            raise _refuse(f"{key} {s[key]}", f"different whole numbers from {least}" + (", or all" * (key == "folds")))
    if not s["folds"] or not s["seeds"]:
        raise _refuse("no folds or no seeds", "at least one of each")
    for seed in (*s["seeds"], s["generator_seed"]):
        if not 0 <= seed <= MOST_SEED:
            raise _refuse(f"seed {seed}", f"whole numbers from 0 to {MOST_SEED}")
    if not s["real"] or not all(value == "all" or (type(value) is int and value > 1) for value in s["real"]):
        raise _refuse(f"real {s['real']}", "numbers of training patients from 2, or all")
    if not s["evaluate"] or set(s["evaluate"]) - {"validation", "test"}:
        raise _refuse(f"evaluate {s['evaluate']}", "validation, test")
    if "all" in s["folds"] and s["segmenters"] and s["evaluate"] != ["test"]:
        raise _refuse(f"fold all, and evaluate {s['evaluate']}", "evaluate: [test]: no case is left to validate on")
    if "all" in s["folds"] and s["real"] != ["all"]:
        raise _refuse(f"fold all, and real {s['real']}", "real: [all]; fewer patients come from numbered folds")
    if s["inner"] is not None:
        _check_inner(s, where)
    for budget in (s["budget"], *(one.get("budget", "steps") for one in s["segmenters"].values())):
        if budget not in BUDGETS:
            raise InputError(f"budget {budget!r}", f"one of {', '.join(BUDGETS)}", near(str(budget), BUDGETS))
    for name, generator in s["generators"].items():
        _check_generator(name, generator)
    for name, arm in s["arms"].items():
        _check_arm(name, arm, s)
    for name, segmenter in s["segmenters"].items():
        _check_segmenter(name, segmenter, s)
    if s["reference"] is not None and s["reference"] not in s["arms"]:
        raise InputError(f"reference {s['reference']!r}", f"one of {list(s['arms'])}", near(s["reference"], s["arms"]))
    references = [name for name in s["arms"] if is_reference(name, s)]
    if s["segmenters"] and len(references) != 1:
        raise _refuse(
            f"arms without pool and augmentation: {', '.join(references) or 'none'}",
            "exactly one, the reference of every comparison, such as `real only: {}`, or `reference: NAME`",
        )
    if not s["segmenters"] and not s["generators"]:
        raise _refuse("neither segmenters nor generators", "something to do")
    _check_keys(s["pool_metrics"] or {}, METRIC_KEYS, "pool_metrics")
    _check_keys(s["audit"] or {}, AUDIT_KEYS, "audit")


def _check_entries(s: dict[str, Any], where: str) -> None:
    """Refuse generators, arms and segmenters that are no settings by name, and lists of lists."""
    lists = {key: s[key] for key in ("folds", "seeds", "real", "num_synthetic", "evaluate")}
    for key in ("generators", "arms", "segmenters"):
        for name, entry in s[key].items():
            if not isinstance(entry, dict):
                raise _refuse(f"{key} {name!r} in {where}: {entry!r}", "settings by name, or {}")
            for part, kind in ENTRY_KINDS.items():
                if not isinstance(entry.get(part, kind()), kind):
                    raise _refuse(f"{part} {entry[part]!r} of {key} {name!r} in {where}", f"such as {kind()!r}")
                if kind is list:
                    lists[f"{part} of {key} {name!r}"] = entry.get(part, [])
    for what, items in lists.items():
        if any(isinstance(item, (list, dict)) for item in items):
            raise _refuse(f"{what} {items} in {where}", "a list of names or numbers")


def _check_inner(s: dict[str, Any], where: str) -> None:
    inner = s["inner"]
    _check_keys(inner, INNER_KEYS, f"inner of {where}")
    fold, folds = inner.get("fold"), inner.get("folds")
    if not (fold == "all" or (type(fold) is int and fold >= 0)) or type(folds) is not int or folds < 2:
        raise _refuse(f"inner {inner}", "such as {fold: 0, folds: 3}: a fold of the data set, and 2 new ones or more")
    if "all" in s["folds"] or max(s["folds"]) >= folds:
        raise _refuse(f"folds {s['folds']} of {folds} inner ones", f"0 to {folds - 1}")
    if s["evaluate"] != ["validation"]:
        raise _refuse(f"inner folds, and evaluate {s['evaluate']}", "evaluate: [validation]")


def is_reference(name: str, s: Mapping[str, Any]) -> bool:
    """Whether the others are compared with this arm: the one named so, or that on the real cases as they are."""
    if s["reference"] is not None:
        return name == s["reference"]
    return not {key: value for key, value in s["arms"][name].items() if (key, value) != ("augmentation", "none")}


def budget_of(segmenter: Mapping[str, Any], s: Mapping[str, Any]) -> str:
    """How long the arms of a segmenter are trained: one of `BUDGETS`."""
    return segmenter.get("budget", s["budget"])


def _check_generator(name: str, generator: dict[str, Any]) -> None:
    where = f"generator {name!r}"
    _check_keys(generator, GENERATOR_KEYS, where)
    if generator.get("bundle") in FROM_REAL:
        _check_keys(generator, ("bundle", "settings"), where)
        _check_keys(generator.get("settings", {}), ("spatial_size",), where)
        return
    bundle, overlays = generator.get("bundle", ""), generator.get("overlays", ())
    check_overlays(where, bundle, overlays)
    check_settings(where, bundle, "train.json", overlays, generator.get("settings", {}), DECIDED)
    check_settings(where, bundle, "inference.json", overlays, generator.get("sampling", {}), DECIDED)


def _check_arm(name: str, arm: dict[str, Any], s: dict[str, Any]) -> None:
    if "pool" in arm:
        if arm["pool"] not in s["generators"]:
            known = list(s["generators"])
            raise InputError(f"pool {arm['pool']!r} of arm {name!r}", f"one of {known}", near(str(arm["pool"]), known))
        numbers = arm.get("num_synthetic", s["num_synthetic"])
        if not numbers or not all(type(value) is int and value > 0 for value in numbers):
            raise _refuse(f"num_synthetic {numbers!r} of arm {name!r}", "numbers of samples, one or more")
    elif extra := sorted({"num_synthetic", "share"} & set(arm)):
        raise _refuse(f"{extra[0]} of arm {name!r}, which has no pool", "settings that need none, or a pool")
    factor = arm.get("epochs_factor", 1)
    if isinstance(factor, bool) or not isinstance(factor, (int, float)) or not 0 < factor <= 10:
        raise _refuse(f"epochs_factor {factor!r} of arm {name!r}", "a number above 0, such as 0.5: half the epochs")
    share = arm.get("share", 0.5)
    if share != ADDED and not (type(share) in (int, float) and 0 <= share <= 1):
        raise _refuse(f"share {share!r} of arm {name!r}", f"a number from 0 to 1, or {ADDED}")


def _check_segmenter(name: str, segmenter: dict[str, Any], s: dict[str, Any]) -> None:
    where = f"segmenter {name!r}"
    _check_keys(segmenter, SEGMENTER_KEYS, where)
    chosen = segmenter.get("arms", s["arms"])
    for arm in chosen:
        if arm not in s["arms"]:
            raise InputError(f"arm {arm!r} of {where}", f"one of {list(s['arms'])}", near(str(arm), s["arms"]))
    if not any(is_reference(arm, s) for arm in chosen):
        raise _refuse(f"arms {list(chosen)} of {where}", "the reference of every comparison among them")
    arms = {arm: mixing_of(s["arms"][arm]) for arm in chosen}
    if segmenter.get("bundle", SEGMENTATION) == NNUNET:
        _check_nnunet(where, segmenter, arms, s)
        return
    bundle, overlays = segmenter.get("bundle", SEGMENTATION), segmenter.get("overlays", ())
    check_overlays(where, bundle, overlays)
    check_settings(where, bundle, "train.json", overlays, segmenter.get("settings", {}), DECIDED)
    known = known_settings(bundle_dir(bundle) / "configs", "train.json") - CELLS - set(LENGTH)
    for arm, mixing in arms.items():
        _check_keys(mixing, sorted(known), f"arm {arm!r}")
        of_bundle = {key: value for key, value in mixing.items() if value != ADDED}
        check_settings(f"arm {arm!r}", bundle, "train.json", overlays, of_bundle)
        _check_mixing(arm, mixing)


def _check_mixing(arm: str, mixing: Mapping[str, Any]) -> None:
    """What the bundle would refuse in a training, after hours of generators."""
    if mixing.get("augmentation", "none") == "none" and mixing.get("transplant") is None:
        return
    from ..segmentation.augmentation import augmentation_factor  # imports MONAI, which takes seconds
    from ..segmentation.transplants import TransplantSettings

    try:
        augmentation_factor(mixing.get("augmentation", "none"))
        TransplantSettings.parse(mixing.get("transplant"))
    except InputError as error:
        error.args = (f"arm {arm!r}: {error}",)
        raise


def mixing_of(arm: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an arm that its segmenters take as they are."""
    return {key: value for key, value in arm.items() if key not in ARM_KEYS}


def _check_nnunet(where: str, segmenter: dict[str, Any], arms: dict[str, dict[str, Any]], s: dict[str, Any]) -> None:
    settings = {**NNUNET_SETTINGS, **segmenter.get("settings", {})}
    _check_keys(settings, NNUNET_SETTINGS, where)
    if not isinstance(settings["full_plans"], bool):
        raise _refuse(f"full_plans {settings['full_plans']!r} of {where}", "true or false")
    budget = budget_of(segmenter, s)
    if budget == "epochs":
        raise _refuse(f"budget epochs of {where}", "steps or real_exposures: nnU-Net's epochs are so many steps each")
    length = {key: settings[key] for key in ("num_epochs", "num_iterations_per_epoch")}
    for name, mixing in arms.items():
        if mixing.get("augmentation", "none") != "none":
            raise _refuse(f"arm {name!r} of {where}", "arms without augmentation: nnU-Net has its own")
        if mixing.get("share") == ADDED:
            raise _refuse(f"share {ADDED} of arm {name!r} with {where}", "a number")
        block = {key: value for key, value in mixing.items() if key != "augmentation"}
        alone = "pool" not in s["arms"][name] and mixing.get("transplant") is not None
        try:
            parse_settings({**({} if alone else {"pool": "pool"}), **block, "training": length})
        except InputError as error:
            error.args = (f"arm {name!r} of {where}: {error}",)
            raise
    if s["space"] != "nnunet":
        raise _refuse(f"{where} in space {s['space']}", "space: nnunet, the arrays that nnU-Net preprocessed")
    synthetic = [name for name, mixing in arms.items() if mixing.get("share") == 1]
    if budget == "real_exposures" and synthetic:
        raise _refuse(f"budget real_exposures, and arm {synthetic[0]!r} of synthetic samples alone", "a share below 1")


def check_networks(s: Mapping[str, Any]) -> None:
    """Build every network of a protocol once, and see that generators fit nnU-Net's configuration.

    Raises:
        InputError: names what cannot be built.
    """
    entries = [(f"generator {name!r}", one) for name, one in s["generators"].items()]
    entries += [(f"segmenter {name!r}", {"bundle": SEGMENTATION, **one}) for name, one in s["segmenters"].items()]
    for where, entry in entries:
        if entry["bundle"] in (*FROM_REAL, NNUNET):
            continue
        axes = check_network(where, entry["bundle"], entry.get("overlays", ()), entry.get("settings", {}))
        if s["space"] == "nnunet" and axes != (2 if s["configuration"].startswith("2d") else 3):
            raise InputError(
                f"{where} for {'slices' if axes == 2 else 'volumes'} with the configuration {s['configuration']}",
                "slices with 2d, volumes with 3d_fullres: single slices lack the context that 3D needs",
                "choose another bundle, overlay or configuration",
            )
