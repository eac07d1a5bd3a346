"""From flags and gin files to a parsed configuration; the only room that knows gin's private names."""
