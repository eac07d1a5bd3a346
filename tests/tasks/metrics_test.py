"""promot_t5x.tasks.metrics: hand-computed cases, and the libraries called directly."""

import re

import numpy as np
import pytest
import sacrebleu
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from promot_t5x.tasks import metrics

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
LABELS = ("True", "False", "Neither")
TARGETS = [
    "The cat sat on the mat.",
    "It rains (a lot) today, he said.",
    "Schöne Grüße aus Köln am Rhein!",
    "One word more.",
]
PREDICTIONS = ["The cat sat on a mat.", "It rains a lot today, he says.", "Schöne Grüße von Köln am Rhein!", ""]


@pytest.mark.parametrize(
    "targets,predictions,percent",
    [
        (["a", "b ", "c", "d"], [" a", "b", "x", ""], 50.0),
        (["True"], ["true"], 0.0),
        (["a"] * 8, ["a"] * 7 + ["b"], 87.5),
        ([""], [""], 100.0),
        ([], [], 0.0),
    ],
)
def test_accuracy_is_a_percentage(targets, predictions, percent):
    assert metrics.accuracy(targets, predictions) == {"accuracy": percent}


@pytest.mark.parametrize(
    "text,normal",
    [
        ("The  Beatles!", "beatles"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("theatre another Athens", "theatre another athens"),
        ("the-end", "theend"),  # punctuation goes first, then what is left is no article
        ("\tÉmile\u00a0ZOLA\n", "émile zola"),
        ("“quoted”", "“quoted”"),  # SQuAD knows ASCII punctuation only
        ("don't", "dont"),
        ("The", ""),
        ("?!", ""),
        ("", ""),
    ],
)
def test_answers_are_compared_in_squad_s_normal_form(text, normal):
    assert metrics.normalized_answer(text) == normal
    assert metrics.exact_match([text], [normal]) == {"exact_match": 100.0}


@pytest.mark.parametrize(
    "targets,predictions,percent",
    [
        ([["The Beatles", "Beatles"], ["Paris"]], ["beatles.", "Rome"], 50.0),
        ([["a", "b"], ["c"], ["d", "e"], ["f"]], ["B", "c", "e", "ff"], 75.0),
        ([("New York", "NYC")], ["the nyc"], 100.0),
        (["Paris", "Rome"], ["paris", "rom"], 50.0),  # without aliases
        (["abc"], ["a"], 0.0),  # a text is one answer, not a list of letters
        ([["Paris"]], [""], 0.0),
        ([], [], 0.0),
    ],
)
def test_exact_match_accepts_any_alias(targets, predictions, percent):
    assert metrics.exact_match(targets, predictions) == {"exact_match": percent}


def test_bleu_is_sacrebleu_s_with_the_tokenizer_intl():
    expected = sacrebleu.corpus_bleu(PREDICTIONS, [TARGETS], tokenize="intl")
    scores = metrics.bleu(TARGETS, PREDICTIONS)
    assert scores["bleu"] == pytest.approx(expected.score, abs=1e-9) and 0 < scores["bleu"] < 100
    assert isinstance(scores["bleu_signature"], seqio.metrics.Text)
    assert {"tok:intl", "nrefs:1", f"version:{sacrebleu.__version__}"} <= set(
        scores["bleu_signature"].textdata.split("|")
    )
    assert list(scores)[0] == "bleu"


def test_the_tokenizer_of_bleu_matters_for_the_texts_above():
    targets, predictions = ["Sein „Haus“ ist groß – sehr groß."], ["Sein Haus ist groß – sehr groß."]
    default = sacrebleu.corpus_bleu(predictions, [targets]).score
    assert abs(metrics.bleu(targets, predictions)["bleu"] - default) > 1


def test_the_standard_error_of_bleu_is_that_of_resampled_corpora():
    rng = np.random.default_rng(0)
    words = ["red", "cat", "dog", "runs", "sits", "here", "now"]
    targets = [" ".join(rng.choice(words, 8)) for _ in range(40)]
    predictions = [" ".join(w if rng.random() < 0.8 else "x" for w in t.split()) for t in targets]
    scores = []
    for _ in range(150):
        drawn = rng.integers(0, 40, 40)
        resampled = [predictions[i] for i in drawn], [[targets[i] for i in drawn]]
        scores.append(sacrebleu.corpus_bleu(*resampled, tokenize="intl").score)
    whole = metrics.bleu(targets, predictions)
    assert whole["bleu_stderr"] == pytest.approx(np.std(scores), rel=0.3)  # 150 samples know theirs to 6 %
    assert metrics.bleu(targets, predictions) == whole


def test_equal_texts_have_no_standard_error():
    assert metrics.bleu(TARGETS, TARGETS)["bleu_stderr"] == pytest.approx(0, abs=1e-5)
    assert "bleu_stderr" not in metrics.bleu(TARGETS[:1], TARGETS[:1])  # one sentence says nothing of others


def test_rouge_is_rouge_score_s_without_stemming():
    scorer = rouge_scorer.RougeScorer(["rouge2", "rougeL"], use_stemmer=False)
    scores = [scorer.score(target, prediction) for target, prediction in zip(TARGETS, PREDICTIONS, strict=True)]
    ours = metrics.rouge(TARGETS, PREDICTIONS)
    assert list(ours) == ["rouge2", "rougeL"]
    for name, value in ours.items():
        assert value == pytest.approx(100 * sum(score[name].fmeasure for score in scores) / 4) and 0 < value < 100
    assert metrics.rouge(["cats run"], ["cat run"])["rougeL"] == 50.0


def test_rouge_by_hand():
    # Bigrams of 3 and 4, of which 2 are common; the longest common subsequence is of 3 words out of 4 and 5.
    scores = metrics.rouge(["the cat sat down"], ["so the cat sat up"])
    assert scores["rouge2"] == pytest.approx(100 * 2 * (2 / 4) * (2 / 3) / (2 / 4 + 2 / 3))
    assert scores["rougeL"] == pytest.approx(100 * 2 * (3 / 5) * (3 / 4) / (3 / 5 + 3 / 4))


def test_a_reference_of_one_word_has_no_bigram():
    assert metrics.rouge(["Paris"], ["Paris"]) == {"rouge2": 0.0, "rougeL": 100.0}


def _plain_macro_f1(targets, predictions, labels):
    scores = []
    for label in labels:
        true_positives = sum(t == label and p == label for t, p in zip(targets, predictions, strict=True))
        predicted, wanted = predictions.count(label), targets.count(label)
        precision = true_positives / predicted if predicted else 0.0
        recall = true_positives / wanted if wanted else 0.0
        scores.append(2 * precision * recall / (precision + recall) if true_positives else 0.0)
    return 100 * sum(scores) / len(scores)


def test_macro_f1_by_hand():
    targets = ["True", "True", "True", "False", "False", "Neither"]
    predictions = ["True", "True", "False", "False", "maybe", "True"]
    # True: precision 2/3, recall 2/3. False: precision 1/2, recall 1/2. Neither: 0.
    assert metrics.macro_f1(targets, predictions, labels=LABELS)["macro_f1"] == pytest.approx(100 * (2 / 3 + 1 / 2) / 3)


@SETTINGS
@given(st.lists(st.tuples(st.sampled_from(LABELS), st.sampled_from([*LABELS, "", "maybe"])), min_size=1))
def test_macro_f1_is_the_mean_of_harmonic_means(pairs):
    targets, predictions = [t for t, _ in pairs], [p for _, p in pairs]
    score = metrics.macro_f1(targets, predictions, labels=LABELS)["macro_f1"]
    assert score == pytest.approx(_plain_macro_f1(targets, predictions, LABELS)) and 0 <= score <= 100


@SETTINGS
@given(st.lists(st.tuples(st.text(min_size=1), st.text()), min_size=1, max_size=5))
def test_all_metrics_take_any_text_and_stay_between_0_and_100(pairs):
    targets, predictions = [t for t, _ in pairs], [p for _, p in pairs]
    for name in metrics.BY_NAME:
        for language in (None, "hi"):
            if name == "bleu":  # its bootstrap takes too long here
                continue
            try:
                scores = metrics.in_language(name, language)(targets, predictions)
            except ValueError as error:
                assert name == "rouge" and language is None and "no words in the reference" in str(error)
                assert any(not re.search("[a-z0-9]", target.lower()) for target in targets)
                continue
            assert all(0 <= value <= 100 for key, value in scores.items() if "signature" not in key)


# A reference, a prediction whose last word or character differs, and the share of bigrams that they have in common.
SCRIPTS = {
    "hi": ("मैं तुमसे प्यार करता हूँ", "मैं तुमसे प्यार करता था", 3 / 4),
    "zh": ("我爱我的小猫。", "我爱我的小狗。", 4 / 5),
    "ja": ("ネコがすき", "ネコがすこ", 3 / 4),
    "th": ("ฉันรักแมว", "ฉันรักแมน", 5 / 6),
    "ru": ("Я очень люблю кошек!", "Я очень люблю собак!", 2 / 3),
    "ar": ("أنا أحب القطط كثيرا", "أنا أحب القطط جدا", 2 / 3),
    "ko": ("나는 고양이를 매우 사랑한다", "나는 고양이를 매우 좋아한다", 2 / 3),
    "de": ("Die größte Katze schläft hier", "Die größte Katze schläft dort", 3 / 4),
}


@pytest.mark.parametrize("language", SCRIPTS)
def test_rouge_of_other_scripts_is_not_0(language):
    target, prediction, share = SCRIPTS[language]
    rouge = metrics.in_language("rouge", language)
    assert {k: rouge([target], [target])[k] for k in ("rouge2", "rougeL")} == {"rouge2": 100.0, "rougeL": 100.0}
    assert rouge([target], [prediction])["rouge2"] == pytest.approx(100 * share)
    assert rouge([target], [prediction])["rouge_signature"].textdata.startswith("tok:UnicodeWords|version:")


@pytest.mark.parametrize("target", ["मैं", "我爱你", "кошка", "ÄÖÜ"])
def test_a_reference_in_which_rouge_sees_no_words_is_an_error(target):
    with pytest.raises(ValueError, match=f"sees no words in the reference '{target}': name the task's language"):
        metrics.rouge(["cats", target], ["cats", target])
    assert metrics.rouge(["cats", "?"], ["cats", "?"])["rougeL"] == 50.0  # no language has words in it


def test_english_is_scored_as_without_a_language():
    for name in metrics.BY_NAME:
        for language in (None, "en", "en-GB", "eng"):
            assert metrics.in_language(name, language) is metrics.BY_NAME[name]
    assert "rouge_signature" not in metrics.rouge(TARGETS, PREDICTIONS)


def test_bleu_of_chinese_has_sacrebleu_s_tokenizer():
    targets, predictions = (
        ["我今天去北京看望我的朋友。", "他在图书馆里读书。"],
        ["我今天去上海看望我的朋友。", "他在图书馆里看书。"],
    )
    scores = metrics.in_language("bleu", "zh")(targets, predictions)
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(predictions, [targets], tokenize="zh").score)
    assert scores["bleu"] > 50 > 1 > metrics.bleu(targets, predictions)["bleu"]
    assert "tok:zh" in scores["bleu_signature"].textdata
    thai = metrics.in_language("bleu", "th")([SCRIPTS["th"][0]], [SCRIPTS["th"][1]])
    assert thai["bleu"] > 50 and "tok:char" in thai["bleu_signature"].textdata


def test_a_tokenizer_that_is_not_installed_is_named(monkeypatch):
    def missing(**kwargs):
        raise RuntimeError("Japanese tokenization requires extra dependencies")

    monkeypatch.setattr(sacrebleu, "BLEU", missing)
    with pytest.raises(ValueError, match=r"language 'ja' needs .* ja-mecab, .*: pip install 'sacrebleu\[ja\]'"):
        metrics.in_language("bleu", "ja")


@pytest.mark.parametrize("language", ["Hindi", "z", "", "中文", "xx", "deu", "xx-Latn"])
def test_a_language_is_a_code(language):
    with pytest.raises(ValueError, match=f"Language '{language}' is unknown, expected a code of ISO 639-1 such as"):
        metrics.in_language("rouge", language)


@pytest.mark.parametrize(
    "language,target,prediction",
    [
        ("es", "¿Qué hora?", "que\u0301 HORA"),
        ("zh", "北京。", "北京"),
        ("de", "„Größe“ – ja", "größe ja"),
        ("ar", "قطة؟", "قطة"),
    ],
)
def test_exact_match_ignores_the_punctuation_of_other_scripts(language, target, prediction):
    assert metrics.in_language("exact_match", language)([target], [prediction]) == {"exact_match": 100.0}
    assert metrics.exact_match([target], [prediction]) == {"exact_match": 0.0}


@pytest.mark.parametrize(
    "text,normal",
    [
        ("Jack-of-all-trades", "jack of all trades"),
        ("the_end", "end"),
        ("O’Neill’s `Hairy´ Ape", "o neill s hairy ape"),
        ("An A.", ""),
        ("U.S.A.", "u s"),
    ],
)
def test_answers_of_trivia_qa_are_compared_in_its_normal_form(text, normal):
    """Worked out from the steps of its triviaqa_evaluation.py."""
    assert metrics.trivia_qa_answer(text) == normal


@pytest.mark.parametrize("name", metrics.BY_NAME)
def test_empty_predictions_score_nothing(name):
    for targets in (TARGETS, TARGETS[:1], ["", "x"]):
        scores = metrics.BY_NAME[name](targets, [""] * len(targets))
        most = 50.0 if "" in targets else 0.0
        assert all(value <= most for key, value in scores.items() if not re.search("signature|stderr", key))
        assert next(iter(scores)) in (name, "rouge2")


@pytest.mark.parametrize("name", metrics.BY_NAME)
def test_no_examples_score_nothing(name):
    assert next(iter(metrics.BY_NAME[name]([], []).values())) == 0.0


@pytest.mark.parametrize("count", [1, 3, 7, 97])
def test_perfect_predictions_score_exactly_100(count):
    """Binary fractions may not make it 99.99999999999999 or 100.00000000000001."""
    texts = [f"{TARGETS[i % 4]} And the number {i}." for i in range(count)]
    for name in ("accuracy", "exact_match", "rouge"):
        assert set(metrics.BY_NAME[name](texts, texts).values()) == {100.0}
    assert metrics.bleu(texts, texts)["bleu"] == 100.0
    assert metrics.macro_f1(LABELS, LABELS, labels=LABELS) == {"macro_f1": 100.0}


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.exact_match, metrics.rouge])
def test_lists_of_different_lengths_are_refused(metric):
    with pytest.raises(ValueError, match="argument 2 is shorter than argument 1"):
        metric(["a", "b"], ["a"])


@pytest.mark.parametrize("metric", [metrics.accuracy, metrics.exact_match, metrics.rouge])
def test_means_state_the_value_of_each_example(metric):
    """Each is the metric's value on that example alone."""
    for name, value in metric(TARGETS, PREDICTIONS).items():
        alone = [metric([t], [p])[name] for t, p in zip(TARGETS, PREDICTIONS, strict=True)]
        assert value.of_examples == alone and value == pytest.approx(np.mean(alone), rel=1e-12)
