"""The table of methods. Recipes read it, plans and reports are handed its rows; nothing else names a method.

A method of one's own is one `Method` and one gin file. It needs no change here: `pipeline.Recipe.methods` takes rows as
well as names of this table, from Python or from gin::

    from promot_t5x.recipes import methods
    pipeline.Recipe.methods = ('pretrained', 'fine_tuning', @my/methods.Method())
    my/methods.Method.name = 'my_method'
    my/methods.Method.gin_files = ('my_method.gin',)

A row with the name of one of this table takes its place in the recipe.
"""

import dataclasses
from collections.abc import Sequence

from promot_t5x.reports import method_rows
from promot_t5x.runtime import arguments

PRETRAINED = "pretrained"

"""Stands in `starts_from` for the model that the recipe starts from, also where that is not compared itself."""


_LONGEST_NAME = 100


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training, and how it is shown.

    Attributes:
      name: its key in recipes, folders and results.
      gin_files: what configures its training run, read before the recipe's own files; none trains nothing: what the
        method starts from is scored as it is.
      starts_from: names of methods, PRETRAINED, or paths of checkpoints (with a slash). A run starts from the mean of
        several.
      prompt: the soft prompt that stays attached for the target, None for a method without one.
      grid: whether the recipe's learning rates apply, with one run each.
      planned: whether `plan` compiles its step; False where that is no more than another method's.
      label: its name for readers; the name with spaces where empty.
      colour: "#rrggbb" in the plot and on the page.
      marker: matplotlib's, in the plot.
      description: one or two sentences for the page.

    Raises:
      ValueError: a name that could not be a folder's, PRETRAINED for anything but the model that the recipe starts
        from, a prompt that is no number of one, or a row that cannot be shown (see `method_rows.MethodRow`).

    >>> Method("my_method", ("my_method.gin",)).row.label
    'my method'
    """

    name: str
    gin_files: Sequence[str]
    starts_from: Sequence[str] = (PRETRAINED,)
    prompt: int | None = 0
    grid: bool = True
    planned: bool = True
    label: str = ""
    colour: str = method_rows.OTHER_COLOUR
    marker: str = method_rows.OTHER_MARKER
    description: str = "A method of this run."

    def __post_init__(self):
        if not self.name.isidentifier() or len(self.name) > _LONGEST_NAME:
            raise ValueError(
                f"Method.name is {self.name!r}, expected letters, digits and underscores, {_LONGEST_NAME} at most: it "
                "names folders."
            )
        if self.name == PRETRAINED and (self.gin_files or self.starts_from):
            raise ValueError(
                f"Method.name is {PRETRAINED!r}, which is the model that the recipe starts from; give a method that "
                "trains or starts from something else another name."
            )
        if self.prompt is not None and self.prompt < 0:
            raise ValueError(
                f"Method.prompt is {self.prompt}; expected the number of a soft prompt, from 0 on, or None."
            )
        _ = self.row  # it is checked, too

    @property
    def row(self) -> method_rows.MethodRow:
        """What a report is handed."""
        label = self.label or self.name.replace("_", " ")
        return method_rows.MethodRow(label, self.colour, self.marker, self.description)


# The colours are Okabe and Ito's, which colour-blind readers can tell apart; the markers differ as well.
_ROWS = (
    Method(
        PRETRAINED,
        gin_files=(),
        starts_from=(),
        prompt=None,
        grid=False,
        colour="#4d4d4d",
        marker="D",
        description="The checkpoint as it came, with nothing trained. It is the reference for the in-context learning"
        " that there is to lose.",
    ),
    Method(
        "prompt_tuning",
        gin_files=("stages/prompt_tuning.gin",),
        grid=False,
        colour="#b05c91",
        marker="v",
        description="Stage 1 of ProMoT alone: only a soft prompt is trained on the target task. With the prompt"
        " removed the model is the pretrained one.",
    ),
    Method(
        "fine_tuning",
        gin_files=("stages/fine_tuning.gin",),
        prompt=None,
        planned=False,  # ProMoT's second stage with the prompt's positions left out
        label="standard fine-tuning",
        colour="#d55e00",
        marker="s",
        description="All weights are trained on the target task, without a prompt. This is the usual way; the model"
        " may take over the target’s output format for everything else.",
    ),
    Method(
        "random_prompt",
        gin_files=("stages/random_prompt.gin",),
        planned=False,  # the program of ProMoT's second stage
        label="fixed random prompt",
        colour="#009e73",
        marker="^",
        description="Control: all weights are trained behind a fixed prompt that was itself never trained. It shows"
        " how much of ProMoT’s effect is owed to merely having a prefix.",
    ),
    Method(
        "joint_tuning",
        gin_files=("stages/joint_tuning.gin",),
        colour="#e69f00",
        marker="P",
        description="Ablation: prompt and model are trained together, from a random prompt, at one learning rate.",
    ),
    Method(
        "promot",
        gin_files=("stages/model_tuning.gin",),
        starts_from=("prompt_tuning",),
        label="ProMoT",
        colour="#0072b2",
        marker="o",
        description="Stage 1 trains a soft prompt on the target task; stage 2 freezes it and trains all other weights"
        " behind it. For every other task the prompt is removed.",
    ),
)

METHODS = {method.name: method for method in _ROWS}

"""The methods of this package by name."""

HEADLINE = ("promot", "fine_tuning", PRETRAINED)

"""The method that a report's headline judges, the one it is compared with, and the model before any training."""
