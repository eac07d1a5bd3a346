"""ProMoT on T5X's own binaries, run as a user runs them: what moves, what is stored, the bundled trainer's losses."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from promot_t5x import train
from promot_t5x.checkpoints import conversion, loading
from promot_t5x.configuration import program
from promot_t5x.data import features
from promot_t5x.models import architecture, encoder_decoder, parameter_names
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers, prompt_initializers, stages, t5x_binary, t5x_optimizer

pytest.importorskip("t5x", reason="needs T5X, AirIO and jestimator from source on PYTHONPATH, see docs/t5x.md")

pytestmark = [
    pytest.mark.peer,
    # T5X itself uses JAX's pjit and `with mesh:`, which JAX is giving up.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:t5x"),
]

ROOT = Path(__file__).resolve().parents[2]
SIZES = dict(vocab_size=384, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64)
SIZES |= dict(num_encoder_layers=2, num_decoder_layers=2, prompt_length=6, dropout_rate=0.0)
LENGTHS = {"inputs": 24, "targets": 12}
INPUTS, TARGETS = [f"input number {i} of these" for i in range(8)], [f"answer {i * i}" for i in range(8)]

# As many rows as a batch has, so that every batch consists of the same rows in any order of the data.
TASK = f"""
import seqio
import tensorflow as tf

def rows(split, shuffle_files, seed=None):
    return tf.data.Dataset.from_tensor_slices({{"inputs": {INPUTS}, "targets": {TARGETS}}})

def same(targets, predictions):
    return {{"same": sum(target == prediction for target, prediction in zip(targets, predictions))}}

text = seqio.Feature(seqio.ByteVocabulary(), add_eos=True)
seqio.TaskRegistry.add(
    "eight_rows",
    source=seqio.FunctionDataSource(rows, splits=("train", "validation", "test")),
    preprocessors=[seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim],
    output_features={{"inputs": text, "targets": text}},
    metric_fns=[same],
)
"""
TINY = "\n".join(
    [
        "from __gin__ import dynamic_registration",
        "import eight_rows",
        "from promot_t5x.models import architecture",
        "from promot_t5x.models import encoder_decoder",
        "MIXTURE_OR_TASK_NAME = 'eight_rows'",
        f"TASK_FEATURE_LENGTHS = {LENGTHS}",
        "TRAIN_SPLIT = 'train'",
        "VALIDATION_SPLIT = 'validation'",
        "encoder_decoder.EncoderDecoderModel.config = @architecture.T5Config()",
        *[f"architecture.T5Config.{name} = {value}" for name, value in SIZES.items()],
    ]
)
# The train binary without its two evaluations, and with the rows of a batch in their order.
QUIET = """
from __gin__ import dynamic_registration
import __main__ as train_script
from t5x import utils
train_script.train.train_eval_dataset_cfg = None
train_script.train.infer_eval_dataset_cfg = None
train/utils.DatasetConfig.shuffle = False
"""
# Both trainers start from this prompt: the two draw their random numbers in different ways.
PROMPT = """
from __gin__ import dynamic_registration
from promot_t5x.training import prompt_initializers
prompt_initializers.from_file.path = '{path}'
"""
STEPS = {"TRAIN_STEPS": 10, "CHECKPOINT_PERIOD": 10, "BATCH_SIZE": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("t5x")
    (folder / "eight_rows.py").write_text(TASK)
    (folder / "tiny.gin").write_text(TINY)
    (folder / "quiet.gin").write_text(QUIET)
    np.save(folder / "prompt.npy", np.random.default_rng(0).normal(size=(6, 32)).astype(np.float32))
    (folder / "prompt.gin").write_text(PROMPT.format(path=folder / "prompt.npy"))
    return folder


@pytest.fixture(scope="module")
def base(testdata) -> Path:
    """What T5X wrote in the format of the public checkpoints."""
    return testdata / "t5x_tiny" / "t5_legacy" / "checkpoint_0"


def run_t5x(world: Path, binary: str, files: list[str], values: dict[str, object]) -> subprocess.CompletedProcess:
    """`python -m t5x.<binary>`, from a folder that is not the repository's."""
    path = os.pathsep.join([str(world), str(ROOT), *[p for p in sys.path if p]])
    return subprocess.run(
        [
            *(sys.executable, "-m", f"t5x.{binary}", f"--gin_file={world / 'tiny.gin'}"),
            *[f"--gin_file={file}" for file in files],
            *[
                f"--gin.{name}={str(v)!r}" if isinstance(v, Path) else f"--gin.{name}={v!r}"
                for name, v in values.items()
            ],
        ],
        cwd=world,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )


def finish(world: Path, binary: str, files: list[str], **values: object) -> None:
    run = run_t5x(world, binary, files, values)
    assert run.returncode == 0, run.stderr[-4000:]


def trained(world: Path, stage: str, start: Path, files: Sequence[str] = (), **values: object) -> Path:
    """The last checkpoint of a stage on T5X's train binary; evaluations are left to the tests of eval and infer."""
    values = {"MODEL_DIR": world / stage, "INITIAL_CHECKPOINT_PATH": start, "STATS_PERIOD": 1, **STEPS, **values}
    finish(world, "train", [f"promot_t5x/gin/t5x/{stage}.gin", str(world / "quiet.gin"), *files], **values)
    return world / stage / f"checkpoint_{values['TRAIN_STEPS']}"


@pytest.fixture(scope="module")
def stage_1(world, base) -> Path:
    prompt = world / "take_prompt.gin"
    prompt.write_text(
        "from __gin__ import dynamic_registration\n"
        "from promot_t5x.training import prompt_initializers\n"
        "from promot_t5x.training import t5x_binary\n"
        f"include '{world / 'prompt.gin'}'\n"
        "t5x_binary.T5XModel.prompt_init = @prompt_initializers.from_file()\n"
    )
    return trained(world, "prompt_tuning", base, [str(prompt)])


@pytest.fixture(scope="module")
def stage_2(world, stage_1) -> Path:
    return trained(world, "model_tuning", stage_1, TRAIN_STEPS=2, CHECKPOINT_PERIOD=2)


def our_model(**changes) -> encoder_decoder.EncoderDecoderModel:
    return encoder_decoder.EncoderDecoderModel(architecture.T5Config(**{**SIZES, **changes}), label_smoothing=0.1)


def leaves(folder: Path) -> dict[str, np.ndarray]:
    """A checkpoint of T5X as this package reads it."""
    params = loading.load(folder, our_model(), Partitioner()).params
    return {name: np.asarray(leaf) for name, leaf in parameter_names.flatten(params).items()}


def slots(folder: Path) -> set[str]:
    """The parameters that own optimizer slots in a checkpoint."""
    stored = json.loads((folder / "state" / "_METADATA").read_text())["tree_metadata"]
    paths = [[part["key"] for part in entry["key_metadata"]] for entry in stored.values()]
    return {"/".join(path[path.index("v") + 1 :]) for path in paths if path[0] == "state" and "v" in path}


@functools.cache
def rows() -> dict[str, jax.Array]:
    vocabulary, batch = seqio.ByteVocabulary(), {}
    for name, texts in (("inputs", INPUTS), ("targets", TARGETS)):
        ids = [[*vocabulary.encode(text), 1] for text in texts]
        batch[name] = np.array([row + [0] * (LENGTHS[name] - len(row)) for row in ids], np.int32)
    return {
        "encoder_input_tokens": jnp.asarray(batch["inputs"]),
        "decoder_input_tokens": jnp.asarray(np.pad(batch["targets"], ((0, 0), (1, 0)))[:, :-1]),
        "decoder_target_tokens": jnp.asarray(batch["targets"]),
        "decoder_loss_weights": jnp.asarray(batch["targets"] > 0, jnp.float32),
    }


def scalars(folder: Path, tag: str) -> list[float]:
    from tensorboard.backend.event_processing import event_accumulator  # heavy
    from tensorboard.util import tensor_util

    events = event_accumulator.EventAccumulator(str(folder))
    events.Reload()
    return [float(tensor_util.make_ndarray(event.tensor_proto)) for event in events.Tensors(tag)]


def test_stage_1_moves_only_the_prompt(world, base, stage_1):
    before, after = leaves(base), leaves(stage_1)
    assert len(before) == 52 and after.keys() - before.keys() == {parameter_names.PROMPT}
    for name, leaf in before.items():
        assert after[name].tobytes() == leaf.tobytes(), name
    assert np.abs(after[parameter_names.PROMPT][0] - np.load(world / "prompt.npy")).max() > 0.1
    assert slots(stage_1) == {parameter_names.PROMPT}


def test_stage_2_moves_all_but_the_prompt(stage_1, stage_2):
    before, after = leaves(stage_1), leaves(stage_2)
    assert before.keys() == after.keys()
    same = {name for name, leaf in before.items() if after[name].tobytes() == leaf.tobytes()}
    assert same == {parameter_names.PROMPT}
    assert slots(stage_2) == set(before) - same


def test_stage_2_needs_a_prompt(world, base):
    values = {**STEPS, "MODEL_DIR": world / "no_prompt", "INITIAL_CHECKPOINT_PATH": base}
    run = run_t5x(world, "train", ["promot_t5x/gin/t5x/model_tuning.gin"], values)
    assert run.returncode != 0 and "'target/soft_prompt/embedding' does not exist in restore checkpoint" in run.stderr


def test_fine_tuning_has_no_prompt(world, base):
    before, after = leaves(base), leaves(trained(world, "fine_tuning", base, TRAIN_STEPS=1, CHECKPOINT_PERIOD=1))
    assert before.keys() == after.keys()
    assert all(after[name].tobytes() != leaf.tobytes() for name, leaf in before.items())


def test_losses_are_the_bundled_trainers(world, base, stage_1, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(world))
    files = [world / "tiny.gin", world / "prompt.gin", "stages/prompt_tuning.gin"]
    values = {**STEPS, "MODEL_DIR": world / "ours", "INITIAL_CHECKPOINT_PATH": base, "EVAL_BATCH_SIZE": 8}
    values |= {"train.train.validation": None, "train.train.prompt_init": "@prompt_initializers.from_file()"}
    values["trainer.LoopConfig.log_period"] = 1
    argv = [f"--gin_file={file}" for file in files] + [f"--gin.{name}={value}" for name, value in values.items()]
    code = program.run_main(train.main, argv)
    assert code == 0, capsys.readouterr().err
    ours = scalars(world / "ours", "train/loss")
    theirs = scalars(stage_1.parent / "train", "loss_per_nonpadding_target_token")
    assert len(ours) == 10 and ours[-1] < ours[0]
    np.testing.assert_allclose(theirs, ours, rtol=1e-4)
    theirs, ours = leaves(stage_1)[parameter_names.PROMPT], leaves(world / "ours")[parameter_names.PROMPT]
    np.testing.assert_allclose(theirs, ours, atol=1e-4 * np.abs(ours).max())


def test_eval_takes_the_prompt_off(world, stage_2):
    output = world / "eval"
    files = ["promot_t5x/gin/t5x/eval.gin"]
    finish(world, "eval", files, CHECKPOINT_PATH=stage_2, EVAL_OUTPUT_DIR=output, ATTACH_PROMPT=False, BATCH_SIZE=8)
    lines = (output / "inference_eval" / "eight_rows-000002.jsonl").read_text().splitlines()
    params = parameter_names.unflatten(leaves(stage_2))
    tokens = {attached: np.asarray(predicted(params, attached)) for attached in (False, True)}
    assert (tokens[False] != tokens[True]).any(), "the prompt makes a difference"
    texts = [seqio.ByteVocabulary().decode([int(t) for t in row]) for row in tokens[False]]
    assert [json.loads(line)["output"] for line in lines] == texts


def predicted(params, attached: bool) -> jax.Array:
    ids = {features.SOFT_PROMPT_IDS: jnp.zeros((8,), jnp.int32)} if attached else {}
    return jax.jit(our_model().predict_batch)(params, {**rows(), **ids})


def test_infer_scores_with_the_prompt(world, stage_2):
    output = world / "infer"
    files = ["promot_t5x/gin/t5x/infer.gin"]
    finish(world, "infer", files, CHECKPOINT_PATH=stage_2, INFER_OUTPUT_DIR=output, INFER_MODE="score", BATCH_SIZE=8)
    lines = (output / "eight_rows-score.jsonl-00000-of-00001").read_text().splitlines()
    batch = {**rows(), features.SOFT_PROMPT_IDS: jnp.zeros((8,), jnp.int32)}
    expected = our_model().score_batch(parameter_names.unflatten(leaves(stage_2)), batch)
    np.testing.assert_allclose([json.loads(line)["score"] for line in lines], expected, rtol=1e-5)


# What T5X's train binary does with its flags, short of training.
PARSE = """
import itertools, sys
import gin
from t5x import gin_utils
from t5x.train import train
from promot_t5x.training import t5x_binary

gin.configurable(train)
for stage in ("prompt_tuning", "model_tuning", "fine_tuning"):
    files = [f"promot_t5x/gin/{name}.gin" for name in ("models/mt5_xxl", "tasks/rte", f"t5x/{stage}")]
    texts = set()
    for order in itertools.permutations(files):
        gin.clear_config()
        gin_utils.parse_gin_flags(["."], order, ["MODEL_DIR = '/m'", "INITIAL_CHECKPOINT_PATH = '/c'"], False, False)
        texts.add(frozenset(gin.config_str().splitlines()))
    model = gin.get_configurable(t5x_binary.T5XModel)()
    c = model.model.config
    print(stage, len(texts), model.optimizer_def.stage, c.embed_dim, c.prompt_length, c.scan_layers, c.dropout_rate)
"""


def test_stages_take_the_models_and_tasks_that_ship_in_any_order(world):
    (world / "parse.py").write_text(PARSE)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *[p for p in sys.path if p]])}
    run = subprocess.run([sys.executable, "parse.py"], cwd=world, env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert run.stdout.splitlines() == [
        "prompt_tuning 1 prompt_tuning 4096 100 False 0.1",
        "model_tuning 1 model_tuning 4096 100 False 0.1",
        "fine_tuning 1 fine_tuning 4096 0 False 0.1",
    ]


def t5x_model(stage: str) -> t5x_binary.T5XModel:
    optimizer = t5x_optimizer.StagedOptimizer(optimizers.adafactor(1e-3), stage)
    return t5x_binary.T5XModel(our_model(), stages.stage(stage).attaches_prompt, optimizer)


@pytest.mark.parametrize("stage", ["prompt_tuning", "model_tuning"])
def test_gradient_is_the_networks_and_zero_where_frozen(stage):
    peer = t5x_model(stage)
    params = jax.jit(lambda key: peer.get_initial_variables(key, {})["params"])(jax.random.key(0))
    batch = {**rows(), features.SOFT_PROMPT_IDS: jnp.zeros((8,), jnp.int32)}
    (wanted, _), expected = jax.jit(jax.value_and_grad(our_model().loss_fn, has_aux=True))(params, batch, None)
    (loss, _), gradients = jax.jit(jax.value_and_grad(peer.loss_fn, has_aux=True))(params, rows(), None)
    np.testing.assert_allclose(loss, wanted, rtol=1e-6)
    expected = parameter_names.flatten(expected)
    for name, gradient in parameter_names.flatten(gradients).items():
        if stages.stage(stage).trains(name):
            np.testing.assert_allclose(gradient, expected[name], rtol=1e-4, atol=1e-6 * np.abs(expected[name]).max())
        else:
            assert not np.any(gradient), name


@pytest.mark.parametrize(
    "changes,message",
    [
        (dict(attach_prompt=False), "stage model_tuning trains with a soft prompt"),
        (dict(prompt_id=1), "prompt_id is 1, but the network has 1 soft prompts"),
        (dict(model=our_model(prompt_length=0)), "the network has no soft prompt; set PROMPT_LENGTH"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    optimizer = t5x_optimizer.StagedOptimizer(optimizers.adafactor(1e-3), "model_tuning")
    with pytest.raises(ValueError, match=message):
        t5x_binary.T5XModel(**{**dict(model=our_model(), attach_prompt=True, optimizer_def=optimizer), **changes})


def test_a_prompt_cannot_start_from_an_embedding_that_is_not_read_yet():
    peer = t5x_binary.T5XModel(our_model(), True, prompt_init=prompt_initializers.sampled_vocabulary())
    with pytest.raises(ValueError, match="which T5X reads only afterwards"):
        peer.get_initial_variables(jax.random.key(0), {})


def test_packed_batches_are_refused():
    batch = {**rows(), "encoder_segment_ids": jnp.ones((8, 24), jnp.int32)}
    with pytest.raises(ValueError, match="packed"):
        t5x_model("model_tuning").loss_fn({}, batch, None)


def test_t5x_starts_from_what_convert_wrote(world, base):
    """In Orbax' format; the legacy one is read in t5x_writer_peer_test."""
    conversion.convert_checkpoint(str(base), str(world / "converted"), "t5x")
    start = world / "converted" / "checkpoint_0"
    steps = {"MODEL_DIR": world / "from_converted", "TRAIN_STEPS": 1, "CHECKPOINT_PERIOD": 1}
    trained(world, "prompt_tuning", start, **steps)
    after, before = leaves(world / "from_converted" / "checkpoint_1"), leaves(base)
    assert all(after[name].tobytes() == before[name].tobytes() for name in before if name != parameter_names.PROMPT)
