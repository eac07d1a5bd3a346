"""EncoderDecoderModel: objective, scores, decoding, dropout and precision of a batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models import chunked_logits, parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import DecodingConfig, EncoderDecoderModel

CONFIG = T5Config(
    vocab_size=30, embed_dim=16, num_heads=2, head_dim=6, mlp_dim=24, num_encoder_layers=1, num_decoder_layers=1
)
MODEL = EncoderDecoderModel(CONFIG)
# Every program here runs once or twice: most of the time is compilation, which needs no optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)


def random_params(config, seed=0):
    rng = np.random.default_rng(seed)

    def leaf(name, like):
        noise = rng.standard_normal(like.shape) / np.sqrt(like.shape[-2] if name.endswith("kernel") else 1)
        return jnp.asarray(1 + 0.1 * noise if name.endswith("scale") else noise, like.dtype)

    return parameter_names.map_with_names(leaf, EncoderDecoderModel(config).abstract_params())


def random_batch(rows, input_length=8, target_length=6, seed=1):
    rng = np.random.default_rng(seed)
    inputs = rng.integers(2, CONFIG.vocab_size, (rows, input_length)).astype(np.int32)
    targets = rng.integers(2, CONFIG.vocab_size, (rows, target_length)).astype(np.int32)
    inputs *= np.arange(input_length) < rng.integers(2, input_length + 1, (rows, 1))
    targets *= np.arange(target_length) < rng.integers(1, target_length + 1, (rows, 1))
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": (targets > 0).astype(np.int32),
    }


NORMALIZED = tuple(EncoderDecoderModel(CONFIG, 0.1, 1e-2, factor) for factor in (None, 2.5, "NUM_REAL_TARGET_TOKENS"))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@jit
def losses_and_scores(models, params, batch):
    return (
        [model.loss_fn(params, batch, None) for model in models],
        MODEL.score_batch(params, batch),
        MODEL.logits(params, batch),
    )


@jit
def predict(model, params, batch, key=None):
    return model.predict_batch(params, batch, key)


def test_loss_and_scores_by_numpy(params):
    batch = random_batch(4)
    batch["decoder_loss_weights"][0, 0] = 0  # a target token that does not count
    results, scores, logits = losses_and_scores(NORMALIZED, params, batch)

    logits, weights = np.float64(logits), np.float64(batch["decoder_loss_weights"])
    log_z = np.log(np.exp(logits).sum(axis=-1))
    log_probs = logits - log_z[..., None]
    target_log_probs = np.take_along_axis(log_probs, batch["decoder_target_tokens"][..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(scores, (target_log_probs * weights).sum(axis=-1), rtol=1e-5)

    low = 0.1 / 29
    smoothed = 0.9 * target_log_probs + low * (log_probs.sum(axis=-1) - target_log_probs)
    entropy = -0.9 * np.log(0.9) - 0.1 * np.log(low)
    total = ((-smoothed - entropy + 1e-2 * log_z**2) * weights).sum()
    for (loss, sums), divisor in zip(results, (1, 2.5, weights.sum()), strict=True):
        np.testing.assert_allclose(loss, total / divisor, rtol=1e-5)
        np.testing.assert_allclose(sums.loss, total, rtol=1e-5)
        assert sums.weight_sum == weights.sum()
    hits = (logits.argmax(axis=-1) == batch["decoder_target_tokens"]) * weights
    assert results[0][1].correct == hits.sum()


TIED = dataclasses.replace(CONFIG, logits_via_embedding=True, mlp_activations=("relu",))


@pytest.mark.parametrize("width", [6, 7, 30])
@pytest.mark.parametrize("config", [CONFIG, TIED], ids=["untied", "tied"])
def test_loss_and_gradients_are_those_of_all_logits(config, width, monkeypatch):
    """Chunks of 6 words divide the vocabulary of 30, of 7 they overlap."""
    monkeypatch.setattr(chunked_logits, "chunk_width", lambda words: width)
    model = EncoderDecoderModel(config, label_smoothing=0.1, z_loss=1e-2, loss_normalizing_factor=2.5)
    params, batch = random_params(config), random_batch(4)

    def plain_loss(params):
        logits_BxUxV = model.logits(params, batch)
        log_z_BxU = jax.nn.logsumexp(logits_BxUxV, axis=-1)
        hit_BxUxV = jax.nn.one_hot(batch["decoder_target_tokens"], 30)
        q_BxUxV = 0.9 * hit_BxUxV + 0.1 / 29 * (1 - hit_BxUxV)
        loss_BxU = jnp.sum(q_BxUxV * (log_z_BxU[..., None] - logits_BxUxV), axis=-1)
        loss_BxU += 0.9 * np.log(0.9) + 0.1 * np.log(0.1 / 29) + 1e-2 * log_z_BxU**2
        return jnp.sum(loss_BxU * batch["decoder_loss_weights"]) / 2.5

    @functools.partial(jit, static_argnums=())
    def both(params):
        chunked = jax.value_and_grad(lambda p: model.loss_fn(p, batch, None)[0])(params)
        return chunked, jax.value_and_grad(plain_loss)(params)

    (loss, gradients), (expected_loss, expected) = both(params)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    expected = parameter_names.flatten(expected)
    assert ("decoder/logits_dense/kernel" in expected) == (config is CONFIG)
    for name, gradient in parameter_names.flatten(gradients).items():
        difference = np.linalg.norm(np.float64(gradient) - expected[name])
        assert difference <= 1e-6 * np.linalg.norm(expected[name]), name


@pytest.mark.parametrize("model", NORMALIZED, ids=lambda model: str(model.loss_normalizing_factor))
def test_loss_sums_of_parts_add_up_to_the_loss_of_the_batch(params, model):
    batch = random_batch(4)

    @functools.partial(jit, static_argnums=())
    def whole_and_parts(params):
        parts = [{k: v[rows] for k, v in batch.items()} for rows in (np.s_[:1], np.s_[1:])]
        return model.loss_fn(params, batch, None), [model.loss_sum(params, part, None) for part in parts]

    (loss, sums), parts = whole_and_parts(params)
    total, added = jax.tree.map(jnp.add, *parts)
    for actual, expected in zip((total, *added), (sums.loss, *sums), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)
    np.testing.assert_allclose(total / model.loss_normalizer(added), loss, rtol=1e-6)


@pytest.mark.parametrize("scan_layers", [False, True])
def test_a_frozen_output_matrix_costs_no_product(scan_layers):
    """Prompt tuning: the product that is left out would be as large as that of the logits."""
    config = dataclasses.replace(CONFIG, prompt_length=3, scan_layers=scan_layers, remat="full")
    model = EncoderDecoderModel(config)
    params, batch = model.abstract_params(), random_batch(2) | {"soft_prompt_ids": np.zeros(2, np.int32)}

    def products(*names):
        flat = parameter_names.flatten(params)

        def loss(trained):
            return model.loss_sum(parameter_names.unflatten(frozen | trained), batch, None)[0]

        frozen = {name: jnp.zeros(like.shape, like.dtype) for name, like in flat.items() if name not in names}
        program = jax.make_jaxpr(jax.grad(loss))({name: flat[name] for name in names})
        return str(program).count("dot_general[")

    prompt = products("soft_prompt/embedding")
    assert products("soft_prompt/embedding", "decoder/logits_dense/kernel") == prompt + 1


def test_a_batch_without_target_tokens_costs_nothing(params):
    batch = random_batch(4)
    batch["decoder_loss_weights"][:] = 0
    results, scores, _ = losses_and_scores(NORMALIZED, params, batch)
    assert [loss for loss, _ in results] == [0, 0, 0]
    np.testing.assert_array_equal(scores, 0)


@jit
def argmax_decode(model, params, batch):
    """The whole network again for every token, no cache: the definition of greedy decoding."""
    inputs_BxU = jnp.zeros_like(batch["decoder_input_tokens"])
    ended_B = jnp.zeros(inputs_BxU.shape[0], bool)

    def step(state, position):
        inputs_BxU, ended_B = state
        logits_BxUxV = model.logits(params, {**batch, "decoder_input_tokens": inputs_BxU})
        token_B = jnp.where(ended_B, 0, jnp.argmax(logits_BxUxV[:, position], axis=-1))
        # The last token is nobody's input: its write is outside the array and is dropped.
        inputs_BxU = inputs_BxU.at[:, position + 1].set(token_B, mode="drop")
        return (inputs_BxU, ended_B | (token_B == 1)), token_B

    _, tokens_UxB = jax.lax.scan(step, (inputs_BxU, ended_B), jnp.arange(inputs_BxU.shape[1]))
    return tokens_UxB.T


def test_greedy_equals_the_argmax_of_uncached_logits():
    config = dataclasses.replace(CONFIG, num_encoder_layers=2, num_decoder_layers=2)
    params = random_params(config)
    kernel = params["decoder"]["logits_dense"]["kernel"]
    params["decoder"]["logits_dense"]["kernel"] = kernel.at[:, 1].mul(2)  # more rows end, some early
    batch, model = random_batch(200), EncoderDecoderModel(config)
    tokens = np.asarray(predict(model, params, batch))
    np.testing.assert_array_equal(tokens, argmax_decode(model, params, batch))
    ends = (tokens == 1).any(axis=1)
    assert 20 < ends.sum() < 180
    assert len(np.unique(tokens, axis=0)) > 50


def test_sampling_is_deterministic_in_the_key(params):
    batch = random_batch(20)
    model = EncoderDecoderModel(CONFIG, decoding=DecodingConfig("sample", temperature=0.7, top_k=5, top_p=0.9))
    first, again, other = (predict(model, params, batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    assert first.shape == (20, 6) and first.dtype == jnp.int32


def test_sampling_one_candidate_is_greedy(params):
    batch = random_batch(20)
    model = EncoderDecoderModel(CONFIG, decoding=DecodingConfig("sample", top_k=1))
    np.testing.assert_array_equal(predict(model, params, batch, jax.random.key(0)), predict(MODEL, params, batch))


def test_sampling_without_a_key_is_an_error(params):
    model = EncoderDecoderModel(CONFIG, decoding=DecodingConfig("sample"))
    with pytest.raises(ValueError, match="needs a random key"):
        jax.eval_shape(model.predict_batch, params, random_batch(1))


def test_dropout_only_with_a_key(params):
    config = dataclasses.replace(CONFIG, dropout_rate=0.3)

    @functools.partial(jit, static_argnums=())
    def logits(batch, key):
        return EncoderDecoderModel(config).logits(params, batch, key)

    batch = random_batch(8)
    first, again, other = (logits(batch, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    without = losses_and_scores((MODEL,), params, batch)[2]
    np.testing.assert_array_equal(logits(batch, None), logits(batch, None))
    np.testing.assert_allclose(logits(batch, None), without, rtol=0, atol=1e-5)
    assert np.max(np.abs(first - without)) > 0.1


def test_bfloat16_stays_near_float32(params):
    batch = random_batch(8)
    expected = losses_and_scores((MODEL,), params, batch)[0][0][0]
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, dtype="bfloat16"))
    ((loss, _),), _, logits = losses_and_scores((model,), params, batch)
    np.testing.assert_allclose(loss, expected, rtol=0.02)
    assert loss.dtype == logits.dtype == jnp.float32


def test_bfloat16_parameters_stay_what_they_are(params):
    batch = random_batch(8)
    expected = losses_and_scores((MODEL,), params, batch)[0][0][0]
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, dtype="bfloat16", param_dtype="bfloat16"))
    params = jax.tree.map(lambda x: x.astype("bfloat16"), params)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(model.abstract_params())} == {"bfloat16"}
    gradient = jit(lambda model, params: jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, None))
    (loss, _), gradients = gradient(model, params)
    np.testing.assert_allclose(loss, expected, rtol=0.02)
    for name, leaf in parameter_names.flatten(gradients).items():
        assert leaf.dtype == "bfloat16" and np.all(np.isfinite(np.float32(leaf))), name
    tokens = predict(model, params, batch)
    assert tokens.dtype == jnp.int32 and np.all((tokens >= 0) & (tokens < CONFIG.vocab_size))


@pytest.mark.parametrize("factor", ["MEAN", 0, -1.0])
def test_a_wrong_loss_normalizing_factor_is_an_error(factor):
    with pytest.raises(ValueError, match=r"^EncoderDecoderModel\.loss_normalizing_factor .*NUM_REAL_TARGET_TOKENS"):
        EncoderDecoderModel(CONFIG, loss_normalizing_factor=factor)


def test_a_wrong_decoding_method_is_an_error():
    with pytest.raises(ValueError, match="^DecodingConfig.method is 'nucleus': expected greedy, beam or sample"):
        DecodingConfig("nucleus")


def test_defaults_are_those_of_the_docs():
    """T5X's z-loss, the prompt-tuning code's length penalty."""
    assert EncoderDecoderModel(CONFIG).z_loss == 1e-4 and DecodingConfig().alpha == 0.6
