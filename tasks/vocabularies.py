"""Vocabularies of tasks: SentencePiece files by their path, and the sentinel that marks a missing span."""

import os

import seqio

SENTINEL = "<extra_id_0>"


def sentencepiece(file: str, extra_ids: int = 0) -> seqio.SentencePieceVocabulary:
    """The SentencePiece vocabulary of a file, which is opened on first use.

    Args:
      file: the SentencePiece model, local or in a bucket.
      extra_ids: number of sentinels to add after the file's own pieces: 100 for T5's `cc_all.32000`, 0 for files that
        already contain them, such as mT5's `mc4.250000.100extra`.

    >>> sentencepiece("spm.model", extra_ids=100).extra_ids
    100
    """
    return seqio.SentencePieceVocabulary(os.path.expanduser(file), extra_ids=extra_ids)


def as_vocabulary(vocabulary: str | seqio.Vocabulary) -> seqio.Vocabulary:
    """The vocabulary itself, or the SentencePiece vocabulary of a path."""
    return sentencepiece(vocabulary) if isinstance(vocabulary, str) else vocabulary


def identity(vocabulary: seqio.Vocabulary) -> object:
    """A key that distinguishes vocabularies without opening files, which comparing SentencePiece ones might do."""
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return type(vocabulary), str(vocabulary.sentencepiece_model_file), vocabulary.extra_ids
    return vocabulary


def encodes_like_tensorflow(vocabulary: seqio.Vocabulary) -> bool:
    """Whether a vocabulary is known to encode texts in Python as seqio's pipelines do, by TensorFlow ops.

    True for the vocabularies of seqio and of this package; a fast tokenizer of seqio's is another library's.

    >>> encodes_like_tensorflow(seqio.ByteVocabulary())
    True
    """
    of_seqio = type(vocabulary) in (seqio.ByteVocabulary, seqio.SentencePieceVocabulary)
    fast = getattr(vocabulary, "_use_fast_tokenizer", False)
    return not fast and (of_seqio or type(vocabulary).__module__.startswith("promot_t5x."))


def check_sentinel(vocabulary: seqio.Vocabulary) -> None:
    """Refuses a vocabulary in which `<extra_id_0>` is not one piece.

    Raises:
      ValueError: the sentence says how to get one in which it is.
    """
    ids = vocabulary.encode(SENTINEL)
    if len(ids) != 1 or ids[0] == vocabulary.unk_id:
        name = getattr(vocabulary, "sentencepiece_model_file", type(vocabulary).__name__)
        raise ValueError(
            f"The vocabulary {name} has no sentinel {SENTINEL}, which SENTINELS = True needs: set EXTRA_IDS to 100 "
            "(T5's own number), or SENTINELS to False for an LM-adapted checkpoint."
        )
