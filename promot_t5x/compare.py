"""The compare command: the paired differences of two evaluations, task by task."""

import argparse

from etils import epy

from promot_t5x.configuration import flags
from promot_t5x.runtime.files import writable_folder

with epy.lazy_imports():  # --help needs no numpy
    from promot_t5x.evaluation import paired_evaluations


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    examples = (
        "promot-t5x compare out/scores_base out/scores_tuned",
        "promot-t5x compare out/demo/seed0/fine_tuning_lr0.001 out/demo/seed0/promot_lr0.001 --out=out/paired",
    )
    result = flags.flag_parser("promot-t5x compare", __doc__, examples=examples)
    result.add_argument(
        "first", metavar="RUN_A", help="a folder with a scores.json that `eval` or the pipeline wrote, or that file"
    )
    result.add_argument("second", metavar="RUN_B", help="another one; differences are RUN_B minus RUN_A")
    result.add_argument("--out", metavar="DIR", help="a folder for paired.json and paired.md")
    return result


def main(argv: list[str]) -> None:
    """Prints the differences, and writes them into --out."""
    invocation = flags.parse_flags(argv, parser())
    flags.refuse_configuration(invocation, "compare")
    extra = invocation.extra
    if extra["out"] is not None:
        writable_folder(extra["out"], "--out")
    compared = paired_evaluations.compare(extra["first"], extra["second"])
    print(paired_evaluations.text_table(compared))
    if extra["out"] is not None:
        print(f"\nWritten: {paired_evaluations.write(compared, extra['out'])}, and paired.json next to it")
