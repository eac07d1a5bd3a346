"""TensorFlow's notices are hidden, whichever command imports it first; errors and other output are not."""

import os
import subprocess
import sys

import pytest

NOTICES = """\
WARNING: All log messages before absl::InitializeLog() is called are written to STDERR
I0000 00:00:1795786216.484121   22394 port.cc:153] oneDNN custom operations are on.
W0000 00:00:1795786216.484121   22394 cudart_stub.cc:31] Could not find cuda drivers on your machine.
"""
ERROR = "E0000 00:00:1795786216.484121   22394 cuda.cc:1] failed call to cuInit\n"


def _stderr(code, folder):
    environment = {**os.environ, "PYTHONPATH": f"{folder}:{os.getcwd()}"}
    command = [sys.executable, "-c", f"from promot_t5x.configuration import quiet_imports\n{code}"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stderr


@pytest.fixture
def package(tmp_path):
    """A module of TensorFlow's name that writes to the file descriptor, as C++ does."""
    (tmp_path / "tensorflow.py").write_text(f"import os\nos.write(2, {NOTICES + ERROR!r}.encode())\nname = 1\n")
    return tmp_path


def test_notices_are_hidden_and_errors_are_not(package):
    code = "quiet_imports.hide_notices()\nquiet_imports.hide_notices()\nimport tensorflow\nassert tensorflow.name == 1"
    assert _stderr(code, package) == ERROR
    assert _stderr("import tensorflow", package) == NOTICES + ERROR


def test_a_failing_import_keeps_its_traceback(package):
    (package / "tensorflow.py").write_text("raise ImportError('no such library')")
    assert "ImportError: no such library" in _stderr("quiet_imports.hide_notices()\nimport tensorflow", package)


@pytest.mark.parametrize("argv", [["eval", "--list"], ["train", "--gin_file=models/toy.gin", "--dry_run"]])
def test_commands_start_without_foreign_lines(argv):
    command = [sys.executable, "-m", "promot_t5x.cli", *argv]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    assert not [line for line in completed.stderr.splitlines() if not line.startswith("error: ")]
