"""Stages, optimizers, the training loop and the folder of a run."""
