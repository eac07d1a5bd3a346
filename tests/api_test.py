"""The public API: what docs/api.md and the quickstart show runs, and importing the package loads nothing heavy."""

import doctest
import importlib
import json
import pathlib
import re
import subprocess
import sys

import gin
import numpy as np
import pytest

import promot_t5x
from promot_t5x.checkpoints import soft_prompts
from promot_t5x.configuration import gin_checks, gin_files, gin_statements
from promot_t5x.recipes import methods
from promot_t5x.tasks import toy_world
from promot_t5x.training import run_folder

ROOT = pathlib.Path(__file__).resolve().parents[1]
API = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
DEMO = ROOT / "promot_t5x" / "demo_checkpoint"


BLOCKS = re.findall(r"^```python\n(.*?)^```", API, re.MULTILINE | re.DOTALL)
PLANS = [block for block in BLOCKS if "plan_training(" in block]  # what needs the TPU compiler


def _run(blocks, **names):
    page = doctest.DocTestParser().get_doctest("\n".join(blocks), names, "api.md", "docs/api.md", 0)
    return doctest.DocTestRunner().run(page)


def test_the_examples_of_the_page_run(tmp_path):
    results = _run([block for block in BLOCKS if block not in PLANS], folder=tmp_path)
    assert results.attempted > 20 and results.failed == 0


@pytest.mark.tpu_compiler
def test_the_plans_of_the_page_run():
    results = _run(PLANS, promot_t5x=promot_t5x)
    assert results.attempted >= 4 and results.failed == 0


def test_the_page_lists_every_name():
    listed = set(re.findall(r"`(\w+)", "\n".join(re.findall(r"^\| (`.*?) \|", API, re.MULTILINE))))
    assert listed == set(promot_t5x.__all__)


@pytest.mark.parametrize("name", promot_t5x.__all__)
def test_every_name_exists_and_has_a_docstring(name):
    value = getattr(promot_t5x, name)
    assert isinstance(value, dict) or value.__doc__


def test_no_name_is_a_command():
    commands = {path.stem for path in (ROOT / "promot_t5x").glob("*.py")}
    assert not commands & set(promot_t5x.__all__)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        importlib.import_module("promot_t5x").lod  # noqa: B018


def test_importing_the_package_loads_nothing_heavy():
    code = "import sys, promot_t5x; dir(promot_t5x); print({'jax', 'tensorflow', 'gin'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.fixture(scope="module")
def loaded():
    return promot_t5x.load(DEMO)


LENGTHS = dict(inputs_length=28, targets_length=6)


def test_generate_answers_the_demos_tasks(loaded):
    """The shipped model has 96 % of this task right; answers do not depend on the rows next to them."""
    rows = toy_world.examples("toy_nli3", "test")[:40]
    texts = [row[0] for row in rows]
    answers = promot_t5x.generate(loaded, texts, batch_size=16, **LENGTHS)
    assert sum(answer == row[1] for answer, row in zip(answers, rows, strict=True)) >= 36
    assert promot_t5x.generate(loaded, texts[:1], **LENGTHS) == answers[:1]
    assert promot_t5x.generate(loaded, [], **LENGTHS) == []


def test_generate_attaches_a_prompt_from_a_file(loaded, tmp_path):
    rng = np.random.default_rng(0)
    text = [toy_world.examples("toy_nli3", "test")[0][0]]
    promot_t5x.save_soft_prompt(tmp_path / "loud", 50 * rng.normal(size=(1, 4, 128)).astype(np.float32), {})
    with_prompt = promot_t5x.generate(loaded, text, tmp_path / "loud", **LENGTHS)
    assert with_prompt != promot_t5x.generate(loaded, text, **LENGTHS)
    soft_prompts.save(tmp_path / "narrow", np.zeros((1, 4, 8), np.float32), {})
    with pytest.raises(ValueError, match="is 8 wide, the model in .* is 128 wide"):
        promot_t5x.generate(loaded, text, tmp_path / "narrow", **LENGTHS)
    np.save(tmp_path / "double.npy", soft_prompts.load(tmp_path / "loud").astype(np.float64))  # NumPy's default dtype
    assert promot_t5x.generate(loaded, text, tmp_path / "double.npy", **LENGTHS) == with_prompt
    np.save(tmp_path / "large.npy", np.full((1, 4, 128), 1e39))
    with pytest.raises(ValueError, match="large.npy holds numbers up to 1e.39, which are too large for float32"):
        promot_t5x.generate(loaded, text, tmp_path / "large.npy", **LENGTHS)


def test_mistakes_of_generate_are_sentences(loaded):
    with pytest.raises(TypeError, match=r"write \[text\] for a single one"):
        promot_t5x.generate(loaded, "one text", **LENGTHS)
    with pytest.raises(ValueError, match="the checkpoint has none"):
        promot_t5x.generate(loaded, ["a text"], 0, **LENGTHS)
    with pytest.raises(ValueError, match=r"texts\[1\], which holds half of a surrogate pair, U\+D83D; correct it"):
        promot_t5x.generate(loaded, ["a text", "half \ud83d"], **LENGTHS)
    with pytest.raises(FileNotFoundError, match="There is no vocabulary file nowhere.model"):
        promot_t5x.generate(loaded, ["a text"], vocabulary="nowhere.model", **LENGTHS)


def test_from_gin_leaves_no_state():
    changed = promot_t5x.from_gin(["models/toy.gin"], {"DROPOUT_RATE": 0.25})
    assert changed.config.dropout_rate == 0.25
    assert promot_t5x.from_gin(["models/toy.gin"]).config.dropout_rate == 0.0
    assert not gin_files.bindings(gin_files.resolved_config())
    with pytest.raises(FileNotFoundError, match="models/mt5_xxl.gin"):
        promot_t5x.from_gin(["models/mt5_xxll.gin"])


def test_a_gin_configuration_of_the_callers_own_is_left_as_it_is():
    gin_files.parse(["models/toy.gin", "tasks/toy.gin"], ["DROPOUT_RATE = 0.5"])
    gin_checks.check_macros()
    before = gin_files.resolved_config()
    gin.finalize()
    assert promot_t5x.from_gin(["models/toy.gin"]).config.dropout_rate == 0.0
    with pytest.raises(ValueError, match="nothing uses DROPOUT_RAT"):
        promot_t5x.from_gin(["models/toy.gin"], {"DROPOUT_RAT": 0.5})
    assert gin_files.resolved_config() == before and gin.config_is_locked()
    gin_statements.clear()


def test_values_that_gin_can_write(tmp_path):
    bindings = {
        "A": np.int64(3),
        "B": np.float32(0.5),
        "C": tmp_path,
        "D": [np.bool_(True), (1, None)],
        "E.f": {"a": 1},
    }
    assert promot_t5x.runs_from_gin(["models/toy.gin"], bindings).bindings == (
        "A = 3",
        "B = 0.5",
        f"C = {str(tmp_path)!r}",
        "D = [True, (1, None)]",
        "E.f = {'a': 1}",
    )


@pytest.mark.parametrize(
    "bindings,expected",
    [
        ({"A": print}, "the binding A has the value <built-in function print>, which gin cannot write"),
        ({"A": float("nan")}, "the binding A has the value nan"),
        ({"A": [np.zeros(2)]}, "the binding A has the value array"),
        ({"A = 1\nB": 1}, "names no macro or parameter"),
        ({5: 1}, "the binding 5 names no macro"),
    ],
)
def test_values_that_gin_cannot_write(bindings, expected):
    for function in (promot_t5x.runs_from_gin, promot_t5x.from_gin):
        with pytest.raises(ValueError, match=expected):
            function(["models/toy.gin"], bindings)


def test_a_recipe_is_checked_before_anything_runs(tmp_path):
    model, wide = promot_t5x.from_gin(["models/toy.gin"]), promot_t5x.EvaluationConfig({"inputs": 28, "targets": 6})
    own = methods.Method("mine", ("mine.gin",), prompt=None)

    def run(train, *rows, **changes):
        recipe = promot_t5x.Recipe(rows, "toy_enfr", ("toy_nli3",), learning_rates=(1e-3,))
        promot_t5x.run_recipe(recipe, train, model, wide, tmp_path / "work", DEMO, **changes)

    files = ["models/toy.gin", "tasks/toy.gin"]
    with pytest.raises(ValueError, match="nothing uses TRAIN_STEP .did you mean 'TRAIN_STEPS'"):
        run(promot_t5x.runs_from_gin(files, {"TRAIN_STEP": 2}), "pretrained", "fine_tuning")
    with pytest.raises(FileNotFoundError, match="gin file 'mine.gin' was not found"):
        run(promot_t5x.runs_from_gin(files), "pretrained", own)
    for name in ("config", "decided_by"):
        with pytest.raises(ValueError, match=f"run_recipe's {name} holds a value that JSON does not have"):
            run(lambda *_: None, "pretrained", **{name: {"path": tmp_path}})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "result,expected",
    [
        (None, "`train` returned None for the run seed0/fine_tuning_lr0.001; expected what `run_stage` returns"),
        (
            run_folder.RunResult("/nowhere", 2, None),
            "chose /nowhere/checkpoint_2 of the run .* no checkpoint",
        ),
    ],
)
def test_what_is_no_result_of_training(tmp_path, result, expected):
    recipe = promot_t5x.Recipe(("fine_tuning",), "toy_enfr", (), learning_rates=(1e-3,))
    model, short = promot_t5x.from_gin(["models/toy.gin"]), promot_t5x.EvaluationConfig({"inputs": 10, "targets": 4})
    with pytest.raises(ValueError, match=expected):
        promot_t5x.run_recipe(recipe, lambda *_: result, model, short, tmp_path, DEMO)


@pytest.mark.slow  # about a minute on 2 cores
def test_the_quickstart_runs(tmp_path):
    notebook = json.loads((ROOT / "docs" / "quickstart.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join([*cells, "assert axes.get_lines()"]), encoding="utf-8")
    command = [sys.executable, "-W", "ignore", str(tmp_path / "cells.py")]
    environment = {"MPLBACKEND": "agg", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ProMoT" in done.stdout and "prompt None" in done.stdout


def test_progress_shows_also_where_the_package_is_reached_through_a_link(tmp_path):
    (tmp_path / "promot_t5x").symlink_to(ROOT / "promot_t5x")
    script = "import promot_t5x; promot_t5x.show_progress(); import promot_t5x.runtime.processes as shown; "
    script += "exec(compile('logging.info(\"a line\")', shown.__file__, 'exec'), vars(shown))"
    arguments = dict(capture_output=True, text=True, check=True, cwd=tmp_path)
    assert subprocess.run([sys.executable, "-c", script], **arguments).stderr.endswith(" a line\n")
