"""promot_t5x.evaluation.answering: generation and ranking against scores computed one by one, in any batch."""

import dataclasses
import functools
import json
import os
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio
import tensorflow as tf

from promot_t5x.data import evaluation_batches, evaluation_examples
from promot_t5x.evaluation import answering
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

LENGTHS = {"inputs": 300, "targets": 6}
ONE = Partitioner()
CHOICES = [["yes", "no"], ["no", "maybe so", "yes"], ["b", "a"], ["same", "same"], ["x"], ["no", "yes"], ["q", "r"]]
# Short inputs, and longer ones that run in wider batches.
TEXTS = [text * (150 if i % 3 == 2 else 1) for i, text in enumerate(["q1", "q2", "a", "q4", "q5", "b", "q7"])]


@pytest.fixture(scope="module", autouse=True)
def _task():
    ragged = tf.ragged.constant(CHOICES)
    rows = {"inputs": TEXTS, "targets": [choices[-1] for choices in CHOICES], "choices": ragged}
    source = seqio.FunctionDataSource(
        lambda split, shuffle_files: tf.data.Dataset.from_tensor_slices(rows), splits=("test",)
    )
    features = {k: seqio.Feature(seqio.ByteVocabulary(), add_eos=True) for k in LENGTHS}
    preprocessors = [seqio.preprocessors.tokenize, seqio.preprocessors.append_eos_after_trim]
    seqio.TaskRegistry.add("answering_test", source, features, preprocessors=preprocessors)
    yield
    seqio.TaskRegistry.remove("answering_test")


@pytest.fixture(scope="module")
def network():
    model = EncoderDecoderModel(T5Config(259, 8, 2, 4, 16, 1, 1, prompt_length=3))
    rng = np.random.default_rng(0)
    return model, jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape), x.dtype), model.abstract_params())


def _examples():
    return evaluation_examples.evaluation_examples("answering_test", LENGTHS, "test")


def _answers(network, way, batch_size=2, prompt_id=None, rows=None, params=None, **more):
    model, own = network
    by_number = {}
    for numbers, answers in answering.answers(
        model,
        own if params is None else params,
        _examples(),
        way,
        prompt_id=prompt_id,
        batch_size=batch_size,
        partitioner=ONE,
        rows=rows,
        **more,
    ):
        by_number |= zip(numbers, answers, strict=True)
    return by_number


@pytest.fixture(scope="module")
def by_hand(network):
    """Log-likelihood of a choice and its tokens: plain softmax over the logits of one unpadded row."""
    return functools.cache(functools.partial(_by_hand, network))


def _by_hand(network, number, choice, prompt_id):
    model, params = network
    vocabulary = seqio.ByteVocabulary()
    target = [*vocabulary.encode(choice), 1]
    batch = {
        "encoder_input_tokens": np.array([_examples().examples[number]["inputs"]]),
        "decoder_input_tokens": np.array([[0, *target[:-1]]]),
        "decoder_target_tokens": np.array([target]),
    }
    if prompt_id is None:
        params = {k: v for k, v in params.items() if k != "soft_prompt"}
    else:
        batch["soft_prompt_ids"] = np.array([prompt_id])
    logits_UxV = np.asarray(jax.jit(model.logits)(params, batch)[0], np.float64)
    log_probabilities = logits_UxV - np.log(np.exp(logits_UxV).sum(axis=1, keepdims=True))
    return sum(log_probabilities[i, token] for i, token in enumerate(target)), len(target)


@pytest.mark.parametrize("prompt_id", [None, 0])
@pytest.mark.parametrize("length_normalized", [False, True])
def test_ranking_is_the_likelihood_of_each_choice_by_hand(network, by_hand, prompt_id, length_normalized):
    answers = _answers(network, "rank", prompt_id=prompt_id, length_normalized=length_normalized)
    assert sorted(answers) == list(range(len(TEXTS)))
    for number, answer in answers.items():
        likelihoods = [by_hand(number, choice, prompt_id) for choice in CHOICES[number]]
        expected = [score / tokens if length_normalized else score for score, tokens in likelihoods]
        np.testing.assert_allclose(answer.scores, expected, rtol=1e-5)
        assert answer.output == CHOICES[number][int(np.argmax(expected))]
    assert answers[3].scores[0] == answers[3].scores[1], "equal choices: the first one is the answer"


def test_ranking_encodes_an_input_once_for_all_its_choices(network, monkeypatch):
    """The encoder's sublayers run on B rows of inputs, those of the decoder on B * C rows of choices."""
    shapes = []
    rows_of = nn.Dense.__call__

    def noting(dense, x):
        shapes.append((dense.path[0], x.shape[0]))
        return rows_of(dense, x)

    monkeypatch.setattr(nn.Dense, "__call__", noting)
    model, params = network
    decoder = dict.fromkeys(("decoder_input_tokens", "decoder_target_tokens"), jnp.ones((2, 3, 4), jnp.int32))
    batch = {
        "encoder_input_tokens": jnp.ones((2, 7), jnp.int32),
        "decoder_loss_weights": jnp.ones((2, 3, 4)),
        **decoder,
    }
    with ONE.context():
        scores = jax.eval_shape(functools.partial(answering.score, model), params, batch, 0)
    assert scores.shape == (2, 3)
    assert {rows for part, rows in shapes if part == "encoder"} == {2}
    # 2 where it projects the encoder's output to keys and values and attends to it, 6 elsewhere.
    assert {rows for part, rows in shapes if part == "decoder"} == {2, 6}


def test_choices_of_equal_tokens_are_scored_once(network, monkeypatch):
    """In two rows, rounding could tell them apart."""
    scored, with_choices = [], answering._with_choices

    def noting(inputs_NxT, choices):
        scored.extend(choices)
        return with_choices(inputs_NxT, choices)

    monkeypatch.setattr(answering, "_with_choices", noting)
    _answers(network, "rank")
    assert [len(choices) for choices in scored] == [len(set(choices)) for choices in CHOICES]


def test_length_normalisation_can_change_the_answer(network):
    sums, means = (_answers(network, "rank", length_normalized=normalized) for normalized in (False, True))
    assert sums[1].output != "maybe so", "nine tokens are less likely than three"
    np.testing.assert_allclose(np.array(means[1].scores) * [3, 9, 4], sums[1].scores, rtol=1e-6)


@pytest.mark.parametrize("way", answering.WAYS)
def test_answers_do_not_depend_on_the_batch(network, way):
    expected = _answers(network, way, batch_size=1)
    assert len({answer.output for answer in expected.values()}) > 1
    for batch_size, rows in ((3, None), (3, [6, 2, 0])):  # batches of 3 rows and of 2, padded
        answers = _answers(network, way, batch_size=batch_size, rows=rows)
        assert sorted(answers) == sorted(rows or expected)
        for number, answer in answers.items():
            assert answer.output == expected[number].output
            if way == "rank":
                np.testing.assert_allclose(answer.scores, expected[number].scores, atol=1e-5, rtol=1e-5)


def test_what_is_missing_runs_in_the_batches_of_all_examples(network, monkeypatch):
    """So an interrupted evaluation ends bit for bit as a whole one, through the same programs."""
    shapes, gathered = [], evaluation_batches.gathered

    def noting(arrays, batch):
        shapes.append((batch.numbers, batch.shape))
        return gathered(arrays, batch)

    monkeypatch.setattr(evaluation_batches, "gathered", noting)
    whole = _answers(network, "rank", batch_size=3)
    of_all = list(shapes)
    shapes.clear()
    assert _answers(network, "rank", batch_size=3, rows=[6, 2]) == {number: whole[number] for number in (2, 6)}
    assert shapes == [batch for batch in of_all if {2, 6} & set(batch[0])] and len(shapes) < len(of_all)


def test_the_next_batch_starts_before_the_answers_of_the_last_are_used(network, monkeypatch):
    started, predict = [], answering.predict

    def noting(*args):
        started.append(args[-1])
        if len(started) == 3:
            raise KeyboardInterrupt
        return predict(*args)

    monkeypatch.setattr(answering, "predict", noting)
    model, params = network
    answers = answering.predict_tokens(
        model, params, _examples().features, prompt_id=None, batch_size=3, partitioner=ONE
    )
    next(answers)
    assert len(started) == 2
    next(answers)  # the second batch is done and its answers are kept, though the third one is interrupted
    with pytest.raises(KeyboardInterrupt):
        next(answers)


def test_a_task_is_ranked_only_where_every_example_has_choices():
    examples = _examples()
    assert answering.ways(examples, "rank") == "rank" and answering.ways(examples, "generate") == "generate"
    one_without = dataclasses.replace(
        examples, examples=(*examples.examples[:-1], {**examples.examples[-1], "choices": []})
    )
    assert answering.ways(one_without, "rank") == "generate"
    none = dataclasses.replace(examples, examples=({"inputs": [1]},))
    assert answering.ways(none, "rank") == "generate"


@pytest.mark.parametrize("way", answering.WAYS)
def test_the_prompt_is_attached_or_removed(network, way):
    _, params = network
    other = {**params, "soft_prompt": {"embedding": -3.0 * params["soft_prompt"]["embedding"]}}
    plain = {k: v for k, v in params.items() if k != "soft_prompt"}
    assert _answers(network, way, prompt_id=0) != _answers(network, way, prompt_id=0, params=other)
    removed = _answers(network, way)
    assert removed == _answers(network, way, params=other) == _answers(network, way, params=plain)
    with pytest.raises(ValueError, match="the checkpoint has none"):
        _answers(network, way, prompt_id=0, params=plain)
    for prompt_id in (1, -1):
        with pytest.raises(ValueError, match=f"prompt {prompt_id} should be attached, but the checkpoint has 1"):
            _answers(network, way, prompt_id=prompt_id)


def test_tokens_outside_the_vocabulary_are_refused(network):
    model, params = network
    arrays = dict(_examples().features)
    small = dataclasses.replace(model, config=dataclasses.replace(model.config, vocab_size=100))
    how = dict(prompt_id=None, batch_size=4, partitioner=ONE)
    with pytest.raises(ValueError, match="The inputs have the token 1.., but the network's vocabulary has 100"):
        list(answering.predict_tokens(small, params, arrays, **how))
    arrays["decoder_target_tokens"] = arrays["decoder_target_tokens"] + 300
    with pytest.raises(ValueError, match="The targets have the token .*, but the network's vocabulary has 259"):
        list(answering.predict_tokens(model, params, arrays, **how))


_FOUR_DEVICES = """
import json
import jax, numpy as np
from promot_t5x.evaluation import answering
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

model = EncoderDecoderModel(T5Config(64, 16, 4, 8, 32, 1, 1))
rng = np.random.default_rng(0)
params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(x.dtype), model.abstract_params())
targets = rng.integers(2, 64, (8, 5)).astype(np.int32)
batch = {
    "encoder_input_tokens": rng.integers(1, 64, (8, 6)).astype(np.int32),
    "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
    "decoder_target_tokens": targets,
    "decoder_loss_weights": np.ones((8, 5), np.float32),
}
two_choices = {k: v if k.startswith("encoder") else np.stack([v, v[::-1]], axis=1) for k, v in batch.items()}
report = {}
for name, function, batch in (("predict", answering.predict, batch), ("score", answering.score, two_choices)):
    outputs = []
    for partitioner in (Partitioner(devices=tuple(jax.devices()[:1])), Partitioner(num_partitions=2)):
        shardings = partitioner.shardings(model.logical_axes(), model.abstract_params())
        placed, feed = jax.tree.map(jax.device_put, params, shardings), partitioner.place_batch(batch)
        with partitioner.context():
            outputs.append(function(model, placed, feed, 0))
    report[name] = {
        "batch is replicated": feed["decoder_target_tokens"].sharding.is_fully_replicated,
        "devices": len(outputs[1].sharding.device_set),
        "is replicated": outputs[1].sharding.is_fully_replicated,
        "on every device": [np.asarray(shard.data).tolist() for shard in outputs[1].addressable_shards],
        "on one": np.asarray(outputs[0]).tolist(),
    }
print(json.dumps(report))
"""


def test_on_four_devices_each_has_all_answers():
    """Every process of a pod reads whole results, though each of its devices computed a part of them."""
    root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        # Most of the time is compilation, which needs no optimisation.
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0",
        "PYTHONPATH": root,
    }
    done = subprocess.run([sys.executable, "-c", _FOUR_DEVICES], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    for result in report.values():
        assert result["devices"] == 4 and result["is replicated"] and not result["batch is replicated"]
        for answers in result["on every device"]:
            np.testing.assert_allclose(answers, result["on one"], rtol=1e-5)
    assert np.shape(report["predict"]["on one"]) == (8, 5)
    assert np.shape(report["score"]["on one"]) == (8, 2) and len(set(np.ravel(report["score"]["on one"]))) == 16
