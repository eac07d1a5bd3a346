"""promot_t5x.data.vocabularies: a vocabulary is identified by its contents, not by the path of its file."""

import shutil

import pytest
import seqio

from promot_t5x.data import vocabularies
from promot_t5x.tasks import toy_world


@pytest.fixture
def file(shared_dir):
    return shared_dir / "data" / "spm" / "t5_cc_all_32000.model"


def test_a_hash_is_of_the_contents(file, tmp_path):
    shutil.copy(file, tmp_path / "moved.model")
    here, there = (seqio.SentencePieceVocabulary(str(path), extra_ids=100) for path in (file, tmp_path / "moved.model"))
    assert vocabularies.vocabulary_hash(here) == vocabularies.vocabulary_hash(there)
    assert vocabularies.vocabulary_name(here) != vocabularies.vocabulary_name(there)
    assert vocabularies.vocabulary_hash(seqio.SentencePieceVocabulary(str(file))) != vocabularies.vocabulary_hash(here)


def test_a_git_lfs_pointer_is_named_as_one(tmp_path):
    (tmp_path / "spiece.model").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ValueError, match="spiece.model is a git-lfs pointer, .*: run `git lfs pull`"):
        vocabularies.open_vocabulary(seqio.SentencePieceVocabulary(str(tmp_path / "spiece.model")))


def test_sentinels_are_the_last_pieces_downwards(file):
    description = vocabularies.description(seqio.SentencePieceVocabulary(str(file), extra_ids=100))
    assert description["sentinels"] == list(range(32099, 31999, -1))  # as T5's span corruption has them
    assert vocabularies.description(seqio.SentencePieceVocabulary(str(file)))["sentinels"] is None


def test_vocabularies_without_a_file_differ_by_the_text_of_their_ids():
    class Words(seqio.ByteVocabulary):
        def __init__(self, texts):
            super().__init__()
            self._texts = texts

        def decode(self, ids):
            return " ".join(self._texts[number % 2] for number in ids)

    assert vocabularies.vocabulary_hash(Words("ab")) == vocabularies.vocabulary_hash(Words("ab"))
    assert vocabularies.vocabulary_hash(Words("ab")) != vocabularies.vocabulary_hash(Words("ac"))


def test_an_unknown_word_is_no_sentinel():
    """A vocabulary of words encodes <extra_id_0> as one id even where it does not know it."""
    assert vocabularies.description(toy_world.WordVocabulary(["red"]))["sentinels"] is None
    two = toy_world.WordVocabulary(["red", "<extra_id_0>", "<extra_id_1>", "<extra_id_3>"])
    assert vocabularies.description(two)["sentinels"] == [4, 5]


@pytest.mark.parametrize("rows", [259, 384, 514])
def test_an_embedding_has_up_to_255_rows_more_than_the_vocabulary(rows):
    vocabularies.check_vocabulary(seqio.ByteVocabulary(), rows)
    for wrong in (258, 515):
        with pytest.raises(ValueError, match=rf"ByteVocabulary \(259 pieces\) does not match the network, .* {wrong} "):
            vocabularies.check_vocabulary(seqio.ByteVocabulary(), wrong)
