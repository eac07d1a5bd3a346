"""Work for the host on one background thread, while the main thread keeps the devices busy.

Collectives between processes belong to the main thread: all processes must start them in the same order.
"""

import concurrent.futures
import ctypes
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")

_SECONDS_TO_STOP = 5.0


class _Stopped(BaseException):
    """Raised in the thread to end the function that runs there."""


class Worker:
    """Runs functions on one thread, in the order in which they are submitted.

    It is a context manager. Its end waits for all functions; if the body is left by an exception, such as ctrl-C, the
    running one is stopped and the others never start.

    >>> with Worker() as worker:
    ...     worker.submit(divmod, 7, 2).result(), list(worker.ahead([lambda: "a", lambda: "b"]))
    ((3, 1), ['a', 'b'])
    """

    def __init__(self):
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._stops = False
        # A daemon: a function that cannot be stopped does not keep the process from ending.
        self._thread = threading.Thread(target=self._work, name="background", daemon=True)

    def submit(self, function: Callable[..., T], *args: Any) -> concurrent.futures.Future[T]:
        """Puts a function at the end of the queue; `result()` of what is returned raises what the function raised."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            try:
                result = function(*args)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._waiting.put(run)
        return future

    def ahead(self, functions: Iterable[Callable[[], T]]) -> Iterator[T]:
        """Yields the functions' results in order; each function runs while the result before it is used."""
        upcoming: concurrent.futures.Future[T] | None = None
        for function in functions:
            current, upcoming = upcoming, self.submit(function)
            if current:
                yield current.result()
        if upcoming:
            yield upcoming.result()

    def __enter__(self) -> "Worker":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: Any) -> None:
        self._stops = kind is not None
        self._waiting.put(None)
        if not self._stops:
            self._thread.join()
            return
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Stopped))
        self._thread.join(_SECONDS_TO_STOP)

    def _work(self) -> None:
        try:
            while (run := self._waiting.get()) and not self._stops:
                run()
        except _Stopped:  # between two functions
            pass
