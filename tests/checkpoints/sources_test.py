"""promot_t5x.checkpoints.sources: what an opened checkpoint says of itself; no array is read."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.checkpoints import (
    conversion,
    fingerprints,
    formats,
    loading,
    networks,
    saving,
    sources,
    stored_leaves,
)
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel

CONFIG = T5Config(23, 6, 2, 4, 10, 2, 2, prompt_length=3, scan_layers=True)
UNTIED = dataclasses.replace(CONFIG, scan_layers=False, prompt_length=0)
TIED = dataclasses.replace(UNTIED, mlp_activations=("relu",), logits_via_embedding=True)
BROKEN = "decoder/layers_1/mlp/wo/kernel"


@pytest.fixture
def base(tmp_path):
    shapes = parameter_names.flatten(EncoderDecoderModel(CONFIG).abstract_params())
    params = {name: np.full(leaf.shape, 1 + i, np.float32) for i, (name, leaf) in enumerate(shapes.items())}
    saving.export(tmp_path / "base", params, {"step": 7, "base": None, **networks.described(CONFIG)})
    return tmp_path / "base", params


def test_a_checkpoint_describes_itself(base, monkeypatch):
    folder, params = base
    with monkeypatch.context() as patch:
        patch.setattr(stored_leaves, "empty", lambda *_: pytest.fail("an array was read"))
        source = sources.open_source(folder)
        assert (source.folder, source.format, source.layout, source.step) == (folder, "promot", "stacked", 7)
        assert (source.adapters, source.base, source.assumed) == (("soft_prompt",), None, {})
        assert source.config == CONFIG and source.leaves.keys() == params.keys()
    assert source.fingerprint == fingerprints.fingerprint(params)


def test_a_prompt_alone_brings_its_model(base, tmp_path):
    folder, params = base
    prompt = np.zeros((2, 5, 6), np.float32)
    named = {"path": str(folder), "fingerprint": fingerprints.fingerprint(params)}
    saving.export(tmp_path / "prompt", {"soft_prompt": {"embedding": prompt}}, {"step": 9, "base": named})
    source = sources.open_source(tmp_path / "prompt")
    assert (source.model.folder, source.step, source.base_fingerprint) == (folder, 9, named["fingerprint"])
    assert (source.config.num_prompts, source.config.prompt_length) == (2, 5)
    sources.check_base(source, source.fingerprint)
    with pytest.raises(ValueError, match="but the model there now has 0000; put the original model back"):
        sources.check_base(source, "0000")


def _written(folder, to_format, dtype=np.float32, config=UNTIED, **changed):
    """Writes a model in any format, with some leaves changed."""
    shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    arrays = {name: np.full(leaf.shape, 0.5, dtype) for name, leaf in shapes.items()} | changed
    leaves = {name: stored_leaves.from_array(array, name) for name, array in arrays.items()}
    source = sources.Source(folder, "t5x", leaves, dataclasses.asdict(config))
    formats.write(folder, source, to_format)
    return arrays


@pytest.mark.parametrize(
    "dtype,bad", [(np.float16, np.inf), (jnp.bfloat16, np.nan), (np.float32, -np.inf), (np.float64, np.nan)]
)
@pytest.mark.parametrize("to_format", ["promot", "t5x", "t5x_legacy", "huggingface"])
def test_numbers_that_are_not_finite_enter_from_no_format(tmp_path, to_format, bad, dtype):
    """Whoever reads them: conversion, fingerprint, and training, which converts float16 on the way."""
    array = np.full((10, 6), 0.5, dtype)
    array[3, 4] = bad
    _written(tmp_path / "checkpoint_1", to_format, dtype, **{BROKEN: array})
    message = "checkpoint_1.* holds numbers that are not finite"
    with pytest.raises(ValueError, match=message):
        conversion.convert_checkpoint(str(tmp_path / "checkpoint_1"), str(tmp_path / "out"), "promot")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=message):
        _ = sources.open_source(tmp_path / "checkpoint_1").fingerprint


@pytest.mark.parametrize("to_format", ["promot", "t5x", "t5x_legacy"])
@pytest.mark.parametrize("dtype", [np.int64, bool])
def test_leaves_that_are_no_floats_enter_from_no_format(tmp_path, to_format, dtype):
    _written(tmp_path / "checkpoint_1", to_format, **{BROKEN: np.ones((10, 6), dtype)})
    with pytest.raises(
        ValueError, match=rf"checkpoint_1.*wo.kernel.* is of {np.dtype(dtype)}, expected one of float16"
    ):
        sources.open_source(tmp_path / "checkpoint_1")


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
@pytest.mark.parametrize("names", [[BROKEN], None], ids=["one", "all"])
def test_what_was_converted_can_be_loaded(tmp_path, dtype, names):
    """Also in a dtype that no network trains in, which is converted as other programs' weights are."""
    arrays = _written(tmp_path / "hf", "huggingface", np.float32 if names else dtype)
    if names:
        arrays = _written(tmp_path / "hf2", "huggingface", **{name: arrays[name].astype(dtype) for name in names})
    conversion.convert_checkpoint(str(tmp_path / ("hf2" if names else "hf")), str(tmp_path / "ours"), "promot")
    params = parameter_names.flatten(loading.load(tmp_path / "ours").params)
    assert {str(leaf.dtype) for leaf in params.values()} == {"float32"}
    np.testing.assert_array_equal(params[BROKEN], np.full((10, 6), 0.5))


def test_numbers_that_a_network_cannot_hold_are_refused(tmp_path):
    _written(tmp_path / "hf", "huggingface", **{BROKEN: np.full((10, 6), 1e39)})
    with pytest.raises(
        ValueError, match="model.safetensors: .*wo.weight holds numbers up to 1e.39, which are too large for float32"
    ):
        loading.load(tmp_path / "hf")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


@pytest.mark.parametrize("to_format", ["promot", "t5x", "t5x_legacy", "huggingface"])
def test_a_git_lfs_pointer_in_place_of_data_is_named_as_one(tmp_path, to_format):
    folder = tmp_path / "checkpoint_1"
    _written(folder, to_format)
    stored = [path for path in folder.rglob("*") if path.is_file()]
    data = [path for path in stored if path.parent.name == "d"] or [max(stored, key=lambda path: path.stat().st_size)]
    for file in data:
        file.write_text(POINTER)
    with pytest.raises(ValueError, match=f"{folder}/.* is a git-lfs pointer, .*: run `git lfs pull`"):
        _ = sources.open_source(folder).fingerprint


@pytest.mark.parametrize(
    "to_format,name",
    [
        ("huggingface", "config.json"),
        ("huggingface", "generation_config.json"),
        ("t5x_legacy", "checkpoint"),
        ("t5x", "state/_METADATA"),
        ("promot", "params/_METADATA"),
    ],
)
def test_a_git_lfs_pointer_in_place_of_an_index_is_named_as_one(tmp_path, to_format, name):
    folder = tmp_path / "checkpoint_1"
    _written(folder, to_format)
    (folder / name).write_text(POINTER)
    with pytest.raises(ValueError, match=f"{name} is a git-lfs pointer, .*: run `git lfs pull`"):
        sources.open_source(folder)


@pytest.mark.parametrize("to_format", ["promot", "t5x", "huggingface"])
@pytest.mark.parametrize("rows,padded,name,missing", [(32100, 32128, "T5", 28), (250100, 250112, "mT5", 12)])
def test_an_embedding_without_padding_rows_is_named_as_one(tmp_path, to_format, rows, padded, name, missing):
    embedding = {"token_embedder/embedding": np.full((rows, 6), 0.5, np.float32)}
    _written(tmp_path / "checkpoint_1", to_format, config=dataclasses.replace(TIED, vocab_size=rows), **embedding)
    wanted = EncoderDecoderModel(dataclasses.replace(TIED, vocab_size=padded))
    described = f"{rows} .{name}'s vocabulary.*, without the {missing} padding rows of {padded}"
    with pytest.raises(ValueError, match=f"vocab_size (is|to the stored) {described}"):
        loading.load(tmp_path / "checkpoint_1", wanted)
