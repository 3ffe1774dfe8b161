"""What bundles and nnU-Net accept of a protocol's settings, asked before any work starts."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..packaging.bundle_files import bundle_dir, bundle_names, known_settings
from ..runtime.errors import InputError
from ..runtime.settings import WORDS, least

# What makes MONAI evaluate, refer to, copy or build something: only a bundle's own configs may.
MARKS = ("$", "@", "%")
KEYWORDS = ("_target_", "_mode_", "_disabled_", "_requires_", "_desc_")


def near(name: str, known: Iterable[str]) -> str:
    """The nearest of the known names, as a remedy."""
    found = difflib.get_close_matches(name, [str(one) for one in known], n=1)
    return f"did you mean {found[0]}?" if found else "choose one of them"


def plain(value: Any) -> Any:
    """A value from the command line with JSON's words in it, which Fire takes for text, as Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    words = {"true": True, "false": False, "null": None}
    return words.get(value, value) if isinstance(value, str) else value


def refuse_expressions(value: Any, where: str) -> None:
    """Refuse what MONAI would evaluate, resolve or build, at any depth and also where it would read text as a literal.

    Raises:
        InputError: names the first of them.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            if words := set(re.split("#|::", str(key).strip())) & set(KEYWORDS):
                raise _expression(words.pop(), where)
            refuse_expressions(item, where)
    elif isinstance(value, (list, tuple)):
        for item in value:
            refuse_expressions(item, where)
    elif isinstance(value, str):
        if value.strip().startswith(MARKS):
            raise _expression(value, where)
        from fire.parser import DefaultParseValue  # with which MONAI's command line reads it

        if (read := DefaultParseValue(value)) != value:
            refuse_expressions(read, where)


def _expression(found: str, where: str) -> InputError:
    return InputError(
        f"{found!r} in {where}, which MONAI would evaluate",
        f"values: no text that begins with {', '.join(MARKS)}, no {KEYWORDS[0]}",
        "write the value itself; what has to be computed belongs into a config file of a bundle",
    )


def check_overlays(where: str, bundle: str, overlays: Sequence[Any], remedy: str = "") -> None:
    """Refuse what is no bundle, and overlays that are no files of its configs.

    Raises:
        InputError: names the nearest.
    """
    if bundle not in bundle_names():
        raise InputError(f"bundle {bundle!r} of {where}", f"one of {bundle_names()}", near(str(bundle), bundle_names()))
    known = sorted(path.name for path in (bundle_dir(bundle) / "configs").glob("*.json"))
    for overlay in overlays:
        if overlay not in known:
            raise InputError(
                f"overlay {overlay!r} of {where}", f"files of {bundle_dir(bundle) / 'configs'}",
                remedy or near(str(overlay), known),
            )  # fmt: skip


def defaults(bundle: str, files: Sequence[str]) -> dict[str, Any]:
    """The settings of config files of a bundle, the later ones over the earlier; references to other files followed."""
    configs = bundle_dir(bundle) / "configs"
    found: dict[str, Any] = {}
    for name in files:
        content = json.loads((configs / name).read_text())
        found |= {key.lstrip("+"): _followed(value, configs) for key, value in content.items()}
    return found


def _followed(value: Any, configs: Path) -> Any:
    while isinstance(value, str) and (link := re.fullmatch(r"%configs/(\w+\.json)::(\w+)", value)):
        value = json.loads((configs / link[1]).read_text()).get(link[2])
    return value


def check_settings(
    where: str, bundle: str, config: str, overlays: Sequence[str], settings: Any, decided: Iterable[str] = ()
) -> None:
    """Refuse settings that a bundle does not have, or whose value is of another kind than its own.

    Args:
        where: what the settings are, in the reader's words.
        bundle, config, overlays: whose they are.
        settings: name -> value; names may go deeper, such as `train#optimizer#lr`.
        decided: names that may not be set.

    Raises:
        InputError: names the setting and the nearest known one.
    """
    if not isinstance(settings, Mapping):
        raise InputError(f"{where} {settings!r}", "settings by name", "write a mapping, such as {max_epochs: 100}")
    refuse_expressions(settings, where)
    own = defaults(bundle, [config, *overlays])
    known = set(own)
    for key, value in settings.items():
        name = _root(key)
        if name in decided:
            raise InputError(
                f"setting {key} of {where}", "settings that are the same in every arm and fold", "leave it out"
            )
        if name not in known:
            raise InputError(f"setting {key} of {where}", f"a setting of {bundle}'s {config}", near(name, known))
        if name == key:
            _check_kind(f"setting {key} of {where}", key, value, own.get(key))


def _check_kind(what: str, name: str, value: Any, own: Any) -> None:
    """Whether a value can stand for a bundle's own; what the bundle leaves open or computes may be anything."""
    if own is None or (isinstance(own, str) and own.startswith(MARKS)):
        return
    if value == WORDS.get(name):
        return
    own = [64, 64] if name == "spatial_size" and own == WORDS[name] else own
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    allowed: tuple[bool, str]
    if isinstance(own, bool):
        allowed = isinstance(value, bool), "true or false"
    elif isinstance(own, int):
        allowed = number and isinstance(value, int) and value >= least(name), f"a whole number from {least(name)}"
    elif isinstance(own, float):
        allowed = value is None or (number and math.isfinite(value)), "a number"
    else:
        kind = list if isinstance(own, list) else type(own)
        allowed = isinstance(value, kind) or (value is None and kind is str), kind.__name__
    if not allowed[0]:
        raise InputError(f"{what}: {value!r}", f"{allowed[1]}, such as {own!r}", "mend its value")


def _root(key: str) -> str:
    """The first name of a nested one, such as `train` of `train#optimizer#lr`."""
    return re.split("#|::", str(key))[0]


def check_network(where: str, bundle: str, overlays: Sequence[str], settings: Mapping[str, Any]) -> int:
    """Build a bundle's network once, with these settings: what it refuses, it would refuse after hours.

    Returns how many axes its images have.

    Raises:
        InputError: the network cannot be built.
    """
    import torch  # takes seconds, as MONAI does
    from monai.bundle import ConfigParser

    folder, before = bundle_dir(bundle), os.getcwd()
    known = known_settings(folder / "configs", "inference.json")
    chosen = {key: value for key, value in settings.items() if _root(key) in known and value != WORDS.get(key)}
    os.chdir(folder)  # references to other files are relative to it
    try:
        parser = ConfigParser()
        parser.read_config("configs/inference.json")
        for name in overlays:  # whose parts of the training inference.json does not have
            content = ConfigParser.load_config_file(f"configs/{name}")
            parser.update({key: value for key, value in content.items() if "#" not in key or _root(key) in parser})
        parser.update({**{key: 1 for key in ("in_channels", "out_channels") if key in known}, **chosen})
        with torch.device("meta"):  # shapes alone
            parser.get_parsed_content("network_def")
        return len(parser.get_parsed_content("spatial_size"))
    except Exception as error:  # networks raise many kinds
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        words = " ".join(str(cause).split())[:300]
        raise InputError(
            f"{where}: its network cannot be built with {dict(settings)} ({type(cause).__name__}: {words})",
            f"settings that the network of {bundle} accepts",
            "mend the one that the message names",
        ) from error
    finally:
        os.chdir(before)
