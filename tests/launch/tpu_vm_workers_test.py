"""launch/tpu_vm.sh on a slice's workers: setup, runs, secrets, logs, stop."""

import json
import os
import shutil
import subprocess
from pathlib import Path

from tests.launch.fake_cloud import FAKE_WORKER_PYTHON, git
from tests.launch.programs import AWKWARD, write_program


def test_arguments_reach_every_worker_as_they_are(ready):
    ready.well("run", "--", *AWKWARD)
    for home, invocation in zip(ready.workers(), ready.invocations(), strict=True):
        assert invocation["argv"] == [*AWKWARD, "--multiprocess"]
        assert invocation["cwd"] == str(home / "promot_t5x" / "source")
        assert invocation["env"]["JAX_PLATFORMS"] == "tpu,cpu"


def test_setup_installs_what_was_committed(ready):
    for home in ready.workers():
        assert (home / "python.txt").read_text().splitlines()[-1] == (
            "python -m pip install --quiet --disable-pip-version-check --constraint source/constraints.txt"
            " --editable ./source[tpu]"
        )
        assert (home / "promot_t5x").stat().st_mode & 0o777 == 0o700
        assert sorted(file.name for file in (home / "promot_t5x" / "source").iterdir()) == ["constraints.txt", "launch"]
    (ready.checkout / "new.gin").touch()
    run = ready.run("setup")
    assert (run.returncode, run.stderr) == (0, "note: what is not committed is not copied\n")
    assert len(ready.calls()) == 2  # list and status
    git(ready.checkout, "add", "--all")
    git(ready.checkout, "commit", "--quiet", "--message=y")
    ready.version = git(ready.checkout, "rev-parse", "HEAD")
    assert f"my-tpu-w-1: set up at {ready.version}\n" in ready.well("setup")
    assert (ready.workers()[1] / "promot_t5x" / "source" / "new.gin").exists()
    made = [line for line in (ready.workers()[0] / "python.txt").read_text().splitlines() if "venv" in line]
    assert len(made) == 1  # the environment stays


def test_setup_continues_where_a_worker_is_new(ready):
    shutil.rmtree(ready.workers()[1])
    assert "not all set up at one version: 'setup' first" in ready.mistake("run", "--", "train")
    ready.well("setup")
    assert ready.well("status").count(f": idle at {ready.version}") == 2


def test_setup_without_a_python_that_fits(cloud):
    workers = cloud.folder / "worker_bin"
    (workers / "python3.12").rename(workers / "python_of_uv")
    for version in ("3.11", "3.12", "3.13"):
        write_program(workers / f"python{version}", "#!/bin/sh\nexit 1\n")
    is_expected = 'test "$*" = "venv --python 3.12 --seed venv"'
    uv = f'{is_expected} && mkdir -p venv/bin && cp "$(command -v python_of_uv)" venv/bin/python'
    write_program(workers / "uv", f"#!/bin/sh\n{uv}\n")
    install = 'mkdir -p "$UV_UNMANAGED_INSTALL"; cp "$(command -v uv)" "$UV_UNMANAGED_INSTALL"'
    write_program(workers / "curl", f"#!/bin/sh\ncat <<'END'\n{install}\nEND\n")
    cloud.well("up", FAKE_STATES="ACTIVE")
    cloud.well("setup")
    assert cloud.well("status").count(f": idle at {cloud.version}") == 2


def test_setup_that_fails_can_be_repeated(cloud):
    cloud.well("up", FAKE_STATES="ACTIVE")
    write_program(
        cloud.folder / "worker_bin" / "python3.12", FAKE_WORKER_PYTHON.replace('"$(dirname', '"/nowhere/$(dirname')
    )
    assert "not every worker is set up; what they said is above" in cloud.mistake("setup")
    assert "not all set up" in cloud.mistake("run", "--", "train")
    for home in cloud.workers():
        shutil.rmtree(home / "promot_t5x" / "venv")
    write_program(cloud.folder / "worker_bin" / "python3.12", FAKE_WORKER_PYTHON)
    cloud.well("setup")


def test_a_worker_that_is_not_reached(ready):
    broken = {"FAKE_BROKEN": "my-tpu-w-1"}
    assert "not every worker of my-tpu was reached" in ready.mistake("run", "--", "train", **broken)
    assert "not every worker of my-tpu was reached" in ready.mistake("setup", **broken)
    assert "not every worker was reached or stopped" in ready.mistake("stop", **broken)
    assert not (ready.workers()[0] / "asked.json").exists()


def test_secrets_travel_in_a_file_only(ready):
    env_file = ready.tmp / "keys.env"
    env_file.write_text("# keys\n\nHF_TOKEN=s3cret $HOME 'x' \"y\" `z`\nJAX_PLATFORMS=s3cret_too")
    env_file.chmod(0o644)
    run = ready.run("run", f"--env_file={env_file}", "--", "train")
    assert run.returncode == 0, run.stderr
    for invocation in ready.invocations():
        assert invocation["env"]["HF_TOKEN"] == "s3cret $HOME 'x' \"y\" `z`"
        assert invocation["env"]["JAX_PLATFORMS"] == "s3cret_too"
    assert "s3cret" not in json.dumps(
        [run.stdout, run.stderr, ready.calls(), [invocation["argv"] for invocation in ready.invocations()]]
    )
    assert (ready.folder / "copies.txt").read_text().splitlines()[-2:] == ["promot_t5x/env 600"] * 2
    files = [
        file for home in ready.workers() for file in home.rglob("*") if file.is_file() and file.name != "asked.json"
    ]
    assert len(files) > 10 and [file for file in files if b"s3cret" in file.read_bytes()] == []
    assert list(ready.tmp.glob("promot_t5x*")) == []
    ready.well("stop")
    for home in ready.workers():
        (home / "asked.json").unlink()
        (home / "promot_t5x" / "env").write_text("HF_TOKEN=left behind")
    ready.well("run", "--", "train")
    assert not any((home / "promot_t5x" / "env").exists() for home in ready.workers())
    assert all("HF_TOKEN" not in invocation["env"] for invocation in ready.invocations())


def test_an_env_file_that_is_not_one(cloud):
    env_file = cloud.tmp / "keys.env"
    env_file.write_text("A=1\nexport HF_TOKEN=s3cret\n")
    sentence = cloud.mistake("run", f"--env_file={env_file}", "--", "train")
    assert sentence == f"error: line 2 of --env_file={env_file} is not NAME=VALUE"


def test_logs_follow_until_the_run_ends(ready):
    assert "my-tpu-w-0 has no log: nothing was run yet" in ready.run("logs").stderr
    ready.well("run", "--", "train")
    ready.invocations()
    with subprocess.Popen(**ready.command("logs"), stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "step 1\n"
        ready.finish()
        rest, _ = logs.communicate(timeout=60)
    assert (logs.returncode, rest) == (0, f"step 2\nmy-tpu-w-0: ended with exit code 0 at {ready.version}\n")
    assert ready.well("logs", "--worker=1").splitlines()[:2] == ["step 1", "step 2"]


def test_a_run_survives_the_connection_and_stop_ends_all_of_it(ready):
    ready.well("run", "--", "train")
    ready.invocations()
    pids = [int((home / "promot_t5x" / "run.pid").read_text()) for home in ready.workers()]
    assert all(os.getsid(pid) == pid for pid in pids)
    assert "a run is going on my-tpu" in ready.mistake("run", "--", "train")
    ready.well("stop")
    assert not any(Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_text() for pid in pids)
    assert ready.well("status").count(": stopped or killed at ") == 2
    ready.well("run", "--", "train")
    assert [(home / "promot_t5x" / "run.previous.log").exists() for home in ready.workers()] == [True, True]


def test_several_slices(cloud):
    slices = {"PROMOT_TPU_SLICES": "2"}
    assert "my-tpu is ACTIVE: 2 slices of v4-16 (8 chips each).\n" in cloud.well("up", **slices)
    (create,) = [call for call in cloud.calls() if "create" in call]
    assert {"--node-count=2", "--node-prefix=my-tpu"} <= set(create)
    cloud.well("setup", **slices)
    cloud.well("run", "--", "train", **slices)
    for node in ("my-tpu-0", "my-tpu-1"):
        assert [invocation["argv"] for invocation in cloud.invocations(node)] == [["train", "--multiprocess"]] * 2
    cloud.calls()
    assert cloud.well("status", **slices).count(": running, process ") == 4
    cloud.well("stop", **slices)
    assert cloud.well("logs", "--slice=1", "--worker=1", **slices).endswith(
        f"my-tpu-1-w-1: stopped or killed at {cloud.version}\n"
    )
