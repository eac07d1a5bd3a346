"""promot_t5x.tasks.vocabularies: vocabularies identified without their files, and the sentinel they must know."""

import pytest
import seqio

from promot_t5x.tasks import toy_world, vocabularies


@pytest.fixture
def t5_model(shared_dir):
    file = shared_dir / "data/spm/t5_cc_all_32000.model"
    if not file.is_file():
        pytest.skip(f"needs {file}, T5's vocabulary")
    return str(file)


def test_a_path_is_a_sentencepiece_vocabulary_and_no_file_is_opened():
    made = vocabularies.as_vocabulary("nowhere/spm.model")
    assert isinstance(made, seqio.SentencePieceVocabulary)
    assert (made.sentencepiece_model_file, made.extra_ids) == ("nowhere/spm.model", 0)
    assert vocabularies.sentencepiece("nowhere/spm.model", 100).extra_ids == 100
    own = seqio.ByteVocabulary()
    assert vocabularies.as_vocabulary(own) is own


def test_identities_tell_vocabularies_apart_without_opening_files():
    def make():
        return [
            vocabularies.sentencepiece("nowhere/spm.model"),
            vocabularies.sentencepiece("elsewhere/spm.model"),
            vocabularies.sentencepiece("nowhere/spm.model", extra_ids=100),
            vocabularies.sentencepiece("gs://bucket/spm.model"),
            seqio.ByteVocabulary(),
            seqio.ByteVocabulary(extra_ids=100),
            toy_world.WordVocabulary(["red"]),
            toy_world.WordVocabulary(["blue"]),
        ]

    first, again = ([vocabularies.identity(vocabulary) for vocabulary in make()] for _ in range(2))
    assert first == again
    assert all((a == b) == (i == j) for i, a in enumerate(first) for j, b in enumerate(again))


def test_t5_s_vocabulary_knows_the_sentinel_with_extra_ids(t5_model):
    vocabularies.check_sentinel(vocabularies.sentencepiece(t5_model, extra_ids=100))
    with pytest.raises(ValueError, match=f"{t5_model} has no sentinel <extra_id_0>.* EXTRA_IDS to 100"):
        vocabularies.check_sentinel(vocabularies.sentencepiece(t5_model))


def test_the_sentinel_is_the_last_id_of_t5(t5_model):
    vocabulary = vocabularies.sentencepiece(t5_model, extra_ids=100)
    assert vocabulary.encode(vocabularies.SENTINEL) == [vocabulary.vocab_size - 1] == [32099]


@pytest.mark.parametrize(
    "vocabulary,name",
    [
        (seqio.ByteVocabulary(), "ByteVocabulary"),
        (seqio.ByteVocabulary(extra_ids=100), "ByteVocabulary"),  # its extra ids have no text
        (toy_world.WordVocabulary(["red", "cat"]), "WordVocabulary"),
    ],
)
def test_vocabularies_without_the_sentinel_are_refused(vocabulary, name):
    with pytest.raises(ValueError, match=f"{name} has no sentinel <extra_id_0>, .*SENTINELS to False"):
        vocabularies.check_sentinel(vocabulary)


def test_a_sentinel_of_one_id_is_enough():
    vocabulary = toy_world.WordVocabulary(["red", vocabularies.SENTINEL])
    assert len(vocabulary.encode(vocabularies.SENTINEL)) == 1
    vocabularies.check_sentinel(vocabulary)
