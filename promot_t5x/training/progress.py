"""What a training run reports as it goes: losses, speed and time left, and a profile of a few steps."""

import collections
import math
import operator
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
from absl import logging
from clu import periodic_actions

from promot_t5x.models.losses import LossSums
from promot_t5x.training.run_metrics import Writer

# Steps before a profile begins, so that compilation is not in it, and steps in it.
_WARM_UP, _PROFILED = 10, 5

_NOTICEABLE = 0.05  # of the time that a log line says was spent waiting for data

_Batch = TypeVar("_Batch")


class Progress:
    """Follows a run one step behind, so that it never waits for the step that was just dispatched.

    `follow` is called after every dispatch and reads the metrics of the step before; `settle` reads the newest ones,
    which waits for the device. Once per log period it writes the mean loss since the last report, the speed, the time
    left, and the share of the time in which the run waited for data; time spent on evaluations and checkpoints counts.
    Cuts since the last report are counted over this process's rows.

    Args:
      total_steps: of the run.
      log_period: steps between reports; the last step always has one.
      first_step: where the run begins or resumes.
      writer: receives the scalars.
    """

    def __init__(self, total_steps: int, log_period: int, first_step: int, writer: Writer):
        self._total, self._writer = total_steps, writer
        self._dispatched: tuple[int, Any, Mapping[str, int]] | None = None
        self._begin_window(first_step)
        self._report = periodic_actions.PeriodicCallback(
            every_steps=log_period, on_steps=[total_steps], callback_fn=self._write
        )

    def fetched(self, batches: Iterator[_Batch]) -> _Batch:
        """The next batch; the time that this takes is reported as waiting for data."""
        began = time.monotonic()
        batch = next(batches)
        self._waited += time.monotonic() - began
        return batch

    def follow(self, step: int, metrics: Mapping[str, Any], cuts: Mapping[str, int] = {}) -> None:
        """Remembers the step that was just dispatched and reads the one before.

        Args:
          step: updates made so far, the new one included.
          metrics: of the step, on the devices: its sums and the norm of its gradient.
          cuts: of this process's rows, see `cuts.separated`.

        Raises:
          FloatingPointError: the loss or gradient of the step before is not finite.
        """
        previous, self._dispatched = self._dispatched, (step, metrics, cuts)
        if previous is not None:
            self._read(*previous)

    def settle(self) -> None:
        """Waits for the newest step and reads it.

        Raises:
          FloatingPointError: its loss or gradient is not finite.
        """
        if self._dispatched is not None:
            newest, self._dispatched = self._dispatched, None
            self._read(*newest)

    def _begin_window(self, step: int) -> None:
        self._sums, self._window_start, self._started = LossSums._make([0.0] * 4), step, time.monotonic()
        self._cuts, self._waited = collections.Counter(), 0.0

    def _read(self, step: int, metrics: Mapping[str, Any], cuts: Mapping[str, int]) -> None:
        on_host = jax.device_get(metrics)
        sums, gradient_norm = LossSums._make(map(float, on_host["sums"])), float(on_host["gradient_norm"])
        # The loss tells of the parameters before the step, the gradient of those after it.
        for name, value in (("loss", sums.loss), ("gradient's norm", gradient_norm)):
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"The {name} is {value} at step {step}; lower the learning rate or train in float32. The last "
                    "checkpoint is from before."
                )
        self._sums = LossSums._make(map(operator.add, self._sums, sums))
        self._cuts.update(cuts)
        self._report(step, gradient_norm=gradient_norm)

    def _write(self, step: int, t: float, gradient_norm: float) -> None:
        seconds = max(t - self._started, 1e-9)
        rate = (step - self._window_start) / seconds
        tokens = float(self._sums.weight_sum)
        waiting = min(self._waited / seconds, 1.0)
        scalars = {
            "train/loss": float(self._sums.loss) / tokens if tokens else 0.0,
            "train/accuracy": float(self._sums.correct) / tokens if tokens else 0.0,
            "train/gradient_norm": gradient_norm,
            "train/steps_per_second": rate,
            "train/target_tokens_per_second": tokens / seconds,
            "train/waiting_for_data": waiting,
            **{f"train/{name}": float(count) for name, count in self._cuts.items()},
        }
        self._writer.write_scalars(step, scalars)
        logging.info(
            "step %d/%d  loss %.4f  accuracy %.3f  %.1f steps/s  %.0f target tokens/s%s  %.0f s left",
            step,
            self._total,
            scalars["train/loss"],
            scalars["train/accuracy"],
            rate,
            scalars["train/target_tokens_per_second"],
            f"  {waiting:.0%} waiting for data" if waiting >= _NOTICEABLE else "",
            (self._total - step) / rate,
        )
        self._begin_window(step)


def announced(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A compiled function with lines before and after its first call, which compiles it and can take minutes."""
    is_first = True

    def call(*args: Any) -> Any:
        nonlocal is_first
        if not is_first:
            return function(*args)
        is_first = False
        logging.info("compiling %s", name)
        began = time.monotonic()
        result = function(*args)  # returns once the work is dispatched, long before it is done
        logging.info("compiled %s in %.0f s", name, time.monotonic() - began)
        return result

    return call


def profiler(folder: str | None, first_step: int, total_steps: int) -> Callable[[int], object]:
    """Returns the function that profiles a few steps of a run.

    Args:
      folder: where the trace goes, in `plugins/profile` as TensorBoard expects it; None profiles nothing.
      first_step: where the run begins or resumes.
      total_steps: of the run; in a short one the trace begins after the first step.

    Returns:
      A function of the number of updates dispatched so far, to be called after each of them.
    """
    profiled = min(_PROFILED, total_steps - first_step - 1)
    if folder is None or profiled < 1:
        return lambda step: None
    begin = first_step + max(1, min(_WARM_UP, total_steps - first_step - profiled))
    logging.info("profiling steps %d to %d into %s/plugins/profile", begin + 1, begin + profiled, folder)
    return periodic_actions.Profile(
        logdir=folder, num_profile_steps=profiled, profile_duration_ms=None, first_profile=begin, every_secs=None
    )
