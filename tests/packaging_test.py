"""The package as it is laid out and installed: symlinks, commands from any folder, lint rules, versions."""

import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest

import promot_t5x

ROOT = pathlib.Path(__file__).resolve().parents[1]


def run_python(args: list[str], cwd: pathlib.Path) -> subprocess.CompletedProcess[str]:
    """Runs `python ARGS` in a fresh process in cwd; the repository is importable even where it was not installed."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    path = [str(ROOT), env["PYTHONPATH"]] if env.get("PYTHONPATH") else [str(ROOT)]
    env["PYTHONPATH"] = os.pathsep.join(path)
    env["PYTHONDONTWRITEBYTECODE"] = "1"
    return subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, text=True, capture_output=True, timeout=300, stdin=subprocess.DEVNULL
    )


@pytest.fixture(params=["root", "elsewhere"])
def cwd(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> pathlib.Path:
    """The repository root and a folder that has nothing to do with it."""
    return ROOT if request.param == "root" else tmp_path


def test_train_help_runs_from_any_folder(cwd):
    run = run_python(["-m", "promot_t5x.train", "--help"], cwd)
    assert "--gin_file" in run.stdout, run.stderr
    assert "Traceback" not in run.stderr
    assert run.returncode == 0


def test_tests_are_collected_from_another_folder(tmp_path):
    run = run_python(["-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", str(ROOT / "tests")], tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "packaging_test.py::test_tests_are_collected_from_another_folder" in run.stdout
    assert "error" not in run.stdout.splitlines()[-1]


@pytest.mark.parametrize("name", ["tasks", "gin"])
def test_folder_is_packaged_through_a_symlink(name):
    link = ROOT / "promot_t5x" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == ROOT / name


def test_gin_holds_no_init_and_its_folders_hold_empty_ones():
    assert not (ROOT / "gin" / "__init__.py").exists()
    folders = [f for f in (ROOT / "gin").rglob("*") if f.is_dir() and f.name != "__pycache__"]
    assert folders
    assert {f: (f / "__init__.py").stat().st_size for f in folders} == dict.fromkeys(folders, 0)


def test_gin_library_is_not_shadowed_from_the_root():
    run = run_python(["-c", "import gin; print(gin.parse_config.__module__)"], ROOT)
    assert run.stdout.strip() == "gin.config", run.stderr


@pytest.mark.parametrize("statement", ["import tasks", "import tasks.toy_world", "from tasks.toy_world import x"])
def test_bare_import_of_tasks_is_banned(statement):
    run = lint(f"{statement}\n")
    assert "TID251" in run.stdout, run.stdout + run.stderr


def test_import_of_packaged_tasks_is_allowed():
    run = lint("from promot_t5x import tasks\n")
    assert "TID251" not in run.stdout
    assert "F401" in run.stdout, run.stdout + run.stderr


def lint(code: str) -> subprocess.CompletedProcess[str]:
    """Runs ruff with this repository's settings over one line of code."""
    pytest.importorskip("ruff", reason="ruff is in the extra `test`")
    config = str(ROOT / "pyproject.toml")
    return subprocess.run(
        [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format=concise", "--config", config, "-"],
        input=code,
        text=True,
        capture_output=True,
        timeout=60,
        cwd=ROOT,
    )


def test_versions_agree():
    citation = (ROOT / "CITATION.cff").read_text()
    version = re.search(r"^version: (\S+)$", citation, re.MULTILINE)
    assert version is not None
    assert version.group(1) == promot_t5x.__version__
    run = run_python(["setup.py", "--version"], ROOT)
    assert run.stdout.split()[-1] == promot_t5x.__version__, run.stderr


def test_demo_checkpoint_is_at_most_5_mb():
    folder = ROOT / "promot_t5x" / "demo_checkpoint"
    if not folder.is_dir():
        pytest.skip(f"{folder.relative_to(ROOT)} has not been made; gin/recipes/demo_pretrain.gin makes it")
    assert sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) <= 5_000_000


def test_markers_carry_reasons():
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    assert [m.split(":")[0] for m in markers] == ["slow", "tpu_compiler", "tpu", "gpu", "peer"]
    reasons = dict(marker.split(": ", 1) for marker in markers)
    says_why = re.compile(r"(takes|needs|compares with) \w+")
    assert [name for name, reason in reasons.items() if not says_why.match(reason)] == []
