"""The vocabulary of an opened checkpoint, and the tokenizer of the Hugging Face folder that it is converted to."""

from typing import Any

from etils import epy

from promot_t5x.checkpoints.huggingface import tokenizer_files
from promot_t5x.checkpoints.sources import Source
from promot_t5x.runtime.files import absolute

with epy.lazy_imports():  # TensorFlow, which only a vocabulary needs
    from promot_t5x.data import vocabularies
    from promot_t5x.tasks import toy_world  # registers the tasks, among whose vocabularies the named one may be
    from promot_t5x.tasks import vocabularies as task_vocabularies

_T5_EXTRA_IDS = 100

_GIVE_FILE = "--vocabulary_file gives the SentencePiece model"


def tokenizer(source: Source, vocabulary: Any = None, extra_ids: int | None = None) -> tuple[dict[str, bytes], str]:
    """The tokenizer files for a checkpoint in Hugging Face's format, by name, and a line that says which these are.

    Args:
      source: the checkpoint.
      vocabulary: a seqio vocabulary, or the path of a SentencePiece model; None takes the one that the checkpoint
        names, or the files of a Hugging Face folder.
      extra_ids: sentinels to add to the SentencePiece model, see `given`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is not a SentencePiece model, or not the vocabulary of this checkpoint.
    """
    named = source.description.get("vocabulary") or source.model.description.get("vocabulary")
    if vocabulary is None and source.model.format == "huggingface":
        copied = tokenizer_files.in_folder(source.model.folder)
        if copied:
            return copied, f"tokenizer: {', '.join(copied)}, copied from {source.model.folder}"
    if vocabulary is None:
        if named is None:
            return _none(f"{source.model.folder} names no vocabulary; {_GIVE_FILE}")
        toy_world.vocabulary()  # imports it
        try:
            vocabulary = vocabularies.find_vocabulary(named)
        except Exception as error:  # TensorFlow's, for a bucket without a network
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            return _none(f"the vocabulary {named['name']} cannot be opened ({reason}); {_GIVE_FILE}")
        if vocabulary is None:
            return _none(f"the vocabulary {named['name']} of {source.model.folder} was not found; {_GIVE_FILE}")
    else:
        vocabulary = given(vocabulary, extra_ids)
        if named is not None and vocabularies.vocabulary_hash(vocabulary) != named["hash"]:
            raise ValueError(
                f"{source.model.folder} was trained with the vocabulary {named['name']}, but "
                f"{vocabularies.vocabulary_name(vocabulary)} has other contents; give its file and its --extra_ids."
            )
    vocabularies.check_vocabulary(vocabulary, source.config.vocab_size)
    name = vocabularies.vocabulary_name(vocabulary)
    try:
        content = tokenizer_files.of_vocabulary(vocabulary)
    except tokenizer_files.UnwritableVocabularyError as error:
        return _none(f"{name} cannot be written as one: {error}")
    rows = source.config.vocab_size
    spare = f"; the embedding has {rows} rows" if rows != vocabulary.vocab_size else ""
    return content, f"tokenizer: {name}{spare}"


def given(vocabulary: Any, extra_ids: int | None) -> Any:
    """A vocabulary that the user gives, opened.

    Args:
      vocabulary: a seqio vocabulary, or the path of a SentencePiece model.
      extra_ids: number of sentinels to add to the model; None adds T5's 100 unless it has its own.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is not a SentencePiece model, or a number is given with a vocabulary.
    """
    if hasattr(vocabulary, "vocab_size"):
        if extra_ids is not None:
            raise ValueError(f"extra_ids is {extra_ids}, but the vocabulary brings its own; give the path of its file.")
        return vocabulary
    file = str(absolute(vocabulary))
    opened = task_vocabularies.sentencepiece(file, extra_ids=extra_ids or 0)
    vocabularies.open_vocabulary(opened)
    if extra_ids is None and len(opened.encode(task_vocabularies.SENTINEL)) != 1:
        return task_vocabularies.sentencepiece(file, extra_ids=_T5_EXTRA_IDS)
    return opened


def _none(reason: str) -> tuple[dict[str, bytes], str]:
    return tokenizer_files.none(), f"the folder gets no tokenizer, and AutoTokenizer refuses it: {reason}"
