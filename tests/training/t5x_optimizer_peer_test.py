"""ProMoT's stages as T5X's optimizer: where its slots are on T5X's mesh, and how T5X stores and restores them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from promot_t5x.models import architecture, encoder_decoder, parameter_names
from promot_t5x.training import optimizers, t5x_binary, t5x_optimizer

pytest.importorskip("t5x", reason="needs T5X, AirIO and jestimator from source on PYTHONPATH, see docs/t5x.md")

pytestmark = [
    pytest.mark.peer,
    # T5X itself uses JAX's pjit and `with mesh:`, which JAX is giving up.
    pytest.mark.filterwarnings("ignore::DeprecationWarning:t5x"),
]


def model(stage: str) -> t5x_binary.T5XModel:
    """Wide enough for Adafactor to factor the moments."""
    config = architecture.T5Config(
        vocab_size=384,
        embed_dim=128,
        num_heads=4,
        head_dim=8,
        mlp_dim=256,
        num_encoder_layers=2,
        num_decoder_layers=2,
        prompt_length=6,
        dropout_rate=0.0,
    )
    optimizer = t5x_optimizer.StagedOptimizer(optimizers.adafactor(1e-3), stage)
    return t5x_binary.T5XModel(encoder_decoder.EncoderDecoderModel(config), True, optimizer)


def test_factored_moments_are_cut_as_their_matrix_and_come_back():
    from t5x import partitioning, train_state

    tuned = model("model_tuning")
    variables = jax.jit(lambda key: tuned.get_initial_variables(key, {}))(jax.random.key(0))
    state = train_state.FlaxOptimTrainState.create(tuned.optimizer_def, variables)
    rules = partitioning.standard_logical_axis_rules(
        additional_rules=[(name, None) for name in ("prompts", "prompt_length", "embed_activation")]
    )
    axes = partitioning.PjitPartitioner(num_partitions=1, logical_axis_rules=rules).get_mesh_axes(state)
    by_name = {
        name.partition("inner_state/0/")[2]: spec
        for name, spec in parameter_names.flatten(axes.state_dict()["state"]).items()
    }
    kernel = "encoder/layers_0/mlp/wi_0/kernel"  # [embed, mlp], mlp is cut over `model`
    assert axes.params["encoder"]["layers_0"]["mlp"]["wi_0"]["kernel"] == PartitionSpec(None, "model")
    assert by_name[f"v_row/{kernel}"] == PartitionSpec(None) and by_name[f"v_col/{kernel}"] == PartitionSpec("model")
    assert by_name["v/encoder/layers_0/pre_mlp_layer_norm/scale"] == PartitionSpec(None)

    stepped = state.apply_gradient(jax.tree.map(jnp.ones_like, state.params), learning_rate=None)
    restored = state.restore_state(stepped.state_dict())
    assert jax.tree.structure(restored) == jax.tree.structure(stepped)
    assert all(map(np.array_equal, jax.tree.leaves(restored), jax.tree.leaves(stepped)))
    assert int(restored.step) == 1
    other = train_state.FlaxOptimTrainState.create(model("joint_tuning").optimizer_def, variables)
    with pytest.raises(ValueError, match="not that of stage joint_tuning"):
        other.restore_state(stepped.state_dict())
