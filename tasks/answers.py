"""From what a model wrote to its answer (ProMoT, appendix B.2), and the accepted answers of an example.

All functions take any text, and taking an answer's answer changes nothing.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from promot_t5x.tasks.vocabularies import SENTINEL

_ANY_SENTINEL = re.compile(r"<extra_id_\d+>")
_AROUND_WORDS = ".,;:!?\"'()"


def between_sentinels(output: str) -> str:
    """What stands after the first `<extra_id_0>`, the mark of the missing span, and before the next sentinel.

    Without that mark the answer is what stands before the first sentinel.

    >>> between_sentinels("<extra_id_0> True <extra_id_1> and"), between_sentinels("True <extra_id_1> and")
    ('True', 'True')
    """
    _, _, after = output.partition(SENTINEL)
    return _ANY_SENTINEL.split(after if SENTINEL in output else output)[0].strip()


def before_prefix(text: str, prefix: str) -> str:
    """What stands before the next question: a model that has read exemplars often goes on with one of its own.

    >>> before_prefix("Paris Q: who wrote", "Q:"), before_prefix("The FAQ: a book", "Q:")
    ('Paris', 'The FAQ: a book')
    """
    if not prefix:
        return text.strip()
    end_of_word = r"\b" if prefix[-1].isalnum() else ""
    return re.split(rf"(?<!\w){re.escape(prefix)}{end_of_word}", text)[0].strip()


def first_word(text: str) -> str:
    """The first word without punctuation around it: a class or a letter is one word.

    >>> first_word(" True. It says so")
    'True'
    """
    words = text.split()
    return words[0].strip(_AROUND_WORDS) if words else ""


def answer(output: str, *, sentinels: bool, prefix: str = "", one_word: bool = False) -> str:
    """The answer in a model's output.

    Args:
      output: decoded tokens.
      sentinels: whether the model was asked with a sentinel (span corruption) or not (LM-adapted).
      prefix: how the task's questions begin, see `before_prefix`.
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
    """seqio's postprocessing: of a prediction its answer, of a target the accepted answer, or all of them.

    Args:
      output: decoded tokens of a prediction; a target's are not looked at.
      example: has the feature `answers`, JSON of a list.
      is_target: whether the target is asked for.
      sentinels, prefix, one_word: see `answer`.
      aliases: whether the metric takes all accepted answers.
    """
    if not is_target:
        return answer(output, sentinels=sentinels, prefix=prefix, one_word=one_word)
    accepted = json.loads(example["answers"])
    return accepted if aliases else accepted[0]
