"""The conversion between per-layer and scanned parameters is exact, and refused when it cannot be done."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from promot_t5x.models import parameter_names


def per_layer():
    """Twelve layers, so that layers_10 sorts between layers_1 and layers_2 as text."""
    rng = np.random.default_rng(0)
    flat = {
        "token_embedder/embedding": rng.standard_normal((5, 2)).astype(np.float32),
        "encoder/relpos_bias/rel_embedding": rng.standard_normal((2, 4)).astype(np.float32),
        "soft_prompt/embedding": rng.standard_normal((1, 3, 2)).astype(np.float32),
    }
    for i in range(12):
        flat[f"encoder/layers_{i}/mlp/wo/kernel"] = rng.standard_normal((3, 2)).astype(np.float32)
        flat[f"decoder/layers_{i}/norm/scale"] = jnp.asarray(rng.standard_normal(2), jnp.bfloat16)
    flat["encoder/layers_3/mlp/wo/kernel"][0] = [np.nan, -0.0]
    return flat


def bits(flat):
    return {name: (leaf.shape, leaf.dtype.name, np.asarray(leaf).tobytes()) for name, leaf in flat.items()}


def test_stack_and_unstack_return_the_same_bits():
    flat = per_layer()
    stacked = parameter_names.stack_layers(flat)
    assert set(stacked) == {
        "token_embedder/embedding",
        "encoder/relpos_bias/rel_embedding",
        "soft_prompt/embedding",
        "encoder/layers/mlp/wo/kernel",
        "decoder/layers/norm/scale",
    }
    kernel = stacked["encoder/layers/mlp/wo/kernel"]
    np.testing.assert_array_equal(kernel[10], flat["encoder/layers_10/mlp/wo/kernel"])
    assert stacked["decoder/layers/norm/scale"].dtype == jnp.bfloat16
    restored = parameter_names.unstack_layers(stacked)
    assert bits(restored) == bits(flat)
    assert list(restored) == sorted(restored)
    assert bits(parameter_names.stack_layers(restored)) == bits(stacked)


def test_stacks_are_what_their_layers_are():
    """Host arrays never touch a device, device arrays stay there, shapes need neither."""
    flat = per_layer()
    stacked = parameter_names.stack_layers(flat)
    assert isinstance(stacked["encoder/layers/mlp/wo/kernel"], np.ndarray)
    assert isinstance(stacked["decoder/layers/norm/scale"], jax.Array)
    assert isinstance(parameter_names.unstack_layers(stacked)["encoder/layers_2/mlp/wo/kernel"], np.ndarray)
    host = {f"encoder/layers_{i}/norm/scale": np.full(2, i, ml_dtypes.bfloat16) for i in range(3)}
    scale = parameter_names.stack_layers(host)["encoder/layers/norm/scale"]
    assert isinstance(scale, np.ndarray) and scale.dtype == ml_dtypes.bfloat16 and scale[2, 1] == 2
    shapes = jax.eval_shape(parameter_names.stack_layers, host)
    assert shapes["encoder/layers/norm/scale"] == jax.ShapeDtypeStruct((3, 2), jnp.bfloat16)


@pytest.mark.parametrize("layer", [0, 5, 11])
def test_a_missing_layer_is_an_error(layer):
    flat = per_layer()
    flat["encoder/layers_11/norm/scale"] = np.ones(2)
    flat |= {f"encoder/layers_{i}/norm/scale": np.ones(2) for i in range(12)}
    del flat[f"encoder/layers_{layer}/norm/scale"]
    with pytest.raises(ValueError, match=r"^Cannot stack encoder/layers/norm/scale: found layers .*expected 0\.\.11"):
        parameter_names.stack_layers(flat)


def test_as_stored_in_converts_only_where_needed():
    flat = per_layer()
    stacked = parameter_names.stack_layers(flat)
    assert not parameter_names.is_scanned(flat) and parameter_names.is_scanned(stacked)
    assert bits(parameter_names.as_stored_in(flat, list(stacked))) == bits(stacked)
    assert bits(parameter_names.as_stored_in(stacked, list(flat))) == bits(flat)
    assert bits(parameter_names.as_stored_in(flat, list(flat))) == bits(flat)


def test_flat_names_and_back():
    tree = {"b": {"y": 1, "x": {"z": 2}}, "a": 3}
    assert parameter_names.flatten(tree) == {"a": 3, "b/x/z": 2, "b/y": 1}
    assert list(parameter_names.flatten(tree)) == ["a", "b/x/z", "b/y"]
    assert parameter_names.unflatten(parameter_names.flatten(tree)) == tree
    assert parameter_names.map_with_names(lambda name, leaf: (name, leaf), {"a": {"b": None}}) == {
        "a": {"b": ("a/b", None)}
    }


def test_adapters_are_split_off_and_attached_again():
    flat = per_layer()
    tree = parameter_names.unflatten(flat)
    model, adapters = parameter_names.split_adapters(tree)
    assert "soft_prompt" not in model and list(adapters) == ["soft_prompt"]
    assert bits(parameter_names.flatten(parameter_names.attach_adapters(model, adapters))) == bits(
        dict(sorted(flat.items()))
    )
    model, adapters = parameter_names.split_adapters(flat)  # flat ones as well
    assert list(adapters) == ["soft_prompt/embedding"] and set(model) == set(flat) - {"soft_prompt/embedding"}


def test_attaching_replaces_the_adapter_of_that_name():
    attached = parameter_names.attach_adapters(
        {"a": 1, "soft_prompt": {"embedding": 2}}, {"soft_prompt": {"embedding": 3}}
    )
    assert attached == {"a": 1, "soft_prompt": {"embedding": 3}}


def test_what_is_no_adapter_is_not_attached():
    with pytest.raises(ValueError, match="Cannot attach encoder: expected subtrees among soft_prompt"):
        parameter_names.attach_adapters({}, {"encoder": {}})
