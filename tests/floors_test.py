"""The table of floors in docs/architecture.md: it lists every module, and each imports only from below or its left."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "promot_t5x"
FOLDERS = ("interop", "planning", "report")  # packages that stand in the table as one name


def floors() -> dict[str, tuple[int, int]]:
    """The name of each module as the table writes it -> (floor, place in its line)."""
    rows = re.findall(r"^\| (\d+) \| (.*?) \|", (ROOT / "docs" / "architecture.md").read_text("utf-8"), re.MULTILINE)
    names = [(name, (int(floor), i)) for floor, cell in rows for i, name in enumerate(re.findall(r"`(.+?)`", cell))]
    assert len(dict(names)) == len(names) > 20
    return dict(names)


FLOORS = floors()


def name_of(file: Path) -> str:
    """A file of the package as the table writes it: its path, or its folder where only that is listed."""
    name = file.relative_to(PACKAGE).as_posix()
    return name if name in FLOORS or "/" not in name else f"{name.split('/')[0]}/"


def modules() -> list[Path]:
    folders = [PACKAGE, *(PACKAGE / folder for folder in FOLDERS)]
    return [file for folder in folders for file in sorted(folder.glob("*.py")) if file != PACKAGE / "__init__.py"]


def imported(file: Path) -> set[Path]:
    """The modules of the package that a file imports, in functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {f"{node.module}"}
    paths = [PACKAGE / "/".join(name.split(".")[1:]) for name in names if name.split(".")[0] == "promot_t5x"]
    return {path.with_suffix(".py") for path in paths if path.with_suffix(".py").exists()} | {
        path / "__init__.py" for path in paths if path.is_dir() and path != PACKAGE
    }


def test_the_table_lists_every_module_once():
    assert {name_of(file) for file in modules()} | {"tasks/"} == set(FLOORS)


@pytest.mark.parametrize("file", modules(), ids=lambda file: file.relative_to(PACKAGE).as_posix())
def test_imports_come_from_below_or_from_the_left(file):
    floor, place = FLOORS[name_of(file)]
    for other in imported(file):
        if name_of(other) == name_of(file):
            continue  # within a package
        assert name_of(other) in FLOORS, f"{name_of(file)} imports {name_of(other)}, which stands on no floor"
        other_floor, other_place = FLOORS[name_of(other)]
        assert other_floor < floor or (other_floor == floor and other_place < place), (
            f"{name_of(file)} stands on floor {floor} and imports {name_of(other)}, which is above it or to its right"
        )


@pytest.mark.parametrize("file", sorted((PACKAGE / "tasks").glob("*.py")), ids=lambda file: file.name)
def test_tasks_do_not_know_the_framework(file):
    assert {other.parent for other in imported(file)} <= {PACKAGE / "tasks"}


def test_imports_are_seen():
    """Of modules, from a module, and of a package's modules."""
    assert {"checkpoints.py", "model.py", "interop/"} <= {name_of(f) for f in imported(PACKAGE / "initialize.py")}
    assert {"report/", "flags.py"} <= {name_of(f) for f in imported(PACKAGE / "report" / "command.py")}
