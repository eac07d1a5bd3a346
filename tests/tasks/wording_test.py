"""promot_t5x.tasks.wording: templates cut into head, body and tail, and bodies cut to what fits."""

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from promot_t5x.tasks.wording import Example, Wording

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True)
TEXTS = st.one_of(st.text(max_size=30), st.text("ab \n\t\u2028", max_size=30))
PARTS = st.text("xy ", max_size=4)


@pytest.mark.parametrize(
    "template,row,parts",
    [
        ("Q: {question} A:", {"question": "who?"}, ("Q: ", "who?", " A:")),
        ("{input}", {"input": " as it is "}, ("", " as it is ", "")),
        ("{p} question: {h} answer:", {"p": "It rains.", "h": "Wet?"}, ("", "It rains.", " question: Wet? answer:")),
        ("{a}{b}", {"a": "1", "b": "2"}, ("", "1", "2")),
        ("<{a}|{b}|{a}>", {"a": "1", "b": "2"}, ("<", "1", "|2|1>")),
        (
            "Q: {q} A) {a}",
            {"q": "{a} or {q}?", "a": "{q}"},
            ("Q: ", "{a} or {q}?", " A) {q}"),
        ),  # braces of a row are text
    ],
)
def test_a_template_is_head_body_and_tail(template, row, parts):
    worded = Wording(template).example({**row, "target": "x", "unused": "y"})
    assert (worded.head, worded.body, worded.tail) == parts
    assert worded.inputs == "".join(parts)
    assert (worded.answers, worded.target, worded.choices) == (("x",), "x", ())


@pytest.mark.parametrize(
    "row,answers,choices",
    [
        ({"label": 0}, ("True",), ("True", "False")),
        ({"label": 1}, ("False",), ("True", "False")),
        ({"target": "x"}, ("x",), ()),
        ({"answers": ["x", "y", "x"]}, ("x", "y"), ()),
        ({"target": "y", "answers": ["x", "y"]}, ("y", "x"), ()),  # the target is learned, the others are accepted
        ({"target": "z", "answers": ["x"]}, ("z", "x"), ()),
        ({"target": "x", "choices": ["w", "x"]}, ("x",), ("w", "x")),
    ],
)
def test_answers_come_from_label_target_and_answers(row, answers, choices):
    worded = Wording("{q}", ("yes", "no"), ("True", "False")).example({"q": "?", **row})
    assert (worded.answers, worded.choices, worded.target) == (answers, choices, answers[0])


def _longest(body, room):
    """The longest beginning of whole words in `room` characters; of a first word that is longer, its beginning."""
    ends = [n for n in range(len(body) + 1) if n == len(body) or body[n].isspace() or n and body[n - 1].isspace()]
    fitting = [body[:n] for n in ends if n <= room]
    cut = max(fitting, key=len, default="")
    return (cut if cut else body[:room]).rstrip()


@SETTINGS
@given(PARTS, TEXTS, PARTS, st.integers(0, 40))
@example("", "foo ba\ncc", "", 7)
@example("", "foo\n\nbar", "", 5)
def test_a_shortened_body_is_the_longest_that_fits(head, body, tail, limit):
    assume(limit >= len(head + tail))
    whole = Example(head, body, tail, ("z",), ("z", "w"))
    short = whole.shortened(lambda text: len(text) <= limit)
    if len(whole.inputs) <= limit:
        assert short is whole
    else:
        assert short == Example(head, _longest(body, limit - len(head + tail)), tail, ("z",), ("z", "w"))


@SETTINGS
@given(PARTS, TEXTS, PARTS, st.integers(0, 40))
def test_a_shortened_body_is_a_prefix_and_fits_where_the_empty_one_does(head, body, tail, limit):
    short = Example(head, body, tail, ("z",)).shortened(lambda text: len(text) <= limit)
    if len(head + tail) <= limit:
        assert (short.head, short.tail) == (head, tail)
        assert body.startswith(short.body) and len(short.inputs) <= limit
    else:  # the end of the tail, from a word on
        assert (short.head, short.body) == ("", "") and tail.endswith(short.tail)
        assert len(short.inputs) <= limit or short.tail.split() == tail.split()[-1:]


def test_without_room_for_a_body_the_tails_end_stays():
    question = Example("", "It rained.", " question: " + "a very long hypothesis " * 9 + "true? answer:", ("z",))
    short = question.shortened(lambda text: len(text.split()) <= 5)
    assert short.inputs == "very long hypothesis true? answer:"
    assert question.shortened(lambda text: False).inputs == "answer:"


@SETTINGS
@given(st.lists(st.text("abc", min_size=1, max_size=3), max_size=10), st.integers(0, 12))
def test_words_as_the_measure_keep_as_many_words(words, limit):
    short = Example("Q: ", " ".join(words), " A:", ("z",)).shortened(lambda text: len(text.split()) <= limit)
    assert short.body.split() == words[: max(limit - 2, 0)]


@pytest.mark.parametrize("limit,body", [(30, "one two three"), (17, "one two"), (16, "one"), (10, ""), (0, "")])
def test_words_stay_whole(limit, body):
    question = Example("Article: ", "one two three", ".", ("x",))
    assert question.shortened(lambda text: len(text) <= limit).body == body


def test_one_long_word_is_cut_inside():
    assert Example("", "abcdefgh", "", ("x",)).shortened(lambda text: len(text) <= 5).body == "abcde"
