"""The recipe: what it plans, the dry run that touches nothing, a small recipe from end to end, and running it again."""

import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
from etils.epath import backend

import promot_t5x
from promot_t5x import pipeline, plan
from promot_t5x.checkpoints import fingerprints, loading, saving, sources
from promot_t5x.configuration import flags, program
from promot_t5x.evaluation import answering, suite
from promot_t5x.models import encoder_decoder, parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.recipes.methods import Method
from promot_t5x.recipes.recipe import Recipe
from promot_t5x.training import trainer

TINY = dict(vocab_size=288, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1)
TINY |= dict(num_decoder_layers=1, prompt_length=8)
RECIPE = """
from __gin__ import dynamic_registration
from promot_t5x.data import training_batches
from promot_t5x.models import architecture
from promot_t5x.evaluation import scoring
from promot_t5x import pipeline
include 'promot_t5x/gin/recipes/demo.gin'

TRAIN_STEPS = 4
CHECKPOINT_PERIOD = 2
BATCH_SIZE = 8
training_batches.DatasetConfig.shards = 2
EVAL_BATCH_SIZE = 16
scoring.EvaluationConfig.limit = 16
pipeline.Recipe.learning_rates = (1e-3,)
pipeline.Recipe.in_context = ('toy_wic',)
"""
RECIPE += "".join(f"architecture.T5Config.{name} = {value}\n" for name, value in TINY.items())
METHODS = {
    "pretrained": "none",
    "prompt_tuning": "none",
    "fine_tuning": "0.001",
    "random_prompt": "0.001",
    "promot": "0.001",
}


def _write_base(folder, seed):
    """A base model: weights drawn by numpy."""
    rng = np.random.default_rng(seed)
    shapes = EncoderDecoderModel(T5Config(**{**TINY, "prompt_length": 0})).abstract_params()
    weights = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), shapes)
    saving.export(folder, weights, {"step": 0, "base": None})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with the recipe and a base model."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.gin").write_text(RECIPE)
    _write_base(folder / "base", seed=0)
    return folder


def _run(tiny, work_dir, *bindings) -> int:
    values = [f"WORK_DIR={work_dir}", f"DEMO_CHECKPOINT={tiny / 'base'}", *bindings]
    return program.run_main(pipeline.main, [f"--gin_file={tiny / 'tiny.gin'}", *[f"--gin.{v}" for v in values]])


@pytest.fixture(scope="module")
def finished(tiny, tmp_path_factory):
    """The folder of a whole run of all five methods."""
    folder = tmp_path_factory.mktemp("work") / "work"
    assert _run(tiny, folder) == 0
    return folder


def _count(monkeypatch, module, name) -> list:
    """Records the arguments of every call."""
    calls, original = [], getattr(module, name)

    def counted(*args, **kwargs):
        calls.append(args)
        return original(*args, **kwargs)

    monkeypatch.setattr(module, name, counted)
    return calls


def _recipe(**changes):
    defaults = dict(methods=list(METHODS), stage_files={method: () for method in METHODS}, target="t", in_context=())
    return Recipe(**{**defaults, "learning_rates": (1e-3, 2e-3), **changes})


@pytest.mark.parametrize(
    "changes,expected",
    [
        (dict(methods=["promt"]), "Recipe.methods has 'promt'; expected names among pretrained"),
        (dict(methods=["promot"]), "Recipe.methods has promot without prompt_tuning"),
        (
            dict(stage_files={"promt": ()}),
            r"Recipe.stage_files has files for 'promt', which is not a method \(did you mean",
        ),
        (dict(methods=["promot", "promot"]), "Recipe.methods has promot more than once"),
        (dict(headline=("promot",)), "expected the names of three methods"),
        (dict(learning_rates=()), "need at least one entry each"),
        (dict(seeds=()), "need at least one entry each"),
    ],
)
def test_recipe_errors(changes, expected):
    with pytest.raises(ValueError, match=expected):
        _recipe(**changes)


def _forbid_files_and_weights(monkeypatch):
    def touched(*args, **_):
        raise AssertionError(f"a dry run touches {args[1:]}")

    def guarded(operation):
        def call(self, path, *args, **kwargs):
            if os.fspath(path).startswith(os.environ["JAX_COMPILATION_CACHE_DIR"]):  # JAX's own
                return operation(self, path, *args, **kwargs)
            return touched(self, path)

        return call

    operations = "open exists isdir listdir glob makedirs mkdir rename replace stat".split()
    for kind in backend.Backend.__subclasses__():
        for name in operations:
            monkeypatch.setattr(kind, name, guarded(getattr(kind, name)))
    monkeypatch.setattr(seqio.SentencePieceVocabulary, "_model_context", touched)
    monkeypatch.setattr(saving, "shapes", touched)
    monkeypatch.setattr(loading, "load", touched)
    monkeypatch.setattr(seqio.Task, "get_dataset", touched)
    initial = encoder_decoder.EncoderDecoderModel.init

    def traced_only(self, key):
        assert isinstance(key, jax.core.Tracer), "a dry run makes weights"
        return initial(self, key)

    monkeypatch.setattr(encoder_decoder.EncoderDecoderModel, "init", traced_only)


def test_dry_run_of_mt5_xxl_touches_nothing(monkeypatch, tmp_path, capsys):
    _forbid_files_and_weights(monkeypatch)
    assert len(jax.devices()) == 1, "fewer devices than num_partitions"
    arrays = len(jax.live_arrays())
    work = tmp_path / "work"
    argv = ["--gin_file=recipes/promot_rte.gin", f"--gin.WORK_DIR={work}", "--dry_run"]
    assert program.run_main(pipeline.main, argv) == 0
    assert len(jax.live_arrays()) == arrays
    assert list(tmp_path.iterdir()) == []
    stdout = capsys.readouterr().out.replace("\\\n    ", "")
    model, prompt = 12_921_057_280, 100 * 4096
    sections = stdout.split("\n=== ")
    names = [section.splitlines()[0] for section in sections[1:]]
    assert names == ["seed0/pretrained", "seed0/prompt_tuning", "seed0/fine_tuning_lr0.001", "seed0/promot_lr0.001"]
    totals = [line for line in stdout.splitlines() if line.startswith("stage ")]
    counts = [tuple(int(word.replace(",", "")) for word in line.split() if word[0].isdigit()) for line in totals]
    assert [line.split(":")[0] for line in totals] == ["stage prompt_tuning", "stage fine_tuning", "stage model_tuning"]
    assert counts == [(prompt, model), (model, 0), (model, prompt)]
    for section, method in zip(sections[2:], ("prompt_tuning", "fine_tuning", "promot"), strict=True):
        assert "partitioner.Partitioner.num_partitions = 4" in section
        assert f"MODEL_DIR = '{work}/seed0/{method}" in section
    start = f"INITIAL_CHECKPOINT_PATH = '{work}/seed0/prompt_tuning'"
    assert start in sections[4] and start not in sections[2] + sections[3]
    assert "gs://t5-data/pretrained_models/t5x/mt5_xxl/checkpoint_1000000" in sections[2]


def test_results_keep_their_contract(finished):
    comparison = json.loads((finished / "comparison.json").read_text())
    assert {"methods", "seeds", "versions"} <= set(comparison)
    assert comparison["seeds"] == [0] and {"jax", "python", "promot_t5x"} <= set(comparison["versions"])
    assert {method: list(entry["learning_rates"]) for method, entry in comparison["methods"].items()} == {
        method: [rate] for method, rate in METHODS.items()
    }
    for method, rate in METHODS.items():
        entry = comparison["methods"][method]["learning_rates"][rate]
        assert {"target", "in_context", "in_context_mean", "in_context_mean_with_prompt"} <= set(entry)
        assert 0 <= entry["target"] <= 100
        assert set(entry["in_context"]) == {"toy_wic"}
        assert entry["in_context_mean"] == entry["in_context"]["toy_wic"]
        assert (entry["in_context_mean_with_prompt"] is None) == (method in ("pretrained", "fine_tuning"))
        assert entry["target_std"] is None, "one seed has no spread"
    page = (finished / "report.html").read_text()
    assert "ProMoT on the toy world" in page and "http" not in page.split("<body", 1)[1].split("src=")[0]


def test_runs_moved_what_they_should(tiny, finished):
    def leaves(folder):
        best = saving.checkpoint_folder(folder, saving.best_step(folder))
        return saving.read_params(best, saving.shapes(best))

    base = saving.read_params(tiny / "base", saving.shapes(tiny / "base"))
    runs = {
        method: leaves(finished / "seed0" / (method + ("_lr0.001" if rate != "none" else "")))
        for method, rate in list(METHODS.items())[1:]
    }
    prompt = "soft_prompt/embedding"
    assert list(runs["prompt_tuning"]) == [prompt]
    assert set(runs["fine_tuning"]) == set(base)
    assert set(runs["promot"]) == set(runs["random_prompt"]) == {*base, prompt}
    np.testing.assert_array_equal(runs["promot"][prompt], runs["prompt_tuning"][prompt])
    assert np.any(runs["random_prompt"][prompt] != runs["promot"][prompt])
    for method in ("fine_tuning", "random_prompt", "promot"):
        assert all(np.any(runs[method][name] != leaf) for name, leaf in base.items())
    metadata = saving.read_metadata(
        saving.checkpoint_folder(finished / "seed0/prompt_tuning", saving.best_step(finished / "seed0/prompt_tuning"))
    )
    assert metadata["base"]["fingerprint"] == fingerprints.fingerprint(parameter_names.unflatten(base))


def test_a_second_call_does_nothing_again(tiny, finished, monkeypatch):
    trained = _count(monkeypatch, trainer, "train")
    evaluated = _count(monkeypatch, suite, "answer_task")
    before = (finished / "comparison.json").read_text()
    assert _run(tiny, finished) == 0
    assert not trained and not evaluated
    assert (finished / "comparison.json").read_text() == before


def test_lost_scores_are_measured_again_and_no_others(tiny, finished, monkeypatch):
    trained = _count(monkeypatch, trainer, "train")
    evaluated = _count(monkeypatch, suite, "answer_task")
    answered = _count(monkeypatch, answering._Runner, "__call__")
    before = json.loads((finished / "comparison.json").read_text())
    (finished / "seed0" / "promot_lr0.001" / "scores.json").unlink()
    assert _run(tiny, finished) == 0
    assert not trained
    scored = [(args[2].name, args[1].split, args[3]) for args in evaluated]
    assert scored == [("toy_enfr", "test", 0), ("toy_wic", "test", None), ("toy_wic", "test", 0)]
    assert not any(rows for *_, rows in answered), "the answers were kept"
    assert json.loads((finished / "comparison.json").read_text()) == before


def test_scores_in_an_older_format_are_measured_again(tiny, finished, monkeypatch):
    evaluated = _count(monkeypatch, suite, "answer_task")
    file = finished / "seed0" / "pretrained" / "scores.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({name: value for name, value in before.items() if name != "checkpoints"}))
    assert _run(tiny, finished) == 0 and len(evaluated) == 2
    assert json.loads(file.read_text()) == before


def test_a_seed_more_keeps_the_runs_before(tiny, finished, monkeypatch):
    trained = _count(monkeypatch, trainer, "train")
    old = {file: file.stat().st_mtime_ns for file in (finished / "seed0").rglob("*")}
    methods = "pipeline.Recipe.methods=('pretrained', 'fine_tuning')"
    assert _run(tiny, finished, methods, "pipeline.Recipe.seeds=(0, 1)") == 0
    assert len(trained) == 1
    assert {file: file.stat().st_mtime_ns for file in (finished / "seed0").rglob("*")} == old
    comparison = json.loads((finished / "comparison.json").read_text())
    entry = comparison["methods"]["fine_tuning"]["learning_rates"]["0.001"]
    assert comparison["seeds"] == [0, 1] and entry["seeds"] == [0, 1] and entry["target_std"] is not None
    assert comparison["methods"]["pretrained"]["learning_rates"]["none"]["seeds"] == [0]
    assert _run(tiny, finished) == 0 and len(trained) == 1, "the first recipe finds its runs again"


def test_another_setting_in_the_same_folder_is_refused(tiny, finished, capsys):
    assert _run(tiny, finished, "TRAIN_STEPS=6") == 1
    stderr = capsys.readouterr().err
    assert "holds a run with other settings: loop.total_steps is 6, was 4; use a new MODEL_DIR" in stderr


def test_other_settings_of_the_evaluation_are_measured_again(tiny, finished, monkeypatch):
    """Also settings that only a task knows: the same names may mean other data."""
    evaluated = _count(monkeypatch, suite, "answer_task")
    methods = "pipeline.Recipe.methods=('pretrained',)"
    assert _run(tiny, finished, methods) == 0 and not evaluated
    assert _run(tiny, finished, methods, "scoring.EvaluationConfig.limit=8") == 0 and len(evaluated) == 2
    assert _run(tiny, finished, methods) == 0 and len(evaluated) == 4
    assert _run(tiny, finished) == 0 and len(evaluated) == 4


def test_another_base_at_the_same_path_is_refused(tiny, tmp_path, capsys):
    _write_base(tmp_path / "base", seed=0)
    ours = [f"DEMO_CHECKPOINT={tmp_path / 'base'}", "pipeline.Recipe.methods=('pretrained', 'prompt_tuning')"]
    assert _run(tiny, tmp_path / "work", *ours) == 0
    _write_base(tmp_path / "base", seed=1)
    assert _run(tiny, tmp_path / "work", *ours) == 1
    assert "was trained from a model with fingerprint" in capsys.readouterr().err


@pytest.mark.parametrize("foreign", [False, True])
def test_another_checkpoint_at_the_path_of_a_method_is_measured_again(tiny, tmp_path, monkeypatch, foreign):
    """Its path alone had decided, so the old scores stayed."""
    evaluated, loaded = (_count(monkeypatch, *named) for named in ((suite, "answer_task"), (suite, "load")))
    monkeypatch.setattr(sources, "recorded_weights", (lambda path: None) if foreign else sources.recorded_weights)
    other = Method("other", (), starts_from=(str(tmp_path / "other"),), prompt=None, grid=False)
    recipe = Recipe((other,), "toy_enfr", (), (1e-3,), headline=("other", "other", "pretrained"))
    model = EncoderDecoderModel(T5Config(**TINY, relative_bias_max_distance=64, dropout_rate=0.0))
    wide = promot_t5x.EvaluationConfig({"inputs": 28, "targets": 6}, batch_size=16, limit=16)
    counts = []
    for seed in (1, 1, 2, 2):
        _write_base(tmp_path / "other", seed)
        promot_t5x.run_recipe(recipe, lambda *_: None, model, wide, str(tmp_path / "work"), str(tiny / "base"))
        scores = json.loads((tmp_path / "work/seed0/other/scores.json").read_text())
        counts.append((len(evaluated), len(loaded), scores["checkpoints"][0]["base_fingerprint"]))
    assert [count[0] for count in counts] == [1, 1, 2, 2] and counts[0][2] != counts[3][2]
    assert [count[1] for count in counts] == ([1, 2, 3, 4] if foreign else [1, 1, 2, 2]), "read once at most"


def test_a_relative_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _run(tiny, "out/work", "pipeline.Recipe.methods=('pretrained', 'prompt_tuning')") == 0
    assert (tmp_path / "out" / "work" / "seed0" / "prompt_tuning" / "finished.json").exists()
    assert (tmp_path / "out" / "work" / "comparison.json").exists()


def test_a_flag_that_means_nothing_to_any_stage_is_refused(tiny, tmp_path, capsys):
    assert _run(tiny, tmp_path / "work", "TRAIN_STEP=3") == 1
    assert "nothing uses TRAIN_STEP (did you mean 'TRAIN_STEPS'?)" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_a_missing_base_is_one_sentence(tiny, tmp_path, capsys):
    assert _run(tiny, tmp_path / "work", f"DEMO_CHECKPOINT={tmp_path / 'nowhere'}") == 1
    stderr = capsys.readouterr().err
    assert f"error: There is no checkpoint at {tmp_path / 'nowhere'}" in stderr and "Traceback" not in stderr
    assert not (tmp_path / "work" / "comparison.json").exists()


ROW = """
from __gin__ import dynamic_registration
from promot_t5x import pipeline
from promot_t5x.recipes import methods

pipeline.Recipe.methods = ('pretrained', 'fine_tuning', @dummy/methods.Method())
pipeline.Recipe.headline = ('dummy', 'fine_tuning', 'pretrained')
dummy/methods.Method.name = 'dummy'
dummy/methods.Method.gin_files = ('dummy.gin',)
dummy/methods.Method.starts_from = ('fine_tuning',)
dummy/methods.Method.prompt = None
dummy/methods.Method.label = 'dummy baseline'
dummy/methods.Method.colour = '#123456'
dummy/methods.Method.description = 'Fine-tunes twice.'
"""
STAGE = """
include 'promot_t5x/gin/stages/fine_tuning.gin'
DROPOUT_RATE = 0.0
"""


def test_a_method_from_outside_the_package_is_one_row_and_one_gin_file(tiny, tmp_path, capsys):
    (tmp_path / "row.gin").write_text(ROW)
    (tmp_path / "dummy.gin").write_text(STAGE)
    argv = [f"--gin_file={tiny / 'tiny.gin'}", f"--gin_file={tmp_path / 'row.gin'}", f"--gin_search_paths={tmp_path}"]
    argv += [f"--gin.WORK_DIR={tmp_path / 'work'}", f"--gin.DEMO_CHECKPOINT={tiny / 'base'}"]
    assert program.run_main(pipeline.main, [*argv, "--dry_run"]) == 0
    stdout = capsys.readouterr().out
    start = f"INITIAL_CHECKPOINT_PATH = '{tmp_path}/work/seed0/fine_tuning_lr0.001'"
    assert start in stdout.split("\n=== seed0/dummy_lr0.001")[1].replace("\\\n    ", "")

    planned = plan.configured(flags.parse_flags(argv, flags.flag_parser()), tuple(jax.devices()))
    assert list(planned.stages) == ["fine_tuning"] and planned.stages["fine_tuning"].batch_size == 8

    assert program.run_main(pipeline.main, argv) == 0
    work = tmp_path / "work"
    comparison = json.loads((work / "comparison.json").read_text())
    entry = comparison["methods"]["dummy"]["learning_rates"]["0.001"]
    assert 0 <= entry["target"] <= 100 and entry["in_context_with_prompt"] is None
    rows = [row for row in comparison["rows"] if row["run"] == "seed0/dummy_lr0.001"]
    assert [(row["role"], row["prompt"], row["n"]) for row in rows] == [("target", None, 16), ("other", None, 16)]
    first = saving.read_metadata(work / "seed0/dummy_lr0.001/checkpoint_2")["base"]["fingerprint"]
    tuned = json.loads((work / "seed0/fine_tuning_lr0.001/scores.json").read_text())["checkpoints"][0][
        "base_fingerprint"
    ]
    assert first == tuned, "it starts from the fine-tuned weights"
    page = (work / "report.html").read_text()
    assert "dummy baseline" in page and "background:#123456" in page and "Fine-tunes twice." in page
    assert "dummy baseline" in (work / "comparison.md").read_text()
    assert (work / "report.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_recipe_from_python(tiny, finished, tmp_path):
    """Trained by calls of run_stage, without gin: the same weights and scores as the gin files give."""
    model = EncoderDecoderModel(T5Config(**TINY, relative_bias_max_distance=64, dropout_rate=0.0))
    lengths = {"inputs": 10, "targets": 4}
    calls = []

    def train(run, model_dir, starts):
        calls.append((run.method, run.learning_rate, run.seed, starts))
        first = run.method == "prompt_tuning"
        rate = 0.3 if first else run.learning_rate
        return promot_t5x.run_stage(
            promot_t5x.from_gin([str(tiny / "tiny.gin")], {"WORK_DIR": "", "DEMO_CHECKPOINT": ""}),
            "prompt_tuning" if first else "model_tuning",
            promot_t5x.adafactor(rate, multiply_by_parameter_scale=not first),
            promot_t5x.DatasetConfig("toy_enfr", lengths, batch_size=8, shards=2),
            promot_t5x.LoopConfig(total_steps=4),
            model_dir=model_dir,
            checkpoint=promot_t5x.CheckpointConfig(period=2),
            initial_checkpoint_path=starts[0],
            prompt_init=promot_t5x.sampled_vocabulary(population=280) if first else None,
            validation=promot_t5x.Validation(
                "toy_enfr", "validation", promot_t5x.EvaluationConfig(lengths, batch_size=16, limit=16)
            ),
        )

    recipe = Recipe(("pretrained", "prompt_tuning", "promot"), "toy_enfr", ("toy_wic",), learning_rates=(1e-3,))
    wide = promot_t5x.EvaluationConfig({"inputs": 28, "targets": 6}, batch_size=16, limit=16)
    arguments = (recipe, train, model, wide, str(tmp_path / "work"), str(tiny / "base"))
    results = promot_t5x.run_recipe(*arguments)
    assert results["title"] == "ProMoT on toy_enfr"
    work = tmp_path / "work"
    base = str(tiny / "base")
    assert calls == [
        ("prompt_tuning", None, 0, (base,)),
        ("promot", 0.001, 0, (str(work / "seed0/prompt_tuning"),)),
    ]
    assert json.loads((work / "comparison.json").read_text())["methods"] == results["methods"]
    from_gin = json.loads((finished / "comparison.json").read_text())["methods"]
    assert results["methods"]["pretrained"] == from_gin["pretrained"]
    assert set(results["methods"]) == {"pretrained", "prompt_tuning", "promot"}
    before = (work / "comparison.json").read_text()
    promot_t5x.run_recipe(*arguments)
    assert (work / "comparison.json").read_text() == before


def test_a_run_starts_from_the_mean_of_two(tiny, tmp_path):
    """One row of the table names two checkpoints; numpy's mean of them is what the run starts from."""
    _write_base(tmp_path / "other", seed=1)
    recipe = Recipe(
        (
            "pretrained",
            Method(
                "soup", ("stages/fine_tuning.gin",), starts_from=("pretrained", str(tmp_path / "other")), prompt=None
            ),
        ),
        "toy_enfr",
        (),
        learning_rates=(1e-3,),
        headline=("soup", "soup", "pretrained"),
    )
    train = promot_t5x.runs_from_gin(
        [str(tiny / "tiny.gin")], {"WORK_DIR": "", "DEMO_CHECKPOINT": "", "TRAIN_STEPS": 2}
    )
    model = EncoderDecoderModel(T5Config(**TINY, relative_bias_max_distance=64, dropout_rate=0.0))
    wide = promot_t5x.EvaluationConfig({"inputs": 28, "targets": 6}, batch_size=16, limit=16)
    promot_t5x.run_recipe(recipe, train, model, wide, str(tmp_path / "work"), str(tiny / "base"))
    read = [saving.read_params(folder, saving.shapes(folder)) for folder in (tiny / "base", tmp_path / "other")]
    mean = {name: (np.asarray(leaf) + np.asarray(read[1][name])) / np.float32(2) for name, leaf in read[0].items()}
    base = saving.read_metadata(tmp_path / "work/seed0/soup_lr0.001/checkpoint_2")["base"]
    assert base["fingerprint"] == fingerprints.fingerprint(parameter_names.unflatten(mean))
    assert base["path"] == f"{tiny / 'base'}, {tmp_path / 'other'}"


def test_answers_and_scores_of_every_example_are_kept(finished):
    comparison = json.loads((finished / "comparison.json").read_text())
    assert comparison["unit"] == "percent" and len(comparison["rows"]) == 3 * 3 + 2 * 2
    for row in comparison["rows"]:
        lines = [json.loads(line) for line in (finished / row["answers"]).read_text().splitlines()]
        assert len(lines) == row["n"] == 16
        assert all({"prompt", "prediction", "target", "score", "output"} <= set(line) for line in lines)
        assert row["value"] == pytest.approx(np.mean([line["score"] for line in lines]))
        assert row["step"] == (0 if "pretrained" in row["run"] else row["step"]) and row["step"] in (0, 2, 4)
