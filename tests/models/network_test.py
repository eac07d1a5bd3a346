"""The network against T5X's own numbers and a NumPy T5, and the promises about prompts, padding, caches and scan."""

import collections
import dataclasses
import functools
import json
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.t5x import reader
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import DecodingConfig, EncoderDecoderModel

FIXTURE_CONFIG = T5Config(
    vocab_size=384, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=2, num_decoder_layers=2
)
FIXTURE_PROMPT_CONFIG = dataclasses.replace(FIXTURE_CONFIG, prompt_length=8)
ONE_BEAM = DecodingConfig("beam", num_beams=1, alpha=0.6)
# H * K differs from D, and there are more positions than relative position buckets.
TINY = T5Config(
    vocab_size=40,
    embed_dim=16,
    num_heads=2,
    head_dim=6,
    mlp_dim=24,
    num_encoder_layers=2,
    num_decoder_layers=2,
    relative_bias_buckets=8,
    relative_bias_max_distance=20,
)
TINY_PROMPT = dataclasses.replace(TINY, prompt_length=3, num_prompts=2)
BATCH_KEYS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")

# Every program here runs once or twice: most of the time is compilation, which needs no optimisation.
QUICK = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
jit = functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)


@jit
def evaluate(model, params, batch):
    (loss, _), gradients = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, None)
    # The three runs of the network below are one to the compiler.
    return model.logits(params, batch), loss, model.score_batch(params, batch), gradients


@jit
def logits_of(config, params, batch):
    return EncoderDecoderModel(config).logits(params, batch)


@jit
def predict(model, params, batch):
    return model.predict_batch(params, batch)


def random_params(config, seed=0):
    """Parameters of about the scale of trained ones, made without compiling the initialisers."""
    rng = np.random.default_rng(seed)

    def leaf(name, like):
        noise = rng.standard_normal(like.shape)
        if name.endswith("scale"):
            noise = 1 + 0.1 * noise
        elif name.endswith("kernel"):
            noise /= np.sqrt(like.shape[-2] * (config.head_dim if "/query/" in name else 1))
        return jnp.asarray(noise, like.dtype)

    return parameter_names.map_with_names(leaf, EncoderDecoderModel(config).abstract_params())


def random_batch(rng, config, lengths, target_length=7, width=None):
    """Right-padded inputs of the given lengths; the targets of all rows are whole."""
    inputs = np.zeros((len(lengths), width or max(lengths)), np.int32)
    for row, length in zip(inputs, lengths, strict=True):
        row[:length] = rng.integers(2, config.vocab_size, length)
    targets = rng.integers(2, config.vocab_size, (len(lengths), target_length)).astype(np.int32)
    return {
        "encoder_input_tokens": inputs,
        "decoder_input_tokens": np.pad(targets, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones_like(targets),
    }


def relative_difference(actual, expected):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.max(np.abs(actual - expected)) / np.max(np.abs(expected)))


# --- T5X ---


@pytest.fixture(scope="module")
def t5x(testdata):
    folder = testdata / "t5x_tiny"
    leaves = reader.read(folder / "t5_legacy" / "checkpoint_0")
    params = parameter_names.unflatten({name: stored_leaves.whole(leaf) for name, leaf in leaves.items()})
    fixtures = [dict(np.load(folder / name)) for name in ("t5_batch_logits_loss.npz", "t5_with_prompt.npz")]
    return params, *fixtures


def prompt_inputs(t5x):
    params, _, fixture = t5x
    params = {**params, "soft_prompt": {"embedding": jnp.asarray(fixture["soft_prompt"])[None]}}
    return params, {key: fixture[key] for key in BATCH_KEYS} | {"soft_prompt_ids": np.zeros(4, np.int32)}


def check_numbers(result, fixture, expected_loss):
    logits, loss, scores, gradients = result
    # T5X also masks padding positions of the target in the decoder's self-attention: nothing that counts is changed.
    real = fixture["decoder_target_tokens"] > 0
    np.testing.assert_allclose(logits[real], fixture["logits"][real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
    np.testing.assert_allclose(scores, fixture["scores"], rtol=0, atol=1e-4)
    flat = parameter_names.flatten(gradients)
    norms = {name.removeprefix("gradnorm/"): norm for name, norm in fixture.items() if name.startswith("gradnorm/")}
    assert set(norms) == set(flat) - {"soft_prompt/embedding"}
    for name, norm in norms.items():
        np.testing.assert_allclose(np.linalg.norm(np.float64(flat[name])), norm, rtol=1e-4, err_msg=name)


def test_logits_loss_scores_and_gradients_are_t5x(t5x):
    params, fixture, _ = t5x
    batch = {key: fixture[key] for key in BATCH_KEYS}
    check_numbers(evaluate(EncoderDecoderModel(FIXTURE_CONFIG), params, batch), fixture, 235.2096863)


def test_soft_prompt_path_is_t5x(t5x):
    fixture = t5x[2]
    result = evaluate(EncoderDecoderModel(FIXTURE_PROMPT_CONFIG), *prompt_inputs(t5x))
    check_numbers(result, fixture, 236.1419373)
    assert relative_difference(result[3]["soft_prompt"]["embedding"][0], fixture["grad_soft_prompt"]) < 1e-5


def test_one_beam_decodes_as_t5x(t5x):
    params, fixture, prompt_fixture = t5x
    batch = {key: fixture[key] for key in BATCH_KEYS}
    plain = predict(EncoderDecoderModel(FIXTURE_CONFIG, decoding=ONE_BEAM), params, batch)
    np.testing.assert_array_equal(plain, fixture["greedy"])
    prompted = predict(EncoderDecoderModel(FIXTURE_PROMPT_CONFIG, decoding=ONE_BEAM), *prompt_inputs(t5x))
    np.testing.assert_array_equal(prompted, prompt_fixture["beam1"])


def test_parameter_tree_is_t5x(testdata):
    table = json.loads((testdata / "t5x_tiny" / "t5_param_table.json").read_text())
    model = EncoderDecoderModel(FIXTURE_CONFIG)
    shapes, axes = parameter_names.flatten(model.abstract_params()), parameter_names.flatten(model.logical_axes())
    assert {name: [list(leaf.shape), leaf.dtype.name] for name, leaf in shapes.items()} == {
        name: [entry["shape"], entry["dtype"]] for name, entry in table.items()
    }
    assert {name: list(spec) for name, spec in axes.items()} == {
        name: entry["logical_axes"] for name, entry in table.items()
    }


# --- Scan and remat ---


@pytest.mark.parametrize(("scan_layers", "remat"), [(True, "none"), (True, "minimal"), (True, "full"), (False, "full")])
def test_scan_and_remat_change_only_rounding(t5x, scan_layers, remat):
    params, batch = prompt_inputs(t5x)
    expected = evaluate(EncoderDecoderModel(FIXTURE_PROMPT_CONFIG), params, batch)
    config = dataclasses.replace(FIXTURE_PROMPT_CONFIG, scan_layers=scan_layers, remat=remat)
    if scan_layers:
        params = parameter_names.unflatten(parameter_names.stack_layers(parameter_names.flatten(params)))
    shapes = jax.tree.map(lambda x: x.shape, EncoderDecoderModel(config).abstract_params())
    assert jax.tree.map(lambda x: x.shape, params) == shapes
    logits, loss, _, gradients = evaluate(EncoderDecoderModel(config), params, batch)
    assert relative_difference(logits, expected[0]) < 1e-5
    np.testing.assert_allclose(loss, expected[1], rtol=1e-6)
    gradients = parameter_names.unstack_layers(parameter_names.flatten(gradients))
    expected_gradients = parameter_names.flatten(expected[3])
    assert list(gradients) == list(expected_gradients)
    for name, gradient in gradients.items():
        assert relative_difference(gradient, expected_gradients[name]) < 1e-5, name


@pytest.mark.parametrize("remat", ["minimal", "full"])
def test_remat_recomputes_products_in_the_backward_pass(remat):
    """Fewer residuals kept: "full" recomputes matrix products, "minimal" none that has no batch dimension."""
    params, batch = EncoderDecoderModel(TINY).abstract_params(), random_batch(np.random.default_rng(0), TINY, [5])

    def products(config):
        loss = lambda params: EncoderDecoderModel(config).loss_fn(params, batch, None)[0]  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params)).count("dot_general[")

    more = products(dataclasses.replace(TINY, remat=remat)) - products(TINY)
    # A layer's products are 2 (weights, values) without parameters for each attention, and 4 with, and 3 in the MLP.
    # The last product of a block is never needed again, and those of keys, queries, values, gates always.
    assert more >= 6 and (more > 20) == (remat == "full")


def test_scanned_decoding_equals_looped_decoding():
    config = dataclasses.replace(TINY_PROMPT, relative_bias="per_layer")
    params = random_params(config)
    batch = random_batch(np.random.default_rng(1), config, [9, 4, 6]) | {"soft_prompt_ids": np.array([0, -1, 1])}
    expected = predict(EncoderDecoderModel(config), params, batch)
    scanned_config = dataclasses.replace(config, scan_layers=True, remat="full")
    scanned_params = parameter_names.unflatten(parameter_names.stack_layers(parameter_names.flatten(params)))
    np.testing.assert_array_equal(predict(EncoderDecoderModel(scanned_config), scanned_params, batch), expected)


# --- A second implementation ---


def numpy_t5(config, params, inputs, decoder_inputs, prompt=None, output_table=None):
    """float64 logits of one unpadded example, from the description in the T5 paper and its 1.1 notes."""
    p = {name: np.float64(leaf) for name, leaf in parameter_names.flatten(params).items()}
    heads, embed = config.num_heads, config.embed_dim

    def norm(x, name):
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6) * p[f"{name}/scale"]

    def softmax(x):
        x = np.exp(x - x.max(axis=-1, keepdims=True))
        return x / x.sum(axis=-1, keepdims=True)

    def bias(side, layer, length):
        owner = f"{side}/" if config.relative_bias == "shared" else f"{side}/layers_{layer}/"
        buckets, both_ways = config.relative_bias_buckets, side == "encoder"
        result = np.empty((heads, length, length))
        for q in range(length):
            for k in range(length):
                offset = buckets // 2 if both_ways and k > q else 0
                count = buckets // 2 if both_ways else buckets
                distance = abs(k - q) if both_ways else max(q - k, 0)
                if distance >= count // 2:
                    far = np.log(distance / (count // 2)) / np.log(config.relative_bias_max_distance / (count // 2))
                    distance = min(count // 2 + int(far * (count - count // 2) + 1e-9), count - 1)
                result[:, q, k] = p[f"{owner}relpos_bias/rel_embedding"][:, offset + distance]
        return result if both_ways else np.where(np.tri(length, dtype=bool), result, -np.inf)

    def attend(x, memory, name, bias_HxQxS):
        q, k, v = ((y @ p[f"{name}/{w}/kernel"]).reshape(len(y), heads, -1).swapaxes(0, 1)
                   for w, y in (("query", x), ("key", memory), ("value", memory)))  # fmt: skip
        mixed = softmax(q @ k.swapaxes(1, 2) + bias_HxQxS) @ v
        return mixed.swapaxes(0, 1).reshape(len(x), -1) @ p[f"{name}/out/kernel"]

    def mlp(x, name):
        if config.mlp_activations == ("relu",):
            return np.maximum(x @ p[f"{name}/wi/kernel"], 0) @ p[f"{name}/wo/kernel"]
        h = x @ p[f"{name}/wi_0/kernel"]
        h = h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3)))
        return h * (x @ p[f"{name}/wi_1/kernel"]) @ p[f"{name}/wo/kernel"]

    table = p["token_embedder/embedding"]
    x = table[inputs] if prompt is None else np.concatenate([np.float64(prompt), table[inputs]])
    for i in range(config.num_encoder_layers):
        name = f"encoder/layers_{i}"
        y = norm(x, f"{name}/pre_attention_layer_norm")
        x = x + attend(y, y, f"{name}/attention", bias("encoder", i, len(x)))
        x = x + mlp(norm(x, f"{name}/pre_mlp_layer_norm"), f"{name}/mlp")
    encoded, x = norm(x, "encoder/encoder_norm"), table[decoder_inputs]
    for i in range(config.num_decoder_layers):
        name = f"decoder/layers_{i}"
        y = norm(x, f"{name}/pre_self_attention_layer_norm")
        x = x + attend(y, y, f"{name}/self_attention", bias("decoder", i, len(x)))
        y = norm(x, f"{name}/pre_cross_attention_layer_norm")
        x = x + attend(y, encoded, f"{name}/encoder_decoder_attention", 0.0)
        x = x + mlp(norm(x, f"{name}/pre_mlp_layer_norm"), f"{name}/mlp")
    x = norm(x, "decoder/decoder_norm")
    if config.logits_via_embedding:
        return x / np.sqrt(embed) @ (table if output_table is None else output_table).T
    return x @ p["decoder/logits_dense/kernel"]


T5_1_0 = dataclasses.replace(TINY, mlp_activations=("relu",), logits_via_embedding=True)


@pytest.mark.parametrize("config", [T5_1_0, dataclasses.replace(TINY_PROMPT, relative_bias="per_layer")])
def test_logits_are_those_of_a_numpy_t5(config):
    params = random_params(config)
    batch = random_batch(np.random.default_rng(2), config, [26, 5], target_length=24, width=28)
    ids = [1, -1] if config.prompt_length else None
    logits = logits_of(config, params, batch | ({"soft_prompt_ids": np.array(ids)} if ids else {}))
    for row, length in enumerate([26, 5]):
        prompt = params["soft_prompt"]["embedding"][ids[row]] if ids and ids[row] >= 0 else None
        inputs = batch["encoder_input_tokens"][row, :length]
        expected = numpy_t5(config, params, inputs, batch["decoder_input_tokens"][row], prompt)
        assert relative_difference(logits[row], expected) < 1e-5


@pytest.mark.parametrize("param_dtype", ["float32", "bfloat16"])
def test_shared_logits_are_float32_whatever_the_network_computes_in(param_dtype):
    """T5X multiplies bfloat16 states with the float32 embedding, and divides the float32 logits."""
    config = dataclasses.replace(T5_1_0, dtype="bfloat16", param_dtype=param_dtype)
    params, rng = random_params(config), np.random.default_rng(1)
    hidden_BxUxD = jnp.asarray(rng.standard_normal((2, 5, config.embed_dim)), jnp.bfloat16)
    logits = EncoderDecoderModel(config).module.apply({"params": params}, hidden_BxUxD, method="logits")
    table = np.float64(params["token_embedder"]["embedding"])
    assert logits.dtype == jnp.float32
    assert relative_difference(logits, np.float64(hidden_BxUxD) @ table.T / np.sqrt(config.embed_dim)) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", [T5_1_0, TINY_PROMPT])
def test_all_logits_are_the_output_matrix_times_the_hidden(config, dtype):
    """What the losses make of the hidden and the matrix, chunk by chunk, is what `__call__` gives as a whole."""
    config = dataclasses.replace(config, dtype=dtype)
    params, batch = random_params(config), random_batch(np.random.default_rng(13), config, [6, 4])
    inputs = [batch["encoder_input_tokens"], batch["decoder_input_tokens"]]
    if config.prompt_length:
        inputs.append(np.array([1, -1]))

    @jit
    def hidden_and_logits(config, params):
        apply = functools.partial(EncoderDecoderModel(config).module.apply, {"params": params}, *inputs)
        return apply(method="hidden"), apply()

    hidden, logits = hidden_and_logits(config, params)
    assert hidden.shape == (2, 7, config.embed_dim) and hidden.dtype == dtype and logits.dtype == jnp.float32
    flat, hidden = parameter_names.flatten(params), np.float64(hidden)
    if config.logits_via_embedding:
        expected = hidden @ np.float64(flat["token_embedder/embedding"]).T / np.sqrt(config.embed_dim)
    else:
        expected = hidden @ np.float64(flat["decoder/logits_dense/kernel"])
    assert relative_difference(logits, expected) < 1e-6


def one(batch, row):
    return {key: value[row : row + 1] for key, value in batch.items()}


def without_prompt(params):
    return {name: subtree for name, subtree in params.items() if name != "soft_prompt"}


def test_a_shared_embedding_is_trained_from_both_sides():
    params = random_params(T5_1_0)
    batch = random_batch(np.random.default_rng(3), T5_1_0, [6], target_length=5)
    inputs, decoder_inputs = batch["encoder_input_tokens"][0], batch["decoder_input_tokens"][0]
    table = np.float64(params["token_embedder"]["embedding"])
    rng = np.random.default_rng(4)
    weights, direction = rng.standard_normal((5, T5_1_0.vocab_size)), rng.standard_normal(table.shape)

    @jit
    def gradient(config, params):
        return jax.grad(lambda p: jnp.sum(weights * EncoderDecoderModel(config).logits(p, batch)[0]))(params)

    def value(input_step, output_step):
        stepped = {**params, "token_embedder": {"embedding": table + input_step * direction}}
        return np.sum(
            weights * numpy_t5(T5_1_0, stepped, inputs, decoder_inputs, None, table + output_step * direction)
        )

    by_input = (value(1e-5, 0) - value(-1e-5, 0)) / 2e-5
    by_output = (value(0, 1e-5) - value(0, -1e-5)) / 2e-5
    actual = np.sum(np.float64(gradient(T5_1_0, params)["token_embedder"]["embedding"]) * direction)
    assert min(abs(by_input), abs(by_output)) > 0.01 * abs(by_input + by_output)
    np.testing.assert_allclose(actual, by_input + by_output, rtol=1e-4)


# --- The prompt ---


def test_without_prompt_ids_the_program_is_the_plain_one():
    batch = random_batch(np.random.default_rng(5), TINY, [6, 4])

    def program(config, function):
        params = without_prompt(EncoderDecoderModel(config).abstract_params())
        model = EncoderDecoderModel(config)
        text = str(jax.make_jaxpr(lambda params: function(model, params))(params))
        return re.sub(r"0x[0-9a-f]+", "", text)  # addresses of the functions in custom derivatives

    def loss_and_gradient(model, params):
        return jax.value_and_grad(lambda p: model.loss_fn(p, batch, jax.random.key(0))[0])(params)

    for function in (lambda model, params: model.logits(params, batch), loss_and_gradient):
        assert program(TINY_PROMPT, function) == program(TINY, function)


def test_mixed_batch_equals_each_row_alone():
    params = random_params(TINY_PROMPT)
    batch = random_batch(np.random.default_rng(6), TINY_PROMPT, [9, 5, 7, 9])
    ids = np.array([-1, 0, 1, -1])
    mixed = logits_of(TINY_PROMPT, params, batch | {"soft_prompt_ids": ids})
    plain = logits_of(TINY, without_prompt(params), batch)
    for row in (0, 3):
        assert relative_difference(mixed[row], plain[row]) < 1e-5
    for row, prompt in ((1, 0), (2, 1)):
        alone = logits_of(TINY_PROMPT, params, one(batch, row) | {"soft_prompt_ids": ids[row : row + 1]})
        assert relative_difference(mixed[row], alone[0]) < 1e-5
        both = np.repeat(params["soft_prompt"]["embedding"][prompt][None], 2, axis=0)  # no choice but the right one
        params_of_one = {**params, "soft_prompt": {"embedding": both}}
        other = {"soft_prompt_ids": 1 - ids[row : row + 1]}
        assert relative_difference(mixed[row], logits_of(TINY_PROMPT, params_of_one, one(batch, row) | other)[0]) < 1e-5
        assert relative_difference(mixed[row], plain[row]) > 1e-3
    assert relative_difference(mixed[1], mixed[2]) > 1e-3


def test_gradient_reaches_the_named_prompt_only():
    config = dataclasses.replace(TINY_PROMPT, num_encoder_layers=1, num_decoder_layers=1)
    params = random_params(config)
    batch = random_batch(np.random.default_rng(7), config, [9, 5])

    def prompt_gradient(ids):
        model = EncoderDecoderModel(config)
        gradients = evaluate(model, params, batch | {"soft_prompt_ids": np.array(ids)})[3]
        return np.abs(np.asarray(gradients["soft_prompt"]["embedding"])).max(axis=(1, 2))

    first, second = prompt_gradient([1, -1])
    assert first == 0 and second > 0
    assert not prompt_gradient([-1, -1]).any()


def test_prompt_ids_without_a_prompt_are_an_error():
    batch = random_batch(np.random.default_rng(8), TINY, [3]) | {"soft_prompt_ids": np.array([0])}
    model = EncoderDecoderModel(TINY)
    with pytest.raises(ValueError, match="set T5Config.prompt_length"):
        jax.eval_shape(model.logits, model.abstract_params(), batch)


# --- Padding ---


@jit
def logits_and_decodes(config, params, batch):
    """Logits, greedy and beam decodes."""
    model = EncoderDecoderModel(config)
    configs = [DecodingConfig("greedy"), DecodingConfig("beam", num_beams=3)]
    decodes = [dataclasses.replace(model, decoding=c).predict_batch(params, batch) for c in configs]
    return model.logits(params, batch), decodes


def check_same(actual, expected, rows=slice(None)):
    assert relative_difference(actual[0], expected[0][rows]) <= 1e-5
    for actual_tokens, expected_tokens in zip(actual[1], expected[1], strict=True):
        np.testing.assert_array_equal(actual_tokens, expected_tokens[rows])


def test_appended_padding_and_other_rows_change_nothing():
    config = dataclasses.replace(TINY_PROMPT, num_decoder_layers=1)
    params = random_params(config)
    batch = random_batch(np.random.default_rng(9), config, [8, 3, 3]) | {"soft_prompt_ids": np.array([0, -1, 1])}
    expected = logits_and_decodes(config, params, batch)
    appended = batch | {"encoder_input_tokens": np.pad(batch["encoder_input_tokens"], ((0, 0), (0, 9)))}
    check_same(logits_and_decodes(config, params, appended), expected)
    for row in (1, 2):
        alone = one(batch, row)
        alone["encoder_input_tokens"] = alone["encoder_input_tokens"][:, :3]
        check_same(logits_and_decodes(config, params, alone), expected, slice(row, row + 1))


@jit
def logits_by_parts(config, encoder_params, decoder_params, batch):
    module = EncoderDecoderModel(config).module
    encoded, mask = module.apply(
        {"params": encoder_params}, batch["encoder_input_tokens"], batch["soft_prompt_ids"], method="encode"
    )
    variables = {"params": decoder_params}
    hidden_BxUxD = module.apply(variables, batch["decoder_input_tokens"], encoded, mask, method="decode")
    return module.apply(variables, hidden_BxUxD, method="logits")


def test_the_embedding_of_padding_changes_nothing():
    params = random_params(TINY_PROMPT)
    rng = np.random.default_rng(12)
    batch = random_batch(rng, TINY_PROMPT, [8, 3], width=11) | {"soft_prompt_ids": np.array([0, -1])}
    # The decoder's start token has id 0 as well, so only the encoder may see another row there.
    table = params["token_embedder"]["embedding"]
    changed = {**params, "token_embedder": {"embedding": table.at[0].set(30 * rng.standard_normal(table.shape[1]))}}
    actual = logits_by_parts(TINY_PROMPT, changed, params, batch)
    assert relative_difference(actual, logits_by_parts(TINY_PROMPT, params, params, batch)) <= 1e-5
    assert relative_difference(actual, logits_by_parts(TINY_PROMPT, changed, changed, batch)) > 1e-3


# --- Cached decoding ---


@jit
def cached_and_uncached(config, params, batch):
    """Logits of the given decoder inputs, one token a call through the cache, and all at once."""
    apply = functools.partial(EncoderDecoderModel(config).module.apply, {"params": params})
    inputs_BxU = batch["decoder_input_tokens"]
    length = inputs_BxU.shape[1]
    encoded, mask = apply(batch["encoder_input_tokens"], batch.get("soft_prompt_ids"), method="encode")
    first_BxV, cache = apply(encoded, mask, length, method="start_decoding")

    def step(cache, position):
        logits, cache = apply(inputs_BxU[:, position], cache, position, length, method="continue_decoding")
        return cache, logits

    _, rest_UxBxV = jax.lax.scan(step, cache, jnp.arange(1, length))
    cached = jnp.concatenate([first_BxV[:, None], rest_UxBxV.swapaxes(0, 1)], axis=1)
    return cached, apply(apply(inputs_BxU, encoded, mask, method="decode"), method="logits"), cache


@pytest.mark.parametrize(
    ("prompt_length", "relative_bias", "scan_layers"),
    [(0, "shared", False), (0, "per_layer", True), (3, "shared", True), (3, "per_layer", False)],
)
def test_cached_decoding_equals_uncached(prompt_length, relative_bias, scan_layers):
    config = dataclasses.replace(
        TINY, prompt_length=prompt_length, num_prompts=2, relative_bias=relative_bias, scan_layers=scan_layers
    )
    params = random_params(dataclasses.replace(config, scan_layers=False))
    if config.scan_layers:
        params = parameter_names.unflatten(parameter_names.stack_layers(parameter_names.flatten(params)))
    batch = random_batch(np.random.default_rng(10), config, [9, 4, 6], target_length=25)
    if config.prompt_length:
        batch["soft_prompt_ids"] = np.array([-1, 1, 0])
    cached, uncached, cache = cached_and_uncached(config, params, batch)
    assert relative_difference(cached, uncached) < 1e-5
    assert {leaf.shape[-4] for leaf in jax.tree.leaves(cache)} == {3}  # the batch axis that beams are gathered along


def test_later_targets_never_change_earlier_logits():
    params = random_params(TINY)
    batch = random_batch(np.random.default_rng(11), TINY, [9], target_length=12)
    expected = logits_of(TINY, params, batch)
    batch["decoder_input_tokens"][:, 5:] = 7
    np.testing.assert_array_equal(logits_of(TINY, params, batch)[:, :5], expected[:, :5])


def _dropped(config, batch):
    """The masks of a training pass, {path of the module: [mask of a call]}: 1 kept, 0 dropped, NaN where it was 0."""
    masks = collections.defaultdict(list)

    def keep(path, before, after):
        def mask(x, y):
            masks[path].append(np.where(np.asarray(x) == 0, np.nan, np.asarray(y) != 0))

        jax.debug.callback(mask, before, after)

    def record(call, args, kwargs, context):
        result = call(*args, **kwargs)
        if isinstance(context.module, nn.Dropout):
            keep("/".join(context.module.path[:-1]), args[0], result)
        return result

    model = EncoderDecoderModel(config)
    params = jax.jit(model.init, compiler_options=QUICK)(jax.random.key(0))
    with nn.intercept_methods(record):
        jax.block_until_ready(jax.jit(model.logits, compiler_options=QUICK)(params, batch, jax.random.key(1)))
    jax.effects_barrier()
    return masks


@pytest.mark.parametrize("scan_layers", [False, True])
def test_dropout_is_where_t5x_has_it_with_masks_of_the_same_shape(scan_layers):
    """T5X's network: after the embeddings, on attention weights, in and after each block, after both stacks.

    All masks are one for the positions of a sequence (of the queries, for weights), but the encoder's last.
    """
    config = dataclasses.replace(TINY, dropout_rate=0.5, scan_layers=scan_layers)
    rng = np.random.default_rng(0)
    batch = {key: rng.integers(1, 40, (2, 7)) for key in BATCH_KEYS}
    masks = _dropped(config, batch)
    layers = ["layers"] if scan_layers else ["layers_0", "layers_1"]
    calls = 2 // len(layers)
    expected = collections.Counter({"encoder": 2, "decoder": 2})
    for stack, attentions in (("encoder", ["attention"]), ("decoder", ["self_attention", "encoder_decoder_attention"])):
        for layer in layers:
            expected[f"{stack}/{layer}"] = (len(attentions) + 1) * calls
            expected |= {f"{stack}/{layer}/{name}": calls for name in (*attentions, "mlp")}
    assert {path: len(of_path) for path, of_path in masks.items()} == dict(expected)

    def is_broadcast(mask):
        return not ((mask == 0).any(axis=-2) & (mask == 1).any(axis=-2)).any()

    last = [mask for mask in masks["encoder"] if not is_broadcast(mask)]
    assert len(last) == 1 and last[0].shape == (2, 7, 16)
    assert all(is_broadcast(mask) for path, of_path in masks.items() for mask in of_path if path != "encoder")
    for path in ("encoder/layers", "decoder/layers") if scan_layers else ():  # no two layers drop the same
        for name in ("mlp", "attention" if path == "encoder/layers" else "self_attention"):
            first, second = masks[f"{path}/{name}"]
            assert ((first == 0) & (second == 1)).any()
