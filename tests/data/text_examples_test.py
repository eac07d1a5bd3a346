"""promot_t5x.data.text_examples: bit for bit what seqio's own pipeline makes of the same tasks."""

import itertools

import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import cuts, text_examples
from promot_t5x.tasks import toy_world

TEXTS = ["red cat", "", "  le  chat\u00a0noir ", "猫が座った", "القطة", "e\u0301 ﬁ 🐈", "x" * 40, "a\0b", "red moves"]
WORDS = toy_world.WordVocabulary(["red", "cat", "le", "chat"])


def _task(name, vocabulary, end, rows=None, **ends):
    rows = rows or {"inputs": TEXTS, "targets": TEXTS[::-1], "other": list(range(len(TEXTS)))}
    source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), ["test"])
    outputs = {k: seqio.Feature(vocabulary, add_eos=ends.get(k, True)) for k in ("inputs", "targets")}
    steps = [seqio.preprocessors.tokenize, getattr(seqio.preprocessors, end)]
    return seqio.TaskRegistry.add(name, source, outputs, preprocessors=steps)


@pytest.mark.parametrize("end", ["append_eos", "append_eos_after_trim"])
@pytest.mark.parametrize("ends", [{}, {"inputs": False}])
def test_examples_are_those_of_seqio(end, ends):
    for number, (vocabulary, lengths) in enumerate(
        itertools.product((seqio.ByteVocabulary(), WORDS), ((2, 2), (64, 64)))
    ):
        task = _task(f"texts_{end}_{len(ends)}_{number}", vocabulary, end, **ends)
        assert text_examples.only_tokenizes(task)
        sizes = dict(zip(("inputs", "targets"), lengths, strict=True))
        expected = list(cuts.noting(task).get_dataset(sizes, split="test", shuffle=False).as_numpy_iterator())
        for ours, seqios in zip(text_examples.read(task, sizes, "test", None), expected, strict=True):
            assert set(ours) == set(seqios)
            for name, value in seqios.items():
                assert np.array_equal(ours[name], value), name
                assert name not in sizes or ours[name].dtype == value.dtype
        assert len(text_examples.read(task, sizes, "test", 3)) == 3
        if lengths == (2, 2):
            assert all(any(example[name] for example in expected) for name in cuts.OF_TASKS[:2])


def test_the_toy_world_is_read_as_seqio_reads_it():
    task = seqio.TaskRegistry.get("toy_en_de")
    expected = cuts.noting(task).get_dataset(toy_world.FEATURE_LENGTHS, split="test", shuffle=False)
    read = text_examples.read(task, toy_world.FEATURE_LENGTHS, "test", None)
    for ours, seqios in zip(read, expected.as_numpy_iterator(), strict=True):
        assert all(np.array_equal(ours[name], value) for name, value in seqios.items())


@pytest.mark.parametrize(
    "rows",
    [
        {"inputs": [[5]], "targets": [[6]]},
        {"inputs": [b"\xff"], "targets": ["a"]},
        {"inputs": ["a"], "targets": ["a"], "input_cut": [0]},
        {"inputs": [["a", "b"]], "targets": ["a"]},
    ],
)
def test_what_is_more_than_texts_is_left_to_seqio(rows):
    task = _task("texts_other", WORDS, "append_eos", rows)
    assert text_examples.read(task, {"inputs": 5, "targets": 5}, "test", None) is None


def test_what_is_more_than_tokenizing_is_left_to_seqio():
    class Other(seqio.ByteVocabulary):
        """One whose two ways to encode may differ."""

    task = _task("texts_plain", WORDS, "append_eos")
    steps = task.preprocessors
    others = [
        task.replace(preprocessors=steps[:1]),
        task.replace(preprocessors=[*steps, lambda dataset: dataset]),
        _task("texts_vocabulary", Other(), "append_eos"),
        _task("texts_fast", seqio.SentencePieceVocabulary("spm.model", use_fast_tokenizer=True), "append_eos"),
    ]
    assert text_examples.only_tokenizes(task) and not any(map(text_examples.only_tokenizes, others))
