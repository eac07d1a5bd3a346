"""The public API: what docs/api.md and the quickstart show runs, and importing the package loads nothing heavy."""

import doctest
import importlib
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

import promot_t5x
from promot_t5x.checkpoints import soft_prompts
from promot_t5x.configuration import gin_files
from promot_t5x.tasks import toy_world

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


def test_mistakes_of_generate_are_sentences(loaded):
    with pytest.raises(TypeError, match=r"write \[text\] for a single one"):
        promot_t5x.generate(loaded, "one text", **LENGTHS)
    with pytest.raises(ValueError, match="the checkpoint has none"):
        promot_t5x.generate(loaded, ["a text"], 0, **LENGTHS)
    with pytest.raises(FileNotFoundError, match="There is no vocabulary file nowhere.model"):
        promot_t5x.generate(loaded, ["a text"], vocabulary="nowhere.model", **LENGTHS)


def test_from_gin_leaves_no_state():
    changed = promot_t5x.from_gin(["models/toy.gin"], {"DROPOUT_RATE": 0.25})
    assert changed.config.dropout_rate == 0.25
    assert promot_t5x.from_gin(["models/toy.gin"]).config.dropout_rate == 0.0
    assert not gin_files.bindings(gin_files.resolved_config())
    with pytest.raises(FileNotFoundError, match="models/mt5_xxl.gin"):
        promot_t5x.from_gin(["models/mt5_xxll.gin"])


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
