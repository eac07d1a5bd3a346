"""One run at a time in a run's folder: a second one would delete the first one's checkpoints.

While a run goes on, its folder has a file `in_use.json` with host, process and time, which the run writes again every
few seconds. On a local file system the process also holds the kernel's lock on that file, which ends with the process
however that ends: a killed run leaves the file but not the lock, and the next run takes the folder over. The folder of
a run on another host, such as a preempted machine, is taken over once the file stops changing; clocks are not compared.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.runtime import files, processes, strict_json

FILE = "in_use.json"

_BEAT, _DEAD = 15.0, 90.0  # seconds between two writings of the file, and without one of a dead process


@contextlib.contextmanager
def held(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Keeps other runs out of a folder for the length of a `with` block; of several processes, process 0 does.

    Args:
      folder: created if missing, and deleted at the end if it is empty then.

    Raises:
      ValueError: (in all processes) another run uses the folder, or may use it from another host.
    """
    path = files.absolute(folder)
    with contextlib.ExitStack() as stack:
        refusal = _take(path, stack) if processes.speaks() else ""
        if processes.agreed(bool(refusal)):
            raise ValueError(refusal or f"{path} is in use, as process 0 says.")
        yield


def _take(folder: epath.Path, stack: contextlib.ExitStack) -> str:
    """Takes a folder until the stack unwinds; returns the sentence that refuses it, empty if it is taken."""
    file = folder / FILE
    folder.mkdir(parents=True, exist_ok=True)
    if not _in_bucket(file):
        stack.callback(_remove_if_empty, folder)
    alive = None if _in_bucket(file) else _lock(file, stack)
    refusal = _refusal(file, alive)
    if not refusal:
        stack.callback(file.unlink, missing_ok=True)
        _write(file)
        stack.enter_context(_beating(file))
    return refusal


def _write(file: epath.Path) -> None:
    """Writes who uses the folder, and when; in place, as a file put in its place would not carry the lock."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    file.write_text(strict_json.dumps({"host": socket.gethostname(), "process": os.getpid(), "time": now}) + "\n")


@contextlib.contextmanager
def _beating(file: epath.Path) -> Iterator[None]:
    """Writes the file again and again, in the background."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(_BEAT):
            with contextlib.suppress(Exception):  # such as a bucket that cannot be reached for a moment
                _write(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_bucket(file: epath.Path) -> bool:
    return "://" in os.fspath(file)


def _remove_if_empty(folder: epath.Path) -> None:
    with contextlib.suppress(OSError):
        os.rmdir(folder)


def _lock(file: epath.Path, stack: contextlib.ExitStack) -> bool | None:
    """Takes the kernel's lock on a file, which is created if missing.

    Returns:
      Whether another process has it; None if the file system has no locks.
    """
    while True:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)  # a link's target is not ours
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return True
        except OSError:
            os.close(descriptor)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), pathlib.Path(file).stat()):
                stack.callback(os.close, descriptor)
                return False
        os.close(descriptor)  # its holder deleted the file after it was opened here


def _refusal(file: epath.Path, alive: bool | None) -> str:
    """Why a folder cannot be taken; empty if it can.

    Args:
      file: the file that says who uses the folder.
      alive: whether that process is alive; None if only the file can tell.
    """
    user = _user(file)
    by = f"process {user['process']} on {user['host']}" if user else "another process"
    if alive is None and user.get("host") == socket.gethostname():
        alive = _is_alive(user["process"])
    elif alive is None or (user and user["host"] != socket.gethostname()):
        alive = alive or _beats(file, by)
    return f"{file.parent} is in use by {by}; wait until that run ends, or use a new MODEL_DIR." if alive else ""


def _beats(file: epath.Path, by: str) -> bool:
    """Whether a process that cannot be looked for, as on another host, still writes the file."""
    try:
        before, began = file.read_bytes(), time.monotonic()
        logging.info("%s is in use by %s; waiting %.0f s to see whether it is alive", file.parent, by, _DEAD)
        while time.monotonic() - began < _DEAD:
            time.sleep(_BEAT / 5)
            if file.read_bytes() != before:
                return True
        logging.info("%s is no longer alive; its folder is taken over", by)
    except FileNotFoundError:  # there is no such process, or it has just ended
        pass
    return False


def _user(file: epath.Path) -> dict[str, Any]:
    """Host, process and time from a file; empty if there is none, or the process was killed while it wrote the file."""
    try:
        user = strict_json.loads(file.read_bytes())
        return {key: user[key] for key in ("host", "process", "time")}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def _is_alive(process: Any) -> bool:
    try:
        os.kill(int(process), 0)
    except (ProcessLookupError, TypeError, ValueError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
