"""How a row becomes a question and its answer in text.

Dimensions do not occur here: everything is plain Python, one row at a time.
"""

import bisect
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with its answer. The question is head + body + tail; only the body may be shortened.

    Attributes:
      head: what stands before the first column ("Q: ").
      body: the first column, the longest part of most inputs: the article, the premise, the question.
      tail: the rest (" A:").
      answers: the accepted answers, the one to learn first.
      choices: the answers to choose from; empty where any text may be the answer.
    """

    head: str
    body: str
    tail: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()

    @property
    def inputs(self) -> str:
        """The question as the model reads it."""
        return self.head + self.body + self.tail

    @property
    def target(self) -> str:
        """The answer to learn."""
        return self.answers[0]

    def shortened(self, fits: Callable[[str], bool]) -> "Example":
        """The example with as much of its body's beginning as lets the inputs fit, cut between words where it can be.

        Where no body is short enough only the tail's end is left, so that the inputs still end in "answer:".

        >>> example = Example("Article: ", "one two three four", " Summary:", ("x",))
        >>> example.shortened(lambda text: len(text) < 30).inputs
        'Article: one two Summary:'
        """
        if fits(self.inputs):
            return self
        # Whole words first: a word's beginning may take more tokens than the word.
        words = [match.end() for match in re.finditer(r"\S+", self.body)]
        end = _last(words, lambda end: fits(self.head + self.body[:end] + self.tail))
        if end is None:
            characters = range(words[0] if words else len(self.body))
            end = _last(characters, lambda end: fits(self.head + self.body[:end] + self.tail))
        if end is not None:
            return dataclasses.replace(self, body=self.body[:end].rstrip())
        starts = [match.start() for match in re.finditer(r"\S+", self.tail)] or [len(self.tail)]
        dropped = _last(starts[:-1], lambda start: not fits(self.tail[start:]))
        start = starts[0 if dropped is None else starts.index(dropped) + 1]
        return dataclasses.replace(self, head="", body="", tail=self.tail[start:])


def _last(ordered: Sequence[int], holds: Callable[[int], bool]) -> int | None:
    """The last number for which something holds that holds for the first ones only; None if for none."""
    place = bisect.bisect_left(ordered, True, key=lambda number: not holds(number))
    return ordered[place - 1] if place else None


@dataclasses.dataclass(frozen=True)
class Wording:
    """The words around a row's columns, and what its answers may be.

    Attributes:
      template: the question, columns in braces, the longest one first.
      labels: names of the column `label`, in the order of its indices; empty for a task without classes.
      verbalizers: how each label is spoken, in the same order.
      prefix: what every question begins with, if it has a beginning of its own; answers end where it occurs.
      max_input_tokens: questions are cut to so many tokens before anything else; None for no such limit.
    """

    template: str
    labels: tuple[str, ...] = ()
    verbalizers: tuple[str, ...] = ()
    prefix: str = ""
    max_input_tokens: int | None = None

    def example(self, row: Mapping[str, Any]) -> Example:
        """Words a row.

        Args:
          row: the template's columns as text and, for the answer, `label` (an index), `target` (text), `answers`
            (texts, the first one to learn unless there is a `target`); optional `choices` (texts).

        >>> wording = Wording("{p} question: {h} answer:", ("yes", "no"), ("True", "False"))
        >>> example = wording.example({"p": "It rains.", "h": "It is wet.", "label": 1})
        >>> example.inputs, example.target, example.choices
        ('It rains. question: It is wet. answer:', 'False', ('True', 'False'))
        """
        pieces = re.split(r"\{(\w+)\}", self.template)  # literal, column, literal, column, ..., literal
        tail = "".join(row[piece] if i % 2 else piece for i, piece in enumerate(pieces[3:], start=1))
        if "label" in row:
            answers, choices = (self.verbalizers[row["label"]],), self.verbalizers
        else:
            first = (row["target"],) if "target" in row else ()
            answers = tuple(dict.fromkeys((*first, *row.get("answers", ()))))
            choices = tuple(row.get("choices", ()))
        return Example(pieces[0], row[pieces[1]], pieces[2] + tail, answers, choices)
