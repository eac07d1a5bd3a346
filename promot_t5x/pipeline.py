"""The pipeline command: runs the recipe of the gin files."""

import sys
from collections.abc import Sequence

from etils import epy

from promot_t5x.configuration import flags, program

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.recipes import from_command

with epy.lazy_api_imports(globals()):  # gin files say pipeline.run and pipeline.Recipe
    from promot_t5x.recipes.recipe import Recipe  # noqa: F401
    from promot_t5x.recipes.running import run_recipe as run  # noqa: F401


def main(argv: Sequence[str]) -> None:
    """Runs the recipe that the gin files and flags describe."""
    parser = flags.flag_parser(
        "promot-t5x pipeline", "Runs a recipe: stage 1, stage 2, baselines, evaluations, report."
    )
    invocation = flags.parse_flags(argv, parser)
    from_command.follow(invocation)


if __name__ == "__main__":
    sys.exit(program.run_main(main))
