"""promot_t5x.tasks.languages: words by hand, and what must hold for any text."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import tokenizers

from promot_t5x.tasks import languages

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)


@pytest.mark.parametrize(
    "text,words",
    [
        ("Die Größe, 2 Mal!", "die größe 2 mal"),
        ("naïve cafe\u0301", "naïve café"),  # NFKC: the accent and its letter are one character
        ("मैं (तुमसे) प्यार।", "मैं तुमसे प्यार"),  # vowel signs are marks and belong to words
        ("我爱 Python3。", "我 爱 python3"),
        ("ネコbotすき", "ネ コ bot す き"),
        ("ที่นี่", "ที่ นี่"),  # marks follow their consonant
        ("나는 매우", "나는 매우"),
        ("אני אוהב", "אני אוהב"),
        ("ශ්\u200dරී ලංකාව", "ශ්රී ලංකාව"),  # a joiner does not end a word
        ("می\u200cخواهم", "میخواهم"),  # nor does a non-joiner
        ("co\u00adop a\u200bb", "coop a b"),  # nor a soft hyphen; a zero width space does
        ("?! …", ""),
        ("", ""),
    ],
)
def test_words_by_hand(text, words):
    assert languages.UnicodeWords().tokenize(text) == words.split()


@SETTINGS
@given(st.text("abcXYZ 019.,!?-'\n"))
def test_words_of_english_are_rouge_score_s(text):
    assert languages.UnicodeWords().tokenize(text) == tokenizers.DefaultTokenizer(use_stemmer=False).tokenize(text)


@SETTINGS
@given(st.text())
def test_a_text_with_letters_has_words(text):
    words = languages.UnicodeWords().tokenize(text)
    assert bool(words) >= any(map(str.isalnum, text)) and all(words)
    folded = unicodedata.normalize("NFKC", text).lower()
    assert "".join(words) == "".join(c for c in folded if unicodedata.category(c)[0] in "LMN")


@SETTINGS
@given(st.text())
def test_a_normal_answer_has_no_punctuation(text):
    answer = languages.answer(text)
    assert not any(unicodedata.category(c).startswith("P") for c in answer) and "  " not in answer


@pytest.mark.parametrize(
    "tag,name",
    [
        ("zh", "zh"),
        ("zh-Hant", "zh"),
        ("zho", "zh"),
        ("cmn-Hans", "zh"),
        ("yue", "zh"),
        ("th", "char"),
        ("tha", "char"),
        ("mya", "char"),
        ("hi", "intl"),
        ("de_AT", "intl"),
        ("ceb", "intl"),
    ],
)
def test_bleu_has_a_tokenizer_for_each_language(tag, name):
    assert languages.bleu_tokenizer(tag) == name


def test_codes_of_three_letters_are_those_of_two():
    """jpn and kor were tokenized as English."""
    codes = {"jpn": "ja", "kor": "ko", "eng": "en", "khm": "km", "zho_Hant": "zh"}
    assert {tag: languages.primary(tag) for tag in codes} == codes
