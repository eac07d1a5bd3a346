"""Vocabularies: opening them, describing them by name and contents, and checking them against the network."""

import hashlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import seqio
import tensorflow as tf
from etils import epath

from promot_t5x.data import features
from promot_t5x.runtime import files


def open_vocabulary(vocabulary: seqio.Vocabulary) -> None:
    """Opens a SentencePiece vocabulary's file, local or in a bucket, before seqio would while it reads examples.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file cannot be read, is a git-lfs pointer, or is not a SentencePiece model.
    """
    if not isinstance(vocabulary, seqio.SentencePieceVocabulary):
        return
    file, advice = vocabulary.sentencepiece_model_file, "set VOCABULARY_FILE to the model's SentencePiece file"
    try:
        vocabulary.encode("")
    except tf.errors.NotFoundError as error:
        raise FileNotFoundError(f"There is no vocabulary file {file}; {advice}.") from error
    except Exception as error:  # of TensorFlow, protobuf or SentencePiece, which share no base class
        files.check_not_lfs_pointer(file)
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The vocabulary file {file} cannot be read as a SentencePiece model ({reason}); {advice}."
        ) from error


def vocabulary_name(vocabulary: seqio.Vocabulary) -> str:
    """A vocabulary's file or class, and its size.

    >>> vocabulary_name(seqio.ByteVocabulary())
    'ByteVocabulary (259 pieces)'
    """
    name = getattr(vocabulary, "sentencepiece_model_file", type(vocabulary).__name__)
    return f"{name} ({vocabulary.vocab_size} pieces)"


def vocabulary_hash(vocabulary: seqio.Vocabulary) -> str:
    """A hash of a vocabulary's contents, independent of where its file is: equal hashes mean equal tokens.

    It covers the bytes of the SentencePiece model, or else the class and the text of every id; and the size.

    >>> vocabulary_hash(seqio.ByteVocabulary()) == vocabulary_hash(seqio.ByteVocabulary(extra_ids=100))
    False
    """
    if isinstance(vocabulary, seqio.SentencePieceVocabulary):
        content = bytes(vocabulary.sp_model or b"")
    else:
        texts = [vocabulary.decode([number]) for number in range(vocabulary.vocab_size)]
        content = f"{type(vocabulary).__name__} {texts!r}".encode()
    return hashlib.sha256(content + f" {vocabulary.vocab_size}".encode()).hexdigest()[:16]


def description(vocabulary: seqio.Vocabulary) -> dict[str, Any]:
    """The description of a vocabulary that a checkpoint stores.

    Returns:
      name: from `vocabulary_name`; hash: from `vocabulary_hash`; sentinels: the ids of <extra_id_0>, <extra_id_1>, and
      so on, None if the vocabulary has none.

    >>> description(seqio.ByteVocabulary())["sentinels"] is None
    True
    """
    sentinels = list(itertools.takewhile(lambda number: number is not None, _sentinel_ids(vocabulary)))
    return {
        "name": vocabulary_name(vocabulary),
        "hash": vocabulary_hash(vocabulary),
        "sentinels": sentinels or None,
    }


def _sentinel_ids(vocabulary: seqio.Vocabulary) -> Iterator[int | None]:
    """The ids of the sentinels in turn; None for one that is not a single piece."""
    for number in itertools.count():
        ids = vocabulary.encode(f"<extra_id_{number}>")
        yield ids[0] if len(ids) == 1 and ids[0] != vocabulary.unk_id else None


def check_vocabulary(vocabulary: seqio.Vocabulary, vocab_size: int) -> None:
    """Opens a vocabulary, and refuses one that cannot be the checkpoint's: larger than the network's, or much smaller.

    Embeddings are padded to a multiple of at most 256 rows (T5: 32,100 to 32,128; mT5: 250,100 to 250,112).

    Raises:
      FileNotFoundError, ValueError: see `open_vocabulary`.
      ValueError: the sizes do not match; the sentence names both.

    >>> check_vocabulary(seqio.ByteVocabulary(), 384)
    """
    open_vocabulary(vocabulary)
    size = vocabulary.vocab_size
    if not size <= vocab_size < size + 256:
        raise ValueError(
            f"The vocabulary {vocabulary_name(vocabulary)} does not match the network, which has {vocab_size} "
            "(architecture.T5Config.vocab_size); set VOCABULARY_FILE and EXTRA_IDS to the vocabulary that the model "
            "was trained with."
        )


def check_task(name: str, parameter: str, vocab_size: int) -> None:
    """Checks the vocabularies of a task, or of all tasks of a mixture, against the network.

    Args:
      name: a task or mixture of seqio's registry.
      parameter: the gin name of `name`, for the error.
      vocab_size: number of rows of the network's embedding.

    Raises:
      FileNotFoundError, ValueError: there is no such task, or see `check_vocabulary`.
    """
    task_or_mixture = features.find(name, parameter)
    tasks = task_or_mixture.tasks if isinstance(task_or_mixture, seqio.Mixture) else [task_or_mixture]
    for vocabulary in {
        id(f.vocabulary): f.vocabulary for task in tasks for f in task.output_features.values()
    }.values():
        check_vocabulary(vocabulary, vocab_size)


def open_vocabularies(task: seqio.Task) -> None:
    """Opens the vocabularies of a task; raises what `open_vocabulary` raises."""
    for feature in task.output_features.values():
        open_vocabulary(feature.vocabulary)


def find_vocabulary(described: Mapping[str, Any]) -> seqio.Vocabulary | None:
    """The vocabulary that a checkpoint describes, from its file or a registered seqio task; None if it is in neither.

    Args:
      described: `name` and `hash`, as `description` returns them.

    >>> find_vocabulary({"name": "lost.model (32100 pieces)", "hash": "0"}) is None
    True
    """
    file = described["name"].rsplit(" (", 1)[0]
    candidates: list[seqio.Vocabulary] = []
    if file.endswith(".model") and epath.Path(file).is_file():
        candidates += [seqio.SentencePieceVocabulary(file, extra_ids=extra_ids) for extra_ids in (0, 100)]
    for name in seqio.TaskRegistry.names():
        for feature in seqio.TaskRegistry.get(name).output_features.values():
            # A SentencePiece file at another path is not opened just to compare it.
            if type(feature.vocabulary).__name__ == file and feature.vocabulary not in candidates:
                candidates.append(feature.vocabulary)
    return next((candidate for candidate in candidates if vocabulary_hash(candidate) == described["hash"]), None)
