"""promot_t5x.data.kept_batches: the batches of `training_batches`, wherever a run begins; only read once."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import kept_batches, training_batches
from promot_t5x.data.training_batches import DatasetConfig
from promot_t5x.runtime import between_runs

CONFIG = DatasetConfig("kept", {"inputs": 6, "targets": 3}, batch_size=4, shards=2)
ROWS = np.arange(4)


@pytest.fixture(autouse=True)
def task():
    def dataset(split, shuffle_files):
        rows = [{"inputs": [n + 3] * (n % 5 + 1), "targets": [n % 7 + 3]} for n in range(13)]
        signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}
        return tf.data.Dataset.from_generator(lambda: iter(rows), output_signature=signature)

    feature = seqio.Feature(seqio.PassThroughVocabulary(40, eos_id=1))
    seqio.TaskRegistry.add(
        "kept",
        seqio.FunctionDataSource(dataset, splits=("train",)),
        {"inputs": feature, "targets": feature},
        preprocessors=[seqio.preprocessors.append_eos],
    )
    yield
    seqio.TaskRegistry.remove("kept")


def _taken(start, count, contents=None, config=CONFIG):
    batches = kept_batches.opened(config, contents or {}, ROWS)(start)
    return [{name: rows.tolist() for name, rows in batch.items()} for batch in itertools.islice(batches, count)]


def _expected(start, count, config=CONFIG):
    batches = training_batches.opened(config, rows=ROWS, with_cuts=True)(start)
    return [{name: rows.tolist() for name, rows in batch.items()} for batch in itertools.islice(batches, count)]


def _count(monkeypatch):
    """(the configurations that were opened, the numbers at which a stream was read from)"""
    configs, starts, original = [], [], training_batches.opened

    def opened(config, **kwargs):
        configs.append(config)
        batches = original(config, **kwargs)
        return lambda start: starts.append(start) or batches(start)

    monkeypatch.setattr(training_batches, "opened", opened)
    return configs, starts


def test_runs_get_the_same_batches_and_read_them_once(monkeypatch):
    expected = _expected(0, 9)
    configs, starts = _count(monkeypatch)
    with between_runs.keeping():
        assert _taken(0, 4) == expected[:4]
        assert _taken(0, 3) == expected[:3]
        assert _taken(0, 6) == expected[:6], "the iterator goes on where the kept ones end"
        assert _taken(2, 6) == expected[2:8], "a resumed run begins later"
        assert (len(configs), starts) == (1, [0])
        assert _taken(0, 2, contents={"kept": "changed"}) == expected[:2] and len(configs) == 2, "other contents"
    assert _taken(0, 2) == expected[:2] and len(configs) == 3, "outside nothing is kept"


def test_a_run_that_resumes_first_leaves_a_gap_that_the_next_one_fills(monkeypatch):
    expected = _expected(0, 9)
    _, starts = _count(monkeypatch)
    with between_runs.keeping():
        assert _taken(5, 2) == expected[5:7]
        assert _taken(0, 9) == expected
        assert _taken(0, 9) == expected
    assert starts == [5, 0, 7]


def test_batches_without_room_are_read_again(monkeypatch):
    expected = _expected(0, 6)
    size = sum(np.asarray(rows, np.int32).nbytes for rows in expected[0].values())
    monkeypatch.setattr(between_runs.Kept, "fits", lambda self, bytes: bytes <= 3 * size)
    _, starts = _count(monkeypatch)
    with between_runs.keeping():
        assert _taken(0, 6) == expected
        assert _taken(0, 6) == expected
    assert starts == [0, 3]


def test_an_interrupted_read_is_made_again(monkeypatch):
    """A Python iterator that raised has ended; the next run must not take this for the end of the data."""
    expected, original = _expected(0, 4), training_batches.opened
    interrupts = [True]

    def opened(config, **kwargs):
        def batches(start):
            for number, batch in enumerate(original(config, **kwargs)(start), start):
                if number == 2 and interrupts and interrupts.pop():
                    raise KeyboardInterrupt
                yield batch

        return batches

    monkeypatch.setattr(training_batches, "opened", opened)
    with between_runs.keeping():
        with pytest.raises(KeyboardInterrupt):
            _taken(0, 4)
        assert _taken(0, 4) == expected
