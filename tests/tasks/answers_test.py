"""promot_t5x.tasks.answers: any output has an answer, and the cases of the paper's appendix B.2."""

import itertools
import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from promot_t5x.tasks import answers

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True)
PREFIXES = ("", "Q:", "Translate", "Article:")
WAYS = [
    dict(sentinels=sentinels, prefix=prefix, one_word=one_word)
    for sentinels, prefix, one_word in itertools.product((True, False), PREFIXES, (True, False))
]
PIECES = ["<extra_id_0>", "<extra_id_1>", "<extra_id_99>", "<extra_id_", "0", ">", "Q", "Q:", ":", "Trans", "late"]
PIECES += ["Article:", "True", "False", " ", "\n", "\u00a0", "\u2028", "\x1c", "'", '"', ".", "(", ")", "é", "\ud800"]
OUTPUTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES), max_size=12).map("".join))


@SETTINGS
@given(OUTPUTS)
@example("<extra_id_<extra_id_0>0> Q: <extra_id_0>")
@example("(True.) <extra_id_1>")
def test_an_answer_is_its_own_answer(output):
    for way in WAYS:
        answer = answers.answer(output, **way)
        assert answers.answer(answer, **way) == answer, way


@SETTINGS
@given(OUTPUTS)
def test_an_answer_is_a_part_of_the_output_without_what_ends_it(output):
    for way in WAYS:
        answer = answers.answer(output, **way)
        assert answer in output and answer == answer.strip()
        assert not (way["sentinels"] and re.search(r"<extra_id_\d+>", answer))
        assert not (way["prefix"] and re.search(rf"\b{way['prefix']}(?!\w)", answer))
        assert not way["one_word"] or len(answer.split()) <= 1


@pytest.mark.parametrize(
    "output,answer",
    [
        ("<extra_id_0> Paris <extra_id_1> Q: who", "Paris"),
        ("<extra_id_0>Paris", "Paris"),
        ("<extra_id_0> New York <extra_id_2>", "New York"),
        ("<extra_id_0> Paris <extra_id_0> Rome", "Paris"),
        ("well, <extra_id_0> Paris", "Paris"),
        ("<extra_id_1> x <extra_id_0> Paris <extra_id_1>", "Paris"),
        ("Paris <extra_id_1> Rome", "Paris"),
        ("Paris", "Paris"),
        ("<extra_id_0>", ""),
        ("<extra_id_0> <extra_id_1> Paris", ""),
        ("", ""),
        ("<extra_id_x> Paris", "<extra_id_x> Paris"),
    ],
)
def test_the_span_after_the_first_sentinel_is_the_answer(output, answer):
    assert answers.between_sentinels(output) == answer
    assert answers.answer(output, sentinels=True) == answer


@pytest.mark.parametrize(
    "output,prefix,answer",
    [
        ("Paris Q: who wrote it? A: Dante", "Q:", "Paris"),
        ("Paris Q: who? A: x Q: where?", "Q:", "Paris"),
        ("Q: who? A: Dante", "Q:", ""),
        ("Das ist gut. Translate English to German: Hello", "Translate", "Das ist gut."),
        ("A cat is rescued.\nArticle: A dog", "Article:", "A cat is rescued."),
        ("Paris Q: who", "Article:", "Paris Q: who"),
        ("Paris Q: who", "", "Paris Q: who"),
        ("Paris q: who", "Q:", "Paris q: who"),
    ],
)
def test_the_next_question_ends_the_answer(output, prefix, answer):
    assert answers.answer(output, sentinels=False, prefix=prefix) == answer
    assert answers.answer(f"<extra_id_0> {output} <extra_id_1>", sentinels=True, prefix=prefix) == answer


@pytest.mark.parametrize(
    "output,word",
    [
        (" True", "True"),
        ("False. It says so", "False"),
        ("Neither\nTrue", "Neither"),
        ("(B) the second", "B"),
        ('"C"', "C"),
        ("true", "true"),  # another class: letter case is the model's answer
        ("...", ""),
        (". True", ""),
        ("  ", ""),
    ],
)
def test_the_first_word_is_the_class(output, word):
    assert answers.first_word(output) == word
    assert answers.answer(output, sentinels=False, one_word=True) == word
    assert answers.answer(f"<extra_id_0> {output} <extra_id_1> and", sentinels=True, one_word=True) == word


def test_sentinels_are_text_for_a_checkpoint_without_them():
    assert answers.answer("a <extra_id_0> b", sentinels=False) == "a <extra_id_0> b"


def test_postprocessing_gives_predictions_and_accepted_answers():
    row = {"answers": json.dumps(["Æ", "Rome"]).encode()}  # seqio hands bytes over
    way = dict(sentinels=True, prefix="Q:", one_word=False)
    assert answers.postprocess("<extra_id_0> Æ Q: x", row, False, aliases=True, **way) == "Æ"
    assert answers.postprocess("not looked at", row, True, aliases=True, **way) == ["Æ", "Rome"]
    assert answers.postprocess("not looked at", row, True, aliases=False, **way) == "Æ"


def test_a_prefix_is_a_word_of_its_own():
    for text in ("The FAQ: a book", "Translates: to carry over", "Retranslate it"):
        for prefix in ("Q:", "Translate"):
            assert answers.before_prefix(text, prefix) == text
    assert answers.before_prefix("Ja. Translate English to German: No", "Translate") == "Ja."
    assert answers.before_prefix('"Q:who', "Q:") == '"'
