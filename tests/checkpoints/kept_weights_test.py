"""promot_t5x.checkpoints.kept_weights: the same bits from memory as from the files, and never another checkpoint's."""

import os

import jax
import numpy as np
import pytest

from promot_t5x.checkpoints import conversion, loading, networks, placing, saving
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.runtime import between_runs

CONFIG = T5Config(32, 8, 1, 4, 16, 1, 1, prompt_length=3)
MODEL = EncoderDecoderModel(CONFIG)


def _write(folder, seed, names=lambda name: name != parameter_names.PROMPT, base=None):
    rng = np.random.default_rng(seed)
    shapes = parameter_names.flatten(MODEL.abstract_params())
    leaves = {name: rng.normal(size=leaf.shape).astype(leaf.dtype) for name, leaf in shapes.items() if names(name)}
    saving.export(folder, leaves, {"step": 0, "base": base, **networks.described(CONFIG)})
    return leaves


@pytest.fixture
def base(tmp_path):
    return _write(tmp_path / "base", seed=0)


@pytest.fixture
def read(monkeypatch):
    """The names of all leaves that are read from files."""
    names, place = [], placing.place
    monkeypatch.setattr(placing, "place", lambda leaves, wanted: names.extend(wanted) or place(leaves, wanted))
    return names


def _same(loaded, leaves) -> bool:
    flat = parameter_names.flatten(loaded.params)
    return flat.keys() == leaves.keys() and all(np.array_equal(flat[name], leaves[name]) for name in leaves)


def test_weights_are_kept_from_the_second_reading_on_and_only_between_runs(tmp_path, base, read):
    with between_runs.keeping():
        loaded = [loading.load(tmp_path / "base", MODEL) for _ in range(4)]
    assert len(read) == 2 * len(base)
    assert all(_same(one, base) for one in loaded)
    assert len({one.base_fingerprint for one in loaded}) == 1
    loading.load(tmp_path / "base", MODEL)
    assert len(read) == 3 * len(base)


def test_what_is_kept_is_not_the_devices_memory(tmp_path, base):
    spoil = jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 0 + 7, params), donate_argnums=0)
    with between_runs.keeping():
        for _ in range(4):
            loaded = loading.load(tmp_path / "base", MODEL)
            assert _same(loaded, base)
            jax.block_until_ready(spoil(loaded.params))


def test_a_checkpoint_that_was_replaced_is_read(tmp_path, base, read):
    with between_runs.keeping():
        for _ in range(3):
            before = loading.load(tmp_path / "base", MODEL)
        other = _write(tmp_path / "base", seed=1)
        read.clear()
        after = loading.load(tmp_path / "base", MODEL)
    assert len(read) == len(base) and _same(after, other)
    assert after.base_fingerprint != before.base_fingerprint


def test_a_foreign_checkpoint_whose_file_was_rewritten_is_read(tmp_path, base, read):
    """Of the same size, and with the time of modification that the file had."""
    conversion.convert_checkpoint(tmp_path / "base", tmp_path / "numbered", "t5x")
    folder = tmp_path / "numbered" / "checkpoint_0"
    with between_runs.keeping():
        for _ in range(3):
            before = loading.load(folder, MODEL)
        assert len(read) == 2 * len(base)
        file = next(path for path in sorted(folder.rglob("*")) if path.is_file())
        times, contents = file.stat(), file.read_bytes()
        file.write_bytes(contents)
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
        after = loading.load(folder, MODEL)
    assert len(read) == 3 * len(base) and _same(before, base) and _same(after, base)


def test_a_soft_prompt_shares_its_models_weights_and_keeps_its_checks(tmp_path, base, read):
    folder = str(tmp_path / "base")
    named = {"path": folder, "fingerprint": loading.load(folder, MODEL).base_fingerprint}
    prompts = [
        _write(tmp_path / f"prompt_{seed}", seed, lambda name: name == parameter_names.PROMPT, named) for seed in (2, 3)
    ]
    with between_runs.keeping():
        for _ in range(2):
            loading.load(folder, MODEL)
        read.clear()
        for seed, prompt in zip((2, 3), prompts, strict=True):
            assert _same(loading.load(tmp_path / f"prompt_{seed}", MODEL), {**base, **prompt})
        assert read == [parameter_names.PROMPT] * 2
        _write(tmp_path / "base", seed=1)
        with pytest.raises(ValueError, match="put the original model back"):
            loading.load(tmp_path / "prompt_2", MODEL)


def test_weights_without_room_are_read_again(tmp_path, base, read, monkeypatch):
    monkeypatch.setattr(between_runs.Kept, "fits", lambda self, size: False)
    with between_runs.keeping():
        assert all(_same(loading.load(tmp_path / "base", MODEL), base) for _ in range(3))
    assert len(read) == 3 * len(base)
