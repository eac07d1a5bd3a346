"""Trains a recipe's runs from gin files: the method's, then the recipe's, then the run's values; the later wins."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.configuration import gin_checks, gin_files, gin_statements
from promot_t5x.configuration.flags import ConfigError
from promot_t5x.recipes.recipe import PlannedRun
from promot_t5x.runtime import arguments
from promot_t5x.training import run_folder, stage_run

_OF_RUN = ("MODEL_DIR", "INITIAL_CHECKPOINT_PATH", "RANDOM_SEED", "LEARNING_RATE")  # macros that each run sets


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

    def configure(self, run: PlannedRun, model_dir: str, starts: Sequence[str]) -> tuple[str, ...]:
        """Sets gin's configuration to that of one run.

        Returns:
          The bindings that are not for this run: its files do not import the module that they name.

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
        skipped = gin_files.parse([*run.gin_files, *self.files], bindings, self.search_paths, skip_not_imported=True)
        gin_checks.check_macros()
        return skipped

    def check(self, runs: Sequence[PlannedRun]) -> None:
        """Configures all runs, and checks that every binding is used by one of them or by the files.

        Raises:
          FileNotFoundError: a gin file does not exist.
          ConfigError: a mistake in a file or binding, or bindings that change nothing, all named.
        """
        with gin_statements.separate():
            skipped = gin_files.parse(self.files, self.bindings, self.search_paths, skip_not_imported=True)
            used, unused = gin_checks.flags_by_use("pipeline.run")
            for run in (run for run in runs if run.trains):
                not_for_run = self.configure(run, model_dir="not read", starts=("not read",))
                skipped = tuple(binding for binding in skipped if binding in not_for_run)
                used_in_run, unused_in_run = gin_checks.flags_by_use("train.train")
                used, unused = used | used_in_run, {**unused, **unused_in_run}
            if skipped:
                gin_files.parse(self.files, skipped, self.search_paths)  # raises ConfigError
            gin_checks.refuse({name: sentence for name, sentence in unused.items() if name not in {*used, *_OF_RUN}})
            seeds = [binding for binding in self.bindings if binding.startswith("RANDOM_SEED = ")]
            if seeds:
                raise ConfigError(f"flag {seeds[0]!r}: a recipe's runs have its own seeds: set pipeline.Recipe.seeds")


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
