"""The tokenizer's files without a tokenizer library: what is in them. What it does with them is in the peer test."""

import json
import pathlib

import pytest
import seqio
from sentencepiece import sentencepiece_model_pb2

from promot_t5x.checkpoints.huggingface import tokenizer_files
from promot_t5x.tasks import toy_world

# 26 pieces with T5's ids of padding, end and unknown words.
MODEL_FILE = pathlib.Path(seqio.__file__).parent / "test_data" / "sentencepiece" / "sentencepiece.model"


def read(content: dict[str, bytes], name: str) -> dict:
    return json.loads(content[name])


def test_a_word_list_is_a_wordlevel_tokenizer_with_its_ids():
    content = tokenizer_files.of_vocabulary(toy_world.VOCABULARY)
    model = read(content, "tokenizer.json")["model"]
    assert model["type"] == "WordLevel" and model["unk_token"] == "<unk>"
    assert [toy_world.VOCABULARY.encode(word) for word in model["vocab"]] == [[i] for i in model["vocab"].values()]
    assert len(model["vocab"]) == toy_world.VOCABULARY.vocab_size
    config = read(content, "tokenizer_config.json")
    assert [config[f"{name}_token"] for name in ("pad", "eos", "unk")] == ["<pad>", "</s>", "<unk>"]


def test_sentinels_follow_the_models_own_pieces_and_spiece_model_is_the_file():
    vocabulary = seqio.SentencePieceVocabulary(str(MODEL_FILE), extra_ids=3)
    content = tokenizer_files.of_vocabulary(vocabulary)
    assert content["spiece.model"] == MODEL_FILE.read_bytes()
    tokenizer = read(content, "tokenizer.json")
    pieces = tokenizer["model"]["vocab"]
    assert [name for name, _ in pieces[-3:]] == ["<extra_id_2>", "<extra_id_1>", "<extra_id_0>"]
    assert [name for name, _ in pieces[:-3]] == [vocabulary.tokenizer.IdToPiece(i) for i in range(26)]
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    assert special == {0: "<pad>", 1: "</s>", 2: "<unk>", 26: "<extra_id_2>", 27: "<extra_id_1>", 28: "<extra_id_0>"}
    config = read(content, "tokenizer_config.json")
    assert config["additional_special_tokens"] == ["<extra_id_0>", "<extra_id_1>", "<extra_id_2>"]
    assert config["extra_ids"] == 3


def test_a_model_with_sentinels_of_its_own_gets_no_more():
    with_sentinels = seqio.SentencePieceVocabulary(str(MODEL_FILE), extra_ids=3).sp_model
    content = tokenizer_files.of_sentencepiece(with_sentinels)
    assert content["spiece.model"] == with_sentinels
    assert len(read(content, "tokenizer.json")["model"]["vocab"]) == 29
    assert read(content, "tokenizer_config.json")["extra_ids"] == 0


@pytest.mark.parametrize(
    "changes,reason",
    [
        ({"trainer_spec": {"model_type": 2}}, "not a unigram one"),
        ({"trainer_spec": {"eos_id": 2}}, "its padding and end are 0 and 2, the network's 0 and 1"),
        ({"normalizer_spec": {"remove_extra_whitespaces": False}}, "white space in another way"),
        ({"pieces": [{"piece": "<mine>", "type": 4}]}, "user-defined pieces such as <mine>"),
    ],
)
def test_models_of_another_kind_are_not_written(changes, reason):
    change = sentencepiece_model_pb2.ModelProto()
    for field, values in changes.items():
        if field == "pieces":
            change.pieces.add(**values[0])
        else:
            for name, value in values.items():
                setattr(getattr(change, field), name, value)
    model = sentencepiece_model_pb2.ModelProto.FromString(MODEL_FILE.read_bytes())
    model.MergeFrom(change)
    with pytest.raises(tokenizer_files.UnwritableVocabularyError, match=reason):
        tokenizer_files.of_sentencepiece(model.SerializeToString())


def test_bytes_are_not_written():
    with pytest.raises(tokenizer_files.UnwritableVocabularyError, match="ByteVocabulary is neither"):
        tokenizer_files.of_vocabulary(seqio.ByteVocabulary())
