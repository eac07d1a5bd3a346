"""What a configuration lacks, in one sentence: macros, required values, types, and flags that change nothing."""

import pytest

from promot_t5x.configuration import gin_checks, gin_files
from promot_t5x.configuration.flags import ConfigError

HEADER = (
    "from __gin__ import dynamic_registration\n"
    "from promot_t5x import pipeline\nfrom promot_t5x.training import trainer\n"
)


@pytest.fixture
def write(tmp_path):
    def write_file(text):
        (tmp_path / "main.gin").write_text(HEADER + text)
        return str(tmp_path / "main.gin")

    return write_file


def _error(check, *arguments):
    gin_files.parse(*arguments)
    with pytest.raises(ConfigError) as caught:
        check()
    return str(caught.value)


def test_missing_macros(write):
    path = write("STEPS = 1\nMIXTURE = %gin.REQUIRED\ntrainer.LoopConfig.total_steps = %STEP\n")
    assert _error(gin_checks.check_macros, [path]) == (
        f"{path}:5: MIXTURE is required and has no value: pass --gin.MIXTURE=VALUE; "
        f"{path}:6: trainer.LoopConfig.total_steps uses %STEP, which is defined nowhere (did you mean 'STEPS'?): "
        "pass --gin.STEP=VALUE"
    )
    gin_files.parse([path], ["MIXTURE = 'm'", "STEP = 1"])
    gin_checks.check_macros()
    path = write("trainer.LoopConfig.seed = %gin.REQUIRED\n")
    assert _error(gin_checks.check_macros, [path]) == (
        f"{path}:4: trainer.LoopConfig.seed is required and has no value: pass --gin.trainer.LoopConfig.seed=VALUE"
    )
    circular = _error(gin_checks.check_macros, [], ["A = %B", "B = [%A]"])
    assert circular == "macro A is defined by itself: A -> B -> A"


def test_flags_that_change_nothing(write):
    path = write("STEPS = 1\ntrainer.LoopConfig.total_steps = %STEPS\n")
    assert _error(gin_checks.check_flags, [path], ["STEP = 3"]) == (
        "flag 'STEP = 3': nothing uses STEP (did you mean 'STEPS'?)"
    )
    assert _error(gin_checks.check_flags, [path], ["LR = 3"]) == "flag 'LR = 3': nothing uses LR"
    gin_files.parse([path], ["STEPS = %OTHER", "OTHER = 3"])
    gin_checks.check_flags()
    gin_files.parse([write("UNUSED_IN_A_FILE = 1\n")])
    gin_checks.check_flags()


@pytest.mark.parametrize(
    "binding,expected",
    [
        ("trainer.LoopConfig.total_steps = 'abc'", "is 'abc', expected int"),
        ("trainer.LoopConfig.total_steps = 1e3", "is 1000.0, expected int"),
        ("trainer.LoopConfig.total_steps = True", "is True, expected int"),
        ("trainer.LoopConfig.total_steps = %STEPS", "is 'x' (from %STEPS), expected int"),
        ("pipeline.Recipe.learning_rates = 1e-3", "is 0.001, expected Sequence[float]"),
        ("pipeline.Recipe.learning_rates = ('x',)", "is ('x',), expected Sequence[float]"),
        ("pipeline.Recipe.target = None", "is None, expected str"),
    ],
)
def test_types(write, binding, expected):
    path = write(f"STEPS = 'x'\n{binding}\n")
    assert _error(gin_checks.check_macros, [path]) == f"{path}:5: {binding.split(' = ')[0]} {expected}"


@pytest.mark.parametrize(
    "binding",
    [
        "trainer.LoopConfig.total_steps = 3",
        "trainer.LoopConfig.total_steps = %STEPS",
        "pipeline.Recipe.learning_rates = (1e-3, 1)",
        "pipeline.Recipe.learning_rates = [1e-3]",
        "pipeline.Recipe.target = @pipeline.Recipe()",
        "pipeline.run.initial_checkpoint_path = None",
        "pipeline.run.initial_checkpoint_path = 'a'",
    ],
)
def test_good_values(write, binding):
    gin_files.parse([write(f"STEPS = 3\n{binding}\n")])
    gin_checks.check_macros()
    parameter = binding.split(" = ")[0]
    assert [line for line in gin_files.bindings(gin_files.resolved_config()) if line.startswith(f"{parameter} = ")]
