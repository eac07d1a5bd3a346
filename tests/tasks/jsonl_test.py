"""promot_t5x.tasks.jsonl: a custom task in three lines, and which arguments are refused."""

import doctest
import json

import pytest
import seqio

from promot_t5x.tasks import few_shot, jsonl, metrics, toy_world, vocabularies

VOCABULARY = seqio.ByteVocabulary()
ROWS = [{"input": f"{i}?", "target": f"a{i % 2}", "options": ["a0", "a1"]} for i in range(8)]


@pytest.fixture
def folder(tmp_path):
    """The folder of train.jsonl and test.jsonl, which hold the same rows."""
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return str(tmp_path)


def _read(name, split="test"):
    return list(seqio.TaskRegistry.get(name).get_dataset(None, split=split, shuffle=False).as_numpy_iterator())


def test_three_lines_make_a_task(folder):
    name = jsonl.jsonl_task("jsonl_mine", folder, vocabulary=VOCABULARY)
    examples = _read(name)
    task = seqio.TaskRegistry.get(name)
    assert name == task.name == "jsonl_mine" and list(task.splits) == ["train", "validation", "test"]
    assert [example["inputs_pretokenized"].decode() for example in examples] == [row["input"] for row in ROWS]
    assert [example["targets_pretokenized"].decode() for example in examples] == [row["target"] for row in ROWS]
    assert examples[1]["inputs"].tolist() == [ord("1") + 3, ord("?") + 3, 1]  # bytes after three special ids, the end
    assert all(len(example["choices"]) == 0 for example in examples)
    targets = [task.postprocess_fn("", example=example, is_target=True) for example in examples]
    predictions = [task.postprocess_fn("a0 ", example=example, is_target=False) for example in examples]
    assert task.metric_fns[0](targets, predictions) == {"accuracy": 50.0}


def test_columns_and_splits_are_named(folder):
    splits = {"early": "train.jsonl[:2]", "late": "train.jsonl[-2:]"}
    columns = dict(input_column="target", target_column="options/1")
    jsonl.jsonl_task("jsonl_named", folder, vocabulary=VOCABULARY, splits=splits, **columns)
    read = {s: [row["inputs_pretokenized"].decode() for row in _read("jsonl_named", s)] for s in splits}
    assert read == {"early": ["a0", "a1"], "late": ["a0", "a1"]}
    assert {row["targets_pretokenized"] for row in _read("jsonl_named", "late")} == {b"a1"}


def test_choices_come_from_their_column(folder):
    name = jsonl.jsonl_task("jsonl_choices", folder, vocabulary=VOCABULARY, choices_column="options")
    assert all(example["choices"].tolist() == [b"a0", b"a1"] for example in _read(name))


@pytest.mark.parametrize(
    "options,sentence",
    [
        (["a1", "a2"], "test.jsonl line 2: the target 'x' is not among the choices ['a1', 'a2']."),
        ([], "test.jsonl line 2, column 'options': found [], expected a list of at least one text."),
        ("ax", "test.jsonl line 2, column 'options': found 'ax', expected a list of at least one text."),
    ],
)
def test_a_target_must_be_among_its_choices(folder, options, sentence):
    row = {"input": "?", "target": "x", "options": options}
    with open(f"{folder}/test.jsonl", "w") as file:
        file.write(json.dumps(ROWS[0]) + "\n" + json.dumps(row))
    name = jsonl.jsonl_task("jsonl_wrong_choices", folder, vocabulary=VOCABULARY, choices_column="options")
    with pytest.raises(ValueError) as raised:
        _read(name)
    assert str(raised.value) == f"{folder}/{sentence}"


def test_exemplars_come_from_train_and_take_turns_by_choice(folder):
    arguments = dict(vocabulary=VOCABULARY, choices_column="options", shots=2)
    names = [jsonl.jsonl_task("jsonl_shots", folder, seed=seed, **arguments) for seed in (0, 1)]
    assert names == ["jsonl_shots_2shot_seed0", "jsonl_shots_2shot_seed1"]
    prompts = [[example["inputs_pretokenized"].decode() for example in _read(name)] for name in names]
    for row, text in zip(ROWS, prompts[0], strict=True):
        first, answer1, second, answer2, question = text.split()
        assert question == row["input"] and len({first, second, question}) == 3
        assert {(first, answer1), (second, answer2)} <= {(shot["input"], shot["target"]) for shot in ROWS}
    assert prompts[0] != prompts[1]


def test_sentinels_and_prefix(folder):
    words = toy_world.WordVocabulary([vocabularies.SENTINEL])
    name = jsonl.jsonl_task("jsonl_sentinels", folder, vocabulary=words, sentinels=True, prefix="Q:")
    example = _read(name)[0]
    assert (
        example["inputs_pretokenized"] == b"0? <extra_id_0>" and example["targets_pretokenized"] == b"<extra_id_0> a0"
    )
    task = seqio.TaskRegistry.get(name)
    output = "<extra_id_0> a0 Q: next <extra_id_1>"
    assert task.postprocess_fn(output, example=example, is_target=False) == "a0"


def test_metrics_by_name_and_custom_metrics(folder):
    def share_of_a(targets, predictions):
        return {"share": 100 * sum("a" in text for text in predictions) / len(targets)}

    targets, predictions = ["a b c d e", "b"], ["a b c d f", "b"]
    for i, (metric, expected) in enumerate([*metrics.BY_NAME.items(), (share_of_a, share_of_a)]):
        name = jsonl.jsonl_task(f"jsonl_metric_{i}", folder, vocabulary=VOCABULARY, metric=metric)
        (metric_fn,) = seqio.TaskRegistry.get(name).metric_fns
        assert metric_fn(targets, predictions) == expected(targets, predictions)


def test_the_language_chooses_the_tokenizer(folder):
    name = jsonl.jsonl_task("jsonl_hindi", folder, vocabulary=VOCABULARY, metric="rouge", language="hi")
    (metric_fn,) = seqio.TaskRegistry.get(name).metric_fns
    assert metric_fn(["मैं तुमसे प्यार"], ["मैं तुमसे प्यार"])["rouge2"] == 100.0
    again = dict(vocabulary=VOCABULARY, metric="rouge", language="hi")
    assert jsonl.jsonl_task(name, folder, **again) == name
    with pytest.raises(ValueError, match="'jsonl_hindi' is already registered with other arguments"):
        jsonl.jsonl_task(name, folder, **{**again, "language": "zh"})
    with pytest.raises(ValueError, match="jsonl_task.language='hi' has no effect on a metric function: leave it out"):
        jsonl.jsonl_task("jsonl_bad", folder, vocabulary=VOCABULARY, metric=metrics.rouge, language="hi")
    with pytest.raises(ValueError, match="Language 'Hindi' is unknown"):
        jsonl.jsonl_task("jsonl_bad", folder, vocabulary=VOCABULARY, metric="rouge", language="Hindi")


@pytest.mark.parametrize("metric", ["f1", "", 3])
def test_unknown_metrics_are_named(metric):
    with pytest.raises(
        ValueError, match=f"metric={metric!r} is unknown, expected accuracy, exact_match, bleu, rouge, or"
    ):
        jsonl.jsonl_task("jsonl_bad", "folder", vocabulary=VOCABULARY, metric=metric)
    assert "jsonl_bad" not in seqio.TaskRegistry.names()


def test_splits_are_checked_at_registration():
    with pytest.raises(ValueError, match=r"'train.jsonl\[:90%\]' is not understood"):
        jsonl.jsonl_task("jsonl_bad", "folder", vocabulary=VOCABULARY, splits={"train": "train.jsonl[:90%]"})
    assert "jsonl_bad" not in seqio.TaskRegistry.names()


def test_a_name_is_registered_once():
    spm = "nowhere/sentencepiece.model"
    for _ in range(2):
        assert jsonl.jsonl_task("jsonl_twice", "folder", vocabulary=spm) == "jsonl_twice"  # nothing is opened
    for other in [
        dict(data_dir="other"),
        dict(vocabulary="elsewhere/sentencepiece.model"),
        dict(splits={"train": "train.jsonl"}),
        dict(input_column="question"),
        dict(target_column="answer"),
        dict(choices_column="choices"),
        dict(metric="bleu"),
        dict(prefix="Q:"),
        dict(sentinels=True),
    ]:
        arguments = {"data_dir": "folder", "vocabulary": spm, **other}
        with pytest.raises(ValueError, match="'jsonl_twice' is already registered with other arguments"):
            jsonl.jsonl_task("jsonl_twice", **arguments)


def test_equal_vocabularies_are_the_same_argument():
    """gin makes a new one at every use of @seqio.ByteVocabulary()."""
    for _ in range(2):
        jsonl.jsonl_task("jsonl_equal", "folder", vocabulary=seqio.ByteVocabulary())
    for other in (seqio.ByteVocabulary(extra_ids=100), "nowhere/sentencepiece.model"):
        with pytest.raises(ValueError, match="'jsonl_equal' is already registered with other arguments"):
            jsonl.jsonl_task("jsonl_equal", "folder", vocabulary=other)


def test_the_zero_shot_task_is_known_to_the_catalogue_s_registry():
    jsonl.jsonl_task("jsonl_known", "folder", vocabulary=VOCABULARY)
    registered = few_shot.registered("jsonl_known")
    assert (registered.task.name, registered.prompting.sentinels, registered.shots) == ("jsonl_known", False, 0)


def test_docstring_examples_hold_and_leave_no_state():
    before = set(seqio.TaskRegistry.names())
    for _ in range(2):
        result = doctest.testmod(jsonl)
        assert result.attempted > 0 and result.failed == 0
        assert set(seqio.TaskRegistry.names()) == before
