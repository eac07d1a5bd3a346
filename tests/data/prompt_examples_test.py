"""promot_t5x.data.prompt_examples: bit for bit what seqio's own pipeline makes of the same tasks."""

import json
import os

import numpy as np
import pytest
import seqio

from promot_t5x.data import cuts, evaluation_examples, prompt_examples
from promot_t5x.tasks import few_shot, metrics, paper, sources
from promot_t5x.tasks.wording import Wording

SPM = os.path.join(os.path.dirname(seqio.__file__), "test_data", "sentencepiece", "sentencepiece.model")
SCRIPTS = [
    "The cat  sat.\tIt was\nhungry \u2014 very",
    "Où est l'été ? Ça dépend\u00a0!",
    "猫が座った。とてもお腹が空いていた。",
    "고양이가 앉았다 매우 배가 고팠다",
    "القطة جلست. كانت جائعة",
    "बिल्ली बैठ गई। वह भूखी थी",
    "แมวนั่งลงมันหิวมาก",
    "Кошка села ﬁ Ⅷ ①",
    "e\u0301 o\u0308 \u200b zero\u200bwidth \ufeff",
    "🐈‍⬛ 👩🏽‍🚀 \U0001d518",
    " \u3000 ",
    "",
    "<extra_id_0> </s> <pad> ▁under score",
    "word " * 60,
]


def _answer(i):
    return SCRIPTS[-i % len(SCRIPTS)] or "x"


def _register(folder, name, vocabulary, *, shots, sentinels=False, choices=True):
    folder.mkdir(exist_ok=True)
    for split in ("train", "test"):
        texts = [SCRIPTS[i % len(SCRIPTS)] + f" {split} {i}" * (i % 3) for i in range(len(SCRIPTS) * 2)]
        rows = [
            {"question": text, "target": _answer(i), "choices": [_answer(i), *SCRIPTS[: i % 4]]}
            for i, text in enumerate(texts)
        ]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": ("question", sources.text), "target": ("target", sources.text)}
    columns |= {"choices": ("choices", sources.texts)} if choices else {}
    source = sources.JsonlRows(str(folder), {split: f"{split}.jsonl" for split in ("train", "test")}, columns)
    wording = Wording("Q: {question} A:", prefix="Q:", max_input_tokens=40)
    task = few_shot.TextTask(name, source, wording, (metrics.accuracy,))
    return few_shot.register(task, few_shot.Prompting(vocabulary, sentinels), shots, seed=1)


def _same_as_seqio(task, lengths, limit=None):
    """Compares features, types and cuts; returns the examples."""
    expected = list(
        cuts.noting(task).get_dataset(lengths, split="test", shuffle=False).take(limit or -1).as_numpy_iterator()
    )
    read = prompt_examples.read(task, lengths, "test", limit)
    for ours, seqios in zip(read, expected, strict=True):
        assert set(ours) == set(seqios)
        for name, value in seqios.items():
            assert type(ours[name]) is type(value), name
            if isinstance(value, np.ndarray):
                assert (ours[name].dtype, ours[name].tolist()) == (value.dtype, value.tolist()), name
            else:
                assert ours[name] == value, name
    return read


WORDS = {"bytes": seqio.ByteVocabulary(), "sentencepiece": seqio.SentencePieceVocabulary(SPM, extra_ids=10)}


@pytest.mark.parametrize(
    "words,shots,sentinels,lengths",
    [
        ("bytes", 0, False, (400, 200)),
        ("sentencepiece", 0, False, (400, 200)),
        ("bytes", 3, False, (90, 5)),
        ("sentencepiece", 3, False, (90, 5)),
        ("sentencepiece", 1, True, (7, 1)),
    ],
)
def test_examples_are_those_of_seqio(words, shots, sentinels, lengths, tmp_path):
    name = _register(tmp_path, f"like_seqio_{words}", WORDS[words], shots=shots, sentinels=sentinels)
    task = seqio.TaskRegistry.get(name)
    assert few_shot.is_only_prompts(task)
    read = _same_as_seqio(task, dict(zip(("inputs", "targets"), lengths, strict=True)))
    assert len(_same_as_seqio(task, dict(zip(("inputs", "targets"), lengths, strict=True)), limit=3)) == 3
    if lengths[1] < 200:
        assert read.numbers["target_cut"].any() and read.numbers["article_cut"].any()
        assert read.numbers["exemplars_dropped"].any()


def test_real_text_is_read_as_seqio_reads_it(shared_dir, tmp_path):
    """T5's vocabulary, which loses letters; Romanian, German and English, and cuts in both."""
    data = str(shared_dir / "data")
    words = seqio.SentencePieceVocabulary(f"{data}/spm/t5_cc_all_32000.model", extra_ids=100)
    splits = {"train": f"{data}/ntrex128/en-ro.jsonl[:300]", "test": f"{data}/ntrex128/en-ro.jsonl[300:500]"}
    (tmp_path / "wmt16_enro").mkdir()
    name = paper.task("wmt16_enro", words, data_dir=str(tmp_path), splits=splits, shots=2, sentinels=True)
    read = _same_as_seqio(seqio.TaskRegistry.get(name), {"inputs": 200, "targets": 40})
    assert all(read.numbers[name].any() for name in ("exemplars_dropped", "target_cut", "target_unwritable"))


def test_what_is_more_than_prompts_is_read_by_seqio(tmp_path):
    """Another preprocessor, features of another kind, and a fast tokenizer are not those of the package."""
    name = _register(tmp_path, "more", seqio.ByteVocabulary(), shots=0)
    task = seqio.TaskRegistry.get(name)

    def upper(dataset):
        return dataset.map(lambda example: {**example, "inputs": example["inputs"][:1]})

    changed = task.replace(preprocessors=[*task.preprocessors, upper])
    no_end = task.replace(
        output_features={k: seqio.Feature(seqio.ByteVocabulary(), add_eos=False) for k in task.output_features}
    )
    fast = seqio.SentencePieceVocabulary(SPM, use_fast_tokenizer=True)
    fast_task = seqio.TaskRegistry.get(_register(tmp_path, "fast", fast, shots=0))
    assert not any(map(few_shot.is_only_prompts, (changed, no_end, fast_task)))
    seqio.TaskRegistry.remove(name)
    seqio.TaskRegistry.add_provider(name, changed)
    read = evaluation_examples.evaluation_examples(name, {"inputs": 20, "targets": 20}, "test")
    assert all(len(example["inputs"]) == 1 for example in read.examples)
