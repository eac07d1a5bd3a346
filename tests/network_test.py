"""The network against T5X's own numbers, and the promises about prompts, padding, caches, scan and remat."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x import layout
from promot_t5x.architecture import T5Config
from promot_t5x.interop import t5x_checkpoint
from promot_t5x.model import DecodingConfig, EncoderDecoderModel
from promot_t5x.network import Transformer

FIXTURE_CONFIG = T5Config(
    vocab_size=384, embed_dim=32, num_heads=4, head_dim=8, mlp_dim=64, num_encoder_layers=2, num_decoder_layers=2
)
PROMPT_CONFIG = dataclasses.replace(FIXTURE_CONFIG, prompt_length=8)
BATCH_KEYS = ("encoder_input_tokens", "decoder_input_tokens", "decoder_target_tokens", "decoder_loss_weights")


@pytest.fixture(scope="module")
def t5x(shared_dir):
    folder = shared_dir / "fixtures" / "t5x_tiny"
    params = layout.unflatten(t5x_checkpoint.read_params(folder / "t5_legacy" / "checkpoint_0"))
    return params, dict(np.load(folder / "t5_batch_logits_loss.npz")), dict(np.load(folder / "t5_with_prompt.npz"))


def batch_of(fixture):
    return {key: jnp.asarray(fixture[key]) for key in BATCH_KEYS}


def relative_difference(a, b):
    return float(np.max(np.abs(np.asarray(a) - np.asarray(b))) / np.max(np.abs(np.asarray(b))))


def check_gradient_norms(gradients, fixture):
    names = [key.removeprefix("gradnorm/") for key in fixture if key.startswith("gradnorm/")]
    assert len(names) == 52 if "soft_prompt" not in gradients else len(names) >= 52
    flat = layout.flatten(gradients)
    for name in names:
        norm = np.linalg.norm(np.asarray(flat[name if name in flat else "soft_prompt/embedding"], np.float64))
        np.testing.assert_allclose(norm, fixture[f"gradnorm/{name}"], rtol=1e-4, err_msg=name)


def test_logits_loss_scores_and_gradients_are_t5x(t5x):
    params, fixture, _ = t5x
    model, batch = EncoderDecoderModel(FIXTURE_CONFIG), batch_of(fixture)
    real = fixture["decoder_target_tokens"] > 0
    np.testing.assert_allclose(model.logits(params, batch)[real], fixture["logits"][real], atol=1e-5)
    (loss, _), gradients = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, None)
    np.testing.assert_allclose(loss, 235.2096863, rtol=1e-5)
    np.testing.assert_allclose(model.score_batch(params, batch), fixture["scores"], atol=1e-4)
    check_gradient_norms(gradients, fixture)


def test_one_beam_decode_is_t5x(t5x):
    params, fixture, _ = t5x
    model = EncoderDecoderModel(FIXTURE_CONFIG, decoding=DecodingConfig("beam", num_beams=1, alpha=0.6))
    np.testing.assert_array_equal(model.predict_batch(params, batch_of(fixture)), fixture["greedy"])


def test_soft_prompt_path_is_t5x(t5x):
    params, base_fixture, fixture = t5x
    prompt = fixture["soft_prompt"] if "soft_prompt" in fixture else fixture["prompt"]
    params = {**params, "soft_prompt": {"embedding": jnp.asarray(prompt).reshape(1, 8, 32)}}
    batch = batch_of(base_fixture) | {"soft_prompt_ids": jnp.zeros(4, jnp.int32)}
    model = EncoderDecoderModel(PROMPT_CONFIG, decoding=DecodingConfig("beam", num_beams=1, alpha=0.6))
    real = base_fixture["decoder_target_tokens"] > 0
    np.testing.assert_allclose(model.logits(params, batch)[real], fixture["logits"][real], atol=1e-5)
    (loss, _), gradients = jax.value_and_grad(model.loss_fn, has_aux=True)(params, batch, None)
    np.testing.assert_allclose(loss, 236.1419373, rtol=1e-5)
    np.testing.assert_allclose(model.score_batch(params, batch), fixture["scores"], atol=1e-4)
    np.testing.assert_array_equal(model.predict_batch(params, batch), fixture["beam1"])
    prompt_gradient = gradients["soft_prompt"]["embedding"][0]
    assert relative_difference(prompt_gradient, fixture["grad_soft_prompt"].reshape(8, 32)) < 1e-4
    check_gradient_norms(gradients, fixture)
