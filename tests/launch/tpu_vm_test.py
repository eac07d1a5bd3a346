"""launch/tpu_vm.sh: the life of a slice, its types, and mistakes reported before anything is made."""

import re
import shlex
import shutil
import subprocess

import pytest

from tests.launch.programs import AWKWARD, compare_with_golden


def test_life_of_a_slice(cloud, tmp_path):
    transcript = []

    def tell(*args: str) -> None:
        run = subprocess.run(
            **cloud.command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        transcript.append(f"$ launch/tpu_vm.sh {shlex.join(args)}\n{run.stdout}")
        if run.returncode:
            transcript.append(f"(exit code {run.returncode})\n")
        transcript.extend(f"  gcloud {shlex.join(call)}\n" for call in cloud.calls())
        transcript.append("\n")

    tell("status")
    tell("run", "--", "train")
    tell("up")
    tell("up")
    tell("run", "--", "train")
    tell("setup")
    tell("setup")
    tell("run", "--", "train", "--gin_file=my.gin", "--gin.TASK_FEATURE_LENGTHS={'inputs': 512}")
    cloud.invocations()
    tell("run", "--", "train")
    tell("setup")
    tell("status")
    tell("stop")
    tell("stop")
    tell("logs", "--worker=1")
    tell("run", "--", "fail")
    cloud.invocations()
    cloud.finish()
    cloud.calls()
    tell("status")
    tell("down")
    tell("down")
    tell("stop")
    text = re.sub(r"'--format=csv\S*'", "--format=...", cloud.normal("".join(transcript)))  # tpu_vm.txt has it in full
    compare_with_golden("life_of_a_slice.txt", text, tmp_path)
    assert list(tmp_path.glob("promot_t5x.*")) == []  # what was made to be copied is gone


def test_tpu_dry_run(cloud, tmp_path):
    env_file = tmp_path / "keys.env"
    env_file.write_text("HF_TOKEN=s3cret\n")
    transcript = []
    for args in (
        ["up", "--spot"],
        ["up", "--type=v4:4x4x4", "--slices=2", "--project=my-project", "--reserved"],
        ["setup", "--slices=2"],
        ["run", f"--env_file={env_file}", "--", *AWKWARD[:3]],
        ["logs", "--slices=2", "--slice=1", "--worker", "3"],
        ["status"],
        ["stop"],
        ["down"],
    ):
        transcript.append(f"$ launch/tpu_vm.sh {shlex.join(args)}\n{cloud.well('--dry-run', *args)}\n")
    assert cloud.calls() == []
    assert list(tmp_path.glob("promot_t5x*")) == []
    compare_with_golden("tpu_vm.txt", cloud.normal("".join(transcript)), tmp_path)
    assert "s3cret" not in "".join(transcript)


@pytest.mark.parametrize(
    "kind, flags, version, size",
    [
        ("v2-8", ["--accelerator-type=v2-8"], "tpu-ubuntu2204-base", "v2-8 (4 chips)"),
        ("v3-32", ["--accelerator-type=v3-32"], "tpu-ubuntu2204-base", "v3-32 (16 chips)"),
        ("v4-128", ["--accelerator-type=v4-128"], "tpu-ubuntu2204-base", "v4-128 (64 chips)"),
        ("v4:4x4x4", ["--type=v4", "--topology=4x4x4"], "tpu-ubuntu2204-base", "v4-128 (64 chips)"),
        ("v5litepod-32", ["--accelerator-type=v5litepod-32"], "v2-alpha-tpuv5-lite", "v5litepod-32 (32 chips)"),
        ("v5p-128", ["--accelerator-type=v5p-128"], "v2-alpha-tpuv5", "v5p-128 (64 chips)"),
        ("v6e-32", ["--accelerator-type=v6e-32"], "v2-alpha-tpuv6e", "v6e-32 (32 chips)"),
    ],
)
def test_types(cloud, kind, flags, version, size):
    stdout = cloud.well("up", "--dry-run", f"--type={kind}")
    assert f"# Asking for {size} as my-tpu in us-central2-b.\n" in stdout
    (create,) = [shlex.split(line) for line in stdout.splitlines() if " create " in line]
    assert create[6:] == ["--zone=us-central2-b", *flags, "--node-id=my-tpu", f"--runtime-version={version}"]
    own = cloud.well("up", "--dry-run", f"--type={kind}", PROMOT_TPU_VERSION="mine")
    assert "--runtime-version=mine" in own and version not in own


@pytest.mark.parametrize(
    "args, sentence",
    [
        ([], "no sub-command: up, setup, run, logs, status, stop or down"),
        (["upp"], "no sub-command 'upp'"),
        (["up", "down"], "unexpected argument 'down'"),
        (["up", "--tpye=v4-8"], "unknown flag --tpye"),
        (["up", "--name="], "--name has no value: write --name=VALUE"),
        (["up", "--spot", "--reserved"], "--spot and --reserved exclude each other"),
        (["up", "--slices=two"], "--slices=two is not a whole number of at least 1"),
        (["logs", "--slice=1"], "--slice=1 is not a slice's number: with --slices=1 they are 0 to 0"),
        (["logs", "--worker=all"], "--worker=all is not a worker's number"),
        (["up", "--type=v9-8"], "--type=v9-8: TPU VMs are v2, v3, v4, v5p, v5litepod or v6e"),
        (["up", "--type=v4"], "--type=v4 has no size: write for example v4-128 (64 chips)"),
        (["up", "--type=v4-7"], "--type=v4-7 has no size"),
        (["up", "--type=v4:4x4xx4"], "--type=v4:4x4xx4 has no size"),
        (["up", "--type=v5e-32"], "Google Cloud's name for it is --type=v5litepod-32"),
        (["up", "--type=v5p:4x4x4"], "gcloud takes topologies of v4 only; 64 chips are --type=v5p-128"),
        (["up", "--type=v5e:4x8"], "gcloud takes topologies of v4 only; 32 chips are --type=v5litepod-32"),
        (["run"], "no verb of promot-t5x: write it after --"),
        (["run", "--env_file=/nowhere", "--", "train"], "--env_file=/nowhere is not a file that can be read"),
        (["setup"], "there is no queued resource my-tpu in us-central2-b: 'up' creates it"),
        (["logs"], "there is no queued resource my-tpu"),
    ],
)
def test_tpu_mistakes(cloud, args, sentence):
    assert sentence in cloud.mistake(*args)
    assert all(call[3] == "list" for call in cloud.calls())


@pytest.mark.parametrize("name, flag", [("NAME", "--name"), ("ZONE", "--zone"), ("TYPE", "--type")])
def test_settings_that_are_missing(cloud, name, flag):
    assert f"give {flag}={name} or set PROMOT_TPU_{name}" in cloud.mistake("up", **{f"PROMOT_TPU_{name}": ""})


def test_missing_gcloud(cloud):
    few = cloud.tmp / "few"
    few.mkdir()
    for program in ("bash", "env", "dirname"):
        (few / program).symlink_to(str(shutil.which(program)))
    assert "gcloud was not found: install the Google Cloud CLI" in cloud.mistake("up", PATH=str(few))
    assert "queued-resources create my-tpu" in cloud.well("up", "--dry-run", PATH=str(few))


def test_gcloud_that_refuses(cloud):
    for command in (["up"], ["status"], ["down"], ["run", "--", "train"]):
        assert "gcloud could not list the queued resources in us-central2-b" in cloud.mistake(*command, FAKE_DENIES="1")


@pytest.mark.parametrize(
    "state, sentence",
    [
        ("FAILED", "queued resource my-tpu is FAILED and stays so: 'down', then 'up' again"),
        ("SUSPENDED", "queued resource my-tpu is SUSPENDED and stays so"),
        ("DELETING", "queued resource my-tpu is being deleted: 'up' again when 'status' finds none"),
    ],
)
def test_a_queued_resource_that_will_not_come(cloud, state, sentence):
    assert sentence in cloud.mistake("up", FAKE_STATES=f"WAITING_FOR_RESOURCES,{state}")
    assert sentence in cloud.mistake("up")  # not made twice
    assert f"queued resource my-tpu is {state}, expected ACTIVE" in cloud.mistake("setup")
    assert f"is {state}" in cloud.well("stop")


def test_another_type_is_not_reused(cloud):
    cloud.well("up", FAKE_STATES="ACTIVE")
    assert "my-tpu is of --type=v4-16, not v4-32: take 'down' first" in cloud.mistake("up", "--type=v4-32")
    cloud.well("down")
    cloud.well("up", "--type=v4:2x2x2", FAKE_STATES="ACTIVE")
    assert "my-tpu is of --type=v4:2x2x2, not v4:2x2x4" in cloud.mistake("up", "--type=v4:2x2x4")
    cloud.well("up", "--type=v4:2x2x2")
