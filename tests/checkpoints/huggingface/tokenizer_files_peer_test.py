"""AutoTokenizer on the files that we write: our vocabularies' ids, and eval's score on the demo's model."""

import io
import json
import os
import pathlib
import random

import pytest
import sentencepiece
import seqio

import promot_t5x
from promot_t5x.checkpoints import conversion
from promot_t5x.checkpoints.huggingface import tokenizer_files
from promot_t5x.evaluation import scoring
from promot_t5x.tasks import toy_world

pytestmark = pytest.mark.peer

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
_PEERS = "this test compares with torch and transformers, which must be installed next to promot_t5x"
torch = pytest.importorskip("torch", reason=_PEERS)
transformers = pytest.importorskip("transformers", reason=_PEERS)


def written(folder: pathlib.Path, content: dict[str, bytes], model_type: str = "t5"):
    """The tokenizer that AutoTokenizer makes of the files, next to a config.json as `convert` writes it."""
    folder.mkdir(exist_ok=True)
    tokenizer_files.write(folder, content)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return transformers.AutoTokenizer.from_pretrained(folder)


def ids(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


@pytest.fixture(scope="module")
def t5(shared_dir, tmp_path_factory):
    """(T5's vocabulary with 100 sentinels, the tokenizer made of it, its folder)."""
    file = shared_dir / "data" / "spm" / "t5_cc_all_32000.model"
    vocabulary = seqio.SentencePieceVocabulary(str(file), extra_ids=100)
    folder = tmp_path_factory.mktemp("t5")
    tokenizer = written(folder, tokenizer_files.of_vocabulary(vocabulary))
    assert (folder / "spiece.model").read_bytes() == file.read_bytes()
    return vocabulary, tokenizer, folder


def test_the_same_ids_for_real_text(t5, shared_dir):
    vocabulary, tokenizer, _ = t5
    texts = set()
    for file in sorted((shared_dir / "data").rglob("*.jsonl")):
        for line in file.read_text().splitlines():
            row = json.loads(line)
            row |= row.get("translation") or {}
            texts |= {value for value in row.values() if isinstance(value, str)}
    texts = sorted(texts)
    assert len(texts) > 20_000
    ours = vocabulary.tokenizer.EncodeAsIds(texts)
    theirs = tokenizer(texts, add_special_tokens=False).input_ids
    assert [text for text, a, b in zip(texts, ours, theirs, strict=True) if a != b] == []


def test_sentinels_have_the_recorded_ids_also_after_saving_and_loading_again(t5, shared_dir, tmp_path):
    """From the SentencePiece file alone, transformers 5 puts a piece 3 between `<extra_id_0>` and `.`."""
    vocabulary, tokenizer, _ = t5
    recorded = json.loads((shared_dir / "cases" / "sentinels.json").read_text())
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    for each in (tokenizer, transformers.AutoTokenizer.from_pretrained(tmp_path)):
        assert {text: ids(each, text) for text in recorded["ids"]} == recorded["ids"]
        assert {text: vocabulary.encode(text) for text in recorded["ids"]} == recorded["ids"]
        assert {str(i): each.convert_ids_to_tokens(int(i)) for i in recorded["names"]} == recorded["names"]
        assert len(each) == recorded["len"] and len(each.extra_special_tokens) == 100
        assert each("Hello").input_ids == [8774, 1]
        # As docs/checkpoints.md says: a special token without a space before it, and those that are no sentinels.
        assert ids(each, "Hello<extra_id_0>") == [8774, 32099]
        assert ids(each, "a </s> b") == [3, 9, 1, 3, 115]


@pytest.mark.parametrize("model_type", ["mt5", "umt5"])
def test_bytes_for_unknown_characters_and_sentinels_in_the_file(tmp_path, model_type):
    """mT5's file: bytes are pieces, and the sentinels are user-defined ones."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(300)]
    model, lines = io.BytesIO(), (" ".join(rng.choices(words, k=6)) for _ in range(300))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines,
        model_writer=model,
        vocab_size=340,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    (tmp_path / "plain.model").write_bytes(model.getvalue())
    with_sentinels = seqio.SentencePieceVocabulary(str(tmp_path / "plain.model"), extra_ids=100).sp_model
    (tmp_path / "own.model").write_bytes(with_sentinels)
    vocabulary = seqio.SentencePieceVocabulary(str(tmp_path / "own.model"))
    tokenizer = written(tmp_path / "hf", tokenizer_files.of_vocabulary(vocabulary), model_type)
    assert len(tokenizer) == vocabulary.vocab_size == 440
    for text in (f"{words[0]} {words[1]}", "Zürich  ağ 字 😀", " <extra_id_0> ab. <extra_id_99>!ü ", "x\ty"):
        assert ids(tokenizer, text) == list(vocabulary.encode(text)), text
    text = f"{words[0]} Zürich 字 {words[1]}"
    assert tokenizer.decode(ids(tokenizer, text)) == vocabulary.decode(vocabulary.encode(text)) == text


def test_words_of_the_demo(tmp_path):
    tokenizer = written(tmp_path, tokenizer_files.of_vocabulary(toy_world.VOCABULARY))
    texts = [text for pair in toy_world.examples("toy_nli3", "test") for text in pair] + ["  red zebra\n cat ", ""]
    assert tokenizer(texts, add_special_tokens=False).input_ids == [toy_world.VOCABULARY.encode(t) for t in texts]
    assert tokenizer.decode([3, 4, 1, 0, 0], skip_special_tokens=True) == toy_world.VOCABULARY.decode([3, 4, 1, 0, 0])


def test_a_folder_without_a_tokenizer_is_refused_not_filled_with_special_tokens(tmp_path):
    with pytest.raises(ValueError, match="instantiate the backend tokenizer"):
        written(tmp_path, tokenizer_files.none())


def test_transformers_scores_the_exported_demo_as_eval_does(tmp_path, record_property):
    task, demo = "toy_key_sentence", pathlib.Path(promot_t5x.__file__).parent / "demo_checkpoint"
    loaded = promot_t5x.load(demo)
    config = scoring.EvaluationConfig(task_feature_lengths=toy_world.FEATURE_LENGTHS, batch_size=100)
    ours = promot_t5x.evaluate(loaded.model, loaded.params, task, "test", config, prompt_id=None).value
    conversion.convert_checkpoint(demo, tmp_path / "hf", "huggingface")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "hf").eval()
    inputs, targets = zip(*toy_world.examples(task, "test"), strict=True)
    with torch.no_grad():
        tokens = model.generate(**tokenizer(list(inputs), padding=True, return_tensors="pt"), max_new_tokens=6)
    theirs = toy_world.unigram_f1(targets, tokenizer.batch_decode(tokens, skip_special_tokens=True))["f1"]
    record_property("scores", (ours, theirs))
    print(f"{task}, f1: eval {ours:.2f}, transformers {theirs:.2f}")
    assert abs(ours - theirs) < 0.1 and ours > 50
