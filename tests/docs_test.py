"""README, docs, docstrings and the heads of gin files hold: links, commands, snippets, examples."""

import doctest
import importlib
import pkgutil
import re
import shlex
from pathlib import Path

import pytest

import promot_t5x
from promot_t5x import cli, eval, plan
from promot_t5x.configuration import flags, gin_checks, gin_files, gin_statements

ROOT = Path(__file__).resolve().parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]
README = ROOT / "README.md"
GIN_FILES = gin_files.gin_files_packaged()
GIN_PATHS = {file.resolve() for file in GIN_FILES}
# What a reader of a snippet or a shortened command has set by other files and flags.
GIVEN = (
    "DATA_DIR = 'my_data'",
    "VOCABULARY_FILE = 'my.model'",
    "MODEL_DIR = 'out/run'",
    "INITIAL_CHECKPOINT_PATH = 'out/pretrained'",
)


MODULES = [m.name for m in pkgutil.walk_packages(promot_t5x.__path__, "promot_t5x.")]


def name(path: Path) -> str:
    """A file's path in the repository (gin files are reached through the package's symlink)."""
    return str(path.resolve().relative_to(ROOT))


def head_comment(file: Path) -> str:
    """The comment lines that open a gin file, as one line."""
    lines = file.read_text(encoding="utf-8").splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.removeprefix("#").strip() for line in lines[:end])


def commands(text: str) -> list[list[str]]:
    """The indented commands in a text that take gin files, split as a shell does."""
    joined = text.replace("\\\n", " ")
    lines = re.findall(r"^    ((?:python -m promot_t5x\.|promot-t5x )\w+.*)$", joined, re.MULTILINE)
    return [shlex.split(command) for command in lines if "--gin" in command]


def python_snippets(page: Path) -> list[str]:
    """The Python blocks of a page that are plain programs, not sessions."""
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [block for block in blocks if ">>>" not in block]


def snippets(page: Path) -> list[str]:
    return re.findall(r"^```gin\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_named_gin_files_exist(page):
    named = re.findall(r"--gin_file=([^\s`\"']+\.gin)", page.read_text(encoding="utf-8"))
    packaged = [gin_files.resolve(file) for file in named if not file.startswith("my")]  # "my" is the reader's own
    assert [file for file in packaged if file.resolve() not in GIN_PATHS] == []


@pytest.mark.parametrize("file", GIN_FILES, ids=name)
def test_head_comment_is_complete_and_names_files_that_exist(file):
    head = head_comment(file)
    assert [word for word in ("Hardware", "Expected number", "Command") if word not in head] == []
    for other in re.findall(r"--gin_file=([^\s`\"']+\.gin)", head):
        gin_files.resolve(other)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target
            if anchor:
                assert anchor in anchors(page.parent / target if target else page), anchor


def test_where_things_are_names_existing_paths():
    table = re.search(r"^## Where things are\n(.*?)^## ", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert table is not None
    listed = [
        path for row in re.findall(r"^\| (\[.*?) \|", table[1], re.MULTILINE) for path in re.findall(r"\[(.*?)\]", row)
    ]
    assert len(listed) > 10
    assert [path for path in listed if not (ROOT / path).exists()] == []


def run_id(argv: list[str]) -> str:
    return " ".join(argv)[:60]


def _texts() -> list[str]:
    """The pages, and the help of every verb."""
    helps = [importlib.import_module(module).parser().format_help() for module, _ in cli._VERBS.values()]
    return [page.read_text(encoding="utf-8") for page in PAGES] + helps


@pytest.mark.parametrize("verb", cli._VERBS)
def test_help_has_two_examples_and_the_macros_that_they_set(verb):
    text = importlib.import_module(cli._VERBS[verb][0]).parser().format_help()
    examples = re.findall(rf"^    (promot-t5x {verb}\b(?:.*\\\n)*.*)$", text, re.MULTILINE)
    assert len(examples) == 2
    in_examples = {macro for example in examples for macro in re.findall(r"--gin\.([A-Z_]+)=", example)}
    assert in_examples <= set(re.findall(r"^  --gin\.([A-Z_]+)=VALUE ", text, re.MULTILINE))


@pytest.mark.parametrize("argv", [argv for text in _texts() for argv in commands(text)], ids=run_id)
def test_commands_parse(argv):
    arguments = argv[3:] if argv[0] == "python" else argv[2:]
    if argv[:2] == ["promot-t5x", "eval"]:
        invocation = eval.parse(arguments)
        if invocation.extra["list"]:
            assert not invocation.gin_files and not invocation.gin_bindings
            return
    elif argv[:2] == ["promot-t5x", "plan"]:
        invocation = plan.parse(arguments)
    else:
        parser = flags.flag_parser()
        parser.add_argument("--out")
        invocation = flags.parse_flags(arguments, parser)
    unset = {"demo": ("WORK_DIR",), "plan": plan._FOLDERS}.get(argv[1], ())  # they set these
    bindings = tuple(f"{macro} = 'out'" for macro in unset)
    files = [file for file in invocation.gin_files if not file.startswith("my")]
    gin_files.parse(files, (*invocation.gin_bindings, *bindings), invocation.gin_search_paths)
    gin_checks.check_macros()
    from_flags = {origin.written for origin in gin_statements.ORIGINS.values() if origin.from_flag}
    assert len(from_flags) == len({line.split(" = ")[0] for line in (*invocation.gin_bindings, *bindings)})


@pytest.mark.parametrize("snippet", [snippet for page in PAGES for snippet in snippets(page)], ids=lambda s: s[-60:])
def test_gin_snippets_parse_after_a_stage(snippet, tmp_path):
    (tmp_path / "my.gin").write_text(snippet, encoding="utf-8")
    files = ["recipes/trial_rte.gin", "stages/prompt_tuning.gin", "tasks/jsonl.gin", str(tmp_path / "my.gin")]
    gin_files.parse(files, GIVEN)
    gin_checks.check_macros()
    assert any(origin.where.startswith(str(tmp_path)) for origin in gin_statements.ORIGINS.values())


def test_python_snippets_use_names_that_exist():
    blocks = [block for page in PAGES for block in python_snippets(page)]
    assert blocks
    for block in blocks:
        compile(block, "snippet", "exec")
        assert set(re.findall(r"promot_t5x\.([A-Za-z]\w*)\(", block)) <= set(promot_t5x.__all__)


def test_guide_lists_every_macro_of_the_stages():
    base = (ROOT / "gin" / "stages" / "base.gin").read_text(encoding="utf-8")
    guide = (ROOT / "docs" / "guide.md").read_text(encoding="utf-8")
    macros = set(re.findall(r"^([A-Z_]+) = ", base, re.MULTILINE)) | set(re.findall(r"%([A-Z_]+)", base))
    assert len(macros) > 10
    assert sorted(macro for macro in macros if f"| `{macro}` |" not in guide) == []


def test_reproducing_quotes_gin_lines_that_exist():
    page = ROOT / "docs" / "reproducing.md"
    quoted = re.findall(r"\[[^\]]*\]\((\.\./gin/[^)]*)\): `([^`]*)`", page.read_text(encoding="utf-8"))
    assert len(quoted) > 10
    for file, line in quoted:
        assert line in (page.parent / file).read_text(encoding="utf-8").splitlines(), (file, line)


def test_every_module_is_looked_at_for_examples():
    assert {"promot_t5x.models.losses", "promot_t5x.reports.tables", "promot_t5x.tasks.jsonl"} <= set(MODULES)


NEED_THE_TPU_COMPILER = {"promot_t5x.planning.search"}


@pytest.mark.parametrize(
    "module", [pytest.param(m, marks=[pytest.mark.tpu_compiler] * (m in NEED_THE_TPU_COMPILER)) for m in MODULES]
)
def test_examples_in_docstrings(module):
    """An example sees its module's own names."""
    assert doctest.testmod(importlib.import_module(module)).failed == 0
