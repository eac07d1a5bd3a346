"""The command `promot-t5x`, with one verb for each of the package's commands."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

import promot_t5x
from promot_t5x.configuration import flags, gin_files, program
from promot_t5x.runtime.text import did_you_mean

_VERBS = {
    "train": ("promot_t5x.train", "train one stage or baseline"),
    "eval": ("promot_t5x.eval", "score a checkpoint on seqio tasks, prompt removed or attached"),
    "infer": ("promot_t5x.infer", "answer the inputs of a JSONL file"),
    "pipeline": ("promot_t5x.pipeline", "run a recipe: stage 1, stage 2, baselines, evaluations, report"),
    "plan": ("promot_t5x.plan", "compile a recipe for a TPU slice without having one: memory, FLOPs, traffic"),
    "convert": ("promot_t5x.convert", "convert a checkpoint between our format, T5X's and Hugging Face's"),
    "demo": ("promot_t5x.demo", "run the whole method on a small world, in minutes on a CPU"),
    "compare": ("promot_t5x.compare", "paired differences of two evaluations, task by task"),
    "report": ("promot_t5x.report", "write the report of a comparison.json, or the table of a scores.json, again"),
    "doctor": ("promot_t5x.doctor", "print versions, devices and folders, to include in a question"),
}

_OPTIONS = """\
  VERB --help          lists the flags of a verb, the macros that it needs, and two examples
  --list_gin           lists the gin files that come with the package
  --completion SHELL   prints the completion for a shell: source <(promot-t5x --completion bash)
  --version            prints the version"""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verb; returns the exit code.

    >>> main(["--help"])  # doctest: +ELLIPSIS
    usage: promot-t5x VERB ...
    ...
    0
    """
    return program.run_main(_run, sys.argv[1:] if argv is None else argv)


def _run(argv: Sequence[str]) -> int | None:
    if not argv or argv[0] in ("--help", "-h", "help"):
        print("usage: promot-t5x VERB ...\n")
        for verb, (_, summary) in _VERBS.items():
            print(f"  {verb:9} {summary}")
        print(f"\n{_OPTIONS}")
        return 0
    if argv[0] == "--version":
        print(f"promot-t5x {promot_t5x.__version__}")
        return 0
    if argv[0] == "--list_gin":
        print(gin_files.listing())
        return 0
    if argv[0] == "--completion":
        return _print_completion(argv[1:])
    if argv[0] not in _VERBS:
        hint = did_you_mean(argv[0], _VERBS)
        raise flags.ConfigError(f"promot-t5x has no verb {argv[0]!r}{hint}; it has {', '.join(_VERBS)}.")
    if (folder := os.getcwd()) not in sys.path:
        sys.path.insert(0, folder)  # as `python -m` does, so that gin files can import modules of the user's own
    return importlib.import_module(_VERBS[argv[0]][0]).main(argv[1:])  # a verb imports only what it needs


def _print_completion(argv: Sequence[str]) -> None:
    """Prints the completion of all verbs and flags for a shell."""
    import shtab  # which no verb needs

    if len(argv) != 1 or argv[0] not in shtab.SUPPORTED_SHELLS:
        raise ValueError(f"--completion takes the name of a shell: one of {', '.join(shtab.SUPPORTED_SHELLS)}")
    parser = argparse.ArgumentParser("promot-t5x")
    verbs = parser.add_subparsers()
    for verb, (module, summary) in _VERBS.items():
        of_verb = importlib.import_module(module).parser()
        verbs.add_parser(verb, help=summary, parents=[of_verb], add_help=False)
    print(shtab.complete(parser, argv[0]))


if __name__ == "__main__":
    sys.exit(main())
