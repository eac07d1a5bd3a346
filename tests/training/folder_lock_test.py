"""promot_t5x.training.folder_lock: a folder holds one run at a time, a killed one is taken over at once."""

import contextlib
import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from promot_t5x.runtime import processes
from promot_t5x.training import folder_lock
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]

_HOLDER = """
import sys
from promot_t5x.training import folder_lock

with folder_lock.held(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""

_RUN = """
import sys
import jax
from promot_t5x.training import stage_run
from tests.training import tiny

jax.config.update("jax_disable_most_optimizations", True)
original = stage_run.training_batches.opened

def waiting(*args, **kwargs):
    def batches(start_batch):
        for number, batch in enumerate(opened(start_batch)):
            if number == 3:
                print("held", flush=True)
                sys.stdin.read()
            yield batch

    opened = original(*args, **kwargs)
    return batches

stage_run.training_batches.opened = waiting
with tiny.registered_task() as name:
    tiny.train(sys.argv[1], "fine_tuning", name)
"""


@contextlib.contextmanager
def _another_process(folder, program=_HOLDER):
    """A process that holds a folder until its standard input closes; stopped at the end if it still runs."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, str(folder)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and b"held\n" in process.stdout, "it ended early"
            yield process
        finally:
            process.kill()


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(folder_lock.fcntl, "flock", flock)


def _take(folder):
    with folder_lock.held(folder):
        assert json.loads((folder / folder_lock.FILE).read_text())["process"] == os.getpid()


def _refused(folder) -> str:
    with pytest.raises(ValueError) as raised, folder_lock.held(folder):
        raise AssertionError("two processes hold one folder")
    return str(raised.value)


def test_of_two_processes_the_second_is_refused(tmp_path):
    folder = tmp_path / "run"
    with _another_process(folder) as process:
        user = json.loads((folder / folder_lock.FILE).read_text())
        assert (user["host"], user["process"]) == (socket.gethostname(), process.pid)
        by = rf"process {process.pid} on {user['host']}"
        assert re.match(rf"{re.escape(str(folder))} is in use by {by}; wait", _refused(folder))
        assert json.loads((folder / folder_lock.FILE).read_text()) == user, "a refused run changes nothing"
        process.communicate()  # closes its input
    assert process.returncode == 0 and not folder.exists(), "it had made the folder and left nothing in it"


def _check_killed(folder):
    with _another_process(folder) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert (folder / folder_lock.FILE).exists(), "the killed process left its file"
    _take(folder)


def test_a_killed_process_is_taken_over(tmp_path):
    _check_killed(tmp_path / "run")


def test_without_locks_the_process_itself_is_looked_for(tmp_path, no_locks):
    """The other process has the kernel's lock; this one must not need it."""
    with _another_process(tmp_path / "run") as process:
        assert f"in use by process {process.pid} on {socket.gethostname()}; wait" in _refused(tmp_path / "run")
    _check_killed(tmp_path / "run")


@pytest.fixture(params=[True, False], ids=["locks", "no locks"])
def file_of_another_host(request, tmp_path):
    """The file of a run on another host, on a file system with locks and on one without."""
    if not request.param:
        request.getfixturevalue("no_locks")
    file = tmp_path / folder_lock.FILE
    file.write_text('{"host": "elsewhere", "process": 7, "time": "2026-01-02T03:04:05"}')
    return file


def test_a_run_on_another_host_is_taken_over_once_its_file_stops_changing(file_of_another_host, monkeypatch):
    """As after a preemption, when the same command is started on a new machine."""
    monkeypatch.setattr(folder_lock, "_BEAT", 0.05)
    monkeypatch.setattr(folder_lock, "_DEAD", 0.5)
    began = time.monotonic()
    _take(file_of_another_host.parent)
    assert time.monotonic() - began >= 0.5, "it was given the time to show that it is alive"


def test_a_run_on_another_host_is_alive_while_its_file_changes(file_of_another_host, monkeypatch):
    file, folder = file_of_another_host, file_of_another_host.parent
    monkeypatch.setattr(folder_lock, "_BEAT", 0.2)
    monkeypatch.setattr(folder_lock, "_DEAD", 30.0)
    beat = threading.Timer(0.5, file.write_text, ['{"host": "elsewhere", "process": 7, "time": "2026-01-02T03:04:20"}'])
    beat.start()
    assert _refused(folder).startswith(f"{folder} is in use by process 7 on elsewhere; wait")
    beat.join()
    threading.Timer(0.5, file.unlink).start()
    _take(folder)  # it has ended


def test_a_run_writes_its_file_again_and_again(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_lock, "_BEAT", 0.05)
    file = tmp_path / folder_lock.FILE
    with folder_lock.held(tmp_path):
        first = file.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while file.stat().st_mtime_ns == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert not file.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"host": 3}', b"\xff", b"[" * 5000])
def test_a_damaged_file_of_a_killed_process_is_no_obstacle(content, tmp_path):
    (tmp_path / folder_lock.FILE).write_bytes(content)
    _take(tmp_path)
    assert not (tmp_path / folder_lock.FILE).exists()


def test_an_error_frees_the_folder(tmp_path):
    for _ in range(2):
        with pytest.raises(KeyError), folder_lock.held(tmp_path / "run"):
            raise KeyError
    with folder_lock.held(tmp_path / "run"):
        (tmp_path / "run" / "metrics.jsonl").touch()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["metrics.jsonl"]


def test_of_several_processes_process_0_decides(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "speaks", lambda: False)
    with folder_lock.held(tmp_path / "run"):
        assert not (tmp_path / "run").exists()
    monkeypatch.setattr(processes, "agreed", lambda refused: True)
    assert _refused(tmp_path / "run").startswith(f"{tmp_path / 'run'} is in use")


def test_of_two_runs_in_one_folder_the_second_is_refused_and_the_first_ends_well(tmp_path, quick_compilation):
    run = tmp_path / "run"
    with tiny.registered_task() as task:
        with _another_process(run, _RUN) as process:
            written = [run / name for name in (folder_lock.FILE, "settings.json")]
            before = [path.stat().st_mtime_ns for path in written]
            with pytest.raises(ValueError, match=f"{re.escape(str(run))} is in use by process {process.pid} on"):
                tiny.train(run, "fine_tuning", task)
            assert [path.stat().st_mtime_ns for path in written] == before
            process.communicate()
        assert process.returncode == 0 and json.loads((run / "finished.json").read_text())["best_step"] == 6
        assert not (run / folder_lock.FILE).exists()
        assert tiny.train(run, "fine_tuning", task).best_step == 6, "the finished run's result"
