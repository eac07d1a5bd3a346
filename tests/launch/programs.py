"""What the tests of launch/ share: paths, awkward arguments, programs in place of others, files of expected text."""

import difflib
import sys
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LAUNCH = ROOT / "launch"
GOLDEN = ROOT / "tests" / "testdata" / "launch"
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
    """Writes an executable; `#!python` is this interpreter, without anything that slows its start."""
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
