"""Batches for training and examples for evaluation, out of seqio tasks."""
