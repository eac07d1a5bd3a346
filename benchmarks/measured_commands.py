"""Commands of promot-t5x under measurement: CPU seconds, wall seconds and memory at the lines that they write."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

# Whether this process runs commit 07b7e47: its working directory is the checkout.
IS_BEFORE = Path("promot_t5x/examples.py").exists()

# A command line under measurement: what it needs is imported first, then it says so.
_MODULES = ("train", "eval", "pipeline") if IS_BEFORE else ("training.stage_run", "recipes.running", "tasks.toy_world")
IMPORTED = "everything is imported"
_COMMAND = f"""
import sys
from promot_t5x import cli
import {", ".join(f"promot_t5x.{name}" for name in _MODULES)}
print({IMPORTED!r}, file=sys.stderr, flush=True)
sys.exit(cli.main())
"""


class Moment(NamedTuple):
    """Where a process was when it wrote a line: its CPU seconds, wall seconds and peak memory in GB."""

    cpu: float
    wall: float
    gigabytes: float


def command(arguments: list[str], *lines: str) -> list[Moment]:
    """Runs a verb of promot-t5x; returns the moments at which it wrote lines that contain these texts, and its end."""
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *arguments], stderr=subprocess.PIPE, text=True, cwd=os.getcwd()
    )
    moments: dict[str, Moment] = {}
    written: list[str] = []
    assert process.stderr is not None
    for line in process.stderr:
        written.append(line)
        for text in lines:
            if text in line and text not in moments:
                moments[text] = _moment(process.pid, began)
    _, status, used = os.wait4(process.pid, 0)
    if status or len(moments) < len(lines):
        raise RuntimeError(f"{arguments} ended with {status}: {''.join(written)[-3000:]}")
    end = Moment(used.ru_utime + used.ru_stime, time.monotonic() - began, used.ru_maxrss * 1024 / 1e9)
    return [*(moments[text] for text in lines), end]


def _moment(pid: int, began: float) -> Moment:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return Moment(cpu, time.monotonic() - began, int(status["VmHWM"].split()[0]) * 1024 / 1e9)
