"""The pipeline verb: runs a recipe from gin files."""

import sys
from collections.abc import Sequence

from promot_t5x.configuration import flags, program
from promot_t5x.recipes import running
from promot_t5x.recipes.recipe import Recipe
from promot_t5x.recipes.running import run_recipe as run

__all__ = ["Recipe", "main", "run"]  # gin files say pipeline.run and pipeline.Recipe


def main(argv: Sequence[str]) -> None:
    """Runs the recipe that the gin files and flags describe."""
    parser = flags.flag_parser("promot-t5x pipeline", "Stage 1, stage 2, baselines, evaluations, report.")
    running.follow(flags.parse_flags(argv, parser))


if __name__ == "__main__":
    sys.exit(program.run_main(main))
