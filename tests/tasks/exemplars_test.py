"""promot_t5x.tasks.exemplars: which exemplars a question gets, and the pools they come from."""

import collections
import hashlib
import json
import random
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from promot_t5x.runtime import files
from promot_t5x.tasks import exemplars, sources
from promot_t5x.tasks.wording import Example, Wording

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
WORDING = Wording("Q: {question} A:", prefix="Q:")
SEED = st.integers(0, 1000)
MODE = st.sampled_from(exemplars.MODES)
SIZES = st.lists(st.integers(1, 8), min_size=1, max_size=5)  # rows of each class


def _example(question, target, choices=()):
    return Example("Q: ", question, " A:", (target,), choices)


def _pool(sizes, free=False):
    """Rows of several classes, or with as many free answers."""
    choices = () if free else tuple(f"class{i}" for i in range(len(sizes)))
    return tuple(_example(f"{i}.{j}", f"class{i}", choices) for i, size in enumerate(sizes) for j in range(size))


def _texts(examples):
    return [example.inputs for example in examples]


def _rows(count):
    return [{"question": f"question {i}", "target": f"answer {i}"} for i in range(count)]


def _source(folder, rows, target="target"):
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"question": ("question", sources.text), "target": (target, sources.text)}
    return sources.JsonlRows(str(folder), {"train": "train.jsonl"}, columns)


def _make(source, **changed):
    return exemplars.pool(**{"name": "task", "source": source, "split": "train", "wording": WORDING, **changed})


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PROMOT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "exemplars"


@SETTINGS
@given(SIZES, st.booleans(), SEED, MODE, st.data())
def test_exemplars_are_distinct_and_never_the_question(sizes, free, seed, mode, data):
    pool = _pool(sizes, free)
    shots = data.draw(st.integers(0, len(pool) - 1))
    question = data.draw(st.sampled_from([*_texts(pool), "Q: elsewhere A:"]))
    drawn = _texts(exemplars.Sampler("task", pool, shots, seed, mode).draw(question))
    assert len(drawn) == len(set(drawn)) == shots
    assert set(drawn) <= set(_texts(pool)) - {question}


@SETTINGS
@given(SIZES, SEED, MODE, st.randoms(use_true_random=False), st.data())
def test_the_order_of_questions_and_other_draws_do_not_matter(sizes, seed, mode, rng, data):
    pool = _pool(sizes)
    shots = data.draw(st.integers(0, len(pool) - 1))
    questions = [*_texts(pool), *(f"Q: new {i} A:" for i in range(5))]
    # A new sampler each time.
    drawn = {q: exemplars.Sampler("task", pool, shots, seed, mode).draw(q) for q in questions}
    sampler = exemplars.Sampler("task", pool, shots, seed, mode)
    for question in rng.sample(questions, len(questions)):
        random.random()
        assert sampler.draw(question) == drawn[question] == sampler.draw(question)


@pytest.mark.parametrize("mode,drawn", [("per_example", ["0.5", "0.3", "0.2"]), ("fixed", ["0.5", "0.7", "0.8"])])
def test_a_draw_stays_what_it_was(mode, drawn):
    """Reported numbers depend on it, and every host must draw the same."""
    sampler = exemplars.Sampler("task", _pool([9], free=True), 3, 0, mode)
    assert [example.body for example in sampler.draw("Q: x A:")] == drawn


def _is_balanced(drawn, remaining):
    """Whether no class that has rows left occurs less often than another by two or more."""
    counts = collections.Counter(example.target for example in drawn)
    return all(counts[c] >= max(counts.values(), default=0) - 1 or counts[c] == remaining[c] for c in remaining)


@SETTINGS
@given(SIZES, SEED, MODE, st.data())
def test_classes_are_balanced(sizes, seed, mode, data):
    pool = _pool(sizes)
    shots = data.draw(st.integers(0, len(pool) - 1))
    drawn = exemplars.Sampler("task", pool, shots, seed, mode).draw("Q: elsewhere A:")
    assert _is_balanced(drawn, collections.Counter(example.target for example in pool))


@SETTINGS
@given(SIZES, SEED, MODE, st.data())
def test_classes_are_balanced_over_the_rows_that_are_not_the_question(sizes, seed, mode, data):
    pool = _pool(sizes)
    question = data.draw(st.sampled_from(pool))
    shots = data.draw(st.integers(0, len(pool) - 1))
    drawn = exemplars.Sampler("task", pool, shots, seed, mode).draw(question.inputs)
    remaining = collections.Counter(example.target for example in pool if example != question)
    assert _is_balanced(drawn, remaining)


@pytest.mark.parametrize("mode", exemplars.MODES)
def test_two_exemplars_of_two_classes_are_one_of_each(mode):
    pool = _pool([5, 5])
    for seed in range(20):
        sampler = exemplars.Sampler("task", pool, 2, seed, mode)
        assert all(len({shot.target for shot in sampler.draw(example.inputs)}) == 2 for example in pool)


def test_free_answers_are_not_balanced():
    pool = tuple(_example(str(i), "rare" if i == 0 else "common") for i in range(50))
    drawn = [exemplars.Sampler("task", pool, 2, 0).draw(f"new {i}") for i in range(50)]
    assert sum(shot.target == "rare" for shots in drawn for shot in shots) < 25  # in turns it were in every one


@SETTINGS
@given(SIZES, SEED, st.data())
def test_fixed_is_one_set_and_a_question_inside_it_keeps_the_others(sizes, seed, data):
    pool = _pool(sizes)
    shots = data.draw(st.integers(0, len(pool) - 1))
    sampler = exemplars.Sampler("task", pool, shots, seed, "fixed")
    fixed = _texts(sampler.draw("Q: elsewhere A:"))
    for question in (*_texts(pool), "Q: another A:"):
        drawn = _texts(sampler.draw(question))
        assert set(drawn) >= set(fixed) - {question}
        assert question in fixed or drawn == fixed


@pytest.mark.parametrize("other", [{"seed": 1}, {"name": "other"}, {"template": "Q: other {} A:"}, {"seed": -1}])
def test_other_seeds_tasks_and_questions_get_others(other):
    def draw(name="task", seed=0, template="Q: new {} A:"):
        sampler = exemplars.Sampler(name, _pool([20], free=True), 2, seed)
        return [_texts(sampler.draw(template.format(i))) for i in range(300)]

    same = sum(a == b for a, b in zip(draw(), draw(**other), strict=True))
    assert same < 10  # expected: 300 / (20 * 19) = 0.8


def test_other_seeds_give_other_fixed_sets():
    fixed = {tuple(_texts(exemplars.Sampler("task", _pool([20]), 3, seed, "fixed").draw("x"))) for seed in range(50)}
    assert len(fixed) >= 48  # of 6840


@pytest.mark.parametrize("sizes", [[10], [5, 5], [2, 2, 2, 2, 2]])
def test_every_row_is_drawn_as_often_and_at_every_position(sizes):
    pool = _pool(sizes)
    for shots in (1, 3):
        sampler = exemplars.Sampler("task", pool, shots)
        drawn = [_texts(sampler.draw(f"Q: new {i} A:")) for i in range(2000)]
        for position in range(shots):
            counts = collections.Counter(texts[position] for texts in drawn)
            assert set(counts) == set(_texts(pool))
            assert all(140 <= count <= 260 for count in counts.values()), counts  # 200 expected, deviation 13


@pytest.mark.parametrize("shots", [3, 4, 100])
def test_as_many_exemplars_as_rows_are_refused(shots):
    with pytest.raises(ValueError, match=f"'few'.* {shots} exemplars.* 3 training questions"):
        exemplars.Sampler("few", _pool([3]), shots)


def test_modes_are_checked():
    with pytest.raises(ValueError, match="'random', expected one of per_example, fixed"):
        exemplars.Sampler("task", _pool([3]), 1, 0, "random")


@pytest.mark.parametrize("size", [1, 3, 10, 25, 200])
@pytest.mark.parametrize("seed", [0, 7])
def test_of_many_rows_those_with_the_smallest_hashes_are_taken(tmp_path, cache, size, seed):
    rows = [*_rows(100), *({"question": f"question {i}", "target": f"other {i}"} for i in range(0, 100, 3))]

    def digest(text):
        return hashlib.sha256(text.encode()).hexdigest()

    best = {}
    for row in sorted(rows, key=lambda row: digest(json.dumps(row, sort_keys=True)), reverse=True):
        best[digest(f"{seed}\nQ: {row['question']} A:")] = (f"Q: {row['question']} A:", row["target"])
    expected = [best[key] for key in sorted(best)[:size]]
    made = _make(_source(tmp_path, rows), size=size, seed=seed)
    assert [(example.inputs, example.target) for example in made] == expected
    assert len(made) == min(size, 100)


def test_the_order_of_rows_does_not_matter_to_the_pool(tmp_path, cache):
    rows = [*_rows(60), *({"question": f"question {i}", "target": "other"} for i in range(30))]
    made = []
    for i in range(4):
        random.Random(i).shuffle(rows)
        made.append(_make(_source(tmp_path / str(i), rows), size=11))
    assert len(set(made)) == 1 and len(list(cache.iterdir())) == 4  # each was read
    assert len(set(_texts(made[0]))) == 11


def test_a_question_with_several_answers_is_no_exemplar_of_itself(tmp_path, cache):
    rows = [{"question": f"question {i}", "target": target} for i in range(5) for target in ("a", "b", "c")]
    pool = _make(_source(tmp_path, rows))
    assert len(pool) == 5
    for mode in exemplars.MODES:
        sampler = exemplars.Sampler("task", pool, 4, 0, mode)
        assert all(example.inputs not in _texts(sampler.draw(example.inputs)) for example in pool)


def _disguised(text, rng):
    """Another spelling that SentencePiece's models read as the same: other white space, other code points."""
    spelt = unicodedata.normalize(rng.choice(["NFC", "NFD", "NFKC", "NFKD"]), text)
    spaces = [" ", "  ", "\t", "\n", "\u00a0", "\u3000 ", "\u2009"]
    return rng.choice(["", *spaces]) + rng.choice(spaces).join(spelt.split()) + rng.choice(["", *spaces])


@SETTINGS
@given(st.lists(st.text(max_size=8), min_size=3, max_size=6), SEED, MODE, st.randoms(use_true_random=False))
def test_a_question_in_another_spelling_is_no_exemplar_of_itself(questions, seed, mode, rng):
    """Its answer would be in its prompt."""
    questions = list({exemplars.normal_form(q): q for q in (f"{i % 3} {q}" for i, q in enumerate(questions))}.values())
    pool = tuple(Example("Q: ", _disguised(question, rng), " A:", (f"of {i}",)) for i, question in enumerate(questions))
    sampler = exemplars.Sampler("task", pool, len(pool) - 1, seed, mode)
    for i, question in enumerate(questions):
        for spelling in (question, _disguised(question, rng)):
            drawn = sampler.draw(f"Q: {spelling} A:")
            assert f"of {i}" not in {example.target for example in drawn} and len(drawn) == len(pool) - 1


@SETTINGS
@given(st.text())
def test_a_normal_form_is_its_own(text):
    normal = exemplars.normal_form(text)
    assert exemplars.normal_form(normal) == normal == exemplars.normal_form(f"\u3000{text}\n")


def test_spellings_of_one_question_are_one_row_of_the_pool(tmp_path, cache):
    questions = [
        "Qui e\u0301tait-ce ?",
        "Qui \u00e9tait-ce ?",
        "Qui \u00e9tait-ce\u00a0? ",
        "\uff31ui \u00e9tait-ce  ?",
        "two",
    ]
    pool = _make(_source(tmp_path, [{"question": question, "target": "x"} for question in questions]))
    assert len(pool) == 2


def test_a_pool_is_read_once(tmp_path, cache, monkeypatch):
    source = _source(tmp_path, _rows(20))
    first = _make(source)
    monkeypatch.setattr(sources.JsonlRows, "get_dataset", lambda *args, **kwargs: pytest.fail("the source is read"))
    assert _make(source) == _make(_source(tmp_path, _rows(20))) == first
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [*_rows(30), {"question": "new", "target": "new"}]},
        {"rows": _rows(29)},
        {"target": "question"},  # the same file, read otherwise
        {"size": 7},
        {"seed": 1},
        {"name": "other"},
        {"wording": Wording("Question: {question} Answer:")},
        {"wording": Wording("Q: {question} A:", prefix="Q:", max_input_tokens=5)},
    ],
)
def test_another_pool_is_another_file(tmp_path, cache, changed):
    _make(_source(tmp_path, _rows(30)))
    source = _source(tmp_path, changed.get("rows", _rows(30)), changed.get("target", "target"))
    changed = {key: value for key, value in changed.items() if key not in ("rows", "target")}
    made = _make(source, **changed)
    assert len(list(cache.iterdir())) == 2
    shutil.rmtree(cache)
    assert _make(source, **changed) == made


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content[:20],
        lambda content: b"\xff\xfe\x00 garbage",
        lambda content: b"[]\n" + content,
        lambda content: b"\n".join(content.splitlines()[:-1]) + b"\n",
        lambda content: content + content.splitlines()[-1] + b"\n",
        lambda content: content.splitlines()[0] + b"\n",
        lambda content: content.splitlines()[0].replace(b'"rows": 20', b'"rows": 0') + b"\n",
        lambda content: content.replace(b"task", b"mask", 1),
        lambda content: content.replace(b"answer 3", b"answer 4"),
        lambda content: b"\n".join([content.splitlines()[0], *[b"[]"] * 20]),  # rows of another shape
        lambda content: b"\n".join([content.splitlines()[0], *[b'{"question": 5}'] * 20]),
    ],
)
def test_a_damaged_pool_is_made_again(tmp_path, cache, damage, caplog):
    source = _source(tmp_path, _rows(20))
    first = _make(source)
    (file,) = cache.iterdir()
    content = file.read_bytes()
    file.write_bytes(damage(content))
    assert file.read_bytes() != content
    assert _make(source) == first and file.read_bytes() == content
    assert caplog.text.count(f"{file} is damaged; the pool of exemplars is read again") == 1


@pytest.mark.parametrize("method", ["replace", "write_text"])
def test_a_pool_that_cannot_be_written_is_used_and_leaves_nothing(tmp_path, cache, monkeypatch, caplog, method):
    def fail(*args, **kwargs):
        raise OSError("no space left")

    source = _source(tmp_path, _rows(20))
    with monkeypatch.context() as patched:
        patched.setattr(type(files.cache_folder()), method, fail)
        with caplog.at_level("WARNING", logger="absl"):
            made = _make(source)
    assert "could not be saved (no space left) and is read again next time; set PROMOT_CACHE" in caplog.text
    assert list(cache.iterdir()) == []
    assert _make(source) == made and len(made) == 20
