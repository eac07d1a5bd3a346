"""promot_t5x.tasks.few_shot: the layout of prompts, what is dropped when they are too long, and the tasks in seqio."""

import dataclasses
import json
import os
import random

import numpy as np
import pytest
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.tasks import exemplars, few_shot, metrics, sources, toy_world, vocabularies
from promot_t5x.tasks.wording import Example, Wording

SETTINGS = settings(max_examples=200, deadline=None, derandomize=True)
BYTES = few_shot.Prompting(seqio.ByteVocabulary())
WITH_SENTINEL = few_shot.Prompting(toy_world.WordVocabulary([vocabularies.SENTINEL, "q", "a"]), sentinels=True)
QA = Wording("Q: {question} A:", prefix="Q:")
NOTHING_CUT = {"exemplars_dropped": 0, "input_cut": 0}
WORDS = st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=6).map(" ".join)
EXAMPLES = st.builds(Example, st.just("Q: "), WORDS, st.just(" A:"), st.tuples(WORDS))


def _qa(question, answer):
    return Example("Q: ", question, " A:", (answer,))


SHOTS = [_qa("one?", "1"), _qa("two?", "2"), _qa("three?", "3"), _qa("four?", "4")]
ASKED = _qa("five?", "5")


def _rows(count, rng=None):
    rng = rng or random.Random(0)
    return [
        {"question": f"{i} " + "word " * rng.randrange(12) + "end?", "target": f"answer {i}"} for i in range(count)
    ]  # some are several times longer than others


def _text_task(folder, name, rows, *, wording=QA, splits=None, columns=("question", "target")):
    """A task with exemplars from train.jsonl and questions from test.jsonl."""
    folder.mkdir(exist_ok=True)
    for split, part in rows.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    readers = {"choices": sources.texts}
    source = sources.JsonlRows(
        str(folder),
        splits or {split: f"{split}.jsonl" for split in rows},
        {column: (column, readers.get(column, sources.text)) for column in columns},
    )
    return few_shot.TextTask(name, source, wording, (metrics.accuracy,))


def _read(name, inputs=None, split="test", **kwargs):
    lengths = inputs and {"inputs": inputs, "targets": 32}
    dataset = seqio.TaskRegistry.get(name).get_dataset(lengths, split=split, shuffle=False, **kwargs)
    return list(dataset.as_numpy_iterator())


@pytest.mark.parametrize(
    "shots,sentinels,text",
    [
        (0, False, "Q: five? A:"),
        (0, True, "Q: five? A: <extra_id_0>"),
        (1, False, "Q: one? A: 1 Q: five? A:"),
        (1, True, "Q: one? A: 1 Q: five? A: <extra_id_0>"),
        (4, False, "Q: one? A: 1 Q: two? A: 2 Q: three? A: 3 Q: four? A: 4 Q: five? A:"),
        (4, True, "Q: one? A: 1 Q: two? A: 2 Q: three? A: 3 Q: four? A: 4 Q: five? A: <extra_id_0>"),
    ],
)
def test_exemplars_precede_the_question(shots, sentinels, text):
    assert few_shot.prompt(ASKED, SHOTS[:shots], lambda text: True, sentinels) == (text, NOTHING_CUT)


@pytest.mark.parametrize(
    "most,text,dropped,cut",
    [
        (19, "Q: one? A: 1 Q: two? A: 2 Q: three? A: 3 Q: four? A: 4 Q: five? A:".split(), 0, 0),
        (18, "Q: two? A: 2 Q: three? A: 3 Q: four? A: 4 Q: five? A:".split(), 1, 0),
        (11, "Q: three? A: 3 Q: four? A: 4 Q: five? A:".split(), 2, 0),
        (10, "Q: four? A: 4 Q: five? A:".split(), 3, 0),
        (6, "Q: five? A:".split(), 4, 0),
        (2, "Q: A:".split(), 4, 1),
    ],
)
def test_exemplars_are_dropped_from_the_left(most, text, dropped, cut):
    prompt, counts = few_shot.prompt(ASKED, SHOTS, lambda text: len(text.split()) <= most, False)
    assert (prompt.split(), counts) == (text, {"exemplars_dropped": dropped, "input_cut": cut})


@SETTINGS
@given(EXAMPLES, st.lists(EXAMPLES, max_size=4), st.booleans(), st.integers(0, 120))
def test_the_question_is_whole_if_it_fits_and_no_exemplar_is_dropped_needlessly(question, drawn, sentinels, limit):
    end = " <extra_id_0>" if sentinels else ""
    wholes = [" ".join(f"{x.inputs} {x.target}" for x in drawn[n:]) for n in range(len(drawn) + 1)]
    wholes = [(whole + " " + question.inputs).strip() + end for whole in wholes]
    fitting = [(n, whole) for n, whole in enumerate(wholes) if len(whole) <= limit]
    text, counts = few_shot.prompt(question, drawn, lambda text: len(text) <= limit, sentinels)
    if fitting:
        assert (counts["exemplars_dropped"], text) == fitting[0] and counts["input_cut"] == 0
    else:
        assert counts == {"exemplars_dropped": len(drawn), "input_cut": 1}
        assert text.endswith("A:" + end) and len(text) < len(wholes[-1])
        assert len(text) <= limit or text == "A:" + end  # nothing but the end of the question
        assert text.startswith("Q: ") or limit < len("Q:  A:" + end)


@pytest.mark.parametrize("mode", exemplars.MODES)
@pytest.mark.parametrize("sentinels", [False, True])
def test_a_dataset_holds_the_sampler_s_exemplars(tmp_path, mode, sentinels):
    rows = {"train": _rows(20), "test": _rows(25)}  # most questions of the test are in the pool
    task = _text_task(tmp_path, "layout", rows)
    prompting = WITH_SENTINEL if sentinels else BYTES
    prompting = few_shot.Prompting(prompting.vocabulary, sentinels, mode)
    pool = exemplars.pool("layout", task.source, "train", QA)
    mark = "<extra_id_0> " if sentinels else ""
    for shots in (0, 1, 4):
        sampler = exemplars.Sampler("layout", pool, shots, 3, mode)
        examples = _read(few_shot.register(task, prompting, shots, 3))
        for row, example in zip(rows["test"], examples, strict=True):
            question = f"Q: {row['question']} A:"
            parts = [f"{shot.inputs} {shot.target}" for shot in sampler.draw(question)]
            text = " ".join([*parts, question, mark]).strip()
            assert example["inputs_pretokenized"].decode() == text
            assert example["targets_pretokenized"].decode() == mark + row["target"]
            assert json.loads(example["answers"]) == [row["target"]]
            assert text.count(question) == 1  # the numbers make all questions different
            assert all(example[count] == 0 for count in few_shot.COUNTS) and len(example["choices"]) == 0


@pytest.mark.parametrize("limit", [30, 60, 100, 200, 400])
def test_tokens_fit_and_are_those_of_the_text(tmp_path, limit):
    task = _text_task(tmp_path, f"fits_{limit}", {"train": _rows(30), "test": _rows(40, random.Random(1))})
    examples = _read(few_shot.register(task, BYTES, shots=4), inputs=limit)
    for example in examples:
        text = example["inputs_pretokenized"].decode()
        assert example["inputs"].tolist() == [*BYTES.vocabulary.encode(text), 1]
        assert len(example["inputs"]) <= limit
        assert text.count("Q: ") == 5 - example["exemplars_dropped"]
        assert not example["input_cut"] or example["exemplars_dropped"] == 4
        assert example["input_cut"] or text.endswith(" end? A:")
    dropped = {int(example["exemplars_dropped"]) for example in examples}
    assert dropped == {30: {4}, 400: {0}}.get(limit, dropped) and (len(dropped) > 1 or limit in (30, 400))
    assert any(example["input_cut"] for example in examples) == (limit < 100)


SEQIOS = os.path.join(os.path.dirname(seqio.__file__), "test_data", "sentencepiece", "sentencepiece.model")
LONG = few_shot.Prompting(vocabularies.sentencepiece(SEQIOS))
PIECES = st.lists(
    st.sampled_from(["test ", "a", "\u732b", "e\u0301", "\u3000", "  ", "this is a test. ", "\u200b"]), min_size=1
)


def _prompt(prompting, question, limit, article_limit=None):
    wording = dataclasses.replace(QA, max_input_tokens=article_limit)
    task = few_shot.TextTask("long", None, wording, ())
    row = json.dumps({"question": question, "target": "x"})
    return few_shot.Prompter(task, prompting, exemplars.Sampler("long", (), 0), limit)(row)


@pytest.mark.parametrize("prompting", [BYTES, LONG])
@given(
    pieces=PIECES,
    length=st.integers(4000, 9000),
    limit=st.integers(1, 60),
    start=st.sampled_from(["", "a b c ", "x" * 999]),
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_text_of_any_length_is_cut_as_if_it_were_encoded_whole(prompting, pieces, length, limit, start):
    unit = "".join(pieces)
    question = start + unit * (length // len(unit))
    encode = prompting.vocabulary.encode
    whole = Example("Q: ", question, " A:", ("x",))
    expected = whole.shortened(lambda text: len(encode(text)) <= limit)
    assert _prompt(prompting, question, None, article_limit=limit).inputs == expected.inputs
    assert _prompt(prompting, question, limit + 1).inputs == expected.inputs


@pytest.mark.parametrize("question", ["word " * 200_000, "\u732b" * 300_000])
def test_a_line_of_a_megabyte_is_not_encoded_again_and_again(question):
    """Its bisection encoded more than twice the line."""
    encoded = []

    class Counting(seqio.ByteVocabulary):
        def _encode(self, s):
            encoded.append(len(s))
            return super()._encode(s)

    made = _prompt(few_shot.Prompting(Counting()), question, 512, article_limit=1024)
    assert len(made.inputs.encode()) <= 512 and made.counts["article_cut"] == made.counts["input_cut"] == 1
    assert sum(encoded) < len(question) / 2


def test_tokens_fit_with_a_sentencepiece_vocabulary(tmp_path, shared_dir):
    file = shared_dir / "data/spm/t5_cc_all_32000.model"
    if not file.exists():
        pytest.skip(f"needs {file}")
    vocabulary = vocabularies.sentencepiece(str(file), extra_ids=100)
    rng = random.Random(0)
    body = ["".join(rng.choices("abcdeé ,.\n", k=rng.randrange(5, 200))) for _ in range(60)]
    rows = [{"question": f"{i} {text}", "target": "x"} for i, text in enumerate(body)]
    task = _text_task(tmp_path, "spm", {"train": rows[:30], "test": rows[30:]})
    sentinel = vocabulary.encode("<extra_id_0>")
    for limit in (24, 80, 160):
        for example in _read(few_shot.register(task, few_shot.Prompting(vocabulary, sentinels=True), 2), inputs=limit):
            assert example["inputs"].tolist() == [*vocabulary.encode(example["inputs_pretokenized"].decode()), 1]
            assert len(example["inputs"]) <= limit and example["inputs"].tolist()[-2:] == [*sentinel, 1]
            assert example["targets"].tolist()[:1] == sentinel


def test_what_cannot_be_shortened_any_more_is_trimmed(tmp_path):
    task = _text_task(tmp_path, "tiny", {"test": [{"question": "long enough?", "target": "x"}]})
    (example,) = _read(few_shot.register(task, BYTES), inputs=4)
    assert example["inputs"].tolist() == [*BYTES.vocabulary.encode("A:"), 1]
    name = few_shot.register(dataclasses.replace(task, name="tiniest"), BYTES)
    (example,) = _read(name, inputs=2)
    assert example["inputs"].tolist() == [*BYTES.vocabulary.encode("A"), 1]


def test_articles_are_cut_before_anything_else(tmp_path):
    wording = Wording("Article: {question} Summary:", prefix="Article:", max_input_tokens=40)
    task = _text_task(tmp_path, "articles", {"train": _rows(20), "test": _rows(30)}, wording=wording)
    examples = _read(few_shot.register(task, BYTES, shots=2))
    cuts = 0
    for row, example in zip(_rows(30), examples, strict=True):
        *drawn, question = example["inputs_pretokenized"].decode().split("Article:")[1:]
        assert all(len(f"Article:{shot.rsplit(' answer')[0]}") <= 40 for shot in drawn) and len(drawn) == 2
        assert row["question"].split()[0] not in [shot.split()[0] for shot in drawn]  # known before it is cut
        whole = f" {row['question']} Summary:"
        assert len(f"Article:{question}") <= 40 and question.split(" Summary:")[0] == whole[: len(question) - 9]
        assert bool(example["article_cut"]) == (len(f"Article:{whole}") > 40) == (question != whole)
        assert example["exemplars_dropped"] == example["input_cut"] == 0
        cuts += example["article_cut"]
    assert 5 < cuts < 25


def test_shards_hold_the_same_prompts(tmp_path):
    rows = {"train": _rows(15), "test": _rows(18, random.Random(2))}
    name = few_shot.register(_text_task(tmp_path, "sharded", rows), BYTES, shots=3, seed=1)
    whole = _read(name, inputs=150)
    for count in (1, 2, 4):
        merged = [None] * len(whole)
        for i in range(count):
            merged[i::count] = _read(name, inputs=150, shard_info=seqio.ShardInfo(i, count))
        for a, b in zip(whole, merged, strict=True):
            assert a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("sentinels", [False, True])
def test_choices_are_a_feature(tmp_path, sentinels):
    rows = [{"question": f"{i}", "target": "wo", "choices": ["wo", "dréi", "x" * (i + 1)]} for i in range(4)]
    task = _text_task(tmp_path, "choices", {"test": rows}, columns=("question", "target", "choices"))
    mark = "<extra_id_0> " if sentinels else ""
    for row, example in zip(rows, _read(few_shot.register(task, WITH_SENTINEL if sentinels else BYTES)), strict=True):
        assert [choice.decode() for choice in example["choices"]] == [mark + choice for choice in row["choices"]]
        assert example["targets_pretokenized"] in example["choices"]


@pytest.mark.parametrize("mode", exemplars.MODES)
def test_a_training_copy_with_other_white_space_is_no_exemplar(tmp_path, mode):
    training = [{"question": f"Q{i}? ", "target": f"secret {i}"} for i in range(6)]
    asked = [{"question": f"Q{i}?", "target": f"secret {i}"} for i in range(6)]
    task = _text_task(tmp_path, f"few_shot_copies_{mode}", {"train": training, "test": asked})
    name = few_shot.register(task, dataclasses.replace(BYTES, exemplars=mode), shots=5)
    for i, example in enumerate(_read(name)):
        assert f"secret {i}" not in example["inputs_pretokenized"].decode()


@pytest.mark.parametrize("epochs", [1, 2])
def test_one_file_may_give_questions_and_exemplars(tmp_path, epochs):
    """A question that was an exemplar of another is the same row, and nothing of it is cut."""
    splits = {"train": "all.jsonl", "test": "all.jsonl"}
    name = few_shot.register(_text_task(tmp_path, "one_file", {"all": _rows(12)}, splits=splits), BYTES, shots=3)
    examples = _read(name, num_epochs=epochs)
    for row, example in zip(_rows(12) * epochs, examples, strict=True):
        text = example["inputs_pretokenized"].decode()
        assert text.endswith(f"Q: {row['question']} A:") and text.count(f"Q: {row['question']} A:") == 1
    assert [int(example["article_cut"]) for example in examples] == [0] * len(examples)


def test_a_task_is_registered_once(tmp_path):
    def register(vocabulary=None, sentinels=False, mode="per_example", shots=2, seed=0, made_from="a"):
        task = dataclasses.replace(_text_task(tmp_path, "once", {"test": _rows(3)}), made_from=made_from)
        prompting = few_shot.Prompting(vocabulary or seqio.ByteVocabulary(), sentinels, mode)
        return few_shot.register(task, prompting, shots, seed)

    assert register() == register() == "once_2shot_seed0"
    for other in ({"vocabulary": seqio.ByteVocabulary(extra_ids=100)}, {"sentinels": True}, {"made_from": "b"}):
        with pytest.raises(ValueError, match="'once_2shot_seed0' is already registered with other arguments"):
            register(**other)
    others = [register(shots=0), register(shots=3), register(seed=1), register(mode="fixed")]
    assert others == ["once", "once_3shot_seed0", "once_2shot_seed1", "once_2shot_seed0_fixed"]
    registered = few_shot.registered("once_3shot_seed0")
    assert (registered.task.name, registered.shots, registered.seed, registered.task.made_from) == ("once", 3, 0, "a")
    assert few_shot.registered("once").shots == 0
    seqio.TaskRegistry.remove("once")
    assert few_shot.registered("once") is None


def test_nothing_is_read_at_registration_and_errors_come_with_the_dataset(tmp_path):
    name = few_shot.register(_text_task(tmp_path, "errors", {"train": _rows(3), "test": _rows(3)}), BYTES, shots=3)
    with pytest.raises(ValueError, match="'errors'.* 3 exemplars.* 3 training questions"):
        _read(name)
    asks_with_sentinels = few_shot.Prompting(seqio.ByteVocabulary(), sentinels=True)
    name = few_shot.register(_text_task(tmp_path, "no_sentinel", {"test": _rows(3)}), asks_with_sentinels)
    with pytest.raises(ValueError, match="has no sentinel <extra_id_0>"):
        _read(name)


def test_without_a_split_for_exemplars_the_split_is_named(tmp_path):
    name = few_shot.register(_text_task(tmp_path, "no_train", {"test": _rows(9)}), BYTES, shots=2)
    with pytest.raises(ValueError, match="'train'"):
        _read(name)


def test_fewer_than_no_exemplars_is_refused():
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, ["test"])
    task = few_shot.TextTask("negative", source, QA, ())
    with pytest.raises(ValueError, match="'negative' has -1 exemplars per prompt: expected 0 or more"):
        few_shot.register(task, few_shot.Prompting(seqio.ByteVocabulary()), shots=-1)
