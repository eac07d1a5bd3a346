"""The contracts of pyproject.toml: imports go down, and only the top knows gin; a broken contract is noticed."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the package with its symlinks, and of its contracts."""
    skip = shutil.ignore_patterns("__pycache__", "demo_checkpoint")
    for folder in ("promot_t5x", "tasks", "gin"):
        shutil.copytree(ROOT / folder, tmp_path / folder, symlinks=True, ignore=skip)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    assert (tmp_path / "promot_t5x" / "tasks").is_symlink()
    return tmp_path


def _lint(folder: Path) -> tuple[int, str]:
    """(exit code, what it printed on one line)"""
    command = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    ran = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    return ran.returncode, " ".join((ran.stdout + ran.stderr).split())


def test_the_package_keeps_its_contracts(copy):
    code, output = _lint(copy)
    assert code == 0 and "2 kept, 0 broken" in output, output


@pytest.mark.parametrize(
    "file,line,message",
    [
        (
            "promot_t5x/partitioning/meshes.py",
            "from promot_t5x.models import parameter_names",
            "promot_t5x.partitioning is not allowed to import promot_t5x.models",
        ),
        (
            "promot_t5x/checkpoints/huggingface/peft.py",
            "from promot_t5x.training import stages",
            "promot_t5x.checkpoints is not allowed to import promot_t5x.training",
        ),
        (
            "promot_t5x/training/stages.py",
            "import promot_t5x.train",
            "promot_t5x.training is not allowed to import promot_t5x.train",
        ),
        (
            "tasks/answers.py",
            "from promot_t5x.data import features",
            "promot_t5x.tasks is not allowed to import promot_t5x.data",
        ),
        ("tasks/metrics.py", "import gin", "promot_t5x.tasks is not allowed to import gin"),
        (
            "promot_t5x/training/run_folder.py",
            "from promot_t5x.configuration import gin_files",
            "promot_t5x.training is not allowed to import promot_t5x.configuration",
        ),
        ("promot_t5x/loose/__init__.py", '"""A room on no floor."""', "promot_t5x.loose"),
    ],
)
def test_a_forbidden_import_is_noticed(file, line, message, copy):
    (copy / file).parent.mkdir(exist_ok=True)
    with (copy / file).open("a") as stream:
        stream.write(f"\n{line}\n")
    code, output = _lint(copy)
    assert code == 1 and message in output, output
