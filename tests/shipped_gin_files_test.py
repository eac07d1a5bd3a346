"""The shipped gin files: each parses, describes itself, and agrees with the paper."""

import itertools
import re

import gin
import jax
import numpy as np
import pytest
from etils import epath

from promot_t5x.configuration import flags, gin_checks, gin_files
from promot_t5x.data import training_batches
from promot_t5x.models import architecture, encoder_decoder, parameter_names
from promot_t5x.recipes import gin_runs, running
from promot_t5x.recipes.recipe import Recipe, planned_runs
from promot_t5x.tasks import paper
from promot_t5x.training import stage_run, trainer

FILES = {str(path.relative_to(gin_files._PACKAGED)): path for path in gin_files.gin_files_packaged()}
# T5X's binaries parse gin/t5x, in training/t5x_binary_peer_test.py: it imports T5X and names their entry points.
OURS = [name for name in FILES if not name.startswith("t5x/")]

# The recipes of the paper's experiments.
PAPER = (
    *("promot_rte", "promot_wmt14_enfr", "promot_snli", "promot_openbookqa", "promot_rte_1shot"),
    *("promot_wmt14_enfr_1shot", "ablations_rte", "t5_1_1_xxl_rte", "mt5_xl_wmt14_enfr"),
)

# What a file needs next to itself: other files and values, as its head comment says.
_RUN = ["models/mt5_small.gin", "tasks/rte.gin"]
_RUN_VALUES = ["MODEL_DIR = '/m'", "INITIAL_CHECKPOINT_PATH = '/c'"]
_EVAL_VALUES = ["CHECKPOINT_PATH = '/c'", "EVAL_OUTPUT_DIR = '/o'"]
_TRIAL = ["DATA_DIR = '/data'", "VOCABULARY_FILE = '/v.model'"]
NEEDS: dict[str, tuple[list[str], list[str]]] = {
    **{f"stages/{name}.gin": (_RUN, _RUN_VALUES) for name in ("prompt_tuning", "model_tuning", "fine_tuning")},
    **{f"stages/{name}.gin": (_RUN, _RUN_VALUES) for name in ("random_prompt", "joint_tuning")},
    "stages/base.gin": (
        _RUN,
        [*_RUN_VALUES, "STAGE = 'fine_tuning'", "LEARNING_RATE = 1e-3", "TRAIN_STEPS = 1", "CHECKPOINT_PERIOD = 1"],
    ),
    "tasks/rte.gin": (["models/mt5_small.gin"], []),
    "tasks/paper.gin": (
        ["models/mt5_small.gin"],
        ["paper.task.name = 'rte'", "TASK_FEATURE_LENGTHS = {'inputs': 512, 'targets': 8}"],
    ),
    "tasks/toy.gin": (["models/toy.gin"], []),
    "tasks/rte_jsonl.gin": (["models/mt5_small.gin"], ["DATA_DIR = '/data'"]),
    "tasks/jsonl.gin": (["models/mt5_small.gin"], ["DATA_DIR = '/data'"]),
    **{f"tasks/{name}.gin": (["models/mt5_small.gin"], []) for name in ("wmt14_enfr", "snli", "openbookqa")},
    "models/base.gin": ([], ["VOCABULARY_FILE = '/v.model'", "EXTRA_IDS = 0"]),
    "models/trial.gin": ([], ["VOCABULARY_FILE = '/v.model'"]),
    "suites/eval.gin": (
        ["models/toy.gin"],
        [*_EVAL_VALUES, "TASKS = ('toy_rtec',)", "TASK_FEATURE_LENGTHS = {'inputs': 28, 'targets': 6}"],
    ),
    "suites/in_context.gin": (["models/mt5_small.gin"], _EVAL_VALUES),
    "suites/toy_in_context.gin": (["models/toy.gin"], _EVAL_VALUES),
    "suites/infer.gin": (
        ["models/mt5_small.gin"],
        ["CHECKPOINT_PATH = '/c'", "INPUTS = '/i.jsonl'", "INFER_OUTPUT_DIR = '/o'"],
    ),
    "recipes/base.gin": (
        ["models/mt5_small.gin", "tasks/rte.gin"],
        ["WORK_DIR = '/w'", "PRETRAINED = '/c'"],
    ),
    "recipes/demo.gin": ([], ["WORK_DIR = '/w'"]),
    "recipes/demo_seeds.gin": ([], ["WORK_DIR = '/w'"]),
    "recipes/demo_pretrain.gin": ([], ["MODEL_DIR = '/m'"]),
    "recipes/paper.gin": (["models/mt5_small.gin", "tasks/rte.gin"], ["WORK_DIR = '/w'", "PRETRAINED = '/c'"]),
    **{f"recipes/{name}.gin": ([], ["WORK_DIR = '/w'"]) for name in PAPER},
    **{f"recipes/at_mt5_{size}.gin": (["tasks/rte.gin"], []) for size in ("small", "base")},
    "recipes/trial_rte.gin": ([], _TRIAL),
    "recipes/trial_steps.gin": ([], ["STEPS = 10"]),
}
PIPELINES = [*(f"recipes/{name}.gin" for name in (*PAPER, "trial_rte", "demo", "demo_seeds"))]

# Sizes of the public checkpoints: heads, layers of each side, D, F. The heads are 64 wide in all of them.
SIZES = {
    "small": (6, 8, 512, 1024),
    "base": (12, 12, 768, 2048),
    "large": (16, 24, 1024, 2816),
    "xl": (32, 24, 2048, 5120),
    "xxl": (64, 24, 4096, 10240),
}
# Rows of the vocabulary, and the millions of parameters as published for the public checkpoints.
FAMILIES = {
    "mt5": (250112, {"small": 300.2, "base": 582.4, "large": 1229.6, "xl": 3742.6, "xxl": 12921.1}),
    "umt5": (256384, {"small": 306.6, "base": 592.0, "xl": 3768.4, "xxl": 12972.5}),
    "t5_1_1": (32128, {"small": 77.0, "base": 247.6, "large": 783.2, "xl": 2849.8, "xxl": 11135.3}),
}


def _invocation(recipe):
    files, bindings = NEEDS[recipe]
    return flags.Invocation(gin_files=(*files, recipe), gin_bindings=tuple(bindings))


def _recipe(name) -> tuple[flags.Invocation, Recipe]:
    invocation = _invocation(name)
    gin_files.parse(invocation.gin_files, invocation.gin_bindings)
    gin_checks.check_macros()
    return invocation, gin_files.configurable(Recipe)()


def _runs(name):
    """Every training run of a recipe, configured."""
    invocation, recipe = _recipe(name)
    for planned in planned_runs(recipe):
        if planned.method != "pretrained":
            runs = gin_runs.GinRuns(invocation.gin_files, invocation.gin_bindings)
            runs.configure(planned, f"/w/{planned.name}", running.starts(planned, epath.Path("/w"), "/c"))
            yield recipe, planned


@pytest.mark.parametrize("name", FILES)
def test_file_says_what_it_is(name):
    head = list(itertools.takewhile(lambda line: line.startswith("#"), FILES[name].read_text().splitlines()))
    comment = " ".join(line.lstrip("# ") for line in head)
    assert len(comment.split(". ")[0]) > 20, "what it is comes first"
    for word in ("Hardware: ", "Expected number", "Command: "):
        assert word in comment, f"{name} opens without {word}"
    for mentioned in re.findall(r"--gin_file=([\w/]+\.gin)", comment):
        assert mentioned.removeprefix("promot_t5x/gin/") in FILES, f"{name} names {mentioned}, which is not shipped"


@pytest.mark.parametrize("name", OURS)
def test_file_parses_with_what_it_says(name):
    files, bindings = NEEDS.get(name, ([], []))
    gin_files.parse([*files, name], bindings)
    gin_checks.check_macros()
    resolved = gin_files.resolved_config()
    # In any order: files that stand side by side do not fight, and each brings its own imports.
    for order in itertools.permutations([*files, name]):
        gin_files.parse(order, bindings)
        assert gin_files.resolved_config() == resolved, order


# The macros of T5X's own runs/finetune.gin, eval.gin and infer.gin that a user sets, as its repository has them.
T5X_MACROS = {
    "finetune": {
        *("MODEL_DIR", "MIXTURE_OR_TASK_NAME", "TASK_FEATURE_LENGTHS", "MIXTURE_OR_TASK_MODULE", "TRAIN_STEPS"),
        *("INITIAL_CHECKPOINT_PATH", "USE_CACHED_TASKS", "BATCH_SIZE", "EVAL_STEPS", "EVAL_PERIOD", "RANDOM_SEED"),
    },
    "eval": {"CHECKPOINT_PATH", "EVAL_OUTPUT_DIR", "TASK_FEATURE_LENGTHS", "MIXTURE_OR_TASK_SPLIT"},
    "infer": {"CHECKPOINT_PATH", "INFER_OUTPUT_DIR", "TASK_FEATURE_LENGTHS"},
}
STAGES_HERE_AND_THERE = ("prompt_tuning", "model_tuning", "fine_tuning")


def _macros(name: str) -> set[str]:
    """The macros that a shipped file and what it includes define or use."""
    text = FILES[name].read_text()
    included = re.findall(r"^include 'promot_t5x/gin/(.*)'", text, re.MULTILINE)
    here = set(re.findall(r"^([A-Z][A-Z_]+) =", text, re.MULTILINE)) | set(re.findall(r"%([A-Z][A-Z_]+)", text))
    return here.union(*map(_macros, included))


@pytest.mark.parametrize("stage", STAGES_HERE_AND_THERE)
def test_the_macros_of_training_here_and_on_t5x(stage):
    ours, theirs = _macros(f"stages/{stage}.gin"), _macros(f"t5x/{stage}.gin")
    assert T5X_MACROS["finetune"] <= ours & theirs
    assert ours - theirs == {
        *("PRESET", "FROZEN_WEIGHTS_DTYPE", "RESTORE_OPTIMIZER", "VALIDATION_TASK", "EVAL_BATCH_SIZE", "PROFILE")
    }
    assert theirs - ours == {"MODEL_PARALLEL_SUBMESH", "ATTACH_PROMPT", "PROMPT_ID", "ASSIGNMENT_MAP"}


@pytest.mark.parametrize("stage", STAGES_HERE_AND_THERE)
def test_the_flags_of_t5x_mean_something_here(stage):
    values = {"EVAL_PERIOD": 10, "CHECKPOINT_PERIOD": 20, "EVAL_STEPS": 3, "STATS_PERIOD": 5, "RANDOM_SEED": 7}
    values |= {"USE_CACHED_TASKS": True, "MIXTURE_OR_TASK_MODULE": "seqio", "TRAIN_STEPS": 40, "BATCH_SIZE": 16}
    files = ["models/mt5_small.gin", "tasks/rte.gin", f"stages/{stage}.gin"]
    gin_files.parse(files, [*_RUN_VALUES, *(f"{name} = {value!r}" for name, value in values.items())])
    gin_checks.check_macros()
    gin_checks.check_flags()
    loop = gin_files.configurable(trainer.LoopConfig)()
    assert (loop.eval_period, loop.log_period, loop.seed, loop.total_steps) == (10, 5, 7, 40)
    for setting, value in (("use_cached", True), ("module", "seqio"), ("batch_size", 16), ("seed", 7)):
        assert gin_files.bound_arguments(training_batches.DatasetConfig)[setting] == value
    assert gin_files.bound_arguments(stage_run.Validation)["eval_steps"] == 3


@pytest.mark.parametrize("binary", ["eval", "infer"])
def test_the_macros_of_eval_and_infer_here_and_on_t5x(binary):
    assert T5X_MACROS[binary] <= _macros(f"suites/{binary}.gin") & _macros(f"t5x/{binary}.gin")


@pytest.mark.parametrize(
    "name,old,new",
    [
        ("stages/prompt_tuning.gin", "SEED", "RANDOM_SEED"),
        ("suites/eval.gin", "OUTPUT_DIR", "EVAL_OUTPUT_DIR"),
        ("suites/eval.gin", "SPLIT", "MIXTURE_OR_TASK_SPLIT"),
        ("suites/infer.gin", "OUTPUTS", "INFER_OUTPUT_DIR"),
    ],
)
def test_a_macro_by_its_old_name(name, old, new, tmp_path):
    files, values = NEEDS[name]
    values = [value for value in values if not value.startswith(f"{new} ")]
    (tmp_path / "mine.gin").write_text(f"{old} = 'x'\n")
    for more_files, flag in (([tmp_path / "mine.gin"], []), ([], [f"{old} = 'x'"])):
        gin_files.parse([*files, name, *map(str, more_files)], [*values, *flag])
        where = f"{tmp_path / 'mine.gin'}:1" if more_files else f"flag {flag[0]!r}"
        with pytest.raises(flags.ConfigError) as caught:
            gin_checks.check_macros()
        assert str(caught.value) == f"{where}: nothing uses {old}; it is called {new} now"


@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_reported_chose_nothing(name):
    runs = list(_checked_splits(name))
    assert runs, "a recipe trains something"
    for recipe, planned, validation, training in runs:
        same_task = validation.task == recipe.target
        assert not (same_task and validation.split == recipe.target_split), f"{planned.name} chooses on what it reports"
        assert (validation.task, validation.split) not in {(t, recipe.in_context_split) for t in recipe.in_context}
        assert training.split not in (validation.split, recipe.target_split)
        assert training.mixture_or_task_name == recipe.target


def _checked_splits(name):
    for recipe, planned in _runs(name):
        validation = gin_files.configurable(stage_run.Validation)()
        yield recipe, planned, validation, gin_files.configurable(training_batches.DatasetConfig)()


IN_CONTEXT = {"inputs": 6144, "targets": 128}
TRIAL = {"inputs": 128, "targets": 4}


@pytest.mark.parametrize(
    "recipe,task,lengths,in_context",
    [
        ("recipes/promot_rte.gin", "tasks/rte.gin", {"inputs": 512, "targets": 8}, IN_CONTEXT),
        ("recipes/promot_rte.gin", "tasks/wmt14_enfr.gin", {"inputs": 256, "targets": 256}, IN_CONTEXT),
        ("recipes/trial_rte.gin", "tasks/rte_jsonl.gin", TRIAL, TRIAL),
        ("recipes/trial_rte.gin", "tasks/jsonl.gin", TRIAL, TRIAL),
    ],
)
def test_a_task_keeps_its_lengths_in_a_recipe(recipe, task, lengths, in_context):
    """RTE's checkpoints were chosen with the in-context tasks' lengths, and En-Fr was decoded to 128 of its 256."""
    files, bindings = [recipe, task], [*_TRIAL, "WORK_DIR = '/w'"]
    gin_files.parse(files, bindings)
    arguments = gin_files.bound_arguments(running.run_recipe, "pipeline.run", given=("train",))
    assert arguments["recipe"].target_lengths == lengths and "title" not in arguments
    assert arguments["evaluation_config"].task_feature_lengths == in_context
    planned = planned_runs(arguments["recipe"])[-1]
    gin_runs.GinRuns(files, bindings).configure(planned, "/w/run", ["/c"])
    assert gin_files.configurable(stage_run.Validation)().config.task_feature_lengths == lengths
    assert gin_files.configurable(training_batches.DatasetConfig)().task_feature_lengths == lengths


@pytest.mark.parametrize("name", PIPELINES)
def test_methods_that_train_the_model_are_treated_alike(name):
    compared = ("BATCH_SIZE", "TRAIN_STEPS", "CHECKPOINT_PERIOD", "LABEL_SMOOTHING", "DROPOUT_RATE")
    settings, rates = {}, {}
    grid = set()
    for recipe, planned in _runs(name):
        grid = set(recipe.learning_rates)
        if planned.method == "prompt_tuning":
            assert planned.learning_rate is None
            continue
        rates.setdefault(planned.method, set()).add(gin.query_parameter("LEARNING_RATE/gin.macro.value"))
        values = tuple(gin.query_parameter(f"{macro}/gin.macro.value") for macro in compared)
        values += (gin.query_parameter("optimizers.adafactor.multiply_by_parameter_scale"),)
        settings[planned.method] = values
    assert {"fine_tuning", "promot"} <= set(settings)
    assert len(set(settings.values())) == 1, settings
    assert all(tried == grid for tried in rates.values()), rates


def test_the_demo_is_what_the_results_compare():
    _, recipe = _recipe("recipes/demo.gin")
    assert set(recipe.methods) == {"pretrained", "prompt_tuning", "fine_tuning", "random_prompt", "promot"}
    assert len(recipe.in_context) == 8 and recipe.target not in recipe.in_context
    assert len(set(recipe.learning_rates)) >= 3 and len(recipe.seeds) == 1
    assert len(set(_recipe("recipes/demo_seeds.gin")[1].seeds)) >= 3


def test_promot_rte_is_the_papers():
    """Section 4 and appendix B.4 of the paper; Adafactor's settings are T5X's and the prompt-tuning code's."""
    common = {"BATCH_SIZE": 64, "LABEL_SMOOTHING": 0.1, "DROPOUT_RATE": 0.1}
    model_training = {"TRAIN_STEPS": 1000, "CHECKPOINT_PERIOD": 100, "LEARNING_RATE": 1e-3}
    prompt_training = {"TRAIN_STEPS": 5000, "CHECKPOINT_PERIOD": 1000, "LEARNING_RATE": 0.2}
    stages = {"prompt_tuning": "prompt_tuning", "fine_tuning": "fine_tuning", "promot": "model_tuning"}
    seen = []
    for _, planned in _runs("recipes/promot_rte.gin"):
        seen.append(planned.method)
        wanted = common | (prompt_training if planned.method == "prompt_tuning" else model_training)
        wanted["STAGE"] = stages[planned.method]
        assert {macro: gin.query_parameter(f"{macro}/gin.macro.value") for macro in wanted} == wanted
        scaled = gin.query_parameter("optimizers.adafactor.multiply_by_parameter_scale")
        assert scaled is (planned.method != "prompt_tuning")
        if planned.method == "prompt_tuning":
            assert gin.query_parameter("optimizers.adafactor.weight_decay_rate") == 1e-5
        else:
            with pytest.raises(ValueError, match="weight_decay_rate"):
                gin.query_parameter("optimizers.adafactor.weight_decay_rate")
        network = gin_files.configurable(encoder_decoder.EncoderDecoderModel)()
        assert (network.config.prompt_length, network.config.dropout_rate, network.label_smoothing) == (100, 0.1, 0.1)
        assert (network.decoding.method, network.decoding.num_beams) == ("beam", 4)
    assert seen == ["prompt_tuning", "fine_tuning", "promot"]


PAPER_TARGETS = {
    "promot_rte": ("rte", {"inputs": 512, "targets": 8}, 4096),
    "promot_wmt14_enfr": ("wmt14_enfr", {"inputs": 256, "targets": 256}, 4096),
    "promot_snli": ("snli", {"inputs": 256, "targets": 8}, 4096),
    "promot_openbookqa": ("openbookqa", {"inputs": 256, "targets": 8}, 4096),
    "promot_rte_1shot": ("rte_1shot_seed0", {"inputs": 1024, "targets": 8}, 4096),
    "promot_wmt14_enfr_1shot": ("wmt14_enfr_1shot_seed0", {"inputs": 768, "targets": 256}, 4096),
    "ablations_rte": ("rte", {"inputs": 512, "targets": 8}, 4096),
    "t5_1_1_xxl_rte": ("rte", {"inputs": 512, "targets": 8}, 4096),
    "mt5_xl_wmt14_enfr": ("wmt14_enfr", {"inputs": 256, "targets": 256}, 2048),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_experiments(name):
    """Section 5 and appendix C: the target of each table, and eight tasks with 1 and 4 exemplars, three draws each."""
    target, lengths, embed_dim = PAPER_TARGETS[name]
    _, recipe = _recipe(f"recipes/{name}.gin")
    assert (recipe.target, recipe.target_lengths, recipe.learning_rates) == (target, lengths, (1e-3,))
    draws = [f"{k}shot_seed{seed}" for k in (1, 4) for seed in (0, 1, 2)]
    assert recipe.in_context == tuple(f"{task}_{draw}" for task in paper.IN_CONTEXT_TASKS for draw in draws)
    extra = {"joint_tuning", "random_prompt"} if name == "ablations_rte" else set()
    assert set(recipe.methods) == {"pretrained", "prompt_tuning", "fine_tuning", "promot"} | extra
    model = gin_files.configurable(encoder_decoder.EncoderDecoderModel)()
    checkpoint = gin.query_parameter("PRETRAINED/gin.macro.value")
    vocab_size = 32128 if name.startswith("t5_1_1") else 250112
    assert (model.config.embed_dim, model.config.vocab_size) == (embed_dim, vocab_size)
    assert f"/{'t5_1_1' if vocab_size == 32128 else 'mt5'}_{'xl' if embed_dim == 2048 else 'xxl'}/" in checkpoint


def test_one_draw_of_one_exemplar():
    files, values = NEEDS["recipes/promot_rte.gin"]
    gin_files.parse([*files, "recipes/promot_rte.gin"], [*values, "SHOTS = (1,)", "SEEDS = (0,)"])
    in_context = gin_files.configurable(Recipe)().in_context
    assert in_context == tuple(f"{task}_1shot_seed0" for task in paper.IN_CONTEXT_TASKS)


@pytest.mark.parametrize("size, embed_dim", [("small", 512), ("base", 768)])
@pytest.mark.parametrize("name", [name for name in PAPER if not name.startswith("t5")])
def test_the_papers_experiments_at_a_smaller_size(name, size, embed_dim):
    files = [f"recipes/{name}.gin", f"recipes/at_mt5_{size}.gin"]
    gin_files.parse(files, ["WORK_DIR = '/w'"])
    gin_checks.check_macros()
    arguments = gin_files.bound_arguments(running.run_recipe, "pipeline.run", given=("train",))
    assert len(arguments["recipe"].in_context) == 8 and arguments["recipe"].target == PAPER_TARGETS[name][0]
    assert arguments["recipe"].target_lengths == PAPER_TARGETS[name][1]
    assert (arguments["evaluation_config"].limit, arguments["partitioner"].num_partitions) == (200, 1)
    assert (arguments["model"].config.embed_dim, arguments["model"].config.vocab_size) == (embed_dim, 250112)
    assert f"/mt5_{size}/" in arguments["initial_checkpoint_path"]
    for planned in planned_runs(arguments["recipe"])[1:]:
        gin_runs.GinRuns(files, ["WORK_DIR = '/w'"]).configure(planned, "/w/run", ["/c"])
        assert gin_files.configurable(stage_run.Validation)().config.limit == 200


@pytest.mark.parametrize("family,size", [(f, size) for f, (_, counts) in FAMILIES.items() for size in counts])
def test_sizes_of_the_public_models(family, size):
    heads, layers, embed, mlp = SIZES[size]
    vocab_size, counts = FAMILIES[family]
    gin_files.parse([f"models/{family}_{size}.gin"])
    c = gin_files.configurable(architecture.T5Config)()
    assert (c.num_heads, c.num_encoder_layers, c.num_decoder_layers) == (heads, layers, layers)
    assert (c.head_dim, c.embed_dim, c.mlp_dim, c.vocab_size) == (64, embed, mlp, vocab_size)
    assert (c.mlp_activations, c.logits_via_embedding, c.dtype) == (("gelu", "linear"), False, "bfloat16")
    shapes = parameter_names.flatten(gin_files.configurable(encoder_decoder.EncoderDecoderModel)().abstract_params())
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in shapes.values()), "no weight is made"
    prompt = shapes.pop("soft_prompt/embedding")
    assert prompt.shape == (1, 100, embed)
    attention, norms = 4 * embed * heads * 64, (2 * layers + 3 * layers + 2) * embed
    biases = 2 * 32 * heads * (layers if family == "umt5" else 1)
    closed_form = 2 * vocab_size * embed + 3 * layers * attention + 2 * layers * 3 * embed * mlp + norms + biases
    total = sum(int(np.prod(leaf.shape)) for leaf in shapes.values())
    assert total == closed_form
    assert round(total / 1e6, 1) == counts[size]
