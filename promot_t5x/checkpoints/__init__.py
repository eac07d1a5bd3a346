"""Checkpoints and soft prompts in every format, read and written."""
