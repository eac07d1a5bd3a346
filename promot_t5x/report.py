"""The report verb: comparison.json -> report.html, comparison.md and the plot, again."""

from etils import epy

from promot_t5x.configuration import flags

with epy.lazy_imports():  # --help needs no matplotlib
    from promot_t5x.reports import comparison, page, tables


def main(argv: list[str]) -> None:
    """Writes the report of a comparison into --out."""
    parser = flags.flag_parser("promot-t5x report", __doc__)
    parser.add_argument("--results", required=True, help="a comparison.json that the pipeline wrote")
    parser.add_argument("--out", required=True, help="the folder for report.html, comparison.md and report.png")
    extra = flags.parse_flags(argv, parser).extra
    measured = comparison.read(extra["results"])
    written = page.write_all(measured, extra["out"])
    print(f"{tables.text_table(measured)}\n\n{page.headline(measured)}\n\nReport: {written['html']}")
