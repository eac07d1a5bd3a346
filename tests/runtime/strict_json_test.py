"""promot_t5x.runtime.strict_json: any JSON in, any text out, and nothing that only Python takes for JSON."""

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.runtime import strict_json

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]))  # all of Unicode but halves of surrogate pairs
LEAVES = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | TEXT
LEAVES |= st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@SETTINGS
@given(JSON, st.booleans(), st.sampled_from([None, 2]))
def test_any_json_is_read_as_pythons_own_reader_does(value, escaped, indent):
    text = json.dumps(value, ensure_ascii=escaped, indent=indent)
    assert strict_json.loads(text) == json.loads(text) == value
    assert strict_json.loads(b"\xef\xbb\xbf" + text.encode()) == value, "with a byte order mark"
    assert json.loads(strict_json.dumps(value, indent=indent).encode()) == value


FAULTS = {
    "NaN": "NaN is not a number in JSON",
    "-Infinity": "-Infinity is not a number in JSON",
    "1e400": "1e400 is too large for a number",
    "-1E+999": "-1E+999 is too large for a number",
    "9" * 5000: "9999999999999999999999999999999999999999… is too large for a number",
    r'"\ud83d"': "half of a surrogate pair, U+D83D",
    r'"a\udc00 \ud83d\ude00"': "half of a surrogate pair, U+DC00",
    r'{"\ud83d": 1}': "half of a surrogate pair, U+D83D",
    '"\ud83d"': "half of a surrogate pair, U+D83D",
    '{"a": 1, "a": 2}': 'the key "a" occurs twice',
    r'{"a": {"b": 1}, "\u0061": 1}': r'the key "\u0061" occurs twice',
    "[" * 101 + "]" * 101: "more than 100 levels of nesting",
    "[" * 100_000: "more than 100 levels of nesting",
    '{"a":' * 101 + "1" + "}" * 101: "more than 100 levels of nesting",
}


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[:20])
def test_what_only_python_takes_for_json_is_refused(fault):
    with pytest.raises(ValueError) as raised:
        strict_json.loads(fault)
    assert str(raised.value).startswith(f"{FAULTS[fault]}, column ")


@SETTINGS
@given(st.sampled_from(["NaN", "Infinity", "1e400", r'"\uDFFF"']), st.lists(JSON, max_size=3), TEXT)
def test_a_fault_is_found_wherever_it_is(fault, before, key):
    start = json.dumps(before, ensure_ascii=False)[:-1] + (", " if before else "") + json.dumps({key: 0})[:-2]
    with pytest.raises(ValueError) as raised:
        strict_json.loads(f"\n{start}{fault}}}]")
    assert str(raised.value).endswith(f", line 2 column {len(start) + 1}")


@SETTINGS
@given(st.binary() | st.text().map(lambda text: text.encode(errors="surrogatepass")))
def test_any_bytes_are_a_value_or_a_value_error(data):
    try:
        value = strict_json.loads(data)
    except ValueError as error:
        assert "column" in str(error)
    else:
        assert json.loads(data) == value and json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


@SETTINGS
@given(st.text('[]{}",:0123456789.eE+-\\ud8NaInfity \n'))
def test_anything_that_looks_like_json_is_a_value_or_a_value_error(text):
    try:
        value = strict_json.loads(text)
    except ValueError as error:
        assert "column" in str(error)
    else:
        assert json.loads(text) == value and json.dumps(value, allow_nan=False, ensure_ascii=False).encode()


def test_the_words_of_numbers_may_be_texts_and_keys():
    value = {"NaN": "1e400", "Infinity": ["NaN", "[" * 200, '\\"{'], "": {"": 1e-400}, "a": [{"a": 1}, {"a": 2}]}
    assert strict_json.loads(json.dumps(value)) == value
    assert strict_json.loads("[" * 100 + "]" * 100) is not None


def test_lines_are_read_with_their_places(tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes('\ufeff{"a": "\u2028"}\r\n\n  \n"\u0085"\n3'.encode())
    read = list(strict_json.read_lines(file))
    assert read == [(f"{file} line 1", {"a": "\u2028"}), (f"{file} line 4", "\u0085"), (f"{file} line 5", 3)]


@pytest.mark.parametrize(
    "line,reason",
    [
        (b'{"a": NaN}', "NaN is not a number in JSON, column 7"),
        (b'{"a": "caf\xe9"}', "byte 0xe9 is not UTF-8, column 11"),
        ('{"ä": 1, "ä": 2}'.encode(), 'the key "ä" occurs twice, column 10'),
        (b'{"a": 1', "Expecting ',' delimiter, column 8"),
        (b"[" * 2000, "more than 100 levels of nesting, column 101"),
    ],
)
def test_a_line_that_is_not_json_is_named(line, reason, tmp_path):
    file = tmp_path / "in.jsonl"
    file.write_bytes(b"{}\n\n" + line + b"\n{}\n")
    with pytest.raises(ValueError) as raised:
        list(strict_json.read_lines(file))
    assert str(raised.value) == f"{file} line 3 is not valid JSON ({reason}), expected one JSON object: correct it."


@pytest.mark.parametrize("value", [math.nan, [-math.inf], {"a": object()}, "\ud83d", {"\udc00": 1}, {(1,): 2}])
def test_what_json_does_not_have_is_not_written(value):
    with pytest.raises(ValueError):
        strict_json.dumps(value)
    deep = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(ValueError):
        strict_json.dumps(deep)


def test_numbers_that_are_not_finite_become_null():
    value = {"a": [math.nan, (1, -math.inf)], "b": {"c": math.inf, "d": "nan"}, "e": True}
    assert strict_json.dumps(strict_json.finite(value)) == (
        '{"a": [null, [1, null]], "b": {"c": null, "d": "nan"}, "e": true}'
    )
