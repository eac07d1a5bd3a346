"""T5X's flags: from a command line to gin files, gin statements and the few options beside them.

The flags are `--gin_file`, `--gin_search_paths`, `--gin.NAME=VALUE`, `--gin_bindings`, `--tfds_data_dir`, `--data_dir`
and `--dry_run`. The shell takes the quotes off `--gin.MODEL_DIR='/tmp/x'`, so a value that is not gin syntax is taken
for a string.
"""

from __future__ import annotations

import argparse
import re
import tokenize
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from gin import config as gin_config
from gin import config_parser

from promot_t5x.runtime.processes import Processes
from promot_t5x.runtime.text import did_you_mean

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
      dry_run: stop after the configuration is resolved and shown.
      processes: the processes that make the run, None for this one alone.
      extra: values of the options that the caller's own parser declares, by name.
    """

    gin_files: tuple[str, ...] = ()
    gin_bindings: tuple[str, ...] = ()
    gin_search_paths: tuple[str, ...] = ()
    tfds_data_dir: str | None = None
    dry_run: bool = False
    processes: Processes | None = None
    extra: dict[str, Any] = field(default_factory=dict)


def flag_parser(prog: str | None = None, description: str | None = None) -> argparse.ArgumentParser:
    """Returns a parser that knows T5X's flags; add a binary's own options to it, then hand it to `parse_flags`."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=description,
        allow_abbrev=False,
        epilog="Set PROMOT_TRACEBACK=1 to see where in the program an error was raised.",
    )
    add = parser.add_argument
    add("--gin_file", action="append", default=[], metavar="FILE", help="a gin file; repeat for several")
    add("--gin_search_paths", action="append", default=[], metavar="A,B", help="folders searched for gin files")
    add("--gin_bindings", action="append", default=[], metavar="'A = 1'", help="a gin statement; repeatable")
    add("--gin.NAME", dest="gin_named", metavar="VALUE", help="bind a macro or parameter, e.g. --gin.TRAIN_STEPS=10")
    add("--tfds_data_dir", default=None, metavar="DIR", help="where TFDS keeps its data")
    add("--data_dir", metavar="DIR", help="a folder of JSONL files in place of TFDS, the same as --gin.DATA_DIR=DIR")
    add(
        "--multiprocess", action="store_true", help="one of several processes; the cluster says which (TPU pods, Slurm)"
    )
    add("--coordinator_address", metavar="HOST:PORT", help="of process 0, where no cluster says who takes part")
    add("--process_count", type=int, metavar="N", help="number of processes")
    add("--process_index", type=int, metavar="I", help="this process, from 0")
    add("--multiprocess_timeout", type=int, default=300, metavar="SECONDS", help="how long to wait for the others")
    add(
        "--dry_run",
        type=_as_boolean,
        default=False,
        metavar="true|false",
        help="show the resolved configuration and stop; --dry_run alone means true",
    )
    return parser


def parse_flags(argv: Sequence[str], parser: argparse.ArgumentParser | None = None) -> Invocation:
    """Parses a command line in T5X's style.

    Args:
      argv: the arguments without the program's name; `--flag=value` and `--flag value` are the same, but for
        `--dry_run`, which as in absl stands alone or is written `--dry_run=true` or `--dry_run=false`. `--logtostderr`
        and `--alsologtostderr` are accepted and ignored.
      parser: a parser made by `flag_parser` with further options; their values end in `Invocation.extra`.

    Returns:
      The invocation.

    Raises:
      ConfigError: an unknown flag, a missing or malformed value.

    >>> parse_flags(["--gin_file=a.gin", "--gin.TRAIN_STEPS", "10", "--gin.MODEL_DIR=/tmp/x"]).gin_bindings
    ('TRAIN_STEPS = 10', "MODEL_DIR = '/tmp/x'")
    """
    parser = parser or flag_parser()
    parser.error = _raise_flag_error  # argparse would print its usage and exit with code 2
    known, unknown = parser.parse_known_args(_rewritten(argv))
    if unknown:
        _raise_unknown_argument(unknown, parser)
    values = vars(known)
    values.pop("gin_named")
    values.pop("data_dir")
    address, count, index = (values.pop(name) for name in ("coordinator_address", "process_count", "process_index"))
    timeout, several = values.pop("multiprocess_timeout"), values.pop("multiprocess")
    several = several or (address, count, index) != (None, None, None)
    return Invocation(
        gin_files=tuple(values.pop("gin_file")),
        gin_bindings=tuple(values.pop("gin_bindings")),
        gin_search_paths=tuple(path for joined in values.pop("gin_search_paths") for path in joined.split(",") if path),
        tfds_data_dir=values.pop("tfds_data_dir"),
        dry_run=values.pop("dry_run"),
        processes=Processes(address, count, index, timeout) if several else None,
        extra=values,
    )


def _raise_flag_error(message: str) -> Any:
    raise ConfigError(f"{message[:1].lower()}{message[1:]}; --help lists the flags")


def _raise_unknown_argument(unknown: Sequence[str], parser: argparse.ArgumentParser) -> None:
    flag = next((argument for argument in unknown if argument.startswith("-")), None)
    if flag is None:
        raise ConfigError(f"unexpected argument {unknown[0]!r}: arguments are written --flag=value")
    known = [option for action in parser._actions for option in action.option_strings if option.startswith("--")]
    name = flag.split("=")[0]
    raise ConfigError(f"unknown flag {name}{did_you_mean(name, known, cutoff=0.5)}; --help lists the flags")


def _rewritten(argv: Sequence[str]) -> list[str]:
    """Turns what argparse cannot express into what it can, keeping the order.

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
        if not re.fullmatch(r"[A-Za-z_][\w./]*", name):
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
    """Returns a flag's value as gin syntax; a bare word or path, which is not, becomes a quoted string."""
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
    if value.lower() in ("true", "false", "none"):  # as a string "false" would count as true
        raise ConfigError(f"{flag}={value} is not a gin value: write {flag}={value.capitalize()}")
    return repr(value)
