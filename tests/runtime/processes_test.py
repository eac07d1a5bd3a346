"""promot_t5x.runtime.processes: the roll call, missing processes, strangers at the port, and a joint start."""

import concurrent.futures
import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from promot_t5x.runtime import processes
from promot_t5x.runtime.processes import Processes
from promot_t5x.runtime.roll_call import roll_call

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _called(port, count, indices, timeout, delays=()):
    """What each process gets, by its index: None, or the sentence of its error."""

    def call(index, delay):
        time.sleep(delay)
        try:
            return roll_call(f"127.0.0.1:{port}", count, index, timeout)
        except (TimeoutError, ValueError) as error:
            return str(error)

    delays = delays or (0.0,) * len(indices)
    with concurrent.futures.ThreadPoolExecutor(len(indices)) as pool:
        return dict(zip(indices, pool.map(call, indices, delays), strict=True))


def _connected(port):
    """A plain connection to process 0, as soon as it listens."""
    deadline = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port), timeout=5)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)


# The roll call


@pytest.mark.parametrize("delays", [(0, 0, 0, 0), (0.6, 0, 0.1, 0.3), (0, 0.5, 0.2, 0)], ids=str)
def test_all_join(port, delays):
    started = time.monotonic()
    assert _called(port, 4, (0, 1, 2, 3), 20, delays) == dict.fromkeys(range(4))
    assert time.monotonic() - started < 5
    # The port is JAX's from now on.
    with socket.create_server(("", port)):
        pass


def test_a_run_of_one_process_waits_for_nobody(port):
    assert _called(port, 1, (0,), 20) == {0: None}


def test_all_who_joined_learn_who_is_missing(port):
    sentence = (
        "Only 3 of 5 processes joined within 1.5 s; missing: 1, 3; look at their logs, or raise --multiprocess_timeout."
    )
    assert _called(port, 5, (0, 2, 4), 1.5) == dict.fromkeys((0, 2, 4), sentence)


def test_nobody_else_joined(port):
    messages = _called(port, 3, (0,), 0.5)
    assert messages[0].startswith("Only 1 of 3 processes joined within 0.5 s; missing: 1, 2;")


def test_process_0_is_missing(port):
    sentence = (
        "Process {} could not reach process 0 at 127.0.0.1:{} within 0.5 s: check that it is running and that the port "
        "is open between the machines."
    )
    assert _called(port, 3, (1, 2), 0.5) == {index: sentence.format(index, port) for index in (1, 2)}


def test_a_host_that_does_not_exist():
    with pytest.raises(TimeoutError, match=r"^Process 1 could not reach process 0 at no.such.host.invalid:1234 within"):
        roll_call("no.such.host.invalid:1234", 2, 1, 0.3)


def test_a_port_that_is_taken(port):
    with socket.create_server(("", port)):
        messages = _called(port, 2, (0,), 5)
    assert messages[0].startswith(f"Process 0 cannot listen on port {port} (Address already in use")
    assert messages[0].endswith("; choose another one.")


def test_strangers_at_the_port(port):
    """Scanners and health checks send anything, or nothing and stay connected: they neither count nor delay anyone."""
    payloads = (
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\xff\xfe\n",
        b"0\n",
        b"1",
        b"3\n",
        b"-1\n",
        b"\n",
        b"1" * 100,
        b"2",
        b"",
    )
    with contextlib.ExitStack() as stack, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_called, port, 3, (0,), 60)
        for number, payload in enumerate(payloads):
            other = stack.enter_context(_connected(port))
            other.sendall(payload)
            if number % 3 == 0:
                other.close()
        started = time.monotonic()
        assert _called(port, 3, (1, 2), 60) == {1: None, 2: None}
        assert waiting.result() == {0: None}
        assert time.monotonic() - started < 9, "each connection is waited for in vain for ten seconds at most"


def test_a_number_that_comes_in_two_pieces(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_called, port, 13, (0, *range(1, 12)), 20)
        with _connected(port) as last:
            last.sendall(b"1")
            time.sleep(0.3)
            last.sendall(b"2\n")
            assert last.makefile().readline() == "[]\n"
        assert waiting.result() == dict.fromkeys(range(12))


def test_a_process_that_leaves_early_does_not_stop_the_others(port):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(_called, port, 3, (0, 2), 20, (0, 1))
        with _connected(port) as gone:
            gone.sendall(b"1\n")
        assert waiting.result() == {0: None, 2: None}


# Arguments


@pytest.mark.parametrize(
    "arguments",
    [("host:1", 2, None), ("host:1", None, 0), (None, 2, 0), ("host:1", None, None), (None, None, 1), (None, 3, None)],
    ids=str,
)
def test_all_three_or_none(arguments):
    with pytest.raises(ValueError) as error:
        Processes(*arguments)
    assert str(error.value) == (
        "Several processes need all of --coordinator_address, --process_count and --process_index, or --multiprocess "
        "alone where the cluster knows them."
    )


@pytest.mark.parametrize("arguments", [("host", 2, 0), ("host:1", 2, 2), ("host:1", 2, -1), ("host:1", 0, 0)], ids=str)
def test_impossible_processes(arguments):
    with pytest.raises(ValueError) as error:
        Processes(*arguments)
    assert str(error.value) == (
        f"--coordinator_address={arguments[0]} --process_count={arguments[1]} --process_index={arguments[2]}: expected "
        "HOST:PORT and an index from 0 to the count minus one."
    )


def test_timeouts():
    assert Processes().timeout == 300 and Processes(timeout=1).timeout == 1
    assert Processes("host:1", 2, 1, 5) == Processes("host:1", count=2, index=1, timeout=5)
    with pytest.raises(ValueError, match=r"^--multiprocess_timeout is 0: expected at least 1 second.$"):
        Processes(timeout=0)


def test_one_process_prints_and_agrees_with_itself():
    processes.start(None)
    assert not jax.distributed.is_initialized() and processes.speaks()
    processes.barrier("nobody else")
    assert processes.agreed({"exists": True}) == {"exists": True}


def test_a_cluster_that_does_not_say_who_takes_part(monkeypatch):
    from jax._src.clusters import cluster  # what `start` asks

    def nobody(*args):
        return args[:4]

    def broken(*args):
        raise RuntimeError("no answer")

    sentence = (
        "--multiprocess: the cluster does not say which processes take part; give --coordinator_address, "
        "--process_count and --process_index"
    )
    for detect, more in ((nobody, "."), (broken, " (RuntimeError: no answer).")):
        monkeypatch.setattr(cluster.ClusterEnv, "auto_detect_unset_distributed_params", detect)
        with pytest.raises(ValueError) as error:
            processes.start(Processes(timeout=1))
        assert str(error.value) == sentence + more
    assert not jax.distributed.is_initialized()


# Processes


_ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
_ENVIRONMENT.pop("PROMOT_TRACEBACK", None)


def test_a_process_that_is_left_alone(port, tmp_path):
    """Through the command: one sentence and exit code 1, before any gin file is read."""
    argv = [f"--coordinator_address=127.0.0.1:{port}", "--process_count=2", "--process_index=1"]
    code = "import sys; from promot_t5x import cli; sys.exit(cli.main())"
    command = [sys.executable, "-c", code, "train", *argv, "--multiprocess_timeout=2", "--gin_file=absent.gin"]
    run = subprocess.run(command, cwd=tmp_path, env=_ENVIRONMENT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 1 and run.stdout == "" and "Traceback" not in run.stderr
    assert [line for line in run.stderr.splitlines() if line.startswith("error: ")] == [
        f"error: Process 1 could not reach process 0 at 127.0.0.1:{port} within 2 s: check that it is running and that "
        "the port is open between the machines."
    ]


_PROGRAM = """
import sys
from promot_t5x.configuration import program
from promot_t5x.runtime import files, processes

def main(argv):
    address, index, folder = argv
    processes.start(processes.Processes(address, 2, int(index), timeout=60))
    processes.start(processes.Processes(address, 2, int(index), timeout=60))  # a second time changes nothing
    print("printed by", index)
    files.write_json(f"{folder}/record.json", {"by": index})
    processes.barrier("written")
    with open(f"{folder}/record.json") as stream:
        seen = stream.read()
    agreed = processes.agreed(10 + int(index))
    with open(f"{folder}/{index}.txt", "w") as stream:
        stream.write(f"{processes.speaks()} {int(agreed)} {seen.split()}")
    if index == "1":
        raise ValueError("a mistake of process 1")

sys.exit(program.run_main(main))
"""


def test_of_two_processes_one_prints(port, tmp_path):
    commands = [[sys.executable, "-c", _PROGRAM, f"127.0.0.1:{port}", str(i), str(tmp_path)] for i in range(2)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(command, env=_ENVIRONMENT, text=True, **pipes) for command in commands]
    outputs = [process.communicate(timeout=120) for process in running]
    assert [process.returncode for process in running] == [0, 1], outputs[0][1][-2000:]
    # The CPU's collectives print from C++, past Python.
    printed = [[line for line in out.splitlines() if not line.startswith("[Gloo]")] for out, _ in outputs]
    assert printed == [["printed by 0"], []]
    assert "process 0 of 2, 1 of 2 devices" in outputs[0][1] and "of 2 devices" not in outputs[1][1]
    assert "error: a mistake of process 1" in outputs[1][1]
    notes = [(tmp_path / f"{i}.txt").read_text() for i in range(2)]
    record = (tmp_path / "record.json").read_text()
    assert json.loads(record) == {"by": "0"}
    assert notes == [f"True 10 {record.split()}", f"False 10 {record.split()}"]
