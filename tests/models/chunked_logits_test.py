"""promot_t5x.models.chunked_logits against the plain computation: numbers, memory, products, four devices."""

import functools
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models import chunked_logits, losses
from promot_t5x.models.chunked_logits import TokenStatistics, token_statistics

# Vocabulary, words of a chunk, pieces: chunks that divide a piece, chunks whose last overlaps, and one chunk.
CUTS = [(40, 8, 1), (37, 8, 1), (37, 37, 1), (40, 5, 4), (44, 4, 4), (40, 10, 4)]
# Every program here runs once: most of the time is compilation, which needs no optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, compiler_options=QUICK)


@pytest.fixture
def cut(monkeypatch):
    """Sets the words of a chunk."""
    return lambda width: monkeypatch.setattr(chunked_logits, "chunk_width", lambda words: width)


def _problem(vocab_size, seed=0, shape=(3, 4, 5)):
    """(hidden_BxUxD, matrix_DxV, targets_BxU, weights_BxU), some weights 0 and some not 1."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=shape).astype(np.float32)
    matrix = rng.normal(size=(shape[-1], vocab_size)).astype(np.float32)
    weights = rng.choice(np.float32([0.0, 1.0, 0.5]), shape[:2])
    weights.flat[:3] = 0.0, 1.0, 0.5
    return hidden, matrix, rng.integers(0, vocab_size, shape[:2]), weights


def _plain(hidden, matrix, targets, *, vocab_axis=1, pieces=1):
    """The statistics with all logits at once."""
    matrix_DxV = (matrix if vocab_axis else matrix.T).astype(jnp.float32)
    logits = hidden.astype(jnp.float32) @ matrix_DxV
    target = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
    return TokenStatistics(jax.nn.logsumexp(logits, axis=-1), target, logits.sum(axis=-1), logits.max(axis=-1))


def _objective(statistics, targets, weights, vocab_size, smoothing=0.1, z_loss=1e-2, **how):
    """A loss of (hidden, matrix)."""

    def loss(hidden, matrix):
        per_token = statistics(hidden, matrix, targets, **how)
        sums = losses.cross_entropy(per_token, weights, vocab_size=vocab_size, label_smoothing=smoothing, z_loss=z_loss)
        return sums.loss

    return loss


def _everything(statistics, problem, **how):
    """The statistics, and (value, gradients) of a loss with all its terms and of a sum of scores that weighs rows."""
    hidden, matrix, targets, weights = problem
    vocab_size = matrix.shape[how.get("vocab_axis", 1)]
    by_row_B = 1.0 + np.arange(len(weights), dtype=np.float32)

    def score(hidden, matrix):
        return jnp.sum(by_row_B * losses.sequence_scores(statistics(hidden, matrix, targets, **how), weights))

    @jit
    def run(hidden, matrix):
        loss = _objective(statistics, targets, weights, vocab_size, **how)
        results = [jax.value_and_grad(f, (0, 1))(hidden, matrix) for f in (loss, score)]
        return statistics(hidden, matrix, targets, **how), results

    return jax.device_get(run(hidden, matrix))


def _numpy_loss(hidden, matrix, targets, weights, smoothing=0.1, z_loss=1e-2):
    """(value, (gradient of the hidden, of the matrix DxV)) from the definitions, in float64."""
    hidden, matrix, weights = np.float64(hidden), np.float64(matrix), np.float64(weights)
    logits = hidden @ matrix
    vocab_size = logits.shape[-1]
    largest = logits.max(axis=-1, keepdims=True)
    log_z = largest + np.log(np.exp(logits - largest).sum(axis=-1, keepdims=True))
    q = np.where(np.arange(vocab_size) == targets[..., None], 1 - smoothing, smoothing / (vocab_size - 1))
    entropy = -np.sum(q * np.log(np.where(q > 0, q, 1)), axis=-1)
    value = np.sum((np.sum(q * (log_z - logits), axis=-1) - entropy + z_loss * log_z[..., 0] ** 2) * weights)
    # exp(logits - log_z) would lose what log_z has no digits for where logits are near the end of the range.
    exp = np.exp(logits - largest)
    by_logits = ((1 + 2 * z_loss * log_z) * exp / exp.sum(axis=-1, keepdims=True) - q) * weights[..., None]
    return value, (by_logits @ matrix.T, np.einsum("bud,buv->dv", hidden, by_logits))


def _numpy(problem):
    hidden, matrix, targets, weights = problem
    by_row_B = 1.0 + np.arange(len(weights))
    score = _numpy_loss(hidden, matrix, targets, weights * by_row_B[:, None], 0.0, 0.0)
    return [_numpy_loss(*problem), jax.tree.map(np.negative, score)]


def _difference(actual, expected):
    """|actual - expected| / |expected|, norms over the whole array."""
    actual, expected = np.float64(actual), np.float64(expected)
    return np.linalg.norm(actual - expected) / np.linalg.norm(expected)


def _check(actual, expected):
    """Every value and gradient of two trees, each by its own norm."""
    leaves, others = jax.tree.leaves(actual), jax.tree.leaves(expected)
    for i, (a, b) in enumerate(zip(leaves, others, strict=True)):
        assert np.shape(a) == np.shape(b) and _difference(a, b) <= 1e-6, i


# --- Numbers ---


@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize("vocab_size,width,pieces", CUTS)
def test_statistics_losses_and_gradients_are_those_of_all_logits(cut, vocab_size, width, pieces, vocab_axis):
    cut(width)
    hidden, matrix, targets, weights = problem = _problem(vocab_size)
    stored = (hidden, matrix if vocab_axis else matrix.T, targets, weights)
    statistics, results = _everything(token_statistics, stored, vocab_axis=vocab_axis, pieces=pieces)
    plain_statistics, plain_results = _everything(_plain, stored, vocab_axis=vocab_axis)
    for name, actual, expected in zip(statistics._fields, statistics, plain_statistics, strict=True):
        assert actual.dtype == np.float32 and actual.shape == targets.shape
        assert _difference(actual, expected) <= 1e-6, name
    _check(results, plain_results)
    _check(results, [(value, (h, m if vocab_axis else m.T)) for value, (h, m) in _numpy(problem)])


@pytest.mark.parametrize("vocab_size,pieces,vocab_axis", [(32128, 1, 1), (250112, 4, 0)])
def test_real_vocabularies_in_the_chunks_they_have(vocab_size, pieces, vocab_axis):
    assert chunked_logits.chunk_width(vocab_size // pieces) < vocab_size // pieces
    hidden, matrix, targets, weights = _problem(vocab_size, 1, shape=(2, 3, 4))
    hidden *= 2  # so many words of like probability would cancel in the gradient and leave its rounding
    stored = (hidden, matrix if vocab_axis else matrix.T, targets, weights)
    how = dict(vocab_axis=vocab_axis)
    chunked = _objective(token_statistics, targets, weights, vocab_size, pieces=pieces, **how)
    plain = _objective(_plain, targets, weights, vocab_size, **how)
    actual, expected = (jit(jax.value_and_grad(loss, (0, 1)))(*stored[:2]) for loss in (chunked, plain))
    _check(actual, expected)
    value, (h, m) = _numpy_loss(hidden, matrix, targets, weights)
    _check(actual, (value, (h, m if vocab_axis else m.T)))


@pytest.mark.parametrize("vocab_axis", [0, 1])
def test_bfloat16_is_computed_in_float32_and_rounded_once(cut, vocab_axis):
    cut(8)
    hidden, matrix, targets, weights = _problem(37, 1)
    rounded = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(matrix if vocab_axis else matrix.T, jnp.bfloat16)
    statistics, results = _everything(token_statistics, (*rounded, targets, weights), vocab_axis=vocab_axis)
    wide = tuple(x.astype(jnp.float32) for x in rounded)
    expected, expected_results = _everything(_plain, (*wide, targets, weights), vocab_axis=vocab_axis)
    assert {x.dtype for x in statistics} == {np.dtype("float32")}
    assert max(_difference(a, b) for a, b in zip(statistics, expected, strict=True)) <= 1e-6
    for (value, gradients), (plain_value, plain_gradients) in zip(results, expected_results, strict=True):
        assert _difference(value, plain_value) <= 1e-6
        for gradient, plain_gradient in zip(gradients, plain_gradients, strict=True):
            assert gradient.dtype == jnp.bfloat16
            # Hardly any sum is so near the middle of two numbers that float32's own rounding decides.
            assert np.mean(gradient == plain_gradient.astype(gradient.dtype)) > 0.99


def _of_logits(logits, targets, weights):
    """The same logits by an identity matrix: exact, whatever their size."""
    return logits, np.eye(logits.shape[-1], dtype=np.float32), targets, weights


@pytest.mark.parametrize("pieces", [1, 4])
def test_large_logits_neither_overflow_nor_lose_the_probabilities(cut, pieces):
    """float32 rounds a log Z of 1e4 to 1e-3: a probability that is made from it has three digits."""
    cut(4)
    rng = np.random.default_rng(2)
    level = rng.choice([-1e4, 1e4], (3, 4, 1)) + np.where(rng.random((3, 4, 44)) < 0.5, 0.0, -1e4)
    logits = (level + rng.integers(-3, 4, level.shape)).astype(np.float32)
    problem = _of_logits(logits, rng.integers(0, 44, (3, 4)), np.ones((3, 4), np.float32))
    statistics, results = _everything(token_statistics, problem, pieces=pieces)
    plain_statistics, plain_results = _everything(_plain, problem)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((statistics, results)))
    assert max(_difference(a, b) for a, b in zip(statistics, plain_statistics, strict=True)) <= 1e-6
    _check(results, plain_results)
    _check(results, _numpy(problem))


@pytest.mark.parametrize("pieces", [1, 4])
def test_words_that_are_all_but_impossible(cut, pieces):
    """Chunks, pieces and rows of logits as a mask would leave them."""
    cut(4)
    logits, *_ = _problem(44, 3, (2, 2, 44))
    logits[0, 0] = -1e15  # all words alike
    logits[0, 1, 4:] = -1e15  # the first chunk of the first piece is left
    logits[1, 0, :-1] = -1e15  # the last word is left
    targets, weights = np.array([[7, 2], [43, 5]]), np.ones((2, 2), np.float32)
    hidden, matrix, *_ = problem = _of_logits(logits, targets, weights)

    def results(statistics, **how):
        # A z-loss of the masked rows would drown the rest.
        loss = _objective(statistics, targets, weights, 44, 0.0, 0.0, **how)
        return jit(jax.value_and_grad(loss, (0, 1)))(hidden, matrix)

    chunked = results(token_statistics, pieces=pieces)
    _check(chunked, results(_plain))
    by_hidden, by_matrix = chunked[1]
    _check((by_hidden, by_matrix), _numpy_loss(*problem, 0.0, 0.0)[1])
    np.testing.assert_allclose(by_hidden[0, 0], np.where(np.arange(44) == 7, 1 / 44 - 1, 1 / 44), rtol=1e-6)


def test_the_largest_logit_carries_no_gradient(cut):
    cut(8)
    hidden, matrix, targets, _ = _problem(37)
    gradient = jit(jax.jacrev(lambda h: [jnp.sum(x) for x in token_statistics(h, matrix, targets)]))
    _, _, by_total, by_largest = gradient(hidden)
    assert not np.any(by_largest)
    np.testing.assert_allclose(by_total, np.broadcast_to(matrix.sum(axis=1), hidden.shape), rtol=1e-5)


# --- Transformations ---


def test_microbatches_of_a_scan_add_up_to_the_batch(cut):
    cut(8)
    hidden, matrix, targets, weights = _problem(37, shape=(6, 4, 5))

    @jit
    def scanned(hidden, matrix):
        def add(total, part):
            hidden, targets, weights = part
            loss = _objective(token_statistics, targets, weights, 37)
            value, (by_hidden, by_matrix) = jax.value_and_grad(loss, (0, 1))(hidden, matrix)
            return (total[0] + value, total[1] + by_matrix), by_hidden

        parts = jax.tree.map(lambda x: x.reshape(3, 2, *x.shape[1:]), (hidden, targets, weights))
        (value, by_matrix), by_hidden = jax.lax.scan(add, (0.0, jnp.zeros_like(matrix)), parts)
        return value, (by_hidden.reshape(hidden.shape), by_matrix)

    plain = _objective(_plain, targets, weights, 37)
    _check(scanned(hidden, matrix), jit(jax.value_and_grad(plain, (0, 1)))(hidden, matrix))


@pytest.mark.parametrize("own_matrices", [False, True])
def test_mapped_over_an_axis_in_front(cut, own_matrices):
    cut(8)
    problems = [_problem(37, seed) for seed in range(3)]
    hidden, matrix, targets, weights = (np.stack(arrays) for arrays in zip(*problems, strict=True))
    if not own_matrices:
        matrix = matrix[0]

    def evaluate(statistics, hidden, matrix, targets, weights):
        return jax.value_and_grad(_objective(statistics, targets, weights, 37), (0, 1))(hidden, matrix)

    actual, expected = (
        jit(jax.vmap(functools.partial(evaluate, statistics), in_axes=(0, 0 if own_matrices else None, 0, 0)))(
            hidden, matrix, targets, weights
        )
        for statistics in (token_statistics, _plain)
    )
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape[0] == 3 and a.shape == b.shape
        assert max(_difference(x, y) for x, y in zip(a, b, strict=True)) <= 1e-6


# --- Memory and products ---


def _equations(jaxpr):
    """All equations of a program, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in jax.tree.leaves(tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)


def _largest_array(function, *args):
    """Elements of the largest array that a program computes."""
    program = jax.make_jaxpr(function)(*args).jaxpr
    return max(variable.aval.size for equation in _equations(program) for variable in equation.outvars)


def _products(function, *args):
    return sum(
        equation.primitive.name == "dot_general" for equation in _equations(jax.make_jaxpr(function)(*args).jaxpr)
    )


@pytest.mark.parametrize("vocab_axis", [0, 1])
@pytest.mark.parametrize("vocab_size,width,pieces", [(400, 80, 1), (370, 80, 1), (440, 40, 4)])
def test_all_logits_never_exist_at_once(cut, vocab_size, width, pieces, vocab_axis):
    cut(width)
    hidden, matrix, targets, weights = _problem(vocab_size)
    args = hidden, matrix if vocab_axis else matrix.T
    how = dict(vocab_axis=vocab_axis)
    chunked = _objective(token_statistics, targets, weights, vocab_size, pieces=pieces, **how)
    all_logits = targets.size * vocab_size
    assert _largest_array(jax.value_and_grad(chunked, (0, 1)), *args) < all_logits
    plain = _objective(_plain, targets, weights, vocab_size, **how)
    assert _largest_array(jax.value_and_grad(plain, (0, 1)), *args) >= all_logits


def _in_a_scan(loss):
    """Gradients of two microbatches, added."""

    def gradient(argnums):
        def run(hidden, matrix):
            def add(total, part):
                return jax.tree.map(jnp.add, total, jax.grad(loss, argnums)(part, matrix)), None

            start = tuple(jnp.zeros_like((hidden, matrix)[i]) for i in argnums)
            return jax.lax.scan(add, start, jnp.stack([hidden, hidden]))[0]

        return run

    return gradient


def _gradient_of_a_scan(loss):
    def total(hidden, matrix):
        parts = jnp.stack([hidden, hidden])
        return jax.lax.scan(lambda total, part: (total + loss(part, matrix), None), 0.0, parts)[0]

    return functools.partial(jax.grad, total)


_WAYS = {
    "plainly": lambda loss: functools.partial(jax.grad, loss),
    "under jit": lambda loss: functools.partial(jax.grad, jax.jit(loss)),
    "in a scan": _in_a_scan,
    "of a scan": _gradient_of_a_scan,
    "recomputed": lambda loss: functools.partial(jax.grad, jax.checkpoint(loss)),
}


@pytest.mark.parametrize("way", list(_WAYS))
def test_a_frozen_matrix_costs_no_product(cut, way):
    """Logits, logits again, and one product a gradient; a checkpoint computes the first logits once more."""
    cut(8)
    hidden, matrix, targets, weights = _problem(37)
    gradient = _WAYS[way](_objective(token_statistics, targets, weights, 37))
    again = way == "recomputed"
    assert _products(gradient((0,)), hidden, matrix) == 3 + again
    assert _products(gradient((0, 1)), hidden, matrix) == 4 + again


# --- Wrong arguments, and the width of chunks ---


def test_pieces_that_do_not_divide_are_named():
    with pytest.raises(ValueError, match="A vocabulary of 37 does not divide into 4 pieces"):
        token_statistics(jnp.zeros((1, 1, 2)), jnp.zeros((2, 37)), jnp.zeros((1, 1), int), pieces=4)


@pytest.mark.parametrize("most", [1, 7, 8192])
def test_chunks_cover_the_words_and_are_as_few_as_can_be(most):
    for words in (1, 7, 8, 97, 8192, 8193, 32128, 62528, 250112):
        width = chunked_logits.chunk_width(words, most)
        fewest, chunks = -(-words // most), -(-words // width)
        assert 1 <= width <= most
        assert fewest <= chunks <= 2 * fewest
        assert chunks == fewest or words % width == 0


# --- Four devices ---

_FOUR_DEVICES = """
import json, re
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from promot_t5x.models import chunked_logits, losses
from promot_t5x.partitioning import partitioner as partitioning
from promot_t5x.partitioning.partitioner import Partitioner

B, U, D, V = 8, 6, 8, 128
rng = np.random.default_rng(0)
hidden = rng.normal(size=(B, U, D)).astype(np.float32)
matrix_DxV = rng.normal(size=(D, V)).astype(np.float32)
batch = {
    "hidden": hidden,
    "targets": rng.integers(0, V, (B, U)).astype(np.int32),
    "weights": rng.choice(np.float32([0, 0.5, 1]), (B, U)),
}

def sizes(text):
    shapes = re.findall(r"[a-z]+[0-9]*\\[([0-9,]+)\\]", text)
    return [int(np.prod([int(size) for size in shape.split(",")])) for shape in shapes]

report = {"devices": len(jax.devices()), "cases": []}
for preset, vocab_axis, width in CASES:
    chunked_logits.chunk_width = lambda words: min(width, words)
    matrix = matrix_DxV if vocab_axis else matrix_DxV.T

    def loss(hidden, matrix, targets, weights):
        statistics = chunked_logits.token_statistics(
            hidden, matrix, targets, vocab_axis=vocab_axis, pieces=partitioning.pieces("vocab")
        )
        return losses.cross_entropy(statistics, weights, vocab_size=V, label_smoothing=0.1, z_loss=1e-2).loss

    step = jax.value_and_grad(loss, (0, 1))
    expected = jax.jit(step)(hidden, matrix, batch["targets"], batch["weights"])
    partitioner = Partitioner(preset, num_partitions=2)
    names = PartitionSpec("embed", "vocab") if vocab_axis else PartitionSpec("vocab", "embed")
    place = NamedSharding(partitioner.mesh(), partitioner.specs(names))
    with partitioner.context():
        pieces = jax.jit(lambda: partitioning.pieces("vocab"))()
        placed = partitioner.place_batch(batch)
        args = placed["hidden"], jax.device_put(matrix, place), placed["targets"], placed["weights"]
        compiled = jax.jit(step).lower(*args).compile()
        actual = compiled(*args)
    text = compiled.as_text()
    gathered = [line.split("all-gather")[0] for line in re.findall(r"= (.* all-gather(?:-start)?\\(.*)", text)]
    rows = B // (2 if preset == "mixed" else 4)
    differences = [
        float(np.linalg.norm(np.float64(a) - np.float64(b)) / np.linalg.norm(np.float64(b)))
        for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected))
    ]
    report["cases"].append({
        "pieces": int(pieces),
        "differences": differences,
        "largest": max(sizes(text)),
        "logits": rows * U * V // int(pieces),
        "gathered": [size for line in gathered for size in sizes(line)],
        "chunk": D * width,
        "piece": D * V // int(pieces),
        "gradient_is_cut_as_the_matrix": actual[1][1].sharding.is_equivalent_to(place, 2),
        "shard": actual[1][1].addressable_shards[0].data.size,
    })
print(json.dumps(report))
"""

# (preset, axis of the vocabulary, words of a chunk); 24 divides neither a piece of 64 words nor all 128.
_CASES = [("mixed", 1, 16), ("mixed", 1, 24), ("mixed", 0, 24), ("fully_sharded", 1, 24)]


@pytest.fixture(scope="module")
def four_devices():
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": root,
    }
    program = f"CASES = {_CASES!r}\n{_FOUR_DEVICES}"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["devices"] == 4
    return dict(zip(_CASES, report["cases"], strict=True))


@pytest.mark.parametrize("case", _CASES)
def test_four_devices_find_what_one_does(four_devices, case):
    report = four_devices[case]
    assert report["pieces"] == (2 if case[0] == "mixed" else 1)
    assert max(report["differences"]) <= 1e-6


@pytest.mark.parametrize("case", _CASES)
def test_no_device_holds_all_its_logits_or_the_whole_matrix(four_devices, case):
    report = four_devices[case]
    assert report["largest"] < report["logits"]
    assert report["gathered"], "the matrix is cut along embed, so its chunks are gathered"
    assert max(report["gathered"]) <= report["chunk"] < report["piece"]


@pytest.mark.parametrize("case", _CASES)
def test_the_matrix_gradient_is_cut_as_the_matrix_is(four_devices, case):
    assert four_devices[case]["gradient_is_cut_as_the_matrix"]
    assert four_devices[case]["shard"] == 8 * 128 // 4
