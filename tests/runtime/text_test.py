"""promot_t5x.runtime.text: text that lines up."""

import pytest

from promot_t5x.runtime.text import aligned

ROWS = [("name", "count", "of"), ("a", "1", "x"), ("bcdef", "10,000", "yy")]


def test_words_stand_at_the_left_and_numbers_at_the_right():
    assert aligned(ROWS) == "name   count   of\na      1       x\nbcdef  10,000  yy"
    assert aligned(ROWS, numbers=[1]) == "name    count  of\na           1  x\nbcdef  10,000  yy"
    assert aligned(ROWS, numbers={1, 2}) == "name    count  of\na           1   x\nbcdef  10,000  yy"


def test_one_row_one_column_and_empty_cells():
    assert aligned([("a", "b")]) == "a  b"
    assert aligned([("long",), ("a",)], numbers=range(5)) == "long\n   a"
    assert aligned([("a", "", ""), ("", "b", "")]) == "a\n   b"


def test_rows_of_different_lengths():
    with pytest.raises((ValueError, IndexError)):
        aligned([("a", "b"), ("c",)])
