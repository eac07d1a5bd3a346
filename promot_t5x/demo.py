"""The demo: recipes/demo.gin, the whole method on a small world, with the pretrained model in the package.

--gin_file replaces the recipe; to change parts of it, give --gin_file=recipes/demo.gin first.
"""

import argparse
import dataclasses

from etils import epy

from promot_t5x.configuration import flags
from promot_t5x.runtime.files import absolute

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.recipes import from_command


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = flags.flag_parser(
        "promot-t5x demo",
        __doc__,
        {"TRAIN_STEPS": "steps of every run, if the recipe's own are not wanted"},
        (
            "promot-t5x demo --out=out/demo",
            "promot-t5x demo --gin_file=recipes/demo_seeds.gin --out=out/demo_seeds",
        ),
    )
    flags.add_data_flag(result)
    result.add_argument("--out", default="out/demo", help="folder of the results and the report (default: out/demo)")
    return result


def main(argv: list[str]) -> None:
    """Runs the demo's recipe; --gin flags modify it, --gin_file replaces it."""
    invocation = flags.parse_flags(argv, parser())
    bindings = (f"WORK_DIR = {str(absolute(invocation.extra['out']))!r}", *invocation.gin_bindings)
    files = invocation.gin_files or ("recipes/demo.gin",)
    from_command.follow(dataclasses.replace(invocation, gin_files=files, gin_bindings=bindings))
