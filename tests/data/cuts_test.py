"""promot_t5x.data.cuts: what training counts as cut, against the examples read untrimmed."""

import itertools
import json

import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import cuts, evaluation_examples, training_batches
from promot_t5x.tasks import jsonl

N = 24


def _source():
    rows = [([9] * (i % 6 + 1), [8] * (i % 4 + 1)) for i in range(N)]
    signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}
    return seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_generator(
            lambda: ({"inputs": a, "targets": b} for a, b in rows), output_signature=signature
        ),
        splits=["train"],
    )


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    rows = [{"input": f"{i} " + "x" * (i % 9), "target": "y" * (i % 5 + 1)} for i in range(N)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = seqio.PassThroughVocabulary(100, eos_id=1)
    features = {k: seqio.Feature(vocabulary, add_eos=k == "targets") for k in ("inputs", "targets")}
    for end in ("append_eos", "append_eos_after_trim"):
        preprocessors = [getattr(seqio.preprocessors, end)]
        seqio.TaskRegistry.add(f"cuts_{end}", _source(), features, preprocessors=preprocessors)
    jsonl.jsonl_task("cuts_shots", str(folder), vocabulary=seqio.ByteVocabulary(), shots=2)
    yield
    for name in ("cuts_append_eos", "cuts_append_eos_after_trim", "cuts_shots_2shot_seed0"):
        seqio.TaskRegistry.remove(name)


def _one_epoch(task, inputs, targets, **kwargs):
    config = training_batches.DatasetConfig(task, {"inputs": inputs, "targets": targets}, batch_size=8, shards=4)
    return list(itertools.islice(training_batches.training_batches(config, **kwargs), N // 8))


@pytest.mark.parametrize(
    "task,inputs,targets",
    [
        *[(f"cuts_append_eos{end}", *lengths) for end in ("", "_after_trim") for lengths in ((5, 4), (6, 5), (1, 1))],
        *[("cuts_shots_2shot_seed0", *lengths) for lengths in ((20, 4), (8, 9), (60, 3))],
    ],
)
def test_an_epoch_of_training_counts_what_evaluation_counts(tasks, task, inputs, targets):
    """Evaluation reads the examples again, untrimmed, to find out."""
    batches = _one_epoch(task, inputs, targets, with_cuts=True)
    counts = {name: sum(int(batch[name].sum()) for batch in batches) for name in cuts.ALL}
    expected = evaluation_examples.evaluation_examples(task, {"inputs": inputs, "targets": targets}, "train").cuts
    assert counts == {name: expected.get(name, 0) for name in cuts.ALL}
    assert all(batch[name].dtype == np.int32 and batch[name].shape == (8,) for batch in batches for name in cuts.ALL)


def test_training_with_targets_that_are_all_cut_is_not_silent(tasks, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        _one_epoch("cuts_append_eos_after_trim", 6, 5)
        assert not caplog.records, "nothing is cut"
        _one_epoch("cuts_append_eos_after_trim", 6, 1)
    assert f"Of {N} training examples {N} have their targets cut to 1 tokens; set TASK_FEATURE_LENGTHS" in caplog.text


def test_training_without_the_exemplars_that_were_asked_for_is_not_silent(tasks, caplog):
    with caplog.at_level("WARNING", logger="absl"):
        _one_epoch("cuts_shots_2shot_seed0", 6, 9)
    assert f"{2 * N} exemplars were dropped to fit 6 tokens; set TASK_FEATURE_LENGTHS" in caplog.text
