"""What a recipe's runs share in memory: compiled programs, the base's weights, batches; and that none of it shows."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import promot_t5x
from promot_t5x.checkpoints import placing, saving
from promot_t5x.data import training_batches
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.recipes.recipe import Recipe, planned_runs

LENGTHS = {"inputs": 10, "targets": 4}
MODEL = EncoderDecoderModel(
    T5Config(
        vocab_size=288, embed_dim=16, num_heads=2, head_dim=8, mlp_dim=32, num_encoder_layers=1, num_decoder_layers=1
    )
)
RECIPE = Recipe(("pretrained", "fine_tuning"), "toy_enfr", (), learning_rates=(1e-3, 2e-3), seeds=(0, 1))


@contextlib.contextmanager
def _compiled():
    """The names of the programs that are compiled in a `with` block, or read from the folder of compiled programs."""
    names = []

    def listener(event, _, *, fun_name="", **__):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


def _train(run, model_dir, starts):
    """One run in two steps; the second one's validation is the last work of a run."""
    return promot_t5x.run_stage(
        MODEL,
        "fine_tuning",
        promot_t5x.adafactor(run.learning_rate),
        promot_t5x.DatasetConfig("toy_enfr", LENGTHS, batch_size=4, shards=2, seed=run.seed),
        promot_t5x.LoopConfig(total_steps=2, seed=run.seed),
        model_dir=model_dir,
        initial_checkpoint_path=starts[0],
        validation=promot_t5x.Validation(
            "toy_enfr", "validation", promot_t5x.EvaluationConfig(LENGTHS, batch_size=4, limit=4), eval_steps=1
        ),
    )


def _digests(folder) -> dict:
    """Of every array of a run's last checkpoint, optimizer state included."""
    return saving.read_metadata(saving.checkpoint_folder(folder, 2))["digests"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """(folder of a recipe of two rates and two seeds, the programs of each run, what was read, what was opened)"""
    folder, compiled, read, opened = tmp_path_factory.mktemp("memory"), [], [], []
    rng = np.random.default_rng(0)
    base = jax.tree.map(lambda x: jnp.asarray(0.1 * rng.normal(size=x.shape), x.dtype), MODEL.abstract_params())
    saving.export(folder / "base", base, {"step": 0, "base": None})

    def counted(function, calls):
        return lambda *args, **kwargs: calls.append(args) or function(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch, _compiled() as names:
        patch.setattr(placing, "place", counted(placing.place, read))
        patch.setattr(training_batches, "opened", counted(training_batches.opened, opened))

        def train(*args):
            compiled.append(len(names))
            return _train(*args)

        promot_t5x.run_recipe(
            RECIPE,
            train,
            MODEL,
            promot_t5x.EvaluationConfig(LENGTHS, batch_size=4, limit=4),
            str(folder / "work"),
            str(folder / "base"),
        )
        ends = [*compiled[1:], len(names)]
    return folder, [names[a:b] for a, b in zip(compiled, ends, strict=True)], read, opened


def test_runs_that_differ_in_rate_and_seed_share_all_programs(recipe):
    _, compiled, _, _ = recipe
    first, *others = compiled
    assert first.count("jit(train_step)") == 1 and "jit(_loss_sums)" in first
    assert others == [[], [], []], "neither for a run nor for its validations and scores"


def test_the_base_and_each_seeds_data_are_read_once(recipe):
    folder, _, read, opened = recipe
    sources = [next(iter(leaves.values())).source for leaves, *_ in read]
    assert sum(str(folder / "base") in source for source in sources) == 2, "kept from the second reading on"
    assert [config.seed for config, *_ in opened] == [0, 1]


def test_a_run_of_a_recipe_is_the_run_on_its_own(recipe, tmp_path):
    """Bit for bit, with the optimizer's state: the batches, weights and program were those of the run before it."""
    folder, name = recipe[0], "seed0/fine_tuning_lr0.002"
    (run,) = [run for run in planned_runs(RECIPE) if run.name == name]
    _train(run, str(tmp_path / "run"), [str(folder / "base")])
    assert _digests(tmp_path / "run") == _digests(folder / "work" / name)
