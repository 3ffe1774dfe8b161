"""What bundles and nnU-Net accept of a protocol's settings, asked before any work starts."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..packaging.bundle_files import bundle_dir, bundle_names, known_settings
from ..runtime.errors import InputError
from ..runtime.kinds import MARKS, WORDS, is_expression, other_kind, same_kind
from ..runtime.settings import Place, find_setting

# What makes MONAI build something: as with `MARKS`, only a bundle's own configs may.
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
    base = defaults(bundle, [config])
    own |= {key: base.get(key) for key, value in own.items() if value is None}  # an overlay may leave a part out
    for key, value in settings.items():
        what, root = f"setting {key} of {where}", _root(key)
        if root in decided:
            allowed = (
                "settings other than data, fold, seed, mixing and folders: each cell has its own, for all its stages"
            )
            raise InputError(what, allowed, "leave it out")
        if root not in own:
            raise InputError(what, f"a setting of {bundle}'s {config}", near(root, own))
        place = Place(key, own[key], []) if key in own else _nested(key, bundle, (config, *overlays), where)
        if behind := set(place.behind) & {*decided, "max_epochs"}:
            name = behind.pop()
            remedy = "leave it out" if name in decided else f"write {name}"
            raise InputError(f"{what}, which is {name}", "settings that have no other name", remedy)
        told = bool({"record", "bundle"} & {*place.name.split("#")})  # what a bundle says that it is
        within = "#" in place.name and not place.behind
        if within and not told and isinstance(place.value, str) and not is_expression(place.value):
            raise InputError(
                f"{what}, a word inside what the bundle builds, which nothing could check before the training",
                "numbers, True or False there, and words where they are settings of their own", "leave it out",
            )  # fmt: skip
        if told or (within and isinstance(place.value, (str, type(None)))) or _is_built(place.value, own):
            inside = _inside(place)
            raise InputError(
                f"{what}, which the bundle builds or computes itself",
                "numbers, words, True or False, and lists of them",
                "leave it out" + (f", or change a setting inside it, such as {inside}" if inside else ""),
            )
        if not same_kind(place.meaning, value, place.value):
            raise other_kind(what, place.meaning, value, place.value, "")


def _nested(key: str, bundle: str, files: Sequence[str], where: str) -> Place:
    """Where a name such as `train#optimizer#lr` stands."""
    from monai.bundle import ConfigParser  # takes seconds

    folder = bundle_dir(bundle)
    config = ConfigParser.load_config_files([str(folder / "configs" / name) for name in files])
    try:
        return find_setting(key, config, f"{bundle}'s {' and '.join(files)}", folder, "")
    except InputError as error:
        error.args = (f"{where}: {error}",)
        raise


def _is_built(value: Any, own: Mapping[str, Any]) -> bool:
    """Whether a bundle builds a value, or computes it from what was built."""
    if isinstance(value, (dict, list)):
        items = list(value.values()) if isinstance(value, dict) else value
        return any(isinstance(item, dict) or is_expression(item) for item in items)
    if not isinstance(value, str) or not value.startswith(("$", "@")):
        return False
    names = [name.replace("::", "#") for name in re.findall(r"@(\w+(?:(?:#|::)\w+)*)", value)]
    return any(name not in own or isinstance(own[name], dict) or _is_built(own[name], own) for name in names)


def _inside(place: Place) -> str | None:
    """A plain setting inside a part."""
    found = place.value if isinstance(place.value, dict) else {}
    plain_ones = (key for key, value in found.items() if isinstance(value, (int, float)))
    name = next(plain_ones, None)
    return name and f"{place.name}#{name}"


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
