"""One run at a time in a run's folder: a second one would delete the first one's checkpoints.

While a run goes on, its folder has a file `in_use.json` with host, process and time. On a local file system the process
also holds the kernel's lock on that file, which ends with the process however that ends: a killed run leaves the file
but not the lock, and the next run takes the folder over.
"""

import contextlib
import datetime
import fcntl
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from etils import epath

from promot_t5x.runtime import files, processes, strict_json

FILE = "in_use.json"


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
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        # In place: a file put in its place would not carry the lock.
        file.write_text(strict_json.dumps({"host": socket.gethostname(), "process": os.getpid(), "time": now}) + "\n")
    return refusal


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
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
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
    by = f"process {user['process']} on {user['host']} (since {user['time']})" if user else "another process"
    if alive:
        return f"{file.parent} is in use by {by}; wait until that run ends, or use a new MODEL_DIR."
    if not user or user["host"] == socket.gethostname() and (alive is False or not _is_alive(user["process"])):
        return ""
    return (
        f"{file.parent} is in use by {by}, of which this process, on {socket.gethostname()}, cannot tell whether it is "
        f"alive; use a new MODEL_DIR, or delete {file} if that run has ended."
    )


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
