"""Command lines from functions: Fire reads the values; help, names and errors are a person's."""

import ast
import difflib
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import InputError, plain_words
from .options import checked, parsers

Command = Callable[..., Any]
# A command, or `module:function`, whose source is read for help and whose module is imported when it runs.
Commands = Mapping[str, Command | str]
# A short flag means what it means to nnUNetv2_train, for the first of these parameters that a command has.
SHORT = {
    "-d": ("dataset", "dataset_dir"), "-c": ("configuration",), "-f": ("fold", "folds"), "-p": ("plans",),
    "-tr": ("trainer",),
}  # fmt: skip
ORDER = ("dataset", "configuration", "fold")  # nnU-Net's, for arguments without a name
HELP = ("-h", "--help")
THREADS = (
    "Threads: a command uses every core that it may use, and shares them among the processes that it starts. "
    "OMP_NUM_THREADS=2 before a command sets the threads of each process, nnUNet_n_proc_DA=4 the processes with which "
    "nnU-Net loads data. Threads that wait do not spin (OMP_WAIT_POLICY=PASSIVE)."
)


class UsageError(InputError):
    """Words that no command understands; the remedy stands before the names, which may be many."""

    form = "{got}; remedy: {remedy}; allowed: {allowed}"


def run_commands(commands: Commands, name: str, argv: Sequence[str] | None = None) -> int:
    """Run one of the commands as the command line says, and print what it returns.

    Returns the exit status: 1 after bad input or a full disk and the like, 2 after wrong usage, 130 after Ctrl-C.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported, and for what commands start
    words = sys.argv[1:] if argv is None else list(argv)
    try:
        if not words or words[0] in (*HELP, "help"):
            print(overview(commands, name), flush=True)
            return 0
        if words[0] == "--version":
            print(f"{name} {_version()}", flush=True)
            return 0
        if words[0] not in commands:
            near = _nearest(words[0], commands, f"{name} --help")
            raise UsageError(f"unknown command {words[0]}", ", ".join(commands), near)
        command, title = commands[words[0]], f"{name} {words[0]}"
        if set(words) & {*HELP}:
            print(describe(command, title), flush=True)
            return 0
        result = _bind(_loaded(command), title, words[1:])()
        print(_told(result))
        sys.stdout.flush()
    except BrokenPipeError:  # `| head` has seen enough; what is left in the buffer goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except KeyboardInterrupt:
        print("error: interrupted; the same command goes on", file=sys.stderr)
        return 130
    except Exception as error:
        words_for_users = plain_words(error)
        if words_for_users is None:
            raise
        print(f"error: {words_for_users}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def _version() -> str:
    try:
        return importlib.metadata.version("synthaug")
    except importlib.metadata.PackageNotFoundError:
        return "(of a clone that is not installed)"


def overview(commands: Commands, name: str) -> str:
    """The commands, each with the first sentence of its docstring."""
    width = max(map(len, commands)) + 4
    lines = [f"{name} COMMAND [arguments]    {name} COMMAND --help says what they are", ""]
    for command, function in commands.items():
        summary = inspect.cleandoc(_outline(function).__doc__ or "").split("\n\n")[0]
        lines += _indented(summary, f"  {command}", width)
    return "\n".join([*lines, "", *_indented(THREADS, "", 0)])


def describe(command: Command | str, name: str) -> str:
    """What a command does, takes by default, and an example."""
    function = _outline(command)
    text, arguments, example = _docstring(function)
    parameters = inspect.signature(function).parameters
    shorts = {wanted: flag for flag in SHORT if (wanted := _long(flag, parameters))}
    plain: list[tuple[str, str]] = []
    named: list[tuple[str, str]] = []
    for parameter in _ordered(function):
        words, default = arguments.get(parameter.name, ""), parameter.default
        if _is_plain(parameter):
            plain.append((_shown(parameter), words))
        else:
            flag = ", ".join(filter(None, [shorts.get(parameter.name), f"--{parameter.name}"]))
            named.append((flag, words if default is None else f"{words.rstrip('.')} (default: {default})."))
    paragraphs = [_indented(paragraph, "", 0) for paragraph in text.split("\n\n")]
    lines = [_usage(function, name), *(line for paragraph in paragraphs for line in ["", *paragraph])]
    for title, rows in (("Arguments, in this order or by name:", plain), ("Options:", named)):
        if rows:
            lines += ["", title]
            width = min(30, max(len(word) for word, _ in rows) + 4)
            for word, words in rows:
                lines += _indented(words, f"  {word}", width)
    if example:
        lines += ["", "Example:", *(f"  {line}" for line in example.splitlines())]
    return "\n".join([*lines, "", *_indented(THREADS, "", 0)])


def _loaded(command: Command | str) -> Command:
    if not isinstance(command, str):
        return command
    module, name = command.split(":")
    return getattr(importlib.import_module(module), name)


def _outline(command: Command | str) -> Command:
    """A function with the signature and the docstring of a command, whose module stays unimported."""
    if not isinstance(command, str):
        return command
    module, name = command.split(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text()).body
    node = next(node for node in body if isinstance(node, ast.FunctionDef) and node.name == name)
    given = node.args.args
    defaults = [inspect.Parameter.empty] * (len(given) - len(node.args.defaults))
    defaults += [ast.literal_eval(default) for default in node.args.defaults]
    parameters = [
        inspect.Parameter(arg.arg, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default,
                          annotation=arg.annotation and ast.unparse(arg.annotation))
        for arg, default in zip(given, defaults, strict=True)
    ]  # fmt: skip
    if node.args.vararg:
        parameters.append(inspect.Parameter(node.args.vararg.arg, inspect.Parameter.VAR_POSITIONAL))

    def outline() -> None: ...

    outline.__doc__ = ast.get_docstring(node)
    outline.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return outline


def _usage(function: Command, name: str) -> str:
    parameters = _ordered(function)
    words = [_shown(parameter) for parameter in parameters if _is_plain(parameter)]
    return " ".join([name, *words, *(["[options]"] if len(words) < len(parameters) else [])])


def _is_plain(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.VAR_POSITIONAL or parameter.default is parameter.empty


def _told(result: Any) -> str:
    """What a command returned: of a dict a line each, whose lists are told without the marks of a program."""
    if not isinstance(result, dict):
        return str(result)
    told = {key: ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in result.items()}
    return "\n".join(f"{key}: {value}" for key, value in told.items())


def _shown(parameter: inspect.Parameter) -> str:
    word = parameter.name.upper()
    return f"[{word} ...]" if parameter.kind is parameter.VAR_POSITIONAL else word


def _docstring(function: Command) -> tuple[str, dict[str, str], str]:
    """The text of a docstring in Google's style, its arguments, and its example."""
    head, *sections = re.split(r"\n\n(Args|Example|Raises|Returns):\n", inspect.cleandoc(function.__doc__ or ""))
    found = dict(zip(sections[::2], map(textwrap.dedent, sections[1::2]), strict=True))
    arguments = re.findall(r"^(\w+): (.*(?:\n .*)*)", found.get("Args", ""), re.MULTILINE)
    return head, {name: " ".join(words.split()) for name, words in arguments}, found.get("Example", "").strip()


def _indented(text: str, first: str, width: int) -> list[str]:
    """Wrapped text, `first` in the margin of its first line."""
    columns = max(60, min(100, shutil.get_terminal_size().columns))
    words = " ".join(text.split())
    lines = textwrap.wrap(words, columns - width, break_long_words=False, break_on_hyphens=False) or [""]
    if len(first) >= width and width:
        return [first, *(" " * width + line for line in lines)]
    return [(first.ljust(width) + lines[0]).rstrip(), *(" " * width + line for line in lines[1:])]


def _nearest(word: str, known: Sequence[str] | Mapping[str, Any], otherwise: str) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]}?" if near else f"see {otherwise}"


def _ordered(function: Command) -> list[inspect.Parameter]:
    """The parameters as the command line takes them: nnU-Net's in its order, which may ask for one with a default."""
    parameters = list(inspect.signature(function).parameters.values())
    places = [i for i, parameter in enumerate(parameters) if parameter.name in ORDER]
    sorted_ones = sorted((parameters[i] for i in places), key=lambda parameter: ORDER.index(parameter.name))
    for place, parameter in zip(places, sorted_ones, strict=True):
        parameters[place] = parameter
    needed = max((i for i, parameter in enumerate(parameters) if _is_plain(parameter)), default=0)
    return [p.replace(default=p.empty) if i < needed else p for i, p in enumerate(parameters)]


def _long(flag: str, known: Mapping[str, Any]) -> str | None:
    return next((name for name in SHORT.get(flag, ()) if name in known), None)


def _bind(function: Command, name: str, words: Sequence[str]) -> Callable[[], Any]:
    """The call that the words ask for, every name and value of it checked."""
    import fire
    from fire.decorators import SetParseFns

    bound: list[Callable[[], Any]] = []

    @functools.wraps(function)
    def bind(*args: Any, **kwargs: Any) -> None:
        bound.append(lambda: checked(function)(*args, **kwargs))

    # Fire notices unknown flags only after a call: it binds, and the call comes after.
    fire.Fire(
        SetParseFns(**parsers(function))(bind),
        command=list(_fire_words(function, name, words)), name=name, serialize=lambda _: None,
    )  # fmt: skip
    return bound[0]


def _fire_words(function: Command, name: str, words: Sequence[str]) -> Iterator[str]:
    """Every value with its name, as Fire reads them without a doubt.

    Raises:
        UsageError: an unknown or missing name or value; names the nearest.
    """
    parameters = inspect.signature(function).parameters
    known = [p.name for p in parameters.values() if p.kind is not p.VAR_POSITIONAL]
    flags = [f"--{key}" for key in known] + [key for key in SHORT if _long(key, parameters)]
    unnamed: list[str] = []
    given: dict[str, str] = {}
    rest = list(words)
    while rest:
        word = rest.pop(0)
        if not _is_flag(word):
            unnamed.append(word)
            continue
        flag, equals, value = word.partition("=")
        option = _long(flag, parameters) or flag.removeprefix("--").replace("-", "_") * flag.startswith("--")
        if option not in known:
            raise UsageError(f"unknown option {flag}", ", ".join(flags), _nearest(flag, flags, f"{name} --help"))
        if equals or (rest and not _is_flag(rest[0])):
            given[option] = value if equals else rest.pop(0)
        elif str(parameters[option].annotation) in ("bool", "<class 'bool'>"):
            given[option] = "True"
        else:
            raise UsageError(f"{flag} without a value", f"{flag} VALUE", f"see {name} --help")
    for parameter in _ordered(function):
        if parameter.kind is parameter.VAR_POSITIONAL:
            yield from unnamed
            unnamed = []
        elif parameter.name in given or unnamed:
            yield f"--{parameter.name}={given[parameter.name] if parameter.name in given else unnamed.pop(0)}"
        elif parameter.default is parameter.empty:
            raise UsageError(f"no {parameter.name.upper()}", _usage(function, name), f"see {name} --help")
    if unnamed:
        raise UsageError(f"too many arguments: {' '.join(unnamed)}", _usage(function, name), f"see {name} --help")


def _is_flag(word: str) -> bool:
    return re.match("--?[a-zA-Z]", word) is not None  # and no negative number
