"""Folders of transformers in and out: bits, names, shards, what config.json says, and every mistake in them."""

import dataclasses
import errno
import json
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from etils import epath

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.huggingface import config_file, safetensors_file, weights
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel

SIZES = dict(vocab_size=20, embed_dim=8, num_heads=2, head_dim=3, mlp_dim=10, num_encoder_layers=2)
SIZES |= dict(num_decoder_layers=3, relative_bias_buckets=4, relative_bias_max_distance=16)
T5 = T5Config(**SIZES, mlp_activations=("relu",), logits_via_embedding=True)
T5_1_1 = T5Config(**SIZES)
UMT5 = T5Config(**SIZES, relative_bias="per_layer")
NETWORKS = {"t5": T5, "t5_1_1": T5_1_1, "umt5": UMT5}
OF_WEIGHTS = ("mlp_activations", "logits_via_embedding", "relative_bias", "dropout_rate", *SIZES)

each_network = pytest.mark.parametrize("config", NETWORKS.values(), ids=NETWORKS)
each_dtype = pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16], ids=["f32", "bf16", "f16"])


def random_params(config: T5Config, dtype=np.float32) -> dict[str, np.ndarray]:
    """Flat parameters of a network, drawn by numpy."""
    rng = np.random.default_rng(0)
    shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    return {name: rng.normal(size=leaf.shape).astype(dtype) for name, leaf in shapes.items()}


def as_leaves(params: dict[str, np.ndarray]) -> dict[str, stored_leaves.StoredLeaf]:
    return {name: stored_leaves.from_array(array, name) for name, array in params.items()}


def in_file(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a file, read by the safetensors library."""
    with safetensors.safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


@pytest.fixture
def model_folder(tmp_path) -> Path:
    """An untied T5 1.1 in one file, for tests to change."""
    weights.write(tmp_path / "model", as_leaves(random_params(T5_1_1)), T5_1_1)
    return tmp_path / "model"


def change_config(folder: Path, **values) -> None:
    """Sets entries of a config.json; None takes one out."""
    content = json.loads((folder / "config.json").read_text()) | values
    content = {key: value for key, value in content.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(content))


def change_weights(folder: Path, change) -> None:
    """Lets `change` work on the dictionary of tensors of a folder's only file."""
    tensors = in_file(folder / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@each_network
@each_dtype
def test_round_trip_bit_for_bit(config, dtype, tmp_path):
    params = random_params(config, dtype)
    weights.write(tmp_path, as_leaves(params), config)
    leaves = weights.opened(tmp_path)[1]
    assert list(leaves) == list(params)
    for name, leaf in leaves.items():
        assert (leaf.shape, leaf.dtype) == (params[name].shape, params[name].dtype), name
        whole = stored_leaves.whole(leaf)
        assert (whole.dtype, whole.tobytes()) == (params[name].dtype, params[name].tobytes()), name
    assert weights.is_huggingface(tmp_path)
    fields = {field: getattr(config, field) for field in OF_WEIGHTS}
    assert weights.opened(tmp_path)[0] == fields


@each_network
def test_blocks_are_those_of_the_whole(config, tmp_path):
    params = random_params(config, jnp.bfloat16)
    weights.write(tmp_path, as_leaves(params), config)
    for name, leaf in weights.opened(tmp_path)[1].items():
        index = tuple(slice(1, size - 1) if size > 2 else slice(0, 1) for size in leaf.shape)
        assert leaf.read(index).tobytes() == params[name][index].tobytes(), name
        assert leaf.source.startswith(f"{tmp_path}/model.safetensors: ")


@each_dtype
def test_shards(dtype, tmp_path, monkeypatch):
    """Many files, an index that counts their bytes, the same bits; also where a tensor is copied in several blocks."""
    monkeypatch.setattr(safetensors_file, "_BLOCK_BYTES", 64)
    params = random_params(T5_1_1, dtype)
    weights.write(tmp_path, as_leaves(params), T5_1_1, max_shard_bytes=1000)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    files = sorted(p.name for p in tmp_path.glob("*.safetensors"))
    assert files == [f"model-{i:05d}-of-{len(files):05d}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 3
    tensors = {}
    for file in files:
        content = in_file(tmp_path / file)
        assert {index["weight_map"][name] for name in content} == {file}
        assert sum(array.nbytes for array in content.values()) <= 1000
        tensors |= content
    assert index["metadata"]["total_size"] == sum(array.nbytes for array in tensors.values())
    assert set(index["weight_map"]) == set(tensors)
    for name, leaf in weights.opened(tmp_path)[1].items():
        assert stored_leaves.whole(leaf).tobytes() == params[name].tobytes(), name


def test_names_and_transposition_in_the_file(model_folder):
    """By transformers' naming, written out for one layer of each side."""
    params, tensors = random_params(T5_1_1), in_file(model_folder / "model.safetensors")
    self_attention, cross = "decoder.block.2.layer.0.SelfAttention", "decoder.block.2.layer.1.EncDecAttention"
    ours = "decoder/layers_2"
    for theirs, expected in {
        "shared.weight": params["token_embedder/embedding"],
        "lm_head.weight": params["decoder/logits_dense/kernel"].T,
        "encoder.block.1.layer.0.SelfAttention.q.weight": params["encoder/layers_1/attention/query/kernel"].T,
        "encoder.block.1.layer.0.layer_norm.weight": params["encoder/layers_1/pre_attention_layer_norm/scale"],
        "encoder.block.1.layer.1.DenseReluDense.wi_1.weight": params["encoder/layers_1/mlp/wi_1/kernel"].T,
        "encoder.block.1.layer.1.layer_norm.weight": params["encoder/layers_1/pre_mlp_layer_norm/scale"],
        "encoder.final_layer_norm.weight": params["encoder/encoder_norm/scale"],
        "decoder.final_layer_norm.weight": params["decoder/decoder_norm/scale"],
        f"{self_attention}.k.weight": params[f"{ours}/self_attention/key/kernel"].T,
        f"{cross}.v.weight": params[f"{ours}/encoder_decoder_attention/value/kernel"].T,
        f"{cross}.o.weight": params[f"{ours}/encoder_decoder_attention/out/kernel"].T,
        "decoder.block.2.layer.1.layer_norm.weight": params[f"{ours}/pre_cross_attention_layer_norm/scale"],
        "decoder.block.2.layer.2.DenseReluDense.wo.weight": params[f"{ours}/mlp/wo/kernel"].T,
        "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": params[
            "decoder/relpos_bias/rel_embedding"
        ].T,
    }.items():
        np.testing.assert_array_equal(tensors[theirs], expected, err_msg=theirs)
    assert len(tensors) == len(params)


def test_stacks_of_layers_are_written_as_layers(tmp_path):
    scanned = dataclasses.replace(UMT5, scan_layers=True)
    params = random_params(scanned)
    weights.write(tmp_path, as_leaves(params), scanned)
    separate = parameter_names.unstack_layers(params)
    for name, leaf in weights.opened(tmp_path)[1].items():
        np.testing.assert_array_equal(stored_leaves.whole(leaf), separate[name], err_msg=name)


def test_leaves_of_several_dtypes(tmp_path):
    """In one file, each at a multiple of its width."""
    params = random_params(T5)
    params = {name: array.astype(jnp.bfloat16) if "mlp" in name else array for name, array in params.items()}
    weights.write(tmp_path, as_leaves(params), T5)
    assert "torch_dtype" not in json.loads((tmp_path / "config.json").read_text())
    data = (tmp_path / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    assert length % 8 == 0
    for name, entry in json.loads(data[8 : 8 + length]).items():
        if name != "__metadata__":
            assert entry["data_offsets"][0] % {"F32": 4, "BF16": 2}[entry["dtype"]] == 0, name
    for name, leaf in weights.opened(tmp_path)[1].items():
        assert stored_leaves.whole(leaf).tobytes() == params[name].tobytes(), name


def test_config_json(tmp_path):
    weights.write(tmp_path, as_leaves(random_params(T5_1_1)), T5_1_1)
    values = json.loads((tmp_path / "config.json").read_text())
    assert values["architectures"] == ["T5ForConditionalGeneration"]
    expected = dict(model_type="t5", vocab_size=20, d_model=8, num_heads=2, d_kv=3, d_ff=10, num_layers=2)
    expected |= dict(num_decoder_layers=3, feed_forward_proj="gated-gelu", tie_word_embeddings=False, pad_token_id=0)
    expected |= dict(eos_token_id=1, decoder_start_token_id=0, torch_dtype="float32", is_encoder_decoder=True)
    assert values | expected == values
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation == {"decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}


def test_model_types():
    mt5 = T5Config()  # mT5-small's sizes
    tied = dataclasses.replace(mt5, logits_via_embedding=True)
    assert config_file.model_type_of(mt5) == "mt5"
    assert config_file.model_type_of(tied) == "t5"
    assert config_file.model_type_of(T5_1_1) == "t5"
    assert config_file.model_type_of(T5_1_1, "mt5") == "mt5"
    assert config_file.model_type_of(UMT5) == "umt5"
    with pytest.raises(ValueError, match="The model type is 'bart', expected one of t5, mt5, umt5"):
        config_file.model_type_of(mt5, "bart")
    for config, model_type in ((UMT5, "t5"), (mt5, "umt5")):
        with pytest.raises(ValueError, match="umt5 alone has per_layer"):
            config_file.model_type_of(config, model_type)
    with pytest.raises(ValueError, match="versions of transformers compute different logits: give t5"):
        config_file.model_type_of(tied, "mt5")


def test_config_json_of_the_first_t5(tmp_path):
    """It has no feed_forward_proj, no tie_word_embeddings, no decoder's depth; its weights have one table too many."""
    config = dataclasses.replace(T5, num_decoder_layers=2, relative_bias_buckets=32, relative_bias_max_distance=128)
    weights.write(tmp_path, as_leaves(random_params(config)), config)
    gone = ("num_decoder_layers", "relative_attention_num_buckets", "relative_attention_max_distance", "torch_dtype")
    gone += ("feed_forward_proj", "tie_word_embeddings")
    change_config(tmp_path, **dict.fromkeys(gone))

    def as_of_old(tensors):
        cross = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[cross] = np.zeros((32, 2), np.float32)
        for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors["shared.weight"]

    change_weights(tmp_path, as_of_old)
    assert T5Config(**weights.opened(tmp_path)[0]) == config
    params = random_params(config)
    leaves = weights.opened(tmp_path)[1]
    assert list(leaves) == list(params)
    assert all(stored_leaves.whole(leaf).tobytes() == params[name].tobytes() for name, leaf in leaves.items())


@pytest.mark.parametrize("kept", ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"])
def test_embedding_under_another_name(kept, tmp_path):
    weights.write(tmp_path, as_leaves(random_params(T5)), T5)
    change_weights(tmp_path, lambda tensors: tensors.update({kept: tensors.pop("shared.weight")}))
    embedding = stored_leaves.whole(weights.opened(tmp_path)[1]["token_embedder/embedding"])
    np.testing.assert_array_equal(embedding, random_params(T5)["token_embedder/embedding"])


@pytest.mark.parametrize(
    "config,values",
    [
        (T5_1_1, dict(tie_word_embeddings=True, scale_decoder_outputs=False)),
        (T5_1_1, dict(tie_word_embeddings=True, transformers_version="5.23.0", model_type="mt5")),
        (UMT5, dict(tie_word_embeddings=True, transformers_version="5.23.0")),
    ],
    ids=["t5", "mt5", "umt5"],
)
def test_own_output_matrix_where_transformers_5_writes_tied(config, values, tmp_path):
    params = random_params(config)
    weights.write(tmp_path, as_leaves(params), config)
    change_config(tmp_path, **values)
    assert weights.opened(tmp_path)[0]["logits_via_embedding"] is False
    kernel = stored_leaves.whole(weights.opened(tmp_path)[1]["decoder/logits_dense/kernel"])
    np.testing.assert_array_equal(kernel, params["decoder/logits_dense/kernel"])


@pytest.mark.parametrize(
    "values,is_scaled",
    [
        (dict(), True),
        (dict(scale_decoder_outputs=False), False),
        (dict(model_type="mt5", transformers_version="4.40.1"), True),
        (dict(model_type="mt5", transformers_version="5.23.0"), False),
    ],
    ids=["t5", "t5_unscaled", "mt5_of_4", "mt5_of_5"],
)
def test_shared_output_matrix_with_and_without_scale(values, is_scaled, tmp_path):
    """Without the scale of a tied network it is an output matrix of its own with the embedding's bits."""
    params = random_params(T5)
    weights.write(tmp_path, as_leaves(params), T5)
    change_config(tmp_path, **values)
    assert weights.opened(tmp_path)[0]["logits_via_embedding"] is is_scaled
    leaves = weights.opened(tmp_path)[1]
    assert ("decoder/logits_dense/kernel" in leaves) is not is_scaled
    if not is_scaled:
        kernel = stored_leaves.whole(leaves["decoder/logits_dense/kernel"])
        np.testing.assert_array_equal(kernel, params["token_embedder/embedding"].T)


def test_no_weight_is_read_before_it_is_asked_for(tmp_path, monkeypatch):
    weights.write(tmp_path, as_leaves(random_params(UMT5)), UMT5)
    reads, leaf_of = [], safetensors_file._leaf

    def counted(path, name, shape, dtype):
        leaf = leaf_of(path, name, shape, dtype)
        return leaf._replace(read=lambda index: (reads.append(name), leaf.read(index))[1])

    monkeypatch.setattr(safetensors_file, "_leaf", counted)
    leaves = weights.opened(tmp_path)[1]
    assert not reads
    stored_leaves.whole(leaves["decoder/logits_dense/kernel"])
    assert reads == ["lm_head.weight"]


def test_wrong_places(tmp_path):
    assert not weights.is_huggingface(tmp_path / "nothing")
    assert not weights.is_huggingface(tmp_path)
    with pytest.raises(FileNotFoundError, match="folder .*/nothing does not exist: check the path"):
        weights.opened(tmp_path / "nothing")[1]
    (tmp_path / "file").write_text("x")
    assert not weights.is_huggingface(tmp_path / "file")
    with pytest.raises(ValueError, match="is a file, expected a folder with config.json"):
        weights.opened(tmp_path / "file")[1]
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        weights.opened(tmp_path)
    (tmp_path / "config.json").write_text('{"model": "of something else"}')
    assert not weights.is_huggingface(tmp_path)


def test_buckets_are_refused(model_folder):
    with pytest.raises(ValueError, match="is not on a local disk"):
        safetensors_file.leaves(epath.Path("gs://bucket/model.safetensors"))


@pytest.mark.parametrize(
    "values,message",
    [
        (dict(model_type="bart"), "model of type 'bart', expected one of t5, mt5, umt5"),
        (dict(model_type=None), "model of type None"),
        (dict(model_type=["t5"]), "model of type ..t5.., expected one of t5"),
        (dict(feed_forward_proj=["relu"]), "feed_forward_proj is ..relu.. in .*config.json, expected one of relu"),
        (dict(num_layers=10**9), "config.json has 100000000. layers, but the weights next to it are only .* tensors"),
        (
            dict(feed_forward_proj="gated-tanh"),
            "feed_forward_proj is 'gated-tanh' in .*config.json, expected one of relu",
        ),
        (dict(feed_forward_proj="gelu"), "feed_forward_proj is 'gelu'"),
        (dict(decoder_start_token_id=2), "decoder_start_token_id is 2 in .*config.json, expected 0"),
        (dict(dropout_rate=1.5), "dropout_rate is 1.5 in .*config.json, expected a probability below 1"),
        (dict(d_model=None), "d_model is None in .*config.json, expected a positive number"),
        (dict(num_heads="2"), "num_heads is '2'"),
        (dict(num_layers=0), "num_layers is 0"),
        (dict(layer_norm_epsilon=1e-5), "layer_norm_epsilon is 1e-05 in .*, expected 1e-06"),
    ],
)
def test_config_json_of_another_network(values, message, model_folder):
    change_config(model_folder, **values)
    with pytest.raises(ValueError, match=message):
        weights.opened(model_folder)


@pytest.mark.parametrize("text", ['{"model_type": "t5",', "[]"])
def test_damaged_config_json(text, model_folder):
    (model_folder / "config.json").write_text(text)
    assert weights.is_huggingface(model_folder)
    with pytest.raises(ValueError, match="config.json is damaged, it is not (JSON|a JSON object)"):
        weights.opened(model_folder)


@pytest.mark.parametrize(
    "values,message",
    [
        (dict(d_ff=11), r"have 15 of other shapes \(.*wi_0.weight \(10, 8\) for \(11, 8\), "),
        (dict(vocab_size=24), r"have 2 of other shapes \(shared.weight \(20, 8\) for \(24, 8\), lm_head.weight"),
        (dict(num_layers=3), r"lack 9 tensors \(encoder.block.2.layer.0.SelfAttention.q.weight, .*, …\)"),
        (dict(num_decoder_layers=2), r"have 14 that are unknown \(decoder.block.2.layer.0.SelfAttention"),
        (dict(feed_forward_proj="relu"), r"lack 5 tensors .*, and have 10 that are unknown .*; put the config.json of"),
    ],
)
def test_weights_of_other_sizes_than_config_json(values, message, model_folder):
    change_config(model_folder, **values)
    with pytest.raises(ValueError, match=message):
        weights.opened(model_folder)


def test_missing_and_unknown_tensors(model_folder):
    change_weights(model_folder, lambda tensors: tensors.pop("lm_head.weight"))
    with pytest.raises(ValueError, match=r"they lack 1 tensors \(lm_head.weight\); put"):
        weights.opened(model_folder)
    change_weights(model_folder, lambda tensors: tensors.update({"lora.weight": np.zeros(2, np.float32)}))
    with pytest.raises(
        ValueError, match=r"lack 1 tensors \(lm_head.weight\), and have 1 that are unknown \(lora.weight\)"
    ):
        weights.opened(model_folder)[1]


def test_tied_t5_with_another_output_matrix(model_folder):
    change_config(model_folder, tie_word_embeddings=True)
    with pytest.raises(ValueError, match="lm_head.weight in .* is not shared.weight, though its config.json says"):
        weights.opened(model_folder)


def test_integers_for_weights(model_folder):
    change_weights(model_folder, lambda tensors: tensors.update({"shared.weight": np.zeros((20, 8), np.int8)}))
    with pytest.raises(ValueError, match="The tensor shared.weight in .* has the type I8, expected one of F16, BF16"):
        weights.opened(model_folder)


@pytest.mark.parametrize("kept", [0, 5, 200, -1])
def test_truncated_weights(kept, model_folder):
    file = model_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match="safetensors file .*model.safetensors is damaged .*: copy or save it again"):
        weights.opened(model_folder)


def test_weights_with_bytes_too_many(model_folder):
    with (model_folder / "model.safetensors").open("ab") as file:
        file.write(b"\0" * 16)
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        weights.opened(model_folder)


@pytest.mark.parametrize(
    "corrupt",
    [
        lambda length, header: (2**60, header),
        lambda length, header: (length - 8, header),
        lambda length, header: (length, header.replace(b'"shape":[20,8]', b'"shape":[99,8]')),
        lambda length, header: (length, header.replace(b'"data_offsets":[0,640]', b'"data_offsets":[0,320]')),
        lambda length, header: (length, header.replace(b"}", b"]")),
    ],
    ids=["length", "shorter", "shape", "offsets", "json"],
)
def test_header_that_contradicts_the_file(corrupt, model_folder):
    file = model_folder / "model.safetensors"
    data = file.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    stated_length, header = corrupt(length, data[8 : 8 + length])
    assert len(header) == length and (stated_length, header) != (length, data[8 : 8 + length])
    file.write_bytes(struct.pack("<Q", stated_length) + header + data[8 + length :])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        weights.opened(model_folder)


@pytest.fixture
def sharded_folder(tmp_path) -> Path:
    weights.write(tmp_path / "shards", as_leaves(random_params(T5_1_1)), T5_1_1, max_shard_bytes=5000)
    return tmp_path / "shards"


def test_missing_shard(sharded_folder):
    files = sorted(sharded_folder.glob("*.safetensors"))
    files[1].unlink()
    with pytest.raises(
        FileNotFoundError, match=rf"lacks 1 of the {len(files)} weight files .*\({files[1].name}\): copy"
    ):
        weights.opened(sharded_folder)


def test_index_that_does_not_fit(sharded_folder):
    index = sharded_folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    files = sorted(set(content["weight_map"].values()))
    content["weight_map"]["shared.weight"] = files[-1]
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"{files[-1]} lacks shared.weight, which model.safetensors.index.json says"):
        weights.opened(sharded_folder)
    content["weight_map"]["shared.weight"] = "../elsewhere.safetensors"
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="names ../elsewhere.safetensors, expected files of its own folder"):
        weights.opened(sharded_folder)
    for text, problem in (
        ("{", "is not JSON"),
        ("[]", "is not a JSON object"),
        ("{}", "maps no tensors to files"),
        ('{"weight_map": 3}', "maps no tensors to files"),
    ):
        index.write_text(text)
        with pytest.raises(ValueError, match=f"index.json is damaged, it {problem}"):
            weights.opened(sharded_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "flax_model.msgpack"])
def test_pickled_weights_are_refused(name, model_folder):
    (model_folder / "model.safetensors").rename(model_folder / name)
    assert weights.is_huggingface(model_folder)
    with pytest.raises(ValueError, match=f"holds no model.safetensors but {name}, .* save_pretrained"):
        weights.opened(model_folder)


def test_no_weights(model_folder):
    (model_folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors nor model.safetensors.index.json"):
        weights.opened(model_folder)


def test_leaves_of_another_network_are_not_written(tmp_path):
    params = random_params(T5_1_1)
    with pytest.raises(ValueError, match=r"encoder/layers_0/mlp/wi/kernel \(missing\)"):
        weights.write(tmp_path, as_leaves(params), dataclasses.replace(T5_1_1, mlp_activations=("relu",)))
    with pytest.raises(ValueError, match=r"decoder/logits_dense/kernel \(unknown\)"):
        weights.write(tmp_path, as_leaves(params), dataclasses.replace(T5_1_1, logits_via_embedding=True))
    with pytest.raises(ValueError, match=r"token_embedder/embedding \(\(20, 8\) for \(21, 8\)\)"):
        weights.write(tmp_path, as_leaves(params), dataclasses.replace(T5_1_1, vocab_size=21))
    with pytest.raises(ValueError, match="soft_prompt/embedding has no place .* a PEFT adapter"):
        weights.write(tmp_path, as_leaves(params | {parameter_names.PROMPT: np.zeros((1, 2, 8))}), T5_1_1)
    with pytest.raises(ValueError, match=r"mlp_activations is \('silu', 'gelu'\), which config.json cannot express"):
        weights.write(tmp_path, as_leaves(params), dataclasses.replace(T5_1_1, mlp_activations=("silu", "gelu")))
    with pytest.raises(ValueError, match="is of int32, which cannot be written"):
        whole_numbers = {name: array.astype(np.int32) for name, array in params.items()}
        weights.write(tmp_path, as_leaves(whole_numbers), T5_1_1)
    assert not list(tmp_path.iterdir())


def test_a_model_is_not_written_over(model_folder):
    before = (model_folder / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="holds config.json, model.safetensors already: give another folder"):
        weights.write(model_folder, as_leaves(random_params(T5)), T5)
    assert (model_folder / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("where", ["lm_head", "config.json"])
def test_nothing_half_written_stays(where, tmp_path, monkeypatch):
    """Neither when a source cannot be read nor when the disk is full; the tokenizer that was there stays."""
    leaves = as_leaves(random_params(T5_1_1))
    (tmp_path / "spiece.model").write_text("kept")

    def failing(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "lm_head":
        name = "decoder/logits_dense/kernel"
        leaves[name] = leaves[name]._replace(read=failing)
    else:
        write = weights.files.write_json
        monkeypatch.setattr(
            weights.files, "write_json", lambda path, values: failing() if path.name == where else write(path, values)
        )
    with pytest.raises(OSError, match="No space left|make room"):
        weights.write(tmp_path, leaves, T5_1_1, max_shard_bytes=5000)
    assert [p.name for p in tmp_path.iterdir()] == ["spiece.model"]
    assert not weights.is_huggingface(tmp_path)


def test_table_is_the_networks(tmp_path):
    """Names and shapes that are written out here are those of the Flax modules."""
    for config in (*NETWORKS.values(), T5Config(**SIZES, relative_bias="per_layer", logits_via_embedding=True)):
        shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
        table = {ours: shape for ours, _, shape in weights._table(config)}
        assert table == {name: leaf.shape for name, leaf in shapes.items()}
