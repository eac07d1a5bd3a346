"""Graphs of runs that are compared with each other."""
