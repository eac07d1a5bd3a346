"""The eval command: scores a checkpoint, or all of a run, on seqio tasks, the soft prompt removed, attached, or both.

    python -m promot_t5x.eval --gin_file=models/mt5_xxl.gin --gin_file=suites/in_context.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.EVAL_OUTPUT_DIR=/tmp/scores
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from etils import epy

from promot_t5x.configuration import flags, gin_checks, gin_files, program

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.evaluation import suite
    from promot_t5x.tasks import catalog

with epy.lazy_api_imports(globals()):  # gin files say eval.evaluate, as T5X's do, and eval.Suite
    from promot_t5x.evaluation.suite import Suite  # noqa: F401
    from promot_t5x.evaluation.suite import evaluate_suite as evaluate  # noqa: F401


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = flags.flag_parser(
        "promot-t5x eval",
        "Scores a checkpoint, or all that a run keeps, on seqio tasks.",
        {
            "CHECKPOINT_PATH": "the checkpoint, or a run's folder, whose best one is taken",
            "EVAL_OUTPUT_DIR": "the folder for scores and answers",
            "TASKS": "the tasks and suites to score, if the suite's own are not wanted, such as \"('rte',)\"",
        },
        (
            "promot-t5x eval --gin_file=models/toy.gin --gin_file=suites/toy_in_context.gin "
            "--gin.CHECKPOINT_PATH=promot_t5x/demo_checkpoint --gin.EVAL_OUTPUT_DIR=out/scores",
            "promot-t5x eval --gin_file=models/mt5_xxl.gin --gin_file=suites/in_context.gin "
            "--gin.CHECKPOINT_PATH=gs://bucket/stage2 --gin.EVAL_OUTPUT_DIR=gs://bucket/scores",
        ),
    )
    add = result.add_argument
    add("--list", action="store_true", help="print all tasks and suites, with sizes and sources, and stop")
    add("--limit", type=int, metavar="N", help="score only the first N examples of every task")
    add("--show", type=int, metavar="N", help="print the first N prompts of every task, and stop")
    flags.add_data_flag(result)
    return result


def parse(argv: Sequence[str]) -> flags.Invocation:
    """Parses the command line; `--limit` and `--show` become gin bindings.

    >>> parse(["--limit=3"]).gin_bindings
    ('scoring.EvaluationConfig.limit = 3',)
    """
    invocation = flags.parse_flags(argv, parser())
    bindings = list(invocation.gin_bindings)
    if invocation.extra["limit"] is not None:
        bindings.append(f"scoring.EvaluationConfig.limit = {invocation.extra['limit']}")
    if invocation.extra["show"] is not None:  # macros that only a model needs may be left out
        if invocation.extra["show"] < 1:
            raise flags.ConfigError(f"--show={invocation.extra['show']} shows nothing: give a number from 1 on")
        bindings = ["CHECKPOINT_PATH = ''", "EVAL_OUTPUT_DIR = ''", *bindings]
    return dataclasses.replace(invocation, gin_bindings=tuple(bindings))


def main(argv: Sequence[str]) -> None:
    """Runs `evaluate`, or `show`, as the gin files and flags say."""
    invocation = parse(argv)
    if invocation.extra["list"]:
        print(catalog.listing())
        return
    program.configure(invocation)
    gin_checks.check_flags("eval.evaluate", "eval.Suite")
    if flags.opens_data(invocation):
        bound = gin_files.bound_arguments(suite.evaluate_suite, "eval.evaluate")
        suite.check_output(bound["suite"], bound["output_dir"])
        suite.check(bound["suite"], bound["model"])
        print(f"opened: {', '.join(entry.name for entry in bound['suite'].entries)}, and their vocabularies")
    if invocation.dry_run:
        return
    if invocation.extra["show"] is not None:
        suite.show(gin_files.configurable(suite.Suite, "eval.Suite")(), invocation.extra["show"])
    else:
        gin_files.configurable(suite.evaluate_suite, "eval.evaluate")()


if __name__ == "__main__":
    sys.exit(program.run_main(main))
