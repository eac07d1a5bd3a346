"""The roll call before a start with several processes: it names who is missing."""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Iterator
from typing import cast


def roll_call(address: str, count: int, index: int, timeout: float) -> None:
    """Returns when all processes have called it; JAX's own start ends a process without a word where one is missing.

    Args:
      address: HOST:PORT of process 0; the port is free again afterwards.
      count: number of processes.
      index: this one's.
      timeout: seconds to wait.

    Raises:
      TimeoutError: some did not come in time.
    """
    host, port = address.rsplit(":", 1)
    deadline = time.monotonic() + timeout
    missing = _call(int(port), count, deadline) if index == 0 else _answer(host, int(port), index, deadline)
    if missing is None:
        raise TimeoutError(
            f"Process {index} did not reach process 0 at {address} within {timeout:g} s; is it running, and is the "
            "port open between the machines?"
        )
    if missing:
        who = ", ".join(map(str, missing))
        raise TimeoutError(
            f"Of {count} processes these did not come within {timeout:g} s: {who}; look at their logs, or raise "
            "--multiprocess_timeout."
        )


def _call(port: int, count: int, deadline: float) -> list[int]:
    """Process 0's part: waits for the others, tells each who is missing, and returns that."""
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
        said: dict[socket.socket, bytes] = {}
        # All at once: something else may knock at the port, and say nothing or anything.
        while len(present) < count - 1 and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                if key.fileobj is server:
                    connection = stack.enter_context(server.accept()[0])
                    connection.settimeout(10)
                    said[connection] = b""
                    selector.register(connection, selectors.EVENT_READ)
                    continue
                connection = cast(socket.socket, key.fileobj)
                with contextlib.suppress(OSError, ValueError):
                    heard = connection.recv(20)
                    said[connection] += heard
                    if heard and b"\n" not in said[connection] and len(said[connection]) < 20:
                        continue
                    found = int(said[connection])
                    if heard and 0 < found < count:
                        present[found] = connection
                selector.unregister(connection)
        missing = sorted(set(range(1, count)) - set(present))
        for connection in present.values():
            with contextlib.suppress(OSError):
                connection.sendall(json.dumps(missing).encode() + b"\n")
                connection.recv(1)  # until the other side has closed: it and not this one keeps the port waiting
        return missing


def _answer(host: str, port: int, index: int, deadline: float) -> list[int] | None:
    """Another process's part: who is missing as process 0 says, None where it cannot be reached."""
    for left in _tries(deadline):
        with (
            contextlib.suppress(OSError, ValueError),
            socket.create_connection((host, port), timeout=left) as connection,
        ):
            connection.sendall(f"{index}\n".encode())
            connection.settimeout(left + 30)  # process 0 started to wait later than this one, perhaps
            return json.loads(connection.makefile().readline())
    return None


def _tries(deadline: float) -> Iterator[float]:
    while (left := deadline - time.monotonic()) > 0:
        yield left
        time.sleep(min(0.2, left))
