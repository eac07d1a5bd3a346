"""What a process keeps in memory from one run to the next, for as long as a recipe's runs follow each other.

Outside of `keeping` nothing is kept: a run on its own would pay for copies that nobody reads.
"""

import collections
import contextlib
import os
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from typing import Any

_MOST = 8  # things of one kind

_SHARE = 8  # of the host's memory, one kind may take one part in so many


class Kept:
    """Things of one kind, limited in number and bytes; those that were not used for longest go first.

    Args:
      most_bytes: of all of them.

    >>> kept = Kept(most_bytes=10)
    >>> kept.put("a", 1, bytes=6), kept.put("b", 2, bytes=6)
    (None, None)
    >>> kept.get("a"), kept.get("b")
    (None, 2)
    """

    def __init__(self, most_bytes: int):
        self._most_bytes = most_bytes
        self._things: collections.OrderedDict[Hashable, tuple[Any, int]] = collections.OrderedDict()

    def get(self, key: Hashable) -> Any:
        """The thing of a key; None if it was never kept, or had to go."""
        if key not in self._things:
            return None
        self._things.move_to_end(key)
        return self._things[key][0]

    def fits(self, bytes: int) -> bool:
        """Whether there is room for a thing of that size, once others are gone."""
        return bytes <= self._most_bytes

    def put(self, key: Hashable, thing: Any, bytes: int = 0) -> None:
        """Keeps a thing that fits as the newest, also if it was kept before and had another size."""
        self._things[key] = thing, bytes
        self._things.move_to_end(key)
        while len(self._things) > _MOST or sum(size for _, size in self._things.values()) > self._most_bytes:
            self._things.popitem(last=False)


_KINDS: ContextVar[dict[str, Kept] | None] = ContextVar("between_runs", default=None)


@contextlib.contextmanager
def keeping() -> Iterator[None]:
    """A context in which runs keep what the next ones need: compiled steps, weights that were read, training batches.

    Each kind may take an eighth of the host's memory; all of it is dropped at the end.
    """
    token = _KINDS.set({})
    try:
        yield
    finally:
        _KINDS.reset(token)


def kept(kind: str) -> Kept | None:
    """What is kept of a kind; None outside of `keeping`."""
    kinds = _KINDS.get()
    if kinds is None:
        return None
    if kind not in kinds:
        kinds[kind] = Kept(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // _SHARE)
    return kinds[kind]
