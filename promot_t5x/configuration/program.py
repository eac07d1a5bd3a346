"""The frame of every command, from flags to exit code, with one clear sentence for every mistake."""

from __future__ import annotations

import argparse
import functools
import logging as python_logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import flags as absl_flags
from absl import logging

from promot_t5x.configuration import gin_checks, gin_files, mistakes, quiet_imports
from promot_t5x.configuration.flags import Invocation, parse_flags
from promot_t5x.runtime import compiled_programs, files, processes

_PACKAGE = str(Path(__file__).parents[1])  # as records name it, so not resolved

_INTERRUPTED = 130  # a shell's code for a program that was stopped by ctrl-C


def start(argv: Sequence[str], parser: argparse.ArgumentParser) -> Invocation:
    """The first step of every command: parses flags and gin files, checks macros, prints the result for a dry run.

    Args:
      argv: the arguments without the program's name.
      parser: from `flags.flag_parser`, with the command's own options added.

    Returns:
      The parsed command line.

    Raises:
      ConfigError, FileNotFoundError: a flag or gin file has a mistake.
    """
    invocation = parse_flags(argv, parser)
    configure(invocation)
    return invocation


def configure(invocation: Invocation, *, has_runs: bool = False) -> None:
    """Joins the processes and parses the gin files of a command line; the second half of `start`.

    Args:
      invocation: the parsed command line.
      has_runs: the files are a recipe's, and flags may also name modules that only the files of its runs import.
    """
    compiled_programs.keep()
    processes.start(invocation.processes)
    files_and_flags = invocation.gin_files, invocation.gin_bindings, invocation.gin_search_paths
    gin_files.parse(*files_and_flags, skip_not_imported=has_runs)
    gin_checks.check_macros()
    if invocation.dry_run:
        print(gin_files.resolved_config())
    if invocation.tfds_data_dir:
        import seqio  # slow to import, and only needed for this flag

        seqio.set_tfds_data_dir_override(str(files.absolute(invocation.tfds_data_dir)))


def run_main(main: Callable[[Sequence[str]], int | None], argv: Sequence[str] | None = None) -> int:
    """Runs a command's main function; a user's mistake is printed as `error: <sentence>` and gives exit code 1.

    Args:
      main: takes the arguments without the program's name, returns an exit code or None for success.
      argv: the arguments; None for those of the process.

    Returns:
      The exit code. An interrupt (ctrl-C) prints its notes, which say how to continue, and gives 130. Errors of the
      program itself keep their traceback, and with PROMOT_TRACEBACK=1 all errors do.
    """
    show_progress()
    quiet_imports.hide_notices()
    try:
        code = main(sys.argv[1:] if argv is None else argv) or 0
        sys.stdout.flush()
        return code
    except KeyboardInterrupt as interrupt:
        print(f"\ninterrupted{'; '.join(['', *getattr(interrupt, '__notes__', ())])}", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:  # as in `promot-t5x plan … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes it when it exits
        return 1
    except Exception as error:
        sentence = mistakes.sentence(error)
        if sentence is None:
            raise
        if os.environ.get("PROMOT_TRACEBACK") == "1":
            traceback.print_exc()
        hint = " (PROMOT_TRACEBACK=1 shows where it was raised)" if mistakes.is_from_library(error) else ""
        print(f"error: {sentence}{hint}", file=sys.stderr)
        return 1


def show_progress() -> None:
    """Shows this package's progress lines, and warnings from anywhere; hides the notices of libraries.

    Commands call it first. A script or notebook that does not sees no line of a run before its end.
    """
    if not absl_flags.FLAGS.is_parsed():
        absl_flags.FLAGS(["promot_t5x"])  # absl logs nothing below warnings before its flags are parsed
    logging.set_verbosity(logging.INFO)
    logging.use_absl_handler()
    handler = logging.get_absl_handler()
    handler.setFormatter(python_logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    if not handler.filters:
        handler.addFilter(_worth_showing)
    if getattr(sys.unraisablehook, "func", None) is not _unraisable:
        sys.unraisablehook = functools.partial(_unraisable, following=sys.unraisablehook)


def _worth_showing(record: python_logging.LogRecord) -> bool:
    # Orbax looks for its own metadata next to every item of a checkpoint and warns that ours has none.
    harmless = str(record.msg).startswith("Metadata file does not exist")
    return _PACKAGE in record.pathname or (record.levelno >= python_logging.WARNING and not harmless)


def _unraisable(unraisable: Any, *, following: Callable[[Any], None]) -> None:
    """What Python cannot raise: an interrupt inside a callback, such as JAX's of the garbage collector, is sent again.

    Drops the traceback of a read that Orbax had not finished when a damaged checkpoint stopped it.
    """
    if unraisable.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    elif str(unraisable.exc_value) != "Event loop is closed":
        following(unraisable)
