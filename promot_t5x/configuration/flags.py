"""T5X's flags: parses a command line into gin files, gin statements and a few further options.

The flags are `--gin_file`, `--gin_search_paths`, `--gin.NAME=VALUE`, `--gin_bindings`, `--tfds_data_dir`, `--data_dir`,
`--dry_run` and those of runs with several processes. The shell strips the quotes of `--gin.MODEL_DIR='/tmp/x'`, so a
value that is not gin syntax is read as a string.
"""

from __future__ import annotations

import argparse
import re
import tokenize
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gin import config as gin_config
from gin import config_parser

from promot_t5x.runtime.processes import Processes
from promot_t5x.runtime.text import aligned, did_you_mean

NAME = r"[A-Za-z_][\w./]*"

"""A macro or parameter as gin writes it, a pattern."""

_ABSL_LOGGING_FLAGS = ("--logtostderr", "--alsologtostderr")


class ConfigError(ValueError):
    """A mistake in flags or gin files, as one sentence for the person who wrote them."""


@dataclass(frozen=True)
class Invocation:
    """A parsed command line.

    Attributes:
      gin_files: gin files as typed, in order; later files override earlier ones.
      gin_bindings: gin statements such as `"TRAIN_STEPS = 10"`, in order; they override every file.
      gin_search_paths: folders searched for gin files before the packaged ones.
      tfds_data_dir: where TFDS keeps its data, or None for its default.
      dry_run: stop once the configuration is resolved and shown.
      processes: the processes of the run, None for this one alone.
      extra: values of the options that the caller added to the parser, by name.
    """

    gin_files: tuple[str, ...] = ()
    gin_bindings: tuple[str, ...] = ()
    gin_search_paths: tuple[str, ...] = ()
    tfds_data_dir: str | None = None
    dry_run: bool = False
    processes: Processes | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def flag_parser(
    prog: str | None = None,
    description: str | None = None,
    macros: Mapping[str, str] | None = None,
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    """A parser for T5X's flags; add a command's own options to it, then pass it to `parse_flags`.

    Args:
      prog: the command, as users type it.
      description: what it does.
      macros: the macros that a user sets with `--gin.NAME=VALUE`, and what each is.
      examples: command lines to copy.
    """
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        epilog=_epilog(macros or {}, examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--gin_file", action="append", default=[], metavar="FILE", help="a gin file; repeat for several")
    add("--gin_search_paths", action="append", default=[], metavar="A,B", help="folders searched for gin files")
    add("--gin_bindings", action="append", default=[], metavar="'A = 1'", help="a gin statement; repeatable")
    add("--gin.NAME", dest="gin_named", metavar="VALUE", help="bind a macro or parameter, e.g. --gin.TRAIN_STEPS=10")
    add("--tfds_data_dir", default=None, metavar="DIR", help="where TFDS keeps its data")
    add("--data_dir", metavar="DIR", help="a folder of JSONL files to use instead of TFDS; same as --gin.DATA_DIR=DIR")
    add("--multiprocess", action="store_true", help="run as one process of a cluster's job (TPU pods, Slurm)")
    add("--coordinator_address", metavar="HOST:PORT", help="address of process 0, if no cluster provides it")
    add("--process_count", type=int, metavar="N", help="number of processes")
    add("--process_index", type=int, metavar="I", help="index of this process, from 0")
    add("--multiprocess_timeout", type=int, default=300, metavar="SECONDS", help="how long to wait for the others")
    add(
        "--dry_run",
        type=_as_boolean,
        default=False,
        metavar="true|false",
        help="show the resolved configuration and stop; --dry_run alone means true",
    )
    return parser


def add_data_flag(parser: argparse.ArgumentParser) -> None:
    """Adds `--data` for a command whose dry run can also open data; see `opens_data`."""
    parser.add_argument("--data", action="store_true", help="with --dry_run: also open data and vocabularies")


def opens_data(invocation: Invocation) -> bool:
    """Whether a dry run is to open data.

    Raises:
      ConfigError: `--data` without `--dry_run`.
    """
    if invocation.extra["data"] and not invocation.dry_run:
        raise ConfigError("--data says what a dry run opens: add --dry_run, or leave --data out")
    return invocation.extra["data"]


def _epilog(macros: Mapping[str, str], examples: Sequence[str]) -> str:
    """The end of a command's help: macros and examples, one flag per line."""
    paragraphs = []
    if macros:
        table = aligned([(f"  --gin.{name}=VALUE", meaning) for name, meaning in macros.items()])
        paragraphs.append(f"macros:\n{table}")
    if examples:
        paragraphs.append("examples:")
        paragraphs += ["    " + example.replace(" --", " \\\n        --") for example in examples]
    return "\n\n".join([*paragraphs, "Set PROMOT_TRACEBACK=1 to see an error's traceback."])


def parse_flags(argv: Sequence[str], parser: argparse.ArgumentParser | None = None) -> Invocation:
    """Parses a command line in T5X's style.

    Args:
      argv: the arguments without the program's name; `--flag=value` and `--flag value` are the same, except for
        `--dry_run`, which as in absl is written alone, as `--dry_run=true` or as `--dry_run=false`. `--logtostderr` and
        `--alsologtostderr` are accepted and ignored.
      parser: a parser made by `flag_parser` with further options; their values are in `Invocation.extra`.

    Returns:
      The invocation.

    Raises:
      ConfigError: a flag is unknown, or a value is missing or malformed.

    >>> parse_flags(["--gin_file=a.gin", "--gin.TRAIN_STEPS", "10", "--gin.MODEL_DIR=/tmp/x"]).gin_bindings
    ('TRAIN_STEPS = 10', "MODEL_DIR = '/tmp/x'")
    """
    parser = parser or flag_parser()
    parser.error = _raise_flag_error  # argparse would print its usage and exit with code 2
    parsed, unknown = parser.parse_known_args(_rewritten(argv))
    if unknown:
        _raise_unknown_argument(unknown, parser)
    values = vars(parsed)
    values.pop("gin_named")
    values.pop("data_dir")
    address, count, index = (values.pop(name) for name in ("coordinator_address", "process_count", "process_index"))
    timeout, multiprocess = values.pop("multiprocess_timeout"), values.pop("multiprocess")
    multiprocess = multiprocess or (address, count, index) != (None, None, None)
    return Invocation(
        gin_files=tuple(values.pop("gin_file")),
        gin_bindings=tuple(values.pop("gin_bindings")),
        gin_search_paths=tuple(path for joined in values.pop("gin_search_paths") for path in joined.split(",") if path),
        tfds_data_dir=values.pop("tfds_data_dir"),
        dry_run=values.pop("dry_run"),
        processes=Processes(address, count, index, timeout) if multiprocess else None,
        extra=values,
    )


# The flags that set an attribute of Invocation.
_CONFIGURATION = {
    "gin_files": "--gin_file",
    "gin_bindings": "--gin.NAME, --gin_bindings or --data_dir",
    "gin_search_paths": "--gin_search_paths",
    "tfds_data_dir": "--tfds_data_dir",
    "dry_run": "--dry_run",
    "processes": "--multiprocess and its options",
}


def refuse_configuration(invocation: Invocation, verb: str, but: Sequence[str] = ()) -> None:
    """Refuses the flags that a verb without gin files would ignore.

    Args:
      invocation: the parsed command line.
      verb: the verb.
      but: attributes of the invocation that it does use.

    Raises:
      ConfigError: names the flag and its value.
    """
    for attribute, flag in _CONFIGURATION.items():
        if attribute not in but and (value := getattr(invocation, attribute)):
            shown = ", ".join(value) if isinstance(value, tuple) else ""
            raise ConfigError(
                f"promot-t5x {verb} reads no gin configuration, so {flag}{f' ({shown})' if shown else ''} would change "
                "nothing; leave it out"
            )


def _raise_flag_error(message: str) -> Any:
    raise ConfigError(f"{message[:1].lower()}{message[1:]}; --help lists the flags")


def _raise_unknown_argument(unknown: Sequence[str], parser: argparse.ArgumentParser) -> None:
    flag = next((argument for argument in unknown if argument.startswith("-")), None)
    if flag is None:
        raise ConfigError(f"unexpected argument {unknown[0]!r}: arguments are written --flag=value")
    options = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    name = flag.split("=")[0]
    raise ConfigError(f"unknown flag {name}{did_you_mean(name, options, cutoff=0.5)}; --help lists the flags")


def _rewritten(argv: Sequence[str]) -> list[str]:
    """Rewrites arguments that argparse cannot express, keeping their order.

    `--gin.NAME=VALUE`, `--gin.NAME VALUE` and `--data_dir` become `--gin_bindings=NAME = VALUE`, a lone `--dry_run`
    becomes `--dry_run=true`, and absl's logging flags are dropped.
    """
    rewritten: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag in _ABSL_LOGGING_FLAGS:
            continue
        if argument == "--dry_run":
            rewritten.append("--dry_run=true")
            continue
        if flag == "--data_dir":
            flag = "--gin.DATA_DIR"
        if not flag.startswith("--gin."):
            rewritten.append(argument)
            continue
        name = flag.removeprefix("--gin.")
        if not re.fullmatch(NAME, name):
            raise ConfigError(f"{flag} names no macro or parameter: write --gin.NAME=VALUE")
        if not equals:
            value = next(arguments, "")
        if not value.strip() or (not equals and value.startswith("--")):
            raise ConfigError(f"{flag} has no value: write {flag}=VALUE")
        rewritten.append(f"--gin_bindings={name} = {_as_gin_value(flag, value)}")
    return rewritten


def _as_boolean(value: str) -> bool:
    """Reads a boolean flag's value as absl does."""
    if value.lower() in ("true", "t", "1"):
        return True
    if value.lower() in ("false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{value!r} is neither true nor false")


def _as_gin_value(flag: str, value: str) -> str:
    """A flag's value as gin syntax; a bare word or path becomes a quoted string."""
    if value[0] in "@%'\"([{":
        return value
    try:
        parser = config_parser.ConfigParser(value, gin_config.ParserDelegate())
        parser.parse_value()
        following = parser.current_token
        if following is None or following.type in (tokenize.NEWLINE, tokenize.ENDMARKER):
            return value
    except (SyntaxError, tokenize.TokenError, NameError, ValueError):
        pass
    if value.lower() in ("true", "false", "none"):  # the string "false" would count as true
        raise ConfigError(f"{flag}={value} is not a gin value: write {flag}={value.capitalize()}")
    return repr(value)
