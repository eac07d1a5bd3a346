"""Several processes as one run: a start that names missing processes, and the one process that prints.

Every process runs the same program on its own devices; all of them must see the same folders.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from typing import Any

from absl import logging
from etils import epy

from promot_t5x.runtime.roll_call import roll_call

with epy.lazy_imports():  # commands that only parse flags or read results start without jax
    import jax
    from jax.experimental import multihost_utils


@dataclasses.dataclass(frozen=True)
class Processes:
    """The processes of a run; with address, count and index None, JAX asks the cluster (TPU pods, Slurm, …).

    Attributes:
      coordinator_address: HOST:PORT of process 0, reachable from all processes.
      count: number of processes.
      index: index of this process, from 0.
      timeout: seconds to wait for the others.
    """

    coordinator_address: str | None = None
    count: int | None = None
    index: int | None = None
    timeout: int = 300

    def __post_init__(self):
        if (self.coordinator_address, self.count, self.index) != (None, None, None):
            if self.coordinator_address is None or self.count is None or self.index is None:
                raise ValueError(
                    "Several processes need all of --coordinator_address, --process_count and --process_index, or "
                    "--multiprocess alone where the cluster knows them."
                )
            host, _, port = self.coordinator_address.rpartition(":")
            if not host or not 0 <= self.index < self.count:
                raise ValueError(
                    f"--coordinator_address={self.coordinator_address} --process_count={self.count} --process_index="
                    f"{self.index}: expected HOST:PORT and an index from 0 to the count minus one."
                )
            if not port.isdecimal() or not 0 < int(port[:9]) < 2**16:
                raise ValueError(
                    f"--coordinator_address={self.coordinator_address} has the port {port!r}: expected a number from 1 "
                    "to 65535."
                )
        if self.timeout < 1:
            raise ValueError(f"--multiprocess_timeout is {self.timeout}: expected at least 1 second.")


def start(processes: Processes | None) -> None:
    """Joins this process to the others; from then on only process 0 prints, while errors come from any process.

    Args:
      processes: None for a run of one process.

    Raises:
      TimeoutError: some processes did not join; the sentence names them.
      ValueError: the cluster does not say which processes take part.
    """
    if processes is None or _is_one_of_several():
        return
    address, count, index = _resolved(processes)
    roll_call(address, count, index, processes.timeout)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, count, index, initialization_timeout=processes.timeout)
    if index:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
        logging.set_verbosity(logging.WARNING)
    logging.info("process %d of %d, %d of %d devices", index, count, jax.local_device_count(), jax.device_count())


def speaks() -> bool:
    """Whether this process prints and writes for the run; touches no device in a run of one process."""
    return not _is_one_of_several() or jax.process_index() == 0


def barrier(name: str) -> None:
    """Waits for all processes: what one of them wrote before, the others can read afterwards."""
    if _is_one_of_several():
        multihost_utils.sync_global_devices(name)


def agreed(value: Any) -> Any:
    """Process 0's value, for decisions that all processes must take alike but each reads off a disk of its own."""
    return multihost_utils.broadcast_one_to_all(value) if _is_one_of_several() else value


def summed(values: Any) -> Any:
    """The sum of all processes' NumPy arrays of one shape, which all of them get."""
    if not _is_one_of_several():
        return values
    return multihost_utils.process_allgather(values).sum(axis=0, dtype=values.dtype)


def _is_one_of_several() -> bool:
    return "jax" in sys.modules and jax.distributed.is_initialized()


_UNKNOWN = (
    "--multiprocess: the cluster does not say which processes take part; give --coordinator_address, --process_count "
    "and --process_index"
)


def _resolved(processes: Processes) -> tuple[str, int, int]:
    """Address, count and index, from the cluster where they are None."""
    from jax._src.clusters import cluster  # no public function tells what initialize() would find out

    try:
        address, count, index, _ = cluster.ClusterEnv.auto_detect_unset_distributed_params(
            processes.coordinator_address, processes.count, processes.index, None, None, processes.timeout
        )
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(f"{_UNKNOWN} ({type(error).__name__}: {error}).") from error
    if address is None or count is None or index is None:
        raise ValueError(f"{_UNKNOWN}.")
    return address, count, index
