"""Tasks in virtual shards: their examples, shuffled every epoch, and preprocessors that are traced once for all shards.

A task's preprocessors are functions of a dataset, of which TensorFlow makes graphs. That takes a fraction of a second,
so it happens once: a shard's stream is a call of the graph with the examples of the shard.
"""

import functools
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
from absl import logging

from promot_t5x.data import features

# A split up to this size is read once and kept in memory if its source cannot be read in pieces.
_EXAMPLES_IN_MEMORY = 100_000


class ShardedTask:
    """The preprocessed examples of one split of a task, in virtual shards.

    Args:
      task: the task.
      split: one of its splits.
      shards: the number of shards.
      seed: determines the order of the examples and the random numbers of the preprocessors.
      lengths: {"inputs": T, "targets": U}; longer examples are trimmed.
      use_cached: read seqio's cache of the task if it has one.
      noting: replaces the task by one with further preprocessors.
      as_features: from an example of the task to the features that a stream has.

    Raises:
      ValueError: the split has fewer examples than there are shards, or the task forbids shuffling.
    """

    def __init__(
        self,
        task: seqio.Task,
        split: str,
        shards: int,
        seed: int,
        lengths: Mapping[str, int],
        *,
        use_cached: bool,
        noting: Callable[[seqio.Task], seqio.Task],
        as_features: Callable[[dict[str, Any]], dict[str, Any]],
    ):
        self.name, self._seed, self._lengths, self._as_features = task.name, seed, lengths, as_features
        source, steps = task.source, task.preprocessors
        if use_cached and (cached := features.cached_source(task, split)):
            logging.info("reading task %s from its cache %s", task.name, task.cache_dir)
            is_cached = [isinstance(step, seqio.CacheDatasetPlaceholder) for step in steps]
            source, steps = cached, steps[is_cached.index(True) + 1 :]
        self._source = _ShardedSource(task, source, split, shards, seed)
        self._task = noting(task.replace(preprocessors=[_for_training(step) for step in steps]))
        self._functions: dict[int | None, Any] = {}  # a traced function by the seed it was traced with, None for any
        self._traced: list[tf.data.Dataset] = []

    def examples(self, shard: int, num_epochs: int | None) -> tf.data.Dataset:
        """The examples of one shard, None for endlessly many epochs; keep this object as long as they are read."""
        seed = seed_of(self._seed, shard, self.name)
        dataset, count = self._source.shard(shard, seed), np.int64(-1 if num_epochs is None else num_epochs)
        function = self._functions.get(None) or self._functions.get(seed)
        if function is None:
            function, is_random = self._trace(dataset, seed)
            self._functions[seed if is_random else None] = function
        return function(dataset, tf.constant(count))

    def _trace(self, dataset: tf.data.Dataset, seed: int) -> tuple[Callable[..., tf.data.Dataset], bool]:
        """(the preprocessors as a function of the examples and the number of epochs, whether it depends on the seed)"""
        preprocessed = functools.partial(self._preprocessed, seed=seed)
        function: Any = tf.function(preprocessed, autograph=False)
        try:
            graph = function.get_concrete_function(dataset, tf.TensorSpec([], tf.int64)).graph.as_graph_def()
        except Exception:  # a preprocessor that computes while it builds its dataset; a wrong one fails again
            return preprocessed, True
        nodes = [*graph.node, *(node for inner in graph.library.function for node in inner.node_def)]
        return function, any("RandomDataset" in node.op for node in nodes)  # seqio's way to hand out a seed's numbers

    def _preprocessed(self, dataset: tf.data.Dataset, num_epochs: tf.Tensor, *, seed: int) -> tf.data.Dataset:
        """As seqio.Task.get_dataset, after the source."""
        task = self._task
        if task.requires_caching:
            raise ValueError(f"Task {task.name!r} is only read from seqio's cache: set USE_CACHED_TASKS to True.")
        dataset = task.preprocess_precache(dataset, seed=seed).repeat(num_epochs)
        dataset = task.preprocess_postcache(dataset, sequence_length=self._lengths, seed=seed)
        dataset = task._trim_output_features(task._validate_preprocessing(dataset), sequence_length=self._lengths)
        dataset = dataset.map(self._as_features)
        self._traced.append(dataset)  # it holds what its functions look up, such as tables
        return dataset


def seed_of(seed: int, shard: int, name: str) -> int:
    """The seed of one shard of a task or mixture."""
    return int(np.random.SeedSequence([seed, shard, zlib.crc32(name.encode())]).generate_state(1)[0])


class _ShardedSource:
    """One split of a source, in virtual shards that are each reshuffled every epoch.

    seqio repeats a source's examples before it shuffles them, which mixes epochs, and it reads a whole function source
    once per shard. Here examples are shuffled first, and a source that cannot be read in pieces is read once for all
    shards.
    """

    def __init__(self, task: seqio.Task, source: seqio.DataSource, split: str, shards: int, seed: int):
        self._task, self._source, self._split, self._shards, self._seed = task, source, split, shards, seed
        self._sharded_by_file = source.supports_arbitrary_sharding or (
            shards > 1 and len(source.list_shards(split)) >= shards
        )
        if task.shuffle_buffer_size is None and not source.performs_internal_shuffling:
            raise ValueError(
                f"Task {task.name!r} has shuffle_buffer_size=None, which forbids shuffling, but training shuffles: "
                "give the task a shuffle_buffer_size."
            )
        self._buffer = task.shuffle_buffer_size or 1
        if not self._sharded_by_file:
            self._examples = self._read()

    def _read(self) -> tf.data.Dataset:
        """The unsharded examples in their fixed order, kept in memory if they are few enough."""
        task, split, shards = self._task, self._split, self._shards
        examples = self._source.get_dataset(split=split, shuffle=False)
        stated_count = self._source.num_input_examples(split) or int(examples.cardinality())
        if stated_count == tf.data.INFINITE_CARDINALITY or stated_count > _EXAMPLES_IN_MEMORY:
            return examples
        cached = examples.take(_EXAMPLES_IN_MEMORY + 1).cache()
        # Reading it once fills the cache, which all pipelines built on this dataset share.
        count = int(cached.reduce(np.int64(0), lambda n, _: n + 1))
        if count < shards:
            has_examples = f"has {count} examples" if count else "is empty"
            raise ValueError(
                f"Split {split!r} of task {task.name!r} {has_examples}, fewer than "
                f"training_batches.DatasetConfig.shards={shards}: set shards to at most the number "
                "of examples, or give it more data."
            )
        if count > _EXAMPLES_IN_MEMORY:
            return examples
        self._buffer = -(-count // shards)
        return cached

    def shard(self, shard: int, seed: int) -> tf.data.Dataset:
        """The examples of one shard, in another order every epoch."""
        if self._sharded_by_file:
            # One seed for all shards keeps them disjoint parts of the same order of files.
            info = seqio.ShardInfo(shard, self._shards)
            examples = self._source.get_dataset(self._split, True, self._seed, info)
        else:
            examples = self._examples.shard(self._shards, shard)
        return examples.shuffle(self._buffer, seed=seed, reshuffle_each_iteration=True)


def _for_training(step: Callable[..., tf.data.Dataset]) -> Callable[..., tf.data.Dataset]:
    """A preprocessor with `training=True`, if it has that argument; so does seqio with `sequence_length`."""
    if "training" in inspect.signature(step).parameters:
        return functools.partial(step, training=True)
    return step
