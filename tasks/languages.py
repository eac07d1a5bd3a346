"""Words and answers in languages other than English: tokenizers for BLEU and ROUGE, and a normal form of answers.

English keeps what the field compares with: sacrebleu's `intl`, rouge-score's own tokenizer (a to z and digits, all else
separates words) and SQuAD's normal form. In other scripts these see no words, or a whole sentence as one.
"""

import dataclasses
import functools
import re
import string
import unicodedata

from etils import epy

with epy.lazy_imports():
    import sacrebleu

# Scripts written without spaces between words, as the names of their characters begin in Unicode.
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")

# Tokenizers of sacrebleu; "char" makes every character a word.
_OWN = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
_UNSPACED_LANGUAGES = ("bo", "dz", "km", "lo", "my", "th")

# ISO 639-1; then what mT5 was trained on besides: Cebuano, Filipino, Hawaiian, Hmong, and the old code of Hebrew.
_CODES = frozenset(
    """
    aa ab ae af ak am an ar as av ay az ba be bg bi bm bn bo br bs ca ce ch co cr cs cu cv cy da de dv dz ee el en eo
    es et eu fa ff fi fj fo fr fy ga gd gl gn gu gv ha he hi ho hr ht hu hy hz ia id ie ig ii ik io is it iu ja jv ka kg
    ki kj kk kl km kn ko kr ks ku kv kw ky la lb lg li ln lo lt lu lv mg mh mi mk ml mn mr ms mt my na nb nd ne ng nl nn
    no nr nv ny oc oj om or os pa pi pl ps pt qu rm rn ro ru rw sa sc sd se sg si sk sl sm sn so sq sr ss st su sv sw ta
    te tg th ti tk tl tn to tr ts tt tw ty ug uk ur uz ve vi vo wa wo xh yi yo za zh zu
    ceb fil haw hmn iw
    """.split()
)

_ZERO_WIDTH_SPACE = "\u200b"  # ends a word, though in the category of joiners

# Codes of three letters for languages that metrics treat in their own way.
_TWO_LETTERS = {"eng": "en", "jpn": "ja", "kor": "ko", "tha": "th", "lao": "lo", "khm": "km", "dzo": "dz"}
_TWO_LETTERS |= {"mya": "my", "bur": "my", "bod": "bo", "tib": "bo", "zho": "zh", "chi": "zh", "cmn": "zh", "yue": "zh"}


def primary(language: str) -> str:
    """The language of a tag such as "zh", "zh-Hant" or "zho".

    Raises:
      ValueError: it is no such tag, or of a language that is not in the list.

    >>> primary("zh-Hant"), primary("jpn")
    ('zh', 'ja')
    """
    match = re.fullmatch(r"([a-z]{2,3})([-_][A-Za-z0-9]+)*", language)
    code = _TWO_LETTERS.get(match[1], match[1]) if match else None
    if code not in _CODES:
        raise ValueError(f"Language {language!r} is unknown, expected a code of ISO 639-1 such as 'de', 'hi' or 'zh'.")
    return code


def bleu_tokenizer(language: str) -> str:
    """The name of sacrebleu's tokenizer for a language: its own for Chinese, Japanese and Korean, otherwise `intl`.

    Raises:
      ValueError: no such language, or its tokenizer is not installed.

    >>> bleu_tokenizer("zh"), bleu_tokenizer("th"), bleu_tokenizer("ro")
    ('zh', 'char', 'intl')
    """
    code = primary(language)
    name = _OWN.get(code, "char" if code in _UNSPACED_LANGUAGES else "intl")
    try:
        sacrebleu.BLEU(tokenize=name)
    except (ImportError, RuntimeError) as error:
        raise ValueError(
            f"BLEU in the language {language!r} needs sacrebleu's tokenizer {name}, which is not installed: "
            f"pip install 'sacrebleu[{code}]'."
        ) from error
    return name


@functools.lru_cache(maxsize=65536)
def _kind(character: str) -> str:
    """The part of a character in words: "word" for letters and digits, "single" for a letter that is a word alone.

    Characters of formatting, such as joiners and soft hyphens, are "ignored": a word equals itself without them.
    """
    if unicodedata.category(character) == "Cf" and character != _ZERO_WIDTH_SPACE:
        return "ignored"
    category = unicodedata.category(character)[0]
    if category == "L" and unicodedata.name(character, "").startswith(_UNSPACED):
        return "single"
    return {"L": "word", "N": "word", "M": "mark"}.get(category, "separator")


@dataclasses.dataclass(frozen=True)
class UnicodeWords:
    """A tokenizer for rouge-score: runs of letters, marks and digits, in lower case and NFKC.

    Where a script has no spaces between words, each letter is a word, with the marks that follow it.

    >>> UnicodeWords().tokenize("Die Größe, 2 नमस्ते。我爱你")
    ['die', 'größe', '2', 'नमस्ते', '我', '爱', '你']
    """

    def tokenize(self, text: str) -> list[str]:
        spaced, after_single = [], False
        for character in unicodedata.normalize("NFKC", text).lower():
            kind = _kind(character)
            if kind == "ignored":
                continue
            starts_word = kind == "single" or (kind == "word" and after_single)
            spaced.append(" " if kind == "separator" else " " + character if starts_word else character)
            if kind != "mark":
                after_single = kind == "single"
        return "".join(spaced).split()


def answer(text: str) -> str:
    """The normal form of an answer in any language: NFKC, lower case, no punctuation of any script, single spaces.

    >>> answer("¿Qué?  «Sí»。")
    'qué sí'
    """
    lowered = unicodedata.normalize("NFKC", text).lower()
    kept = (c for c in lowered if c not in string.punctuation and not unicodedata.category(c).startswith("P"))
    return " ".join("".join(kept).split())
