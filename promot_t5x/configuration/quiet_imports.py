"""Imports TensorFlow without its notices about GPUs and oneDNN.

Its C++ code writes them to the file descriptor of stderr, before any log level applies. Errors are shown.
"""

import contextlib
import importlib.abc
import importlib.machinery
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from types import ModuleType

_NOTICE = r"WARNING: All log messages before absl::InitializeLog|[IW]\d{4,} \d"


def hide_notices() -> None:
    """Hides the notices of the first import of TensorFlow, whoever imports it, and whenever that is."""
    if "tensorflow" not in sys.modules and not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds TensorFlow as usual, and lets it be loaded without notices."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """See importlib.abc.MetaPathFinder."""
        if fullname != "tensorflow":
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def load_without_notices(module: ModuleType) -> None:
                with _without_notices():
                    load(module)

            spec.loader.exec_module = load_without_notices
        return spec


@contextlib.contextmanager
def _without_notices() -> Iterator[None]:
    """Holds back what is written to stderr, then writes all of it but notices."""
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            written.seek(0)
            lines = written.read().decode(errors="replace").splitlines(keepends=True)
            sys.stderr.writelines(line for line in lines if not re.match(_NOTICE, line))
