"""Extracts the answer from a model's output (ProMoT, appendix B.2), and an example's accepted answers.

All functions accept any text; applying one to its own result changes nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.tasks.vocabularies import SENTINEL

_ANY_SENTINEL = re.compile(r"<extra_id_\d+>")
_AROUND_WORDS = ".,;:!?\"'()"


def between_sentinels(output: str) -> str:
    """The text between the first `<extra_id_0>`, which marks the missing span, and the next sentinel.

    Without that mark, the text before the first sentinel.

    >>> between_sentinels("<extra_id_0> True <extra_id_1> and"), between_sentinels("True <extra_id_1> and")
    ('True', 'True')
    """
    _, _, after = output.partition(SENTINEL)
    return _ANY_SENTINEL.split(after if SENTINEL in output else output)[0].strip()


def before_prefix(text: str, prefix: str) -> str:
    """The text before the next question: after exemplars a model often continues with a question of its own.

    >>> before_prefix("Paris Q: who wrote", "Q:"), before_prefix("The FAQ: a book", "Q:")
    ('Paris', 'The FAQ: a book')
    """
    if not prefix:
        return text.strip()
    end_of_word = r"\b" if prefix[-1].isalnum() else ""
    return re.split(rf"(?<!\w){re.escape(prefix)}{end_of_word}", text)[0].strip()


def first_word(text: str) -> str:
    """The first word, without surrounding punctuation: a class or a letter is one word.

    >>> first_word(" True. It says so")
    'True'
    """
    words = text.split()
    return words[0].strip(_AROUND_WORDS) if words else ""


def answer(output: str, *, sentinels: bool, prefix: str = "", one_word: bool = False) -> str:
    """The answer in a model's output.

    Args:
      output: decoded tokens.
      sentinels: whether the prompt ended with a sentinel (span corruption) or not (LM-adapted).
      prefix: the beginning of the task's questions, see `before_prefix`.
      one_word: whether answers are single words of a fixed set.
    """
    text = between_sentinels(output) if sentinels else output.strip()
    text = before_prefix(text, prefix)
    return first_word(text) if one_word else text


def postprocess(
    output: str,
    example: Mapping[str, Any],
    is_target: bool,
    *,
    sentinels: bool,
    prefix: str,
    one_word: bool,
    aliases: bool,
) -> str | Sequence[str]:
    """seqio's postprocessing: the answer in a prediction; for a target, its accepted answer or all of them.

    Args:
      output: decoded tokens of a prediction; those of a target are ignored.
      example: has the feature `answers`, a list as JSON.
      is_target: whether to return the target instead of the prediction's answer.
      sentinels, prefix, one_word: see `answer`.
      aliases: whether the metric takes all accepted answers.
    """
    if not is_target:
        return answer(output, sentinels=sentinels, prefix=prefix, one_word=one_word)
    accepted = json.loads(example["answers"])
    return accepted if aliases else accepted[0]
