"""Trains and scores a recipe's runs in order, and writes the report: every run's best checkpoint -> scores -> report.

A second call skips finished runs and resumes interrupted ones.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.checkpoints import loading, networks, saving
from promot_t5x.evaluation import scoring
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.recipes import run_scores
from promot_t5x.recipes.methods import METHODS, PRETRAINED
from promot_t5x.recipes.recipe import PlannedRun, Recipe, planned_runs
from promot_t5x.reports import comparison, page, shots, tables
from promot_t5x.runtime import arguments, between_runs, files, processes, strict_json
from promot_t5x.runtime.versions import versions
from promot_t5x.training import initial_parameters, run_folder

RANDOM_WEIGHTS = "random_weights"

"""Folder of the random model that a recipe without a pretrained one starts from."""

Train = Callable[[PlannedRun, str, Sequence[str]], run_folder.RunResult]

"""Trains or resumes one run: (the run, its folder, the checkpoints it starts from) -> its result.

If it has a method `check`, that is called with all runs before anything is trained or scored.
"""


@arguments.checked
@between_runs.keeping()
def run_recipe(
    recipe: Recipe,
    train: Train,
    model: EncoderDecoderModel,
    evaluation_config: scoring.EvaluationConfig,
    work_dir: str | os.PathLike[str],
    initial_checkpoint_path: str | os.PathLike[str] | None,
    partitioner: Partitioner = Partitioner(),
    title: str | None = None,
    config: Mapping[str, Any] | None = None,
    decided_by: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Trains and evaluates everything that a recipe compares, and writes comparison.json and report.html.

    Args:
      recipe: what is compared.
      train: trains one run, such as the result of `runs_from_gin`, or your own function that calls `run_stage`.
      model: the network; its prompt_length is that of stage 1.
      evaluation_config: lengths and batch size of the evaluations; the target may have its own lengths in the recipe.
      work_dir: the folder for everything; a second call resumes where the first one stopped.
      initial_checkpoint_path: the pretrained model; None starts from random weights, to try out a task.
      partitioner: the mesh.
      title: the report's heading; None names the target.
      config: settings to show next to the numbers, JSON values only.
      decided_by: what else the scores depend on, JSON values only; existing scores that depend on other values are
        measured again. The recipe's tasks, `model` and `evaluation_config` are always taken into account.

    Returns:
      The results, as in comparison.json.

    Raises:
      ValueError: a run cannot be trained, or was trained from a model that has changed since.
      FileNotFoundError: no pretrained model, or no data.
    """
    runs = planned_runs(recipe)
    decided_by, config = (_as_json(values, name) for values, name in ((decided_by, "decided_by"), (config, "config")))
    if check := getattr(train, "check", None):
        check(runs)
    run_scores.check(recipe, model)
    folder = files.writable_folder(work_dir, "WORK_DIR")
    base = str(folder / RANDOM_WEIGHTS if initial_checkpoint_path is None else files.absolute(initial_checkpoint_path))
    if initial_checkpoint_path is None and not processes.agreed(epath.Path(base).exists()):
        random = initial_parameters.random_parameters(model, partitioner, seed=0)
        saving.export(base, random, {"step": 0, "base": None, **networks.described(model.config)})
    fingerprint = loading.load(base, model, partitioner).base_fingerprint
    decided_by = {
        **run_scores.decided_by(recipe, model, evaluation_config),
        **decided_by,
        "base_fingerprint": fingerprint,
    }
    weights: dict[PlannedRun | str, str] = {PRETRAINED: fingerprint}
    folders: dict[PlannedRun, str] = {}
    measured: list[comparison.Run] = []
    for number, run in enumerate(runs, start=1):
        logging.info("run %d of %d: %s", number, len(runs), run.name)
        paths = starts(run, folder, base, folders)
        if run.trains:
            result = train(run, str(folder / run.name), paths)
            checkpoint = _checkpoint(result, run)
            _check_base(checkpoint, run, weights, base)
            folders[run] = result.model_dir
        else:
            (checkpoint,) = paths
        decided = {**decided_by, "checkpoint": checkpoint}
        scores = run_scores.scores(recipe, run, folder, decided, model, evaluation_config, partitioner)
        weights[run] = scores["checkpoints"][0]["base_fingerprint"]
        measured.append(run_scores.comparison_run(run, scores))
        _show(measured[-1])
    method_rows = {method.name: method.row for method in (*METHODS.values(), *recipe.rows)}
    in_order = {method.name: method_rows.pop(method.name) for method in recipe.rows} | method_rows
    shown = {"target": recipe.target, **config}
    if title is None:
        title = f"{'A trial with random weights' if initial_checkpoint_path is None else 'ProMoT'} on {recipe.target}"
    results = comparison.compare(measured, versions(), shown, in_order, recipe.compared, title)
    files.write_json(folder / "comparison.json", results)
    written = page.write_all(results, folder)
    print(f"\n{tables.text_table(results)}\n\n{page.headline(results)}\n\nReport: {written['html']}")
    return results


def starts(
    run: PlannedRun, folder: epath.Path, base: str, folders: Mapping[PlannedRun, str] | None = None
) -> tuple[str, ...]:
    """The paths of the checkpoints that a run starts from.

    Args:
      run: the run.
      folder: the recipe's WORK_DIR.
      base: the pretrained model.
      folders: where runs were trained that may be elsewhere than in WORK_DIR.
    """

    def path(start: PlannedRun | str) -> str:
        if isinstance(start, PlannedRun):
            return (folders or {}).get(start, str(folder / start.name))
        return base if start == PRETRAINED else start

    return tuple(path(start) for start in run.starts_from)


def _as_json(values: Mapping[str, Any] | None, name: str) -> dict[str, Any]:
    """Values as they are read back from a file.

    Raises:
      ValueError: they have no JSON form.
    """
    try:
        return strict_json.loads(strict_json.dumps(dict(values or {})))
    except ValueError as error:
        raise ValueError(f"run_recipe's {name} holds a value that JSON does not have ({error}).") from error


def _checkpoint(result: Any, run: PlannedRun) -> str:
    """The checkpoint that `train` chose.

    Raises:
      ValueError: it returned no run's result, or that of no run.
    """
    if not isinstance(result, run_folder.RunResult):
        raise ValueError(
            f"`train` returned {result!r} for the run {run.name}; expected what `run_stage` returns, a RunResult."
        )
    if not saving.is_checkpoint(epath.Path(result.best_checkpoint)):
        raise ValueError(f"`train` chose {result.best_checkpoint} of the run {run.name}, but there is no checkpoint.")
    return result.best_checkpoint


def _check_base(checkpoint: str, run: PlannedRun, weights: Mapping[PlannedRun | str, str], base: str) -> None:
    """Checks that a run's start has not changed since it was trained, if that is a single run or the base."""
    if len(run.starts_from) != 1 or run.starts_from[0] not in weights:
        return
    start = run.starts_from[0]
    trained_from, fingerprint = (saving.read_metadata(checkpoint)["base"] or {}).get("fingerprint"), weights[start]
    if trained_from != fingerprint:
        raise ValueError(
            f"{checkpoint} was trained from a model with fingerprint {trained_from or 'unknown (random weights)'}, but "
            f"{base if isinstance(start, str) else start.name} has {fingerprint}; put the original model back, or use "
            "a new WORK_DIR."
        )


def _show(measured: comparison.Run) -> None:
    rate = "" if measured.learning_rate is None else f" at learning rate {measured.learning_rate:g}"
    of_each_k = shots.by_k(measured.in_context_rows(attached=False))
    means = [(k if len(of_each_k) > 1 else "in-context", shots.only_mean(rows)) for k, rows in of_each_k.items()]
    kept = "".join(f", {name} {mean:.1f}" for name, mean in means)
    print(f"seed {measured.seed} {measured.method}{rate}: target {measured.target:.1f}{kept}", flush=True)
