"""From a seqio task or mixture to batches of numpy arrays, in an order that no machine layout changes.

The training data of a run is cut into a fixed number S of virtual shards (`DatasetConfig.shards`), each an endless
stream of its own, shuffled anew every epoch. Row r of every batch comes from shard r mod S, and a process reads only
the shards of its own rows: the order of the data is the same on one host and on many. The position in the data is a
number of whole batches: a stream is rebuilt from the task and the seed, then skips.

Dimensions: B batch rows, T encoder length, U decoder length, N examples of a split.
"""

import dataclasses
import difflib
import functools
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import seqio
import tensorflow as tf

SOFT_PROMPT_IDS = "soft_prompt_ids"
_TASK_FEATURES = ("inputs", "targets")
# A split of at most this many examples, of a source that cannot be read in pieces, is read once and kept in memory.
_EXAMPLES_IN_MEMORY = 100_000

_FeatureSpec = seqio.FeatureConverter.FeatureSpec


class PromptedFeatureConverter(seqio.EncDecFeatureConverter):
    """seqio's encoder-decoder converter, plus the prompt of each row: the rank-0 int32 feature `soft_prompt_ids`.

    A task may provide the feature itself (-1: no prompt); rows of tasks that do not get `soft_prompt_id`. The loss
    weights are float32: 1 for tokens, 0 for padding.

    Args:
      soft_prompt_id: the prompt of examples without the feature; -1 for none.
      pack: must be False, as a prompt belongs to one example and a packed row holds several.
      apply_length_check: see seqio; the features are trimmed to their lengths either way.

    Raises:
      ValueError: packing was asked for.

    >>> ds = tf.data.Dataset.from_tensors({"inputs": [7, 8, 1], "targets": [3, 1]})
    >>> lengths = {"inputs": 4, "targets": 3}
    >>> row, = PromptedFeatureConverter(soft_prompt_id=2)(ds, lengths).as_numpy_iterator()
    >>> row["decoder_input_tokens"].tolist(), row["decoder_target_tokens"].tolist(), int(row["soft_prompt_ids"])
    ([0, 3, 1], [3, 1, 0], 2)
    """

    TASK_FEATURES = {**seqio.EncDecFeatureConverter.TASK_FEATURES, SOFT_PROMPT_IDS: _FeatureSpec(tf.int32, rank=0)}
    MODEL_FEATURES = {
        **seqio.EncDecFeatureConverter.MODEL_FEATURES,
        "decoder_loss_weights": _FeatureSpec(tf.float32),
        SOFT_PROMPT_IDS: _FeatureSpec(tf.int32, rank=0),
    }

    def __init__(self, soft_prompt_id: int = -1, pack: bool = False, apply_length_check: bool = True):
        if pack:
            raise ValueError(
                "PromptedFeatureConverter.pack is True, but a soft prompt belongs to one example and a packed row "
                "holds several: set pack to False."
            )
        super().__init__(pack=False, apply_length_check=apply_length_check)
        self._soft_prompt_id = soft_prompt_id

    def __call__(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        """Converts unbatched examples; `task_feature_lengths` names `inputs` and `targets` only."""
        ds = ds.map(functools.partial(_with_prompt, soft_prompt_id=self._soft_prompt_id))
        # The length of a rank-0 feature is not looked at, but seqio wants every feature to have one.
        return super().__call__(ds, {**task_feature_lengths, SOFT_PROMPT_IDS: 0})

    def _convert_features(self, ds: tf.data.Dataset, task_feature_lengths: Mapping[str, int]) -> tf.data.Dataset:
        lengths = {k: task_feature_lengths[k] for k in _TASK_FEATURES}  # seqio cannot pad a rank-0 feature
        return self._pack_or_pad(ds, lengths).map(self._convert_example)

    def _convert_example(self, features: Mapping[str, tf.Tensor]) -> Mapping[str, tf.Tensor]:
        converted = super()._convert_example(features)
        weights = tf.cast(converted["decoder_loss_weights"], tf.float32)
        return {**converted, "decoder_loss_weights": weights, SOFT_PROMPT_IDS: features[SOFT_PROMPT_IDS]}

    def get_model_feature_lengths(self, task_feature_lengths: Mapping[str, int]) -> Mapping[str, int]:
        return {**super().get_model_feature_lengths(task_feature_lengths), SOFT_PROMPT_IDS: 0}


def _with_prompt(example: dict[str, Any], soft_prompt_id: int) -> dict[str, Any]:
    prompt_id = tf.cast(example.get(SOFT_PROMPT_IDS, soft_prompt_id), tf.int32)
    return {**{k: example[k] for k in _TASK_FEATURES}, SOFT_PROMPT_IDS: prompt_id}


def _converted(tokens: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What PromptedFeatureConverter computes, on padded rows at once, for many times less work."""
    targets_BxU = tokens["targets"]
    return {
        "encoder_input_tokens": tokens["inputs"],
        "decoder_input_tokens": np.pad(targets_BxU[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets_BxU,
        "decoder_loss_weights": (targets_BxU != 0).astype(np.float32),
        SOFT_PROMPT_IDS: tokens[SOFT_PROMPT_IDS],
    }


@dataclasses.dataclass(frozen=True)
class DatasetConfig:
    """The training data of a run.

    Args:
      mixture_or_task_name: a task or mixture of seqio's registry.
      task_feature_lengths: {"inputs": T, "targets": U}, in tokens; longer examples are trimmed.
      split: the split that is trained on.
      batch_size: rows of one global batch, over all processes.
      seed: fixes the order and whatever the preprocessors draw.
      shards: number of virtual shards; it divides `batch_size` and is part of what fixes the order.
      soft_prompt_id: the prompt of the rows of tasks without a `soft_prompt_ids` feature; -1 for none.

    Raises:
      ValueError: an argument is out of its range; the sentence names it as gin does.

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

    def __post_init__(self):
        _check_lengths(self.task_feature_lengths, "data.DatasetConfig.task_feature_lengths")
        for name, least in (("batch_size", 1), ("shards", 1), ("seed", 0), ("soft_prompt_id", -1)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"data.DatasetConfig.{name} is {value!r}, expected a whole number of at least {least}."
                )
        if self.batch_size % self.shards:
            raise ValueError(
                f"data.DatasetConfig.batch_size={self.batch_size} is not a multiple of data.DatasetConfig.shards="
                f"{self.shards}: set data.DatasetConfig.shards to a divisor of the batch size."
            )


def _check_lengths(lengths: Mapping[str, int], parameter: str) -> None:
    good = isinstance(lengths, Mapping) and set(lengths) == set(_TASK_FEATURES)
    if not good or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in lengths.values()):
        raise ValueError(
            f'{parameter} is {lengths!r}, expected positive token counts for both: {{"inputs": T, "targets": U}}.'
        )


def _find(name: str, parameter: str) -> seqio.Task | seqio.Mixture:
    """Looks a name up in seqio's registry, or says which registered names are nearest to it."""
    names = sorted({*seqio.TaskRegistry.names(), *seqio.MixtureRegistry.names()})
    if name in names:
        return seqio.get_mixture_or_task(name)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or names[:5]
    hint = f"the nearest registered names are {', '.join(near)}" if near else "nothing is registered"
    raise ValueError(
        f"{parameter}={name!r} is not a registered seqio task or mixture; {hint}: "
        "correct the name, or import the module that registers it."
    )


def _check_split(task: seqio.Task, split: str) -> None:
    sliced = isinstance(task.source, seqio.TfdsDataSource)  # TFDS understands train[:90%] without listing it
    if split not in task.splits and not (sliced and split.split("[")[0] in task.splits):
        raise ValueError(
            f"Task {task.name!r} has no split {split!r}, only {', '.join(task.splits)}: name one of these."
        )


class _ShardedSource(seqio.DataSource):
    """One split of another source, cut into virtual shards that are each shuffled anew in every epoch.

    seqio repeats a source's examples before it shuffles them, which mixes epochs, and it reads a whole function source
    once per shard; here shuffling comes first, and what cannot be read in pieces is read once and shared by the shards.
    """

    def __init__(self, task: seqio.Task, config: DatasetConfig):
        super().__init__(splits=(config.split,))
        self._task, self._config = task, config
        self._sharded_by_file = task.source.supports_arbitrary_sharding or (
            config.shards > 1 and len(task.source.list_shards(config.split)) >= config.shards
        )
        if task.shuffle_buffer_size is None and not task.source.performs_internal_shuffling:
            raise ValueError(
                f"Task {task.name!r} has shuffle_buffer_size=None, which forbids shuffling, but training shuffles: "
                "give the task a shuffle_buffer_size."
            )
        self._buffer = task.shuffle_buffer_size or 1
        if not self._sharded_by_file:
            self._examples = self._read()

    def _read(self) -> tf.data.Dataset:
        """The unsharded examples in their fixed order, kept in memory where they are few enough."""
        task, shards = self._task, self._config.shards
        examples = task.source.get_dataset(split=self._config.split, shuffle=False)
        known = task.source.num_input_examples(self._config.split) or int(examples.cardinality())
        if known == tf.data.INFINITE_CARDINALITY or known > _EXAMPLES_IN_MEMORY:
            return examples
        cached = examples.take(_EXAMPLES_IN_MEMORY + 1).cache()
        # Going through it once fills the cache, which all pipelines built on this dataset share.
        count = int(cached.reduce(np.int64(0), lambda n, _: n + 1))
        if count < shards:
            found = f"has {count} examples" if count else "is empty"
            raise ValueError(
                f"Split {self._config.split!r} of task {task.name!r} {found}, fewer than data.DatasetConfig.shards="
                f"{shards}: set data.DatasetConfig.shards to at most the number of examples, or give it more data."
            )
        if count > _EXAMPLES_IN_MEMORY:
            return examples
        self._buffer = -(-count // shards)
        return cached

    @property
    def supports_arbitrary_sharding(self) -> bool:
        return True

    @property
    def caching_permitted(self) -> bool:
        return self._task.source.caching_permitted

    def list_shards(self, split: str) -> list[str]:
        return [f"{split}-{i}" for i in range(self._config.shards)]

    def num_input_examples(self, split: str) -> int | None:
        return self._task.source.num_input_examples(split)

    def get_dataset(
        self, split: str = "train", shuffle: bool = True, seed: int | None = None, shard_info: Any = None, **_: Any
    ) -> tf.data.Dataset:
        if self._sharded_by_file:
            # One seed for all shards, so that they stay disjoint parts of the same order of files.
            shard = self._task.source.get_dataset(split, True, self._config.seed, shard_info)
        else:
            shard = self._examples.shard(shard_info.num_shards, shard_info.index)
        return shard.shuffle(self._buffer, seed=seed, reshuffle_each_iteration=True)


class _TrainingStreams:
    """Builds the endless stream of any virtual shard of a task or mixture."""

    def __init__(self, config: DatasetConfig):
        self._config = config
        provider = _find(config.mixture_or_task_name, "data.DatasetConfig.mixture_or_task_name")
        self._mixture = provider if isinstance(provider, seqio.Mixture) else None
        tasks = list(provider.tasks) if isinstance(provider, seqio.Mixture) else [provider]
        if self._mixture:  # as seqio does, a task without the split is left out of the mixture
            tasks = [task for task in tasks if config.split in task.splits] or tasks
        self._tasks = []
        for task in tasks:
            _check_split(task, config.split)
            self._tasks.append(task.replace(source=_ShardedSource(task, config)))
            self._check_not_empty(self._tasks[-1])
        if self._mixture:
            self._rates = [self._mixture.get_rate(task) for task in tasks]

    def _check_not_empty(self, task: seqio.Task) -> None:
        if not any(True for _ in self._task_dataset(task, 0, num_epochs=1).take(1)):
            raise ValueError(
                f"Split {self._config.split!r} of task {task.name!r} is empty after its preprocessors, expected "
                "examples: look at the task's source and filters."
            )

    def _task_dataset(self, task: seqio.Task, shard: int, num_epochs: int | None) -> tf.data.Dataset:
        config = self._config
        seed = _seed(config.seed, shard, task.name)
        examples = task.get_dataset(
            config.task_feature_lengths,
            split=config.split,
            shuffle=False,  # the source shuffles
            seed=seed,
            shard_info=seqio.ShardInfo(shard, config.shards),
            num_epochs=num_epochs,
            try_in_mem_cache=False,  # it would freeze the first epoch's order
        )
        return examples.map(functools.partial(_with_prompt, soft_prompt_id=config.soft_prompt_id))

    def shard(self, shard: int, start_batch: int) -> tf.data.Dataset:
        """The padded rows of one shard, B/S at a time, from a batch on."""
        config = self._config
        streams = [self._task_dataset(task, shard, num_epochs=None) for task in self._tasks]
        if self._mixture:
            seed = _seed(config.seed, shard, config.mixture_or_task_name)
            examples = self._mixture._sample_fn(streams, self._rates, seed)
        else:
            (examples,) = streams
        rows = config.batch_size // config.shards
        shapes = {**{k: [config.task_feature_lengths[k]] for k in _TASK_FEATURES}, SOFT_PROMPT_IDS: []}
        return examples.skip(start_batch * rows).padded_batch(rows, padded_shapes=shapes, drop_remainder=True)


def _seed(seed: int, shard: int, name: str) -> int:
    return int(np.random.SeedSequence([seed, shard, zlib.crc32(name.encode())]).generate_state(1)[0])


def _as_numpy(ds: tf.data.Dataset) -> Iterator[dict[str, Any]]:
    """Iterates in a fixed order, on few threads: the cores are the model's."""
    options = tf.data.Options()
    options.deterministic = True
    options.autotune.enabled = False  # hundreds of small ops; tuning them costs more than running them
    options.threading.private_threadpool_size = 1
    options.experimental_optimization.map_fusion = True
    options.threading.max_intra_op_parallelism = 1
    iterator: Any = ds.with_options(options).as_numpy_iterator()
    return iterator


def train_batches(
    config: DatasetConfig, *, start_batch: int = 0, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
    """The endless, shuffled batches of a run; each example comes once an epoch of its shard.

    A split whose source cannot be read in pieces (most functions, a single file) is read once, by every process, and
    kept in memory up to 100,000 examples; beyond that every shard reads through all of it.

    Args:
      config: what is read.
      start_batch: whole batches to pass over; the stream then equals a fresh one from there on, byte for byte.
      process_index: this process, in 0..process_count-1.
      process_count: processes that share every batch; it divides the batch size.

    Returns:
      An iterator over this process's block of rows (b = B / process_count, at b * process_index) of each global batch:
      encoder_input_tokens bxT, decoder_input_tokens bxU, decoder_target_tokens bxU and soft_prompt_ids b as int32,
      decoder_loss_weights bxU as float32.

    Raises:
      ValueError: unknown task, mixture or split, a split smaller than the number of shards, or rows that cannot be
        shared evenly.
    """
    if not 0 <= process_index < process_count or config.batch_size % process_count:
        raise ValueError(
            f"data.DatasetConfig.batch_size={config.batch_size} cannot be shared by process {process_index} of "
            f"{process_count}: set it to a multiple of the number of processes."
        )
    if start_batch < 0:
        raise ValueError(f"start_batch is {start_batch}, expected the number of batches already consumed.")
    block = config.batch_size // process_count
    rows = np.arange(process_index * block, (process_index + 1) * block)
    shards, position = np.unique(rows % config.shards, return_inverse=True)
    streams = _TrainingStreams(config)
    zipped = tf.data.Dataset.zip(tuple(streams.shard(int(shard), start_batch) for shard in shards))
    stacked = zipped.map(lambda *batches: {k: tf.stack([b[k] for b in batches]) for k in batches[0]})
    iterator = _as_numpy(stacked.prefetch(8))
    return (_converted({k: v[position, rows // config.shards] for k, v in batch.items()}) for batch in iterator)


@dataclasses.dataclass(frozen=True)
class EvalExamples:
    """One split of one task, in the order of its source.

    Args:
      task_name: the seqio task.
      split: the split.
      examples: N raw examples, whole, with inputs_pretokenized and targets_pretokenized where the task has them.
      targets: N targets after the task's postprocessing, as its metrics want them.
      features: encoder_input_tokens NxT, decoder_input_tokens, decoder_target_tokens and decoder_loss_weights NxU.
      truncated: number of examples with an input or target longer than its length, which were trimmed.
    """

    task_name: str
    split: str
    examples: tuple[dict[str, Any], ...]
    targets: list[Any]
    features: dict[str, np.ndarray]
    truncated: int


def eval_examples(
    task_name: str, task_feature_lengths: Mapping[str, int], split: str, *, limit: int | None = None
) -> EvalExamples:
    """Reads a split for evaluation, unshuffled and once.

    Args:
      task_name: a task, not a mixture, of seqio's registry.
      task_feature_lengths: {"inputs": T, "targets": U}; longer examples are trimmed as seqio does, and counted.
      split: the split to read.
      limit: take the first examples only; None takes all.

    Returns:
      The examples. `soft_prompt_ids` is not among the features: whether a prompt is attached is evaluation's choice.

    Raises:
      ValueError: unknown task or split, an empty split, or bad lengths.
    """
    _check_lengths(task_feature_lengths, "task_feature_lengths")
    if limit is not None and limit < 1:
        raise ValueError(f"limit is {limit!r}, expected a positive number of examples, or None for all of them.")
    task = _find(task_name, "task_name")
    if not isinstance(task, seqio.Task):
        raise ValueError(f"task_name={task_name!r} is a mixture, expected one task: name its tasks one by one.")
    _check_split(task, split)

    def read(lengths: Mapping[str, int] | None) -> tf.data.Dataset:
        return task.get_dataset(lengths, split=split, shuffle=False).take(-1 if limit is None else limit)

    # Preprocessors may trim by themselves when told the lengths, so what is whole is read without any.
    whole = list(_as_numpy(read(None)))
    if not whole:
        raise ValueError(
            f"Split {split!r} of task {task_name!r} is empty, expected examples: look at the task's source."
        )
    converted = PromptedFeatureConverter()(read(task_feature_lengths), task_feature_lengths)
    (features,) = _as_numpy(converted.batch(len(whole)))
    del features[SOFT_PROMPT_IDS]
    return EvalExamples(
        task_name=task_name,
        split=split,
        examples=tuple(whole),
        targets=[_target(task, example) for example in whole],
        features=features,
        truncated=sum(any(len(ex[k]) > task_feature_lengths[k] for k in _TASK_FEATURES) for ex in whole),
    )


def _target(task: seqio.Task, example: dict[str, Any]) -> Any:
    if "targets_pretokenized" in example:
        text = tf.compat.as_text(example["targets_pretokenized"])
    else:
        text = task.output_features["targets"].vocabulary.decode([int(i) for i in example["targets"]])
    return task.postprocess_fn(text, example=example, is_target=True)


def eval_batches(examples: EvalExamples, batch_size: int) -> Iterator[tuple[int, dict[str, np.ndarray], int]]:
    """Cuts examples into batches of one shape; the last one is filled up with rows of zeros (padding).

    Args:
      examples: what `eval_examples` read.
      batch_size: rows of every batch.

    Returns:
      An iterator over (index of the batch's first example, the features with B rows, number of real rows).

    Raises:
      ValueError: batch_size is not positive.

    >>> ones = EvalExamples("t", "test", ({},) * 3, [None] * 3, {"decoder_input_tokens": np.ones((3, 1))}, 0)
    >>> [(i, b["decoder_input_tokens"][:, 0].tolist(), n) for i, b, n in eval_batches(ones, 2)]
    [(0, [1.0, 1.0], 2), (2, [1.0, 0.0], 1)]
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size!r}, expected at least 1.")

    def cut() -> Iterator[tuple[int, dict[str, np.ndarray], int]]:
        for start in range(0, len(examples.examples), batch_size):
            real = min(batch_size, len(examples.examples) - start)
            padding = batch_size - real
            batch = {
                k: np.pad(v[start : start + real], [(0, padding)] + [(0, 0)] * (v.ndim - 1))
                for k, v in examples.features.items()
            }
            yield start, batch, real

    return cut()
