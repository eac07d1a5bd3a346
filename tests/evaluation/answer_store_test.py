"""promot_t5x.evaluation.answer_store: what is kept on disk, found again by its key, and refused when damaged."""

import json
import logging as python_logging
import math
import zlib

import numpy as np
import pytest
from etils import epath
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.evaluation import answer_store
from promot_t5x.evaluation.answering import Answer
from promot_t5x.runtime import files, strict_json


def _examples(prompts=("a", "b", "c"), choices=()):
    return [{"inputs": np.array([ord(p), 1]), "inputs_pretokenized": p.encode(), "choices": choices} for p in prompts]


MADE_BY = {"checkpoint": "f00", "attached": None, "decoding": {"method": "greedy"}}
KEYS = answer_store.keys(_examples(), MADE_BY)
ANSWERS = [Answer("eins"), Answer("zwei\u2028 drei\n", (-1.5, -0.25)), Answer("")]


def _kept(folder, keys=KEYS):
    return answer_store.Answers(epath.Path(folder), "run", keys)


def _finished(folder):
    kept = _kept(folder)
    kept.add([0, 1, 2], ANSWERS)
    kept.finish([{"prompt": p} for p in "abc"])
    return folder / "run.jsonl"


def test_a_key_is_made_of_all_that_makes_an_answer():
    others = [
        answer_store.keys(_examples("xyz"), MADE_BY),
        answer_store.keys(_examples(choices=(b"yes", b"no")), MADE_BY),
        answer_store.keys(_examples(choices=(b"no", b"yes")), MADE_BY),
        *(answer_store.keys(_examples(), {**MADE_BY, name: "other"}) for name in MADE_BY),
    ]
    everything = [key for keys in (KEYS, *others) for key in keys]
    assert len(set(everything)) == len(everything) == 21
    assert answer_store.keys(_examples(), dict(reversed(MADE_BY.items()))) == KEYS
    assert answer_store.keys(_examples("aab"), MADE_BY) == [KEYS[0], KEYS[0], KEYS[1]]


def test_finished_answers_are_reused(tmp_path):
    file = _finished(tmp_path)
    assert _kept(tmp_path).by_number == dict(enumerate(ANSWERS))
    rows = [json.loads(line) for line in file.read_text().strip().split("\n")]
    expected = {"prompt": "b", "output": "zwei\u2028 drei\n", "choice_scores": [-1.5, -0.25], "key": KEYS[1]}
    assert rows[1] == {**expected, "crc32": f"{zlib.crc32(json.dumps(expected, sort_keys=True).encode()):08x}"}
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"], "no part is left"
    other = answer_store.keys(_examples(), {**MADE_BY, "checkpoint": "ba5"})
    assert _kept(tmp_path, other).by_number == {}
    assert _kept(tmp_path, [other[0], KEYS[2]]).by_number == {1: ANSWERS[2]}, "in another order, next to new ones"


def test_a_file_that_is_up_to_date_is_not_written_again(tmp_path):
    file = _finished(tmp_path)
    before = file.stat()
    assert _finished(tmp_path).stat().st_ino == before.st_ino, "an atomic write makes another file"
    kept = _kept(tmp_path)
    kept.finish([{"prompt": p} for p in "abd"])
    assert file.stat().st_ino != before.st_ino and '"d"' in file.read_text()


def test_kept_answers_are_found_in_linear_time(tmp_path):
    """The keys were gone through once for every answer on disk: minutes for 20,000."""
    _finished(tmp_path)
    passes = []

    class Keys(list):
        def __iter__(self):
            passes.append(1)
            return super().__iter__()

    assert len(_kept(tmp_path, Keys(KEYS)).by_number) == 3
    assert len(passes) <= 2


@pytest.mark.parametrize(
    "one,other",
    [
        ({"inputs_pretokenized": b"ab", "choices": [b"c"]}, {"inputs_pretokenized": b"a", "choices": [b"bc"]}),
        ({"choices": [b"ab"]}, {"choices": [b"a", b"b"]}),
        ({"inputs": np.array([5, 0])}, {"inputs": np.array([5])}),
        ({"inputs": np.array([5])}, {"inputs": np.array([5 * 256])}),
    ],
)
def test_parts_of_a_key_do_not_run_into_each_other(one, other):
    keys = answer_store.keys([{"inputs": np.array([1]), **fields} for fields in (one, other)], MADE_BY)
    assert keys[0] != keys[1]
    tokens = one.get("inputs", np.array([1]))
    again = [{"inputs": tokens.astype(dtype), **{k: v for k, v in one.items() if k != "inputs"}} for dtype in "ilq"]
    assert set(answer_store.keys(again, MADE_BY)) == {keys[0]}, "the same tokens as another integer type"


def test_in_sampling_an_examples_place_is_part_of_its_key():
    assert len(set(answer_store.keys(_examples("aab"), MADE_BY, numbered=True))) == 3


def test_answers_that_are_not_needed_stay(tmp_path):
    """A limited evaluation, or one of another checkpoint, in the same folder."""
    _finished(tmp_path)
    for keys in ([KEYS[1]], answer_store.keys(_examples(), {**MADE_BY, "checkpoint": "ba5"})):
        kept = _kept(tmp_path, keys)
        kept.add(range(len(keys)), ANSWERS[: len(keys)])
        kept.finish([{}] * len(keys))
        assert len((tmp_path / "run.jsonl").read_text().split("\n")) == len(keys) + 1
    assert {n: _kept(tmp_path).by_number[n] for n in (0, 2)} == {0: ANSWERS[0], 2: ANSWERS[2]}


def test_an_interrupted_task_keeps_its_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_store, "_SECONDS_PER_PART", 0.0)
    kept = _kept(tmp_path)
    kept.add([2], [ANSWERS[2]])
    kept.add([0], [ANSWERS[0]])
    assert len(list(tmp_path.rglob("*.jsonl"))) == 2
    again = _kept(tmp_path)
    assert again.by_number == {0: ANSWERS[0], 2: ANSWERS[2]}
    again.add([1], [ANSWERS[1]])
    again.finish([{}] * 3)
    assert _kept(tmp_path).by_number == dict(enumerate(ANSWERS))
    assert [path.name for path in tmp_path.iterdir()] == ["run.jsonl"]


def test_what_json_does_not_have_is_null_on_disk(tmp_path):
    """Of a model whose scores overflow, and of a postprocessing that returns NaN."""
    kept = _kept(tmp_path, KEYS[:1])
    kept.add([0], [Answer("eins", (-1.5, math.nan, -math.inf))])
    kept.finish([{"prediction": math.nan, "target": [1.0, math.inf], "score": None}])
    line = strict_json.loads((tmp_path / "run.jsonl").read_bytes())
    assert (line["prediction"], line["target"], line["choice_scores"]) == (None, [1.0, None], [-1.5, None, None])
    (answer,) = _kept(tmp_path, KEYS[:1]).by_number.values()
    assert answer.output == "eins" and answer.scores is not None
    np.testing.assert_array_equal(answer.scores, [-1.5, math.nan, math.nan])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=5, unique=True))
def test_any_text_is_kept(tmp_path_factory, outputs):
    folder = tmp_path_factory.mktemp("kept")
    keys = answer_store.keys(_examples("".join(map(chr, range(97, 97 + len(outputs))))), MADE_BY)
    for finish in (False, True):
        kept = _kept(folder, keys)
        kept.add(range(len(outputs)), [Answer(output) for output in outputs])
        kept.flush()
        if finish:
            kept.finish([{"prompt": output} for output in outputs])
        assert [answer.output for answer in _kept(folder, keys).by_number.values()] == outputs


@pytest.mark.parametrize("together,again", [(False, [1, 2]), (True, [0, 1, 2])])
def test_what_was_answered_before_an_error_is_not_answered_again(together, again, tmp_path):
    """In sampling an answer depends on the others of its batch, so all are made again."""
    asked = []

    def answer(missing, fail=False):
        for number in missing:
            if fail and number == 1:
                raise KeyboardInterrupt
            asked.append(number)
            yield [number], [ANSWERS[number]]

    with pytest.raises(KeyboardInterrupt):
        _kept(tmp_path).complete(lambda missing: answer(missing, fail=True), "first", together=together)
    assert asked == [0]
    asked.clear()
    assert _kept(tmp_path).complete(answer, "second", together=together) == ANSWERS and asked == again
    asked.clear()
    assert _kept(tmp_path).complete(answer, "third", together=together) == ANSWERS and asked == []


def test_equal_prompts_are_answered_once(tmp_path, monkeypatch):
    """Each in a batch of its own got scores of its own, and the same command again wrote another file."""
    monkeypatch.setattr(answer_store, "_SECONDS_PER_PART", 0.0)
    keys, asked, bars = [KEYS[n] for n in (0, 1, 0, 2, 1)], [], []
    progress = answer_store.tqdm.tqdm
    monkeypatch.setattr(answer_store.tqdm, "tqdm", lambda **settings: bars.append(progress(**settings)) or bars[-1])

    def answer(missing, until=5):
        for number in missing:
            if number >= until:
                raise KeyboardInterrupt
            asked.append(number)
            yield [number], [Answer("eins", (-1.5 - number * 1e-7,))]

    def complete(folder):
        kept = _kept(folder, keys)
        answers = kept.complete(answer, "run")
        kept.finish([{}] * 5)
        assert [n for n, answer in enumerate(answers) if answer is not answers[keys.index(keys[n])]] == []
        return (folder / "run.jsonl").read_bytes()

    whole = complete(tmp_path / "whole")
    assert asked == [0, 1, 3]
    assert complete(tmp_path / "whole") == whole and asked == [0, 1, 3]
    with pytest.raises(KeyboardInterrupt):
        _kept(tmp_path / "resumed", keys).complete(lambda missing: answer(missing, until=1), "run")
    assert complete(tmp_path / "resumed") == whole and asked == [0, 1, 3, 0, 1, 3]
    assert [(bar.initial, bar.n, bar.total) for bar in bars] == [(0, 5, 5), (5, 5, 5), (0, 2, 5), (2, 5, 5)]


def test_an_interrupt_says_what_is_kept(tmp_path):
    def answer(missing):
        yield [0, 1], ANSWERS[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        _kept(tmp_path).complete(answer, "run")
    assert caught.value.__notes__ == ["2 of 3 answers of run are kept; the same command continues after them"]
    assert _kept(tmp_path).by_number == {0: ANSWERS[0], 1: ANSWERS[1]}


def test_answers_wait_a_few_seconds_for_their_part(tmp_path):
    kept = _kept(tmp_path)
    kept.add([0], [ANSWERS[0]])
    assert not list(tmp_path.iterdir())
    kept.flush()
    kept.flush()
    assert _kept(tmp_path).by_number == {0: ANSWERS[0]} and len(list(tmp_path.rglob("*.jsonl"))) == 1


@pytest.mark.parametrize(
    "damage,lost",
    [
        (lambda data: data[:-20], {2}),
        (lambda data: data[:-1] + b",\n", {2}),
        (lambda data: b"\xff\x00" + data, {0}),
        (lambda data: data.replace(b'"output"', b'"answer"'), {0, 1, 2}),
        (lambda data: data.replace(b'"eins"', b"1"), {0}),
        (lambda data: data.replace(b'"eins"', b'"zwei"'), {0}),  # another answer, another score
        (lambda data: data.replace(b"[-1.5, -0.25]", b"[-1.5]"), {1}),  # fewer scores than choices
        (lambda data: data.replace(KEYS[1].encode(), KEYS[2].encode()), {1}),
        (lambda data: data.replace(b"crc32", b"crc33"), {0, 1, 2}),
        (lambda data: b"[]\n", {0, 1, 2}),
        (lambda data: b"3\n", {0, 1, 2}),
    ],
)
def test_damaged_answers_are_reported_once_and_made_again(damage, lost, tmp_path, caplog):
    file = _finished(tmp_path)
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        kept = _kept(tmp_path)
        assert kept.by_number == {number: ANSWERS[number] for number in {0, 1, 2} - lost}
        assert _kept(tmp_path).by_number == kept.by_number
    assert caplog.text.count(f"{file} is damaged") == 1
    kept.add([0, 1, 2], ANSWERS)
    kept.finish([{}] * 3)
    assert _kept(tmp_path).by_number == dict(enumerate(ANSWERS))


def test_a_damaged_file_of_other_answers_loses_only_what_is_damaged(tmp_path, caplog):
    """Its end was cut, and every later evaluation answered all examples again."""
    _finished(tmp_path)
    kept = _kept(tmp_path, KEYS[:1])
    kept.finish([{}])
    others = tmp_path / "run.others.jsonl"
    others.write_bytes(others.read_bytes()[:-30])
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        for _ in range(3):
            assert _kept(tmp_path, KEYS[:1]).by_number == {0: ANSWERS[0]}
            _kept(tmp_path, KEYS[:1]).finish([{}])
    assert caplog.text.count(f"{others} is damaged; 1 of its 2 answers are made again if needed") == 1
    assert _kept(tmp_path).by_number == {0: ANSWERS[0], 1: ANSWERS[1]}


def test_a_damaged_part_is_reported_once(tmp_path, caplog):
    kept = _kept(tmp_path)
    for number in (0, 1):
        kept.add([number], [ANSWERS[number]])
        kept.flush()
    part, _ = sorted(tmp_path.rglob("*.jsonl"))
    part.write_text("{")
    with caplog.at_level(python_logging.WARNING, logger="absl"):
        assert _kept(tmp_path).by_number == _kept(tmp_path).by_number == {1: ANSWERS[1]}, "the other part is whole"
    assert caplog.text.count("is damaged") == 1


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    file = _finished(tmp_path)
    before = file.read_bytes()

    def full(path, data):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(files, "write_whole", full)
    kept = _kept(tmp_path)
    with pytest.raises(OSError, match="No space left"):
        kept.finish([{}] * 3)
    assert file.read_bytes() == before
