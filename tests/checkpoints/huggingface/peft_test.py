"""A soft prompt as an adapter of PEFT, in and out, without PEFT."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from promot_t5x.checkpoints.huggingface import peft

PROMPT_PxD = np.random.default_rng(0).normal(size=(5, 8))


@pytest.fixture
def adapter(tmp_path):
    peft.write_adapter(tmp_path / "adapter", PROMPT_PxD.astype(np.float32), "google/mt5-small")
    return tmp_path / "adapter"


def change_config(folder, **values):
    content = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(content | values))


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16], ids=["f32", "bf16", "f16"])
def test_round_trip_bit_for_bit(dtype, tmp_path):
    prompt_PxD = PROMPT_PxD.astype(dtype)
    peft.write_adapter(tmp_path, prompt_PxD, "some/model")
    read_NxPxD = peft.read_adapter(tmp_path)
    assert (read_NxPxD.shape, read_NxPxD.dtype) == ((1, 5, 8), prompt_PxD.dtype)
    assert read_NxPxD.tobytes() == prompt_PxD.tobytes()


def test_what_is_written(adapter):
    assert sorted(p.name for p in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    values = json.loads((adapter / "adapter_config.json").read_text())
    expected = dict(peft_type="PROMPT_TUNING", task_type="SEQ_2_SEQ_LM", num_transformer_submodules=1)
    expected |= dict(num_virtual_tokens=5, token_dim=8, base_model_name_or_path="google/mt5-small")
    assert values | expected == values
    tensors = safetensors.numpy.load_file(adapter / "adapter_model.safetensors")
    assert list(tensors) == ["prompt_embeddings"]
    np.testing.assert_array_equal(tensors["prompt_embeddings"], PROMPT_PxD.astype(np.float32))


def test_an_adapter_is_replaced(adapter):
    peft.write_adapter(adapter, np.ones((2, 8), np.float32), "another/model")
    assert peft.read_adapter(adapter).shape == (1, 2, 8)


@pytest.mark.parametrize("shape", [(8,), (1, 5, 8), (0, 8)])
def test_prompts_of_other_shapes_are_not_written(shape, tmp_path):
    with pytest.raises(ValueError, match=r"expected \[length, embed\]: give one prompt"):
        peft.write_adapter(tmp_path / "adapter", np.zeros(shape, np.float32), "some/model")
    assert not (tmp_path / "adapter").exists()


@pytest.mark.parametrize(
    "values,message",
    [
        (dict(peft_type="LORA"), "peft_type is 'LORA' in .*adapter_config.json, expected 'PROMPT_TUNING'"),
        (dict(task_type="CAUSAL_LM"), "task_type is 'CAUSAL_LM'"),
        (dict(num_transformer_submodules=3), "num_transformer_submodules is 3 .*, expected 1 or 2"),
        (dict(num_transformer_submodules=2), r"holds prompt_embeddings \(5, 8\), expected prompt_embeddings \(10, 8\)"),
        (dict(num_virtual_tokens=None), "num_virtual_tokens is None in .*, expected a positive number"),
        (dict(num_virtual_tokens=6), r"holds prompt_embeddings \(5, 8\), expected prompt_embeddings \(6, 8\)"),
        (dict(token_dim=16), r"expected prompt_embeddings \(5, 16\) as adapter_config.json says"),
    ],
)
def test_adapters_of_another_kind(values, message, adapter):
    change_config(adapter, **values)
    with pytest.raises(ValueError, match=message):
        peft.read_adapter(adapter)


def test_missing_and_damaged_files(adapter):
    with pytest.raises(
        FileNotFoundError, match="adapter_config.json does not exist: give the folder of a PEFT adapter"
    ):
        peft.read_adapter(adapter / "nothing")
    weights = adapter / "adapter_model.safetensors"
    data = weights.read_bytes()
    weights.write_bytes(data[:-1])
    with pytest.raises(ValueError, match="adapter_model.safetensors is damaged"):
        peft.read_adapter(adapter)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors does not exist"):
        peft.read_adapter(adapter)
    (adapter / "adapter_model.bin").write_bytes(data)
    with pytest.raises(ValueError, match="holds no adapter_model.safetensors but adapter_model.bin"):
        peft.read_adapter(adapter)
    for text, message in (("{", "it is not JSON"), ("[]", "it is not a JSON object")):
        (adapter / "adapter_config.json").write_text(text)
        with pytest.raises(ValueError, match=message):
            peft.read_adapter(adapter)


def test_other_tensors_next_to_the_prompt(adapter):
    tensors = {"prompt_embeddings": PROMPT_PxD, "classifier.weight": PROMPT_PxD}
    safetensors.numpy.save_file(tensors, adapter / "adapter_model.safetensors")
    with pytest.raises(
        ValueError, match=r"holds .*classifier.weight \(5, 8\).*, expected prompt_embeddings \(5, 8\) as"
    ):
        peft.read_adapter(adapter)


@pytest.mark.parametrize("submodules", [2, None])
def test_the_rows_of_a_second_submodule_are_left_out(submodules, adapter, capsys):
    """PEFT's default for encoder-decoders."""
    change_config(adapter, num_transformer_submodules=submodules, num_virtual_tokens=3)
    rows_RxD = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32)
    safetensors.numpy.save_file({"prompt_embeddings": rows_RxD}, adapter / "adapter_model.safetensors")
    np.testing.assert_array_equal(peft.read_adapter(adapter), rows_RxD[None, :3])
    assert "the first 3 of 6 rows are the prompt" in capsys.readouterr().out
