"""Vocabularies of tasks: SentencePiece files by their path, and the sentinel that stands for a missing span."""

import seqio

SENTINEL = "<extra_id_0>"


def sentencepiece(file: str, extra_ids: int = 0) -> seqio.SentencePieceVocabulary:
    """The SentencePiece vocabulary of a file, which is opened when it is first used.

    Args:
      file: the model, local or in a bucket.
      extra_ids: sentinels to add behind the file's own pieces: 100 for T5's `cc_all.32000`, 0 for files that hold them
        already, such as mT5's `mc4.250000.100extra`.

    >>> sentencepiece("spm.model", extra_ids=100).extra_ids
    100
    """
    return seqio.SentencePieceVocabulary(file, extra_ids=extra_ids)


def as_vocabulary(vocabulary: str | seqio.Vocabulary) -> seqio.Vocabulary:
    """A vocabulary, or the SentencePiece vocabulary of a path."""
    return sentencepiece(vocabulary) if isinstance(vocabulary, str) else vocabulary


def identity(vocabulary: seqio.Vocabulary) -> object:
    """What tells two vocabularies apart, without opening a file: comparing two SentencePiece ones may open theirs."""
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return type(vocabulary), str(vocabulary.sentencepiece_model_file), vocabulary.extra_ids
    return vocabulary


def check_sentinel(vocabulary: seqio.Vocabulary) -> None:
    """Refuses a vocabulary that does not know `<extra_id_0>` as one piece.

    Raises:
      ValueError: says how to get one that does.
    """
    ids = vocabulary.encode(SENTINEL)
    if len(ids) != 1 or ids[0] == vocabulary.unk_id:
        name = getattr(vocabulary, "sentencepiece_model_file", type(vocabulary).__name__)
        raise ValueError(
            f"The vocabulary {name} has no sentinel {SENTINEL}, which SENTINELS = True needs: set EXTRA_IDS to 100 "
            "(T5's own number), or SENTINELS to False for an LM-adapted checkpoint."
        )
