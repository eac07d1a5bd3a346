"""launch/tpu_vm.sh with a gcloud whose TPU workers are folders on this machine."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

from tests.launch.programs import wait_for, write_program

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
        folders = [f"{cloud}/{node}-w-{number}" for number in numbers]
        assert node in state["nodes"] and state["states"] == ["ACTIVE"], (node, state)
        for home in folders:
            os.makedirs(home, exist_ok=True)
        return folders

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
        """The calls of gcloud since this was last called."""
        file = self.folder / "calls.jsonl"
        lines = file.read_text().splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def workers(self, node: str = "my-tpu") -> list[Path]:
        return [self.folder / f"{node}-w-{number}" for number in range(2)]

    def invocations(self, node: str = "my-tpu") -> list[dict]:
        """The arguments, folder and environment of promot-t5x on each worker of a slice, as soon as it has started."""
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
