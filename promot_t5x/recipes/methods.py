"""The table of methods. Recipes read it, plans and reports receive its rows; nothing else names a method.

Your own method is one `Method` and one gin file, without any change here: `pipeline.Recipe.methods` takes rows as well
as names from this table, in Python or in gin::

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

"""In `starts_from`, the model that the recipe starts from, even if it is not compared itself."""


_LONGEST_NAME = 100


@arguments.checked
@dataclasses.dataclass(frozen=True)
class Method:
    """One way of training, and how it is shown.

    Attributes:
      name: its key in recipes, folders and results.
      gin_files: the gin files of its training run, read before the recipe's files; if there are none, nothing is
        trained and the checkpoint that it starts from is scored.
      starts_from: names of methods, PRETRAINED, or paths of checkpoints (with a slash). A run starts from the mean of
        several.
      prompt: the soft prompt that stays attached for the target, None for a method without one.
      grid: whether the recipe's learning rates apply, with one run each.
      planned: whether `plan` compiles its step; False if another method has the same or a larger step.
      label: its name for readers; if empty, `name` with spaces.
      colour: "#rrggbb" in the plot and on the page.
      marker: matplotlib's marker in the plot.
      description: one or two sentences for the page.

    Raises:
      ValueError: `name` cannot be part of a folder's name, a method other than the untouched model is called
        PRETRAINED, `prompt` is negative, or the row cannot be shown (see `method_rows.MethodRow`).

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
        """The row for reports."""
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
        description="The pretrained checkpoint without any training. It is the reference for in-context learning.",
    ),
    Method(
        "prompt_tuning",
        gin_files=("stages/prompt_tuning.gin",),
        grid=False,
        colour="#b05c91",
        marker="v",
        description="Stage 1 of ProMoT alone: only a soft prompt is trained on the target task. With the prompt"
        " removed, this is the pretrained model.",
    ),
    Method(
        "fine_tuning",
        gin_files=("stages/fine_tuning.gin",),
        prompt=None,
        planned=False,  # ProMoT's second stage with the prompt's positions left out
        label="standard fine-tuning",
        colour="#d55e00",
        marker="s",
        description="All weights are trained on the target task, without a prompt. This is the usual way; afterwards"
        " the model may answer all other tasks in the target’s output format, too.",
    ),
    Method(
        "random_prompt",
        gin_files=("stages/random_prompt.gin",),
        planned=False,  # the program of ProMoT's second stage
        label="fixed random prompt",
        colour="#009e73",
        marker="^",
        description="Control: all weights are trained with a fixed random prompt attached, which is never trained. It"
        " shows how much of ProMoT’s effect comes from merely having a prefix.",
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
        " with it attached. For every other task the prompt is removed.",
    ),
)

METHODS = {method.name: method for method in _ROWS}

"""The methods of this package, by name."""

HEADLINE = ("promot", "fine_tuning", PRETRAINED)

"""Default headline of a report: the method to judge, the one to compare it with, and the model before any training."""
