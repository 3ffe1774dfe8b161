"""What a bundle run does before any work: refuse settings that cannot be used, and say errors plainly."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NamedTuple

from nnunet_plugin.errors import plain_words

from .errors import InputError, nearest
from .kinds import is_expression, other_kind, same_kind
from .packed import check_same_bundle
from .running import running_workflow

if TYPE_CHECKING:
    import torch

MOST_SEED = 2**32 - 1  # torch takes 64 bits, of which each epoch's number has 32
# What `python -m monai.bundle run` itself understands, and hands on to the workflow that it makes.
RUN_ARGUMENTS = {
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "properties_path",
}  # fmt: skip


def prepare_run(metadata: Mapping[str, Any] | None = None) -> None:
    """First step of every bundle's `run`: check the settings, and show errors of users without a traceback.

    Args:
        metadata: of the bundle that is run.
    """
    say_errors_plainly()
    refuse_unknown_overrides()
    if (workflow := running_workflow()) is not None:
        refuse_unknown_keys(workflow)
        check_values(workflow)
    if metadata:
        check_same_bundle(metadata)


def prepare_training(seed: int) -> None:
    """First step of every training's `initialize`: what comes before any network is made.

    Raises:
        InputError: a seed that is none.
    """
    from monai.utils import set_determinism

    say_errors_plainly()
    if type(seed) is not int or not 0 <= seed <= MOST_SEED:
        raise InputError(f"seed {seed!r}", f"a whole number from 0 to {MOST_SEED}", "write --seed 0")
    set_determinism(seed)


def say_errors_plainly() -> None:
    """End a process with one line for what a user can mend, in place of MONAI's long chain of tracebacks."""
    if getattr(sys.excepthook, "plain", False):
        return
    previous = sys.excepthook

    def show(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        words = told(error)
        if words is None:
            previous(kind, error, traceback)
        else:
            if not first_rank():
                # What all ranks refuse, the first one says, and torchrun then ends the others, still silent.
                time.sleep(10)
            print(f"error: {words}", file=sys.stderr)

    show.plain = True  # type: ignore[attr-defined]
    sys.excepthook = show


def told(error: BaseException) -> str | None:
    """What to tell a user of an error, or of the first in its chain that one can mend; None: a traceback helps."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, KeyboardInterrupt):
            return "interrupted; the same command goes on where it stopped"
        if (words := plain_words(cause)) is not None:
            return str(words)
        cause = cause.__cause__ or cause.__context__
    return None


def _bundle_configs(workflow: Any) -> Path | None:
    """Folder of the bundle's own config files; the first file that a user names may be one of theirs."""
    folders = (Path(workflow.config_root_path), Path("configs"))
    return next((folder for folder in folders if (folder / "metadata.json").is_file()), None)


def _defaults(configs: Path) -> dict[str, list[Any]]:
    """Every setting that a file of a bundle defines, `a#b` too, with the values that it has there."""
    from monai.bundle import ConfigParser

    known: dict[str, list[Any]] = {}
    for file in sorted(configs.glob("*.json")):
        for key, value in ConfigParser.load_config_file(file).items():
            known.setdefault(key.lstrip("+"), []).append(value)
    return known


def refuse_unknown_keys(workflow: Any) -> None:
    """Refuse settings, of `create_workflow` or of a config file of one's own, that no file of the bundle defines.

    Args:
        workflow: a MONAI `ConfigWorkflow`.

    Raises:
        InputError: names the nearest known setting.
    """
    configs = _bundle_configs(workflow)
    if configs is None:
        return
    # what MONAI itself adds: the metadata, and the settings of tracking, one of which federated learning always gives
    known = {name.split("#")[0] for name in _defaults(configs)} | {"_meta_", *_tracking_settings("mlflow")}
    config = workflow.parser.get()
    for name in config:
        # what something refers to has an effect: tracking, and files of one's own, may bring settings of their own
        if name not in known and not re.search(rf"@{re.escape(name)}\b", str(config)):
            near = nearest(name, known)
            raise InputError(
                f"unknown setting {name}",
                f"a setting of {configs}",
                f"did you mean {near}?" if near else "see the config file",
            )


def check_values(workflow: Any) -> None:
    """Compare the kind of every setting, at any depth, with that of the bundle's own, and see that the device is there.

    Raises:
        InputError: such as a word for a number.
    """
    import torch

    config = workflow.parser.get()
    configs = _bundle_configs(workflow)
    known = {} if configs is None else _defaults(configs)
    text = str(config).replace("::", "#")
    for name in known:
        if name in config:
            _check_value(name, config[name], known[name], known, text)
    if configs is not None:
        _refuse_lists_of_files(config, configs)
    if "MLFlowHandler" in str(config) and "tracking_uri" in config and first_rank():
        check_tracking(workflow.parser.get_parsed_content("tracking_uri"))
    for name in _devices(config):
        device = workflow.parser.get_parsed_content(name)
        if not name.endswith("map_location") or isinstance(device, (str, torch.device)):  # or a dict, or a function
            check_device(device)


def _check_value(name: str, value: Any, own: list[Any], known: Mapping[str, list[Any]], text: str) -> None:
    """See that a value, and all inside it, can stand where files of a bundle have one of `own`.

    What takes the place of another class is its own matter, and what nothing refers to may be left out.

    Args:
        name, value: of the setting.
        own: values of the bundle's files.
        known: all settings of them.
        text: the whole configuration, to see what is referred to.
    """
    settings = [
        found for one in own if isinstance(one, str) and one.startswith("@") for found in known.get(one[1:], [])
    ]
    plain = [one for one in own if not is_expression(one)]
    plain += [one for one in settings if not is_expression(one) and not isinstance(one, dict)]
    plain = ["."] if name.endswith(("_dir", "_root")) else plain
    if plain and not any(same_kind(name, value, one) for one in plain):
        raise other_kind(f"--{name}", name, value, plain[0])
    if not isinstance(value, Mapping):
        return
    alike = [one for one in own if isinstance(one, dict) and one.get("_target_") == value.get("_target_")]
    for key in dict.fromkeys(key for one in alike for key in one):
        place = f"{name}#{key}"
        if key in value:
            inside = [one[key] for one in alike if key in one] + known.get(place, [])
            _check_value(place, value[key], inside, known, text)
        elif re.search(rf"@{re.escape(place)}\b", text):
            raise InputError(
                f"--{name} without {key}, to which the configuration refers", f"one that holds {key}",
                f"write --{name}#NAME to change a part of it alone",
            )  # fmt: skip


def check_tracking(uri: Any) -> None:
    """Refuse an address of MLflow at which no runs can be kept.

    Raises:
        InputError: a folder, nobody answers there, or MLflow is not installed.
    """
    remedy = "write --tracking_uri sqlite:////FOLDER/mlruns.db, or http://HOST:PORT of a server that runs"
    if isinstance(uri, str) and "://" not in uri:
        raise InputError(
            f"tracking_uri {uri}", "an address, as MLflow keeps its runs in a database, not in a folder",
            f"write --tracking_uri sqlite:///{Path(uri).absolute()}/mlruns.db, or http://HOST:PORT",
        )  # fmt: skip
    hurry = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
    before = dict(os.environ)
    os.environ |= {name: value for name, value in hurry.items() if name not in before}
    from monai.utils import optional_import

    try:
        optional_import("mlflow")[0].MlflowClient(uri).search_experiments(max_results=1)
    except ImportError as error:
        raise InputError("tracking without MLflow", "MLflow", "pip install synthaug[tracking]") from error
    except Exception as error:  # MLflow, its stores and its servers raise many kinds
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"tracking_uri {uri} ({words[:200]})", "where MLflow can keep runs", remedy) from error
    finally:
        for name in hurry.keys() - before.keys():
            del os.environ[name]


def _devices(config: Any, above: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all devices in a configuration that are not another setting's."""
    items = config.items() if isinstance(config, Mapping) else enumerate(config) if isinstance(config, list) else ()
    for key, value in items:
        if key in ("device", "map_location") and not str(value).startswith("@"):
            yield "#".join((*above, key))
        yield from _devices(value, (*above, str(key)))


def _refuse_lists_of_files(config: Mapping[str, Any], configs: Path) -> None:
    """Refuse `train#dataset#data` of one's own where a bundle's items are made of a data set, not read one by one."""

    def source(content: Mapping[str, Any]) -> Any:
        return ((content.get("train") or {}).get("dataset") or {}).get("data")

    own = [source(json.loads(file.read_text())) for file in sorted(configs.glob("*.json"))]
    if source(config) not in [*own, None] and "@dataset_dir" not in own:
        raise InputError(
            f"train#dataset#data {str(source(config))[:80]}",
            "what the bundle makes of dataset_dir",
            "give --dataset_dir, the folder of a data set; the bundle `segmentation` takes lists of files",
        )


def check_device(device: Any) -> None:
    """Refuse the name of a device that is not there.

    Raises:
        InputError: no such device.
    """
    import torch

    if device is None:
        return
    try:
        torch.zeros(1, device=device).cpu()  # meta has a name, and no numbers
    except Exception as error:  # backends raise many kinds
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        words = next(iter(str(error).splitlines()), type(error).__name__)[:200]  # such as that it is full
        raise InputError(
            f"device {device} ({words})", " or ".join(["cpu", *gpus]), "leave --device out to take what is there"
        ) from error


def refuse_unknown_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuse `--name value` on the command line of a bundle run when no config file defines `name`.

    MONAI adds unknown names to the configuration without a word, so that `--num_sample 500` would draw the default
    number. Does nothing when the configuration is not run from MONAI's command line.

    Raises:
        InputError: names the nearest known setting.
    """
    if argv is None:
        program, *argv = sys.argv
        if Path(program).parts[-3:] != ("monai", "bundle", "__main__.py"):
            return
    from monai.bundle import ConfigParser

    given = dict(_given(argv))
    for name, value in given.items():
        if value is None:
            raise InputError(f"--{name} None, which MONAI drops without a word", "'$None'", f"write --{name} '$None'")
    if "args_file" in given:
        given = {**ConfigParser.load_config_file(given["args_file"]), **given}
    if "config_file" in given:
        settings = {name: value for name, value in given.items() if name not in RUN_ARGUMENTS}
        check_overrides(settings, given["config_file"], given.get("tracking"))


def check_overrides(given: Mapping[str, Any], files: Any, tracking: str | dict | None = None) -> None:
    """Refuse settings, by names such as `train#optimizer#lr`, that config files do not define, or of another kind.

    Raises:
        InputError: names the nearest known setting.
    """
    from monai.bundle import ConfigParser

    config = ConfigParser.load_config_files(files)
    if tracking is not None:
        config = {**_tracking_settings(tracking), **config}
    for name, value in given.items():
        place = find_setting(name, config, str(files))
        if re.search("#|::", name) and not name.startswith("+") and not same_kind(place.meaning, value, place.value):
            raise other_kind(f"--{name}", place.meaning, value, place.value)


def _given(argv: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Names and values of a command line, as Fire, which MONAI's is made of, reads them."""
    from fire.parser import DefaultParseValue

    for word, following in zip(argv, [*argv[1:], ""], strict=False):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            yield name.replace("-", "_"), DefaultParseValue(value if equals else following)


def _tracking_settings(tracking: str | dict) -> dict[str, Any]:
    """What MONAI's `tracking` adds to the top of a configuration; the handlers among it go to the engines."""
    from monai.bundle import ConfigParser
    from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS

    settings: Any = DEFAULT_EXP_MGMT_SETTINGS.get(tracking) if isinstance(tracking, str) else None
    try:
        settings = settings or ConfigParser.load_config_files(tracking)
        return {key: value for key, value in settings["configs"].items() if key not in settings["handlers_id"]}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"tracking {tracking!r} ({type(error).__name__}: {error})",
            f"{', '.join(DEFAULT_EXP_MGMT_SETTINGS)}, or a file such as MONAI's DEFAULT_MLFLOW_SETTINGS",
            "write --tracking mlflow",
        ) from error


class Place(NamedTuple):
    """Where in a configuration a setting stands.

    name: with `#` between its parts; value: the bundle's own, references followed; behind: settings that it refers to.
    """

    name: str
    value: Any
    behind: list[str]

    @property
    def meaning(self) -> str:
        """The name of the setting that it is."""
        return self.behind[-1] if self.behind else self.name


def find_setting(name: str, config: Mapping[str, Any], files: str, root: Path | str = "", dashes: str = "--") -> Place:
    """Follow `a#b#c` into a configuration; the last part may add to what a target takes only where it is known.

    Args:
        name: of a setting.
        config: merged config files.
        files: which, for words.
        root: folder of the bundle, to which their macros are relative.
        dashes: before names, for words.

    Raises:
        InputError: there is no such setting; names the nearest.
    """
    level: Any = config
    parts = name.replace("::", "#").lstrip("+").split("#")
    borrowed = None
    for depth, part in enumerate(parts):
        if isinstance(level, str):  # an expression cannot be seen into, a macro can; MONAI goes into neither
            borrowed = borrowed or level
            level = _behind_macro(level, root)
            if level is None:
                break
        several = level if isinstance(level, (dict, list)) else []
        known = set(several) if isinstance(several, dict) else {str(i) for i in range(len(several))}
        if isinstance(level, dict) and "_target_" in level:
            known |= {"_disabled_", "_requires_", "_desc_", "_mode_"}
        if part not in known:
            near = nearest(part, known)
            meant = "#".join([*parts[:depth], near, *parts[depth + 1 :]]) if near else None
            meant = meant or nearest(name.replace("#", "_"), config)
            raise InputError(
                f"unknown setting {dashes}{name}",
                f"a setting of {files}" + (f": {', '.join(sorted(known))}" if depth and known else ""),
                f"did you mean {dashes}{meant}?" if meant else "see the config file",
            )
        level = several[int(part)] if isinstance(several, list) else several.get(part)
    if borrowed:
        above = level[1:] if isinstance(level, str) and level.startswith("@") and level[1:] in config else None
        raise InputError(
            f"{dashes}{name}, which lies inside {borrowed}",
            f"what {files} spells out itself",
            f"write {dashes}{above}" if above else "write it out in a config file of your own, given after the others",
        )
    behind: list[str] = []
    while isinstance(level, str):
        if level.startswith("@") and level[1:] in config:
            behind.append(level[1:])
            level = config[level[1:]]
        elif (found := _behind_macro(level, root)) is not None:
            level = found
        else:
            break
    return Place("#".join(parts), level, behind)


def _behind_macro(text: str, root: Path | str = "") -> Any:
    """What `%FILE::NAME` stands for; None for what is none, or whose file is elsewhere."""
    from monai.bundle import ConfigParser

    if not text.startswith("%"):
        return None
    file, name = ConfigParser.split_path_id(text[1:])
    path = Path(root, file)
    return ConfigParser(ConfigParser.load_config_file(path)).get(name) if path.is_file() else None


def local_device() -> torch.device:
    """The GPU of this process (`torchrun` numbers the processes of a machine), or the CPU."""
    import torch

    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def first_rank() -> bool:
    """Whether this process is the only or the first one of a `torchrun`: what is done once, it does."""
    return int(os.environ.get("RANK", 0)) == 0
