"""A user's own stage through gin: a pattern over leaf names, as T5X's MultiOptimizer users write one."""

import contextlib
import io
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x import train
from promot_t5x.checkpoints import loading, saving
from promot_t5x.configuration import program
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

SIZES = dict(embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=2)
OWN = """
from __gin__ import dynamic_registration
from promot_t5x import train
from promot_t5x.training import stages
from promot_t5x.tasks import toy_world
include 'promot_t5x/gin/stages/fine_tuning.gin'

upper/stages.Stage.name = 'upper_layers'
upper/stages.Stage.trainable = ['decoder/layers_1', r'decoder/decoder_norm/.*']
upper/stages.Stage.frozen = [r'.*/wo/kernel']
upper/stages.Stage.attaches_prompt = False
train.train.stage = @upper/stages.Stage()

MIXTURE_OR_TASK_NAME = 'toy_enfr'
TASK_FEATURE_LENGTHS = {'inputs': 28, 'targets': 6}
TRAIN_SPLIT = 'train'
VALIDATION_SPLIT = 'validation'
TRAIN_STEPS = 4
CHECKPOINT_PERIOD = 2
BATCH_SIZE = 8
EVAL_BATCH_SIZE = 8
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with own.gin and a base model whose weights are drawn by numpy."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "own.gin").write_text(OWN)
    model, rng = (
        EncoderDecoderModel(T5Config(vocab_size=288, relative_bias_max_distance=64, **SIZES)),
        np.random.default_rng(0),
    )
    params = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), model.abstract_params())
    saving.export(folder / "base", params, {"step": 0, "base": None})
    return folder


def _run(folder, *flags) -> tuple[int, str, str]:
    """(exit code, standard output, standard error)"""
    argv = [
        "--gin_file=models/toy.gin",
        "--gin_file=own.gin",
        f"--gin_search_paths={folder}",
        *[f"--gin.architecture.T5Config.{name}={value}" for name, value in SIZES.items()],
        "--gin.scoring.EvaluationConfig.limit=8",
        f"--gin.MODEL_DIR={folder / 'run'}",
        f"--gin.INITIAL_CHECKPOINT_PATH={folder / 'base'}",
        *flags,
    ]
    with contextlib.redirect_stdout(io.StringIO()) as stdout, contextlib.redirect_stderr(io.StringIO()) as stderr:
        code = program.run_main(train.main, argv)
    return code, stdout.getvalue(), stderr.getvalue()


def _bits(path) -> dict[str, bytes]:
    params = loading.load(
        str(path), EncoderDecoderModel(T5Config(vocab_size=288, relative_bias_max_distance=64, **SIZES)), Partitioner()
    ).params
    return {name: np.asarray(leaf).tobytes() for name, leaf in parameter_names.flatten(params).items()}


def test_only_what_it_names_changes_and_the_checkpoint_is_whole(folder):
    code, stdout, stderr = _run(folder)
    assert code == 0, stderr
    before, after = _bits(folder / "base"), _bits(folder / "run")
    own = {name for name in before if name.startswith(("decoder/layers_1/", "decoder/decoder_norm/"))}
    own -= {"decoder/layers_1/mlp/wo/kernel"}
    assert {name for name in before if before[name] != after[name]} == own and len(own) == 14
    assert "stage upper_layers:" in stdout and "decoder, trained" in stdout and "decoder, frozen" in stdout
    metadata = saving.read_metadata(saving.checkpoint_folder(folder / "run", 4))
    assert metadata["stage"] == "upper_layers"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--gin.upper/stages.Stage.trainable=['decoder/layers_7']"],
            "has 'decoder/layers_7', which matches no parameter",
        ),
        (["--gin.upper/stages.Stage.trainable=['decoder/(']"], "'decoder/(', which is not a regular expression"),
        (["--gin.FROZEN_WEIGHTS_DTYPE=bfloat16"], "upper_layers trains a part of the model and stores all of it"),
        (["--gin.T5Config.scan_layers=True"], "'decoder/layers_1', which matches no parameter"),
        (["--gin.T5Config.scan_layers=True"], "set architecture.T5Config.scan_layers = False to name single layers."),
    ],
)
def test_mistakes_are_one_sentence_before_anything_is_read(folder, flags, message):
    code, _, errors = _run(folder, "--dry_run", *flags)
    assert code != 0 and message in errors and "Traceback" not in errors


def test_the_guides_stage_trains_what_it_says(tmp_path):
    guide = pathlib.Path(__file__).resolve().parents[2] / "docs" / "guide.md"
    section = guide.read_text(encoding="utf-8").split("## A stage of your own", 1)[1]
    (tmp_path / "upper.gin").write_text(re.search(r"```gin\n(.*?)```", section, re.DOTALL).group(1), encoding="utf-8")
    files = ("models/mt5_small.gin", "stages/fine_tuning.gin", "tasks/jsonl.gin", str(tmp_path / "upper.gin"))
    given = {"DATA_DIR": "my_data", "MODEL_DIR": str(tmp_path / "run"), "INITIAL_CHECKPOINT_PATH": "None"}
    flags = [*(f"--gin_file={file}" for file in files), *(f"--gin.{name}={value}" for name, value in given.items())]
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert program.run_main(train.main, [*flags, "--dry_run"]) == 0
    # mT5-small has 8 decoder layers of two attentions (512 x 384, four matrices each) and an MLP (512 x 1024, three).
    upper = 4 * (2 * 4 * 512 * 384 + 3 * 512 * 1024)
    assert f"stage upper_layers: {upper:,} parameters train" in shown.getvalue()
