"""The roll call before several processes start together: it names the missing ones."""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterator
from typing import cast


def roll_call(address: str, count: int, index: int, timeout: float) -> None:
    """Returns once all processes have called it. JAX's own start kills a process without a word if one is missing.

    Args:
      address: HOST:PORT of process 0; the port is free again afterwards.
      count: number of processes.
      index: index of this process.
      timeout: seconds to wait.

    Raises:
      TimeoutError: some processes did not join in time.
      ValueError: process 0 cannot listen on the port.
    """
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    missing = _call(int(port), count, deadline) if index == 0 else _answer(host, int(port), index, deadline)
    if missing is None:
        raise TimeoutError(
            f"Process {index} could not reach process 0 at {address} within {timeout:g} s: check that it is running "
            "and that the port is open between the machines."
        )
    if missing:
        indices = ", ".join(map(str, missing))
        raise TimeoutError(
            f"Only {count - len(missing)} of {count} processes joined within {timeout:g} s; missing: {indices}; look "
            "at their logs, or raise --multiprocess_timeout."
        )


def _call(port: int, count: int, deadline: float) -> list[int]:
    """Process 0's part: waits for the others, tells each of them which are missing, and returns these."""
    present: dict[int, socket.socket] = {}
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(socket.create_server(("", port), backlog=count))
        except OSError as error:
            raise ValueError(
                f"Process 0 cannot listen on port {port} ({error.strerror}); choose another one."
            ) from error
        selector = stack.enter_context(selectors.DefaultSelector())
        selector.register(server, selectors.EVENT_READ)
        received: dict[socket.socket, bytes] = {}
        # All connections at once: a stranger may connect to the port and send nothing, or anything.
        while len(present) < count - 1 and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is server:
                    connection = stack.enter_context(server.accept()[0])
                    connection.settimeout(10)
                    received[connection] = b""
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = cast(socket.socket, key.fileobj)
                with contextlib.suppress(OSError, ValueError):
                    chunk = connection.recv(20)
                    received[connection] += chunk
                    if chunk and b"\n" not in received[connection] and len(received[connection]) < 20:
                        continue
                    index = int(received[connection])
                    if chunk and 0 < index < count:
                        present[index] = connection
                selector.unregister(connection)
        missing = sorted(set(range(1, count)) - set(present))
        for connection in present.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(missing).encode() + b"\n")
                connection.recv(1)  # wait until the other side closes: the side that closes first blocks the port
        return missing


def _answer(host: str, port: int, index: int, deadline: float) -> list[int] | None:
    """The part of the others: the missing processes as process 0 names them, None where it cannot be reached."""
    for left in _tries(deadline):
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host, port), timeout=left) as connection,
        ):
            connection.sendall(f"{index}\n".encode())
            connection.settimeout(left + 30)  # process 0 may have started to wait later than this one
            return json.loads(connection.makefile().readline())
    return None


def _tries(deadline: float) -> Iterator[float]:
    while (left := deadline - time.monotonic()) > 0:
        yield left
        time.sleep(min(0.2, left))
