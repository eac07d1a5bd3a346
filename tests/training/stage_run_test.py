"""The train binary through gin, as a user runs it: flags, files it leaves, mistakes, and a run that is killed."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy
import seqio

from promot_t5x import train
from promot_t5x.checkpoints import fingerprints, loading, saving
from promot_t5x.configuration import gin_files, program
from promot_t5x.data import training_batches
from promot_t5x.evaluation import scoring
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.tasks import jsonl
from promot_t5x.training import folder_lock, optimizers, prompt_initializers, stage_run, trainer
from tests.training import tiny

ROOT = Path(__file__).resolve().parents[2]

TINY = dict(embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1)
TASK = """
from promot_t5x.tasks import toy_world
MIXTURE_OR_TASK_NAME = 'toy_enfr'
TASK_FEATURE_LENGTHS = {'inputs': 28, 'targets': 6}
TRAIN_SPLIT = 'train'
VALIDATION_SPLIT = 'validation'
"""
SHORT = {"TRAIN_STEPS": 4, "CHECKPOINT_PERIOD": 2, "BATCH_SIZE": 8, "EVAL_BATCH_SIZE": 8}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A folder with a task's gin file and a pretrained model: weights drawn by numpy, no prompt."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "toy_enfr.gin").write_text(TASK)
    _export(folder / "base", **TINY)
    _export(folder / "other_size", **{**TINY, "mlp_dim": 48})
    return folder


def _export(folder, **sizes):
    model = EncoderDecoderModel(T5Config(vocab_size=288, **sizes))
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), model.abstract_params())
    saving.export(folder, params, {"step": 0, "base": None})


def _flags(world, stage, model_dir=None, base="base", **macros) -> list[str]:
    """A command line without shell quotes, as the program gets it."""
    values = {**SHORT, **macros}
    values |= {} if model_dir is None else {"MODEL_DIR": model_dir}
    values |= {} if base is None else {"INITIAL_CHECKPOINT_PATH": world / base}
    return [
        "--gin_file=models/toy.gin",
        "--gin_file=toy_enfr.gin",
        f"--gin_file=stages/{stage}.gin",
        f"--gin_search_paths={world}",
        *[f"--gin.architecture.T5Config.{name}={value}" for name, value in TINY.items()],
        "--gin.scoring.EvaluationConfig.limit=8",
        "--gin.training_batches.DatasetConfig.shards=2",  # each costs a second of TensorFlow's
        *[f"--gin.{name}={value}" for name, value in values.items()],
    ]


def _run(argv, capsys=None) -> tuple[int, str]:
    """(exit code, standard error)"""
    code = program.run_main(train.main, argv)
    return code, capsys.readouterr().err if capsys else ""


def _leaves(folder) -> dict[str, np.ndarray]:
    return {name: np.asarray(leaf) for name, leaf in saving.read_params(folder, saving.shapes(folder)).items()}


def _forbid_training(monkeypatch):
    def trained(*_, **__):
        raise AssertionError("a finished run trains again")

    monkeypatch.setattr(trainer, "train", trained)


@pytest.fixture(scope="module")
def stage_1(world) -> Path:
    """A finished prompt-tuning run."""
    assert _run(_flags(world, "prompt_tuning", world / "stage_1"))[0] == 0
    return world / "stage_1"


def test_stage_1_leaves_what_a_user_needs(world, stage_1):
    finished = json.loads((stage_1 / "finished.json").read_text())
    assert finished["best_step"] in (2, 4) and 0 <= finished["best_score"] <= 1
    assert saving.best_step(stage_1) == finished["best_step"]
    prompt = safetensors.numpy.load_file(stage_1 / "soft_prompt.safetensors")
    stored = _leaves(saving.checkpoint_folder(stage_1, finished["best_step"]))
    assert list(stored) == ["soft_prompt/embedding"]
    (vectors_NxPxD,) = prompt.values()
    np.testing.assert_array_equal(vectors_NxPxD, stored["soft_prompt/embedding"])
    record = json.loads((stage_1 / "soft_prompt.json").read_text())
    assert (record["length"], record["embed"], record["stage"], record["task"]) == (8, 16, "prompt_tuning", "toy_enfr")
    assert record["base"]["path"] == str(world / "base")
    metadata = saving.read_metadata(saving.checkpoint_folder(stage_1, finished["best_step"]))
    assert (metadata["network"]["class"], metadata["network"]["prompt_length"]) == ("T5Config", 8)
    assert metadata["vocabulary"]["name"] == "WordVocabulary (288 pieces)"
    assert metadata["vocabulary"] == record["vocabulary"] and metadata["token_ids"]["end"] == 1
    assert record["base"]["fingerprint"] == fingerprints.fingerprint(parameter_names.unflatten(_leaves(world / "base")))
    assert sum(f.stat().st_size for f in stage_1.glob("soft_prompt.*")) < 10_000


def test_metrics_are_tensorboard_events(stage_1):
    from tensorboard.backend.event_processing import event_accumulator  # heavy, and only this test needs it

    events = event_accumulator.EventAccumulator(str(stage_1))
    events.Reload()
    written = {tag: [event.step for event in events.Tensors(tag)] for tag in events.Tags()["tensors"]}
    assert written["validation/score"] == [2, 4]
    assert {"train/loss", "train/steps_per_second", "train/target_tokens_per_second"} <= set(written)


def test_a_finished_run_returns_at_once(world, stage_1, monkeypatch, capsys):
    _forbid_training(monkeypatch)
    before = {file: file.stat().st_mtime_ns for file in stage_1.rglob("*")}
    assert _run(_flags(world, "prompt_tuning", stage_1), capsys)[0] == 0
    # Its own configuration, as it was written, is the whole command.
    assert _run([f"--gin_file={stage_1 / 'config.gin'}"], capsys)[0] == 0
    assert {file: file.stat().st_mtime_ns for file in stage_1.rglob("*")} == before


def test_written_configuration_makes_the_same_run_again(world, stage_1, tmp_path, capsys):
    again = tmp_path / "again"
    code, stderr = _run([f"--gin_file={stage_1 / 'config.gin'}", f"--gin.MODEL_DIR={again}"], capsys)
    assert code == 0, stderr
    for step in (2, 4):
        ours, theirs = (_leaves(saving.checkpoint_folder(folder, step)) for folder in (again, stage_1))
        np.testing.assert_array_equal(ours["soft_prompt/embedding"], theirs["soft_prompt/embedding"])
    lines = [gin_files.bindings(folder.joinpath("config.gin").read_text()) for folder in (again, stage_1)]
    assert [line for line in lines[0] if line not in lines[1]] == [f"MODEL_DIR = {str(again)!r}"]


def test_other_settings_in_the_same_folder(world, stage_1, capsys):
    code, stderr = _run(_flags(world, "prompt_tuning", stage_1, RANDOM_SEED=1), capsys)
    assert code == 1
    changed = "dataset.seed is 1, was 0; loop.seed is 1, was 0"
    assert f"error: {stage_1} holds a run with other settings: {changed}; use a new MODEL_DIR or delete" in stderr


def _from_python(world, folder, optimizer=None, seed=0, steps=4, **rest):
    """The run of `_flags(world, "prompt_tuning", folder)`, without gin."""
    lengths = {"inputs": 28, "targets": 6}
    config = T5Config(288, **TINY, relative_bias_max_distance=64, dropout_rate=0.0, prompt_length=8)
    validation_config = scoring.EvaluationConfig(lengths, batch_size=rest.pop("eval_batch_size", 8), limit=8)
    return stage_run.run_stage(
        EncoderDecoderModel(config, label_smoothing=0.1),
        "prompt_tuning",
        optimizer or _adafactor(0.2),
        training_batches.DatasetConfig("toy_enfr", lengths, batch_size=8, shards=2, seed=seed),
        trainer.LoopConfig(steps, seed=seed, log_period=rest.pop("log_period", 50)),
        str(folder),
        saving.CheckpointConfig(2, keep_latest=rest.pop("keep_latest", 1)),
        initial_checkpoint_path=str(world / "base"),
        prompt_init=rest.pop("prompt_init", prompt_initializers.random_uniform()),
        validation=stage_run.Validation("toy_enfr", "validation", validation_config),
        **rest,
    )


def _adafactor(rate):
    return optimizers.adafactor(rate, multiply_by_parameter_scale=False, weight_decay_rate=1e-5)


SCHEDULE = """
from __gin__ import dynamic_registration
import optax
from promot_t5x.training import optimizers
optimizers.adafactor.learning_rate = @optax.warmup_cosine_decay_schedule()
optax.warmup_cosine_decay_schedule.init_value = 0.0
optax.warmup_cosine_decay_schedule.peak_value = %LEARNING_RATE
optax.warmup_cosine_decay_schedule.warmup_steps = 2
optax.warmup_cosine_decay_schedule.decay_steps = %TRAIN_STEPS
"""


@pytest.mark.parametrize("scheduled", [False, True])
def test_gin_and_python_make_the_same_run(scheduled, world, stage_1, tmp_path, capsys):
    from_gin, rate = stage_1, 0.2
    if scheduled:
        (tmp_path / "schedule.gin").write_text(SCHEDULE)
        from_gin, rate = tmp_path / "gin", optax.warmup_cosine_decay_schedule(0.0, 0.2, 2, 4)
        argv = [*_flags(world, "prompt_tuning", from_gin), f"--gin_file={tmp_path / 'schedule.gin'}"]
        code, stderr = _run(argv, capsys)
        assert code == 0, stderr
    _from_python(world, tmp_path / "python", _adafactor(rate))
    assert (from_gin / "settings.json").read_bytes() == (tmp_path / "python" / "settings.json").read_bytes()
    assert not (tmp_path / "python" / "config.gin").exists()
    assert saving.all_steps(from_gin) == saving.all_steps(tmp_path / "python")
    for step in saving.all_steps(from_gin):
        stored = [
            tiny.stored_bytes(saving.checkpoint_folder(folder, step)) for folder in (from_gin, tmp_path / "python")
        ]
        assert stored[0] == stored[1] and len(stored[0]) > 1
    recorded = json.loads((from_gin / "settings.json").read_text())["optimizer"]
    assert recorded["type"] == "adafactor" and recorded["weight_decay_rate"] == 1e-5
    assert ('"decay_steps"' in json.dumps(recorded)) == scheduled


def test_a_run_from_python_is_guarded_as_one_from_gin(world, stage_1, monkeypatch, capsys):
    """The learning rate, the seed and the length of a finished run, either way."""
    _forbid_training(monkeypatch)
    changes = "optimizer.learning_rate is 0.3, was 0.2; dataset.seed is 5, was 0; loop.total_steps is 6, was 4"
    sentence = f"{stage_1} holds a run with other settings: {changes}; loop.seed is 5, was 0; use a new MODEL_DIR or"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        _from_python(world, stage_1, _adafactor(0.3), seed=5, steps=6)
    code, stderr = _run(
        _flags(world, "prompt_tuning", stage_1, LEARNING_RATE=0.3, RANDOM_SEED=5, TRAIN_STEPS=6), capsys
    )
    assert code == 1 and f"error: {sentence}" in stderr
    for prompt_init, message in (
        (prompt_initializers.random_uniform(0.0), "prompt_init.low is 0.0, was -0.5; use"),
        (None, "prompt_init is null, was not set"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            _from_python(world, stage_1, prompt_init=prompt_init)
    mesh = Partitioner("tensor", num_slices=1)
    other = dict(partitioner=mesh, eval_batch_size=4, log_period=1, keep_latest=3)
    assert _from_python(world, stage_1, **other) == _from_python(world, stage_1)


def test_bare_transformations_and_functions_are_recorded(world, tmp_path, capsys):
    def ones(key, num_prompts, length, embedding_VxD):
        return 0.5 * jnp.ones((num_prompts, length, embedding_VxD.shape[1]))

    for name, make in (
        ("bare", optax.sgd),
        ("named", lambda rate: optimizers.named(f"sgd {rate}", optax.sgd(rate))),
    ):
        folder = tmp_path / name
        result = _from_python(world, folder, make(0.1), steps=2, prompt_init=ones)
        assert result == _from_python(world, folder, make(0.1), steps=2, prompt_init=ones)
        with pytest.raises(ValueError, match="optimizer.* was .*0.1"):
            _from_python(world, folder, make(0.2), steps=2, prompt_init=ones)
        assert json.loads((folder / "soft_prompt.json").read_text())["initialisation"].endswith("ones")
    assert json.loads((folder / "settings.json").read_text())["optimizer"] == {"type": "named", "name": "sgd 0.1"}


def test_checkpoints_without_settings_are_refused(world, stage_1, tmp_path):
    shutil.copytree(stage_1, tmp_path / "run")
    (tmp_path / "run" / "settings.json").write_text("{")
    with pytest.raises(ValueError, match="settings.json is not JSON"):
        _from_python(world, tmp_path / "run")
    (tmp_path / "run" / "settings.json").unlink()
    with pytest.raises(ValueError, match="holds checkpoints but no settings.json"):
        _from_python(world, tmp_path / "run")


def test_data_are_identified_by_their_contents_and_not_by_their_path(world, tmp_path, monkeypatch, capsys):
    """A moved folder resumes, a changed file does not, the old file does again."""
    folder = tmp_path / "data"
    folder.mkdir()
    for split in ("train", "validation"):
        lines = [json.dumps({"input": f"{split} {number}", "target": "yes"}) for number in range(16)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))

    def run(data_dir):
        if "contents" in seqio.TaskRegistry.names():
            seqio.TaskRegistry.remove("contents")
        jsonl.jsonl_task("contents", str(data_dir), vocabulary=seqio.ByteVocabulary())
        flags = _flags(world, "prompt_tuning", tmp_path / "run", TRAIN_STEPS=1, MIXTURE_OR_TASK_NAME="contents")
        return _run(flags, capsys)

    assert run(folder)[0] == 0
    content = hashlib.sha256((folder / "train.jsonl").read_bytes()).hexdigest()
    assert saving.read_metadata(tmp_path / "run" / "checkpoint_1")["data"]["contents"]["train"]["content"] == content
    _forbid_training(monkeypatch)
    moved = folder.rename(tmp_path / "moved")
    assert run(moved)[0] == 0
    for split in ("train", "validation"):
        file = moved / f"{split}.jsonl"
        before = file.read_text()
        file.write_text(before.replace("yes", "no."))  # of the same size
        code, stderr = run(moved)
        sentence = _assert_one_sentence(code, stderr)
        assert (
            f"tasks.contents.contents.data.{split}.content is " in sentence
            and "put the old files back to resume" in sentence
        )
        file.write_text(before)
    assert run(moved)[0] == 0


def test_what_changes_no_result_may_change(world, stage_1, monkeypatch, capsys):
    _forbid_training(monkeypatch)
    assert _run(_flags(world, "prompt_tuning", stage_1, EVAL_BATCH_SIZE=4), capsys) == (0, "")
    monkeypatch.chdir(stage_1.parent)
    assert _run(_flags(world, "prompt_tuning", stage_1.name), capsys)[0] == 0, "the same folder, written otherwise"


def test_an_exported_prompt_still_names_its_model(world, tmp_path, capsys):
    export = ["--gin.train.train.export_dir=exported"]
    with contextlib.chdir(tmp_path):
        assert _run([*_flags(world, "prompt_tuning", "run", TRAIN_STEPS=2), *export], capsys)[0] == 0
    assert list(_leaves(tmp_path / "exported")) == ["soft_prompt/embedding"]
    config = T5Config(vocab_size=288, prompt_length=8, relative_bias_max_distance=64, **TINY)  # as models/toy.gin
    loaded = loading.load(tmp_path / "exported", EncoderDecoderModel(config), Partitioner())
    assert loaded.base_path == str(world / "base") and "encoder" in loaded.params
    assert loading.load(tmp_path / "exported").model.config == dataclasses.replace(config, dropout_rate=0.0)
    farther = dataclasses.replace(config, relative_bias_max_distance=128)
    with pytest.raises(ValueError, match="relative_bias_max_distance is 64, the configuration has 128"):
        loading.load(tmp_path / "exported", EncoderDecoderModel(farther), Partitioner())


def test_a_prompt_that_the_network_lacks(world, tmp_path, capsys):
    flags = _flags(world, "prompt_tuning", tmp_path / "m")
    code, stderr = _run([*flags, "--gin.training_batches.DatasetConfig.soft_prompt_id=1"], capsys)
    assert code == 1 and "has the soft prompt 1, but the network has 1" in stderr
    assert not (tmp_path / "m" / "finished.json").exists()


def test_flags_reach_the_configuration_in_every_spelling(world, tmp_path, capsys):
    def resolved(*argv):
        gin_files.parse([])
        assert program.run_main(train.main, [*argv, "--dry_run"]) == 0
        return capsys.readouterr().out

    flags = _flags(world, "prompt_tuning", tmp_path / "m")
    files = [flag for flag in flags if flag.startswith("--gin_file=")]
    others = [flag for flag in flags if flag not in files]
    dry_run = resolved(*files, *others)
    assert "TRAIN_STEPS = 4\n" in dry_run and "trainer.LoopConfig.total_steps = 4\n" in dry_run
    assert "stage prompt_tuning: 128 parameters train" in dry_run
    for order in itertools.permutations(files):  # the model, the task and the stage do not fight over a name
        assert resolved(*others, *order) == dry_run
    without = [flag for flag in others if "TRAIN_STEPS" not in flag]
    for spelling in (["--gin_bindings=TRAIN_STEPS = 4"], ["--gin.TRAIN_STEPS", "4"], ["--gin.TRAIN_STEPS=4"]):
        assert resolved(*files, *without, *spelling) == dry_run
    direct = resolved(*files, *without, "--gin.trainer.LoopConfig.total_steps=7")
    assert "trainer.LoopConfig.total_steps = 7\n" in direct
    assert not (tmp_path / "m").exists()


@pytest.fixture
def steps(monkeypatch):
    """The arguments of every step of a run: [trainable leaves, frozen leaves], flat, as numpy arrays."""
    leaves_by_step, original = [], trainer.make_step

    def make_step(*args):
        step = original(*args)

        def recorded(trainable, opt_state, frozen, *rest):
            flat = [parameter_names.flatten(tree) for tree in (trainable, frozen)]
            leaves_by_step.append([{name: np.array(leaf) for name, leaf in leaves.items()} for leaves in flat])
            return step(trainable, opt_state, frozen, *rest)

        return recorded

    monkeypatch.setattr(trainer, "make_step", make_step)
    return leaves_by_step


def test_a_frozen_model_may_be_held_in_bfloat16(world, stage_1, tmp_path, steps, capsys):
    """The prompt, and all that is stored, stays in float32; stage 2 trains the model as it was before."""
    half = {"FROZEN_WEIGHTS_DTYPE": "bfloat16"}
    code, stderr = _run(_flags(world, "prompt_tuning", tmp_path / "stage_1", **half), capsys)
    assert code == 0, stderr
    base, prompt = _leaves(world / "base"), parameter_names.PROMPT
    assert len(steps) == 4
    for trainable, frozen in steps:
        assert list(trainable) == [prompt] and trainable[prompt].dtype == np.float32
        assert list(frozen) == list(base)
        for name, leaf in base.items():
            assert frozen[name].tobytes() == np.asarray(leaf, jnp.bfloat16).tobytes(), name
    checkpoints = {step: _leaves(tmp_path / "stage_1" / f"checkpoint_{step}") for step in (2, 4)}
    for step, stored in checkpoints.items():
        assert list(stored) == [prompt] and stored[prompt].dtype == np.float32
        metadata = [saving.read_metadata(run / f"checkpoint_{step}") for run in (tmp_path / "stage_1", stage_1)]
        assert metadata[0]["base"] == metadata[1]["base"], "the base is the one in float32"
    whole = _leaves(stage_1 / "checkpoint_4")[prompt]
    off = np.linalg.norm(checkpoints[4][prompt] - whole) / np.linalg.norm(whole)
    assert 0 < off < 0.1, "near what float32 finds, and not the same"
    (vectors_NxPxD,) = safetensors.numpy.load_file(tmp_path / "stage_1" / "soft_prompt.safetensors").values()
    assert vectors_NxPxD.dtype == np.float32

    steps.clear()
    code, stderr = _run(_flags(world, "model_tuning", tmp_path / "stage_2", tmp_path / "stage_1", **half), capsys)
    assert code == 0, stderr
    trainable, frozen = steps[0]
    assert list(frozen) == [prompt] and list(trainable) == list(base)
    best = checkpoints[saving.best_step(tmp_path / "stage_1")]
    np.testing.assert_array_equal(frozen[prompt], best[prompt], strict=True)
    for name, leaf in base.items():
        np.testing.assert_array_equal(trainable[name], leaf, strict=True, err_msg=name)


def test_a_validation_score_that_is_not_a_number_is_refused(world, tmp_path, monkeypatch, capsys):
    """It would choose the checkpoint, and its metadata would not be JSON."""
    outcome = scoring.Evaluation("accuracy", float("nan"), None, {}, {}, [])
    monkeypatch.setattr(scoring, "evaluate", lambda *_, **__: outcome)
    code, stderr = _run(_flags(world, "prompt_tuning", tmp_path / "run"), capsys)
    sentence = "error: The metric accuracy of task toy_enfr is nan on its split validation, expected a finite number"
    assert code == 1 and sentence in stderr and not saving.all_steps(tmp_path / "run")


def test_an_interrupted_run_resumes_with_other_partitioner_settings(world, tmp_path, steps, monkeypatch, capsys):
    flags = _flags(world, "prompt_tuning", tmp_path / "run")
    original = training_batches.opened

    def three_batches(*args, **kwargs):
        batches = original(*args, **kwargs)

        def at_most_three(start_batch):
            yield from itertools.islice(batches(start_batch), 3)
            raise KeyboardInterrupt

        return at_most_three

    with monkeypatch.context() as patch:
        patch.setattr(training_batches, "opened", three_batches)
        code, stderr = _run(flags, capsys)
    assert code == 130 and stderr.endswith(
        f"\ninterrupted; it was in step 4 of 4; the newest checkpoint is {tmp_path}/run/checkpoint_2; the same command "
        "resumes from it\n"
    )
    assert saving.all_steps(tmp_path / "run") == [2] and len(steps) == 3
    mesh = ["--gin.PRESET=tensor", "--gin.NUM_PARTITIONS=1", "--gin.partitioner.Partitioner.num_slices=1"]
    code, stderr = _run([*flags, *mesh], capsys)
    assert code == 0, stderr
    assert len(steps) == 5, "two more, from the checkpoint on"
    written = gin_files.bindings((tmp_path / "run" / "config.gin").read_text())
    assert {"PRESET = 'tensor'", "partitioner.Partitioner.num_slices = 1"} <= set(written)
    # What it computes may still not change, the parts of a batch among it: they decide the masks of dropout.
    code, stderr = _run([*flags, "--gin.NUM_MICROBATCHES=2"], capsys)
    assert code == 1 and "holds a run with other settings: loop.num_microbatches is 2, was 1; use" in stderr


# Mistakes: one sentence, exit code 1, and nothing left that looks like a run.

MISTAKES = {
    "misspelt parameter": (
        dict(extra=["--gin.train.train.stag=x"]),
        "train.train has no parameter 'stag' (did you mean 'stage'?)",
    ),
    "misspelt macro": (dict(TRAIN_STEP=3), "nothing uses TRAIN_STEP (did you mean 'TRAIN_STEPS'?)"),
    "unknown flag": (dict(extra=["--gin_fil=x"]), "unknown flag --gin_fil (did you mean '--gin_file'?)"),
    "unknown stage": (
        dict(STAGE="promt_tuning"),
        "The stage 'promt_tuning' does not exist (did you mean 'prompt_tuning'?)",
    ),
    "no MODEL_DIR": (dict(model_dir=None), "pass --gin.MODEL_DIR=VALUE"),
    "no gin file": (dict(extra=["--gin_file=stages/prompt_tunin.gin"]), "gin file 'stages/prompt_tunin.gin' was not"),
    "no checkpoint": (dict(base="nowhere"), "There is no checkpoint at "),
    "no checkpoint named": (dict(base=None), "pass --gin.INITIAL_CHECKPOINT_PATH=VALUE"),
    "prompt tuning of nothing": (
        dict(base=None, extra=["--gin.INITIAL_CHECKPOINT_PATH=None"]),
        "INITIAL_CHECKPOINT_PATH is None: give the path of one pretrained model.",
    ),
    "another size": (dict(base="other_size"), "does not hold this network's parameters; "),
    "stage 2 without a prompt": (
        dict(stage="model_tuning"),
        "Stage model_tuning takes its soft prompt from INITIAL_CHECKPOINT_PATH, but ",
    ),
    "unknown task": (dict(MIXTURE_OR_TASK_NAME="toy_enfrr"), "toy_enfr"),
    "unknown split": (dict(TRAIN_SPLIT="trian"), "'trian'"),
    "unknown validation split": (dict(VALIDATION_SPLIT="valid"), "'valid'"),
    "batch and shards": (dict(BATCH_SIZE=9), "training_batches.DatasetConfig.batch_size=9 is not a multiple of "),
    "a prompt of the validation, said before the checkpoint is opened": (
        dict(base="nowhere", extra=["--gin.train.Validation.prompt_id=7"]),
        "train.Validation.prompt_id is 7, expected the number of a soft prompt of the model, which has 1",
    ),
    "no dtype of weights": (
        dict(FROZEN_WEIGHTS_DTYPE="float16"),
        "train.train.frozen_weights_dtype is 'float16': expected None, float32 or bfloat16.",
    ),
    "no preset": (
        dict(PRESET="fsdp"),
        "Partitioner.preset is 'fsdp': expected one of mixed, fully_sharded, tensor, data.",
    ),
    "microbatches": (dict(NUM_MICROBATCHES=3), "num_microbatches is 3, which does not divide the batch of 8 rows"),
    "no such text": (
        dict(extra=["--gin.train.train.prompt_init=@prompt_initializers.from_file()"]),
        "prompt_initializers.",
    ),
}


def _assert_one_sentence(code, stderr):
    assert code == 1, stderr
    assert "Traceback" not in stderr
    errors = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, stderr
    return errors[0]


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence(mistake, world, tmp_path, capsys):
    changes, expected = MISTAKES[mistake]
    arguments = {"stage": "prompt_tuning", "model_dir": tmp_path / "run", **changes}
    extra = arguments.pop("extra", [])
    code, stderr = _run([*_flags(world, **arguments), *extra], capsys)
    assert expected in _assert_one_sentence(code, stderr)
    assert not (tmp_path / "run" / "finished.json").exists()
    assert not saving.all_steps(tmp_path / "run")


def test_a_run_says_what_it_trains_before_its_first_step(world, tmp_path, caplog):
    with caplog.at_level("INFO"):
        assert _run(_flags(world, stage="prompt_tuning", model_dir=tmp_path / "run"))[0] == 0
    messages = [message.split(" in ")[0] for message in caplog.messages]
    first = next(
        i for i, message in enumerate(messages) if message.startswith("training prompt_tuning on toy_enfr/train")
    )
    assert ", steps 1 to 4, 8 examples each, learning rate " in messages[first]
    assert messages[first + 1].startswith("toy_enfr/train has 480 examples")
    assert messages.count("compiling the training step") == messages.count("compiled the training step") == 1
    assert first < messages.index("compiling the training step") < messages.index("compiled the training step")


def _randomise(folder, part):
    rng = np.random.default_rng(0)
    files = [file for file in folder.rglob("*") if file.is_file() and part in str(file.relative_to(folder))]
    assert files
    for file in files:
        file.write_bytes(rng.bytes(max(file.stat().st_size, 16)))


@pytest.mark.parametrize("part", ["", "metadata/metadata", "params/", "/d/", "_METADATA"])
def test_a_damaged_checkpoint_is_one_sentence(part, world, tmp_path, capsys):
    shutil.copytree(world / "base", tmp_path / "damaged")
    _randomise(tmp_path / "damaged", part)
    code, stderr = _run(_flags(world, "prompt_tuning", tmp_path / "run", base=tmp_path / "damaged"), capsys)
    assert str(tmp_path / "damaged") in _assert_one_sentence(code, stderr)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_from_an_older_checkpoint_if_the_newest_is_damaged(world, tmp_path, capsys):
    flags = [*_flags(world, "prompt_tuning", tmp_path / "run"), "--gin.saving.CheckpointConfig.keep_latest=2"]
    assert _run(flags, capsys)[0] == 0
    (tmp_path / "run" / "finished.json").unlink()
    last = _leaves(tmp_path / "run" / "checkpoint_4")
    _randomise(tmp_path / "run" / "checkpoint_4", "params/d/")
    sentence = _assert_one_sentence(*_run(flags, capsys))
    assert "checkpoint_4" in sentence and "step 2 is whole, and --gin.train.train.resume_from=2 continues" in sentence
    wrong = _assert_one_sentence(*_run([*flags, "--gin.train.train.resume_from=3"], capsys))
    assert "train.train.resume_from is 3, but" in wrong and "the checkpoints of steps 2, 4; name one of these" in wrong
    assert _run([*flags, "--gin.train.train.resume_from=2"], capsys)[0] == 0
    assert (tmp_path / "run" / "damaged_checkpoint_4").is_dir()
    for name, leaf in _leaves(tmp_path / "run" / "checkpoint_4").items():
        np.testing.assert_array_equal(leaf, last[name])


def test_random_bytes_are_no_checkpoint(world, tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder" / "checkpoint", tmp_path / "file"):
        path.write_bytes(np.random.default_rng(0).bytes(1000))
        base = path.parent if path.name == "checkpoint" else path
        code, stderr = _run(_flags(world, "prompt_tuning", tmp_path / "run", base=base), capsys)
        assert str(base) in _assert_one_sentence(code, stderr)


def test_a_changed_base_is_noticed(world, stage_1, tmp_path, capsys):
    """Stage 2 on a base that is no longer the one that the prompt was trained on."""
    shutil.copytree(stage_1, tmp_path / "stage_1")
    for file in (tmp_path / "stage_1").glob("checkpoint_*/metadata/metadata"):
        file.write_text(file.read_text().replace(str(world / "base"), str(tmp_path / "base")))
    model = EncoderDecoderModel(T5Config(vocab_size=288, **TINY))
    saving.export(
        tmp_path / "base", jax.tree.map(lambda x: jnp.ones(x.shape), model.abstract_params()), {"step": 0, "base": None}
    )
    code, stderr = _run(_flags(world, "model_tuning", tmp_path / "run", base=tmp_path / "stage_1"), capsys)
    assert "put the original model back" in _assert_one_sentence(code, stderr)


def test_after_a_fixed_mistake_the_folder_is_used(world, tmp_path, capsys):
    """The mistake shows only when the data are read, after the folder was made; nothing was trained in it."""
    code, _ = _run(_flags(world, "prompt_tuning", tmp_path / "run", TRAIN_SPLIT="trian"), capsys)
    assert code == 1
    code, stderr = _run(_flags(world, "prompt_tuning", tmp_path / "run", TRAIN_STEPS=1, EVAL_BATCH_SIZE=4), capsys)
    assert code == 0, stderr


def test_a_killed_run_ends_as_if_it_had_not_been(world, stage_1, tmp_path, capsys):
    steps = dict(TRAIN_STEPS=12, CHECKPOINT_PERIOD=2)
    command = [
        sys.executable,
        "-m",
        "promot_t5x.train",
        *_flags(world, "model_tuning", tmp_path / "run", base=stage_1, **steps),
    ]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
        deadline = time.monotonic() + 240
        while not saving.all_steps(tmp_path / "run") and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()[-3000:]
    stopped = saving.all_steps(tmp_path / "run")
    assert stopped and stopped[-1] < 12 and not (tmp_path / "run" / "finished.json").exists()
    assert (tmp_path / "run" / folder_lock.FILE).exists(), "the killed run had the folder"
    for name in ("run", "whole"):
        code, stderr = _run(_flags(world, "model_tuning", tmp_path / name, base=stage_1, **steps), capsys)
        assert code == 0, stderr
    ours, theirs = (_leaves(tmp_path / name / "checkpoint_12") for name in ("run", "whole"))
    assert (
        set(ours)
        == set(theirs)
        == set(
            parameter_names.flatten(
                EncoderDecoderModel(T5Config(vocab_size=288, prompt_length=8, **TINY)).abstract_params()
            )
        )
    )
    for name, leaf in ours.items():
        np.testing.assert_array_equal(leaf, theirs[name], err_msg=name)
    assert not (tmp_path / "run" / folder_lock.FILE).exists()
    finished = [(tmp_path / name / "finished.json").read_text() for name in ("run", "whole")]
    assert finished[0] == finished[1]
    base = _leaves(world / "base")
    assert all(np.any(ours[name] != leaf) for name, leaf in base.items()), "stage 2 moves every leaf of the model"
