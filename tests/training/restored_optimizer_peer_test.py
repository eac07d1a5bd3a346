"""The update after a checkpoint of T5X's Adafactor, made by T5X and by us from its slots and its step."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.t5x import layouts
from promot_t5x.models import parameter_names
from promot_t5x.training import optimizers, restored_optimizer, stages, train_step
from tests.training import t5x_state

pytest.importorskip("t5x", reason="needs T5X, AirIO and jestimator from source on PYTHONPATH, see docs/t5x.md")

pytestmark = [
    pytest.mark.peer,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:t5x"),  # T5X itself uses what JAX is giving up
]

STEP, RATE = 1_000_000, 1e-2
L, D, H, K, F = 2, 130, 5, 28, 129
# T5X's name of a leaf, its shape and the logical names of its dimensions; both sides have a short and a long matrix.
SCALABLE = {
    "encoder/encoder/attention/query/kernel": ((D, L, H, K), ("embed", "layers", "heads", "kv")),
    "encoder/encoder/attention/out/kernel": ((H, L, K, D), ("heads", "layers", "kv", "embed")),
    "decoder/decoder/mlp/wi_0/kernel": ((D, L, F), ("embed", "layers", "mlp")),
    "decoder/decoder/mlp/wo/kernel": ((F, L, D), ("mlp", "layers", "embed")),
    "decoder/decoder/pre_mlp_layer_norm/scale": ((D, L), ("embed", "layers")),
    "token_embedder/embedding": ((140, D), ("vocab", "embed")),
    "decoder/logits_dense/kernel": ((D, 140), ("embed", "vocab")),
}
T5 = {
    "encoder/layers_0/attention/query/kernel": ((D, H * K), ("embed", "joined_kv")),
    "encoder/layers_0/attention/out/kernel": ((H * K, D), ("joined_kv", "embed")),
    "encoder/layers_0/pre_mlp_layer_norm/scale": ((D,), ("embed",)),
    "encoder/relpos_bias/rel_embedding": ((H, 32), ("heads", "relpos_buckets")),
    "token_embedder/embedding": ((140, D), ("vocab", "embed")),
}


def ours(flat):
    """Leaves of T5X under our names and in our shapes, nested."""
    leaves = {name: stored_leaves.from_array(np.asarray(array), name) for name, array in flat.items()}
    converted = layouts.from_scanned(leaves) if layouts.is_scanned(leaves) else leaves
    return {name: stored_leaves.whole(leaf) for name, leaf in converted.items()}


@pytest.mark.parametrize("layout", [T5, SCALABLE], ids=["t5", "scalable_t5"])
@pytest.mark.parametrize("per_layer", [False, True])
def test_the_next_update_is_t5xs(tmp_path, layout, per_layer):
    from t5x import adafactor

    rng = np.random.default_rng(0)
    params, *gradients = (
        parameter_names.unflatten({n: rng.normal(size=shape).astype(np.float32) for n, (shape, _) in layout.items()})
        for _ in range(3)
    )
    definition = adafactor.Adafactor(logical_factor_rules=adafactor.standard_logical_factor_rules())
    definition.set_param_axes(parameter_names.unflatten({n: PartitionSpec(*axes) for n, (_, axes) in layout.items()}))
    optimizer = definition.create(params)
    optimizer = optimizer.apply_gradient(gradients[0], learning_rate=RATE)
    optimizer = optimizer.replace(state=optimizer.state.replace(step=np.int32(STEP)))
    before = jax.tree.map(np.asarray, optimizer.state_dict())
    after = optimizer.apply_gradient(gradients[1], learning_rate=RATE).target

    slots = parameter_names.flatten(before["state"]["param_states"])
    slots = {name: array for name, array in slots.items() if not name.endswith("/m")}
    target = parameter_names.flatten(before["target"])
    folder = t5x_state.write(tmp_path / f"checkpoint_{STEP}", target, slots, STEP)

    flat = [ours(parameter_names.flatten(tree)) for tree in (before["target"], gradients[1], after)]
    if per_layer:
        flat = [parameter_names.unstack_layers(leaves) for leaves in flat]
    start, gradient, expected = (parameter_names.unflatten(leaves) for leaves in flat)
    stage, settings = stages.stage("fine_tuning"), optimizers.adafactor(RATE)
    staged = optimizers.Staged(settings, stage)
    start = jax.tree.map(jax.numpy.asarray, start)
    fresh = train_step.init_state(staged, start).opt_state
    state = restored_optimizer.restored(fresh, restored_optimizer.opened(str(folder), settings, start, stage))
    updates, _ = jax.jit(staged.update)(gradient, state, start)
    updated = parameter_names.flatten(optax.apply_updates(start, updates))
    for name, array in parameter_names.flatten(expected).items():
        np.testing.assert_allclose(updated[name], array, rtol=0, atol=1e-6, err_msg=name)
