"""promot_t5x.columns: text that lines up."""

import pytest

from promot_t5x import columns

ROWS = [("name", "count", "of"), ("a", "1", "x"), ("bcdef", "10,000", "yy")]


def test_words_stand_at_the_left_and_numbers_at_the_right():
    assert columns.aligned(ROWS) == "name   count   of\na      1       x\nbcdef  10,000  yy"
    assert columns.aligned(ROWS, numbers=[1]) == "name    count  of\na           1  x\nbcdef  10,000  yy"
    assert columns.aligned(ROWS, numbers={1, 2}) == "name    count  of\na           1   x\nbcdef  10,000  yy"


def test_one_row_one_column_and_empty_cells():
    assert columns.aligned([("a", "b")]) == "a  b"
    assert columns.aligned([("long",), ("a",)], numbers=range(5)) == "long\n   a"
    assert columns.aligned([("a", "", ""), ("", "b", "")]) == "a\n   b"


def test_rows_of_different_lengths():
    with pytest.raises((ValueError, IndexError)):
        columns.aligned([("a", "b"), ("c",)])
