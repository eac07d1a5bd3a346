"""Decoding against step-by-step numpy, brute force, and a beam search written with plain lists."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models import decoding

EOS = 1


class HistoryModel:
    """Random logits that depend on the batch row, the position, the last token, and the whole history.

    The step learns all but the last token and the position from its cache, so it computes other numbers than `logits`
    as soon as the cache is out of step with the sequences.
    """

    def __init__(self, seed=0, rows=3, max_length=6, vocab_size=7, eos_bias=()):
        rng = np.random.default_rng(seed)
        self.rows, self.max_length = rows, max_length
        self.table = rng.normal(size=(rows, max_length, vocab_size, vocab_size)).astype(np.float32) * 1.5
        for row, bias in enumerate(eos_bias):
            self.table[row, :, :, EOS] += bias
        self.mixing = rng.normal(size=(rows, max_length, vocab_size)).astype(np.float32) * 0.1

    def logits(self, row, prefix):
        """Logits of the token after `prefix`; position 0 was fed with the padding id 0."""
        fed = [0, *prefix]
        history = sum(place * token for place, token in enumerate(fed)) % 11
        return self.table[row, len(prefix), fed[-1]] + history * self.mixing[row, len(prefix)]

    def log_probs(self, row, prefix):
        logits = self.logits(row, prefix).astype(np.float64)
        return logits - np.log(np.exp(logits).sum())

    def start(self):
        first_logits = np.stack([self.logits(row, []) for row in range(self.rows)])
        # One leaf has an axis in front of the batch, as stacked layers have.
        fed = jnp.zeros((2, self.rows, self.max_length, 1, 1), jnp.int32)
        mixing = jnp.asarray(self.mixing)[:, :, :, None]
        return jnp.asarray(first_logits), {"row": {"table": jnp.asarray(self.table), "mixing": mixing}, "fed": fed}


def _history_step(tokens_N, cache, position):
    fed = cache["fed"].at[:, :, position, 0, 0].set(tokens_N)
    places = jnp.arange(fed.shape[2])
    history_N = jnp.sum(jnp.where(places <= position, fed[1, :, :, 0, 0], 0) * places, axis=1) % 11
    table_NxV = cache["row"]["table"][jnp.arange(len(tokens_N)), position, tokens_N]
    mixing_NxV = cache["row"]["mixing"][:, position, :, 0]
    return table_NxV + history_N[:, None] * mixing_NxV, {"row": cache["row"], "fed": fed}


class Recorder:
    """The step, noting for each call at run time the position and the tokens in each sequence's cache."""

    def __init__(self):
        self.calls = []

    def __call__(self, tokens_N, cache, position):
        logits_NxV, cache = _history_step(tokens_N, cache, position)
        jax.debug.callback(self._note, position, cache["fed"], ordered=True)
        return logits_NxV, cache

    def _note(self, position, fed):
        self.calls.append((int(position), np.asarray(fed)[0, :, 1 : int(position) + 1, 0, 0].tolist()))

    def run(self, decode, model, **options):
        """Decodes in one compiled program, and waits for the notes."""
        result = jax.jit(lambda logits, cache: decode(logits, cache, self, **options))(*model.start())
        jax.effects_barrier()
        return result


# Compiled once per set of options and shapes: the models' tables are data.
_greedy = jax.jit(
    functools.partial(decoding.greedy, tokens_to_logits=_history_step), static_argnames=("max_length", "eos_id")
)
_sample = jax.jit(
    functools.partial(decoding.sample, tokens_to_logits=_history_step),
    static_argnames=("max_length", "temperature", "top_k", "top_p"),
)
_beam_search = jax.jit(
    functools.partial(decoding.beam_search, tokens_to_logits=_history_step),
    static_argnames=("max_length", "num_beams", "alpha", "eos_id"),
)


def _padded(tokens, length):
    return list(tokens) + [0] * (length - len(tokens))


def _penalty(length, alpha):
    return ((5 + length) / 6) ** alpha


def _argmax_decode(model, row):
    prefix = []
    while len(prefix) < model.max_length and EOS not in prefix:
        prefix.append(int(np.argmax(model.logits(row, prefix))))
    return _padded(prefix, model.max_length)


def _list_beam_search(model, row, num_beams, alpha):
    """Beam search on lists, never ending early; returns (score, tokens) best first, and the alive ones per step."""
    alive, finished, alive_per_step = [(0.0, [])], [], []
    for length in range(1, model.max_length + 1):
        continuations = [
            (log_prob + token_log_prob, [*prefix, token])
            for log_prob, prefix in alive
            for token, token_log_prob in enumerate(model.log_probs(row, prefix))
        ]
        best = sorted(continuations, reverse=True)[: 2 * num_beams]
        ended = [(log_prob / _penalty(length, alpha), tokens) for log_prob, tokens in best if tokens[-1] == EOS]
        finished = sorted(finished + ended, reverse=True)[:num_beams]
        alive = [candidate for candidate in best if candidate[1][-1] != EOS][:num_beams]
        alive_per_step.append([tokens for _, tokens in alive])
    fillers = [(-1e7, [])] * (num_beams - len(finished))
    return (finished + fillers if finished else alive), alive_per_step


def test_greedy_matches_argmax_step_by_step():
    model = HistoryModel(rows=8, eos_bias=(50, -50, 1, 1, 1, 1, 1, 1))
    tokens = _greedy(*model.start(), max_length=6)
    expected = [_argmax_decode(model, row) for row in range(model.rows)]
    assert len({row.index(EOS) if EOS in row else None for row in expected}) > 2  # the endings are ragged
    np.testing.assert_array_equal(tokens, expected)
    assert tokens.dtype == jnp.int32


def test_loop_stops_when_all_rows_have_ended():
    model, step = HistoryModel(rows=2, eos_bias=(50, 50)), Recorder()
    step.run(decoding.greedy, model, max_length=6)
    assert step.calls == []
    model.table[1, 0, :, EOS] -= 100  # row 1 now ends at position 1
    step.run(decoding.greedy, model, max_length=6)
    assert [position for position, _ in step.calls] == [1]


@pytest.mark.parametrize("options", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 0.0}])
def test_narrowest_sampling_is_greedy(options):
    model = HistoryModel(rows=8, eos_bias=(50, -50, 1, 1, 1, 1, 1, 1))
    tokens = _sample(*model.start(), key=jax.random.key(3), max_length=6, **options)
    np.testing.assert_array_equal(tokens, _greedy(*model.start(), max_length=6))


def _markov(probabilities_VxV):
    def step(tokens_N, cache, position):
        return jnp.log(jnp.asarray(probabilities_VxV, jnp.float32))[tokens_N], cache

    return step


def _assert_frequencies(samples, probabilities):
    """Each frequency is within 5 standard deviations; what is impossible never happens."""
    probabilities = np.asarray(probabilities) / np.sum(probabilities)
    frequencies = np.bincount(np.asarray(samples), minlength=len(probabilities)) / len(samples)
    bound = 5 * np.sqrt(probabilities * (1 - probabilities) / len(samples))
    assert (np.abs(frequencies - probabilities) <= bound).all(), (frequencies, probabilities)


# The ids are not in the order of their probabilities: cutting works on the ranking.
PROBABILITIES = np.array([0.1, 0.03, 0.4, 0.17, 0.3])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, PROBABILITIES),
        ({"temperature": 0.5}, PROBABILITIES**2),
        ({"top_k": 2}, PROBABILITIES * [0, 0, 1, 0, 1]),
        ({"top_k": 99}, PROBABILITIES),
        ({"top_p": 0.65}, PROBABILITIES * [0, 0, 1, 0, 1]),
        ({"top_p": 0.75}, PROBABILITIES * [0, 0, 1, 1, 1]),
        ({"top_p": 0.39}, PROBABILITIES * [0, 0, 1, 0, 0]),
        # Among the top 3 the probabilities are 0.460, 0.195, 0.345: two of them reach 0.8, of all only three do.
        ({"top_k": 3, "top_p": 0.8}, PROBABILITIES * [0, 0, 1, 0, 1]),
        # At temperature 0.5 they are 0.543 and 0.306 for the first two.
        ({"temperature": 0.5, "top_p": 0.5}, PROBABILITIES * [0, 0, 1, 0, 0]),
    ],
)
def test_sampling_frequencies(options, expected):
    logits = jnp.tile(jnp.log(jnp.asarray(PROBABILITIES, jnp.float32)) + 2.5, (20000, 1))
    run = jax.jit(lambda *args: decoding.sample(args[0], {}, _markov(np.eye(5) + 1), args[1], max_length=1, **options))
    tokens = run(logits, jax.random.key(0))
    _assert_frequencies(tokens[:, 0], expected)


def test_sampling_frequencies_of_the_second_token_follow_the_first():
    transitions = np.random.default_rng(0).dirichlet(np.ones(4), size=4)
    first = jnp.zeros((20000, 4))
    tokens = np.asarray(decoding.sample(first, {}, _markov(transitions), jax.random.key(1), max_length=2))
    for token in (0, 2, 3):
        _assert_frequencies(tokens[tokens[:, 0] == token, 1], transitions[token])
    assert (tokens[tokens[:, 0] == EOS, 1] == 0).all()


def test_sampling_repeats_with_its_key():
    start = HistoryModel(2, rows=4).start()
    once, again, other = (
        _sample(*start, key=jax.random.key(seed), max_length=6, temperature=2.0, top_p=0.9) for seed in (5, 5, 6)
    )
    np.testing.assert_array_equal(once, again)
    assert (once != other).any()


@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_wide_beam_equals_brute_force(alpha):
    """With no fewer beams than prefixes nothing is pruned, so the best of all sequences come out in order."""
    model = HistoryModel(4, rows=2, max_length=3, vocab_size=4)
    tokens, scores = _beam_search(*model.start(), max_length=3, num_beams=40, alpha=alpha)
    for row in range(model.rows):
        everything = []
        for length in (1, 2, 3):
            for prefix in itertools.product([0, 2, 3], repeat=length - 1):
                sequence = [*prefix, EOS]
                log_prob = sum(model.log_probs(row, sequence[:i])[token] for i, token in enumerate(sequence))
                everything.append((log_prob / _penalty(length, alpha), sequence))
        everything.sort(reverse=True)
        assert len(everything) == 1 + 3 + 9
        np.testing.assert_allclose(scores[row, :13], [score for score, _ in everything], rtol=1e-5)
        np.testing.assert_array_equal(tokens[row, :13], [_padded(sequence, 3) for _, sequence in everything])


@pytest.mark.parametrize(("num_beams", "alpha"), [(1, 0.6), (2, 0.0), (3, 0.6)])
def test_beam_search_matches_lists(num_beams, alpha):
    """Rows that end early, at different lengths, rarely, and never."""
    for seed in range(6):
        model = HistoryModel(seed, rows=5, max_length=6, vocab_size=8, eos_bias=(0, 2, 5, -2, -60))
        tokens, scores = _beam_search(*model.start(), max_length=6, num_beams=num_beams, alpha=alpha)
        assert tokens.shape == (5, num_beams, 6) and tokens.dtype == jnp.int32
        assert scores.shape == (5, num_beams) and scores.dtype == jnp.float32
        for row in range(model.rows):
            _assert_same_beams(tokens[row], scores[row], _list_beam_search(model, row, num_beams, alpha)[0])
        assert EOS not in np.asarray(tokens[4])


def _assert_same_beams(tokens, scores, expected):
    np.testing.assert_array_equal(tokens, [_padded(sequence, tokens.shape[-1]) for _, sequence in expected])
    np.testing.assert_allclose(scores, [score for score, _ in expected], rtol=1e-5, atol=1e-5)


def test_cache_holds_the_tokens_of_its_beam():
    """At every step each beam's cache records exactly the tokens of that beam."""
    num_beams, step = 3, Recorder()
    model = HistoryModel(7, rows=2, max_length=5, vocab_size=8, eos_bias=(-1, -60))
    tokens, _ = step.run(decoding.beam_search, model, max_length=5, num_beams=num_beams)
    assert [position for position, _ in step.calls] == [1, 2, 3, 4]
    expected = [_list_beam_search(model, row, num_beams, 0.6)[1] for row in range(model.rows)]
    for position, held in step.calls:
        for row in range(model.rows):
            # The search keeps the worst beam first.
            assert held[row * num_beams : (row + 1) * num_beams][::-1] == expected[row][position - 1]
    for sequence in np.asarray(tokens[1]).tolist():
        assert sequence[:4] in step.calls[-1][1][num_beams:]


def test_search_ends_once_no_alive_beam_can_win():
    """Short sequences are best in both rows: the step runs a few times instead of 20, with the same result."""
    model, step = HistoryModel(8, rows=2, max_length=20, vocab_size=8, eos_bias=(8, 8)), Recorder()
    tokens, scores = step.run(decoding.beam_search, model, max_length=20, num_beams=2)
    assert 0 < len(step.calls) < 10
    for row in range(2):
        _assert_same_beams(tokens[row], scores[row], _list_beam_search(model, row, 2, 0.6)[0])


def test_one_beam_can_differ_from_greedy():
    """The search goes on after an end token, and with a length penalty a longer sequence may overtake it."""
    first = jnp.log(jnp.array([[0.01, 0.5, 0.49]]))
    step = _markov(np.array([[0.1, 0.8, 0.1], [0.3, 0.3, 0.4], [0.005, 0.99, 0.005]]))
    np.testing.assert_array_equal(decoding.greedy(first, {}, step, max_length=3), [[1, 0, 0]])
    for alpha, expected in ((0.0, [1, 0, 0]), (0.6, [2, 1, 0])):
        tokens, scores = decoding.beam_search(first, {}, step, max_length=3, num_beams=1, alpha=alpha)
        np.testing.assert_array_equal(tokens[0, 0], expected)
        probability = 0.5 if expected[0] == EOS else 0.49 * 0.99
        length = expected.index(EOS) + 1
        np.testing.assert_allclose(scores[0, 0], np.log(probability) / _penalty(length, alpha), rtol=1e-5)


def test_one_token_is_the_shortest_length():
    model = HistoryModel(9, rows=2, max_length=1)
    expected = np.argmax(model.start()[0], axis=-1)[:, None]
    np.testing.assert_array_equal(_greedy(*model.start(), max_length=1), expected)
    tokens, scores = _beam_search(*model.start(), max_length=1, num_beams=3)
    np.testing.assert_array_equal(tokens[:, 0], [[EOS], [EOS]])  # the only finished sequence
    np.testing.assert_allclose(scores[:, 0], [model.log_probs(row, [])[EOS] for row in range(2)], rtol=1e-5)


def test_another_end_token():
    tokens, _ = _beam_search(*HistoryModel(10, rows=3).start(), max_length=6, num_beams=3, eos_id=3)
    endings = 0
    for sequence in np.asarray(tokens).reshape(-1, 6).tolist():
        if 3 in sequence:
            endings += 1
            assert set(sequence[sequence.index(3) + 1 :]) <= {0}
    assert endings > 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_length": 0}, "max_length is 0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"top_k": -1}, "top_k=-1"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"key": None}, "key is None"),
    ],
)
def test_bad_sampling_arguments(options, message):
    options = {"max_length": 2, "key": jax.random.key(0), **options}
    with pytest.raises(ValueError, match=message):
        decoding.sample(jnp.zeros((1, 3)), {}, _markov(np.eye(3)), options.pop("key"), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"max_length": 0}, "max_length"), ({"num_beams": 0}, "num_beams=0"), ({"alpha": -0.1}, "alpha=-0.1")],
)
def test_bad_beam_search_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        decoding.beam_search(jnp.zeros((1, 3)), {}, _markov(np.eye(3)), **{"max_length": 2, **options})
