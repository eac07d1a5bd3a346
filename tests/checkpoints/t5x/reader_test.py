"""The T5X checkpoint reader on checkpoints written by T5X itself, and on damaged copies of them."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
from flax import serialization

from promot_t5x.checkpoints import sources, stored_leaves
from promot_t5x.checkpoints.t5x import reader

TESTDATA = Path(__file__).resolve().parents[2] / "testdata"
T5X_TINY = TESTDATA / "t5x_tiny"
LEGACY = T5X_TINY / "t5_legacy" / "checkpoint_0"
ORBAX = T5X_TINY / "t5_orbax" / "checkpoint_0"
PROMPT_TUNING = TESTDATA / "prompt_tuning_t5x" / "test_data" / "test_t5_1_1_tiny" / "checkpoint_3"

both_formats = pytest.mark.parametrize("path", [LEGACY, ORBAX, ORBAX / "state"], ids=["legacy", "orbax", "orbax_state"])


def _params(path) -> dict[str, np.ndarray]:
    return {name: stored_leaves.whole(leaf) for name, leaf in reader.read(path).items()}


@pytest.fixture
def copy_of(tmp_path):
    """Copies a checkpoint to where it may be changed."""

    def copy(source: Path) -> Path:
        target = tmp_path / source.name
        shutil.copytree(source, target)
        for path in [target, *target.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        return target

    return copy


def _write_index(folder: Path, target, version=3) -> Path:
    folder.mkdir(exist_ok=True)
    content = {"version": version, "optimizer": {"state": {"step": np.int32(1)}, "target": target}}
    (folder / "checkpoint").write_bytes(serialization.msgpack_serialize(content))
    return folder


@both_formats
def test_metadata_match_t5x_own_table(path):
    table = json.loads((T5X_TINY / "t5_param_table.json").read_text())
    metadata = reader.read(path)
    assert {name: (list(m.shape), str(m.dtype)) for name, m in metadata.items()} == {
        name: (row["shape"], row["dtype"]) for name, row in table.items()
    }


@both_formats
def test_params_match_their_metadata(path):
    params, metadata = _params(path), reader.read(path)
    assert list(params) == list(metadata) == sorted(params)
    assert len(params) == 52
    for name, array in params.items():
        assert isinstance(array, np.ndarray)
        assert (array.shape, array.dtype) == (metadata[name].shape, metadata[name].dtype)


def test_both_formats_agree_bit_for_bit():
    legacy, orbax = _params(LEGACY), _params(ORBAX)
    assert legacy.keys() == orbax.keys()
    for name in legacy:
        assert legacy[name].tobytes() == orbax[name].tobytes(), name


def test_values_are_those_t5x_stepped_from():
    """One Adafactor step at learning rate 1e-3 moves each parameter by at most about 1e-3 of its scale."""
    after = np.load(T5X_TINY / "t5_after_one_adafactor_step.npz")
    params = _params(LEGACY)
    assert set(after.files) - {"lr"} == set(params)
    for name, array in params.items():
        scale = max(1e-3, float(np.sqrt(np.mean(np.square(array)))))
        assert 0 < np.sqrt(np.mean(np.square(after[name] - array))) < 1.1e-3 * scale, name


@pytest.mark.skipif(not PROMPT_TUNING.is_dir(), reason=f"no checkpoint at {PROMPT_TUNING}")
def test_checkpoint_of_an_older_t5x():
    metadata, params = reader.read(PROMPT_TUNING), _params(PROMPT_TUNING)
    assert params["token_embedder/embedding"].shape == (32128, 4)
    assert params["decoder/logits_dense/kernel"].shape == (4, 32128)
    assert params["encoder/encoder_norm/scale"].shape == (4,)
    assert {n: (a.shape, a.dtype) for n, a in params.items()} == {n: (m.shape, m.dtype) for n, m in metadata.items()}
    assert set(params) == set(reader.read(LEGACY))
    assert all(np.isfinite(array).all() and array.any() for array in params.values())


@pytest.mark.parametrize("kind", ["legacy", "orbax"])
def test_stacks_are_read_bit_for_bit(kind):
    path = T5X_TINY / f"scalable_t5_{kind}" / "checkpoint_0"
    table = json.loads((T5X_TINY / "scalable_t5_param_table.json").read_text())
    params = _params(path)
    assert len(params) == len(table)
    for name, row in table.items():
        # As written: heads apart and the layers on the second axis.
        spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/target.{name.replace('/', '.')}/"}}
        if kind == "orbax":
            base = {"driver": "file", "path": f"{path}/state/"}
            spec["kvstore"] = {"driver": "ocdbt", "base": base, "path": f"target.{name.replace('/', '.')}/"}
        written = ts.open(spec, read=True).result().read().result()
        assert list(written.shape) == row["shape"]
        ours = params[
            name.replace("encoder/encoder/", "encoder/layers/").replace("decoder/decoder/", "decoder/layers/")
        ]
        if "layers" in row["logical_axes"]:
            written = np.moveaxis(written, 1, 0)
        assert written.reshape(ours.shape).tobytes() == ours.tobytes(), name


def test_trailing_slashes_and_recognition(tmp_path):
    for path in (LEGACY, ORBAX, ORBAX / "state"):
        assert reader.is_t5x_checkpoint(path)
        assert len(sources.open_source(f"{path}//").leaves) == 52
    (tmp_path / "checkpoint").write_text('model_checkpoint_path: "model.ckpt-1000"\n')
    for path in (tmp_path, tmp_path / "nothing", tmp_path / "checkpoint", T5X_TINY, LEGACY.parent, ORBAX / "dataset"):
        assert not reader.is_t5x_checkpoint(path)


def test_relative_path(monkeypatch):
    for folder in (LEGACY, ORBAX):
        monkeypatch.chdir(folder.parent)
        assert len(sources.open_source("checkpoint_0").leaves) == 52


def test_opening_needs_no_weights(copy_of):
    copy = copy_of(LEGACY)
    chunks = [path for path in copy.glob("target.*/*") if not path.name.startswith(".")]
    for path in chunks:
        path.unlink()
    assert len(chunks) == len(reader.read(copy)) == 52


def test_bfloat16_inline_and_cast_arrays(tmp_path):
    """An array trained in float32 and saved in bfloat16 is read as bfloat16; inline leaves come as they are."""
    folder = tmp_path / "checkpoint_7"
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    base = {
        "driver": "zarr",
        "kvstore": {"driver": "file", "path": "target.token_embedder.embedding/"},
        "metadata": {"shape": [3, 4], "chunks": [3, 2], "compressor": {"id": "gzip", "level": 1}},
        "dtype": "bfloat16",
    }
    inline = np.ones((2,), ts.bfloat16.numpy_dtype)
    target = {
        "token_embedder": {"embedding": {"driver": "cast", "dtype": "float32", "base": base}},
        "encoder": {"encoder_norm": {"scale": inline}},
    }
    _write_index(folder, target)
    on_disk = {**base, "kvstore": {"driver": "file", "path": f"{folder}/target.token_embedder.embedding/"}}
    ts.open(on_disk, create=True).result().write(values.astype(inline.dtype)).result()
    params = _params(folder)
    assert [a.dtype for a in params.values()] == [inline.dtype] * 2
    np.testing.assert_array_equal(params["token_embedder/embedding"].astype(np.float32), values)
    assert reader.read(folder)["token_embedder/embedding"].dtype == inline.dtype


def test_missing_folder_and_wrong_places(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing_here does not exist"):
        _params(tmp_path / "nothing_here")
    with pytest.raises(ValueError, match="is not a T5X checkpoint"):
        _params(tmp_path)
    (tmp_path / "a_file").write_text("x")
    with pytest.raises(ValueError, match="a_file is a file"):
        _params(tmp_path / "a_file")


def test_folder_of_several_checkpoints_lists_them(tmp_path):
    for step in (1000, 20, 3):
        (tmp_path / f"checkpoint_{step}").mkdir()
    (tmp_path / "checkpoint_40.tmp-123").mkdir()
    with pytest.raises(ValueError, match=r"holds 3 of them, checkpoint_3, checkpoint_20, checkpoint_1000: give"):
        _params(tmp_path)


@pytest.mark.parametrize("kept", [20, 1000, -1])
def test_truncated_index(kept, copy_of):
    copy = copy_of(LEGACY)
    index = copy / "checkpoint"
    index.write_bytes(index.read_bytes()[:kept])
    for read in (reader.read, _params):
        with pytest.raises(ValueError, match="checkpoint is damaged: it is not complete msgpack"):
            read(copy)


@pytest.mark.parametrize("version", [2, 4, None])
def test_another_version(version, tmp_path):
    folder = _write_index(tmp_path / "checkpoint_1", {"a": np.ones(2)}, version)
    with pytest.raises(ValueError, match=f"has version {version}, expected 3"):
        _params(folder)


def test_index_without_parameters_or_with_other_things(tmp_path):
    with pytest.raises(ValueError, match="no parameters under optimizer/target"):
        _params(_write_index(tmp_path / "checkpoint_1", {}))
    with pytest.raises(ValueError, match="the parameter a/b is a str, not an array"):
        _params(_write_index(tmp_path / "checkpoint_2", {"a": {"b": "text"}}))
    with pytest.raises(ValueError, match="the array spec of a cannot be understood"):
        _params(_write_index(tmp_path / "checkpoint_3", {"a": {"driver": "zarr"}}))


def test_missing_array_folder(copy_of):
    copy = copy_of(LEGACY)
    shutil.rmtree(copy / "target.token_embedder.embedding")
    with pytest.raises(FileNotFoundError, match="target.token_embedder.embedding of the parameter token_embedder/emb"):
        _params(copy)


def test_lost_chunk_is_an_error_not_zeros(copy_of):
    copy = copy_of(LEGACY)
    (copy / "target.token_embedder.embedding" / "0.0").unlink()
    with pytest.raises(ValueError, match="target.token_embedder.embedding is damaged"):
        _params(copy)


def test_array_that_differs_from_the_index(copy_of):
    copy = copy_of(LEGACY)
    shutil.rmtree(copy / "target.encoder.encoder_norm.scale")
    shutil.copytree(copy / "target.token_embedder.embedding", copy / "target.encoder.encoder_norm.scale")
    with pytest.raises(ValueError, match=r"float32\(384, 32\) where the index says float32\(32,\)"):
        _params(copy)


def test_damaged_orbax_checkpoints(copy_of):
    copy = copy_of(ORBAX)
    metadata = copy / "state" / "_METADATA"
    text = metadata.read_text()
    metadata.write_text(text[:-10])
    assert reader.is_t5x_checkpoint(copy)
    with pytest.raises(ValueError, match="_METADATA is damaged: it is not complete Orbax metadata"):
        reader.read(copy)
    metadata.write_text(text.replace('"scale"', '"weight"'))
    with pytest.raises(FileNotFoundError, match="does not exist, though the checkpoint's index lists it"):
        reader.read(copy)
    metadata.write_text(text)
    (copy / "state" / "manifest.ocdbt").unlink()
    with pytest.raises(FileNotFoundError, match="manifest.ocdbt"):
        _params(copy)
    shutil.rmtree(copy / "state")
    with pytest.raises(ValueError, match="is not a T5X checkpoint"):
        _params(copy)
