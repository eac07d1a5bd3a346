"""Turns a row into a question and its answer as text, one row at a time, in plain Python."""

import bisect
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any


@dataclasses.dataclass(frozen=True)
class Example:
    """One question with its answer. The question is head + body + tail; the body is shortened first.

    Attributes:
      head: the text before the first column ("Q: ").
      body: the first column, the longest part of most inputs: the article, the premise, the question.
      tail: the text after it (" A:").
      answers: the accepted answers, the one to learn first.
      choices: the answers to choose from; empty if any text may be the answer.
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
        """The example with its body cut at the end so that the inputs fit, between words if possible.

        If even an empty body is too long, only the end of the tail is kept, so that the inputs still end in "answer:".

        >>> example = Example("Article: ", "one two three four", " Summary:", ("x",))
        >>> example.shortened(lambda text: len(text) < 30).inputs
        'Article: one two Summary:'
        """
        if fits(self.inputs):
            return self
        # Whole words first: a part of a word may take more tokens than the word.
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
    """The last number that satisfies a condition which only a prefix of the numbers satisfies; None if none does."""
    count = bisect.bisect_left(ordered, True, key=lambda number: not holds(number))
    return ordered[count - 1] if count else None


@dataclasses.dataclass(frozen=True)
class Wording:
    """The words around a row's columns, and its possible answers.

    Attributes:
      template: the question, with columns in braces, the longest one first.
      labels: names of the classes of the column `label`, in the order of its indices; empty for a task without classes.
      verbalizers: the text of each label, in the same order.
      prefix: the common beginning of all questions, if there is one; answers end where it occurs.
      max_input_tokens: questions are cut to this many tokens before anything else; None for no limit.
    """

    template: str
    labels: tuple[str, ...] = ()
    verbalizers: tuple[str, ...] = ()
    prefix: str = ""
    max_input_tokens: int | None = None

    def example(self, row: Mapping[str, Any]) -> Example:
        """Turns a row into a question with its answer.

        Args:
          row: the template's columns as text and, for the answer, `label` (an index), `target` (text) or `answers`
            (texts, the first one to learn unless there is a `target`); optionally `choices` (texts).

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
