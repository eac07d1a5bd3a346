"""The toy world's words and facts, and the combinations that its target tasks hold out.

Everything is fixed by rules, never random, because a pretrained checkpoint has these facts in its weights: nouns and
their classes, the sentences ADJECTIVE NOUN VERB, three pseudo-languages, the facts about invented countries, ambiguous
words, and the label sets of answers.
"""

Sentence = tuple[str, str, str]
"""Adjective, noun, verb."""

NOUNS_BY_CLASS: dict[str, tuple[str, ...]] = {
    "animal": ("cat", "dog", "cow", "hen"),
    "fruit": ("apple", "pear", "plum", "fig"),
    "tool": ("saw", "axe", "rake", "hoe"),
    "vehicle": ("car", "bus", "tram", "bike"),
}
CLASSES = tuple(NOUNS_BY_CLASS)
NOUNS = tuple(noun for nouns in NOUNS_BY_CLASS.values() for noun in nouns)
CLASS_OF = {noun: noun_class for noun_class, nouns in NOUNS_BY_CLASS.items() for noun in nouns}
VERBS = ("moves", "falls", "waits", "stops", "turns", "breaks")
ADJECTIVES = ("red", "big", "old", "new", "small", "green", "cold", "fast")

LANGUAGE_ENDINGS = {"de": "en", "ro": "ul", "fr": "eau"}
LANGUAGES = tuple(LANGUAGE_ENDINGS)

_STEMS = ("alb", "bor", "cim", "dov", "est", "far", "gor", "hal", "ism", "jur", "kel", "lor")
COUNTRIES = tuple(stem + "ia" for stem in _STEMS)
# Relation -> (ending of its values, multiplier, offset); multipliers prime to 12 make each relation a permutation.
_RELATION_RULES = {
    "capital": ("burg", 5, 1),
    "leader": ("man", 7, 2),
    "river": ("flow", 11, 3),
    "dish": ("pie", 1, 5),
}
RELATIONS = tuple(_RELATION_RULES)
FACTS: dict[tuple[str, str], str] = {
    (relation, country): _STEMS[(multiplier * i + offset) % len(_STEMS)] + ending
    for relation, (ending, multiplier, offset) in _RELATION_RULES.items()
    for i, country in enumerate(COUNTRIES)
}

DOMAINS: dict[str, tuple[str, ...]] = {
    "money": ("loan", "coin", "cash", "debt", "price", "fund"),
    "water": ("lake", "fish", "shore", "wave", "boat", "rain"),
    "music": ("song", "drum", "choir", "tune", "piano", "voice"),
    "sport": ("team", "ball", "goal", "race", "score", "coach"),
}
AMBIGUOUS_WORDS: dict[str, tuple[str, str]] = {
    "bank": ("money", "water"),
    "current": ("money", "water"),
    "note": ("money", "music"),
    "stake": ("money", "sport"),
    "bass": ("water", "music"),
    "pool": ("water", "sport"),
    "pitch": ("music", "sport"),
    "record": ("music", "sport"),
}

LABELS_3 = (("yes", "no", "maybe"), ("True", "False", "Neither"), ("good", "bad", "unsure"))
LABELS_2 = (("yes", "no"), ("True", "False"), ("good", "bad"), ("right", "wrong"))
LABELS_WIC = (("yes", "no"), ("True", "False"), ("same", "different"))
LABELS_KIND = (("yes", "no"), ("right", "wrong"))

DIGITS = tuple("0123456789")
SEQUENCE_OPERATIONS = ("copy", "reverse", "sort", "first2", "last2")
NLI2_TEMPLATES = (
    ("premise:", "hypothesis:", "answer:"),
    ("text:", "question:", "verdict:"),
    ("context:", "claim:", "answer:"),
)

RTEC_HELD_OUT_NOUNS = NOUNS[3::4]
"""One noun of each class: training has no text about it with a hypothesis about a class."""


def foreign_word(word: str, language: str) -> str:
    """The pseudo-word for an English word: its letters reversed, plus the language's ending.

    >>> [foreign_word("cat", language) for language in LANGUAGES]
    ['tacen', 'tacul', 'taceau']
    """
    return word[::-1] + LANGUAGE_ENDINGS[language]


def translate(sentence: Sentence, language: str) -> str:
    """The sentence in a pseudo-language: `de` keeps the word order, `ro` and `fr` put the noun first.

    >>> translate(("red", "cat", "moves"), "ro")
    'tacul derul sevomul'
    """
    adjective, noun, verb = (foreign_word(word, language) for word in sentence)
    return f"{adjective} {noun} {verb}" if language == "de" else f"{noun} {adjective} {verb}"


def rtec_held_out_sentence(sentence: Sentence) -> bool:
    """Whether `toy_rtec` holds this text out of its training split.

    Half of the combinations are held out, in such a way that every pair of words (adjective and noun, noun and verb,
    adjective and verb) still occurs in training.
    """
    adjective, noun, verb = sentence
    return (ADJECTIVES.index(adjective) + NOUNS.index(noun) + VERBS.index(verb)) % 2 == 0


def enfr_split(adjective: str, noun: str) -> str:
    """The split of `toy_enfr` that has this pair: of eight diagonals two are test and one is validation.

    Every adjective and every noun occurs in each split, in pairs that no other split has.
    """
    diagonal = (ADJECTIVES.index(adjective) + NOUNS.index(noun)) % 8
    return ("test", "test", "validation")[diagonal] if diagonal < 3 else "train"


def french_in_pretraining(sentence: Sentence) -> bool:
    """Whether pretraining may translate this sentence into `fr`.

    It covers every second noun, verb and adjective, except the pairs that `toy_enfr` validates and tests on.
    """
    adjective, noun, verb = sentence
    is_covered = adjective in ADJECTIVES[::2] and noun in NOUNS[::2] and verb in VERBS[::2]
    return is_covered and enfr_split(adjective, noun) == "train"


def all_words() -> tuple[str, ...]:
    """Every word of the toy world once, in the fixed order that determines the vocabulary's ids."""
    english = (*NOUNS, *VERBS, *ADJECTIVES)
    templates = (
        "context: claim: label: premise: hypothesis: answer: text: question: verdict: word: first: second: same? "
    )
    templates += "ask: reply: of it is kind translate: = article: key . summary: keywords: output: ; not"
    return tuple(
        dict.fromkeys(
            (
                *english,
                *(foreign_word(word, language) for language in LANGUAGES for word in english),
                *CLASSES,
                *COUNTRIES,
                *RELATIONS,
                *FACTS.values(),
                *AMBIGUOUS_WORDS,
                *(word for words in DOMAINS.values() for word in words),
                *(label for labels in (*LABELS_3, *LABELS_2, *LABELS_WIC) for label in labels),
                *templates.split(),
                *(operation + ":" for operation in SEQUENCE_OPERATIONS),
                *DIGITS,
            )
        )
    )
