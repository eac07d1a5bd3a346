"""promot_t5x.data.sharded_tasks: preprocessors traced once for all shards, against seqio's own pipeline."""

import functools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import sharded_tasks

LENGTHS, SHARDS = {"inputs": 4, "targets": 4}, 3
FEATURES = {key: seqio.Feature(seqio.PassThroughVocabulary(100), add_eos=False) for key in LENGTHS}


def _examples(ds):
    return ds.map(lambda i: {"inputs": tf.fill([2], i), "targets": tf.fill([1], i)})


@seqio.utils.map_over_dataset(num_seeds=1)
def _plus_random(example, seed):
    return {**example, "targets": example["targets"] + tf.random.stateless_uniform([1], seed, 0, 1000, tf.int32)}


def _with_branch(ds):
    """As autograph allows: a Python `if` of a tensor."""

    def doubled_if_even(example):
        if example["targets"][0] % 2 == 0:
            targets = 2 * example["targets"]
        else:
            targets = example["targets"]
        return {**example, "targets": targets}

    return ds.map(doubled_if_even)


def _computes(ds):
    """Computes while it builds, which no traced function can."""
    largest = int(tf.data.Dataset.range(20).reduce(np.int64(0), tf.maximum))
    return ds.filter(lambda example: example["targets"][0] < largest)


def _numbers(split, shuffle_files):
    return tf.data.Dataset.from_tensor_slices(tf.range(24))


def _task(*steps):
    source = seqio.FunctionDataSource(_numbers, splits=("train",))
    return seqio.Task("sharded", source=source, preprocessors=[_examples, *steps], output_features=FEATURES)


def _sharded(task):
    return sharded_tasks.ShardedTask(
        task, "train", SHARDS, 5, LENGTHS, use_cached=False, noting=lambda task: task, as_features=lambda ex: ex
    )


def _values(ds):
    return [(example["inputs"].tolist(), example["targets"].tolist()) for example in ds.as_numpy_iterator()]


@pytest.mark.parametrize(
    "steps",
    [(), (_with_branch,), (_plus_random,), (seqio.CacheDatasetPlaceholder(), _plus_random), (_computes,)],
    ids=["plain", "branch", "random", "random after caching", "computes while it builds"],
)
def test_shards_equal_seqios_own_pipelines(steps):
    task, epochs = _task(*steps), 3
    sharded = _sharded(task)

    def shuffled(split, shuffle_files, seed=None, shard=0):
        examples = task.source.get_dataset(split, shuffle=False).shard(SHARDS, shard)
        return examples.shuffle(24 // SHARDS, seed=seed, reshuffle_each_iteration=True)

    for shard in range(SHARDS):
        seed = sharded_tasks.seed_of(5, shard, "sharded")
        own = seqio.FunctionDataSource(functools.partial(shuffled, shard=shard), splits=("train",))
        expected = task.replace(source=own).get_dataset(
            LENGTHS, "train", shuffle=False, seed=seed, num_epochs=epochs, try_in_mem_cache=False
        )
        read = _values(sharded.examples(shard, epochs))
        assert read == _values(expected) and len(read) >= 6 * epochs


def test_preprocessors_run_once_for_all_shards():
    runs = []

    def noted(ds, sequence_length):
        runs.append(sequence_length)
        return ds

    sharded = _sharded(_task(noted))
    read = [_values(sharded.examples(shard, epochs)) for shard in range(SHARDS) for epochs in (1, 2)]
    assert runs == [LENGTHS]
    assert sorted(int(np.ravel(targets)[0]) for values in read[::2] for _, targets in values) == list(range(24))


def test_a_mistake_in_a_preprocessor_is_shown_as_it_is():
    def wrong(ds):
        raise KeyError("no such column")

    with pytest.raises(KeyError, match="no such column"):
        _sharded(_task(wrong)).examples(0, 1)


def test_a_task_that_needs_its_cache_says_so():
    with pytest.raises(ValueError, match=r"^Task 'sharded' is only read from seqio's cache: set USE_CACHED_TASKS to"):
        _sharded(_task(seqio.CacheDatasetPlaceholder(required=True))).examples(0, 1)
