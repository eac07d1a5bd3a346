"""Compiling for TPU slices that are not there, and reading from the compiled programs what they need and do."""
