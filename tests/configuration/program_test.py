"""promot_t5x.configuration.program: interrupts that Python cannot raise where they arrive."""

import gc
import signal
import time

import pytest

from promot_t5x.configuration import program


def test_an_interrupt_inside_a_callback_of_the_garbage_collector_is_not_lost():
    """JAX has such a callback; what it raises, Python only reports."""
    program.show_progress()
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a worker of pytest ignores it

    def callback(phase, _):
        if phase == "start":
            gc.callbacks.remove(callback)
            signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(callback)
    try:
        with pytest.raises(KeyboardInterrupt):
            gc.collect()
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)
