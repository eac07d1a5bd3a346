"""Examples of the toy world: question families, the one-shot layout, and the splits of every task.

A family asks questions in a style (label set, language, form of the answer). The layout `x0 y0 ; x1` -> `y1` shows one
answered question, the exemplar, and asks another in the same style, so only the exemplar reveals the style. A checksum
of a one-shot prompt's text decides which split it may be in, so pretraining, validation and test never share a prompt.

Random numbers come from `random.Random.random`, whose sequence Python guarantees for a given seed, so the splits are
the same on every machine and with every version of numpy.
"""

import dataclasses
import itertools
import random
import zlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from promot_t5x.tasks import toy_lexicon as lexicon

Example = tuple[str, str]
"""Input text and target text."""

T = TypeVar("T")

PRETRAINING_SIZES = {"train": 40_000, "validation": 500}
IN_CONTEXT_SIZES = {"validation": 200, "test": 200}
RTEC_SIZES = {"train": 5_000, "validation": 256, "test": 512}
ENFR_SIZES = {"train": 480, "validation": 96, "test": 192}


@dataclasses.dataclass(frozen=True)
class Family:
    """A kind of question.

    Attributes:
      ask: draws one question in a given style and returns it with its answer.
      styles: the styles, drawn uniformly; a style that is listed several times is drawn more often.
      exemplar_share: share of pretraining examples that begin with an exemplar.
    """

    ask: Callable[[random.Random, Any], Example]
    styles: Sequence[Any]
    exemplar_share: float = 0.85


def seeded(task: str, split: str, seed: int = 0) -> random.Random:
    """The random generator of one split of one task; its seed is a checksum, the same in every process."""
    return random.Random(zlib.crc32(f"{task}/{split}/{seed}".encode()))


def _pick(rng: random.Random, options: Sequence[T]) -> T:
    return options[int(rng.random() * len(options))]


def _pick_other(rng: random.Random, options: Sequence[T], taken: T) -> T:
    return _pick(rng, [option for option in options if option != taken])


def _pick_distinct(rng: random.Random, options: Sequence[T], count: int) -> list[T]:
    remaining = list(options)
    return [remaining.pop(int(rng.random() * len(remaining))) for _ in range(count)]


def _sentence(rng: random.Random) -> lexicon.Sentence:
    return _pick(rng, lexicon.ADJECTIVES), _pick(rng, lexicon.NOUNS), _pick(rng, lexicon.VERBS)


def _changed(rng: random.Random, sentence: lexicon.Sentence) -> lexicon.Sentence:
    """Changes one word of the sentence (half of the time) or all three."""
    position = _pick(rng, (0, 1, 2)) if rng.random() < 0.5 else None
    words = [
        _pick_other(rng, options, word) if position in (None, i) else word
        for i, (options, word) in enumerate(
            zip((lexicon.ADJECTIVES, lexicon.NOUNS, lexicon.VERBS), sentence, strict=True)
        )
    ]
    return words[0], words[1], words[2]


def _ask_nli3(rng: random.Random, labels: Sequence[str]) -> Example:
    context = _sentence(rng)
    answer = _pick(rng, (0, 1, 2))
    adjective, noun, verb = _changed(rng, context) if answer == 2 else context
    claim = f"{adjective} {noun} not {verb}" if answer == 1 else f"{adjective} {noun} {verb}"
    return f"context: {' '.join(context)} claim: {claim} label:", labels[answer]


def _ask_nli2(rng: random.Random, style: tuple[Sequence[str], Sequence[str]]) -> Example:
    (first, second, last), labels = style
    premise = _sentence(rng)
    answer = _pick(rng, (0, 1))
    hypothesis = _changed(rng, premise) if answer else premise
    return f"{first} {' '.join(premise)} {second} {' '.join(hypothesis)} {last}", labels[answer]


def _ask_wic(rng: random.Random, labels: Sequence[str]) -> Example:
    word = _pick(rng, tuple(lexicon.AMBIGUOUS_WORDS))
    first, second = _pick_distinct(rng, lexicon.AMBIGUOUS_WORDS[word], 2)
    answer = _pick(rng, (0, 1))
    if answer == 0:
        contexts = _pick_distinct(rng, lexicon.DOMAINS[first], 4)
    else:
        contexts = _pick_distinct(rng, lexicon.DOMAINS[first], 2) + _pick_distinct(rng, lexicon.DOMAINS[second], 2)
    one, two, three, four = contexts
    return f"word: {word} first: {one} {two} second: {three} {four} same?", labels[answer]


def _ask_qa(rng: random.Random, answer_form: str) -> Example:
    relation, country = _pick(rng, lexicon.RELATIONS), _pick(rng, lexicon.COUNTRIES)
    return f"ask: {relation} of {country} reply:", answer_form.format(lexicon.FACTS[relation, country])


def _ask_kind(rng: random.Random, labels: Sequence[str] | None) -> Example:
    noun = _pick(rng, lexicon.NOUNS)
    noun_class = lexicon.CLASS_OF[noun]
    if labels is None:
        return f"ask: kind of {noun} reply:", noun_class
    answer = _pick(rng, (0, 1))
    claimed_class = _pick_other(rng, lexicon.CLASSES, noun_class) if answer else noun_class
    return f"ask: kind of {noun} is {claimed_class} reply:", labels[answer]


def _ask_translate(rng: random.Random, style: tuple[str, bool]) -> Example:
    language, is_reversed = style
    sentence = _sentence(rng)
    while language == "fr" and not lexicon.french_in_pretraining(sentence):
        sentence = _sentence(rng)
    source, target = " ".join(sentence), lexicon.translate(sentence, language)
    if is_reversed:
        source, target = target, source
    return f"translate: {source} =", target


def _ask_summary(rng: random.Random, kind: str) -> Example:
    nouns, verbs = _pick_distinct(rng, lexicon.NOUNS, 3), _pick_distinct(rng, lexicon.VERBS, 3)
    clauses = [f"{noun} {verb}" for noun, verb in zip(nouns, verbs, strict=True)]
    if kind != "key":
        return f"article: {' . '.join(clauses)} keywords:", " ".join(nouns if kind == "nouns" else verbs)
    key = _pick(rng, (0, 1, 2))
    article = " . ".join(f"key {clause}" if i == key else clause for i, clause in enumerate(clauses))
    return f"article: {article} summary:", clauses[key]


def _ask_seqop(rng: random.Random, operation: str) -> Example:
    digits = [_pick(rng, lexicon.DIGITS) for _ in range(4)]
    result = {
        "copy": digits,
        "reverse": digits[::-1],
        "sort": sorted(digits),
        "first2": digits[:2],
        "last2": digits[-2:],
    }[operation]
    return f"{operation}: {' '.join(digits)} output:", " ".join(result)


def _ask_raw(rng: random.Random, language: str) -> Example:
    """Running text of two alternating sentences, cut off in the second round, which determines the rest."""
    sentences = [_sentence(rng), _sentence(rng)]
    texts = [" ".join(s) if language == "en" else lexicon.translate(s, language) for s in sentences]
    words = " . ".join(texts * 3).split()
    cut = _pick(rng, range(8, 16))
    return " ".join(words[:cut]), " ".join(words[cut : cut + 4])


FAMILIES: dict[str, Family] = {
    "nli3": Family(_ask_nli3, lexicon.LABELS_3),
    "nli2": Family(_ask_nli2, tuple(itertools.product(lexicon.NLI2_TEMPLATES, lexicon.LABELS_2))),
    "wic": Family(_ask_wic, lexicon.LABELS_WIC),
    "qa": Family(_ask_qa, ("{}", "it is {}")),
    "kind": Family(_ask_kind, (None, None, *lexicon.LABELS_KIND)),
    # de : ro : fr = 4 : 4 : 1.5, a fifth of de and ro translated back into English.
    "translate": Family(
        _ask_translate,
        (("de", False), ("ro", False)) * 32 + (("de", True), ("ro", True)) * 8 + (("fr", False),) * 15,
    ),
    "summary": Family(_ask_summary, ("key", "key", "nouns", "verbs")),
    "seqop": Family(_ask_seqop, lexicon.SEQUENCE_OPERATIONS),
    "raw": Family(_ask_raw, ("en", *lexicon.LANGUAGES), exemplar_share=0.0),
}

IN_CONTEXT_FAMILIES: dict[str, Family] = {
    "nli3": FAMILIES["nli3"],
    "wic": FAMILIES["wic"],
    "qa_short": Family(_ask_qa, ("{}",)),
    "qa_long": Family(_ask_qa, ("it is {}",)),
    "en_de": Family(_ask_translate, (("de", False),)),
    "en_ro": Family(_ask_translate, (("ro", False),)),
    "key_sentence": Family(_ask_summary, ("key",)),
    "keywords": Family(_ask_summary, ("nouns", "verbs")),
}


def one_shot(rng: random.Random, family: Family) -> Example:
    """Draws a style and two different questions in that style; returns `x0 y0 ; x1` and `y1`.

    >>> one_shot(random.Random(3), IN_CONTEXT_FAMILIES["qa_long"])
    ('ask: river of estia reply: it is lorflow ; ask: river of halia reply:', 'it is ismflow')
    """
    style = _pick(rng, family.styles)
    exemplar, exemplar_answer = family.ask(rng, style)
    query, answer = family.ask(rng, style)
    while query == exemplar:
        query, answer = family.ask(rng, style)
    return f"{exemplar} {exemplar_answer} ; {query}", answer


def split_of(prompt: str) -> str:
    """The only split that may contain this prompt.

    A checksum of the text assigns an eighth of the one-shot prompts to `validation`, an eighth to `test`, the others to
    `train`. A prompt without an exemplar is always in `train`.
    """
    if " ; " not in prompt:
        return "train"
    return {0: "validation", 1: "test"}.get(zlib.crc32(prompt.encode()) % 8, "train")


def pretraining_examples(name: str, split: str) -> list[Example]:
    """The pretraining examples of a family, most of them one-shot.

    Args:
      name: a key of FAMILIES.
      split: `train` or `validation`.
    """
    family, rng = FAMILIES[name], seeded(f"pretraining/{name}", split)
    examples: list[Example] = []
    while len(examples) < PRETRAINING_SIZES[split]:
        if rng.random() < family.exemplar_share:
            example = one_shot(rng, family)
            if split_of(example[0]) != split:
                continue
        else:
            example = family.ask(rng, _pick(rng, family.styles))
        examples.append(example)
    return examples


def in_context_examples(name: str, split: str) -> list[Example]:
    """Distinct one-shot prompts of an evaluation task, none of which occurs in pretraining.

    Args:
      name: a key of IN_CONTEXT_FAMILIES.
      split: `validation` or `test`.
    """
    family, rng = IN_CONTEXT_FAMILIES[name], seeded(f"in_context/{name}", split)
    examples: dict[str, str] = {}
    while len(examples) < IN_CONTEXT_SIZES[split]:
        prompt, answer = one_shot(rng, family)
        if split_of(prompt) == split:
            examples[prompt] = answer
    return list(examples.items())


def _ask_rtec(
    rng: random.Random, head_class: str, head_is_noun: bool, entailed: bool
) -> tuple[lexicon.Sentence, lexicon.Sentence]:
    """Draws a hypothesis about a class, or about one noun of it, and a text that entails it or not.

    A text that does not entail it has another head (half of the time), another adjective or verb, or differs in all
    three.
    """
    adjective, verb = _pick(rng, lexicon.ADJECTIVES), _pick(rng, lexicon.VERBS)
    members = lexicon.NOUNS_BY_CLASS[head_class]
    head = _pick(rng, members) if head_is_noun else head_class
    entailing = (head,) if head_is_noun else members
    others = [noun for noun in lexicon.NOUNS if noun not in entailing]
    change = "none" if entailed else _pick(rng, ("head", "head", "head", "head", "adjective", "verb", "all", "all"))
    text = (
        _pick_other(rng, lexicon.ADJECTIVES, adjective) if change in ("adjective", "all") else adjective,
        _pick(rng, others if change in ("head", "all") else entailing),
        _pick_other(rng, lexicon.VERBS, verb) if change in ("verb", "all") else verb,
    )
    return text, (adjective, head, verb)


def _rtec_example(text: lexicon.Sentence, hypothesis: lexicon.Sentence, entailed: bool) -> Example:
    return f"text: {' '.join(text)} question: {' '.join(hypothesis)} verdict:", "True" if entailed else "False"


def rtec_train_examples() -> list[Example]:
    """The training split of `toy_rtec`: as many True as False answers for every class in the hypothesis.

    A quarter of the hypotheses repeat a noun instead of its class. Texts about RTEC_HELD_OUT_NOUNS occur only with
    these, so such a noun occurs with either answer but never together with a class.
    """
    rng = seeded("rtec", "train")
    examples: list[Example] = []
    cells = list(itertools.product(lexicon.CLASSES, (True, False)))
    while len(examples) < RTEC_SIZES["train"]:
        head_class, entailed = cells[len(examples) % len(cells)]
        head_is_noun = rng.random() < 0.25
        text, hypothesis = _ask_rtec(rng, head_class, head_is_noun, entailed)
        unseen_pair = text[1] in lexicon.RTEC_HELD_OUT_NOUNS and not head_is_noun
        if not (unseen_pair or lexicon.rtec_held_out_sentence(text)):
            examples.append(_rtec_example(text, hypothesis, entailed))
    return examples


def rtec_held_out_examples(split: str) -> list[Example]:
    """`validation` or `test` of `toy_rtec`: hypotheses about classes, in combinations that training lacks.

    For every class and answer a quarter of the texts are about a held-out noun (whose class is known from pretraining
    alone); the rest are held-out sentences about other nouns. Test has twice as many examples as validation.
    """
    per_cell = (RTEC_SIZES["validation"] + RTEC_SIZES["test"]) // (2 * len(lexicon.CLASSES))
    rng = seeded("rtec", "held_out")
    examples: list[Example] = []
    for head_class, entailed, held_out_noun in itertools.product(lexicon.CLASSES, (True, False), (True, False)):
        quota = per_cell // 4 if held_out_noun else per_cell - per_cell // 4
        cell: dict[Example, None] = {}
        while len(cell) < quota:
            text, hypothesis = _ask_rtec(rng, head_class, False, entailed)
            is_held_out_noun = text[1] in lexicon.RTEC_HELD_OUT_NOUNS
            if is_held_out_noun == held_out_noun and (held_out_noun or lexicon.rtec_held_out_sentence(text)):
                cell[_rtec_example(text, hypothesis, entailed)] = None
        validation = quota // 3
        examples += list(cell)[:validation] if split == "validation" else list(cell)[validation:]
    return examples


def enfr_examples(split: str) -> list[Example]:
    """A split of `toy_enfr`: every sentence whose (adjective, noun) pair belongs to the split, shuffled."""
    sentences = itertools.product(lexicon.ADJECTIVES, lexicon.NOUNS, lexicon.VERBS)
    examples = [
        (f"translate: {' '.join(sentence)} =", lexicon.translate(sentence, "fr"))
        for sentence in sentences
        if lexicon.enfr_split(*sentence[:2]) == split
    ]
    return _pick_distinct(seeded("enfr", split), examples, len(examples))
