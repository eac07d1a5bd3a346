"""A recipe: the methods, learning rates and seeds to compare, as a graph of runs."""

import collections
import dataclasses
import graphlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from promot_t5x.data import features
from promot_t5x.recipes.methods import HEADLINE, METHODS, PRETRAINED, Method
from promot_t5x.reports.method_rows import Compared
from promot_t5x.runtime import arguments
from promot_t5x.runtime.text import did_you_mean


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Recipe:
    """What is compared.

    Attributes:
      methods: names from `methods.METHODS`, or your own rows; must include the methods that others start from.
      target: the seqio task that is scored as the target, with the prompt attached if the method has one; the runs
        train on MIXTURE_OR_TASK_NAME, which is the same task or a mixture that contains it.
      in_context: seqio tasks whose scores should be kept; scored with the prompt removed and, for comparison, attached.
      learning_rates: grid for the model's weights, the same for all methods that train them; the prompt's learning rate
        is in its stage file.
      stage_files: gin files by method, read after the method's own and before the recipe's, which win.
      seeds: seeds of data order, dropout and prompt initialisation.
      target_lengths: most tokens of the target's inputs and targets, at the end as during training; None for those of
        the recipe's evaluation, which are the in-context tasks'.
      target_split: the target's split to score at the end; it plays no part in any choice.
      in_context_split: the in-context tasks' split to score at the end.
      headline: names of the method that the report judges, of the one to compare it with, and of the untouched model.

    Raises:
      ValueError: an unknown or repeated name, a missing method that another one starts from, a cycle of methods, a
        learning rate, seed or length that no run can have, two runs of one name.
    """

    methods: Sequence[str | Method]
    target: str
    in_context: Sequence[str]
    learning_rates: Sequence[float]
    stage_files: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    seeds: Sequence[int] = (0,)
    target_lengths: Mapping[str, int] | None = None
    target_split: str = "test"
    in_context_split: str = "test"
    headline: Sequence[str] = HEADLINE

    def __post_init__(self):
        for method in self.methods:
            if not isinstance(method, Method) and method not in METHODS:
                raise ValueError(
                    f"Recipe.methods has {method!r}; expected names among {', '.join(METHODS)}"
                    f"{did_you_mean(str(method), METHODS)}, or a methods.Method of your own."
                )
        names = [row.name for row in self.rows]
        if repeated := _repeated(names):
            raise ValueError(f"Recipe.methods has {', '.join(repeated)} more than once; give each method its own name.")
        method_names = [*METHODS, *names]
        if unknown := [name for name in self.stage_files if name not in method_names]:
            raise ValueError(
                f"Recipe.stage_files has files for {unknown[0]!r}, which is not a method"
                f"{did_you_mean(unknown[0], method_names)}; the methods are {', '.join(dict.fromkeys(method_names))}."
            )
        if len(self.headline) != 3:
            raise ValueError(f"Recipe.headline is {self.headline!r}; expected the names of three methods.")
        if unknown := [name for name in self.headline if name not in method_names]:
            raise ValueError(
                f"Recipe.headline names {unknown[0]!r}, which is no method{did_you_mean(unknown[0], method_names)}; "
                f"the methods are {', '.join(dict.fromkeys(method_names))}."
            )
        if self.target_lengths is not None:
            features.check_lengths(self.target_lengths, "Recipe.target_lengths")
        if not self.methods or not self.learning_rates or not self.seeds:
            raise ValueError("Recipe.methods, Recipe.learning_rates and Recipe.seeds need at least one entry each.")
        if wrong := [rate for rate in self.learning_rates if not 0 < rate < math.inf]:
            raise ValueError(f"Recipe.learning_rates has {wrong[0]!r}; expected positive numbers.")
        if wrong := [seed for seed in self.seeds if seed not in arguments.SEEDS]:
            raise ValueError(
                f"Recipe.seeds has {wrong[0]!r}; expected whole numbers from 0 on, at most {arguments.SEEDS[-1]}."
            )
        if repeated := _repeated(self.in_context):
            raise ValueError(f"Recipe.in_context has {', '.join(repeated)} more than once; name each task once.")
        if repeated := _repeated(run.name for run in planned_runs(self)):
            raise ValueError(
                f"Two runs of the recipe would share the folder {repeated[0]}; give different seeds, and learning "
                "rates that differ in six digits."
            )

    @property
    def rows(self) -> tuple[Method, ...]:
        """The methods as rows, in the recipe's order."""
        return tuple(method if isinstance(method, Method) else METHODS[method] for method in self.methods)

    @property
    def compared(self) -> Compared:
        """The headline's methods, for reports."""
        return Compared(*self.headline)


def _repeated(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in collections.Counter(names).items() if count > 1)


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """One run of a recipe's graph.

    Attributes:
      method: its method's name.
      learning_rate: of the model's weights; None if the grid does not apply to the method.
      seed: seed of data order, dropout and prompt initialisation.
      gin_files: its gin files, read before the recipe's; empty for a run that trains nothing.
      starts_from: other runs, paths of checkpoints, or PRETRAINED.
      prompt: the soft prompt that stays attached for the target; None for none.
      planned: whether `plan` compiles its step.
    """

    method: str
    learning_rate: float | None
    seed: int
    gin_files: tuple[str, ...]
    starts_from: "tuple[PlannedRun | str, ...]"
    prompt: int | None
    planned: bool = True

    @property
    def name(self) -> str:
        """Its folder in WORK_DIR, and its name in the results."""
        rate = "" if self.learning_rate is None else f"_lr{self.learning_rate:g}"
        return f"seed{self.seed}/{self.method}{rate}"

    @property
    def trains(self) -> bool:
        """Whether anything is trained."""
        return bool(self.gin_files)


def sorted_methods(recipe: Recipe) -> list[Method]:
    """The methods, each after those that it starts from.

    Raises:
      ValueError: a method or checkpoint to start from is missing, methods start from each other in a cycle, or the grid
        makes a start ambiguous.
    """
    rows = {row.name: row for row in recipe.rows}
    graph = {name: [start for start in row.starts_from if start in rows] for name, row in rows.items()}
    for name, row in rows.items():
        if row.gin_files and not row.starts_from:
            raise ValueError(
                f"The method {name} starts from nothing; set its Method.starts_from, for example to ({PRETRAINED!r},)."
            )
        if not row.gin_files and (len(row.starts_from) > 1 or graph[name]):
            raise ValueError(
                f"The method {name} has no gin files, so it trains nothing, but starts from "
                f"{', '.join(row.starts_from)}; expected one checkpoint's path."
            )
        for start in row.starts_from:
            if start in rows and rows[start].grid and not row.grid:
                raise ValueError(
                    f"The method {name} starts from {start}, which has one run per learning rate, but the grid does "
                    f"not apply to {name}; set its Method.grid to True."
                )
            if start in METHODS and start not in rows and start != PRETRAINED:
                raise ValueError(f"Recipe.methods has {name} without {start}, which it starts from; add it.")
            if start not in rows and start != PRETRAINED and "/" not in start:
                raise ValueError(
                    f"The method {name} starts from {start!r}; expected a method of the recipe "
                    f"({', '.join(rows)}), {PRETRAINED!r}, or a checkpoint's path with a slash in it."
                )
    try:
        return [rows[name] for name in graphlib.TopologicalSorter(graph).static_order()]
    except graphlib.CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise ValueError(
            f"Methods start from each other in a cycle: {cycle}; let one start from {PRETRAINED!r}."
        ) from error


def planned_runs(recipe: Recipe) -> list[PlannedRun]:
    """All runs, each after those that it starts from.

    >>> [run.name for run in planned_runs(Recipe(("fine_tuning",), "rte", (), (1e-3, 3e-3)))]
    ['seed0/fine_tuning_lr0.001', 'seed0/fine_tuning_lr0.003']
    """
    return list(_planned(recipe))


def _planned(recipe: Recipe) -> Iterator[PlannedRun]:
    methods = sorted_methods(recipe)
    for method in methods:
        if not method.gin_files:
            yield _run(recipe, method, None, recipe.seeds[0])
    for seed in recipe.seeds:
        for method in methods:
            if method.gin_files and not method.grid:
                yield _run(recipe, method, None, seed)
        for rate in recipe.learning_rates:
            for method in methods:
                if method.gin_files and method.grid:
                    yield _run(recipe, method, rate, seed)


def _run(recipe: Recipe, method: Method, rate: float | None, seed: int) -> PlannedRun:
    rows = {row.name: row for row in recipe.rows}

    def start(name: str) -> PlannedRun | str:
        row = rows.get(name)
        if row is None or name == PRETRAINED:
            return name
        if not row.gin_files:  # a checkpoint that is only scored
            return row.starts_from[0]
        return _run(recipe, row, rate if row.grid else None, seed)

    files = (*method.gin_files, *recipe.stage_files.get(method.name, ())) if method.gin_files else ()
    starts = tuple(start(name) for name in method.starts_from) or (PRETRAINED,)
    return PlannedRun(method.name, rate, seed, files, starts, method.prompt, method.planned)
