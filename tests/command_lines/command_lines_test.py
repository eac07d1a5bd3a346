"""Wrong command lines: each is answered within seconds by exit code 1 and one sentence, and changes no file."""

import json
import re
import shlex

import pytest

from tests.command_lines import cases, others, paths, server, values

PRODUCTS = (*paths.cases(), *values.cases())
ALL = (*PRODUCTS, *others.cases())

_SECONDS = 30  # on a busy machine; the slowest case takes 3


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Starts command lines."""
    running = server.Server(tmp_path_factory.mktemp("texts"))
    yield running
    running.close()


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """The folder in which all of them run."""
    folder = tmp_path_factory.mktemp("here")
    cases.make_files(folder)
    yield folder
    for name in cases.CLOSED:
        (folder / name).chmod(0o700)


def _contents(folder):
    """What is in a folder: kind, size and time of change of each file, and the folders."""
    described = {}
    for path in folder.rglob("*"):
        status = path.stat()
        described[path] = status.st_mode, not path.is_dir() and (status.st_size, status.st_mtime_ns)
    return described


def test_there_are_enough_cases_and_none_twice():
    names = [case.name for case in ALL]
    assert len(names) >= 150
    assert sorted(names) == sorted(set(names))


def test_a_right_command_line_is_no_mistake(programs, here):
    """What the mistakes are mistakes of."""
    outcome = programs.run([*cases.Case("", cases.TRAIN_DEMO, "").argv, "--dry_run"], here, {}, _SECONDS)
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "stage prompt_tuning: 1,024 parameters train" in outcome.stdout


def test_the_docs_task_of_your_own(programs, tmp_path):
    """The example in results.md; `my_tasks` is a module of the current folder, which python -m would find, too."""
    page = (server.ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    (example,) = re.findall(r'^```python\n("""my_tasks.py.*?)^```$', page, re.MULTILINE | re.DOTALL)
    (tmp_path / "my_tasks.py").write_text(example)
    (tmp_path / "my_data").mkdir()
    rows = [json.dumps({"english": f"{word} dog", "french": f"{word} chien"}) + "\n" for word in "abcdefghijklmnop"]
    for split in ("train", "validation", "test"):
        (tmp_path / "my_data" / f"{split}.jsonl").write_text("".join(rows))
    typed = re.findall(r"^    promot-t5x (.*my_tasks.*)$", page.replace("\\\n", " "), re.MULTILINE)
    train, evaluate = (shlex.split(command) for command in typed)
    outcome = programs.run([*train, "--dry_run", "--data"], tmp_path, {}, _SECONDS)
    assert outcome.code == 0, outcome.stderr
    assert "opened: my_mixture, my_translation, training split train" in outcome.stdout
    outcome = programs.run([*evaluate, "--limit=2"], tmp_path, {}, 4 * _SECONDS)
    assert outcome.code == 0, outcome.stderr
    scores = json.loads((tmp_path / "out" / "my_scores" / "scores.json").read_text())
    assert [(row["task"], row["k"], row["metric"]) for row in scores["rows"]] == [
        ("my_translation", 0, "first_word"),
        ("my_translation", 2, "first_word"),
    ]


# Of every argument times every mistake, `make test` runs a third: all arguments, and all mistakes, are among them.
_SELDOM = [case for number, case in enumerate(PRODUCTS) if number % 3]


def test_a_third_has_every_argument_and_every_mistake():
    for part in (0, 1):
        words = [case.name.split(": ")[part] for case in paths.cases()]
        often = [case.name.split(": ")[part] for case in paths.cases() if case not in _SELDOM]
        assert set(words) == set(often)


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.name, marks=[pytest.mark.slow] * (case in _SELDOM)) for case in ALL]
)
def test_a_mistake_is_one_sentence(case, programs, here):
    before = _contents(here)
    outcome = programs.run(case.argv, here, case.environment, _SECONDS)
    assert _contents(here) == before
    lines = outcome.stderr.splitlines()
    assert outcome.code == 1, outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert [number for number, line in enumerate(lines) if line.startswith("error: ")] == [len(lines) - 1]
    assert any(part in lines[-1] for part in case.sentence.split("|")), lines[-1]
