"""The initialisers of soft prompts against NumPy, and the prompt's file bit for bit."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

from promot_t5x.checkpoints import soft_prompts
from promot_t5x.training import prompt_initializers

KEY = jax.random.key(3)


class Letters:
    """A vocabulary with one token a letter, a = 3."""

    def encode(self, text):
        return [ord(letter) - ord("a") + 3 for letter in text if letter.isalpha()]


@pytest.fixture(scope="module")
def table():
    return np.random.default_rng(0).standard_normal((40, 6)).astype(np.float32)


def rows_of(prompt_PxD, table):
    """The table's row that every prompt position equals, bit for bit."""
    matches = (np.asarray(prompt_PxD)[:, None, :] == table[None]).all(axis=-1)
    assert (matches.sum(axis=1) == 1).all()
    return matches.argmax(axis=1)


def test_random_uniform(table):
    init = prompt_initializers.random_uniform().build()
    prompt = np.asarray(init(KEY, 3, 200, table))
    assert prompt.shape == (3, 200, 6) and prompt.dtype == np.float32
    assert -0.5 <= prompt.min() < -0.49 and 0.49 < prompt.max() < 0.5
    np.testing.assert_allclose(prompt.std(), 12**-0.5, rtol=0.02)
    np.testing.assert_array_equal(init(KEY, 3, 200, table), prompt)
    assert np.any(init(jax.random.key(4), 3, 200, table) != prompt)
    assert np.any(prompt[0] != prompt[1])
    positive = np.asarray(prompt_initializers.random_uniform(0, 0.5).build()(KEY, 1, 200, table))
    assert 0 <= positive.min() and positive.max() < 0.5


def test_random_uniform_needs_a_range():
    with pytest.raises(ValueError, match="low=0.5, high=0.5"):
        prompt_initializers.random_uniform(0.5, 0.5)


def test_settings_are_printable_values():
    settings = prompt_initializers.class_labels(("yes", "no"), vocabulary=None)
    assert repr(settings) == "class_labels(labels=('yes', 'no'), vocabulary=None, population=5000)"
    assert settings == prompt_initializers.class_labels(("yes", "no"), None) != prompt_initializers.text("yes", None)
    assert prompt_initializers.initializer_name(settings) == "class_labels"


def test_a_plain_function_is_an_initialiser(table):
    def ones(key, num_prompts, length, embedding_VxD):
        return jnp.ones((num_prompts, length, embedding_VxD.shape[1]))

    assert prompt_initializers.built(ones) is ones and prompt_initializers.initializer_name(ones).endswith("ones")
    built = prompt_initializers.built(prompt_initializers.random_uniform(0.25, 0.5))
    assert np.min(built(KEY, 1, 2, table)) >= 0.25


def test_sampled_vocabulary_takes_different_frequent_rows(table):
    init = prompt_initializers.sampled_vocabulary(population=20).build()
    prompt = init(KEY, 4, 17, table)
    assert prompt.shape == (4, 17, 6) and prompt.dtype == jnp.float32
    rows = [rows_of(p, table) for p in prompt]
    for r in rows:
        assert sorted(r) == list(range(3, 20))  # all of the population but padding, end of sequence and unknown
    assert any((rows[0] != r).any() for r in rows[1:])
    np.testing.assert_array_equal(init(KEY, 4, 17, table), prompt)
    assert np.any(init(jax.random.key(4), 4, 17, table) != prompt)
    with pytest.raises(ValueError, match="17 tokens to draw from, fewer than the prompt length 18"):
        init(KEY, 1, 18, table)


def test_class_labels_are_means_in_front(table):
    init = prompt_initializers.class_labels(["ab", "c"], Letters(), population=30).build()
    prompt = np.asarray(init(KEY, 2, 5, table))
    assert prompt.shape == (2, 5, 6) and prompt.dtype == np.float32
    for p in prompt:
        np.testing.assert_allclose(p[0], (table[3] + table[4]) / 2, rtol=1e-6)
        np.testing.assert_array_equal(p[1], table[5])
        assert set(rows_of(p[2:], table)) <= set(range(3, 30))
    for labels in ([], list("abcdef")):
        with pytest.raises(ValueError, match=f"got {len(labels)} labels for a prompt of length 5"):
            prompt_initializers.class_labels(labels, Letters(), population=30).build()(KEY, 1, 5, table)
    with pytest.raises(ValueError, match="the label '17', which has no tokens"):
        prompt_initializers.class_labels(["a", "17"], Letters(), population=30).build()(KEY, 1, 5, table)


def test_text_is_repeated_or_cut(table):
    prompt = prompt_initializers.text("abc", Letters()).build()(KEY, 2, 7, table)
    assert prompt.dtype == jnp.float32
    for p in prompt:
        assert rows_of(p, table).tolist() == [3, 4, 5, 3, 4, 5, 3]
    cut = prompt_initializers.text("abcdefgh", Letters()).build()(KEY, 1, 2, table)
    assert rows_of(cut[0], table).tolist() == [3, 4]
    with pytest.raises(ValueError, match="has no tokens"):
        prompt_initializers.text("...", Letters()).build()(KEY, 1, 2, table)


def test_a_vocabulary_larger_than_the_embedding_is_an_error(table):
    small = table[:5]
    for init in (prompt_initializers.text("xyz", Letters()), prompt_initializers.class_labels(["z"], Letters(), 5)):
        with pytest.raises(ValueError, match="28, but the network's embedding has 5 rows"):
            init.build()(KEY, 1, 2, small)


def test_text_and_labels_with_the_vocabulary_of_t5(shared_dir, testdata):
    folder = testdata / "prompt_tuning_t5x" / "test_data"
    table = np.load(folder / "tiny_embeddings_32128x4.npy").astype(np.float32)
    vocabulary = sentencepiece.SentencePieceProcessor(
        model_file=str(shared_dir / "data" / "spm" / "t5_cc_all_32000.model")
    )
    ids = vocabulary.encode("Does the premise entail the hypothesis?")
    prompt = prompt_initializers.text("Does the premise entail the hypothesis?", vocabulary).build()(
        KEY, 1, len(ids), table
    )
    np.testing.assert_array_equal(prompt[0], table[ids])
    labels = ["entailment", "not_entailment"]
    prompt = prompt_initializers.class_labels(labels, vocabulary).build()(KEY, 1, 100, table)
    assert len(vocabulary.encode(labels[1])) > 1
    for position, label in enumerate(labels):
        np.testing.assert_allclose(prompt[0, position], table[vocabulary.encode(label)].mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_save_and_load_return_the_same_bits(tmp_path, dtype):
    prompt = np.random.default_rng(1).standard_normal((2, 3, 4)).astype(dtype)
    prompt[0, 0, :2] = [-0.0, np.finfo(np.float32).tiny]
    soft_prompts.save(tmp_path / "new" / "folder", prompt, {"base": "gs://checkpoint", "step": 7})
    for path in (tmp_path / "new" / "folder", str(tmp_path / "new" / "folder" / "soft_prompt.safetensors")):
        loaded = soft_prompts.load(path)
        assert loaded.dtype == dtype and loaded.shape == (2, 3, 4)
        assert loaded.tobytes() == prompt.tobytes()
    description = json.loads((tmp_path / "new" / "folder" / "soft_prompt.json").read_text())
    assert description == {"prompts": 2, "length": 3, "embed": 4, "base": "gs://checkpoint", "step": 7}
    names = sorted(file.name for file in (tmp_path / "new" / "folder").iterdir())
    assert names == ["soft_prompt.json", "soft_prompt.safetensors"]  # no half-written file is left


def test_saved_from_a_device_array_and_not_contiguous(tmp_path):
    prompt = jnp.arange(24.0).reshape(2, 4, 3).swapaxes(1, 2)
    soft_prompts.save(tmp_path, prompt, {})
    np.testing.assert_array_equal(soft_prompts.load(tmp_path), prompt)
    np.testing.assert_array_equal(
        safetensors.numpy.load_file(tmp_path / "soft_prompt.safetensors")["soft_prompt/embedding"], prompt
    )


@pytest.mark.parametrize(
    "prompt,description,expected",
    [
        (np.ones((3, 6), np.float32), {}, "an array of shape"),
        (np.ones((1, 3, 6), np.int32), {}, "expected a prompt of at least one vector"),
        (np.ones((1, 0, 6), np.float32), {}, "expected a prompt of at least one vector"),
        (np.ones((1, 3, 6), np.float32), {"score": np.float32(1)}, "a value that JSON does not have"),
    ],
)
def test_nothing_is_written_of_a_prompt_that_could_not_be_read(tmp_path, prompt, description, expected):
    with pytest.raises(ValueError, match=expected):
        soft_prompts.save(tmp_path, prompt, description)
    assert not any(tmp_path.iterdir())


def test_the_sizes_in_a_description_are_the_arrays(tmp_path):
    soft_prompts.save(tmp_path, np.ones((1, 3, 6), np.float32), {"prompts": 7})
    assert json.loads((tmp_path / "soft_prompt.json").read_text()) == {"prompts": 1, "length": 3, "embed": 6}


def test_from_file(tmp_path, table):
    prompt = np.random.default_rng(2).standard_normal((1, 3, 6)).astype(np.float32)
    soft_prompts.save(tmp_path, prompt, {})
    np.save(tmp_path / "flat.npy", prompt[0])
    np.save(tmp_path / "whole.npy", prompt)
    for path in (tmp_path, tmp_path / "soft_prompt.safetensors", tmp_path / "flat.npy", tmp_path / "whole.npy"):
        np.testing.assert_array_equal(prompt_initializers.from_file(str(path)).build()(KEY, 1, 3, table), prompt)
    for prompts, length, embedding in ((2, 3, table), (1, 4, table), (1, 3, table[:, :5])):
        with pytest.raises(ValueError, match=r"has the shape \(1, 3, 6\), the network expects"):
            prompt_initializers.from_file(str(tmp_path)).build()(KEY, prompts, length, embedding)


def test_numbers_that_the_prompt_cannot_hold_are_refused(tmp_path, table):
    np.save(tmp_path / "prompt.npy", np.full((1, 3, 6), 1e39))
    with pytest.raises(ValueError, match="prompt.npy holds numbers up to 1e.39, which are too large for float32"):
        prompt_initializers.from_file(str(tmp_path / "prompt.npy")).build()(KEY, 1, 3, table)


def test_published_prompts_of_prompt_tuning_are_read(testdata):
    folder = testdata / "prompt_tuning_t5x" / "pretrained_prompts" / "t5_1_1_lm100k_base"
    for task in ("rte", "mrpc", "sst2"):
        init = prompt_initializers.from_file(str(folder / f"{task}.npy")).build()
        prompt = init(KEY, 1, 100, np.zeros((8, 768), np.float32))
        np.testing.assert_array_equal(prompt[0], np.load(folder / f"{task}.npy"))


def test_what_is_no_prompt_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="no soft prompt at .*soft_prompt.safetensors"):
        soft_prompts.load(tmp_path)
    soft_prompts.save(tmp_path, np.ones((1, 3, 6), np.float32), {})
    file = tmp_path / "soft_prompt.safetensors"
    content = file.read_bytes()
    for damaged in (b"", content[:5], content[:-8], content + b"x", b"x" * len(content)):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="soft_prompt.safetensors does not hold a soft prompt"):
            soft_prompts.load(tmp_path)
    file.write_bytes(safetensors.numpy.save({"other": np.ones(3)}))
    with pytest.raises(ValueError, match="does not hold a soft prompt.*soft_prompt/embedding"):
        soft_prompts.load(file)

    array = tmp_path / "prompt.npy"
    np.save(array, np.ones((3, 6)))
    content = array.read_bytes()
    for damaged in (b"", content[:20], content[:-8]):
        array.write_bytes(damaged)
        with pytest.raises(ValueError, match="prompt.npy does not hold a soft prompt"):
            soft_prompts.load(array)
    with array.open("wb") as stream:
        np.savez(stream, prompt=np.ones((3, 6)))  # an archive under the wrong name
    with pytest.raises(ValueError, match="prompt.npy does not hold a soft prompt"):
        soft_prompts.load(array)
    for shape in ((6,), (1, 1, 3, 6)):
        np.save(array, np.ones(shape))
        with pytest.raises(ValueError, match="holds an array of shape"):
            soft_prompts.load(array)


class Trap:
    """Unpickling it would run code."""

    def __reduce__(self):
        return pytest.fail, ("the file was unpickled",)


def test_nothing_is_unpickled(tmp_path):
    file = tmp_path / "prompt.npy"
    np.save(file, np.array([Trap()], object), allow_pickle=True)
    with pytest.raises(ValueError, match="does not hold a soft prompt: .*allow_pickle"):
        soft_prompts.load(file)


def test_a_token_without_a_row_is_refused():
    class Numbers:
        def encode(self, text):
            return [int(word) for word in text.split()]

    init = prompt_initializers.text("4 9", Numbers()).build()
    embedding_VxD = jnp.arange(20.0).reshape(10, 2)
    np.testing.assert_array_equal(init(jax.random.key(0), 1, 2, embedding_VxD), [[[8, 9], [18, 19]]])
    with pytest.raises(ValueError, match="'4 9', whose tokens go up to 9, but the network's embedding has 9 rows"):
        init(jax.random.key(0), 1, 2, embedding_VxD[:9])
