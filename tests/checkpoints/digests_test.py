"""promot_t5x.checkpoints.digests: what is read is what was saved, in any block, from any sharding; or it is refused."""

import contextlib
import json
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from promot_t5x.checkpoints import arrays, digests, saving, soft_prompts, stored_leaves

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
    with contextlib.closing(saving.RunCheckpoints(folder, saving.CheckpointConfig())) as run:
        state = run.restore_opt_state(3, STATE)
    fields = {key: metadata[key] for key in ("step", "score", "seed", "opt_state")}
    return fields, jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), (params, state))


def _identical_or_one_sentence(folder, expected):
    """Whether a folder was refused; otherwise all of it was read as before."""
    try:
        assert _contents(folder) == expected
        return False
    except ValueError as error:
        text = str(error)
        assert str(folder) in text, text
        # The comparison of leaves with those wanted is a table of them.
        assert (text.endswith(".") and len(text.splitlines()) == 1 and len(text) < 700) or " leaves differ, " in text
        return True


@pytest.fixture(scope="module")
def damaged(run_folder, tmp_path_factory):
    """(a copy of the run's folder, its files that are read again, what is read from the whole one)"""
    copy = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(run_folder, copy)
    files = sorted(file for file in copy.rglob("*") if file.is_file() and "commit" not in file.name)
    return copy, files, _contents(run_folder)


@contextlib.contextmanager
def _replaced(file, content):
    before = file.read_bytes()
    file.write_bytes(content)
    try:
        yield
    finally:
        file.write_bytes(before)


def test_one_flipped_bit_of_an_arrays_file_is_refused(damaged):
    """At 25 places of each file: a leaf's numbers, or the index of the store."""
    folder, files, expected = damaged
    generator, refused = random.Random(0), 0
    for file in (file for file in files if file.parent.name == "d" and file.parents[1].name in ("params", "opt_state")):
        for _ in range(25):
            content = bytearray(file.read_bytes())
            content[generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            with _replaced(file, content):
                refused += _identical_or_one_sentence(folder, expected)
    assert refused > 40


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@FEW
@given(st.data())
def test_any_damage_to_any_file_is_one_sentence_or_changes_nothing(damaged, data):
    """A flipped bit, a cut, any JSON or deep nesting instead, in every file that a checkpoint consists of."""
    folder, files, expected = damaged
    file = data.draw(st.sampled_from(files))
    content = bytearray(file.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    kind = data.draw(st.sampled_from(["bit", "cut", "json", "deep"]))
    if kind == "bit":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "cut":
        del content[place:]
    else:
        content = b"[" * 10**5 if kind == "deep" else json.dumps(data.draw(ANY_JSON)).encode()
    with _replaced(file, content):
        _identical_or_one_sentence(folder, expected)


@FEW
@given(
    key=st.sampled_from(["params", "opt_state"]),
    entry=ANY_JSON,
    part=st.sampled_from(["shard", "block", "crc32", None]),
)
def test_any_json_in_place_of_a_digest_is_one_sentence(damaged, key, entry, part):
    folder, _, expected = damaged
    file = folder / "checkpoint_3" / "metadata" / "metadata"
    values = json.loads(file.read_text())
    del values["crc32"]
    name = sorted(values["digests"][key])[-1]
    values["digests"][key][name] = entry if part is None else {**values["digests"][key][name], part: entry}
    with _replaced(file, json.dumps(values).encode()):
        _identical_or_one_sentence(folder, expected)


@pytest.mark.parametrize(
    "item, leaf", [("params", "encoder/mlp/kernel"), ("params", "soft_prompt/embedding"), ("opt_state", "00001")]
)
def test_the_sentence_names_the_leaf_and_its_file(run_folder, item, leaf, monkeypatch):
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


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_from_our_own_checkpoints(tmp_path, value):
    params = _params()
    params["encoder"]["mlp"]["kernel"][3, 4] = value
    saving.export(tmp_path, params, {"step": 0, "base": None})
    with pytest.raises(ValueError, match="encoder.mlp.kernel holds numbers that are not finite"):
        saving.read_params(tmp_path, saving.shapes(tmp_path))


def test_checkpoints_of_earlier_versions_have_no_digests_and_are_read(damaged):
    folder, _, expected = damaged
    file = folder / "checkpoint_3" / "metadata" / "metadata"
    older = {key: value for key, value in json.loads(file.read_text()).items() if key not in ("digests", "crc32")}
    with _replaced(file, json.dumps(older).encode()):
        assert _contents(folder) == expected


@pytest.mark.parametrize(
    "shape, dtype", [((), np.int32), ((7,), np.float32), ((300, 700, 9), np.float16), ((0, 3), np.float32)]
)
def test_any_block_is_read_as_it_was_saved(shape, dtype):
    generator = np.random.default_rng(0)
    array = generator.integers(0, 1000, shape).astype(dtype)
    leaf = digests.checked("x", stored_leaves.from_array(array, "x"), digests.of_arrays({"x": array})["x"])
    for _ in range(20):
        ends = [sorted(generator.integers(0, size + 1, 2)) for size in shape]
        index = tuple(slice(int(start), int(stop)) for start, stop in ends)
        np.testing.assert_array_equal(leaf.read(index), array[index])


def test_digests_of_shards_are_checked_by_readers_of_other_blocks():
    """Every number of an array that was saved in eight shards, wherever a reader's blocks begin."""
    array = np.arange(8 * 16, dtype=np.float32).reshape(8, 16)
    described = digests.of_arrays({"x": array})["x"]
    parts = [array[i : i + 4, j : j + 4] for i in (0, 4) for j in (0, 4, 8, 12)]
    described |= {"shard": [4, 4], "block": [4, 4], "crc32": "".join(f"{digests.crc32(part):08x}" for part in parts)}
    for place in np.ndindex(array.shape):
        wrong = array.copy()
        wrong[place] += 1
        leaf = digests.checked("x", stored_leaves.from_array(wrong, "a file"), described)
        row, column = place
        with pytest.raises(ValueError, match="a file is damaged: the numbers of x differ"):
            leaf.read((slice(row, row + 1), slice(column, column + 1)))
    whole = digests.checked("x", stored_leaves.from_array(array, "a file"), described)
    np.testing.assert_array_equal(whole.read((slice(3, 6), slice(2, 9))), array[3:6, 2:9])


def test_a_flipped_bit_of_a_soft_prompts_file_is_refused(tmp_path):
    prompt = _params()["soft_prompt"]["embedding"]
    soft_prompts.save(tmp_path, prompt, {})
    file, refused = tmp_path / soft_prompts.WEIGHTS, 0
    for place in range(0, file.stat().st_size, 7):
        content = bytearray(file.read_bytes())
        content[place] ^= 1 << place % 8
        with _replaced(file, content):
            try:
                np.testing.assert_array_equal(soft_prompts.load(tmp_path), prompt)
            except ValueError as error:
                assert str(file) in str(error) and len(str(error).splitlines()) == 1
                refused += 1
    assert refused > 100
