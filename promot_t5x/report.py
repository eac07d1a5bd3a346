"""The report command: writes the page, tables and plot of a comparison.json again, or the table of a scores.json."""

import argparse

from etils import epy

from promot_t5x.configuration import flags
from promot_t5x.runtime.files import writable_folder

with epy.lazy_imports():  # --help needs no matplotlib
    from promot_t5x.reports import comparison, page, scores, tables


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    examples = (
        "promot-t5x report --results=out/demo/comparison.json --out=out/again",
        "promot-t5x report --scores=out/scores/scores.json --out=out/scores",
    )
    result = flags.flag_parser("promot-t5x report", __doc__, examples=examples)
    files = result.add_mutually_exclusive_group(required=True)
    files.add_argument("--results", metavar="FILE", help="a comparison.json that the pipeline wrote")
    files.add_argument("--scores", metavar="FILE", help="a scores.json that `eval` wrote, of one checkpoint or several")
    result.add_argument("--out", required=True, metavar="DIR", help="the folder for the report")
    return result


def main(argv: list[str]) -> None:
    """Writes the report of a comparison, or the table of an evaluation's scores, into --out."""
    invocation = flags.parse_flags(argv, parser())
    flags.refuse_configuration(invocation, "report")
    extra = invocation.extra
    writable_folder(extra["out"], "--out")
    if extra["scores"] is not None:
        evaluated = scores.read(extra["scores"])
        written = scores.write_markdown(evaluated, extra["out"])
        print(f"{scores.text_table(evaluated)}\n\nReport: {written}")
        return
    measured = comparison.read(extra["results"])
    paths = page.write_all(measured, extra["out"])
    print(f"{tables.text_table(measured)}\n\n{page.headline(measured)}\n\nReport: {paths['html']}")
