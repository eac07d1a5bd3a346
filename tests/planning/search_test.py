"""promot_t5x.planning.search: what it reads of recipes, what it advises, what the TPU compiler says of all plans."""

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
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import PRESETS, Partitioner
from promot_t5x.planning import chips, hlo, measures, programs, search
from promot_t5x.planning.hlo_costs import Collective
from promot_t5x.planning.measures import GIB, Measured
from promot_t5x.training import optimizers
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
    asked = _planned(*RECIPE, "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}")
    assert list(asked.stages) == ["prompt_tuning", "model_tuning"]
    for stage, training in asked.stages.items():
        assert training.stage == stage and training.lengths == {"inputs": 512, "targets": 128}
        assert (training.batch_size, training.num_microbatches, training.frozen_weights_dtype) == (64, 1, None)
        assert training.partitioner.devices == DEVICES and training.partitioner.num_partitions == 4
        config = training.model.config
        assert (config.embed_dim, config.prompt_length, config.remat, config.scan_layers) == (4096, 100, "full", True)
        assert training.model.label_smoothing == 0.1
    assert asked.evaluation is not None
    assert asked.evaluation.lengths == {"inputs": 2560, "targets": 128} and asked.evaluation.batch_size == 64
    assert asked.evaluation.model.config == asked.stages["prompt_tuning"].model.config
    assert list(tmp_path.iterdir()) == []


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
    asked = _planned(*TRAIN)
    assert list(asked.stages) == ["prompt_tuning"] and asked.stages["prompt_tuning"].model.config.embed_dim == 2048
    assert asked.evaluation is not None and asked.evaluation.lengths == {"inputs": 512, "targets": 8}
    for stage in ("model_tuning", "fine_tuning", "joint_tuning"):
        assert list(_planned(*TRAIN[:2], f"--gin_file=stages/{stage}.gin").stages) == [stage]
    assert _planned(*TRAIN, "--gin.train.train.validation=None").evaluation is None


def test_flags_win():
    argv = [*RECIPE, "--gin.NUM_MICROBATCHES=2", "--gin.BATCH_SIZE=32", "--gin.NUM_PARTITIONS=8"]
    argv += ["--gin.FROZEN_WEIGHTS_DTYPE=bfloat16", "--gin.WORK_DIR=/somewhere", "--gin.EVAL_BATCH_SIZE=16"]
    asked = _planned(*argv)
    for training in asked.stages.values():
        assert (training.batch_size, training.num_microbatches, training.frozen_weights_dtype) == (32, 2, "bfloat16")
        assert dict(training.partitioner.mesh().shape) == {"replica": 1, "data": 8, "model": 8}
    assert asked.evaluation is not None and asked.evaluation.batch_size == 16


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
    asked = _planned(*RECIPE, "--gin.pipeline.Recipe.methods=('pretrained', 'fine_tuning')")
    assert list(asked.stages) == ["fine_tuning"]


# What is advised


def _training(stage="prompt_tuning", partitioner=None, batch_size=16, **changes):
    config = {"remat": "none", **{k: v for k, v in changes.items() if k in T5Config.__dataclass_fields__}}
    rest = {k: v for k, v in changes.items() if k not in config}
    model = EncoderDecoderModel(T5Config(64, 16, 4, 8, 32, 1, 1, prompt_length=4, **config))
    partitioner = partitioner or Partitioner(num_partitions=2, devices=DEVICES[:8])
    return programs.Training(
        model, stage, optimizers.adafactor(0.1), {"inputs": 6, "targets": 5}, batch_size, partitioner, **rest
    )


def _flags_of(advice):
    return [line.partition(":")[0] for line in advice]


def test_advice_costs_little_first():
    assert search.training_advice(_training()) == [
        "--gin.T5Config.remat=full: compute activations again instead of keeping them (now none)",
        "--gin.NUM_MICROBATCHES=2: the same update, fewer rows at once",
        "--gin.FROZEN_WEIGHTS_DTYPE=bfloat16: frozen weights in half the memory",
        "--search: another mesh or preset",
        "a bigger slice",
    ]
    others = ["--search", "a bigger slice"]
    assert _flags_of(search.training_advice(_training("model_tuning", remat="full", num_microbatches=2))) == [
        "--gin.NUM_MICROBATCHES=4",
        *others,
    ]
    done = _training(remat="full", num_microbatches=4, frozen_weights_dtype="bfloat16")
    assert _flags_of(search.training_advice(done)) == others


def test_advised_microbatches_are_possible():
    odd = _training("model_tuning", batch_size=36, remat="full")
    assert _flags_of(search.training_advice(odd))[0] == "--gin.NUM_MICROBATCHES=3"
    programs.training_step(dataclasses.replace(odd, num_microbatches=3))
    with pytest.raises(ValueError, match="^A batch has 18 rows, which do not divide over the 4 devices"):
        programs.training_step(dataclasses.replace(odd, num_microbatches=2))
    # Where the batch is shared out over all devices, each has a row already.
    everywhere = Partitioner("fully_sharded", 2, devices=DEVICES[:8])
    advice = search.training_advice(_training("model_tuning", everywhere, batch_size=8, remat="full"))
    assert _flags_of(advice) == ["--search", "a bigger slice"]


@pytest.mark.parametrize("files", [RECIPE, TRAIN], ids=["recipe", "train"])
def test_advice_can_be_followed(files):
    """Each flag, as written, changes what it is to change."""
    argv = [*files, "--gin.T5Config.remat='none'", "--gin.NUM_PARTITIONS=8"]
    training = _planned(*argv).stages["prompt_tuning"]
    advised = [flag for flag in _flags_of(search.training_advice(training)) if flag.startswith("--gin")]
    assert len(advised) == 3
    for flag in advised:
        changed = _planned(*argv, flag).stages["prompt_tuning"]
        found = (changed.model.config.remat, changed.num_microbatches, changed.frozen_weights_dtype)
        assert sum(a != b for a, b in zip(found, ("none", 1, None), strict=True)) == 1, flag
    asked = _planned(*argv, *advised).stages["prompt_tuning"]
    assert (asked.model.config.remat, asked.num_microbatches, asked.frozen_weights_dtype) == ("full", 2, "bfloat16")


# What is searched


def test_candidates_are_all_that_divide():
    own = Partitioner("fully_sharded", devices=DEVICES[:8], rules=(("heads", None),))
    training = _training("prompt_tuning", own, batch_size=8)

    def divides(preset, model):
        """Every cut dimension of this network, by hand: D 16, joined heads 32, F 32, V 64, heads 4 left whole."""
        if preset in ("mixed", "tensor"):
            data = 8 // model
            return (
                8 % data == 0 and all(size % model == 0 for size in (32, 64)) and (preset == "tensor" or 16 % data == 0)
            )
        return model == 1 and (preset == "data" or 16 % 8 == 0)

    expected = {(preset, model) for preset in PRESETS for model in (1, 2, 4, 8) if divides(preset, model)}
    found = list(search.candidates(training))
    assert {(p.preset, p.num_partitions) for p in found} == expected and len(found) == len(expected)
    assert all(p.devices == own.devices and p.rules == own.rules for p in found)
    # Three heads are not to be cut, and rows must be shared evenly.
    few = _training("prompt_tuning", Partitioner(devices=DEVICES[:8]), batch_size=4)
    found = {(p.preset, p.num_partitions) for p in search.candidates(few)}
    assert found == {(preset, model) for preset in ("mixed", "tensor") for model in (2, 4)}


def _measured(fits=True, seconds=1.0, arguments=GIB, **changes):
    return Measured(
        arguments=arguments,
        temporaries=GIB if fits else None,
        peak=0 if fits else 20 * GIB,
        hbm=int(15.75 * GIB),
        fits=fits,
        largest=(),
        devices=8,
        flops_jaxpr=1e12,
        flops_hlo=1e12 if fits else None,
        collectives=(Collective("all-reduce", "data", 1, 1e6),) if fits else (),
        compute_seconds=seconds if fits else 0.0,
        **changes,
    )


def _untraced(training):
    """In place of a step whose program plays no part."""
    return programs.Traced(None, None, None, training.partitioner)


def test_the_fastest_that_fits_comes_first(monkeypatch):
    answers = {("mixed", 1): _measured(seconds=3.0), ("mixed", 2): _measured(seconds=1.0)}
    answers |= {("mixed", 4): _measured(False), ("tensor", 2): _measured(seconds=1.0, arguments=2 * GIB)}

    def measure(traced, topology, unknown_trips=None):
        own = traced.partitioner
        return answers.get((own.preset, own.num_partitions), _measured(seconds=9.0))

    monkeypatch.setattr(measures, "measure", measure)
    monkeypatch.setattr(programs, "training_step", _untraced)
    partitioner = Partitioner(devices=DEVICES[:8])
    ranked = search.search(_training("prompt_tuning", partitioner, batch_size=8), chips.topology("v5e:2x4"))
    names = [(p.preset, p.num_partitions) for p, _ in ranked]
    assert names[:2] == [("mixed", 2), ("tensor", 2)] and names[2] == ("mixed", 1) and names[-1] == ("mixed", 4)


# The verb


@pytest.fixture
def without_compiler(monkeypatch):
    """Devices that are not there, and one answer for every program."""
    monkeypatch.setattr(chips.Topology, "devices", lambda self: DEVICES[: self.chips * self.slices])
    seen = []

    def measure(traced, topology, unknown_trips=None):
        seen.append((traced, unknown_trips))
        return _measured(fits=len(seen) != 2)

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


def test_a_whole_plan(tiny, tmp_path, capsys, without_compiler):
    file = tmp_path / "out" / "plan.json"
    assert cli.main(["plan", tiny, "--topology=v5e:2x4", "--slices=2", f"--json={file}"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("2 x v5e:2x4 (v5litepod-8 in Google Cloud, 8 chips), preset mixed, mesh ")
    assert "\nprompt_tuning " in shown and "\nscoring " in shown and "\ndecoding " in shown
    assert "model_tuning does not fit: 20.00 GiB needed, 15.75 GiB there\n  1. --gin.T5Config.remat=full" in shown
    found = json.loads(file.read_text())
    assert (found["topology"], found["slices"]) == ("v5e:2x4", 2)
    assert [found["stages"][name]["fits"] for name in ("prompt_tuning", "model_tuning")] == [True, False]
    assert set(found["evaluation"]) == {"scoring", "decoding"} and "search" not in found
    assert [group["name"] for group in found["parameters"]["groups"]["model_tuning"]][:2] == [
        "decoder",
        "decoder/logits_dense",
    ]
    assert sum(g["count"] for g in found["parameters"]["groups"]["prompt_tuning"] if g["state"] == "trained") == 8 * 128
    # A decode may end early; it is reckoned with the whole length.
    assert [trips for _, trips in without_compiler] == [None, None, 6, 6]
    rows = [traced.arguments[-1]["encoder_input_tokens"].shape for traced, _ in without_compiler]
    assert rows == [(64, 10), (64, 10), (64, 28), (64, 28)]


def test_a_search(tiny, tmp_path, capsys, without_compiler, monkeypatch):
    for name in ("training_step", "scoring", "decoding"):
        monkeypatch.setattr(programs, name, _untraced)
    file = tmp_path / "plan.json"
    small = ["--gin.T5Config.num_encoder_layers=1", "--gin.T5Config.num_decoder_layers=1"]
    assert cli.main(["plan", tiny, *small, "--topology=v5e:2x2", "--search", f"--json={file}"]) == 0
    shown = capsys.readouterr().out
    for stage in ("prompt_tuning", "model_tuning"):
        assert f"\n{stage} on v5e:2x2 (v5litepod-4 in Google Cloud, 4 chips), fastest bound first\n" in shown
    found = json.loads(file.read_text())["search"]
    # The toy world's 288 words, four heads and 64 rows divide over everything that four devices allow.
    meshes = [(preset, model) for preset in ("mixed", "tensor") for model in (1, 2, 4)]
    meshes += [("fully_sharded", 1), ("data", 1)]
    for candidates in found.values():
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
    shown = capsys.readouterr().err
    assert "error: promot-t5x plan needs the TPU compiler, no TPU: pip install 'promot-t5x[tpu]', on Linux." in shown


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
    """What the verb said of the small recipe, and the programs that it compiled."""

    code: int
    shown: str
    found: dict
    programs: dict


def _compiled(folder, *argv):
    """Runs the verb on the small recipe; one of these takes half a minute a stage."""
    (folder / "small.gin").write_text(SMALL)
    made, original = [], programs.Traced.compile

    def compile_and_keep(self):
        made.append(original(self))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as shown:
        patch.setattr(programs.Traced, "compile", compile_and_keep)
        files = [f"--gin_file={folder}/small.gin", f"--json={folder}/plan.json", *SMALL_FLAGS]
        code = program.run_main(plan.main, [*files, *argv])
    found = json.loads((folder / "plan.json").read_text())
    return Compiled(code, shown.getvalue(), found, dict(zip(found["stages"], made, strict=False)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return _compiled(tmp_path_factory.mktemp("small"), "--topology=v5e:2x2")


@pytest.mark.tpu_compiler
def test_both_stages_of_a_small_recipe(small):
    assert small.code == 0 and small.found["topology"] == "v5e:2x2"
    assert small.found["mesh"] == {"preset": "mixed", "replica": 1, "data": 2, "model": 2}
    assert list(small.found["stages"]) == ["prompt_tuning", "model_tuning"]
    for stage, found in small.found["stages"].items():
        assert found["fits"] and found["hbm_gib"] == 15.75, stage
        assert found["flops_hlo"] / found["flops_jaxpr"] == pytest.approx(1, abs=0.01), stage
        # The rest are relative biases, scales and the batch.
        assert 1 <= found["arguments_gib"] * GIB / (4 * WEIGHTS / 4) < 1.05, stage
        assert found["peak_gib"] < 0.1 and re.search(rf"^{stage} .* yes$", small.shown, re.MULTILINE)
        assert found["ideal_step_seconds"] == pytest.approx(found["flops_hlo"] / 4 / 197e12, rel=1e-6)
        assert found["traffic_bytes"] == pytest.approx(sum(row["bytes"] for row in found["collectives"]))
    prompt_tuning, model_tuning = small.found["stages"].values()
    # Half of all rows are target tokens, the encoder's are prompt and inputs: each weight meets 8 x 128 tokens.
    assert prompt_tuning["weight_gradient_flops"] == 0
    assert model_tuning["weight_gradient_flops"] == 2 * 8 * 128 * MATRICES


@pytest.mark.tpu_compiler
def test_only_the_soft_prompt_is_summed_over_the_batch_in_stage_1(small):
    prompt_tuning, model_tuning = small.found["stages"].values()
    # Beside the prompt's gradient the compiler writes gathers of the layers' scales as sums.
    assert PROMPT_BYTES / 2 <= prompt_tuning["data_axis_reduction_bytes"] <= 8 * PROMPT_BYTES
    # Gradients of bfloat16 products, in the half of each weight that lies along `model`, from one other device.
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
    assert plan_of_two.code == 0 and plan_of_two.shown.startswith("2 x v5e:2x2 (v5litepod-4 in Google Cloud, 4 chips)")
    assert plan_of_two.found["mesh"] == {"preset": "mixed", "replica": 2, "data": 2, "model": 2}
    (found,) = plan_of_two.found["stages"].values()
    assert found["fits"] and found["flops_hlo"] / found["flops_jaxpr"] == pytest.approx(1, abs=0.01)
    assert found["weight_gradient_flops"] == 0 and found["data_axis_reduction_bytes"] <= 8 * PROMPT_BYTES
    # Between slices goes the prompt's gradient, and no weight.
    between = [row for row in found["collectives"] if "replica" in row["axes"].split("+")]
    assert {row["kind"] for row in between} == {"all-reduce"}
    # Each device has its part of the prompt, and hears half of it twice: once as a part of the sum, once as the sum.
    assert PROMPT_BYTES / 4 <= sum(row["bytes"] for row in between) <= 2 * PROMPT_BYTES


@pytest.mark.tpu_compiler
def test_a_network_that_is_too_large(tmp_path):
    """Its arguments alone do not fit, so that nothing is compiled, and the advice follows."""
    large = _compiled(tmp_path, "--topology=v5e:2x2", f"--gin.T5Config.vocab_size={2**28}")
    assert large.code == 0 and large.programs == {}
    for stage, found in large.found["stages"].items():
        assert not found["fits"] and 64 < found["arguments_gib"] < 66, "two matrices of 2**28 x 128 in four pieces"
        assert found["temporaries_gib"] is found["flops_hlo"] is found["traffic_bytes"] is None
        assert re.search(rf"^{stage} does not fit: 6[45]\.\d\d GiB needed, 15.75 GiB there$", large.shown, re.MULTILINE)
    assert "\n  1. --gin.NUM_MICROBATCHES=2: " in large.shown and "\n  2. --gin.FROZEN_WEIGHTS_DTYPE=" in large.shown


@pytest.mark.tpu_compiler
def test_a_program_that_the_compiler_refuses():
    """Arguments fit, activations do not: what the compiler says is read, not raised."""
    topology = chips.topology("v5e:2x2")
    model = EncoderDecoderModel(T5Config(256, 128, 2, 64, 256, 1, 1, dtype="bfloat16"))
    asked = programs.Answering(
        model, {"inputs": 8192, "targets": 128}, 4 * 256, Partitioner("data", devices=topology.devices())
    )
    found = measures.measure(programs.scoring(asked), topology)
    assert not found.fits and found.temporaries is None and found.flops_hlo is None
    assert found.needed > found.hbm > 100 * found.arguments


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
    found = _measure("v4:4x4x4", stage, *argv)
    assert found.fits and found.arguments + found.temporaries <= most_gib * GIB
    assert found.flops_hlo / found.flops_jaxpr == pytest.approx(1, abs=0.01)
    if stage == "prompt_tuning":
        assert found.weight_gradient_flops == 0 and found.data_axis_reductions <= 4e6
    else:
        assert found.weight_gradient_flops > 0.2 * found.flops_jaxpr


@pytest.mark.tpu_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    "topology,stage",
    [("v5e:4x8", "model_tuning"), ("v3:8x8", "prompt_tuning"), ("v3:8x8", "model_tuning")],
)
def test_xxl_on_other_chips(topology, stage):
    found = _measure(topology, stage)
    assert found.fits and found.needed <= found.hbm
