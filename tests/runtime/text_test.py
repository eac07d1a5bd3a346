"""promot_t5x.runtime.text: text that lines up."""

import pytest

from promot_t5x.runtime.text import aligned, did_you_mean, nearest

ROWS = [("name", "count", "of"), ("a", "1", "x"), ("bcdef", "10,000", "yy")]


def test_words_are_left_aligned_and_numbers_right_aligned():
    assert aligned(ROWS) == "name   count   of\na      1       x\nbcdef  10,000  yy"
    assert aligned(ROWS, numbers=[1]) == "name    count  of\na           1  x\nbcdef  10,000  yy"
    assert aligned(ROWS, numbers={1, 2}) == "name    count  of\na           1   x\nbcdef  10,000  yy"


def test_one_row_one_column_and_empty_cells():
    assert aligned([("a", "b")]) == "a  b"
    assert aligned([("long",), ("a",)], numbers=range(5)) == "long\n   a"
    assert aligned([("a", "", ""), ("", "b", "")]) == "a\n   b"


def test_rows_of_different_lengths():
    for rows in ([("a", "b"), ("c",)], [("a",), ("b", "c")]):
        with pytest.raises(ValueError, match=r"have \[1, 2\] cells, expected one length"):
            aligned(rows)


def test_cells_are_shown_as_they_are():
    """Nothing is parsed as a number, and leading spaces stay."""
    assert aligned([("a", "1e3"), ("  b", "007.50")], numbers=[1]) == "a       1e3\n  b  007.50"


def test_nearest_names():
    names = ["prompt_tuning", "model_tuning", "fine_tuning"]
    assert nearest("promt_tuning", iter(names), count=1) == ["prompt_tuning"]
    assert set(nearest("tuning", names)) == set(names) and nearest("xyz", names) == []
    assert did_you_mean("promt_tuning", names) == " (did you mean 'prompt_tuning'?)"
    assert did_you_mean("xyz", names) == ""
