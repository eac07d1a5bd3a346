"""The toy world: vocabulary, seqio tasks, disjoint splits, held-out combinations, balance, metrics."""

import collections
import itertools
import math
import pickle
import subprocess
import sys
import zlib

import pytest
import seqio
import tensorflow as tf

from promot_t5x.tasks import toy_generators as generators
from promot_t5x.tasks import toy_lexicon as lexicon
from promot_t5x.tasks import toy_world

PRETRAINING_TASKS = tuple(f"toy_pretrain_{name}" for name in toy_world.PRETRAINING_WEIGHTS)
ALL_TASKS = PRETRAINING_TASKS + toy_world.IN_CONTEXT_TASKS + toy_world.TARGET_TASKS

# The first example of each: exemplar, query, answer. A change here changes the data that checkpoints were trained on.
GOLDEN: dict[tuple[str, str], tuple[str, str, str]] = {
    ("toy_pretrain_nli3", "train"): (
        "",
        "context: old bike moves claim: old bike moves label:",
        "good",
    ),
    ("toy_pretrain_nli2", "train"): (
        "context: red hoe waits claim: red hoe waits answer: True ;",
        "context: old rake stops claim: old tram stops answer:",
        "False",
    ),
    ("toy_pretrain_wic", "train"): (
        "word: record first: choir tune second: piano song same? same ;",
        "word: note first: fund cash second: coin price same?",
        "same",
    ),
    ("toy_pretrain_qa", "train"): (
        "ask: river of boria reply: it is cimflow ;",
        "ask: leader of boria reply:",
        "it is jurman",
    ),
    ("toy_pretrain_kind", "train"): (
        "ask: kind of cow is animal reply: yes ;",
        "ask: kind of car is tool reply:",
        "no",
    ),
    ("toy_pretrain_translate", "train"): (
        "translate: old axe falls = dloen exaen sllafen ;",
        "translate: big hen turns =",
        "giben nehen snruten",
    ),
    ("toy_pretrain_summary", "train"): (
        "article: key cat waits . pear stops . hoe falls summary: cat waits ;",
        "article: saw turns . key tram falls . bus moves summary:",
        "tram falls",
    ),
    ("toy_pretrain_seqop", "train"): (
        "first2: 7 8 8 6 output: 7 8 ;",
        "first2: 8 2 1 1 output:",
        "8 2",
    ),
    ("toy_pretrain_raw", "train"): (
        "",
        "llamsen tacen sllafen . deren tacen skaerben . llamsen tacen sllafen .",
        "deren tacen skaerben .",
    ),
    ("toy_nli3", "test"): (
        "context: old hen breaks claim: old hen breaks label: good ;",
        "context: cold plum falls claim: cold plum falls label:",
        "good",
    ),
    ("toy_wic", "test"): (
        "word: current first: cash coin second: rain shore same? no ;",
        "word: pitch first: song drum second: voice tune same?",
        "yes",
    ),
    ("toy_qa_short", "test"): (
        "ask: river of juria reply: gorflow ;",
        "ask: leader of albia reply:",
        "cimman",
    ),
    ("toy_qa_long", "test"): (
        "ask: river of juria reply: it is gorflow ;",
        "ask: river of albia reply:",
        "it is dovflow",
    ),
    ("toy_en_de", "test"): (
        "translate: old plum falls = dloen mulpen sllafen ;",
        "translate: big fig breaks =",
        "giben gifen skaerben",
    ),
    ("toy_en_ro", "test"): (
        "translate: small dog waits = godul llamsul stiawul ;",
        "translate: big bike turns =",
        "ekibul gibul snrutul",
    ),
    ("toy_key_sentence", "test"): (
        "article: cow breaks . bike stops . key fig waits summary: fig waits ;",
        "article: tram turns . hoe stops . key cat breaks summary:",
        "cat breaks",
    ),
    ("toy_keywords", "test"): (
        "article: apple turns . bike breaks . hoe moves keywords: apple bike hoe ;",
        "article: apple moves . fig stops . bike turns keywords:",
        "apple fig bike",
    ),
    ("toy_rtec", "test"): (
        "",
        "text: cold hen breaks question: cold animal breaks verdict:",
        "True",
    ),
    ("toy_enfr", "test"): (
        "",
        "translate: red cat stops =",
        "taceau dereau spotseau",
    ),
}


def splits_of(task: str) -> tuple[str, ...]:
    return tuple(seqio.get_mixture_or_task(task).splits)


def prompts(task: str, split: str) -> set[str]:
    return {prompt for prompt, _ in toy_world.examples(task, split)}


def parse_rtec(prompt: str) -> tuple[tuple[str, str, str], tuple[str, str, str]]:
    words = prompt.split()
    assert (words[0], words[4], words[8], len(words)) == ("text:", "question:", "verdict:", 9)
    return (words[1], words[2], words[3]), (words[5], words[6], words[7])


# Vocabulary


def test_vocabulary_has_a_round_size_and_the_reserved_ids() -> None:
    vocabulary = toy_world.VOCABULARY
    assert vocabulary.vocab_size % 16 == 0 and vocabulary.vocab_size <= 288
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert sorted(vocabulary.encode(" ".join(lexicon.all_words()))) == list(range(3, 3 + len(lexicon.all_words())))


def test_vocabulary_round_trip_and_tensorflow_agree_on_every_word() -> None:
    vocabulary = toy_world.VOCABULARY
    text = " ".join(lexicon.all_words())
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert vocabulary.encode_tf(tf.constant(text)).numpy().tolist() == ids
    assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == text


def test_vocabulary_unknown_words_end_of_sequence_and_padding() -> None:
    vocabulary = toy_world.VOCABULARY
    assert vocabulary.encode(" red  zebra ") == [vocabulary.encode("red")[0], 2]
    assert vocabulary.encode_tf(tf.constant(" red  zebra ")).numpy().tolist() == vocabulary.encode("red zebra")
    red, cat = vocabulary.encode("red cat")
    rows = [[red, cat, 1, cat], [red, 1, 0, 0], [red, 2, cat, 0]]
    expected = ["red cat", "red", "red <unk> cat"]
    assert [vocabulary.decode(row) for row in rows] == expected
    assert [text.decode() for text in vocabulary.decode_tf(tf.constant(rows)).numpy()] == expected
    assert vocabulary.decode([10_000]) == "<unk>"


def test_vocabulary_equality_pickle_and_repeated_words() -> None:
    words = lexicon.all_words()
    copy = pickle.loads(pickle.dumps(toy_world.VOCABULARY))
    assert toy_world.WordVocabulary(words) == toy_world.VOCABULARY == copy
    assert hash(copy) == hash(toy_world.VOCABULARY)
    assert copy.encode_tf(tf.constant("red cat")).numpy().tolist() == copy.encode("red cat")
    assert toy_world.WordVocabulary(words[::-1]) != toy_world.VOCABULARY
    with pytest.raises(ValueError, match=r"\['red'\] more than once"):
        toy_world.WordVocabulary(["red", "cat", "red"])


# The world


def test_lexicon_has_the_documented_extent() -> None:
    assert [len(nouns) for nouns in lexicon.NOUNS_BY_CLASS.values()] == [4, 4, 4, 4]
    assert len(lexicon.ADJECTIVES) * len(lexicon.NOUNS) * len(lexicon.VERBS) == 768
    assert len(lexicon.FACTS) == 48 == len(set(lexicon.FACTS.values()))
    assert len(lexicon.AMBIGUOUS_WORDS) == 8 and all(len(words) == 6 for words in lexicon.DOMAINS.values())
    assert lexicon.translate(("red", "cat", "moves"), "de") == "deren tacen sevomen"
    assert lexicon.translate(("red", "cat", "moves"), "fr") == "taceau dereau sevomeau"


# Tasks through seqio


@pytest.mark.parametrize("task", ALL_TASKS)
def test_task_builds_whole_and_known_through_seqio(task: str) -> None:
    vocabulary = toy_world.VOCABULARY
    for split in splits_of(task):
        expected = toy_world.examples(task, split)
        provider = seqio.get_mixture_or_task(task)
        assert provider.num_input_examples(split) == len(expected)
        dataset = provider.get_dataset(toy_world.FEATURE_LENGTHS, split, shuffle=False)
        for (source, target), row in zip(expected, itertools.islice(dataset.as_numpy_iterator(), 300), strict=False):
            assert row["inputs"].tolist() == [*vocabulary.encode(source), 1]
            assert row["targets"].tolist() == [*vocabulary.encode(target), 1]


@pytest.mark.parametrize("task", ALL_TASKS)
def test_no_example_is_truncated_or_holds_an_unknown_word(task: str) -> None:
    for split in splits_of(task):
        for source, target in toy_world.examples(task, split):
            source_ids, target_ids = toy_world.VOCABULARY.encode(source), toy_world.VOCABULARY.encode(target)
            assert len(source_ids) + 1 <= toy_world.FEATURE_LENGTHS["inputs"], source
            assert 1 <= len(target_ids) < toy_world.FEATURE_LENGTHS["targets"], target
            assert toy_world.VOCABULARY.unk_id not in (*source_ids, *target_ids), source


def test_mixtures_hold_the_documented_tasks_and_weights() -> None:
    pretraining = seqio.get_mixture_or_task("toy_pretraining")
    assert {task.name: pretraining.get_rate(task) for task in pretraining.tasks} == {
        f"toy_pretrain_{name}": weight for name, weight in toy_world.PRETRAINING_WEIGHTS.items()
    }
    in_context = seqio.get_mixture_or_task("toy_in_context")
    assert {task.name for task in in_context.tasks} == set(toy_world.IN_CONTEXT_TASKS)
    for task in (*in_context.tasks, *map(seqio.get_mixture_or_task, toy_world.TARGET_TASKS)):
        assert [fn.__name__ for fn in task.metric_fns] == [
            toy_world.METRIC_FNS[toy_world.HEADLINE_METRICS[task.name]].__name__
        ]


def test_pretraining_mixture_repeats_without_end_and_in_a_fixed_order() -> None:
    def head() -> list[list[int]]:
        dataset = seqio.get_mixture_or_task("toy_pretraining").get_dataset(
            toy_world.FEATURE_LENGTHS, "validation", shuffle=True, seed=7, num_epochs=None
        )
        return [row["inputs"].tolist() for row in itertools.islice(dataset.as_numpy_iterator(), 50)]

    first = head()
    assert first == head() and len({tuple(row) for row in first}) > 40


# Splits


@pytest.mark.parametrize("task", ALL_TASKS)
def test_splits_of_a_task_share_no_prompt(task: str) -> None:
    for one, two in itertools.combinations(splits_of(task), 2):
        shared = prompts(task, one) & prompts(task, two)
        if task in PRETRAINING_TASKS:  # prompts without an exemplar are few and may repeat
            shared = {prompt for prompt in shared if " ; " in prompt}
        assert not shared


@pytest.mark.parametrize("task", toy_world.IN_CONTEXT_TASKS)
def test_in_context_prompts_are_distinct_and_never_in_pretraining(task: str) -> None:
    seen = set().union(*(prompts(name, "train") for name in PRETRAINING_TASKS))
    for split, size in generators.IN_CONTEXT_SIZES.items():
        examples = toy_world.examples(task, split)
        assert len(examples) == size == len(prompts(task, split))
        assert all(source.count(" ; ") == 1 for source, _ in examples)
        assert not prompts(task, split) & seen


def test_in_context_test_prompts_are_not_pretraining_prompts_by_rule() -> None:
    for task in toy_world.IN_CONTEXT_TASKS:
        assert all(zlib.crc32(prompt.encode()) % 8 == 1 for prompt in prompts(task, "test"))
    for task in PRETRAINING_TASKS:
        assert all(zlib.crc32(p.encode()) % 8 > 1 for p in prompts(task, "train") if " ; " in p)


def test_target_prompts_are_not_pretraining_examples() -> None:
    seen = {
        example
        for task in PRETRAINING_TASKS
        for split in ("train", "validation")
        for example in toy_world.examples(task, split)
    }
    for task, split in itertools.product(toy_world.TARGET_TASKS, ("validation", "test")):
        assert not seen & set(toy_world.examples(task, split))


# Held-out combinations


def test_rtec_holds_out_sentences_and_noun_class_pairs() -> None:
    train = [parse_rtec(prompt) for prompt in prompts("toy_rtec", "train")]
    train_texts = {text for text, _ in train}
    train_pairs = {(text[1], hypothesis[1]) for text, hypothesis in train}
    for split in ("validation", "test"):
        for text, hypothesis in map(parse_rtec, prompts("toy_rtec", split)):
            assert hypothesis[1] in lexicon.CLASSES
            assert text not in train_texts or (text[1], hypothesis[1]) not in train_pairs
            assert (text[1] in ("hen", "fig", "hoe", "bike")) == ((text[1], hypothesis[1]) not in train_pairs)


def test_rtec_training_has_every_word_every_class_and_every_pair_of_words() -> None:
    train = [parse_rtec(prompt) for prompt in prompts("toy_rtec", "train")]
    texts = {text for text, _ in train}
    assert {(a, n) for a, n, _ in texts} == set(itertools.product(lexicon.ADJECTIVES, lexicon.NOUNS))
    assert {(n, v) for _, n, v in texts} == set(itertools.product(lexicon.NOUNS, lexicon.VERBS))
    assert {hypothesis[1] for _, hypothesis in train} == {*lexicon.CLASSES, *lexicon.NOUNS}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_rtec_answers_are_entailment_and_not_predictable_from_the_hypothesis(split: str) -> None:
    counts: collections.Counter = collections.Counter()
    by_noun: collections.Counter = collections.Counter()
    for prompt, answer in toy_world.examples("toy_rtec", split):
        text, (adjective, head, verb) = parse_rtec(prompt)
        assert (answer == "True") == (text in {(adjective, noun, verb) for noun in entailing(head)})
        counts[lexicon.CLASS_OF.get(head, head), answer] += 1
        by_noun[text[1], answer] += 1
    assert set(counts.values()) == {generators.RTEC_SIZES[split] // 8}
    for noun in lexicon.NOUNS:
        total = by_noun[noun, "True"] + by_noun[noun, "False"]
        assert abs(by_noun[noun, "True"] / total - 0.5) < (0.1 if split == "train" else 0.3), noun


def entailing(head: str) -> tuple[str, ...]:
    return lexicon.NOUNS_BY_CLASS.get(head, (head,))


@pytest.mark.parametrize("split", ["validation", "test"])
def test_rtec_held_out_nouns_are_a_quarter(split: str) -> None:
    nouns = [parse_rtec(prompt)[0][1] for prompt, _ in toy_world.examples("toy_rtec", split)]
    assert sum(noun in lexicon.RTEC_HELD_OUT_NOUNS for noun in nouns) == len(nouns) // 4


def test_enfr_holds_out_pairs_and_no_word() -> None:
    pairs, words = {}, {}
    for split in ("train", "validation", "test"):
        sentences = [prompt.split()[1:4] for prompt, _ in toy_world.examples("toy_enfr", split)]
        pairs[split] = {(adjective, noun) for adjective, noun, _ in sentences}
        words[split] = {word for sentence in sentences for word in sentence}
    for one, two in itertools.combinations(pairs, 2):
        assert not pairs[one] & pairs[two]
    assert words["train"] == words["validation"] == words["test"]
    assert words["train"] == {*lexicon.ADJECTIVES, *lexicon.NOUNS, *lexicon.VERBS}


def test_pretraining_translates_half_of_french_and_no_held_out_pair() -> None:
    english = {lexicon.foreign_word(w, "fr"): w for w in (*lexicon.ADJECTIVES, *lexicon.NOUNS, *lexicon.VERBS)}
    translated = {
        english[word]
        for _, answer in toy_world.examples("toy_pretrain_translate", "train")
        for word in answer.split()
        if word in english
    }
    assert translated == {*lexicon.ADJECTIVES[::2], *lexicon.NOUNS[::2], *lexicon.VERBS[::2]}
    pairs = {tuple(answer.split()[:2]) for _, answer in toy_world.examples("toy_pretrain_translate", "train")}
    for split in ("validation", "test"):
        assert not pairs & {tuple(answer.split()[:2]) for _, answer in toy_world.examples("toy_enfr", split)}
    raw = {w for example in toy_world.examples("toy_pretrain_raw", "train") for w in " ".join(example).split()}
    assert set(english) <= raw


# Balance


def test_pretraining_answers_are_balanced_within_every_label_set() -> None:
    for name, label_sets in (("nli3", lexicon.LABELS_3), ("nli2", lexicon.LABELS_2), ("wic", lexicon.LABELS_WIC)):
        examples = toy_world.examples(f"toy_pretrain_{name}", "train")
        counts = collections.Counter(answer for _, answer in examples)
        assert set(counts) == {label for labels in label_sets for label in labels}
        share = 1 / sum(map(len, label_sets))
        for label, count in counts.items():
            assert abs(count / len(examples) - share) < 6 * math.sqrt(share / len(examples)), label


def test_true_and_false_are_answers_of_pretraining_before_the_target() -> None:
    answers = collections.Counter(
        answer for prompt, answer in toy_world.examples("toy_pretrain_nli2", "train") if "verdict:" in prompt.split()
    )
    assert answers["True"] > 1000 and answers["False"] > 1000


def test_no_prompt_has_two_answers_in_the_evaluation_tasks() -> None:
    for task in (*toy_world.IN_CONTEXT_TASKS, *toy_world.TARGET_TASKS):
        answers: dict[str, str] = {}
        for split in splits_of(task):
            for prompt, answer in toy_world.examples(task, split):
                assert answers.setdefault(prompt, answer) == answer


# Golden texts, determinism


@pytest.mark.parametrize(("task", "split"), list(GOLDEN))
def test_golden_example(task: str, split: str) -> None:
    exemplar, query, answer = GOLDEN[task, split]
    assert toy_world.examples(task, split)[0] == (f"{exemplar} {query}".strip(), answer)


def test_golden_examples_cover_every_task() -> None:
    assert {task for task, _ in GOLDEN} == set(ALL_TASKS)


def test_another_process_generates_the_same_examples() -> None:
    names = ("toy_pretrain_nli2", "toy_wic", "toy_rtec", "toy_enfr")
    script = (
        "import zlib\nfrom promot_t5x.tasks import toy_world\n"
        f"print([zlib.crc32(repr(toy_world.examples(n, 'validation')).encode()) for n in {names}])"
    )
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    here = [zlib.crc32(repr(toy_world.examples(name, "validation")).encode()) for name in names]
    assert out.strip().splitlines()[-1] == str(here)
    assert generators.pretraining_examples("qa", "train") == list(toy_world.examples("toy_pretrain_qa", "train"))


# Metrics


@pytest.mark.parametrize("task", (*toy_world.IN_CONTEXT_TASKS, *toy_world.TARGET_TASKS))
def test_an_oracle_scores_100_and_a_constant_answer_its_share(task: str) -> None:
    provider, metric = seqio.get_mixture_or_task(task), toy_world.HEADLINE_METRICS[task]
    targets = [
        provider.postprocess_fn(answer, example={}, is_target=True) for _, answer in toy_world.examples(task, "test")
    ]
    (metric_fn,) = provider.metric_fns
    assert metric_fn(targets, [f" {t} ".strip() for t in targets]) == {metric: 100.0}
    assert metric_fn(targets, ["zebra"] * len(targets)) == {metric: 0.0}
    if metric == "accuracy":
        label = targets[0]
        assert metric_fn(targets, [label] * len(targets)) == {metric: 100 * targets.count(label) / len(targets)}
    if task == "toy_rtec":
        assert metric_fn(targets, ["True"] * len(targets)) == {"accuracy": 50.0}


def test_unigram_f1_against_values_by_hand() -> None:
    for target, prediction, f1 in (
        ("a b c", "c b a", 1.0),  # order does not count
        ("a b c", "a", 2 * 1 * (1 / 3) / (1 + 1 / 3)),  # precision 1, recall 1/3
        ("a a b", "a b b", 2 / 3),  # each word counts as often as both have it
        ("a b", "c", 0.0),
        ("a", "", 0.0),
    ):
        assert toy_world.unigram_f1([target], [prediction])["f1"] == pytest.approx(100 * f1, abs=1e-10)
    assert toy_world.unigram_f1(["a b", "c"], ["a b", "d"]) == {"f1": 50.0}


def test_predictions_are_stripped() -> None:
    provider = seqio.get_mixture_or_task("toy_qa_long")
    assert provider.postprocess_fn(" it is borburg ", example={}, is_target=False) == "it is borburg"
