"""Answers, scores, and suites of tasks."""
