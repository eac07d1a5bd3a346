"""Copies of a tensor in a Hugging Face folder: the same bits are dropped, others are refused by name."""

import dataclasses
import json

import numpy as np
import pytest
import safetensors.numpy

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import weights
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel

T5_1_1 = T5Config(20, 8, 2, 3, 10, 2, 2, relative_bias_buckets=4)
TIED = dataclasses.replace(T5_1_1, mlp_activations=("relu",), logits_via_embedding=True)
NETWORKS = pytest.mark.parametrize("config", [T5_1_1, TIED], ids=["untied", "tied"])
UNUSED = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"


def written(folder, config, max_shard_bytes=10**9) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    params = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}
    leaves = {name: stored_leaves.from_array(array, name) for name, array in params.items()}
    weights.write(folder, leaves, config, max_shard_bytes=max_shard_bytes)
    return params


def add(file, **arrays) -> None:
    tensors = safetensors.numpy.load_file(file) | arrays
    safetensors.numpy.save_file(tensors, file, {"format": "pt"})


@NETWORKS
@pytest.mark.parametrize("side", ["encoder", "decoder"])
@pytest.mark.parametrize("rows", [20, 24, 1], ids=["other_bits", "longer", "shorter"])
def test_an_embedding_of_one_sides_own_is_not_dropped(config, side, rows, tmp_path):
    embedding = written(tmp_path, config)["token_embedder/embedding"]
    other = np.resize(embedding, (rows, 8)).copy()
    other[0, 3] += 1
    add(tmp_path / "model.safetensors", **{f"{side}.embed_tokens.weight": other})
    message = rf"{side}.embed_tokens.weight in .* \(float32\({rows}, 8\)\) is not shared.weight \(float32\(20, 8\)\)"
    with pytest.raises(ValueError, match=message):
        weights.opened(tmp_path)


@NETWORKS
def test_an_embedding_of_another_dtype_is_no_copy(config, tmp_path):
    embedding = written(tmp_path, config)["token_embedder/embedding"]
    add(tmp_path / "model.safetensors", **{"encoder.embed_tokens.weight": embedding.astype(np.float16)})
    with pytest.raises(ValueError, match="embed_tokens.weight in .* is not shared.weight"):
        weights.opened(tmp_path)


@NETWORKS
def test_copies_of_the_embedding_are_dropped(config, tmp_path):
    embedding = written(tmp_path, config)["token_embedder/embedding"]
    copies = {f"{side}.embed_tokens.weight": embedding for side in ("encoder", "decoder")}
    add(tmp_path / "model.safetensors", **copies)
    fields, leaves = weights.opened(tmp_path)
    assert fields["logits_via_embedding"] is config.logits_via_embedding
    assert stored_leaves.whole(leaves["token_embedder/embedding"]).tobytes() == embedding.tobytes()


@pytest.mark.parametrize("rows", [20, 24], ids=["other_bits", "other_size"])
def test_an_output_matrix_of_its_own_is_not_dropped(rows, tmp_path):
    """Where config.json says that it is the embedding; without the embedding's own name the copies are compared."""
    embedding = written(tmp_path, TIED)["token_embedder/embedding"]
    other = np.resize(embedding, (rows, 8)).copy()
    other[0, 3] += 1
    add(tmp_path / "model.safetensors", **{"lm_head.weight": other})
    with pytest.raises(ValueError, match="lm_head.weight in .* is not shared.weight"):
        weights.opened(tmp_path)


@pytest.mark.parametrize("shape", [(4, 3), (8, 2), (8,)])
def test_unused_relative_positions_of_another_size_are_not_dropped(shape, tmp_path):
    written(tmp_path, TIED)
    add(tmp_path / "model.safetensors", **{UNUSED: np.zeros(shape, np.float32)})
    with pytest.raises(ValueError, match=r"EncDecAttention.relative_attention_bias.weight in .*, expected \(4, 2\)"):
        weights.opened(tmp_path)
    add(tmp_path / "model.safetensors", **{UNUSED: np.zeros((4, 2), np.float32)})
    assert weights.opened(tmp_path)[0]["logits_via_embedding"]


@pytest.mark.parametrize("name", ["lora.weight", "shared.weight"])
def test_tensors_that_the_index_does_not_list_are_not_dropped(name, tmp_path):
    written(tmp_path, T5_1_1, max_shard_bytes=1000)
    weight_map = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    last = sorted(weight_map.values())[-1]
    assert weight_map.get(name) != last
    add(tmp_path / last, **{name: np.zeros((20, 8), np.float32)})
    with pytest.raises(ValueError, match=f"{last} holds {name}, which model.safetensors.index.json does not say"):
        weights.opened(tmp_path)
