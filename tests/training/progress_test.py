"""promot_t5x.training.progress: what a log line and the metrics say of the time that a run waited for data."""

import logging as python_logging
import time

import pytest

from promot_t5x.models.losses import LossSums
from promot_t5x.training import progress
from tests.training import tiny


@pytest.mark.parametrize("slow", [False, True])
def test_waiting_for_data_is_measured_and_logged_where_it_is_noticeable(slow, caplog):
    written = tiny.Written()

    def batches():
        for number in range(4):
            if slow:
                time.sleep(0.04)
            yield number

    stream, metrics = batches(), {"sums": LossSums(1.0, 1.0, 1.0, 1.0), "gradient_norm": 1.0}
    reported = progress.Progress(4, 2, 0, written)
    with caplog.at_level(python_logging.INFO):
        for step in range(1, 5):
            assert reported.fetched(stream) == step - 1
            time.sleep(0.01)  # the step itself
            reported.follow(step, metrics)
        reported.settle()
    # A report is written after the dispatch of one step more, so the first window has three of the batches.
    shares = [written[step]["train/waiting_for_data"] for step in (2, 4)]
    assert all(0.4 < share < 0.9 for share in shares) if slow else max(shares) < 0.05
    lines = [line for line in caplog.messages if line.startswith("step ")]
    assert len(lines) == 2 and all(("% waiting for data" in line) == slow for line in lines)
