"""transformers and PEFT themselves against ours: the same weights give the same logits and answers, in both directions.

transformers 5 says of every model that its output matrix is the embedding; a model with its own is made by giving it
one, and umT5's scale, which version 4 does not have then, is taken off by its configuration (`_unscaled`).
"""

import dataclasses
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import peft, weights
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import DecodingConfig, EncoderDecoderModel

pytestmark = [
    pytest.mark.peer,
    # transformers' own, of a name that peft still uses.
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning"),
]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
_PEERS = "this test compares with torch, transformers and peft, which must be installed next to promot_t5x"
torch = pytest.importorskip("torch", reason=_PEERS)
transformers = pytest.importorskip("transformers", reason=_PEERS)

# noqa: E402
# noqa: E402
# noqa: E402
# noqa: E402

TOLERANCE = 1e-4  # of float32 logits of a size of about 10
SPREAD = 0.18  # of matrices: 1 / sqrt(D); with more the attention is sharp and multiplies float32's rounding
ROWS, INPUTS, TARGETS = 20, 17, 12
SIZES = dict(vocab_size=96, d_model=32, d_kv=6, d_ff=40, num_layers=3, num_decoder_layers=2, num_heads=4)
OURS = dict(
    vocab_size=96, embed_dim=32, head_dim=6, mlp_dim=40, num_encoder_layers=3, num_decoder_layers=2, num_heads=4
)


@dataclasses.dataclass(frozen=True)
class Kind:
    """One family: the arguments of its transformers config, and our network."""

    model_type: str
    feed_forward: str
    config: T5Config
    own_output: bool

    @property
    def model_class(self):
        names = {"t5": "T5", "mt5": "MT5", "umt5": "UMT5"}
        return getattr(transformers, f"{names[self.model_type]}ForConditionalGeneration")


KINDS = {
    "t5_1_0": Kind("t5", "relu", T5Config(**OURS, mlp_activations=("relu",), logits_via_embedding=True), False),
    "t5_1_1": Kind("t5", "gated-gelu", T5Config(**OURS), True),
    "mt5": Kind("mt5", "gated-gelu", T5Config(**OURS), True),
    "umt5": Kind("umt5", "gated-gelu", T5Config(**OURS, relative_bias="per_layer"), True),
    "umt5_tied": Kind(
        "umt5", "gated-gelu", T5Config(**OURS, relative_bias="per_layer", logits_via_embedding=True), False
    ),
    # Shared without a scale, as transformers 5 makes them when they are not loaded from elsewhere.
    "t5_1_1_shared": Kind("t5", "gated-gelu", T5Config(**OURS), False),
    "mt5_shared": Kind("mt5", "gated-gelu", T5Config(**OURS), False),
}
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
TOLD_APART = ("t5_1_0", "t5_1_1", "mt5", "umt5", "umt5_tied")  # what our networks can be


def random_peer(kind: Kind):
    """A model of transformers whose every weight is random: norms are not ones, biases and outputs have a size."""
    torch.manual_seed(0)
    values = dict(**SIZES, feed_forward_proj=kind.feed_forward, decoder_start_token_id=0)
    config = transformers.AutoConfig.for_model(
        kind.model_type, **values, tie_word_embeddings=kind.config.logits_via_embedding
    )
    model = kind.model_class(config)
    if kind.own_output:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(SIZES["vocab_size"], SIZES["d_model"]))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            spread = SPREAD if weight.ndim == 2 and "embed" not in name and "shared" not in name else 1.0
            weight.copy_(spread * torch.randn(weight.shape))
    return _unscaled(model.eval(), kind)


def _unscaled(model, kind: Kind):
    """Takes off the scale that transformers 5 has for umT5 with an output matrix of its own, too."""
    if kind.own_output:
        model.config.tie_word_embeddings = False
    return model


def random_params(config: T5Config) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    spread = {name: 1.0 if "embedding" in name or len(leaf.shape) < 2 else SPREAD for name, leaf in shapes.items()}
    return {n: (spread[n] * rng.normal(size=leaf.shape)).astype(np.float32) for n, leaf in shapes.items()}


def ragged_tokens(seed: int, length: int) -> np.ndarray:
    """tokens_BxT of different lengths, each ended by 1 and padded by 0; the first row is the longest."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, ROWS)
    lengths[0] = length
    tokens_BxT = rng.integers(2, SIZES["vocab_size"], (ROWS, length))
    tokens_BxT[np.arange(ROWS), lengths - 1] = 1
    return np.where(np.arange(length) < lengths[:, None], tokens_BxT, 0).astype(np.int32)


def batch(prompt_ids=None) -> dict[str, jnp.ndarray]:
    targets_BxU = ragged_tokens(3, TARGETS)
    features = {
        "encoder_input_tokens": ragged_tokens(2, INPUTS),
        "decoder_input_tokens": np.pad(targets_BxU, ((0, 0), (1, 0)))[:, :-1],
        "decoder_target_tokens": targets_BxU,
    }
    if prompt_ids is not None:
        features["soft_prompt_ids"] = np.full(ROWS, prompt_ids, np.int32)
    return {name: jnp.asarray(array) for name, array in features.items()}


def peer_inputs() -> dict:
    tokens_BxT = torch.tensor(ragged_tokens(2, INPUTS)).long()
    return {"input_ids": tokens_BxT, "attention_mask": (tokens_BxT != 0).long()}


def assert_same_logits(ours, peer, record_property) -> None:
    decoder_input = torch.tensor(np.array(batch()["decoder_input_tokens"])).long()
    with torch.no_grad():
        theirs = peer(**peer_inputs(), decoder_input_ids=decoder_input).logits.numpy()
    largest = float(np.abs(np.asarray(ours) - theirs).max())
    record_property("largest difference of logits", largest)
    print(f"largest difference of logits {largest:.2g}, largest logit {np.abs(theirs).max():.2g}")
    assert largest < TOLERANCE
    assert np.abs(theirs).max() > 1


def assert_same_answers(ours, peer) -> None:
    """Greedy: `ours` BxU with 0 after the end, theirs with the start token in front."""
    with torch.no_grad():
        theirs = peer.generate(**peer_inputs(), max_new_tokens=TARGETS, do_sample=False, num_beams=1).numpy()[:, 1:]
    theirs = np.pad(theirs, ((0, 0), (0, TARGETS - theirs.shape[1])))
    np.testing.assert_array_equal(np.asarray(ours), theirs)
    assert len({row.tobytes() for row in theirs}) > 3  # else little is compared


def network(config: T5Config) -> EncoderDecoderModel:
    return EncoderDecoderModel(config, decoding=DecodingConfig(method="greedy"))


@functools.partial(jax.jit, static_argnums=0)
def logits(model: EncoderDecoderModel, params, features) -> jax.Array:
    return model.logits(params, features)


@functools.partial(jax.jit, static_argnums=0)
def answers(model: EncoderDecoderModel, params, features) -> jax.Array:
    return model.predict_batch(params, features)


def nested(leaves) -> dict:
    return parameter_names.unflatten({name: jnp.asarray(stored_leaves.whole(leaf)) for name, leaf in leaves.items()})


@each_kind
def test_their_folder_read_by_us(kind, tmp_path, record_property):
    peer = random_peer(kind)
    peer.save_pretrained(tmp_path)
    config = T5Config(**weights.opened(tmp_path)[0])
    assert config == kind.config
    params = nested(weights.opened(tmp_path)[1])
    ours = network(config)
    assert_same_logits(logits(ours, params, batch()), peer, record_property)
    assert_same_answers(answers(ours, params, batch()), peer)


@pytest.mark.parametrize(
    "name,max_shard_bytes", [*((name, 10**9) for name in TOLD_APART), ("t5_1_1", 30_000)], ids=[*TOLD_APART, "shards"]
)
def test_our_folder_read_by_them(name, max_shard_bytes, tmp_path, record_property):
    kind = KINDS[name]
    flat = random_params(kind.config)
    leaves = {name: stored_leaves.from_array(array, name) for name, array in flat.items()}
    model_type = "mt5" if kind.model_type == "mt5" else None
    weights.write(tmp_path, leaves, kind.config, model_type=model_type, max_shard_bytes=max_shard_bytes)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (max_shard_bytes < 10**9)
    peer, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(peer, kind.model_class)
    assert not any(info.values()), info
    params = parameter_names.unflatten({name: jnp.asarray(array) for name, array in flat.items()})
    ours = network(kind.config)
    assert_same_answers(answers(ours, params, batch()), peer)  # with umT5's scale as it is loaded
    assert_same_logits(logits(ours, params, batch()), _unscaled(peer, kind), record_property)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_their_half_precision_bit_for_bit(dtype, tmp_path):
    peer = random_peer(KINDS["t5_1_1"]).to(getattr(torch, dtype))
    peer.save_pretrained(tmp_path)
    leaves = weights.opened(tmp_path)[1]
    assert {str(leaf.dtype) for leaf in leaves.values()} == {dtype}
    for name, theirs in (("token_embedder/embedding", peer.shared), ("decoder/logits_dense/kernel", peer.lm_head)):
        bits = theirs.weight.detach().view(torch.int16).numpy()
        ours = stored_leaves.whole(leaves[name]).view(np.int16)
        np.testing.assert_array_equal(ours if ours.shape == bits.shape else ours.T, bits)


@pytest.mark.parametrize("kind", [KINDS["t5_1_1"], KINDS["mt5"]], ids=["t5_1_1", "mt5"])
def test_prompt_of_ours_in_peft(kind, tmp_path, record_property):
    """Logits and answers with the prompt attached; without it PEFT's base model is the plain one."""
    their_peft = pytest.importorskip("peft", reason=_PEERS)
    config = dataclasses.replace(kind.config, prompt_length=7)
    flat = random_params(config)
    prompt_NxPxD = flat[parameter_names.PROMPT]
    leaves = {
        name: stored_leaves.from_array(array, name) for name, array in flat.items() if name != parameter_names.PROMPT
    }
    model_type = "mt5" if kind.model_type == "mt5" else None
    weights.write(tmp_path / "base", leaves, config, model_type=model_type)
    peft.write_adapter(tmp_path / "adapter", prompt_NxPxD[0], str(tmp_path / "base"))
    base = transformers.AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "base")
    prompted = their_peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert prompted.peft_config["default"].num_virtual_tokens == 7
    assert prompted.peft_config["default"].base_model_name_or_path == str(tmp_path / "base")
    params = parameter_names.unflatten({name: jnp.asarray(array) for name, array in flat.items()})
    ours = network(config)
    with_prompt = logits(ours, params, batch(prompt_ids=0))
    assert_same_logits(with_prompt, prompted, record_property)
    assert_same_answers(answers(ours, params, batch(prompt_ids=0)), prompted)
    assert np.abs(np.asarray(with_prompt - logits(ours, params, batch()))).max() > 0.1


def test_prompt_of_theirs_in_ours(tmp_path):
    their_peft = pytest.importorskip("peft", reason=_PEERS)
    settings = their_peft.PromptTuningConfig(
        task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5, num_transformer_submodules=1
    )
    prompted = their_peft.get_peft_model(random_peer(KINDS["t5_1_0"]), settings)
    prompted.save_pretrained(tmp_path)
    prompt_NxPxD = peft.read_adapter(tmp_path)
    theirs = prompted.prompt_encoder["default"].embedding.weight.detach().numpy()
    assert prompt_NxPxD.shape == (1, 5, SIZES["d_model"])
    np.testing.assert_array_equal(prompt_NxPxD[0], theirs)


def test_the_default_adapter_of_theirs_is_used_as_they_use_it(tmp_path, record_property):
    """It stores twice as many rows; logits with the first half are theirs."""
    their_peft = pytest.importorskip("peft", reason=_PEERS)
    kind = KINDS["t5_1_1"]
    base = random_peer(kind)
    base.save_pretrained(tmp_path / "base")
    config, leaves = weights.opened(tmp_path / "base")
    settings = their_peft.PromptTuningConfig(task_type="SEQ_2_SEQ_LM", num_virtual_tokens=5)
    prompted = their_peft.get_peft_model(base, settings).eval()
    prompted.save_pretrained(tmp_path / "adapter")
    assert prompted.peft_config["default"].num_transformer_submodules == 2
    prompt_NxPxD = peft.read_adapter(tmp_path / "adapter")
    assert prompt_NxPxD.shape == (1, 5, SIZES["d_model"])
    params = {**nested(leaves), parameter_names.SOFT_PROMPT: {"embedding": jnp.asarray(prompt_NxPxD)}}
    ours = network(dataclasses.replace(T5Config(**config), prompt_length=5))
    assert_same_logits(logits(ours, params, batch(prompt_ids=0)), prompted, record_property)
    assert_same_answers(answers(ours, params, batch(prompt_ids=0)), prompted)
