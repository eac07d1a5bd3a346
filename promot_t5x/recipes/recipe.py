"""A recipe: which methods, learning rates and seeds are compared, as a list of runs."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

# Which stage's run a method is, and what that run starts from.
STARTS_FROM = {
    "prompt_tuning": "pretrained",
    "fine_tuning": "pretrained",
    "random_prompt": "pretrained",
    "joint_tuning": "pretrained",
    "promot": "prompt_tuning",
}

METHODS = ("pretrained", *STARTS_FROM)

WITHOUT_PROMPT = ("pretrained", "fine_tuning")


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
