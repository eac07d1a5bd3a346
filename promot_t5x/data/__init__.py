"""Training batches and evaluation examples from seqio tasks."""
