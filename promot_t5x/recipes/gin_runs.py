"""Trains a recipe's runs from gin files: the method's, then the recipe's, then the run's values; the later wins."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.configuration import gin_checks, gin_files, gin_statements
from promot_t5x.recipes.recipe import PlannedRun
from promot_t5x.runtime import arguments
from promot_t5x.training import run_folder, stage_run


@dataclasses.dataclass(frozen=True)
class GinRuns:
    """Trains a recipe's runs; each is one that you could start by hand with `python -m promot_t5x.train`.

    Attributes:
      files: gin files of the network and the task, as for `--gin_file`; they override the methods' files.
      bindings: gin statements; they override all files.
      search_paths: folders that are searched for files before the package.
    """

    files: Sequence[str]
    bindings: Sequence[str] = ()
    search_paths: Sequence[str] = ()

    def __call__(self, run: PlannedRun, model_dir: str, starts: Sequence[str]) -> run_folder.RunResult:
        """Trains or resumes one run, or returns the result of a finished one; see `running.Train`."""
        with gin_statements.separate():
            self.configure(run, model_dir, starts)
            train = gin_files.configurable(stage_run.run_stage, "train.train")
            return train(config_gin=gin_files.operative_config)

    def configure(self, run: PlannedRun, model_dir: str, starts: Sequence[str]) -> None:
        """Sets gin's configuration to that of one run.

        Raises:
          FileNotFoundError: a gin file does not exist.
          ConfigError: a mistake in a file or binding.
        """
        bindings = [
            *self.bindings,
            f"MODEL_DIR = {model_dir!r}",
            f"INITIAL_CHECKPOINT_PATH = {(starts[0] if len(starts) == 1 else tuple(starts))!r}",
            f"RANDOM_SEED = {run.seed}",
        ]
        if run.learning_rate is not None:
            bindings.append(f"LEARNING_RATE = {run.learning_rate!r}")
        gin_files.parse([*run.gin_files, *self.files], bindings, self.search_paths)
        gin_checks.check_macros()

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Configures all runs, and checks that every macro of the bindings is used by one of them or by the files.

        Raises:
          FileNotFoundError: a gin file does not exist.
          ConfigError: a mistake in a file or binding, or macros that change nothing, all named.
        """
        with gin_statements.separate():
            gin_files.parse(self.files, self.bindings, self.search_paths)
            unused = gin_checks.unused_flag_macros()
            for run in runs:
                if run.trains:
                    self.configure(run, model_dir="not read", starts=("not read",))
                    unused &= gin_checks.unused_flag_macros()
            gin_checks.check_flags(unused)


@arguments.checked
def runs_from_gin(
    files: Sequence[str], bindings: Mapping[str, Any] | None = None, search_paths: Sequence[str] = ()
) -> GinRuns:
    """The function for `run_recipe` that trains its runs as gin files describe them; see also `from_gin`.

    Args:
      files: gin files of the network and the task; each method's row names its stage's file.
      bindings: values of macros or parameters, the same for all runs.
      search_paths: folders that are searched for the files before the package.

    Raises:
      ConfigError: a value that gin cannot write. `run_recipe` says what is wrong with files and names.

    >>> runs_from_gin(["models/toy.gin", "tasks/toy.gin"], {"TRAIN_STEPS": 100}).bindings
    ('TRAIN_STEPS = 100',)
    """
    return GinRuns(tuple(files), gin_files.statements(bindings or {}), tuple(search_paths))
