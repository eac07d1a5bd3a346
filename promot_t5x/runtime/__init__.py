"""Processes, files and text: what everything else stands on."""
