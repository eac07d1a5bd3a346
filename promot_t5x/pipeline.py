"""The recipe: stage 1 -> best prompt -> stage 2 -> best model -> target and in-context scores -> report; resumable.

Every training run is one that `python -m promot_t5x.train` could do by hand: the method's gin files, then the recipe's,
which win, then the run's own settings. What is finished is skipped, what was stopped goes on.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from promot_t5x import (
    checkpoints,
    distributed,
    evaluation,
    flags,
    gin_checks,
    initialize,
    launcher,
    records,
    report,
    results,
    train,
)
from promot_t5x.model import EncoderDecoderModel
from promot_t5x.partitioning import Partitioner

# Which stage's run a method is, and what that run starts from.
_STARTS_FROM = {
    "prompt_tuning": "pretrained",
    "fine_tuning": "pretrained",
    "random_prompt": "pretrained",
    "joint_tuning": "pretrained",
    "promot": "prompt_tuning",
}
METHODS = ("pretrained", *_STARTS_FROM)
_WITHOUT_PROMPT = ("pretrained", "fine_tuning")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is compared.

    Attributes:
      methods: among METHODS; "promot" needs "prompt_tuning".
      stage_files: gin files of each method that trains, read before the recipe's own, which win.
      target: the seqio task that is scored as the target, with the prompt attached if the method has one; the runs
        train on MIXTURE_OR_TASK_NAME, which is the same task or a mixture that holds it.
      in_context: seqio tasks that must not suffer; scored with the prompt removed, and attached for comparison.
      learning_rates: of the model, the same grid for every method that trains it; the prompt's is its stage file's.
      seeds: of data order, dropout and prompt initialisation.
      target_split: scored at the end; chooses nothing.
      in_context_split: likewise.
    """

    methods: Sequence[str]
    stage_files: Mapping[str, Sequence[str]]
    target: str
    in_context: Sequence[str]
    learning_rates: Sequence[float]
    seeds: Sequence[int] = (0,)
    target_split: str = "test"
    in_context_split: str = "test"

    def __post_init__(self):
        for method in self.methods:
            if method not in METHODS:
                raise ValueError(f"Recipe.methods has {method!r}; expected names among {', '.join(METHODS)}.")
            if method != "pretrained" and method not in self.stage_files:
                raise ValueError(f"Recipe.stage_files has no gin files for the method {method}.")
        if "promot" in self.methods and "prompt_tuning" not in self.methods:
            raise ValueError("Recipe.methods has promot without prompt_tuning, whose prompt it needs; add it.")
        if not self.learning_rates or not self.seeds:
            raise ValueError("Recipe.learning_rates and Recipe.seeds need at least one entry each.")


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One training run of a recipe, or the pretrained model, which needs none."""

    method: str
    learning_rate: float | None
    seed: int

    @property
    def name(self) -> str:
        rate = "" if self.learning_rate is None else f"_lr{self.learning_rate:g}"
        return f"seed{self.seed}/{self.method}{rate}"


def planned_runs(recipe: Recipe) -> list[PlannedRun]:
    """All runs in order: what another one starts from comes first."""
    return list(_planned(recipe))


def _planned(recipe: Recipe) -> Iterator[PlannedRun]:
    if "pretrained" in recipe.methods:
        yield PlannedRun("pretrained", None, recipe.seeds[0])
    for seed in recipe.seeds:
        if "prompt_tuning" in recipe.methods:
            yield PlannedRun("prompt_tuning", None, seed)
        for rate in recipe.learning_rates:
            for method in recipe.methods:
                if method not in ("pretrained", "prompt_tuning"):
                    yield PlannedRun(method, rate, seed)


def run(
    invocation: flags.Invocation,
    recipe: Recipe,
    model: EncoderDecoderModel,
    evaluation_config: evaluation.EvaluationConfig,
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
    folder = checkpoints.absolute(work_dir)
    settings = _what_scores_depend_on()
    check_flags(invocation, recipe, folder)
    base = initial_checkpoint_path or str(folder / "random_weights")
    if invocation.dry_run:
        _print_plan(invocation, recipe, folder, base)
        return {}
    if initial_checkpoint_path is None and not distributed.agreed(epath.Path(base).exists()):
        random = initialize.random_params(model, partitioner, seed=0)
        checkpoints.export(base, random, {"step": 0, "base": None})
    fingerprint = initialize.load(base, model, partitioner).base_fingerprint
    measured: list[results.Run] = []
    runs = planned_runs(recipe)
    for number, planned in enumerate(runs, start=1):
        logging.info("run %d of %d: %s", number, len(runs), planned.name)
        checkpoint = base
        if planned.method != "pretrained":
            configure(invocation, recipe, planned, folder, base)
            checkpoint = launcher.configurable(train.train)().best_checkpoint
            _check_base(checkpoint, fingerprint, base)
        asked = {"checkpoint": checkpoint, "base_fingerprint": fingerprint, "settings": settings}
        measured.append(_evaluate(recipe, planned, folder / planned.name, asked, model, evaluation_config, partitioner))
        _show(measured[-1])
    config = {
        "target": recipe.target,
        "gin_files": list(invocation.gin_files),
        "bindings": list(invocation.gin_bindings),
    }
    summary = results.summarize(measured, records.versions(), config)
    records.write(folder / "results.json", summary)
    written = report.write_all(summary, folder, title=title)
    print(f"\n{report.text_table(summary)}\n\n{report.headline(summary)}\n\nReport: {written['html']}")
    return summary


def _what_scores_depend_on() -> list[str]:
    """The configuration in force, without the recipe's own (other runs stay as they are) and without the mesh."""
    found = launcher.bindings(launcher.resolved_config())
    apart = ("pipeline.", "partitioning.")
    return [line for line in found if "." in line.split(" = ")[0] and not line.startswith(apart)]


def _check_base(checkpoint: str, fingerprint: str, base: str) -> None:
    found = checkpoints.read_metadata(checkpoint)["base"]["fingerprint"]
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
    start = base if _STARTS_FROM[planned.method] == "pretrained" else str(folder / f"seed{planned.seed}/prompt_tuning")
    bindings = [
        *invocation.gin_bindings,
        f"MODEL_DIR = {str(folder / planned.name)!r}",
        f"INITIAL_CHECKPOINT_PATH = {start!r}",
        f"SEED = {planned.seed}",
    ]
    if planned.learning_rate is not None:
        bindings.append(f"LEARNING_RATE = {planned.learning_rate!r}")
    files = [*recipe.stage_files[planned.method], *invocation.gin_files]
    launcher.parse(files, bindings, invocation.gin_search_paths)
    gin_checks.check_macros()


def _evaluate(
    recipe: Recipe,
    planned: PlannedRun,
    folder: epath.Path,
    asked: dict[str, Any],
    model: EncoderDecoderModel,
    config: evaluation.EvaluationConfig,
    partitioner: Partitioner,
) -> results.Run:
    """Scores a run's best checkpoint on splits that selected nothing; kept in its folder and read back when there."""
    file = folder / "scores.json"
    asked = asked | {"target": recipe.target, "in_context": list(recipe.in_context)}
    asked |= {"splits": [recipe.target_split, recipe.in_context_split]}
    if file.exists():
        scores = json.loads(file.read_text())
        if scores.pop("asked") == asked:
            return results.Run(**scores)
    params = initialize.load(asked["checkpoint"], model, partitioner).params
    has_prompt = planned.method not in _WITHOUT_PROMPT

    def score(task: str, split: str, prompt_id: int | None) -> float | None:
        return _share(
            evaluation.evaluate(model, params, task, split, config, prompt_id=prompt_id, partitioner=partitioner).value
        )

    attached = 0 if has_prompt else None
    facts = {} if planned.method == "pretrained" else checkpoints.read_metadata(asked["checkpoint"])
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
    records.write(file, {**scores, "asked": asked})
    return results.Run(**scores)


def _share(percent: float | None) -> float | None:
    """A task's score on the scale of the results."""
    return None if percent is None else percent / 100


def _print_plan(invocation: flags.Invocation, recipe: Recipe, folder: epath.Path, base: str) -> None:
    """Every run's configuration and parameter table; nothing is read or made."""
    for planned in planned_runs(recipe):
        print(f"\n=== {planned.name}")
        if planned.method != "pretrained":
            configure(invocation, recipe, planned, folder, base)
            print(launcher.resolved_config())
            launcher.configurable(train.train)(dry_run=True)


def _show(measured: results.Run) -> None:
    rate = "" if measured.learning_rate is None else f" at learning rate {measured.learning_rate:g}"
    others = measured.in_context.values()
    kept = f", in-context {sum(others) / len(others):.3f}" if others else ""
    print(f"seed {measured.seed} {measured.method}{rate}: target {measured.target:.3f}{kept}", flush=True)


def main(argv: Sequence[str]) -> None:
    """Runs the recipe that the gin files and flags describe."""
    parser = flags.flag_parser("promot-t5x pipeline", "Stage 1, stage 2, baselines, evaluations, report.")
    follow(flags.parse_flags(argv, parser))


def follow(invocation: flags.Invocation) -> None:
    """Runs the recipe of a command that was parsed already."""
    launcher.configure(invocation)
    launcher.configurable(run)(invocation)


if __name__ == "__main__":
    from promot_t5x import pipeline as binary

    sys.exit(launcher.run_main(binary.main))
