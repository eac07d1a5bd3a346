"""The layers against closed forms: relative position buckets, the norm, the activations, dropout, leaf names."""

import dataclasses
import fractions

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.models import layers, parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel

CONFIG = T5Config(
    vocab_size=24, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=2, num_decoder_layers=2
)


def exact_bucket(distance, bidirectional, buckets, max_distance):
    """T5, section 2.1, in exact arithmetic: bucket E + k from distance E * (max / E) ** (k / number of far buckets)."""
    offset = 0
    if bidirectional:
        buckets //= 2
        offset = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)  # the future is masked; it shares the bucket of distance 0
    near = buckets // 2
    if distance < near:
        return offset + distance
    far, k = buckets - near, 0
    ratio, growth = fractions.Fraction(distance, near) ** far, fractions.Fraction(max_distance, near)
    while k + 1 < far and ratio >= growth ** (k + 1):
        k += 1
    return offset + near + k


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "max_distance"), [(32, 128), (8, 20)])
def test_relative_position_buckets(bidirectional, buckets, max_distance):
    distances = np.arange(-300, 301)
    expected = [exact_bucket(int(d), bidirectional, buckets, max_distance) for d in distances]

    @jax.jit
    def actual(distance):
        return layers.relative_position_bucket(
            distance, bidirectional=bidirectional, num_buckets=buckets, max_distance=max_distance
        )

    np.testing.assert_array_equal(actual(distances), expected)


@pytest.mark.parametrize(("relative_bias", "owner"), [("shared", ""), ("per_layer", "layers_0/")])
def test_names_of_the_relative_bias(relative_bias, owner):
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, relative_bias=relative_bias))
    shapes, axes = parameter_names.flatten(model.abstract_params()), parameter_names.flatten(model.logical_axes())
    names = {name for name in shapes if "relpos" in name}
    assert len(names) == (2 if relative_bias == "shared" else 4)
    for side in ("encoder", "decoder"):
        name = f"{side}/{owner}relpos_bias/rel_embedding"
        assert name in names
        assert shapes[name].shape == (2, 32)
        assert tuple(axes[name]) == ("heads", "relpos_buckets")


def test_names_shapes_and_axes_of_the_other_variants():
    config = dataclasses.replace(CONFIG, mlp_activations=("relu",), logits_via_embedding=True, num_prompts=3)
    config = dataclasses.replace(config, prompt_length=5, scan_layers=True)
    model = EncoderDecoderModel(config)
    shapes, axes = parameter_names.flatten(model.abstract_params()), parameter_names.flatten(model.logical_axes())
    assert "decoder/logits_dense/kernel" not in shapes
    assert shapes["soft_prompt/embedding"].shape == (3, 5, 8)
    assert tuple(axes["soft_prompt/embedding"]) == ("prompts", "prompt_length", "embed")
    assert shapes["encoder/layers/mlp/wi/kernel"].shape == (2, 8, 12)
    assert tuple(axes["encoder/layers/mlp/wi/kernel"]) == ("layers", "embed", "mlp")


def test_initial_values_have_the_spread_of_t5():
    config = dataclasses.replace(CONFIG, embed_dim=64, head_dim=16, num_heads=8, mlp_dim=128)
    config = dataclasses.replace(config, num_decoder_layers=1, prompt_length=2)
    quick = {"xla_backend_optimization_level": 0}  # compiled for one run
    model = EncoderDecoderModel(config)
    params = parameter_names.flatten(jax.jit(model.init, compiler_options=quick)(jax.random.key(0)))
    abstract = parameter_names.flatten(model.abstract_params())
    assert {name: (x.shape, x.dtype) for name, x in params.items()} == {
        name: (x.shape, x.dtype) for name, x in abstract.items()
    }
    assert set(params) == set(parameter_names.flatten(model.logical_axes()))
    assert 0 <= params["soft_prompt/embedding"].min() < params["soft_prompt/embedding"].max() <= 0.5
    layer = "encoder/layers_0"
    expected = {
        "token_embedder/embedding": 1.0,
        f"{layer}/attention/query/kernel": (64 * 16) ** -0.5,  # the scaling of the attention logits is in here
        f"{layer}/attention/key/kernel": 64**-0.5,
        f"{layer}/attention/out/kernel": 128**-0.5,
        f"{layer}/mlp/wi_0/kernel": 64**-0.5,
        f"{layer}/mlp/wo/kernel": 128**-0.5,
    }
    for name, deviation in expected.items():
        np.testing.assert_allclose(np.std(params[name]), deviation, rtol=0.06, err_msg=name)
    np.testing.assert_array_equal(params[f"{layer}/pre_mlp_layer_norm/scale"], 1)
    assert np.any(params["encoder/layers_0/mlp/wo/kernel"] != params["encoder/layers_1/mlp/wo/kernel"])


def test_layer_norm_has_no_mean_and_no_bias():
    x = np.random.default_rng(0).standard_normal((2, 3, 8)).astype(np.float32) + 2
    scale = np.linspace(0.5, 2, 8, dtype=np.float32)
    actual = layers.layer_norm(CONFIG, "norm").apply({"params": {"scale": scale}}, x)
    np.testing.assert_allclose(actual, x / np.sqrt(np.mean(x**2, -1, keepdims=True) + 1e-6) * scale, rtol=1e-5)


@pytest.mark.parametrize("activations", [("gelu", "linear"), ("relu",), ("silu", "linear")])
def test_mlp(activations):
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 3, 8))
    names = ["wi"] if len(activations) == 1 else ["wi_0", "wi_1"]
    kernels = {name: rng.standard_normal((8, 12)) for name in names} | {"wo": rng.standard_normal((12, 8))}
    functions = {
        "gelu": lambda h: h / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (h + 0.044715 * h**3))),
        "relu": lambda h: np.maximum(h, 0),
        "silu": lambda h: h / (1 + np.exp(-h)),
        "linear": lambda h: h,
    }
    hidden = np.prod([functions[a](x @ kernels[name]) for a, name in zip(activations, names, strict=True)], axis=0)
    config = dataclasses.replace(CONFIG, mlp_activations=activations)
    params = {name: {"kernel": jnp.asarray(kernel, jnp.float32)} for name, kernel in kernels.items()}
    actual = layers.Mlp(config, deterministic=True).apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(actual, hidden @ kernels["wo"], rtol=1e-4, atol=1e-4)


def test_dropout_has_one_mask_for_all_positions_and_keeps_the_mean():
    class Dropped(layers.nn.Module):
        @layers.nn.compact
        def __call__(self, x):
            return layers.dropout(dataclasses.replace(CONFIG, dropout_rate=0.25), x, False)

    x = jnp.ones((50, 6, 80))
    dropped = np.asarray(Dropped().apply({}, x, rngs={"dropout": jax.random.key(0)}))
    np.testing.assert_array_equal(dropped, np.repeat(dropped[:, :1], 6, axis=1))
    np.testing.assert_allclose(sorted(set(dropped.ravel())), [0, 4 / 3], rtol=1e-6)
    np.testing.assert_allclose(dropped.mean(), 1, atol=0.05)
    assert np.any(dropped[0] != dropped[1])
