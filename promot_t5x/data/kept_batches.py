"""Training batches that the runs of a recipe share: what one run has read, the next one gets from memory.

Runs that read the same rows of the same data get the same batches, so reading them again would only cost time. See
`runtime.between_runs` for when batches are kept, and how many bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from promot_t5x.data import features, training_batches
from promot_t5x.data.training_batches import DatasetConfig
from promot_t5x.runtime import between_runs, settings, strict_json

Batch = dict[str, np.ndarray]


class _Stream:
    """The batches of one configuration by their numbers: those read so far, and the iterator that reads more."""

    def __init__(self, config: DatasetConfig, rows: Sequence[int] | np.ndarray):
        self._open = training_batches.opened(config, rows=rows, with_cuts=True)
        self._read: dict[int, Batch] = {}
        self._live: Iterator[Mapping[str, np.ndarray]] = iter(())
        self._next: int | None = None  # the number of the live iterator's next batch
        self.bytes = 0

    def batches(self, start_batch: int, keep: Callable[[int], bool]) -> Iterator[Batch]:
        """The endless batches from a number on; `keep` is asked with the bytes of all that would be kept."""
        number = start_batch
        while True:
            if (batch := self._read.get(number)) is None:
                live = self._live if self._next == number else self._open(number)
                self._next = None  # until the batch is there: an iterator that was interrupted has ended
                batch = dict(next(live))
                self._live, self._next = live, number + 1
                size = sum(rows.nbytes for rows in batch.values())
                if keep(self.bytes + size):
                    self._read[number] = batch
                    self.bytes += size
            yield dict(batch)
            number += 1


def opened(
    config: DatasetConfig, contents: Mapping[str, Any], rows: Sequence[int] | np.ndarray
) -> Callable[[int], Iterator[Batch]]:
    """`training_batches.opened` with cuts; within `between_runs.keeping`, data that were opened before are kept.

    Args:
      config: the data to read.
      contents: what the task or mixture is made of, with the contents of its files, see `definitions.made_of`.
      rows: the rows of each batch that this process needs.

    Returns:
      The function of the number of batches to skip that returns the others.

    Raises:
      FileNotFoundError, ValueError: see `training_batches.training_batches`.
    """
    kept = between_runs.kept("batches")
    if kept is None:
        return training_batches.opened(config, rows=rows, with_cuts=True)
    task = features.find(config.mixture_or_task_name, "training_batches.DatasetConfig.mixture_or_task_name")
    described = strict_json.dumps(settings.describe({"data": config, "made of": contents}))
    key = task, described, tuple(map(int, rows))  # the task itself, as not all sources can describe their data
    stream: _Stream = kept.get(key) or _Stream(config, rows)
    kept.put(key, stream, stream.bytes)

    def keep(size: int) -> bool:
        if fits := kept.fits(size):
            kept.put(key, stream, size)
        return fits

    return lambda start_batch: stream.batches(start_batch, keep)
