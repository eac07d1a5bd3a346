"""promot_t5x.checkpoints.digests: what is read is what was saved, in any block, from any sharding; or it is refused."""

import pathlib
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from promot_t5x.checkpoints import arrays, saving, stored_leaves
from promot_t5x.models import parameter_names

ROOT = pathlib.Path(__file__).resolve().parents[2]
STATE = {"count": jnp.int32(7), "moments": jnp.arange(60.0).reshape(5, 12)}


def _params():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(30, 40)).astype(np.float32)
    return {"encoder": {"mlp": {"kernel": kernel}}, "soft_prompt": {"embedding": kernel[:8].reshape(1, 8, 40)}}


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """A run's folder with one checkpoint, of parameters, a soft prompt and an optimizer's state."""
    folder = tmp_path_factory.mktemp("run")
    run = saving.RunCheckpoints(folder, saving.CheckpointConfig())
    run.save(3, _params(), STATE, {"base": {"path": "x", "fingerprint": "y"}, "seed": 0}, 0.5)
    run.close()
    return folder


def _contents(folder):
    """Everything that is read from a run's folder again, as bytes and JSON."""
    checkpoint = folder / "checkpoint_3"
    metadata = saving.read_metadata(checkpoint)
    params = saving.read_params(checkpoint, saving.shapes(checkpoint))
    run = saving.RunCheckpoints(folder, saving.CheckpointConfig())
    try:
        state = run.restore_opt_state(3, STATE)
    finally:
        run.close()
    fields = {key: metadata[key] for key in ("step", "score", "seed", "opt_state")}
    return fields, jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), (params, state))


def _assert_one_sentence(error, *names):
    text = str(error)
    assert len(text.splitlines()) == 1 or "leaves differ" in text, text
    assert text.endswith(".") or "leaves differ" in text, text
    assert any(name in text for name in names), text


def _spans(folder):
    """(file, where the bytes of a leaf are in it, the leaf's name), found by the bytes that zstd left as they were."""
    names = {leaf.tobytes()[:24]: name for name, leaf in parameter_names.flatten(_params()).items()}
    names[np.asarray(STATE["moments"]).tobytes()[:24]] = "opt_state"
    return names


def test_one_flipped_bit_of_an_array_is_refused_by_the_leafs_name(run_folder, tmp_path):
    """Every file of arrays, at 40 places of each: a leaf's numbers, or the index of the store."""
    expected, generator, refused = _contents(run_folder), random.Random(0), 0
    data = [f for f in (run_folder / "checkpoint_3").rglob("*") if f.is_file() and f.parent.name == "d"]
    assert data
    copy = tmp_path / "run"
    shutil.copytree(run_folder, copy)
    for file in data:
        original, place = file.read_bytes(), copy / file.relative_to(run_folder)
        for _ in range(40):
            changed = bytearray(original)
            changed[generator.randrange(len(changed))] ^= 1 << generator.randrange(8)
            place.write_bytes(changed)
            try:
                assert _contents(copy) == expected
            except ValueError as error:
                refused += 1
                _assert_one_sentence(error, "encoder", "soft_prompt", "opt_state", "params")
        place.write_bytes(original)
    assert refused > 40


@pytest.mark.parametrize(
    "item, leaf", [("params", "encoder/mlp/kernel"), ("params", "soft_prompt/embedding"), ("opt_state", "00001")]
)
def test_the_sentence_names_the_leaf_and_the_folder(run_folder, tmp_path, item, leaf, monkeypatch):
    read = arrays.unchecked

    def flipped(listed):
        leaves = read(listed)
        if leaf in leaves:
            right = stored_leaves.whole(leaves[leaf])
            right.reshape(-1).view(np.uint8)[-1] ^= 0x40
            leaves[leaf] = stored_leaves.from_array(right, leaves[leaf].source)
        return leaves

    monkeypatch.setattr(arrays, "unchecked", flipped)
    with pytest.raises(ValueError, match=f"checkpoint_3/{item}/.* is damaged: the numbers of {leaf} differ from those"):
        _contents(run_folder)
