"""promot_t5x.tasks.sources: what is read from JSONL files, and the errors for what is wrong in them."""

import functools
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.tasks import sources

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
PAIR = {"input": ("input", sources.text), "target": ("target", sources.text)}
LABELS = ("entailment", "neutral", "contradiction")
LABEL = {"label": ("label", functools.partial(sources.label_index, labels=LABELS))}
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
BOUND = st.one_of(st.none(), st.integers(-9, 9))


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _read(source, split="train"):
    return [json.loads(row["row"]) for row in source.get_dataset(split, shuffle=False).as_numpy_iterator()]


def _source(folder, content, columns=None, splits=None, **kwargs):
    (folder / "train.jsonl").write_text(content, encoding="utf-8")
    return sources.JsonlRows(str(folder), splits or {"train": "train.jsonl"}, columns or PAIR, **kwargs)


def test_rows_are_those_of_the_file_in_its_order(tmp_path):
    rows = [{"input": "né\u2028b", "target": "x\ny"}, {"input": "c", "target": 4}, {"input": "", "target": 0.5}]
    source = sources.JsonlRows(str(tmp_path), sources.JSONL_SPLITS, PAIR)  # before the folder's files exist
    (tmp_path / "train.jsonl").write_text("\n  \n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\r\n")
    expected = [{"input": "né\u2028b", "target": "x\ny"}, {"input": "c", "target": "4"}, {"input": "", "target": "0.5"}]
    assert _read(source) == expected
    assert sources.read_rows(tmp_path / "train.jsonl", PAIR) == expected
    assert list(source.splits) == ["train", "validation", "test"] and source.list_shards("train") == ["train"]


def test_shuffling_is_left_to_who_trains(tmp_path):
    _write(tmp_path / "train.jsonl", [{"input": str(i), "target": "x"} for i in range(30)])
    source = sources.JsonlRows(str(tmp_path), sources.JSONL_SPLITS, PAIR)
    shuffled = source.get_dataset("train", shuffle=True, seed=3).as_numpy_iterator()
    assert [json.loads(row["row"])["input"] for row in shuffled] == [str(i) for i in range(30)]


@SETTINGS
@given(st.integers(1, 8), BOUND, BOUND)
def test_slices_count_as_python_does(tmp_path_factory, count, start, stop):
    folder = tmp_path_factory.mktemp("slices")
    _write(folder / "all.jsonl", [{"input": str(i), "target": "x"} for i in range(count)])
    part = f"all.jsonl[{'' if start is None else start}:{'' if stop is None else stop}]"
    source = sources.JsonlRows(str(folder), {"test": part}, PAIR)
    expected = [str(i) for i in range(count)][start:stop]
    if expected:
        assert [row["input"] for row in _read(source, "test")] == expected
    else:
        with pytest.raises(
            ValueError, match=rf"Split 'test' of .* is empty: all.jsonl has {count} rows, and 0 of them"
        ):
            _read(source, "test")


@pytest.mark.parametrize("part", [slice(None), slice(2, 7), slice(-3, None), slice(4, 8), slice(3, 9)])
def test_a_long_file_is_read_in_pieces(part, tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_ROWS_AT_ONCE", 4)
    labels = [0, 1, "-", 2, "-", "-", "-", "-", 0, 1]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"label": label}) + "\n" for label in labels))
    file = f"train.jsonl[{'' if part.start is None else part.start}:{'' if part.stop is None else part.stop}]"
    expected, source = [label for label in labels[part] if label != "-"], _source_of(tmp_path, file)
    if not expected:
        with pytest.raises(ValueError, match="train.jsonl has 10 rows, and 4 of them in the slice"):
            _read(source)
    else:
        assert [row["label"] for row in _read(source)] == expected
        examples = source.get_dataset("train", shuffle=False)
        assert [json.loads(ex["row"])["label"] for ex in examples.shard(2, 1).as_numpy_iterator()] == expected[1::2]


def _source_of(folder, file):
    return sources.JsonlRows(str(folder), {"train": file}, LABEL)


@pytest.mark.parametrize(
    "file", ["train.jsonl[:90%]", "train.jsonl[1]", "train.jsonl[::2]", "[1:]", "", "a[:2]b", "a[x:]"]
)
def test_other_slices_are_not_understood(file):
    with pytest.raises(ValueError, match=f"{re.escape(repr(file))} is not understood, expected a file name"):
        sources.JsonlRows("folder", {"train": file}, PAIR)


def test_columns_may_be_nested(tmp_path):
    row = {"id": 7, "question": {"stem": "?"}, "choices": {"text": ["w", "x"], "0": "zero"}, "answers": [["a"], ["b"]]}
    paths = ["question/stem", "choices/text/0", "choices/text/1", "choices/0", "answers/1/0", "id"]
    columns = {path: (path, sources.text) for path in paths}
    assert list(_read(_source(tmp_path, json.dumps(row), columns))[0].values()) == ["?", "w", "x", "zero", "b", "7"]


GOOD = '{"input": "a", "target": "b"}\n'


@pytest.mark.parametrize(
    "content,columns,sentence",
    [
        (GOOD + '{"input": \n', PAIR, "FILE line 2 is not valid JSON (Expecting value, column 11), expected one JSON"),
        (
            GOOD + '{"input": "a", "target": NaN}',
            PAIR,
            "FILE line 2 is not valid JSON (NaN is not a number in JSON, col",
        ),
        (
            GOOD + '{"input": "a", "target": -Infinity}',
            PAIR,
            "FILE line 2 is not valid JSON (-Infinity is not a number",
        ),
        (
            GOOD + '{"input": 1e400, "target": "b"}',
            PAIR,
            "FILE line 2 is not valid JSON (1e400 is too large for a numb",
        ),
        (
            GOOD + '{"input": "a", "target": "b", "input": "c"}',
            PAIR,
            'FILE line 2 is not valid JSON (the key "input" occ',
        ),
        (
            '{"input": "\\ud83d", "target": "b"}',
            PAIR,
            "FILE line 1 is not valid JSON (half of a surrogate pair, U+D83D",
        ),
        (
            '{"input": "a", "target": "b", "x": "\\udfff"}',
            PAIR,
            "FILE line 1 is not valid JSON (half of a surrogate pa",
        ),
        (GOOD + "[" * 9999, PAIR, "FILE line 2 is not valid JSON (more than 100 levels of nesting, column 101)"),
        ("\n\nnonsense\n", PAIR, "FILE line 3 is not valid JSON"),
        ("[1]\n", PAIR, "FILE line 1 is a list, expected a JSON object with columns input, target"),
        ("3\n", PAIR, "FILE line 1 is a int, expected a JSON object"),
        ("null\n", PAIR, "FILE line 1 is a NoneType, expected a JSON object"),
        (GOOD + '{"text": "a", "target": "b"}\n', PAIR, "FILE line 2 has no column 'input', only text, target"),
        ('{"a": {"b": 1}, "c": 2}', {"x": ("a/z", sources.text)}, "FILE line 1 has no column 'a/z', only a, c"),
        ('{"a": {"b": 1}}', {"x": ("a/b/c", sources.text)}, "FILE line 1 has no column 'a/b/c', only a"),
        ('{"a": ["b"]}', {"x": ("a/1", sources.text)}, "FILE line 1 has no column 'a/1', only a"),
        ('{"a": ["b"]}', {"x": ("a/-1", sources.text)}, "FILE line 1 has no column 'a/-1', only a"),
        ('{"a": "text"}', {"x": ("a/0", sources.text)}, "FILE line 1 has no column 'a/0', only a"),
        ('{"input": ["a"], "target": "b"}', PAIR, "FILE line 1, column 'input': found ['a'], expected text"),
        (GOOD + '{"input": "a", "target": null}', PAIR, "FILE line 2, column 'target': found None, expected text"),
        ('{"input": true, "target": "b"}', PAIR, "FILE line 1, column 'input': found True, expected text"),
        ('{"x": []}', {"x": ("x", sources.texts)}, "FILE line 1, column 'x': found [], expected a list"),
        ('{"x": "a"}', {"x": ("x", sources.texts)}, "FILE line 1, column 'x': found 'a', expected a list"),
        ('{"x": ["a", {}]}', {"x": ("x", sources.texts)}, "FILE line 1, column 'x': found {}, expected text"),
        ('{"label": "yes"}', LABEL, "FILE line 1, column 'label': found 'yes', expected one of entailment, neutral"),
        ('{"label": 3}', LABEL, "FILE line 1, column 'label': found 3, expected one of"),
        ("\n \n", PAIR, "File FILE is empty, expected one JSON object per line"),
        ("", PAIR, "File FILE is empty, expected one JSON object per line"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_one_sentence(tmp_path, content, columns, sentence):
    with pytest.raises(ValueError) as raised:
        _read(_source(tmp_path, content, columns))
    message = str(raised.value)
    assert message.startswith(sentence.replace("FILE", str(tmp_path / "train.jsonl")))
    assert message.endswith(".") and "\n" not in message


@SETTINGS
@given(st.lists(st.tuples(ANY_TEXT, ANY_TEXT), min_size=1, max_size=4), st.booleans())
def test_any_text_comes_through(tmp_path_factory, pairs, escaped):
    rows = [{"input": question, "target": answer} for question, answer in pairs]
    content = "".join(json.dumps(row, ensure_ascii=escaped) + "\n" for row in rows)
    (folder := tmp_path_factory.mktemp("any")).joinpath("train.jsonl").write_bytes(content.encode())
    assert _read(sources.JsonlRows(str(folder), {"train": "train.jsonl"}, PAIR)) == rows


@SETTINGS
@given(st.binary() | st.text('{}[]":,\\ud8NaN1e+9 \ninputarge').map(str.encode))
def test_any_file_is_rows_or_one_sentence(tmp_path_factory, data):
    file = tmp_path_factory.mktemp("any") / "train.jsonl"
    file.write_bytes(data)
    try:
        rows = sources.read_rows(file, PAIR)
    except ValueError as error:
        assert str(file) in str(error) and "\n" not in str(error) and str(error).encode()
    else:
        assert all(text.encode() is not None for row in rows for text in row.values())


def test_a_file_in_another_encoding_is_named(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(GOOD.encode() + '{"input": "né", "target": "b"}\n'.encode("latin-1"))
    with pytest.raises(ValueError, match="train.jsonl line 2 is not valid JSON .byte 0xe9 is not UTF-8, column 13.,"):
        _read(sources.JsonlRows(str(tmp_path), sources.JSONL_SPLITS, PAIR))


@pytest.mark.parametrize("number", [1, 3])
def test_a_row_may_be_wrong_as_a_whole(tmp_path, number):
    def check(row):
        if row["target"] == "bad":
            raise ValueError(f"the target {row['target']!r} is bad")

    content = GOOD * (number - 1) + GOOD.replace("b", "bad") + GOOD
    with pytest.raises(ValueError, match=f"train.jsonl line {number}: the target 'bad' is bad.$"):
        _read(_source(tmp_path, content, check=check))


def test_missing_files_and_folders_are_named(tmp_path):
    for ask in (_read, lambda source: source.identity("train")):
        with pytest.raises(FileNotFoundError, match="Folder .*absent of the task's JSONL files is not found"):
            ask(sources.JsonlRows(str(tmp_path / "absent"), sources.JSONL_SPLITS, PAIR))
        (tmp_path / "dev.jsonl").unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError, match="train.jsonl is not found; the JSONL files in its folder are none"):
            ask(sources.JsonlRows(str(tmp_path), sources.JSONL_SPLITS, PAIR))
        (tmp_path / "dev.jsonl").write_text(GOOD)
        with pytest.raises(
            FileNotFoundError, match="train.jsonl is not found; the JSONL files in its folder are dev.jsonl"
        ):
            ask(sources.JsonlRows(str(tmp_path), sources.JSONL_SPLITS, PAIR))


@pytest.mark.parametrize(
    "value,index",
    [
        ("entailment", 0),
        ("Contradiction", 2),
        (0, 0),
        (2, 2),
        ("-", sources.UNLABELLED),
        (-1, sources.UNLABELLED),
    ],
)
def test_labels_are_given_by_name_or_index(value, index):
    assert sources.label_index(value, LABELS) == index


@pytest.mark.parametrize("labels", [("false", "true"), ("False", "True")])
def test_labels_may_be_true_and_false(labels):
    for value, index in [(False, 0), (True, 1), ("false", 0), ("TRUE", 1), (0, 0), (1, 1)]:
        assert sources.label_index(value, labels) == index


@pytest.mark.parametrize("value", ["", "entail", "0", 3, -2, 1.0, None, True, [0], {"label": 0}])
def test_other_labels_are_refused(value):
    with pytest.raises(ValueError, match="expected one of entailment, neutral, contradiction or an index below 3"):
        sources.label_index(value, LABELS)


def test_rows_without_a_gold_label_are_left_out(tmp_path):
    values = ["neutral", "-", 2, -1, "entailment"]
    splits = {"train": "train.jsonl", "part": "train.jsonl[1:4]", "none": "train.jsonl[1:2]"}
    source = _source(tmp_path, "".join(json.dumps({"label": v}) + "\n" for v in values), LABEL, splits)
    assert [row["label"] for row in _read(source)] == [1, 2, 0]
    assert [row["label"] for row in _read(source, "part")] == [2]  # the slice counts lines of the file
    with pytest.raises(ValueError, match="'none' of .* is empty: train.jsonl has 5 rows, and 1 of them in the slice"):
        _read(source, "none")


@SETTINGS
@given(st.one_of(st.text(), st.integers(), st.floats(allow_nan=False), st.lists(st.text()), st.none(), st.booleans()))
def test_text_takes_texts_and_numbers_only(value):
    if isinstance(value, (str, int, float)) and not isinstance(value, bool):
        assert sources.text(value) == str(value)
    else:
        with pytest.raises(ValueError, match="expected text"):
            sources.text(value)


def test_the_identity_follows_content_slice_and_columns(tmp_path):
    """What is cached of a split is stale when any of these changes."""
    seen = []
    for content, file, columns in [
        (GOOD, "train.jsonl", PAIR),
        (GOOD * 2, "train.jsonl", PAIR),
        (GOOD.replace("a", "z", 1), "train.jsonl", PAIR),
        (GOOD, "train.jsonl[:1]", PAIR),
        (GOOD, "train.jsonl[1:]", PAIR),
        (GOOD, "train.jsonl", {**PAIR, "target": ("input", sources.text)}),
    ]:
        seen.append(json.dumps(_source(tmp_path, content, columns, {"train": file}).identity("train"), sort_keys=True))
    assert len(set(seen)) == len(seen)
    again = _source(tmp_path, GOOD).identity("train")
    assert json.dumps(again, sort_keys=True) == seen[0]


def test_an_unknown_split_is_named(tmp_path):
    source = _source(tmp_path, GOOD)
    for ask in (source.identity, source.get_dataset):
        with pytest.raises(ValueError, match="'absent'"):
            ask("absent")


def test_rows_are_what_they_are_under_any_path(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "rows.jsonl").write_text(GOOD)
    relative = sources.JsonlRows(str(tmp_path / "here"), {"train": "rows.jsonl"}, PAIR)
    absolute = sources.JsonlRows(str(tmp_path), {"train": str(tmp_path / "here" / "rows.jsonl")}, PAIR)
    assert relative.identity("train") == absolute.identity("train")
