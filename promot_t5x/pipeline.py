"""The pipeline command: runs the recipe of the gin files."""

import argparse
import sys
from collections.abc import Sequence

from etils import epy

from promot_t5x.configuration import flags, program

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.recipes import from_command

with epy.lazy_api_imports(globals()):  # gin files say pipeline.run and pipeline.Recipe
    from promot_t5x.recipes.recipe import Recipe  # noqa: F401
    from promot_t5x.recipes.running import run_recipe as run  # noqa: F401


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = flags.flag_parser(
        "promot-t5x pipeline",
        "Runs a recipe: stage 1, stage 2, baselines, evaluations, report.",
        {
            "WORK_DIR": "the folder for all runs and the report; the same command resumes",
            "VOCABULARY_FILE": "a copy of T5's SentencePiece model, for the trial recipes",
            "PRETRAINED": "the checkpoint that all methods start from, if the recipe's own is not wanted",
        },
        (
            "promot-t5x pipeline --gin_file=recipes/promot_rte.gin --gin.WORK_DIR=gs://bucket/rte",
            "promot-t5x pipeline --gin_file=recipes/trial_rte.gin --data_dir=super_glue "
            "--gin.VOCABULARY_FILE=spm/t5_cc_all_32000.model --gin.WORK_DIR=out/trial",
        ),
    )
    flags.add_data_flag(result)
    return result


def main(argv: Sequence[str]) -> None:
    """Runs the recipe that the gin files and flags describe."""
    invocation = flags.parse_flags(argv, parser())
    from_command.follow(invocation)


if __name__ == "__main__":
    sys.exit(program.run_main(main))
