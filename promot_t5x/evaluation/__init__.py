"""Answers, scores and the suites of tasks they are made for."""
