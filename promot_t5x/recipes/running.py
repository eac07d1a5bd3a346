"""The recipe: stage 1 -> best prompt -> stage 2 -> best model -> target and in-context scores -> report; resumable.

Every training run is one that `python -m promot_t5x.train` could do by hand: the method's gin files, then the recipe's,
which win, then the run's own settings. What is finished is skipped, what was stopped goes on.
"""

import json
from typing import Any

from absl import logging
from etils import epath

from promot_t5x.checkpoints import loading, networks, saving
from promot_t5x.configuration import flags, gin_checks, gin_files, program
from promot_t5x.evaluation import scoring
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.recipes.recipe import STARTS_FROM, WITHOUT_PROMPT, PlannedRun, Recipe, planned_runs
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
    """Trains and evaluates everything that a recipe compares, and writes results.json and report.html.

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
      The results, as in results.json.
    """
    folder = saving.absolute(work_dir)
    settings = _what_scores_depend_on()
    check_flags(invocation, recipe, folder)
    base = initial_checkpoint_path or str(folder / "random_weights")
    if invocation.dry_run:
        _print_plan(invocation, recipe, folder, base)
        return {}
    if initial_checkpoint_path is None and not processes.agreed(epath.Path(base).exists()):
        random = initial_parameters.random_parameters(model, partitioner, seed=0)
        saving.export(base, random, {"step": 0, "base": None, **networks.described(model.config)})
    fingerprint = loading.load(base, model, partitioner).base_fingerprint
    measured: list[comparison.Run] = []
    runs = planned_runs(recipe)
    for number, planned in enumerate(runs, start=1):
        logging.info("run %d of %d: %s", number, len(runs), planned.name)
        checkpoint = base
        if planned.method != "pretrained":
            configure(invocation, recipe, planned, folder, base)
            checkpoint = gin_files.configurable(stage_run.run_stage, "train.train")().best_checkpoint
            _check_base(checkpoint, fingerprint, base)
        asked = {"checkpoint": checkpoint, "base_fingerprint": fingerprint, "settings": settings}
        measured.append(_evaluate(recipe, planned, folder / planned.name, asked, model, evaluation_config, partitioner))
        _show(measured[-1])
    config = {
        "target": recipe.target,
        "gin_files": list(invocation.gin_files),
        "bindings": list(invocation.gin_bindings),
    }
    summary = comparison.summarize(measured, versions(), config)
    files.write_json(folder / "results.json", summary)
    written = page.write_all(summary, folder, title=title)
    print(f"\n{tables.text_table(summary)}\n\n{page.headline(summary)}\n\nReport: {written['html']}")
    return summary


def _what_scores_depend_on() -> list[str]:
    """The configuration in force, without the recipe's own (other runs stay as they are) and without the mesh."""
    found = gin_files.bindings(gin_files.resolved_config())
    apart = ("pipeline.", "partitioning.")
    return [line for line in found if "." in line.split(" = ")[0] and not line.startswith(apart)]


def _check_base(checkpoint: str, fingerprint: str, base: str) -> None:
    found = saving.read_metadata(checkpoint)["base"]["fingerprint"]
    if found != fingerprint:
        raise ValueError(
            f"{checkpoint} was trained from a model with fingerprint {found}, but {base} has {fingerprint}; put the "
            "original model back, or use a new WORK_DIR."
        )


def check_flags(invocation: flags.Invocation, recipe: Recipe, folder: epath.Path) -> None:
    """A macro given as a flag must mean something to the recipe or to one of its stages."""
    unused = gin_checks.unused_flag_macros()
    for planned in planned_runs(recipe):
        if unused and planned.method != "pretrained":
            configure(invocation, recipe, planned, folder, base="")
            unused &= gin_checks.unused_flag_macros()
    gin_checks.check_flags(unused)


def configure(invocation: flags.Invocation, recipe: Recipe, planned: PlannedRun, folder: epath.Path, base: str) -> None:
    """Makes gin's configuration that of one training run; `base` is the pretrained model."""
    start = base if STARTS_FROM[planned.method] == "pretrained" else str(folder / f"seed{planned.seed}/prompt_tuning")
    bindings = [
        *invocation.gin_bindings,
        f"MODEL_DIR = {str(folder / planned.name)!r}",
        f"INITIAL_CHECKPOINT_PATH = {start!r}",
        f"SEED = {planned.seed}",
    ]
    if planned.learning_rate is not None:
        bindings.append(f"LEARNING_RATE = {planned.learning_rate!r}")
    files = [*recipe.stage_files[planned.method], *invocation.gin_files]
    gin_files.parse(files, bindings, invocation.gin_search_paths)
    gin_checks.check_macros()


def _evaluate(
    recipe: Recipe,
    planned: PlannedRun,
    folder: epath.Path,
    asked: dict[str, Any],
    model: EncoderDecoderModel,
    config: scoring.EvaluationConfig,
    partitioner: Partitioner,
) -> comparison.Run:
    """Scores a run's best checkpoint on splits that selected nothing; kept in its folder and read back when there."""
    file = folder / "scores.json"
    asked = asked | {"target": recipe.target, "in_context": list(recipe.in_context)}
    asked |= {"splits": [recipe.target_split, recipe.in_context_split]}
    if file.exists():
        scores = json.loads(file.read_text())
        if scores.pop("asked") == asked:
            return comparison.Run(**scores)
    params = loading.load(asked["checkpoint"], model, partitioner).params
    has_prompt = planned.method not in WITHOUT_PROMPT

    def score(task: str, split: str, prompt_id: int | None) -> float | None:
        return _share(
            scoring.evaluate(model, params, task, split, config, prompt_id=prompt_id, partitioner=partitioner).value
        )

    attached = 0 if has_prompt else None
    facts = {} if planned.method == "pretrained" else saving.read_metadata(asked["checkpoint"])
    scores = {
        "method": planned.method,
        "learning_rate": planned.learning_rate,
        "seed": planned.seed,
        "target": score(recipe.target, recipe.target_split, attached),
        "in_context": {task: score(task, recipe.in_context_split, None) for task in recipe.in_context},
        "in_context_with_prompt": {task: score(task, recipe.in_context_split, attached) for task in recipe.in_context}
        if has_prompt
        else None,
        "details": {"chosen step": facts["step"], "validation score": _share(facts["score"])} if facts else {},
    }
    files.write_json(file, {**scores, "asked": asked})
    return comparison.Run(**scores)


def _share(percent: float | None) -> float | None:
    """A task's score on the scale of the results."""
    return None if percent is None else percent / 100


def _print_plan(invocation: flags.Invocation, recipe: Recipe, folder: epath.Path, base: str) -> None:
    """Every run's configuration and parameter table; nothing is read or made."""
    for planned in planned_runs(recipe):
        print(f"\n=== {planned.name}")
        if planned.method != "pretrained":
            configure(invocation, recipe, planned, folder, base)
            print(gin_files.resolved_config())
            gin_files.configurable(stage_run.run_stage, "train.train")(dry_run=True)


def _show(measured: comparison.Run) -> None:
    rate = "" if measured.learning_rate is None else f" at learning rate {measured.learning_rate:g}"
    others = measured.in_context.values()
    kept = f", in-context {sum(others) / len(others):.3f}" if others else ""
    print(f"seed {measured.seed} {measured.method}{rate}: target {measured.target:.3f}{kept}", flush=True)


def follow(invocation: flags.Invocation) -> None:
    """Runs the recipe of a command that was parsed already."""
    program.configure(invocation)
    gin_files.configurable(run_recipe, "pipeline.run")(invocation)
