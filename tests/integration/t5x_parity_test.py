"""Every checkpoint that T5X wrote, loaded as INITIAL_CHECKPOINT_PATH is, against what T5X computed with it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.checkpoints import loading, stored_leaves
from promot_t5x.checkpoints.t5x import layouts
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import DecodingConfig, EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers

CONFIGS = {
    "t5": T5Config(384, 32, 4, 8, 64, 2, 2, dropout_rate=0.0),
    "scalable_t5": T5Config(384, 32, 4, 8, 64, 2, 2, dropout_rate=0.0, relative_bias="per_layer", scan_layers=True),
}
LOSSES = {"t5": 235.2096863, "scalable_t5": 235.7653503}
# Both formats hold the same bits (t5x_checkpoint_test), so what is slow is computed from one of each layout.
one_of_each = pytest.mark.parametrize("kind,written", [("t5", "orbax"), ("scalable_t5", "legacy")])
every_checkpoint = pytest.mark.parametrize("kind,written", [(k, w) for k in CONFIGS for w in ("legacy", "orbax")])
ONE_BEAM = DecodingConfig("beam", num_beams=1, alpha=0.6)


def _load(testdata, kind, written, **changes):
    model = EncoderDecoderModel(dataclasses.replace(CONFIGS[kind], **changes), decoding=ONE_BEAM)
    folder = testdata / "t5x_tiny" / f"{kind}_{written}" / "checkpoint_0"
    return model, loading.load(folder, model, Partitioner()).params


def _fixture(testdata, kind):
    fixture = dict(np.load(testdata / "t5x_tiny" / f"{kind}_batch_logits_loss.npz"))
    return fixture, {name: jnp.asarray(x) for name, x in fixture.items() if name.startswith(("encoder_", "decoder_"))}


def _t5x_name(name):
    for side in ("encoder", "decoder"):
        name = name.replace(f"{side}/layers/", f"{side}/{side}/")
    return name


@every_checkpoint
def test_logits_loss_scores_and_beam_are_t5x(testdata, kind, written):
    # Legacy checkpoints into a leaf a layer, Orbax' into stacks: both layouts of T5X into both of ours.
    model, params = _load(testdata, kind, written, scan_layers=written == "orbax")
    fixture, batch = _fixture(testdata, kind)
    # T5X also masks padding positions of the target in the decoder's self-attention: nothing that counts is changed.
    real = fixture["decoder_target_tokens"] > 0

    @jax.jit
    def outputs(params):
        loss, _ = model.loss_sum(params, batch, None)
        return model.logits(params, batch), loss, model.score_batch(params, batch), model.predict_batch(params, batch)

    logits, loss, scores, beam = outputs(params)
    np.testing.assert_allclose(logits[real], fixture["logits"][real], rtol=0, atol=1e-5)
    np.testing.assert_allclose(loss, LOSSES[kind], rtol=1e-5)
    np.testing.assert_allclose(scores, fixture["scores"], rtol=0, atol=1e-4)
    np.testing.assert_array_equal(beam, fixture["greedy"])


@one_of_each
def test_gradients_are_t5x(testdata, kind, written):
    model, params = _load(testdata, kind, written)
    fixture, batch = _fixture(testdata, kind)
    gradients = parameter_names.flatten(jax.jit(jax.grad(lambda p: model.loss_sum(p, batch, None)[0]))(params))
    norms = {name.removeprefix("gradnorm/"): x for name, x in fixture.items() if name.startswith("gradnorm/")}
    assert {_t5x_name(name) for name in gradients} == set(norms)
    for name, gradient in gradients.items():
        np.testing.assert_allclose(
            np.linalg.norm(np.float64(gradient)), norms[_t5x_name(name)], rtol=1e-4, err_msg=name
        )


@one_of_each
def test_one_adafactor_step_is_t5x(testdata, kind, written):
    model, params = _load(testdata, kind, written)
    _, batch = _fixture(testdata, kind)
    gradients = parameter_names.flatten(jax.jit(jax.grad(lambda p: model.loss_sum(p, batch, None)[0]))(params))
    after = np.load(testdata / "t5x_tiny" / f"{kind}_after_one_adafactor_step.npz")
    leaves = {name: stored_leaves.from_array(after[name], name) for name in after.files if name != "lr"}
    expected = layouts.from_scanned(leaves)
    assert set(expected) == set(gradients)
    for name, leaf in parameter_names.flatten(params).items():
        # T5X factors the moments of stacked matrices however small they are; ours, and T5X's other leaves, from 128 on.
        stacked = "/layers/" in name
        small = optax.adafactor(1e-3, min_dim_size_to_factor=1)
        transform = small if stacked and name.endswith("/kernel") else optimizers.adafactor(1e-3).build()
        transform = optimizers._per_layer(transform) if stacked else transform
        tree = {name: leaf}
        updates, _ = jax.jit(transform.update)({name: gradients[name]}, transform.init(tree), tree)
        updated, wanted = optax.apply_updates(tree, updates)[name], stored_leaves.whole(expected[name])
        np.testing.assert_allclose(updated, wanted, rtol=0, atol=1e-5, err_msg=name)
        assert np.max(np.abs(wanted - leaf)) > 1e-5, name
