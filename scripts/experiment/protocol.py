"""What an experiment asks: a YAML file, read, merged with one of its presets, and checked before any work."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ..packaging.bundle_files import bundle_dir, known_settings
from ..runtime.errors import InputError

PROTOCOLS = Path(__file__).parent / "protocols"
COPY_PASTE = "copy_paste"
NNUNET = "nnunet"
SEGMENTATION = "segmentation"

HEAD = ("name", "title", "question", "presets")
DEFAULTS: dict[str, Any] = {
    "dataset": {"modality": "flair", "cases": 30, "test_cases": 0, "seed": 0, "channels": 1, "shape": None},
    "space": "raw",
    "plans": "nnUNetPlans",
    "configuration": "2d",
    "folds": [0],
    "seeds": [0],
    "generator_seed": 0,
    "real": ["all"],
    "num_synthetic": [],
    "generators": {},
    "arms": {},
    "segmenters": {},
    "evaluate": ["validation"],
    "audit": None,
    "pool_metrics": None,
}
GENERATOR_KEYS = ("bundle", "overlays", "settings", "sampling")
ARM_KEYS = ("pool", "num_synthetic", "share", "augmentation", "schedule", "share_end", "steps", "warmup_epochs",
            "finish_epochs")  # fmt: skip
SEGMENTER_KEYS = ("bundle", "overlays", "settings", "arms")
ADDED = "added"  # the share that the samples have of all items, as when they are added to the real ones
NNUNET_SETTINGS = {"num_epochs": 12, "num_iterations_per_epoch": 40, "full_plans": False}
AUDIT_KEYS = ("thresholds", "segmenter_folds", "segmenter_steps", "extractor_steps")
METRIC_KEYS = ("feature_steps", "resamples", "num_samples", "weights_inception", "weights_alexnet", "weights_vgg")
SPACES = ("raw", "nnunet")
# What the cells of an experiment decide; a protocol that could set them, too, could compare unlike with unlike.
DECIDED = {
    "bundle_root", "ckpt_dir", "output_dir", "device", "dataset_dir", "plans", "configuration", "fold", "seed",
    "num_real_cases", "pool_dir", "num_synthetic", "num_samples", "condition", *ARM_KEYS,
}  # fmt: skip


def read_protocol(protocol: str | Path, preset: str | None = None) -> dict[str, Any]:
    """The settings of a protocol: those of the file, those of the preset over them, defaults for the rest.

    Args:
        protocol: name of one that comes with the package, or a YAML file.
        preset: one of its presets; None: the first.

    Raises:
        InputError: there is no such protocol or preset, or a setting of it cannot be used.
    """
    path = Path(protocol)
    if not path.is_file():
        path = PROTOCOLS / f"{protocol}.yaml"
    if not path.is_file():
        known = sorted(p.stem for p in PROTOCOLS.glob("*.yaml"))
        raise InputError(
            f"protocol {str(protocol)!r}", f"a YAML file, or one of {', '.join(known)}", _near(str(protocol), known)
        )
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path} is no YAML ({error})", "a protocol file", "mend it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds no settings", "a protocol file", "see those that come with the package")
    presets = content.pop("presets", {}) or {}
    name = preset or next(iter(presets), None)
    if name is not None and name not in presets:
        raise InputError(
            f"preset {name!r} of {path.name}", f"one of {', '.join(presets) or 'none'}", _near(name, presets)
        )
    merged = _merge(content, presets.get(name, {}) or {}) if name else content
    _check_keys(merged, (*HEAD, *DEFAULTS), path.name)
    settings = {**DEFAULTS, "name": path.stem, "title": path.stem, "question": "", **merged, "preset": name}
    settings["dataset"] = {**DEFAULTS["dataset"], **settings["dataset"]}
    for key in ("audit", "pool_metrics"):  # true: with the defaults
        settings[key] = {True: {}, False: None}[settings[key]] if isinstance(settings[key], bool) else settings[key]
    _check(settings, path.name)
    return json.loads(json.dumps(settings))


def _merge(base: Any, over: Any) -> Any:
    """Mappings are merged key by key, null removes a key, everything else is replaced."""
    if not isinstance(base, dict) or not isinstance(over, dict):
        return over
    merged = {key: value for key, value in base.items() if not (key in over and over[key] is None)}
    return merged | {key: _merge(base.get(key), value) for key, value in over.items() if value is not None}


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]}?" if near else "choose one of them"


def _check_keys(found: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            raise InputError(f"{key!r} in {where}", f"one of {', '.join(known)}", _near(str(key), known))


def _refuse(what: str, allowed: str) -> InputError:
    return InputError(what, allowed, "mend the protocol")


def _check(s: dict[str, Any], where: str) -> None:
    kinds: dict[str, type | tuple[type, ...]] = {
        **{key: type(value) for key, value in DEFAULTS.items()},
        **dict.fromkeys(("audit", "pool_metrics"), (dict, type(None))),
    }
    for key, kind in kinds.items():
        if not isinstance(s[key], kind):
            raise _refuse(f"{key} {s[key]!r} in {where}", f"such as {DEFAULTS[key]!r}")
    _check_keys(s["dataset"], DEFAULTS["dataset"], f"dataset of {where}")
    if s["space"] not in SPACES:
        raise _refuse(f"space {s['space']!r}", " or ".join(SPACES))
    for key in ("folds", "seeds", "num_synthetic"):
        least = 1 if key == "num_synthetic" else 0
        if len(set(s[key])) < len(s[key]) or not all(type(value) is int and value >= least for value in s[key]):
            raise _refuse(f"{key} {s[key]}", f"different whole numbers from {least}")
    if not s["folds"] or not s["seeds"]:
        raise _refuse("no folds or no seeds", "at least one of each")
    if not s["real"] or not all(value == "all" or (type(value) is int and value > 1) for value in s["real"]):
        raise _refuse(f"real {s['real']}", "numbers of training patients from 2, or all")
    if not s["evaluate"] or set(s["evaluate"]) - {"validation", "test"}:
        raise _refuse(f"evaluate {s['evaluate']}", "validation, test")
    for name, generator in s["generators"].items():
        _check_generator(name, generator)
    for name, arm in s["arms"].items():
        _check_arm(name, arm, s)
    for name, segmenter in s["segmenters"].items():
        _check_segmenter(name, segmenter, s)
    references = [name for name, arm in s["arms"].items() if is_reference(arm)]
    if s["segmenters"] and len(references) != 1:
        raise _refuse(
            f"arms without pool and augmentation: {', '.join(references) or 'none'}",
            "exactly one, the reference of every comparison, such as `real only: {}`",
        )
    if not s["segmenters"] and not s["generators"]:
        raise _refuse("neither segmenters nor generators", "something to do")
    _check_keys(s["pool_metrics"] or {}, METRIC_KEYS, "pool_metrics")
    _check_keys(s["audit"] or {}, AUDIT_KEYS, "audit")


def is_reference(arm: Mapping[str, Any]) -> bool:
    """Whether an arm is trained on the real cases as they are."""
    return "pool" not in arm and arm.get("augmentation", "none") == "none"


def _check_generator(name: str, generator: dict[str, Any]) -> None:
    where = f"generator {name!r}"
    _check_keys(generator, GENERATOR_KEYS, where)
    if generator.get("bundle") == COPY_PASTE:
        _check_keys(generator, ("bundle", "settings"), where)
        _check_keys(generator.get("settings", {}), ("spatial_size",), where)
        return
    configs = _configs(where, generator)
    _check_settings(where, generator.get("settings", {}), known_settings(configs, "train.json"))
    _check_settings(where, generator.get("sampling", {}), known_settings(configs, "inference.json"))


def _check_arm(name: str, arm: dict[str, Any], s: dict[str, Any]) -> None:
    _check_keys(arm, ARM_KEYS, f"arm {name!r}")
    if "pool" in arm:
        if arm["pool"] not in s["generators"]:
            known = list(s["generators"])
            raise InputError(f"pool {arm['pool']!r} of arm {name!r}", f"one of {known}", _near(arm["pool"], known))
        numbers = arm.get("num_synthetic", s["num_synthetic"])
        if not numbers or not all(type(value) is int and value > 0 for value in numbers):
            raise _refuse(f"num_synthetic {numbers!r} of arm {name!r}", "numbers of samples, one or more")
    elif extra := sorted(set(arm) - {"augmentation"}):
        raise _refuse(f"{extra[0]} of arm {name!r}, which has no pool", "augmentation alone, or a pool")
    share = arm.get("share", 0.5)
    if share != ADDED and not (type(share) in (int, float) and 0 <= share <= 1):
        raise _refuse(f"share {share!r} of arm {name!r}", f"a number from 0 to 1, or {ADDED}")
    if arm.get("augmentation", "none") not in ("none", "x2", "x3", "x5"):
        raise _refuse(f"augmentation {arm['augmentation']!r} of arm {name!r}", "none, x2, x3, x5")


def _check_segmenter(name: str, segmenter: dict[str, Any], s: dict[str, Any]) -> None:
    where = f"segmenter {name!r}"
    _check_keys(segmenter, SEGMENTER_KEYS, where)
    for arm in segmenter.get("arms", ()):
        if arm not in s["arms"]:
            raise InputError(f"arm {arm!r} of {where}", f"one of {list(s['arms'])}", _near(arm, s["arms"]))
    if segmenter.get("bundle", SEGMENTATION) == NNUNET:
        _check_keys(segmenter.get("settings", {}), NNUNET_SETTINGS, where)
        augmented = [a for a in segmenter.get("arms", s["arms"]) if s["arms"][a].get("augmentation", "none") != "none"]
        if augmented:
            raise _refuse(f"arm {augmented[0]!r} of {where}", "arms without augmentation: nnU-Net has its own")
        if added := [a for a in segmenter.get("arms", s["arms"]) if s["arms"][a].get("share") == ADDED]:
            raise _refuse(f"share {ADDED} of arm {added[0]!r} with {where}", "a number")
        if s["space"] != "nnunet":
            raise _refuse(f"{where} in space {s['space']}", "space: nnunet, the arrays that nnU-Net preprocessed")
        return
    configs = _configs(where, {"bundle": SEGMENTATION, **segmenter})
    _check_settings(where, segmenter.get("settings", {}), known_settings(configs, "train.json"))


def _configs(where: str, entry: Mapping[str, Any]) -> Path:
    configs = bundle_dir(entry.get("bundle", "")) / "configs"
    for overlay in entry.get("overlays", ()):
        if not (configs / str(overlay)).is_file():
            known = sorted(path.name for path in configs.glob("*.json"))
            raise InputError(f"overlay {overlay!r} of {where}", f"files of {configs}", _near(str(overlay), known))
    return configs


def _check_settings(where: str, found: Mapping[str, Any], known: set[str]) -> None:
    for key in found:
        name = str(key).split("#")[0]
        if name in DECIDED:
            raise _refuse(f"setting {key} of {where}", "settings that are the same in every arm and fold")
        if name not in known:
            raise InputError(f"setting {key} of {where}", "a setting of its bundle", _near(name, known))
