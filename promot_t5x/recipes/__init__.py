"""Recipes: graphs of runs that are trained, scored and compared."""
