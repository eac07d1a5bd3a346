"""promot_t5x.data.features: ids and vocabulary files that do not fit are refused by name."""

import doctest

import numpy as np
import pytest
import seqio

from promot_t5x.data import features, vocabularies


def _batch(inputs=(5, 1, 0), targets=(7, 1), prompt_ids=(0,)):
    tokens = {"inputs": np.array([inputs]), "targets": np.array([targets])}
    return features.converted({**tokens, "soft_prompt_ids": np.array(prompt_ids, np.int32)})


@pytest.mark.parametrize(
    "batch,sentence",
    [
        (
            _batch(inputs=(5, 8, 1)),
            r"The inputs have the token 8, but .* has 8 \(architecture.T5Config.vocab_size\);",
        ),
        (_batch(targets=(2, 30)), r"The targets have the token 30, but .* vocabulary that the model was trained with"),
        (
            _batch(prompt_ids=(1, 0, 2)),
            r"has the soft prompt 2, but the network has 2, .*architecture.T5Config.num_",
        ),
        (
            _batch(prompt_ids=(0, -2)),
            "has the soft prompt -2, but .* -1 is none; correct .*training_batches.DatasetConfig.soft_",
        ),
    ],
)
def test_ids_without_a_row_are_refused(batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        features.check_ids(batch, vocab_size=8, num_prompts=2)


def test_ids_with_a_row_pass():
    batch = _batch(prompt_ids=(-1, 0, 1))
    features.check_ids(batch, vocab_size=8, num_prompts=2)
    with pytest.raises(ValueError, match="has the soft prompt 1, but the network has 1"):
        features.check_ids(batch, vocab_size=8, num_prompts=1)
    del batch["soft_prompt_ids"], batch["decoder_target_tokens"]  # a stage without a prompt, and inference
    features.check_ids(batch, vocab_size=6, num_prompts=1)
    with pytest.raises(ValueError, match="inputs have the token 5, but .* has 5 "):
        features.check_ids(batch, vocab_size=5, num_prompts=1)


@pytest.mark.parametrize("length", [True, 0, -1, 4.0, "4", None])
def test_lengths_are_positive_whole_numbers(length):
    with pytest.raises(ValueError, match="LENGTHS is .*, expected positive token counts for both"):
        features.check_lengths({"inputs": 3, "targets": length}, "LENGTHS")
    features.check_lengths({"inputs": 3, "targets": 1}, "LENGTHS")


def test_a_vocabulary_file_is_named(tmp_path):
    advice = "; set VOCABULARY_FILE to the model's SentencePiece file."
    with pytest.raises(FileNotFoundError) as missing:
        vocabularies.open_vocabulary(seqio.SentencePieceVocabulary(str(tmp_path / "absent.model")))
    assert str(missing.value) == f"There is no vocabulary file {tmp_path}/absent.model{advice}"
    (tmp_path / "empty.model").write_bytes(b"")
    (tmp_path / "text.model").write_text('{"input": "a"}')
    for name in (".", "empty.model", "text.model"):
        with pytest.raises(ValueError, match=r"cannot be read as a SentencePiece model \(") as unreadable:
            vocabularies.open_vocabulary(seqio.SentencePieceVocabulary(str(tmp_path / name)))
        sentence = str(unreadable.value)
        assert str(tmp_path / name) in sentence and sentence.endswith(advice) and "\n" not in sentence
    vocabularies.open_vocabulary(seqio.ByteVocabulary())  # has no file


def test_docstring_examples_hold():
    result = doctest.testmod(features)
    assert result.attempted > 0 and result.failed == 0
