"""Files: absolute paths, atomic writes, JSON, and hashes of contents."""

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, cast

from absl import logging
from etils import epath

from promot_t5x.runtime import processes, strict_json

_LFS_POINTER = b"version https://git-lfs.github.com/spec/"

_PACKAGE = epath.Path(__file__).resolve().parents[1]

_DEMO_CHECKPOINT = "promot_t5x/demo_checkpoint"

_UNSETTLED = 2.0  # seconds after a change in which another one may leave the file's time as it is

_told: set[epath.Path] = set()  # the hashes of which a line said that they cannot be saved

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class NoRoomError(OSError):
    """A file could not be written because the disk is full; the launcher shows the sentence without a traceback."""


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """A path that means the same from any working folder, as Orbax demands; one in a bucket (gs://…) stays as it is.

    `promot_t5x/demo_checkpoint` is the one in the package, from any working folder.

    Raises:
      ValueError: an empty path, which would be the working folder, or an address such as http://….

    >>> absolute("gs://bucket/run/")
    PosixGPath('gs://bucket/run')
    """
    if not os.fspath(path):
        raise ValueError(
            "An empty path was given where a file or folder is expected; give its path, '.' for this folder."
        )
    if os.path.normpath(path) == _DEMO_CHECKPOINT:
        return _PACKAGE.parent / _DEMO_CHECKPOINT
    if "://" not in str(path):  # epath's own resolve() would take gs://bucket for a folder here
        return epath.Path(path).expanduser().resolve()
    try:
        return epath.Path(path)
    except KeyError as error:
        raise ValueError(
            f"{os.fspath(path)} is no path: expected a local one, or one in a bucket (gs://…); download it first."
        ) from error


def writable_folder(path: str | os.PathLike[str], name: str) -> epath.Path:
    """The absolute path of a folder for results, checked before the work that they come from; nothing is created.

    Args:
      path: the folder; it may be missing.
      name: the flag or macro that gives it.

    Raises:
      ValueError: the folder, or one above it, is a file.
      OSError: it can be neither created nor written to.
    """
    folder = absolute(path)
    if "://" in os.fspath(folder):
        folder.exists()  # raises if the bucket cannot be reached
        return folder
    there = _existing(folder)
    if not there.is_dir():
        raise ValueError(f"{name} is {os.fspath(path)}, but {there} is a file, expected a folder; give another path.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(there))
    return folder


def writable_file(path: str | os.PathLike[str], name: str) -> epath.Path:
    """The absolute path of a file to write, checked as by `writable_folder`.

    Raises:
      ValueError: it is a folder, or a folder above it is a file.
      OSError: it cannot be written.
    """
    file = absolute(path)
    writable_folder(file.parent, name)
    if file.is_dir():
        raise ValueError(f"{name} is to write {file}, which is a folder; give another path, or delete the folder.")
    if "://" not in os.fspath(file):
        _existing(file)
    return file


def _existing(path: epath.Path) -> epath.Path:
    """The path itself, or the nearest one above it that exists.

    Raises:
      OSError: it cannot exist, as one of its names is too long, or may not be looked at.
    """
    missing: list[str] = []
    for there in (path, *path.parents):
        try:
            os.stat(there)
        except (FileNotFoundError, NotADirectoryError):
            missing.append(there.name)
            continue
        if any(len(os.fsencode(name)) > os.pathconf(there, "PC_NAME_MAX") for name in missing):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), str(path))
        return there
    return path


def check_not_lfs_pointer(path: str | os.PathLike[str]) -> None:
    """Checks that a file is not the pointer that git-lfs leaves in place of a file that was not downloaded.

    Raises:
      ValueError: it is such a pointer.
    """
    if not absolute(path).is_file():  # whoever opens it says so
        return
    with absolute(path).open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise ValueError(
            f"{os.fspath(path)} is a git-lfs pointer, the file itself was not downloaded: run `git lfs pull` in its "
            "folder."
        )


def read_json(path: str | os.PathLike[str], advice: str = "copy it again") -> dict[str, Any]:
    """The JSON object in a file, local or in a bucket.

    Args:
      path: the file.
      advice: what to do if it is damaged, for the error.

    Raises:
      FileNotFoundError: the file does not exist.
      ValueError: it is a git-lfs pointer, is not JSON, or is not a JSON object.
    """
    check_not_lfs_pointer(path)
    try:
        values = strict_json.loads(epath.Path(path).read_bytes())
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)} is damaged, it is not JSON ({error}); {advice}.") from error
    if not isinstance(values, dict):
        raise ValueError(f"{os.fspath(path)} is damaged, it is not a JSON object; {advice}.")
    return values


def cache_folder() -> epath.Path:
    """The folder of what is kept between runs because it takes long to make, $PROMOT_CACHE or ~/.cache/promot_t5x."""
    return epath.Path(os.environ.get("PROMOT_CACHE", "~/.cache/promot_t5x")).expanduser()


def content_hash(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, local or in a bucket.

    It is computed once and kept in the cache folder, together with what tells that the file is the same: its path, size
    and time; and on a local disk its inode and the time of change, which no copying tool sets.

    Raises:
      OSError: the file does not exist or cannot be read.
    """
    file = absolute(path)
    stat = file.stat()
    key = {"path": os.fspath(file), "size": stat.length, "time": float(stat.mtime)}
    if "://" not in os.fspath(file):
        local = os.stat(file)
        key |= {"time": local.st_mtime, "changed": local.st_ctime_ns, "inode": local.st_ino}
    settled = max(key["time"], key.get("changed", 0) / 1e9)
    kept = cache_folder() / "hashes" / f"{hashlib.sha256(os.fspath(file).encode()).hexdigest()[:32]}.json"
    try:
        remembered = read_json(kept)
        if {name: remembered.get(name) for name in key} == key:
            return str(remembered["sha256"])
    except (OSError, ValueError, KeyError):
        pass
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while part := stream.read(2**24):
            digest.update(part)
    content = digest.hexdigest()
    if 0 < settled < time.time() - _UNSETTLED:
        try:
            with whole_file(kept) as stream:
                stream.write(strict_json.dumps({**key, "sha256": content}).encode())
        except OSError as error:
            if kept not in _told:
                _told.add(kept)
                reason = "%s could not be saved (%s), so %s is hashed again; set PROMOT_CACHE"
                logging.warning(reason, kept, error, file)
    return content


@contextlib.contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Opens a file for atomic writing: readers see the old contents or the complete new ones.

    The path may be local or in a bucket (gs://…); missing folders are created.

    Raises:
      NoRoomError: the disk is full; the old contents are unchanged.
    """
    target = epath.Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        with temporary.open("wb") as stream:
            yield cast(BinaryIO, stream)
            stream.flush()
            if "://" not in os.fspath(path):
                os.fsync(stream.fileno())  # a full disk may only be reported here
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM:
            sentence = f"{target} could not be written ({error.strerror}); make room, its old contents are unchanged."
            raise NoRoomError(error.errno, sentence) from error
        raise


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes a file atomically, see `whole_file`; with several processes only the first one writes."""
    if processes.speaks():
        with whole_file(path) as stream:
            stream.write(data)


def write_json(path: str | os.PathLike[str], results: Mapping[str, Any]) -> None:
    """Writes results as JSON, atomically (see `write_whole`); equal results give equal bytes.

    Raises:
      ValueError: a value is not finite or has no JSON form.
    """
    try:
        text = strict_json.dumps(results, indent=2)
    except ValueError as error:
        raise ValueError(
            f"{os.fspath(path)} was not written: the results hold a value that JSON does not have ({error})."
        ) from error
    write_whole(path, (text + "\n").encode())
