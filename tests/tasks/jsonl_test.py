"""promot_t5x.tasks.jsonl: what is read from the files, when, and the sentences for what is wrong with them."""

import doctest
import json

import pytest
import seqio

from promot_t5x.tasks import jsonl

VOCABULARY = seqio.ByteVocabulary()


@pytest.fixture
def added():
    """Names of tasks to take out of seqio's registry after the test."""
    names = []
    yield names
    for name in names:
        seqio.TaskRegistry.remove(name)
        jsonl._registered.pop(name)


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _read(name, split):
    return list(seqio.TaskRegistry.get(name).get_dataset(None, split=split, shuffle=False).as_numpy_iterator())


def _failing_read(added, name, folder, **kwargs):
    added.append(name)
    jsonl.jsonl_task(name, str(folder), vocabulary=VOCABULARY, **kwargs)
    return lambda: _read(name, "train")


def test_rows_become_tokens(tmp_path, added):
    added.append("jsonl_rows")
    jsonl.jsonl_task("jsonl_rows", str(tmp_path), vocabulary=VOCABULARY)  # before the file exists
    _write(tmp_path / "train.jsonl", [{"input": "né\u2028b", "target": "x"}, {"input": "c", "target": 4}])
    rows = _read("jsonl_rows", "train")
    assert [row["inputs_pretokenized"].decode() for row in rows] == ["né\u2028b", "c"]
    assert rows[1]["targets_pretokenized"] == b"4"
    assert rows[1]["inputs"].tolist() == [ord("c") + 3, 1]  # bytes after three special ids, then the end of sequence


def test_splits_may_be_slices_of_a_file(tmp_path, added):
    added.append("jsonl_slices")
    _write(tmp_path / "all.jsonl", [{"question": str(i), "answer": "a"} for i in range(10)])
    splits = {"train": "all.jsonl[:6]", "validation": "all.jsonl[6:-2]", "test": "all.jsonl[-2:]"}
    jsonl.jsonl_task(
        "jsonl_slices",
        str(tmp_path),
        vocabulary=VOCABULARY,
        splits=splits,
        input_column="question",
        target_column="answer",
    )
    read = {s: [row["inputs_pretokenized"].decode() for row in _read("jsonl_slices", s)] for s in splits}
    assert read == {"train": list("012345"), "validation": list("67"), "test": list("89")}


def test_a_name_is_registered_once(added):
    added.append("jsonl_twice")
    for _ in range(2):
        jsonl.jsonl_task("jsonl_twice", "folder", vocabulary="nowhere/sentencepiece.model")
    with pytest.raises(ValueError, match="'jsonl_twice' is already registered with other arguments"):
        jsonl.jsonl_task("jsonl_twice", "other", vocabulary="nowhere/sentencepiece.model")
    with pytest.raises(ValueError, match="'jsonl_twice' is already registered with other arguments"):
        jsonl.jsonl_task("jsonl_twice", "folder", vocabulary="elsewhere/sentencepiece.model")


def test_equal_vocabularies_are_the_same_argument(added):
    """gin makes a new one at every use of @seqio.ByteVocabulary()."""
    added.append("jsonl_equal")
    for _ in range(2):
        jsonl.jsonl_task("jsonl_equal", "folder", vocabulary=seqio.ByteVocabulary())
    for other in (seqio.ByteVocabulary(extra_ids=100), "nowhere/sentencepiece.model"):
        with pytest.raises(ValueError, match="'jsonl_equal' is already registered with other arguments"):
            jsonl.jsonl_task("jsonl_equal", "folder", vocabulary=other)


@pytest.mark.parametrize(
    "content,kwargs,sentence",
    [
        ('{"input": "a", "target": "b"}\n{"input": \n', {}, "train.jsonl line 2 is not valid JSON"),
        ('{"text": "a", "target": "b"}\n', {}, "line 1 has no column 'input', only text, target"),
        ('{"input": ["a"], "target": "b"}\n', {}, "line 1, column 'input': found \\['a'\\], expected text"),
        ("[1]\n", {}, "line 1 is a list, expected a JSON object"),
        ("\n", {}, "train.jsonl is empty"),
        ('{"input": "a", "target": "b"}\n', {"splits": {"train": "train.jsonl[5:]"}}, "is empty: the file has 1 rows"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_line(tmp_path, added, content, kwargs, sentence):
    (tmp_path / "train.jsonl").write_text(content)
    with pytest.raises(ValueError, match=sentence):
        _failing_read(added, "jsonl_wrong", tmp_path, **kwargs)()


def test_missing_files_are_named(tmp_path, added):
    with pytest.raises(FileNotFoundError, match="Folder .*absent of the task's JSONL files is not found"):
        _failing_read(added, "jsonl_no_folder", tmp_path / "absent")()
    _write(tmp_path / "dev.jsonl", [{"input": "a", "target": "b"}])
    with pytest.raises(FileNotFoundError, match=r"train.jsonl is not found; JSONL files beside it: dev.jsonl"):
        _failing_read(added, "jsonl_no_file", tmp_path)()


def test_arguments_are_checked_at_registration():
    with pytest.raises(ValueError, match=r"'train.jsonl\[:90%\]' is not understood"):
        jsonl.jsonl_task("jsonl_bad", "folder", vocabulary=VOCABULARY, splits={"train": "train.jsonl[:90%]"})
    with pytest.raises(ValueError, match="jsonl_task.metric='bleu' is unknown"):
        jsonl.jsonl_task("jsonl_bad", "folder", vocabulary=VOCABULARY, metric="bleu")


def test_docstring_examples_hold_and_leave_nothing_behind():
    before = set(seqio.TaskRegistry.names())
    for _ in range(2):
        result = doctest.testmod(jsonl)
        assert result.attempted > 0 and result.failed == 0
        assert set(seqio.TaskRegistry.names()) == before


def test_accuracy_is_a_share():
    assert jsonl.accuracy(["a", "b ", "c", "d"], [" a", "b", "x", ""]) == {"accuracy": 0.5}
