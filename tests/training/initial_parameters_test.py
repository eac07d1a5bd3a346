"""What a run starts from: a new prompt, the mean of several models, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.checkpoints import saving
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.models.parameter_names import flatten
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import initial_parameters, prompt_initializers, stages

SIZES = dict(vocab_size=16, embed_dim=4, num_heads=1, head_dim=4, mlp_dim=4, num_encoder_layers=1, num_decoder_layers=1)


def _model(dtype="float32"):
    return EncoderDecoderModel(T5Config(**SIZES, prompt_length=2, param_dtype=dtype))


def _write(folder, model, seed, prompt=True):
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), model.abstract_params())
    if not prompt:
        del params["soft_prompt"]
    saving.export(folder, params, {"step": 0, "base": None})
    return {name: np.asarray(leaf) for name, leaf in flatten(params).items()}


def _start(model, paths, stage="model_tuning", prompt_init=None):
    paths = [str(path) for path in paths]
    return initial_parameters.starting_parameters(model, stages.stage(stage), paths, prompt_init, Partitioner(), 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_three_models_start_from_their_mean_with_the_first_ones_prompt(dtype, tmp_path):
    model = _model(dtype)
    written = [_write(tmp_path / str(seed), model, seed, prompt=seed < 2) for seed in range(3)]
    params, base = _start(model, [tmp_path / str(seed) for seed in range(3)])
    leaves = {name: np.asarray(leaf) for name, leaf in flatten(params).items()}
    assert set(leaves) == set(written[0])
    for name, leaf in leaves.items():
        if name == "soft_prompt/embedding":
            np.testing.assert_array_equal(leaf, written[0][name])
            continue
        total = sum(np.asarray(model_leaves[name], np.float32) for model_leaves in written)
        assert leaf.dtype == dtype
        mean = np.asarray(total / np.float32(3), np.float32)  # XLA multiplies by the reciprocal
        np.testing.assert_allclose(leaf.astype(np.float32), mean, rtol=float(jnp.finfo(dtype).eps))
    assert base["path"].split(", ") == [str(tmp_path / str(seed)) for seed in range(3)]


@pytest.mark.parametrize(
    "paths,stage,expected",
    [
        ((), "prompt_tuning", "INITIAL_CHECKPOINT_PATH is None: give the path of one pretrained model"),
        (("0", "1"), "prompt_tuning", "averages 2 checkpoints: give the path of one pretrained model"),
        ((), "model_tuning", "but a random model has none"),
        (("bare",), "model_tuning", "bare has none; give the prompt-tuning run's folder"),
    ],
)
def test_what_no_stage_can_start_from(paths, stage, expected, tmp_path):
    model = _model()
    for seed in range(2):
        _write(tmp_path / str(seed), model, seed)
    _write(tmp_path / "bare", model, 3, prompt=False)
    init = prompt_initializers.random_uniform() if stage == "prompt_tuning" else None
    with pytest.raises(ValueError, match=expected):
        _start(model, [tmp_path / path for path in paths], stage, init)


def test_two_networks_have_no_mean(tmp_path):
    _write(tmp_path / "0", _model(), 0)
    _write(tmp_path / "bfloat16", _model("bfloat16"), 1)
    with pytest.raises(ValueError, match=f"{tmp_path}/bfloat16"):
        _start(_model(), [tmp_path / "0", tmp_path / "bfloat16"])


def test_a_new_prompt_replaces_the_old_one_and_follows_the_seed():
    model = EncoderDecoderModel(T5Config(**SIZES, prompt_length=3, param_dtype="bfloat16"))
    params = {"token_embedder": {"embedding": jnp.ones((16, 4))}, "soft_prompt": {"embedding": jnp.zeros((1, 3, 4))}}

    def prompt(seed):
        made = initial_parameters.with_new_prompt(
            params, prompt_initializers.random_uniform(), model, Partitioner(), seed
        )
        assert made["token_embedder"] is params["token_embedder"]
        leaf = flatten(made)["soft_prompt/embedding"]
        assert leaf.shape == (1, 3, 4) and leaf.dtype == jnp.bfloat16
        return np.asarray(leaf, np.float32)

    np.testing.assert_array_equal(prompt(3), prompt(3))
    assert (prompt(3) != prompt(4)).mean() > 0.5 and prompt(3).all()


def test_a_network_without_a_prompt_is_refused():
    model = EncoderDecoderModel(T5Config(**SIZES))
    with pytest.raises(ValueError, match="no soft prompt; set architecture.T5Config.prompt_length"):
        initial_parameters.with_new_prompt({}, prompt_initializers.random_uniform(), model, Partitioner(), 0)
