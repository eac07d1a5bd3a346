"""Training batches from a seqio task or mixture, in an order that does not depend on the machines.

The training data of a run is split into a fixed number S of virtual shards (`DatasetConfig.shards`). Each shard is an
endless stream, reshuffled every epoch. Row r of every batch comes from shard r mod S, and a process reads only the
shards of its own rows, so the order of the data is the same on one host and on many. The position in the data is a
number of whole batches: a resumed run rebuilds the stream from the task and the seed, then skips that many.

Dimensions: B batch rows, T encoder length, U decoder length.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from promot_t5x.data import cuts, features, vocabularies
from promot_t5x.data.sharded_tasks import ShardedTask, seed_of
from promot_t5x.runtime import arguments
from promot_t5x.tasks import registration

# About this many examples are checked for cuts before the first step; with long prompts this takes a few seconds.
_EXAMPLES_CHECKED = 256

# The error for an empty shard counts the examples of every shard up to this number.
_EXAMPLES_COUNTED = 10_000


@arguments.checked
@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The training data of a run.

    Args:
      mixture_or_task_name: a task or mixture of seqio's registry.
      task_feature_lengths: {"inputs": T, "targets": U}, in tokens; longer examples are trimmed.
      split: the split to train on.
      batch_size: rows of one global batch, over all processes.
      seed: determines the order of the examples and the random numbers of the preprocessors.
      shards: number of virtual shards, a divisor of `batch_size`; another number gives another order.
      soft_prompt_id: the prompt for tasks without a `soft_prompt_ids` feature; -1 for none.
      use_cached: read tasks that seqio has cached (`seqio_cache_tasks`) from their cache, and preprocess the others.
      module: a module to import first because it registers seqio tasks; None if they are registered elsewhere.

    Raises:
      ValueError: an argument is out of range; the sentence has its gin name.

    >>> DatasetConfig("my_task", {"inputs": 8, "targets": 4}, batch_size=6, shards=3).shards
    3
    """

    mixture_or_task_name: str
    task_feature_lengths: Mapping[str, int]
    split: str = "train"
    batch_size: int = 64
    seed: int = 0
    shards: int = 8
    soft_prompt_id: int = 0
    use_cached: bool = False
    module: str | None = None

    def __post_init__(self):
        if self.module is not None:
            registration.import_module(self.module, "training_batches.DatasetConfig.module")
        features.check_lengths(self.task_feature_lengths, "training_batches.DatasetConfig.task_feature_lengths")
        for name, least in (("batch_size", 1), ("shards", 1), ("soft_prompt_id", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**31:
                raise ValueError(
                    f"training_batches.DatasetConfig.{name} is {value!r}, expected a whole number of at least {least}"
                    f"{'.' if value < 2**31 else ' and below 2^31.'}"
                )
        arguments.check_seed(self.seed, "training_batches.DatasetConfig.seed")
        if self.batch_size % self.shards:
            raise ValueError(
                f"training_batches.DatasetConfig.batch_size={self.batch_size} is not a multiple of "
                f"training_batches.DatasetConfig.shards={self.shards}: set shards to a divisor of the batch size."
            )


class _TrainingStreams:
    """Builds the endless streams of the virtual shards of a task or mixture."""

    def __init__(self, config: DatasetConfig):
        self._config = config
        provider = features.find(config.mixture_or_task_name, "training_batches.DatasetConfig.mixture_or_task_name")
        self._mixture = provider if isinstance(provider, seqio.Mixture) else None
        tasks = list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]
        if self._mixture:  # as seqio does, a task without the split is left out of the mixture
            tasks = [task for task in tasks if config.split in task.splits] or tasks
        self._tasks, self._counts = [], []
        for task in tasks:
            features.check_split(task, config.split)
            vocabularies.open_vocabularies(task)
            self._tasks.append(self._sharded(task))
            self._counts.append(task.num_input_examples(config.split))
        if self._mixture:
            self._rates = [self._mixture.get_rate(task) for task in tasks]

    def _sharded(self, task: seqio.Task) -> ShardedTask:
        config = self._config
        return ShardedTask(
            task,
            config.split,
            config.shards,
            config.seed,
            config.task_feature_lengths,
            use_cached=config.use_cached,
            noting=cuts.noting,
            as_features=lambda ex: {**features.with_prompt(ex, config.soft_prompt_id), cuts.FEATURE: cuts.of(ex)},
        )

    def check(self, shards: Sequence[int]) -> None:
        """Raises ValueError if a task's preprocessors leave one of these shards without examples.

        The endless stream of such a shard would never return. Warns if the first examples lose something.
        """
        examples, counts_K = 0, np.zeros(len(cuts.ALL), np.int64)
        per_shard = -(-_EXAMPLES_CHECKED // (len(self._tasks) * len(shards)))
        for task in self._tasks:
            epochs = tuple(task.examples(shard, num_epochs=1) for shard in shards)
            before = examples
            for examples_S in features.as_numpy(tf.data.Dataset.zip(epochs).take(per_shard)):
                examples += len(shards)
                counts_K += np.sum([example[cuts.FEATURE] for example in examples_S], axis=0)
            if examples == before:
                raise self._empty_shard(task)
        counts = dict(zip(cuts.ALL, counts_K.tolist(), strict=True))
        where, lengths = f"Of the first {examples} training examples", self._config.task_feature_lengths
        if warning := cuts.warning(counts, where, lengths, "training_batches.DatasetConfig.task_feature_lengths"):
            logging.warning("%s", warning)

    def _empty_shard(self, task: ShardedTask) -> ValueError:
        split, shards = self._config.split, self._config.shards
        epochs = (task.examples(shard, num_epochs=1) for shard in range(shards))
        counts = [int(epoch.take(_EXAMPLES_COUNTED).reduce(np.int64(0), lambda n, _: n + 1)) for epoch in epochs]
        if not any(counts):
            return ValueError(
                f"Split {split!r} of task {task.name!r} is empty after its preprocessors, expected "
                "examples: check the task's source and filters."
            )
        at_least = "at least " if max(counts) == _EXAMPLES_COUNTED else ""
        return ValueError(
            f"Split {split!r} of task {task.name!r} has {at_least}{sum(counts)} examples after its preprocessors, "
            f"which leave {counts.count(0)} of {shards} shards empty: lower training_batches.DatasetConfig.shards (1 "
            "always works), or check the task's filters."
        )

    def log_counts(self) -> None:
        """Logs how many examples each task has, if its source knows."""
        for task, count in zip(self._tasks, self._counts, strict=True):
            if count:
                logging.info("%s/%s has %s examples", task.name, self._config.split, f"{count:,}")

    def shard(self, shard: int, start_batch: int) -> tf.data.Dataset:
        """The padded rows of one shard, B/S at a time, starting at a batch."""
        config = self._config
        streams = [task.examples(shard, num_epochs=None) for task in self._tasks]
        if self._mixture:
            seed = seed_of(config.seed, shard, config.mixture_or_task_name)
            examples = self._mixture._sample_fn(streams, self._rates, seed)
        else:
            (examples,) = streams
        rows = config.batch_size // config.shards
        return features.padded_batch(
            examples.skip(start_batch * rows), config.task_feature_lengths, rows, drop_remainder=True
        )

    def read(self, shards: Sequence[int], start_batch: int) -> Iterator[dict[str, np.ndarray]]:
        """The rows of shards from a batch on, features of [S, B/S, ...]."""
        zipped = tf.data.Dataset.zip(tuple(self.shard(shard, start_batch) for shard in shards))
        stacked = zipped.map(lambda *parts: {k: tf.stack([part[k] for part in parts]) for k in parts[0]})
        yield from features.as_numpy(stacked.prefetch(8))  # a generator keeps this object, as long as it is read


def training_batches(
    config: DatasetConfig,
    *,
    start_batch: int = 0,
    rows: Sequence[int] | np.ndarray | None = None,
    with_cuts: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """The endless, shuffled batches of a run; each example occurs once per epoch of its shard. See also `opened`.

    A split whose source cannot be read in pieces (most functions, a single file) is read once by every process and kept
    in memory if it has at most 100,000 examples; every shard reads all of a larger one.

    Preprocessors that have an argument `training` get True: `few_shot.prompts` then draws a question's exemplars anew
    each time.

    Args:
      config: the data to read.
      start_batch: the number of batches to skip; the rest equals that of a new stream, byte for byte.
      rows: the b rows of each global batch that this process needs (`Partitioner.rows`); only their shards are read.
        None for all rows.
      with_cuts: whether to add `cuts`, the counts of what was cut from each row, bxK as int32 for the K kinds of
        `cuts.ALL`. The warning about the first examples does not depend on it.

    Returns:
      An iterator over these rows of each global batch: encoder_input_tokens bxT, decoder_input_tokens bxU,
      decoder_target_tokens bxU and soft_prompt_ids b as int32, decoder_loss_weights bxU as float32.

    Raises:
      FileNotFoundError: a vocabulary file is missing.
      ValueError: the task, mixture or split is unknown, the split has fewer examples than there are shards, the
        preprocessors leave a shard empty, a row is outside the batch, or a vocabulary file cannot be read.
    """
    if start_batch < 0:
        raise ValueError(f"start_batch is {start_batch}, expected the number of batches consumed so far, at least 0.")
    return opened(config, rows=rows, with_cuts=with_cuts)(start_batch)


def opened(
    config: DatasetConfig, *, rows: Sequence[int] | np.ndarray | None = None, with_cuts: bool = False
) -> Callable[[int], Iterator[dict[str, np.ndarray]]]:
    """Opens and checks the data and vocabularies of a run, before its first batch is known.

    Args, Raises:
      See `training_batches`.

    Returns:
      The function of the number of batches to skip that returns the others.
    """
    rows = np.arange(config.batch_size) if rows is None else np.asarray(rows)
    if not len(rows) or rows.min() < 0 or rows.max() >= config.batch_size:
        raise ValueError(
            f"rows are {rows.tolist()}, expected at least one, each from 0 to {config.batch_size - 1}, "
            "training_batches.DatasetConfig.batch_size minus one."
        )
    shards, position = np.unique(rows % config.shards, return_inverse=True)
    streams = _TrainingStreams(config)
    streams.check(shards.tolist())

    def of_rows(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        taken = {k: v[position, rows // config.shards] for k, v in batch.items()}
        return features.converted(taken) | ({cuts.FEATURE: taken[cuts.FEATURE]} if with_cuts else {})

    def batches(start_batch: int) -> Iterator[dict[str, np.ndarray]]:
        streams.log_counts()
        return map(of_rows, streams.read(shards.tolist(), start_batch))

    return batches
