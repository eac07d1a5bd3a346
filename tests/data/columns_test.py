"""promot_t5x.data.columns against the lists that they were made of."""

import numpy as np
import pytest

from promot_t5x.data.columns import Collected, Columns, Ragged


def _ragged(typecode, items):
    collected = Collected(typecode)
    for item in items:
        collected.add(item)
    return collected.column()


def test_examples_come_back_as_they_were():
    tokens, texts = [[5, 1], [], [2**31 - 1]], [b"a\0", "é".encode(), b""]
    lists = (_ragged("B", [b"yes", b"no", b""]), np.array([2, 2, 3]))
    numbers = {"cut": np.array([0, 1, 0], np.int32), "hidden": np.array([7, 8, 9], np.int32)}
    columns = Columns({"inputs": _ragged("i", tokens)}, {"text": _ragged("B", texts)}, {"choices": lists}, numbers)
    examples = list(columns.with_numbers(["cut"]))
    assert [example["inputs"].tolist() for example in examples] == tokens
    assert [example["text"] for example in examples] == texts
    assert [example["choices"].tolist() for example in examples] == [[b"yes", b"no"], [], [b""]]
    assert [example["cut"] for example in examples] == [0, 1, 0]
    assert set(examples[0]) == {"inputs", "text", "choices", "cut"} and len(examples[0]) == 4
    assert columns[-1]["hidden"] == 9 and [row["hidden"] for row in columns[1:]] == [8, 9]
    with pytest.raises(KeyError):
        examples[0]["hidden"]
    with pytest.raises(IndexError):
        columns[3]


@pytest.mark.parametrize("ends", [[1, 2], [3, 2], [2, 1, 3], []])
def test_ends_that_do_not_match_are_refused(ends):
    with pytest.raises(ValueError, match="do not match their 3 items"):
        Ragged(np.array([1, 2, 3]), np.array(ends, np.int64))
