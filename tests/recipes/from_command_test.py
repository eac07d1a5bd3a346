"""promot_t5x.recipes.from_command and gin_runs: which flags a recipe and its runs take."""

import pytest

from promot_t5x.configuration.flags import ConfigError
from promot_t5x.recipes import from_command, gin_runs
from promot_t5x.recipes.recipe import Recipe, planned_runs

FILES = ["recipes/demo.gin"]
NEEDED = ("WORK_DIR = 'work'",)


def _check(*bindings):
    runs = planned_runs(Recipe(("prompt_tuning", "promot"), "toy_enfr", (), (1e-3,)))
    gin_runs.GinRuns(FILES, (*NEEDED, *bindings)).check(runs)


@pytest.mark.parametrize(
    "binding",
    [
        "trainer.LoopConfig.log_period = 1",  # which the recipe's own files do not import
        "saving.CheckpointConfig.keep_latest = 3",
        "prompt_initializers.random_uniform.low = -0.1",  # which only one run's files import
        "STATS_PERIOD = 1",
        "OPTIMIZER = @optimizers.adam()",
    ],
)
def test_a_flag_for_a_recipes_runs(binding):
    _check(binding)


@pytest.mark.parametrize(
    "binding,sentence",
    [
        ("trainr.LoopConfig.log_period = 1", "'trainr' is not an imported module"),
        ("trainer.LoopConfig.log_perio = 1", "(did you mean 'log_period'?)"),
        ("optimizers.adam.b1 = 0.5", "nothing uses optimizers.adam: bind it somewhere, as @optimizers.adam()"),
        ("STATS_PERIO = 1", "nothing uses STATS_PERIO (did you mean 'STATS_PERIOD'?)"),
        ("RANDOM_SEED = 1", "a recipe's runs have its own seeds: set pipeline.Recipe.seeds"),
    ],
)
def test_a_flag_that_no_run_takes(binding, sentence):
    with pytest.raises(ConfigError) as caught:
        _check(binding)
    assert sentence in str(caught.value)


def test_scores_do_not_depend_on_logs_and_kept_checkpoints():
    bindings = ["saving.CheckpointConfig.keep_latest = 3", "trainer.LoopConfig.log_period = 1"]
    decide = ["saving.CheckpointConfig.period = 10", "trainer.LoopConfig.total_steps = 5"]
    assert from_command.settings_of_scores([*bindings, *decide]) == decide
