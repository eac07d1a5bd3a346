"""A recipe from the flags of a command."""

from etils import epath

from promot_t5x.configuration import flags, gin_files, program
from promot_t5x.recipes import run_scores, running
from promot_t5x.recipes.gin_runs import GinRuns
from promot_t5x.recipes.recipe import Recipe, planned_runs
from promot_t5x.runtime import files
from promot_t5x.training import stage_run

# The recipe's own settings do not affect a single run's scores; the mesh, logs and kept checkpoints affect no numbers.
_DECIDE_NO_SCORE = (
    *("pipeline.", "partitioner.", "methods.Method."),
    *("saving.CheckpointConfig.keep_latest", "trainer.LoopConfig.log_period", "trainer.LoopConfig.profile"),
)


def follow(invocation: flags.Invocation) -> None:
    """Runs the recipe that a command's gin files and flags describe; a dry run only prints what it would run.

    Args:
      invocation: the parsed command line.

    Raises:
      ConfigError, FileNotFoundError: a mistake in a flag or gin file.
      ValueError: see `running.run_recipe`.
    """
    with_data = flags.opens_data(invocation)
    program.configure(invocation, has_runs=True)
    settings = settings_of_scores(gin_files.bindings(gin_files.resolved_config()))
    arguments = gin_files.bound_arguments(running.run_recipe, "pipeline.run", given=("train",))
    train = GinRuns(invocation.gin_files, invocation.gin_bindings, invocation.gin_search_paths)
    if invocation.dry_run:
        train.check(planned_runs(arguments["recipe"]))
        folder = files.absolute(arguments["work_dir"])
        _print_runs(train, arguments["recipe"], folder, arguments["initial_checkpoint_path"], with_data)
        if with_data:
            run_scores.check_data(arguments["recipe"], arguments["model"], arguments["evaluation_config"])
        return
    config = {"gin_files": list(invocation.gin_files), "bindings": list(invocation.gin_bindings)}
    try:
        running.run_recipe(**arguments, train=train, config=config, decided_by={"settings": settings})
    except KeyboardInterrupt as interrupt:
        interrupt.add_note("what is finished is kept, and the same command goes on")
        raise


def settings_of_scores(bindings: list[str]) -> list[str]:
    """The bindings of a configuration on which a score depends.

    Args:
      bindings: one `name = value` each, including macros.

    >>> settings_of_scores(["A = 1", "pipeline.Recipe.seeds = (0,)", "scoring.EvaluationConfig.limit = 3"])
    ['scoring.EvaluationConfig.limit = 3']
    """
    names = {line: line.split(" = ")[0].split("/")[-1] for line in bindings}
    return [line for line, name in names.items() if "." in name and not name.startswith(_DECIDE_NO_SCORE)]


def _print_runs(train: GinRuns, recipe: Recipe, folder: epath.Path, base: str | None, with_data: bool) -> None:
    """Prints every run's configuration and parameter table; creates nothing, and reads nothing but data."""
    for run in planned_runs(recipe):
        print(f"\n=== {run.name}")
        if run.trains:
            starts = running.starts(run, folder, base or str(folder / running.RANDOM_WEIGHTS))
            train.configure(run, str(folder / run.name), starts)
            print(gin_files.resolved_config())
            gin_files.configurable(stage_run.run_stage, "train.train")(dry_run=True, dry_run_data=with_data)
