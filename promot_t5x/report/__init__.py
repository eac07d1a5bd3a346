"""Results -> one self-contained HTML page, a PNG plot, Markdown and terminal tables.

Every function takes the dictionary of `promot_t5x.results`, with any methods, learning rates, seeds and in-context
tasks, also none; `write_all` makes everything in one folder.
"""

from promot_t5x.report.figure import plot, plot_png
from promot_t5x.report.page import headline, write_all, write_html
from promot_t5x.report.tables import markdown_table, text_table

__all__ = ["headline", "markdown_table", "plot", "plot_png", "text_table", "write_all", "write_html"]
