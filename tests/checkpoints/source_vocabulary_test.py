"""Which vocabulary the tokenizer of an exported folder is made from, and what is said if there is none."""

import dataclasses
import json
import re

import pytest
import seqio

from promot_t5x import convert
from promot_t5x.checkpoints import source_vocabulary, sources
from promot_t5x.checkpoints.sources import Source
from promot_t5x.data import vocabularies
from tests.checkpoints.huggingface.tokenizer_files_test import MODEL_FILE


@pytest.fixture
def t5x(testdata) -> Source:
    """384 rows, and no word about the vocabulary."""
    return sources.open_source(testdata / "t5x_tiny" / "t5_orbax" / "checkpoint_0")


def naming(source: Source, vocabulary: seqio.Vocabulary) -> Source:
    return dataclasses.replace(source, description={"vocabulary": vocabularies.description(vocabulary)})


def sentencepiece(extra_ids: int) -> seqio.SentencePieceVocabulary:
    return seqio.SentencePieceVocabulary(str(MODEL_FILE), extra_ids=extra_ids)


def test_an_exported_folder_of_the_demo_holds_its_tokenizer(tmp_path, capsys):
    """It held none, and AutoTokenizer then returned one of 104 special tokens."""
    folder = tmp_path / "hf"
    convert.main(["--from=promot_t5x/demo_checkpoint", f"--to={folder}", "--to_format=huggingface"])
    assert "tokenizer: WordVocabulary (288 pieces)" in capsys.readouterr().out
    assert len(json.loads((folder / "tokenizer.json").read_bytes())["model"]["vocab"]) == 288
    assert "tokenizer_class" not in json.loads((folder / "config.json").read_bytes())
    # From there it is copied, bit for bit.
    convert.main([f"--from={folder}", f"--to={tmp_path / 'again'}", "--to_format=huggingface"])
    assert "tokenizer: tokenizer.json, tokenizer_config.json, copied from" in capsys.readouterr().out
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    "named,line",
    [
        (None, "names no vocabulary; --vocabulary_file gives the SentencePiece model"),
        ({"name": "/lost.model (384 pieces)", "hash": "0"}, "the vocabulary /lost.model .384 pieces. of .* not found"),
        (seqio.ByteVocabulary(), "ByteVocabulary .* cannot be written as one: ByteVocabulary is neither"),
    ],
)
def test_no_tokenizer_is_claimed_and_a_line_says_why(t5x, monkeypatch, named, line):
    if isinstance(named, seqio.Vocabulary):
        monkeypatch.setattr(vocabularies, "find_vocabulary", lambda _, vocabulary=named: vocabulary)
        named = vocabularies.description(named)
    content, said = source_vocabulary.tokenizer(dataclasses.replace(t5x, description={"vocabulary": named}))
    assert list(content) == ["tokenizer_config.json"]
    assert json.loads(content["tokenizer_config.json"]) == {"tokenizer_class": "PreTrainedTokenizerFast"}
    assert re.search(f"the folder gets no tokenizer, and AutoTokenizer refuses it: .*{line}", said)


def test_a_vocabulary_file_is_that_of_the_checkpoint_and_rows_without_a_piece_are_said(t5x):
    content, said = source_vocabulary.tokenizer(t5x, MODEL_FILE, extra_ids=200)
    assert "spiece.model" in content
    assert said.endswith("(226 pieces); the embedding has 384 rows")
    content, _ = source_vocabulary.tokenizer(naming(t5x, sentencepiece(200)), MODEL_FILE, extra_ids=200)
    assert "spiece.model" in content
    with pytest.raises(ValueError, match=r"was trained with the vocabulary .*226 pieces.*\(201 pieces\) has other"):
        source_vocabulary.tokenizer(naming(t5x, sentencepiece(200)), MODEL_FILE, extra_ids=175)
    with pytest.raises(ValueError, match="does not match the network, which has 384"):
        source_vocabulary.tokenizer(t5x, MODEL_FILE)
    with pytest.raises(FileNotFoundError, match="no vocabulary file /nothing.model"):
        source_vocabulary.tokenizer(t5x, "/nothing.model")


def test_sentinels_are_added_unless_the_file_has_its_own(tmp_path):
    assert source_vocabulary.given(MODEL_FILE, None).extra_ids == 100
    assert source_vocabulary.given(MODEL_FILE, 3).extra_ids == 3
    (tmp_path / "with.model").write_bytes(sentencepiece(100).sp_model)
    own = source_vocabulary.given(tmp_path / "with.model", None)
    assert own.extra_ids == 0 and own.vocab_size == 126


def test_a_vocabulary_for_a_format_without_one(tmp_path):
    with pytest.raises(ValueError, match="the format is t5x; leave out --vocabulary_file and --extra_ids"):
        convert.main(
            ["--from=promot_t5x/demo_checkpoint", f"--to={tmp_path / 'x'}", "--to_format=t5x", "--extra_ids=100"]
        )


def test_a_named_vocabulary_in_a_bucket_without_a_network(t5x, monkeypatch):
    def unreachable(_):
        raise OSError("Could not resolve host\nwhen reading metadata")

    monkeypatch.setattr(vocabularies, "find_vocabulary", unreachable)
    named = {"vocabulary": {"name": "gs://bucket/spm.model (384 pieces)", "hash": "0"}}
    content, said = source_vocabulary.tokenizer(dataclasses.replace(t5x, description=named))
    assert list(content) == ["tokenizer_config.json"]
    assert "gs://bucket/spm.model (384 pieces) cannot be opened (Could not resolve host); --vocabulary_file" in said
