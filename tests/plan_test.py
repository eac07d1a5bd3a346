"""promot_t5x.plan: what the verb reads of recipes and prints, what the TPU compiler says of small and large recipes."""

import contextlib
import dataclasses
import importlib.util
import io
import json
import math
import re

import pytest

from promot_t5x import cli, plan
from promot_t5x.configuration import flags, program
from promot_t5x.planning import chips, hlo, measures, programs, search
from promot_t5x.planning.hlo_costs import Collective
from promot_t5x.planning.measures import GIB, Measured
from tests import absent_devices

DEVICES = absent_devices.devices(64)
RECIPE = ["--gin_file=recipes/promot_rte.gin"]
TRAIN = ["--gin_file=models/mt5_xl.gin", "--gin_file=tasks/rte.gin", "--gin_file=stages/prompt_tuning.gin"]


def _planned(*argv, devices=DEVICES):
    return plan.configured(flags.parse_flags(argv), devices)


# What is configured


def test_a_recipe_is_both_stages_and_its_evaluation(tmp_path, monkeypatch):
    """No WORK_DIR, no network: neither the vocabulary in its bucket nor any data is read."""
    monkeypatch.chdir(tmp_path)
    planned = _planned(*RECIPE, "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}")
    assert list(planned.stages) == ["prompt_tuning", "model_tuning"]
    for stage, training in planned.stages.items():
        assert training.stage == stage and training.lengths == {"inputs": 512, "targets": 128}
        assert (training.batch_size, training.num_microbatches, training.frozen_weights_dtype) == (64, 1, None)
        assert training.partitioner.devices == DEVICES and training.partitioner.num_partitions == 4
        config = training.model.config
        assert (config.embed_dim, config.prompt_length, config.remat, config.scan_layers) == (4096, 100, "full", True)
        assert training.model.label_smoothing == 0.1
    assert planned.evaluation is not None
    assert planned.evaluation.lengths == {"inputs": 6144, "targets": 128} and planned.evaluation.batch_size == 32
    assert planned.evaluation.model.config == planned.stages["prompt_tuning"].model.config
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_without_an_evaluation_is_planned_without_one(tmp_path):
    without = TINY.replace("pipeline.run.evaluation_config = @scoring.EvaluationConfig()\n", "")
    assert without != TINY
    (tmp_path / "tiny.gin").write_text(without)
    planned = _planned(f"--gin_file={tmp_path}/tiny.gin", devices=DEVICES[:4])
    assert planned.evaluation is None and list(planned.stages) == ["prompt_tuning", "model_tuning"]


def test_the_optimizers_are_the_stages_own():
    """Stage 1 does not scale by the parameters, stage 2 does: the same update moves a large weight further."""
    import jax.numpy as jnp

    moved = {}
    for stage, training in _planned(*RECIPE).stages.items():
        params = {"a": jnp.full((3,), 100.0)}
        state = training.optimizer.build().init(params)
        updates, _ = training.optimizer.build().update({"a": jnp.ones(3)}, state, params, gradient_norm=jnp.float32(1))
        moved[stage] = abs(float(updates["a"][0]))
    # The prompt's rate is 0.2; the model's is 1e-3 of the parameter.
    assert moved == {"prompt_tuning": pytest.approx(0.2, rel=0.01), "model_tuning": pytest.approx(0.1, rel=0.01)}


def test_files_of_the_train_binary_are_one_stage():
    planned = _planned(*TRAIN)
    assert list(planned.stages) == ["prompt_tuning"] and planned.stages["prompt_tuning"].model.config.embed_dim == 2048
    assert planned.evaluation is not None and planned.evaluation.lengths == {"inputs": 512, "targets": 8}
    for stage in ("model_tuning", "fine_tuning", "joint_tuning"):
        assert list(_planned(*TRAIN[:2], f"--gin_file=stages/{stage}.gin").stages) == [stage]
    assert _planned(*TRAIN, "--gin.train.train.validation=None").evaluation is None


def test_flags_win():
    argv = [*RECIPE, "--gin.NUM_MICROBATCHES=2", "--gin.BATCH_SIZE=32", "--gin.NUM_PARTITIONS=8"]
    argv += ["--gin.FROZEN_WEIGHTS_DTYPE=bfloat16", "--gin.WORK_DIR=/somewhere", "--gin.EVAL_BATCH_SIZE=16"]
    planned = _planned(*argv)
    for training in planned.stages.values():
        assert (training.batch_size, training.num_microbatches, training.frozen_weights_dtype) == (32, 2, "bfloat16")
        assert dict(training.partitioner.mesh().shape) == {"replica": 1, "data": 8, "model": 8}
    assert planned.evaluation is not None and planned.evaluation.batch_size == 16


@pytest.mark.parametrize("files", [RECIPE, TRAIN], ids=["recipe", "train"])
def test_a_flag_that_changes_nothing_is_refused(files):
    with pytest.raises(flags.ConfigError, match=r"nothing uses BATCH_SIZ \(did you mean 'BATCH_SIZE'\?\)"):
        _planned(*files, "--gin.BATCH_SIZ=32")


def test_nothing_to_plan():
    with pytest.raises(flags.ConfigError, match=r"^the gin files never mention train.train"):
        _planned("--gin_file=models/mt5_xl.gin")
    with pytest.raises(ValueError, match=r"has no run to plan"):
        _planned(*RECIPE, "--gin.pipeline.Recipe.methods=('pretrained',)")


def test_baselines_are_planned_where_nothing_else_trains():
    """Their steps are no more than ProMoT's second stage, so next to it they add nothing."""
    planned = _planned(*RECIPE, "--gin.pipeline.Recipe.methods=('pretrained', 'fine_tuning')")
    assert list(planned.stages) == ["fine_tuning"]


@pytest.mark.parametrize("files", [RECIPE, TRAIN], ids=["recipe", "train"])
def test_advice_can_be_followed(files):
    """Each flag, as written, changes what it is to change."""
    argv = [*files, "--gin.T5Config.remat='none'", "--gin.NUM_PARTITIONS=8"]
    training = _planned(*argv).stages["prompt_tuning"]
    advised = [line.partition(":")[0] for line in search.training_advice(training) if line.startswith("--gin")]
    assert len(advised) == 3
    for flag in advised:
        changed = _planned(*argv, flag).stages["prompt_tuning"]
        settings = (changed.model.config.remat, changed.num_microbatches, changed.frozen_weights_dtype)
        assert sum(a != b for a, b in zip(settings, ("none", 1, None), strict=True)) == 1, flag
    changed = _planned(*argv, *advised).stages["prompt_tuning"]
    settings = (changed.model.config.remat, changed.num_microbatches, changed.frozen_weights_dtype)
    assert settings == ("full", 2, "bfloat16")


# The verb


FITS = Measured(
    arguments=GIB,
    temporaries=GIB,
    peak=0,
    hbm=int(15.75 * GIB),
    fits=True,
    largest=(),
    devices=8,
    flops_jaxpr=1e12,
    flops_hlo=1e12,
    collectives=(Collective("all-reduce", "data", 1, 1e6),),
    compute_seconds=1.0,
)
TOO_LARGE = dataclasses.replace(
    FITS, temporaries=None, peak=20 * GIB, fits=False, flops_hlo=None, collectives=(), compute_seconds=0.0
)


@pytest.fixture
def without_compiler(monkeypatch):
    """Devices that this machine lacks, and one answer for every program."""
    monkeypatch.setattr(chips.Topology, "devices", lambda self: DEVICES[: self.chips * self.slices])
    seen = []

    def measure(traced, topology, unknown_trips=None):
        seen.append((traced, unknown_trips))
        return TOO_LARGE if len(seen) == 2 else FITS

    monkeypatch.setattr(measures, "measure", measure)
    return seen


TINY = """\
from __gin__ import dynamic_registration

from promot_t5x.evaluation import scoring
from promot_t5x.models import encoder_decoder
from promot_t5x import pipeline

include 'promot_t5x/gin/models/toy.gin'

MIXTURE_OR_TASK_NAME = 'no task that is read'
TASK_FEATURE_LENGTHS = {'inputs': 10, 'targets': 4}
EVAL_FEATURE_LENGTHS = {'inputs': 28, 'targets': 6}
TRAIN_SPLIT = 'train'
VALIDATION_SPLIT = 'validation'

pipeline.run.recipe = @pipeline.Recipe()
pipeline.run.model = @encoder_decoder.EncoderDecoderModel()
pipeline.run.evaluation_config = @scoring.EvaluationConfig()
pipeline.run.work_dir = %WORK_DIR
pipeline.run.initial_checkpoint_path = %INITIAL_CHECKPOINT_PATH
scoring.EvaluationConfig.task_feature_lengths = %EVAL_FEATURE_LENGTHS
scoring.EvaluationConfig.batch_size = 64
pipeline.Recipe.methods = ('prompt_tuning', 'promot')
pipeline.Recipe.learning_rates = (1e-3,)
pipeline.Recipe.target = %MIXTURE_OR_TASK_NAME
pipeline.Recipe.in_context = ()
pipeline.Recipe.stage_files = {
    'prompt_tuning': ('stages/prompt_tuning.gin',),
    'promot': ('stages/model_tuning.gin',),
}
"""


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "tiny.gin").write_text(TINY)
    return f"--gin_file={tmp_path}/tiny.gin"


def test_a_whole_plan(tiny, tmp_path, capsys, caplog, without_compiler):
    file = tmp_path / "out" / "plan.json"
    with caplog.at_level("INFO"):
        assert cli.main(["plan", tiny, "--topology=v5e:2x4", "--slices=2", f"--json={file}"]) == 0
    said = [message for message in caplog.messages if message.startswith("compil")]
    assert said[0].startswith("compiling prompt_tuning for ") and said[2].startswith("compiling model_tuning for ")
    assert said[1] == "compiled prompt_tuning in 0 s: fits, 2.00 of 15.75 GiB per device"
    assert said[3] == "compiled model_tuning in 0 s: does not fit, 20.00 of 15.75 GiB per device"
    stdout = capsys.readouterr().out
    assert stdout.startswith("2 x v5e:2x4 (v5litepod-8 in Google Cloud, 8 chips), preset mixed, mesh ")
    assert "\nprompt_tuning " in stdout and "\nscoring " in stdout and "\ndecoding " in stdout
    assert "model_tuning does not fit: 20.00 GiB needed, 15.75 GiB available\n  1. --gin.T5Config.remat=full" in stdout
    written = json.loads(file.read_text())
    assert (written["topology"], written["slices"]) == ("v5e:2x4", 2)
    assert [written["stages"][name]["fits"] for name in ("prompt_tuning", "model_tuning")] == [True, False]
    assert set(written["evaluation"]) == {"scoring", "decoding"} and "search" not in written
    assert [group["name"] for group in written["parameters"]["groups"]["model_tuning"]][:2] == [
        "decoder",
        "decoder/logits_dense",
    ]
    groups = written["parameters"]["groups"]["prompt_tuning"]
    assert sum(group["count"] for group in groups if group["state"] == "trained") == 8 * 128
    # A decode may end early; it is reckoned with the whole length.
    assert [trips for _, trips in without_compiler] == [None, None, 6, 6]
    rows = [traced.arguments[-1]["encoder_input_tokens"].shape for traced, _ in without_compiler]
    assert rows == [(64, 10), (64, 10), (64, 28), (64, 28)]


def test_a_search(tiny, tmp_path, capsys, without_compiler, monkeypatch):
    for name in ("training_step", "scoring", "decoding"):
        monkeypatch.setattr(programs, name, lambda of: programs.Traced(None, None, None, of.partitioner))
    file = tmp_path / "plan.json"
    small = ["--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1"]
    assert cli.main(["plan", tiny, *small, "--topology=v5e:2x2", "--search", f"--json={file}"]) == 0
    stdout = capsys.readouterr().out
    for stage in ("prompt_tuning", "model_tuning"):
        assert f"\n{stage} on v5e:2x2 (v5litepod-4 in Google Cloud, 4 chips), fastest bound first\n" in stdout
    written = json.loads(file.read_text())["search"]
    # The toy world's 288 words, four heads and 64 rows divide over everything that four devices allow.
    meshes = [(preset, model) for preset in ("mixed", "tensor") for model in (1, 2, 4)]
    meshes += [("fully_sharded", 1), ("data", 1)]
    for candidates in written.values():
        assert sorted((c["mesh"]["preset"], c["mesh"]["model"]) for c in candidates) == sorted(meshes)


MISTAKES = {
    "no topology": ([], "error: the following arguments are required: --topology"),
    "no such generation": (["--topology=v9:2x2"], "error: --topology is 'v9:2x2': expected a generation among v3, v4,"),
    "wrong dimensions": (["--topology=v4:4x4"], "error: --topology is 'v4:4x4': a slice of v4 has 3 dimensions."),
    "no slices": (["--topology=v5e:2x2", "--slices=0"], "error: --slices is 0: expected at least 1."),
    "no file": (["--topology=v5e:2x2", "--gin_file=nothing.gin"], "error: gin file 'nothing.gin' was not found in "),
    "no stage": (["--topology=v5e:2x2"], "error: the gin files never mention train.train"),
    "rows that do not divide": (
        ["--topology=v5e:4x4", "TINY", "--gin.BATCH_SIZE=8"],
        "error: A batch has 8 rows, which do not divide over the 16 devices of mesh axis ('replica', 'data')",
    ),
    "a network that does not divide": (
        ["--topology=v5e:4x4", "TINY", "--gin.NUM_PARTITIONS=16"],
        "error: decoder/relpos_bias/rel_embedding has a dimension of 4, which does not divide over the 16 devices of ",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes(mistake, tiny, capsys, without_compiler):
    argv, sentence = MISTAKES[mistake]
    assert cli.main(["plan", *(tiny if argument == "TINY" else argument for argument in argv)]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and errors[0].startswith(sentence)
    assert without_compiler == []


def test_without_the_compiler(tiny, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    assert cli.main(["plan", tiny, "--topology=v5e:2x2"]) == 1
    stderr = capsys.readouterr().err
    assert "error: A plan needs the TPU compiler (but no TPU), which is not installed: pip install" in stderr


# What the TPU's compiler says to a small network


D, HEADS, JOINED, F, V, P, LAYERS = 128, 4, 256, 256, 32768, 8, 2
SMALL = f"""\
from __gin__ import dynamic_registration

from promot_t5x.models import architecture
from promot_t5x.models import encoder_decoder
from promot_t5x import pipeline

include 'promot_t5x/gin/models/t5_1_1_small.gin'

MIXTURE_OR_TASK_NAME = 'no task that is read'
TASK_FEATURE_LENGTHS = {{'inputs': 120, 'targets': 128}}
TRAIN_SPLIT = 'train'
VALIDATION_SPLIT = 'validation'

architecture.T5Config.vocab_size = {V}
architecture.T5Config.embed_dim = {D}
architecture.T5Config.num_heads = {HEADS}
architecture.T5Config.mlp_dim = {F}
architecture.T5Config.num_encoder_layers = {LAYERS}
architecture.T5Config.num_decoder_layers = {LAYERS}
pipeline.run.recipe = @pipeline.Recipe()
pipeline.run.model = @encoder_decoder.EncoderDecoderModel()
pipeline.run.work_dir = %WORK_DIR
pipeline.run.initial_checkpoint_path = %INITIAL_CHECKPOINT_PATH
pipeline.Recipe.methods = ('prompt_tuning', 'promot')
pipeline.Recipe.learning_rates = (1e-3,)
pipeline.Recipe.target = %MIXTURE_OR_TASK_NAME
pipeline.Recipe.in_context = ()
pipeline.Recipe.stage_files = {{
    'prompt_tuning': ('stages/prompt_tuning.gin',),
    'promot': ('stages/model_tuning.gin',),
}}
"""
SMALL_FLAGS = ["--gin.NUM_PARTITIONS=2", "--gin.BATCH_SIZE=8", f"--gin.PROMPT_LENGTH={P}"]
MATRICES = LAYERS * (4 * D * JOINED + 3 * D * F) + LAYERS * (8 * D * JOINED + 3 * D * F) + V * D  # of products
WEIGHTS = MATRICES + V * D
PROMPT_BYTES = 4 * P * D


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the verb printed and wrote for a recipe, and the programs that it compiled."""

    code: int
    stdout: str
    written: dict
    programs: dict


def _compiled(folder, *argv):
    """Runs the verb on the small recipe; one of these takes half a minute a stage."""
    (folder / "small.gin").write_text(SMALL)
    made, original = [], programs.Traced.compile

    def compile_and_keep(self):
        made.append(original(self))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as stdout:
        patch.setattr(programs.Traced, "compile", compile_and_keep)
        files = [f"--gin_file={folder}/small.gin", f"--json={folder}/plan.json", *SMALL_FLAGS]
        code = program.run_main(plan.main, [*files, *argv])
    written = json.loads((folder / "plan.json").read_text())
    return Compiled(code, stdout.getvalue(), written, dict(zip(written["stages"], made, strict=False)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return _compiled(tmp_path_factory.mktemp("small"), "--topology=v5e:2x2")


@pytest.mark.tpu_compiler
def test_both_stages_of_a_small_recipe(small):
    assert small.code == 0 and small.written["topology"] == "v5e:2x2"
    assert small.written["mesh"] == {"preset": "mixed", "replica": 1, "data": 2, "model": 2}
    assert list(small.written["stages"]) == ["prompt_tuning", "model_tuning"]
    for stage, step in small.written["stages"].items():
        assert step["fits"] and step["hbm_gib"] == 15.75, stage
        assert step["flops_hlo"] / step["flops_jaxpr"] == pytest.approx(1, abs=0.01), stage
        # The rest are relative biases, scales and the batch.
        assert 1 <= step["arguments_gib"] * GIB / (4 * WEIGHTS / 4) < 1.05, stage
        assert step["peak_gib"] < 0.1 and re.search(rf"^{stage} .* yes$", small.stdout, re.MULTILINE)
        assert step["ideal_step_seconds"] == pytest.approx(step["flops_hlo"] / 4 / 197e12, rel=1e-6)
        assert step["traffic_bytes"] == pytest.approx(sum(row["bytes"] for row in step["collectives"]))
    prompt_tuning, model_tuning = small.written["stages"].values()
    # Half of all rows are target tokens, the encoder's are prompt and inputs: each weight meets 8 x 128 tokens.
    assert prompt_tuning["weight_gradient_flops"] == 0
    assert model_tuning["weight_gradient_flops"] == 2 * 8 * 128 * MATRICES


@pytest.mark.tpu_compiler
def test_only_the_soft_prompt_is_summed_over_the_batch_in_stage_1(small):
    prompt_tuning, model_tuning = small.written["stages"].values()
    # Next to the prompt's gradient the compiler writes gathers of the layers' scales as sums.
    assert PROMPT_BYTES / 2 <= prompt_tuning["data_axis_reduction_bytes"] <= 8 * PROMPT_BYTES
    # Gradients of bfloat16 products, in the half of each weight that is cut along `model`, from one other device.
    assert model_tuning["data_axis_reduction_bytes"] > 2 * (WEIGHTS / 2) / 2


@pytest.mark.tpu_compiler
def test_frozen_weights_are_neither_results_nor_copied(small):
    memory = {stage: compiled.memory_analysis() for stage, compiled in small.programs.items()}
    prompt_tuning, frozen = memory["prompt_tuning"], 4 * WEIGHTS / 4
    # The prompt and its second moment are returned in place of what came; the metrics are a few numbers, padded.
    assert prompt_tuning.output_size_in_bytes < 32 * 1024 and prompt_tuning.temp_size_in_bytes < frozen / 4
    results = prompt_tuning.output_size_in_bytes - prompt_tuning.alias_size_in_bytes
    assert prompt_tuning.alias_size_in_bytes >= PROMPT_BYTES and results < 8 * 1024
    # In stage 2 the weights are results, and all of them take the place of what came.
    model_tuning = memory["model_tuning"]
    assert frozen <= model_tuning.alias_size_in_bytes and model_tuning.output_size_in_bytes < 1.05 * frozen
    assert model_tuning.output_size_in_bytes - model_tuning.alias_size_in_bytes < 64 * 1024


@pytest.mark.tpu_compiler
def test_the_embedding_is_never_gathered(small):
    """The table is cut by words over `model`: each device looks up what it has, and goes through its own logits."""
    for stage, compiled in small.programs.items():
        program = hlo.parse(compiled.as_text())
        exchanged = [
            (max(math.prod(sizes) for _, sizes in instruction.shapes), instruction.name)
            for _, instruction, _ in program.walk()
            if instruction.opcode.startswith(("all-gather", "all-reduce", "all-to-all", "collective-permute"))
        ]
        assert exchanged and max(exchanged)[0] < V * D, stage
        gathered = [size for size, name in exchanged if name.startswith("all-gather")]
        assert max(gathered) <= V // 2 // 2 * D, "the logits' chunks, two of each device's half of the words"


@pytest.mark.tpu_compiler
def test_two_slices(tmp_path):
    once = "--gin.pipeline.Recipe.methods=('prompt_tuning',)"
    plan_of_two = _compiled(tmp_path, "--topology=v5e:2x2", "--slices=2", once)
    assert plan_of_two.code == 0 and plan_of_two.stdout.startswith("2 x v5e:2x2 (v5litepod-4 in Google Cloud, 4 chips)")
    assert plan_of_two.written["mesh"] == {"preset": "mixed", "replica": 2, "data": 2, "model": 2}
    (step,) = plan_of_two.written["stages"].values()
    assert step["fits"] and step["flops_hlo"] / step["flops_jaxpr"] == pytest.approx(1, abs=0.01)
    assert step["weight_gradient_flops"] == 0 and step["data_axis_reduction_bytes"] <= 8 * PROMPT_BYTES
    # Between slices goes the prompt's gradient, and no weight.
    between = [row for row in step["collectives"] if "replica" in row["axes"].split("+")]
    assert {row["kind"] for row in between} == {"all-reduce"}
    # Each device has its part of the prompt, and hears half of it twice: once as a part of the sum, once as the sum.
    assert PROMPT_BYTES / 4 <= sum(row["bytes"] for row in between) <= 2 * PROMPT_BYTES


@pytest.mark.tpu_compiler
def test_a_network_that_is_too_large(tmp_path):
    """Its arguments alone do not fit, so that nothing is compiled, and the advice follows."""
    large = _compiled(tmp_path, "--topology=v5e:2x2", f"--gin.T5Config.vocab_size={2**28}")
    assert large.code == 0 and large.programs == {}
    for stage, step in large.written["stages"].items():
        assert not step["fits"] and 64 < step["arguments_gib"] < 66, "two matrices of 2**28 x 128 in four pieces"
        assert step["temporaries_gib"] is step["flops_hlo"] is step["traffic_bytes"] is None
        assert re.search(
            rf"^{stage} does not fit: 6[45]\.\d\d GiB needed, 15.75 GiB available$", large.stdout, re.MULTILINE
        )
    assert "\n  1. --gin.NUM_MICROBATCHES=2: " in large.stdout and "\n  2. --gin.FROZEN_WEIGHTS_DTYPE=" in large.stdout


# What it says to mT5-XXL: minutes each


XXL = [*RECIPE, "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}"]


def _measure(topology_name, stage, *argv):
    topology = chips.topology(topology_name)
    training = _planned(*XXL, *argv, devices=topology.devices()).stages[stage]
    return measures.measure(programs.training_step(training), topology)


@pytest.mark.tpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "stage,argv,most_gib",
    [
        ("prompt_tuning", [], 2.4),
        ("prompt_tuning", ["--gin.FROZEN_WEIGHTS_DTYPE=bfloat16"], 2.0),
        ("model_tuning", [], 3.6),
    ],
    ids=["prompt_tuning", "prompt_tuning_bfloat16", "model_tuning"],
)
def test_xxl_on_64_chips(stage, argv, most_gib):
    measured = _measure("v4:4x4x4", stage, *argv)
    assert measured.fits and measured.arguments + measured.temporaries <= most_gib * GIB
    assert measured.flops_hlo / measured.flops_jaxpr == pytest.approx(1, abs=0.01)
    if stage == "prompt_tuning":
        assert measured.weight_gradient_flops == 0 and measured.data_axis_reductions <= 4e6
    else:
        assert measured.weight_gradient_flops > 0.2 * measured.flops_jaxpr


@pytest.mark.tpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "topology,stage",
    [("v5e:4x8", "model_tuning"), ("v3:8x8", "prompt_tuning"), ("v3:8x8", "model_tuning")],
)
def test_xxl_on_other_chips(topology, stage):
    measured = _measure(topology, stage)
    assert measured.fits and measured.needed <= measured.hbm
