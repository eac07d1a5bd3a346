"""promot_t5x.runtime.background: order, overlap, errors and a prompt end."""

import threading
import time

import pytest

from promot_t5x.runtime import background


def test_results_come_in_order_and_work_begins_before_it_is_needed():
    begun = threading.Event()
    with background.Worker() as worker:
        results = worker.ahead([lambda: 1, lambda: begun.set() or 2])
        assert next(results) == 1
        assert begun.wait(10), "the second one begins while the first result is used"
        assert list(results) == [2]


def test_the_end_waits_for_what_was_submitted():
    done = []
    with background.Worker() as worker:
        for number in range(3):
            worker.submit(lambda number=number: time.sleep(0.01) or done.append(number))
    assert done == [0, 1, 2]


def test_an_error_keeps_its_type_and_message():
    with background.Worker() as worker:
        future = worker.submit(int, "x")
        assert worker.submit(int, "7").result() == 7, "later work goes on"
        with pytest.raises(ValueError, match="invalid literal"):
            future.result()


def test_ctrl_c_stops_the_running_function_and_drops_the_others():
    begun, steps, later = threading.Event(), [], []

    def endless():
        begun.set()
        while True:
            steps.append(time.sleep(0.001))

    with pytest.raises(KeyboardInterrupt), background.Worker() as worker:
        worker.submit(endless)
        worker.submit(later.append, 1)
        begun.wait()
        started = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - started < 4 and not later
    count = len(steps)
    time.sleep(0.02)
    assert len(steps) == count, "it has ended"
