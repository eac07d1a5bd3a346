"""Files: one way to name them, and to write them whole or not at all."""

import contextlib
import errno
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from etils import epath

from promot_t5x.runtime import processes

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(OSError):
    """A file that was not written for want of room; the launcher shows its sentence without a traceback."""


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """A path that means the same from any working folder, as Orbax demands; one in a bucket (gs://…) stays as it is.

    >>> absolute("gs://bucket/run/")
    PosixGPath('gs://bucket/run')
    """
    # epath's own resolve() would take gs://bucket for a folder here.
    return epath.Path(path) if "://" in str(path) else epath.Path(path).expanduser().resolve()


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A stream whose file is there once all was written: a reader sees the old bytes or the new ones, never a part.

    The path may be local or in a bucket (gs://…); missing folders are made.

    Raises:
      NoRoomError: the disk is full; what stood there before is unchanged.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            yield cast(BinaryIO, stream)
            stream.flush()
            if "://" not in os.fspath(path):
                os.fsync(stream.fileno())  # a full disk may show only here
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            what = f"{target} could not be written ({error.strerror}); make room, what stood there before is unchanged."
            raise NoRoomError(error.errno, what) from error
        raise


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file as `whole_file` does; of several processes only the first writes."""
    if processes.speaks():
        with whole_file(path) as stream:
            stream.write(data)


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes results as JSON, as a whole or not at all (see `write_whole`); equal results give equal bytes.

    Raises:
      ValueError: a value is not finite or not JSON.
    """
    try:
        text = json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{os.fspath(path)} was not written: the results hold a value without JSON: {error}."
        ) from error
    write_whole(path, (text + "\n").encode())
