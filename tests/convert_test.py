"""The convert verb on checkpoints written by T5X: there and back again through every format, bit for bit."""

import shutil

import numpy as np
import pytest
import tensorstore as ts

from promot_t5x import convert, layout
from promot_t5x.interop import formats, stored, t5x_checkpoint

THROUGH = ["promot", "t5x", "t5x_legacy", "t5x_scanned", "t5x_scanned_legacy", "huggingface"]


def _bits(path):
    leaves = layout.unstack_layers(formats.open_source(path).leaves, stored.layer)
    return {name: (leaf.shape, leaf.dtype, stored.whole(leaf).tobytes()) for name, leaf in leaves.items()}


@pytest.fixture
def t5(shared_dir):
    return shared_dir / "fixtures" / "t5x_tiny" / "t5_orbax" / "checkpoint_0"


@pytest.fixture
def scalable(shared_dir):
    return shared_dir / "fixtures" / "t5x_tiny" / "scalable_t5_legacy" / "checkpoint_0"


@pytest.mark.parametrize("through", THROUGH)
def test_there_and_back_again(t5, tmp_path, through):
    convert.convert(str(t5), str(tmp_path / "there" / "checkpoint_5"), through)
    convert.convert(str(tmp_path / "there" / "checkpoint_5"), str(tmp_path / "checkpoint_9"), "t5x_legacy")
    assert _bits(tmp_path / "checkpoint_9") == _bits(t5)


@pytest.mark.parametrize("through", ["promot", "t5x_scanned", "huggingface"])
def test_tables_of_each_layer_survive(scalable, tmp_path, through):
    convert.convert(str(scalable), str(tmp_path / "there" / "checkpoint_5"), through)
    convert.convert(str(tmp_path / "there" / "checkpoint_5"), str(tmp_path / "checkpoint_9"), "t5x_scanned_legacy")
    written = t5x_checkpoint.read(tmp_path / "checkpoint_9")
    expected = t5x_checkpoint.read(scalable)
    assert written.keys() == expected.keys()
    for name, leaf in expected.items():
        assert stored.whole(leaf).tobytes() == stored.whole(written[name]).tobytes(), name


def test_legacy_arrays_have_the_bytes_that_t5x_wrote(scalable, tmp_path):
    convert.convert(str(scalable), str(tmp_path / "checkpoint_0"), "t5x_scanned_legacy")
    for folder in scalable.glob("target.*"):
        found, expected = (
            ts.open({"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}).result().read().result()
            for path in (tmp_path / "checkpoint_0" / folder.name, folder)
        )
        assert found.shape == expected.shape and found.tobytes() == expected.tobytes(), folder.name


def test_different_tables_do_not_fit_a_layout_that_shares_one(scalable, tmp_path):
    with pytest.raises(ValueError, match="have different tables of relative positions"):
        convert.convert(str(scalable), str(tmp_path / "out"), "t5x")
    assert not (tmp_path / "out" / "checkpoint_0" / "checkpoint").exists()


def test_logits_are_compared_when_asked_for(t5, tmp_path, capsys):
    convert.convert(str(t5), str(tmp_path / "hf"), "huggingface", check_logits=True)
    assert "largest difference 0.00e+00" in capsys.readouterr().out


def test_a_dry_run_prints_names_and_writes_nothing(t5, tmp_path, capsys):
    convert.convert(str(t5), str(tmp_path / "hf"), "huggingface", dry_run=True)
    shown = capsys.readouterr().out
    assert "encoder/layers_0/mlp/wi_0/kernel  float32 [32, 64]" in shown
    assert "encoder.block.0.layer.1.DenseReluDense.wi_0.weight  float32 [64, 32]" in shown
    assert not (tmp_path / "hf").exists()


def test_nothing_is_written_over(t5, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        convert.convert(str(t5), str(tmp_path), "promot")
    assert (tmp_path / "file").read_text() == "mine"


def test_paths_without_a_checkpoint(t5, tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        convert.convert(str(tmp_path / "nothing"), str(tmp_path / "out"), "promot")
    with pytest.raises(ValueError, match="it holds checkpoint_0: give the path of one"):
        convert.convert(str(t5.parent), str(tmp_path / "out"), "promot")


def test_a_damaged_source_leaves_no_checkpoint(t5, shared_dir, tmp_path):
    copy = tmp_path / "checkpoint_1"
    shutil.copytree(shared_dir / "fixtures" / "t5x_tiny" / "t5_legacy" / "checkpoint_0", copy)
    chunk = copy / "target.decoder.layers_1.mlp.wo.kernel" / "0.0"
    chunk.chmod(0o644)
    chunk.write_bytes(chunk.read_bytes()[:100])
    for name in ("promot", "t5x_legacy", "huggingface"):
        target = tmp_path / name / "checkpoint_1"
        with pytest.raises(ValueError, match="layers_1.mlp.wo.kernel is damaged"):
            convert.convert(str(copy), str(target), name)
        with pytest.raises((ValueError, FileNotFoundError)):
            formats.open_source(target)


def test_what_was_written_is_compared(t5, tmp_path, monkeypatch):
    honest = formats.written_leaves

    def changed(folder, like):
        leaves = honest(folder, like)
        array = stored.whole(leaves["token_embedder/embedding"]).copy()
        array[3, 3] = np.nextafter(array[3, 3], np.float32(9))
        return {**leaves, "token_embedder/embedding": stored.from_array(array, "the copy")}

    monkeypatch.setattr(formats, "written_leaves", changed)
    with pytest.raises(ValueError, match="the copy was written with other numbers"):
        convert.convert(str(t5), str(tmp_path / "out"), "promot")
