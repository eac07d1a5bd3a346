"""A recipe's graph of runs, trained and scored in order: every run's best checkpoint -> scores -> report; resumable.

Every training run is one that `python -m promot_t5x.train` could do by hand: the method's gin files, then the recipe's,
which win, then the run's own settings. What is finished is skipped, what was stopped goes on.
"""

from collections.abc import Mapping
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.checkpoints import loading, networks, saving
from promot_t5x.configuration import flags, gin_checks, gin_files, program
from promot_t5x.evaluation import scoring
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.recipes import run_scores
from promot_t5x.recipes.methods import METHODS, PRETRAINED
from promot_t5x.recipes.recipe import PlannedRun, Recipe, planned_runs
from promot_t5x.reports import comparison, page, tables
from promot_t5x.runtime import files, processes
from promot_t5x.runtime.versions import versions
from promot_t5x.training import initial_parameters, stage_run


def run_recipe(
    invocation: flags.Invocation,
    recipe: Recipe,
    model: EncoderDecoderModel,
    evaluation_config: scoring.EvaluationConfig,
    work_dir: str,
    initial_checkpoint_path: str | None,
    partitioner: Partitioner = Partitioner(),
    title: str = "ProMoT",
) -> dict[str, Any]:
    """Trains and evaluates everything that a recipe compares, and writes comparison.json and report.html.

    Args:
      invocation: the command's gin files and flags, from which each run's configuration is made.
      recipe: what is compared.
      model: the network; its prompt_length is stage 1's.
      evaluation_config: lengths and batch size of the evaluations.
      work_dir: everything goes here; a second call goes on where the first one ended.
      initial_checkpoint_path: the pretrained model; None makes one of random weights, to try a task without any.
      partitioner: the mesh.
      title: of the report.

    Returns:
      The results, as in comparison.json.
    """
    folder = files.absolute(work_dir)
    settings = run_scores.settings(gin_files.bindings(gin_files.resolved_config()))
    check_flags(invocation, recipe, folder)
    base = initial_checkpoint_path or str(folder / "random_weights")
    if invocation.dry_run:
        _print_plan(invocation, recipe, folder, base)
        return {}
    if initial_checkpoint_path is None and not processes.agreed(epath.Path(base).exists()):
        random = initial_parameters.random_parameters(model, partitioner, seed=0)
        saving.export(base, random, {"step": 0, "base": None, **networks.described(model.config)})
    fingerprint = loading.load(base, model, partitioner).base_fingerprint
    weights: dict[PlannedRun | str, str] = {PRETRAINED: fingerprint}
    measured: list[comparison.Run] = []
    runs = planned_runs(recipe)
    for number, planned in enumerate(runs, start=1):
        logging.info("run %d of %d: %s", number, len(runs), planned.name)
        if planned.trains:
            configure(invocation, recipe, planned, folder, base)
            train = gin_files.configurable(stage_run.run_stage, "train.train")
            checkpoint = train(config_gin=gin_files.operative_config).best_checkpoint
            _check_base(checkpoint, planned, weights, base)
        else:
            checkpoint = _start(planned.starts_from[0], folder, base)
        decided_by = {"checkpoint": checkpoint, "base_fingerprint": fingerprint, "settings": settings}
        scores = run_scores.scores(recipe, planned, folder, decided_by, model, evaluation_config, partitioner)
        weights[planned] = scores["checkpoints"][0]["base_fingerprint"]
        measured.append(run_scores.comparison_run(planned, scores))
        _show(measured[-1])
    config = {
        "target": recipe.target,
        "gin_files": list(invocation.gin_files),
        "bindings": list(invocation.gin_bindings),
    }
    method_rows = {method.name: method.row for method in (*METHODS.values(), *recipe.rows)}
    in_order = {method.name: method_rows.pop(method.name) for method in recipe.rows} | method_rows
    results = comparison.compare(measured, versions(), config, in_order, recipe.compared)
    files.write_json(folder / "comparison.json", results)
    written = page.write_all(results, folder, title=title)
    print(f"\n{tables.text_table(results)}\n\n{page.headline(results)}\n\nReport: {written['html']}")
    return results


def _check_base(checkpoint: str, planned: PlannedRun, weights: Mapping[PlannedRun | str, str], base: str) -> None:
    """A finished run must have started from the model that is there now, unless that is several or from outside."""
    if len(planned.starts_from) != 1 or planned.starts_from[0] not in weights:
        return
    start = planned.starts_from[0]
    trained_from, fingerprint = saving.read_metadata(checkpoint)["base"]["fingerprint"], weights[start]
    if trained_from != fingerprint:
        raise ValueError(
            f"{checkpoint} was trained from a model with fingerprint {trained_from}, but "
            f"{base if isinstance(start, str) else start.name} has {fingerprint}; put the original model back, or use "
            "a new WORK_DIR."
        )


def _start(start: PlannedRun | str, folder: epath.Path, base: str) -> str:
    """The path of what a run starts from; `base` is the pretrained model."""
    if isinstance(start, PlannedRun):
        return str(folder / start.name)
    return base if start == PRETRAINED else start


def check_flags(invocation: flags.Invocation, recipe: Recipe, folder: epath.Path) -> None:
    """A macro given as a flag must mean something to the recipe or to one of its stages."""
    unused = gin_checks.unused_flag_macros()
    for planned in planned_runs(recipe):
        if unused and planned.trains:
            configure(invocation, recipe, planned, folder, base="")
            unused &= gin_checks.unused_flag_macros()
    gin_checks.check_flags(unused)


def configure(invocation: flags.Invocation, recipe: Recipe, planned: PlannedRun, folder: epath.Path, base: str) -> None:
    """Makes gin's configuration that of one training run; `base` is the pretrained model."""
    starts = tuple(_start(start, folder, base) for start in planned.starts_from)
    bindings = [
        *invocation.gin_bindings,
        f"MODEL_DIR = {str(folder / planned.name)!r}",
        f"INITIAL_CHECKPOINT_PATH = {(starts[0] if len(starts) == 1 else starts)!r}",
        f"RANDOM_SEED = {planned.seed}",
    ]
    if planned.learning_rate is not None:
        bindings.append(f"LEARNING_RATE = {planned.learning_rate!r}")
    gin_files.parse([*planned.gin_files, *invocation.gin_files], bindings, invocation.gin_search_paths)
    gin_checks.check_macros()


def _print_plan(invocation: flags.Invocation, recipe: Recipe, folder: epath.Path, base: str) -> None:
    """Every run's configuration and parameter table; nothing is read or made."""
    for planned in planned_runs(recipe):
        print(f"\n=== {planned.name}")
        if planned.trains:
            configure(invocation, recipe, planned, folder, base)
            print(gin_files.resolved_config())
            gin_files.configurable(stage_run.run_stage, "train.train")(dry_run=True)


def _show(measured: comparison.Run) -> None:
    rate = "" if measured.learning_rate is None else f" at learning rate {measured.learning_rate:g}"
    others = measured.in_context.values()
    kept = f", in-context {sum(others) / len(others):.1f}" if others else ""
    print(f"seed {measured.seed} {measured.method}{rate}: target {measured.target:.1f}{kept}", flush=True)


def follow(invocation: flags.Invocation) -> None:
    """Runs the recipe of a command that was parsed already."""
    program.configure(invocation)
    gin_files.configurable(run_recipe, "pipeline.run")(invocation)
