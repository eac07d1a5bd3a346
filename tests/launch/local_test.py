"""launch/local.sh: processes on this machine."""

import json
import os
import re
import signal
import subprocess
from pathlib import Path

import pytest

from tests.launch.programs import AWKWARD, LAUNCH, ROOT, compare_with_golden, wait_for, write_program

FAKE_PYTHON = """
    #!python
    import json, os, signal, sys, time

    index = next((a.partition("=")[2] for a in sys.argv if a.startswith("--process_index=")), "0")
    folder = os.environ["FAKE_FOLDER"]

    def note(**what):
        with open(f"{folder}/{index}.jsonl", "a") as file:
            file.write(json.dumps(what) + "\\n")

    def leave(number, frame):
        note(signal=signal.Signals(number).name)
        sys.exit(3)

    signal.signal(signal.SIGINT, leave)
    signal.signal(signal.SIGTERM, leave)
    print(f"process {index} speaks", flush=True)
    note(argv=sys.argv[1:], env=dict(os.environ))
    if os.environ.get("FAKE_FAILS") == index:
        while len(os.listdir(folder)) < 3:
            time.sleep(0.02)
        sys.exit(7)
    if "FAKE_WAITS" in os.environ:
        time.sleep(60)
"""


class Local:
    """launch/local.sh with a program in place of Python that notes how it was called."""

    def __init__(self, tmp_path: Path):
        self.folder = tmp_path / "notes"
        self.folder.mkdir()
        self.python = tmp_path / "bin" / "python"
        write_program(self.python, FAKE_PYTHON)
        self.cwd = tmp_path
        self.env = {"PATH": os.environ["PATH"], "PYTHON": str(self.python), "FAKE_FOLDER": str(self.folder)}

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**self.env, **env}
        command = [str(LAUNCH / "local.sh"), *args]
        return subprocess.run(command, cwd=self.cwd, env=environment, capture_output=True, text=True, timeout=60)

    def notes(self, index: int) -> list[dict]:
        file = self.folder / f"{index}.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.fixture
def local(tmp_path) -> Local:
    return Local(tmp_path)


def test_one_process(local):
    run = local.run("--", *AWKWARD, XLA_FLAGS="--xla_a=1", PYTHONPATH="/elsewhere")
    assert (run.returncode, run.stdout, run.stderr) == (0, "process 0 speaks\n", "")
    (note,) = local.notes(0)
    assert note["argv"] == ["-m", "promot_t5x.cli", *AWKWARD]
    assert note["env"]["PYTHONPATH"] == f"{ROOT}:/elsewhere"
    assert (note["env"]["JAX_PLATFORMS"], note["env"]["XLA_FLAGS"]) == ("cpu", "--xla_a=1")


def test_one_process_with_several_devices(local):
    local.run("--devices=4", "--platform", "cpu", "--", "train", XLA_FLAGS="--xla_a=1 --xla_b=2")
    (note,) = local.notes(0)
    assert note["env"]["XLA_FLAGS"] == "--xla_a=1 --xla_b=2 --xla_force_host_platform_device_count=4"
    assert note["argv"] == ["-m", "promot_t5x.cli", "train"]


def test_several_processes(local):
    run = local.run("--processes", "3", "--devices", "2", "--port=12345", "--log_dir=logs", "--", *AWKWARD)
    assert (run.returncode, run.stdout, run.stderr) == (0, "process 0 speaks\n", "")
    for index in range(3):
        (note,) = local.notes(index)
        flags = ["--coordinator_address=127.0.0.1:12345", "--process_count=3", f"--process_index={index}"]
        assert note["argv"] == ["-m", "promot_t5x.cli", *AWKWARD, *flags]
        assert note["env"]["XLA_FLAGS"] == "--xla_force_host_platform_device_count=2"
    assert {log.name: log.read_text() for log in (local.cwd / "logs").iterdir()} == {
        "process_1.log": "process 1 speaks\n",
        "process_2.log": "process 2 speaks\n",
    }


def test_a_free_port_is_found(local):
    assert local.run("--processes=2", "--", "train").returncode == 0
    ports = {int(note["argv"][-3].rpartition(":")[2]) for index in range(2) for note in local.notes(index)}
    assert len(ports) == 1 and 20000 <= ports.pop() < 30000
    assert (local.cwd / "out" / "launch" / "process_1.log").exists()


@pytest.mark.parametrize("failing, where", [(0, "what it printed is above"), (2, "its log is logs/process_2.log")])
def test_a_process_that_fails_ends_the_others(local, failing, where):
    run = local.run("--processes=3", "--log_dir=logs", "--", "train", FAKE_FAILS=str(failing), FAKE_WAITS="1")
    assert run.returncode == 7
    assert run.stderr == f"error: process {failing} of 3 failed with exit code 7; {where}\n"
    for index in {0, 1, 2} - {failing}:
        assert local.notes(index)[-1] == {"signal": "SIGTERM"}


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_go_to_every_process(local, number, code):
    # A test run in the background may have been started deaf to SIGINT, which bash would hand on.
    command = ["env", "--default-signal=INT", str(LAUNCH / "local.sh"), "--processes=3", "--", "train"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, cwd=local.cwd, env={**local.env, "FAKE_WAITS": "1"}, text=True, **pipes) as process:
        wait_for(lambda: all(local.notes(index) for index in range(3)))
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (code, "")
    assert [local.notes(index)[-1] for index in range(3)] == [{"signal": number.name}] * 3


def visible_devices(run: subprocess.CompletedProcess[str]) -> list[str]:
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("JAX_PLATFORMS=cuda ") == len(run.stdout.splitlines())
    return re.findall(r"CUDA_VISIBLE_DEVICES=(\S+)", run.stdout)


def test_gpus_are_divided_among_processes(local):
    start = ["--platform=gpu", "--dry-run", "--processes=2", "--", "train"]
    assert visible_devices(local.run(*start, CUDA_VISIBLE_DEVICES="5,GPU-a,1,0")) == ["5,GPU-a", "1,0"]
    write_program(local.cwd / "smi" / "nvidia-smi", "#!/bin/sh\nprintf '0\\n1\\n2\\n3\\n'\n")
    assert visible_devices(local.run(*start, PATH=f"{local.cwd}/smi:{os.environ['PATH']}")) == ["0,1", "2,3"]
    run = local.run("--platform=gpu", "--dry-run", "--", "train", CUDA_VISIBLE_DEVICES="1")
    assert visible_devices(run) == []  # one process keeps what it is given


def test_local_dry_run(local, tmp_path):
    options = ["--processes=2", "--devices=4", "--port=1234", "--log_dir=my logs", "--dry-run"]
    run = local.run(*options, "--", *AWKWARD[:2], XLA_FLAGS="--xla_a=1")
    assert (run.returncode, run.stderr, local.notes(0)) == (0, "", [])
    compare_with_golden("local.txt", run.stdout.replace(str(ROOT), "ROOT").replace(str(tmp_path), "TMP"), tmp_path)
    line = run.stdout.splitlines()[1]  # what is printed can be typed
    subprocess.run(["bash", "-c", f"mkdir 'my logs' && {line}"], cwd=local.cwd, env=local.env, check=True, timeout=60)
    assert local.notes(1)[0]["argv"][2:4] == AWKWARD[:2]


@pytest.mark.parametrize(
    "args, sentence",
    [
        ([], "no verb of promot-t5x: write it after --"),
        (["train"], "unexpected argument 'train': promot-t5x's verb and flags come after --"),
        (["--device=2", "--", "train"], "unexpected argument '--device'"),
        (["--devices"], "--devices has no value: write --devices=VALUE"),
        (["--devices=", "--", "train"], "--devices has no value"),
        (["--devices=two", "--", "train"], "--devices=two is not a whole number of at least 1"),
        (["--processes=0", "--", "train"], "--processes=0 is not a whole number"),
        (["--platform=cuda", "--", "train"], "--platform=cuda is neither cpu nor gpu nor tpu"),
        (["--platform=gpu", "--devices=2", "--", "train"], "--devices divides a CPU: choose GPUs with CUDA_VISIBLE"),
        (["--platform=tpu", "--processes=2", "--", "train"], "on a TPU one process drives all chips"),
        (["--platform=gpu", "--processes=3", "--", "train"], "2 GPUs (0 1) do not divide among --processes=3"),
    ],
)
def test_local_mistakes(local, args, sentence):
    run = local.run(*args, CUDA_VISIBLE_DEVICES="0,1")
    assert run.returncode == 1 and run.stdout == ""
    assert run.stderr.startswith("error: ") and run.stderr.count("\n") == 1
    assert sentence in run.stderr


def test_missing_python(local):
    run = local.run("--", "train", PYTHON="/nowhere/python")
    assert (run.returncode, run.stderr) == (1, "error: PYTHON=/nowhere/python was not found\n")
