"""promot_t5x.data.evaluation_batches: every example once, within the room of the widest batch, in few shapes."""

import dataclasses

import numpy as np
import pytest

from promot_t5x.data import evaluation_batches
from promot_t5x.data.evaluation_batches import Batch, Room, Shape

ROOMS = [Room(32, 2048, 32), Room(49, 500, 128), Room(8, 6144, 128, multiple=8), Room(12, 300, 20, multiple=4)]


def _lengths(count, longest, seed=0):
    return np.random.default_rng(seed).lognormal(np.log(longest / 4), 0.8, count).astype(int).clip(1, longest)


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.parametrize("count", [0, 1, 31, 64, 3000])
def test_every_example_is_in_one_batch_that_fits(room, count):
    length_N = _lengths(count, room.inputs)
    batches = evaluation_batches.batches(length_N, room)
    assert sorted(number for batch in batches for number in batch.numbers) == list(range(count))
    for numbers, shape in map(dataclasses.astuple, batches):
        assert 0 < len(numbers) <= shape[1] and max(length_N[list(numbers)]) <= shape[0] <= room.inputs
        assert shape[1] * (shape[0] + room.decoder) <= room.batch_size * (room.inputs + room.decoder)
        assert shape[1] % room.multiple == 0
    widths = [batch.shape.width for batch in batches]
    assert widths == sorted(widths, reverse=True), "the widest first"


@pytest.mark.parametrize("room", ROOMS)
def test_shapes_are_few_and_most_tokens_are_no_padding(room):
    length_N = _lengths(3000, room.inputs)
    report = evaluation_batches.report(evaluation_batches.batches(length_N, room), length_N)
    assert len(report["shapes"]) <= 12
    tokens = sum(shape["width"] * shape["rows"] * shape["batches"] for shape in report["shapes"])
    assert report["padding"] == pytest.approx(1 - length_N.sum() / tokens) and report["padding"] < 0.35


def test_few_examples_take_few_rows():
    """A task of three examples does not run the rows of a full batch, nor a program for each length."""
    assert [batch.shape for batch in evaluation_batches.batches([70, 80, 90], Room(32, 2048, 32))] == [Shape(96, 4)]
    assert [batch.shape for batch in evaluation_batches.batches([9], Room(8, 512, 8, multiple=8))] == [Shape(32, 8)]


def test_a_long_input_does_not_widen_the_others():
    batches = evaluation_batches.batches([40] * 30 + [1500, 1400], Room(16, 2048, 32))
    assert [(batch.numbers, batch.shape) for batch in batches] == [
        ((30, 31), Shape(1536, 2)),
        (tuple(range(30)), Shape(48, 32)),
    ]


def test_shorter_inputs_get_more_rows():
    room = Room(32, 2048, 32)
    assert [room.rows(width) for width in (2048, 1536, 1008, 512, 128, 32)] == [32, 32, 64, 64, 256, 256]
    ranking = Room(32, 512, 3 * 128)
    assert [ranking.rows(width) for width in (512, 64, 32)] == [32, 64, 64], "choices take room, too"
    with pytest.raises(ValueError, match="batch_size is 0, expected at least 1"):
        Room(0, 512, 8)


def test_equal_lengths_give_equal_batches_in_the_order_of_the_examples():
    batches = evaluation_batches.batches([50] * 300, Room(32, 512, 64))
    assert batches == evaluation_batches.batches(np.full(300, 50), Room(32, 512, 64))
    assert [number for batch in batches for number in batch.numbers] == list(range(300))


def test_lengths_end_at_the_last_token():
    tokens_NxT = np.array([[5, 0, 6, 0], [7, 8, 9, 1], [0, 0, 0, 0]])
    assert evaluation_batches.lengths(tokens_NxT).tolist() == [3, 4, 1]


def test_a_batch_is_cut_and_padded_with_zeros():
    arrays = {
        "encoder_input_tokens": np.array([[5, 1, 0], [6, 7, 1], [8, 1, 0]], np.int32),
        "decoder_loss_weights": np.ones((3, 2), np.float32),
        "decoder_target_tokens": np.arange(12).reshape(3, 2, 2),
    }
    gathered = evaluation_batches.gathered(arrays, Batch((2, 0), Shape(width=2, rows=3)))
    assert gathered["encoder_input_tokens"].tolist() == [[8, 1], [5, 1], [0, 0]]
    assert gathered["decoder_loss_weights"].tolist() == [[1, 1], [1, 1], [0, 0]]
    assert gathered["decoder_target_tokens"].tolist() == [[[8, 9], [10, 11]], [[0, 1], [2, 3]], [[0, 0], [0, 0]]]
    assert all(values.dtype == arrays[name].dtype for name, values in gathered.items())
    wider = evaluation_batches.gathered(arrays, Batch((1,), Shape(width=5, rows=1)))
    assert wider["encoder_input_tokens"].tolist() == [[6, 7, 1, 0, 0]]


def test_the_report_of_some_batches_counts_only_their_tokens():
    length_N = [60, 30] * 4
    batches = evaluation_batches.batches(length_N, Room(4, 64, 8))
    report = evaluation_batches.report(batches[1:], length_N)
    assert report == {"shapes": [{"width": 64, "rows": 4, "batches": 1}], "padding": 1 - 4 * 30 / (4 * 64)}
    assert evaluation_batches.report([], length_N) == {"shapes": [], "padding": 0.0}
