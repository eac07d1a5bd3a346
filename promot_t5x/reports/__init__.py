"""Results as tables, a plot and a page."""
