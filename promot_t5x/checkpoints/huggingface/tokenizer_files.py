"""The tokenizer in a Hugging Face folder: files with which transformers' AutoTokenizer gives our vocabulary's ids.

A SentencePiece vocabulary becomes spiece.model and a Unigram tokenizer.json, a list of words a WordLevel
tokenizer.json; next to both is a tokenizer_config.json. Neither transformers nor tokenizers is needed to write them.

tokenizer_config.json names PreTrainedTokenizerFast, the class that takes tokenizer.json as it is, in every version.
T5Tokenizer does not: transformers 5 takes only pieces and normalizer from the file and splits the text itself, so that
a piece `▁` comes between `<extra_id_0>` and a following full stop.
"""

import base64
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
from sentencepiece import sentencepiece_model_pb2 as protos

from promot_t5x.models.architecture import TOKEN_IDS
from promot_t5x.runtime import files, strict_json

_TOKENIZER, _CONFIG, _PIECES = "tokenizer.json", "tokenizer_config.json", "spiece.model"

_NAMES = (_PIECES, _TOKENIZER, _CONFIG, "special_tokens_map.json", "added_tokens.json")

_SENTINEL = re.compile(r"▁?(<extra_id_(\d+)>)")

_CLASS = {"tokenizer_class": "PreTrainedTokenizerFast"}

# Generated when the module is imported, so type checkers do not see it.
_Model: Any = getattr(protos, "ModelProto")  # noqa: B009

_Piece = _Model.SentencePiece


class UnwritableVocabularyError(ValueError):
    """A vocabulary for which there are no tokenizer files that give the same ids."""


def of_vocabulary(vocabulary: Any) -> dict[str, bytes]:
    """The files of a seqio vocabulary, by name.

    Args:
      vocabulary: a SentencePieceVocabulary, or one with an attribute `words`: the word of every id, such as
        `toy_world.WordVocabulary`.

    Raises:
      UnwritableVocabularyError: it is neither, or does something that tokenizer.json cannot express.
    """
    if hasattr(vocabulary, "sp_model"):
        return of_sentencepiece(vocabulary.sp_model, vocabulary.extra_ids)
    if hasattr(vocabulary, "words"):
        return of_words(vocabulary.words, vocabulary.unk_id)
    raise UnwritableVocabularyError(f"{type(vocabulary).__name__} is neither a SentencePiece model nor a list of words")


def of_sentencepiece(model: bytes, extra_ids: int = 0) -> dict[str, bytes]:
    """The files of a SentencePiece model.

    A sentinel takes the white space before it with it, as its piece `▁<extra_id_0>` does in seqio.

    Args:
      model: the model, including the sentinels that were added to its own pieces, as in seqio's `sp_model`.
      extra_ids: the number of those sentinels, its last pieces; spiece.model is without them.

    Raises:
      UnwritableVocabularyError: the model is not of T5's kind.
    """
    proto = _Model.FromString(model)
    _check_kind(proto)
    names = [_SENTINEL.sub(r"\1", piece.piece) for piece in proto.pieces]
    sentinels = [i for i, piece in enumerate(proto.pieces) if piece.type == _Piece.USER_DEFINED]
    special = [i for i, piece in enumerate(proto.pieces) if piece.type in (_Piece.CONTROL, _Piece.UNKNOWN)]
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    fallback = proto.trainer_spec.byte_fallback
    tokenizer = {
        **_tokenizer(names, special, sentinels),
        "normalizer": {"type": "Sequence", "normalizers": _normalizers(proto.normalizer_spec)},
        "pre_tokenizer": metaspace,
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, metaspace]} if fallback else metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": proto.trainer_spec.unk_id,
            "vocab": [[name, piece.score] for name, piece in zip(names, proto.pieces, strict=True)],
            "byte_fallback": fallback,
        },
    }
    numbered = sorted((int(match[2]), match[1]) for name in names if (match := _SENTINEL.fullmatch(name)))
    config = {
        **_config(names, proto.trainer_spec.unk_id),
        "additional_special_tokens": [name for _, name in numbered],
        # Of T5Tokenizer, for those who ask for that class: how many sentinels spiece.model lacks, and, for transformers
        # 4, not to put a piece `▁` after them.
        "extra_ids": extra_ids,
        "legacy": False,
    }
    del proto.pieces[len(proto.pieces) - extra_ids :]
    return {_PIECES: proto.SerializeToString(), _TOKENIZER: _json(tokenizer), _CONFIG: _json(config)}


def of_words(words: Sequence[str], unk_id: int) -> dict[str, bytes]:
    """The files of a list of words, which are separated by white space.

    Args:
      words: the word of every id; those of padding and of the end first.
      unk_id: the id of every word that is not in the list.

    >>> sorted(of_words(["<pad>", "</s>", "<unk>", "cat"], unk_id=2))
    ['tokenizer.json', 'tokenizer_config.json']
    """
    tokenizer = {
        **_tokenizer(words, [*sorted(set(TOKEN_IDS.values())), unk_id], []),
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "decoder": None,  # joins with spaces
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": words[unk_id],
        },
    }
    return {_TOKENIZER: _json(tokenizer), _CONFIG: _json(_config(words, unk_id))}


def none() -> dict[str, bytes]:
    """The file for a folder without a tokenizer: with it AutoTokenizer raises an error.

    Without it AutoTokenizer returns a T5Tokenizer of 104 special tokens, and says nothing.
    """
    return {_CONFIG: _json(_CLASS)}


def in_folder(folder: epath.Path) -> dict[str, bytes]:
    """The tokenizer files of a Hugging Face folder, to be copied; empty if it has none."""
    read = {name: (folder / name).read_bytes() for name in _NAMES if (folder / name).is_file()}
    return read if {_PIECES, _TOKENIZER} & set(read) else {}


def write(folder: epath.Path, content: Mapping[str, bytes]) -> None:
    """Writes the files; only process 0 does.

    Raises:
      files.NoRoomError: the disk is full.
    """
    for name, data in content.items():
        files.write_whole(folder / name, data)


def _check_kind(proto: Any) -> None:
    """Raises UnwritableVocabularyError unless a SentencePiece model is of T5's kind."""
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    others = [p.piece for p in proto.pieces if p.type == _Piece.USER_DEFINED and not _SENTINEL.fullmatch(p.piece)]
    problems = {
        "its model is not a unigram one": trainer.model_type != trainer.UNIGRAM,
        f"it has user-defined pieces such as {', '.join(others[:1])}": bool(others),
        f"its padding and end are {trainer.pad_id} and {trainer.eos_id}, the network's 0 and 1": (
            (trainer.pad_id, trainer.eos_id) != (TOKEN_IDS["padding"], TOKEN_IDS["end"])
        ),
        "it handles white space in another way than T5's": trainer.treat_whitespace_as_suffix
        or not (normalizer.add_dummy_prefix and normalizer.remove_extra_whitespaces and normalizer.escape_whitespaces),
    }
    if applying := [problem for problem, applies in problems.items() if applies]:
        raise UnwritableVocabularyError(f"as a SentencePiece model, {' and '.join(applying)}")


def _normalizers(spec: Any) -> list[dict[str, Any]]:
    """SentencePiece's normalization: the table of characters, then white space at the end and repeated white space.

    The tokenizer applies them to the text between two special tokens, so white space at the beginning is kept; the
    pre-tokenizer adds none to it.
    """
    table = base64.b64encode(spec.precompiled_charsmap).decode()
    return [
        *([{"type": "Precompiled", "precompiled_charsmap": table}] if table else []),
        {"type": "Replace", "pattern": {"Regex": r" +\z"}, "content": ""},
        {"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "},
    ]


def _tokenizer(names: Sequence[str], special: Sequence[int], sentinels: Sequence[int]) -> dict[str, Any]:
    """What every tokenizer.json has: the special tokens, and the end after every text."""

    def added(number: int) -> dict[str, Any]:
        switches = {"single_word": False, "lstrip": number in sentinels, "rstrip": False, "normalized": False}
        return {"id": number, "content": names[number], **switches, "special": True}

    end_id = TOKEN_IDS["end"]
    end = {"SpecialToken": {"id": names[end_id], "type_id": 0}}
    first, second = ({"Sequence": {"id": letter, "type_id": 0}} for letter in "AB")
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [added(number) for number in sorted({*special, *sentinels})],
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [first, end],
            "pair": [first, end, second, end],
            "special_tokens": {names[end_id]: {"id": names[end_id], "ids": [end_id], "tokens": [names[end_id]]}},
        },
    }


def _config(names: Sequence[str], unk_id: int) -> dict[str, Any]:
    return {
        **_CLASS,
        "pad_token": names[TOKEN_IDS["padding"]],
        "eos_token": names[TOKEN_IDS["end"]],
        "unk_token": names[unk_id],
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }


def _json(values: Mapping[str, Any]) -> bytes:
    return (strict_json.dumps(values, indent=2) + "\n").encode()
