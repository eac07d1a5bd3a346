"""Imports of modules that register seqio tasks."""

import importlib


def import_module(name: str, parameter: str) -> None:
    """Imports a module that registers seqio tasks.

    Args:
      name: the module, as in an import statement.
      parameter: the gin name of the parameter that holds it, for the error.

    Raises:
      ValueError: the module cannot be imported.

    >>> import_module("promot_t5x.tasks.toy_world", "catalog.entries.module")
    """
    try:
        importlib.import_module(name)
    except (Exception, SystemExit) as error:  # the module is the user's, and may raise anything
        raise ValueError(
            f"{parameter} is {name!r}, which cannot be imported ({type(error).__name__}: {error}); set "
            "MIXTURE_OR_TASK_MODULE to a module that registers seqio tasks, and put its folder on PYTHONPATH."
        ) from error
