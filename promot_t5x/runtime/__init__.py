"""Processes, files, settings and text: what every other room builds on."""
