"""promot_t5x.data.cuts: the cuts that training and evaluation count, against the examples read without limits."""

import collections
import itertools
import json
import re
import unicodedata

import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import cuts, evaluation_examples, training_batches
from promot_t5x.tasks import few_shot, jsonl, paper, toy_world

N = 24
BYTES = seqio.ByteVocabulary()


def _source():
    rows = [([9] * (i % 6 + 1), [8] * (i % 4 + 1)) for i in range(N)]
    signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}
    return seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_generator(
            lambda: ({"inputs": a, "targets": b} for a, b in rows), output_signature=signature
        ),
        splits=["train"],
    )


@pytest.fixture(scope="module", autouse=True)
def _tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cuts")
    rows = [{"input": f"{i} " + "x" * (i % 9), "target": "y" * (i % 5 + 1)} for i in range(N)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    vocabulary = seqio.PassThroughVocabulary(100, eos_id=1)
    features = {k: seqio.Feature(vocabulary, add_eos=k == "targets") for k in ("inputs", "targets")}
    for end in ("append_eos", "append_eos_after_trim"):
        preprocessors = [getattr(seqio.preprocessors, end)]
        seqio.TaskRegistry.add(f"cuts_{end}", _source(), features, preprocessors=preprocessors)
    jsonl.jsonl_task("cuts", str(folder), vocabulary=BYTES)
    source = few_shot.registered("cuts")
    assert source is not None
    # Training draws a question's exemplars anew, unless they are fixed: then its prompts are those of evaluation.
    few_shot.register(source.task, few_shot.Prompting(BYTES, exemplars="fixed"), shots=2)
    yield
    for name in ("cuts_append_eos", "cuts_append_eos_after_trim", "cuts", "cuts_2shot_seed0_fixed"):
        seqio.TaskRegistry.remove(name)


def _one_epoch(task, inputs, targets, **kwargs):
    config = training_batches.DatasetConfig(task, {"inputs": inputs, "targets": targets}, batch_size=8, shards=4)
    return list(itertools.islice(training_batches.training_batches(config, **kwargs), N // 8))


def _worked_out(task, inputs, targets):
    """The cuts of an epoch, from the examples as they are without any limit."""
    counts = collections.Counter(dict.fromkeys(cuts.ALL, 0))
    for example in seqio.TaskRegistry.get(task).get_dataset(None, shuffle=False).as_numpy_iterator():
        counts["target_cut"] += len(example["targets"]) > targets
        if task != "cuts_2shot_seed0_fixed":
            counts["input_cut"] += len(example["inputs"]) > inputs
            continue
        rest = example["inputs_pretokenized"].decode()
        assert re.fullmatch(r"(\d+ x* y+ ){2}\d+ x*", rest)
        while len(rest) + 1 > inputs and (exemplar := re.match(r"\d+ x* y+ ", rest)):
            rest = rest[exemplar.end() :]
            counts["exemplars_dropped"] += 1
        counts["input_cut"] += len(rest) + 1 > inputs
    return dict(counts)


@pytest.mark.parametrize(
    "task,inputs,targets",
    [
        *[(f"cuts_append_eos{end}", *lengths) for end in ("", "_after_trim") for lengths in ((5, 4), (6, 5), (1, 1))],
        *[("cuts_2shot_seed0_fixed", *lengths) for lengths in ((20, 4), (8, 9), (60, 3))],
    ],
)
def test_training_and_evaluation_count_the_same_cuts(task, inputs, targets):
    batches = _one_epoch(task, inputs, targets, with_cuts=True)
    expected = _worked_out(task, inputs, targets)
    counts = sum((collections.Counter(cuts.separated(batch)[0]) for batch in batches), collections.Counter())
    assert {name: counts[name] for name in cuts.ALL} == expected
    assert all(batch["cuts"].dtype == np.int32 and batch["cuts"].shape == (8, 5) for batch in batches)

    split = evaluation_examples.evaluation_examples(task, {"inputs": inputs, "targets": targets}, "train")
    names = cuts.ALL if "2shot" in task else cuts.OF_TASKS
    assert split.cuts == {name: expected[name] for name in names}
    assert set(cuts.ALL) & set(split.examples[0]) == set(cuts.OF_PROMPTS if "2shot" in task else ())


@pytest.mark.parametrize("task", ["cuts_append_eos_after_trim", "cuts_2shot_seed0_fixed"])
def test_counting_changes_no_batch(task):
    for plain, counted in zip(_one_epoch(task, 9, 3), _one_epoch(task, 9, 3, with_cuts=True), strict=True):
        _, rest = cuts.separated(counted)
        assert list(plain) == list(rest) == [name for name in counted if name != "cuts"]
        assert all(plain[name].tobytes() == rest[name].tobytes() for name in plain)


def test_training_with_targets_that_are_all_cut_is_not_silent(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        _one_epoch("cuts_append_eos_after_trim", 6, 5)
        assert not caplog.records, "nothing is cut"
        _one_epoch("cuts_append_eos_after_trim", 6, 1)
    assert (
        f"Of the first {N} training examples, targets cut to 1 tokens in {N}. Raise training_batches.Data"
        in caplog.text
    )


def test_training_that_drops_every_exemplar_is_not_silent(caplog):
    with caplog.at_level("WARNING", logger="absl"):
        _one_epoch("cuts_2shot_seed0_fixed", 6, 9)
    assert f"exemplars dropped to fit 6 tokens: {2 * N}. Raise training_batches.Data" in caplog.text


def test_targets_that_the_vocabulary_cannot_write_are_counted_in_training_and_evaluation(tmp_path, caplog):
    targets = ["red cat", "red  cat ", "red dog", "red"] * 2
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"input": "cat", "target": t}) + "\n" for t in targets))
    task = jsonl.jsonl_task("unwritable", str(tmp_path), vocabulary=toy_world.WordVocabulary(["red", "cat"]))
    with caplog.at_level("WARNING", logger="absl"):
        (batch,) = itertools.islice(
            training_batches.training_batches(
                training_batches.DatasetConfig(task, {"inputs": 4, "targets": 2}, batch_size=8, shards=1),
                with_cuts=True,
            ),
            1,
        )
        split = evaluation_examples.evaluation_examples(task, {"inputs": 4, "targets": 2}, "train")
    # Two tokens and the end of sequence do not fit: a target may be cut, too.
    assert cuts.separated(batch)[0] == dict.fromkeys(cuts.ALL, 0) | {"target_cut": 6, "target_unwritable": 2}
    assert (split.cuts["target_cut"], split.cuts["target_unwritable"]) == (6, 2)
    for where in ("Of the first 8 training examples", "Of 8 examples of unwritable/train"):
        assert (
            f"{where}, targets cut to 2 tokens in 6; targets that the vocabulary cannot write in 2. Raise"
            in caplog.text
        )


def test_a_text_is_another_one_in_python_as_in_tensorflow():
    """White space is Unicode's separators and what RE2 calls a space; all else is text."""
    spaces = [chr(i) for i in range(0x11000) if unicodedata.category(chr(i))[0] in "ZC" or chr(i).isspace()]
    pairs = [(f"a{space}b", "a b") for space in spaces if not 0xD800 <= ord(space) < 0xE000]
    pairs += [(f"{one}a", f"a{one}") for one, _ in pairs] + [("a", "b"), ("", " "), ("a  b", "a\n b "), ("ab", "a b")]
    left, right = (cuts._one_line(tf.constant(texts)).numpy() for texts in zip(*pairs, strict=True))
    assert [cuts.is_other_text(*pair) for pair in pairs] == (left != right).tolist()


def test_a_task_of_tokens_counts_targets_with_the_unknown_one():
    rows = {"inputs": [[5], [5]], "targets": [[7, 8], [7, 2]]}
    source = seqio.FunctionDataSource(lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), ["test"])
    vocabulary = toy_world.WordVocabulary(["red", "cat"])
    features = {k: seqio.Feature(vocabulary, add_eos=False) for k in rows}
    seqio.TaskRegistry.add("unknown_tokens", source, features, preprocessors=[])
    split = evaluation_examples.evaluation_examples("unknown_tokens", {"inputs": 2, "targets": 2}, "test")
    assert split.cuts["target_unwritable"] == 1


def test_what_the_vocabulary_of_t5_cannot_write(shared_dir, tmp_path):
    """WebQuestions' first answers, and Romanian news: letters with a diaeresis or comma, and … in one sentence."""
    data = shared_dir / "data"
    vocabulary = seqio.SentencePieceVocabulary(str(data / "spm" / "t5_cc_all_32000.model"), extra_ids=100)
    lines = (data / "ntrex128" / "en-ro.jsonl").read_text().strip().split("\n")
    rows = [json.loads(line)["translation"]["ro"] for line in lines]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"input": "", "target": row}) + "\n" for row in rows))
    romanian = jsonl.jsonl_task("romanian", str(tmp_path), vocabulary=vocabulary)
    files = {"train": "train.jsonl"}
    questions = paper.task("web_questions", vocabulary, data_dir=str(data), splits=files, sentinels=True)
    for task, count, unwritable in ((questions, 3778, 21), (romanian, 1000, 40)):
        split = evaluation_examples.evaluation_examples(task, {"inputs": 64, "targets": 64}, "train")
        assert (len(split.examples), split.cuts["target_unwritable"]) == (count, unwritable)
