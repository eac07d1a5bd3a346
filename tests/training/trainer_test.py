"""promot_t5x.training.trainer: T5X's own step, what a step computes and changes, runs that are stopped and resumed."""

import dataclasses
import itertools
import json
import os
import signal
import subprocess
import sys

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import seqio
import tensorflow as tf
from clu import metric_writers

from promot_t5x.checkpoints import saving, stored_leaves
from promot_t5x.checkpoints.t5x import reader
from promot_t5x.data import training_batches
from promot_t5x.models import losses, parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers, progress, run_metrics, stage_run, stages, trainer

# Sizes of which no two are equal and no product is another: an activation never has a weight's shape.
B, T, U, P, D, V = 3, 5, 4, 7, 11, 37
CONFIG = T5Config(
    vocab_size=V,
    embed_dim=D,
    num_heads=2,
    head_dim=13,
    mlp_dim=17,
    num_encoder_layers=2,
    num_decoder_layers=2,
    prompt_length=P,
    dropout_rate=0.1,
)
ONE_LAYER = dataclasses.replace(CONFIG, num_encoder_layers=1, num_decoder_layers=1)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Every program here runs a few times: most of the time is compilation, which needs no optimisation."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def _batch(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, V, (rows, U)).astype(np.int32)
    return {
        "encoder_input_tokens": rng.integers(1, V, (rows, T)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((rows, U), np.float32),
        "soft_prompt_ids": np.zeros(rows, np.int32),
    }


def _random_params(model):
    """Weights drawn by numpy: the network's own initialisers take longer to compile than the tests to run."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), model.abstract_params())


def _start(model, stage, transform=None, params=None):
    """(whole parameters as numpy, optimizer, state, frozen)"""
    which = stages.stage(stage)
    params = _random_params(model) if params is None else params
    if not which.attaches_prompt:
        params = {k: v for k, v in params.items() if k != "soft_prompt"}
    before = jax.tree.map(np.array, params)
    trainable, frozen = stages.partition(params, which)
    optimizer = optimizers.staged_optimizer(transform or optimizers.adafactor(0.05), params, which)
    return before, optimizer, trainer.init_state(optimizer, trainable), frozen


def _run(model, optimizer, state, frozen, tmp_path, batches, **kwargs):
    kwargs = {"batch_size": B, "save_period": 100, "evaluate": lambda _: None, "save": lambda *_: None, **kwargs}
    config = kwargs.pop("config", trainer.LoopConfig(3, log_period=2))
    writer = metric_writers.create_default_writer(str(tmp_path), asynchronous=False)
    return trainer.train(
        model, optimizer, state, frozen, batches, config, partitioner=Partitioner(), writer=writer, **kwargs
    )


def test_one_fine_tuning_step_is_t5x(testdata):
    folder = testdata / "t5x_tiny"
    leaves = reader.read(folder / "t5_legacy" / "checkpoint_0")
    params = parameter_names.unflatten({name: jnp.asarray(stored_leaves.whole(leaf)) for name, leaf in leaves.items()})
    config = T5Config(384, 32, 4, 8, 64, 2, 2, dropout_rate=0.0)
    model = EncoderDecoderModel(config, z_loss=1e-4)
    fixture = dict(np.load(folder / "t5_batch_logits_loss.npz"))
    batch = {k: jnp.asarray(fixture[k]) for k in _batch() if k in fixture}
    expected = dict(np.load(folder / "t5_after_one_adafactor_step.npz"))
    before, optimizer, state, frozen = _start(model, "fine_tuning", optimizers.adafactor(1e-3), params)
    step = trainer.make_step(model, optimizer)
    trainable, _, metrics = step(state.trainable, state.opt_state, frozen, batch, jnp.int32(0))
    flat = parameter_names.flatten(trainable)
    assert len(flat) == 52
    for name, leaf in flat.items():
        np.testing.assert_allclose(leaf, expected[name], rtol=0, atol=1e-5, err_msg=name)
    assert max(np.max(np.abs(expected[n] - x)) for n, x in parameter_names.flatten(before).items()) > 1e-4
    norms = [fixture[k] for k in fixture if k.startswith("gradnorm/")]
    np.testing.assert_allclose(metrics["gradient_norm"], np.sqrt(np.sum(np.square(norms))), rtol=1e-4)


_PROGRAMS = (jax.extend.core.Jaxpr, jax.extend.core.ClosedJaxpr)


def _produced_shapes(jaxpr):
    """Sorted output shapes of every dot_general and scatter-add, in all inner programs (jit, scan, remat, …) too."""
    shapes = set()
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "scatter-add"):
            shapes |= {tuple(sorted(out.aval.shape)) for out in equation.outvars}
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: isinstance(x, _PROGRAMS)):
            if isinstance(value, _PROGRAMS):
                shapes |= _produced_shapes(getattr(value, "jaxpr", value))
    return shapes


@pytest.mark.parametrize(
    "scan_layers,remat", [(False, "none"), (False, "minimal"), (True, "none"), (True, "minimal"), (True, "full")]
)
def test_frozen_leaves_own_no_gradient(scan_layers, remat):
    model = EncoderDecoderModel(dataclasses.replace(CONFIG, scan_layers=scan_layers, remat=remat))
    params = model.abstract_params()

    def shapes_of(names):
        """Sorted shapes; of scanned leaves also one layer's, which is what the scan's body computes."""
        leaves = {name: parameter_names.flatten(params)[name].shape for name in names}
        cut = {shape[1:] for name, shape in leaves.items() if parameter_names.is_scanned([name])}
        return {tuple(sorted(shape)) for shape in set(leaves.values()) | cut}

    def produced(stage):
        which = stages.stage(stage)
        trainable, frozen = stages.partition(params, which)
        optimizer = optimizers.staged_optimizer(optimizers.adafactor(0.1), params, which)
        step = trainer.make_step(model, optimizer)
        opt_state = jax.eval_shape(optimizer.init, trainable)
        return _produced_shapes(jax.make_jaxpr(step)(trainable, opt_state, frozen, _batch(), jnp.int32(0)).jaxpr)

    weights = [name for name in parameter_names.flatten(params) if name != "soft_prompt/embedding"]
    matrices = [name for name in weights if not name.endswith("scale")]  # kernels, embedding, relative biases
    assert len(matrices) == (22 if scan_layers else 40)
    prompt = shapes_of(["soft_prompt/embedding"])
    first, second = produced("prompt_tuning"), produced("model_tuning")
    assert not first & shapes_of(weights) and prompt <= first
    for name in matrices:
        assert shapes_of([name]) & second, name
    assert not prompt & second


@pytest.mark.parametrize("stage", list(stages.STAGES))
def test_exactly_the_stages_leaves_move(stage, tmp_path):
    model, which = EncoderDecoderModel(ONE_LAYER), stages.stage(stage)
    before, optimizer, state, frozen = _start(model, stage, optax.sgd(0.1))
    batches = (_batch(i) for i in itertools.count())
    if not which.attaches_prompt:
        batches = ({k: v for k, v in batch.items() if k != "soft_prompt_ids"} for batch in batches)
    end = _run(model, optimizer, state, frozen, tmp_path, batches)
    after = parameter_names.flatten(stages.combine(end.trainable, frozen))
    flat = parameter_names.flatten(before)
    assert end.step == 3 and set(after) == set(flat)
    assert ("soft_prompt/embedding" in after) == (stage != "fine_tuning")
    moved = {name for name in flat if np.asarray(after[name]).tobytes() != flat[name].tobytes()}
    prompt = {"soft_prompt/embedding"} & set(flat)
    everything = set(flat)
    expected = {
        "prompt_tuning": prompt,
        "model_tuning": everything - prompt,
        "fine_tuning": everything,
        "joint_tuning": everything,
    }
    assert moved == expected[stage]


def test_the_gradient_norm_is_of_trainable_leaves():
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    before, optimizer, state, frozen = _start(model, "prompt_tuning")
    batch = _batch()
    gradients = jax.jit(jax.grad(lambda p: model.loss_fn(p, batch, None)[0]))(before)
    step = trainer.make_step(model, optimizer)
    _, _, metrics = step(state.trainable, state.opt_state, frozen, batch, jnp.int32(0))
    expected = np.linalg.norm(np.asarray(gradients["soft_prompt"]["embedding"]).ravel())
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-5)


def test_the_loop_evaluates_saves_and_logs(tmp_path):
    model = EncoderDecoderModel(ONE_LAYER)
    _, optimizer, state, frozen = _start(model, "prompt_tuning")
    saved, scores = [], iter([0.25, 0.5, 0.75])
    _run(
        model,
        optimizer,
        state,
        frozen,
        tmp_path,
        (_batch(i) for i in itertools.count()),
        config=trainer.LoopConfig(5, log_period=3),
        save_period=2,
        evaluate=lambda params: next(scores) if "token_embedder" in params else None,
        save=lambda state, score: saved.append((state.step, score)),
    )
    assert saved == [(2, 0.25), (4, 0.5), (5, 0.75)]
    found = {}
    for file in tmp_path.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    assert found["validation/score"] == {2: 0.25, 4: 0.5, 5: 0.75}
    for name in ("loss", "accuracy", "gradient_norm", "steps_per_second", "target_tokens_per_second"):
        assert set(found[f"train/{name}"]) == {3, 5}
        assert all(np.isfinite(v) and v >= 0 for v in found[f"train/{name}"].values())
    assert 0.5 < found["train/loss"][3] / np.log(V) < 5


def test_the_logged_loss_is_the_mean_over_tokens_since_the_last_report(tmp_path):
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    before, optimizer, state, frozen = _start(model, "prompt_tuning", optax.sgd(0.0))
    batches = [_batch(i) for i in range(3)]
    batches[1]["decoder_loss_weights"][:, 1:] = 0.0
    written = {}

    class Writer:
        def write_scalars(self, step, scalars):
            written[step] = scalars

        def flush(self):
            pass

    trainer.train(
        model,
        optimizer,
        state,
        frozen,
        iter(batches),
        trainer.LoopConfig(3, log_period=2),
        partitioner=Partitioner(),
        batch_size=B,
        save_period=100,
        evaluate=lambda _: None,
        save=lambda *_: None,
        writer=Writer(),  # pyright: ignore[reportArgumentType]
    )
    sums = [jax.jit(model.loss_fn)(before, batch, None)[1] for batch in batches]
    first = (sums[0].loss + sums[1].loss) / (B * U + B)
    np.testing.assert_allclose(
        [written[2]["train/loss"], written[3]["train/loss"]], [first, sums[2].loss / (B * U)], 1e-5
    )


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_numbers_that_are_not_finite_end_the_run_before_a_checkpoint(broken, tmp_path):
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    before, optimizer, state, frozen = _start(model, "prompt_tuning")
    saved = []

    if broken == "gradient":  # a finite loss whose gradient is not

        @jax.custom_jvp
        def spoilt(x, weights):
            return x

        spoilt.defjvp(lambda p, t: (p[0], t[0] * jnp.where(jnp.any(p[1] == 7.0), jnp.nan, 1.0)))

        @dataclasses.dataclass(frozen=True)
        class Model:
            loss_normalizer = model.loss_normalizer

            def loss_sum(self, params, batch, rng):
                weights = batch["decoder_loss_weights"]
                loss, sums = model.loss_sum(params, {**batch, "decoder_loss_weights": jnp.ones_like(weights)}, rng)
                return spoilt(loss, weights), sums

        used, poison = Model(), 7.0
    else:
        used, poison = model, np.nan

    def stream():
        for i in range(6):
            batch = _batch(i)
            if i == 3:
                batch["decoder_loss_weights"][0, 0] = poison
            yield batch

    with pytest.raises(FloatingPointError, match="at step 4;"):
        _run(
            used,
            optimizer,
            state,
            frozen,
            tmp_path,
            stream(),
            config=trainer.LoopConfig(6, log_period=50),
            save_period=2,
            save=lambda state, _: saved.append(state.step),
        )
    assert saved == [2]


def test_the_loop_reads_a_step_when_it_has_dispatched_the_next(tmp_path, monkeypatch):
    """Only before a checkpoint does it wait for the newest step."""
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    _, optimizer, state, frozen = _start(model, "prompt_tuning")
    events, dispatched = [], []
    make_step, device_get = trainer.make_step, jax.device_get

    def recording_step(*args):
        step_function = make_step(*args)

        def step(*arguments):
            result = step_function(*arguments)
            dispatched.append(result[2])
            events.append(f"dispatch {len(dispatched)}")
            return result

        return step

    def recording_read(metrics):
        (number,) = [n for n, of_step in enumerate(dispatched, 1) if of_step is metrics]
        events.append(f"read {number}")
        return device_get(metrics)

    monkeypatch.setattr(trainer, "make_step", recording_step)
    monkeypatch.setattr(progress.jax, "device_get", recording_read)
    _run(
        model,
        optimizer,
        state,
        frozen,
        tmp_path,
        (_batch(i) for i in range(5)),
        config=trainer.LoopConfig(5, log_period=1),
        save_period=3,
        save=lambda state, _: events.append(f"save {state.step}"),
    )
    assert events == [
        *("dispatch 1", "dispatch 2", "read 1", "dispatch 3", "read 2", "read 3", "save 3"),
        *("dispatch 4", "dispatch 5", "read 4", "read 5", "save 5"),
    ]


def test_validations_between_checkpoints(tmp_path):
    model = EncoderDecoderModel(ONE_LAYER)
    _, optimizer, state, frozen = _start(model, "prompt_tuning")
    saved, scores = [], iter(range(1, 10))
    writer = run_metrics.MetricsFile(tmp_path)
    trainer.train(
        model,
        optimizer,
        state,
        frozen,
        (_batch(i) for i in itertools.count()),
        trainer.LoopConfig(5, log_period=50, eval_period=1),
        partitioner=Partitioner(),
        batch_size=B,
        save_period=2,
        evaluate=lambda _: float(next(scores)),
        save=lambda state, score: saved.append((state.step, score)),
        writer=writer,
        validation_loss=lambda _: {"validation/loss": 0.5},
    )
    assert saved == [(2, 2.0), (4, 4.0), (5, 5.0)]
    validations = [line for line in run_metrics.read(tmp_path) if "validation/score" in line]
    assert validations == [{"step": n, "validation/loss": 0.5, "validation/score": float(n)} for n in range(1, 6)]


@pytest.mark.parametrize("steps", [2, 4])
def test_a_profile_of_a_few_steps(steps, tmp_path):
    model = EncoderDecoderModel(ONE_LAYER)
    _, optimizer, state, frozen = _start(model, "prompt_tuning")
    for profile in (False, True):
        args = trainer.TrainState(0, *jax.tree.map(jnp.copy, (state.trainable, state.opt_state)))
        config = trainer.LoopConfig(steps, profile=profile)
        batches = (_batch(i) for i in range(steps))
        _run(model, optimizer, args, frozen, tmp_path, batches, config=config, profile_dir=str(tmp_path))
        assert bool(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == profile


# Microbatches, and what a step leaves alone.


def _uneven_batch(rows=8):
    """Targets of different lengths, weights between 0 and 1, a row without any target and one without a prompt."""
    batch, rng = _batch(rows=rows), np.random.default_rng(1)
    filled = np.arange(U) < rng.integers(1, U + 1, (rows, 1))
    filled[5] = False
    batch["decoder_loss_weights"] = (filled * rng.uniform(0.2, 1, (rows, U))).astype(np.float32)
    batch["soft_prompt_ids"][2] = -1
    batch["encoder_input_tokens"][:, 3:] *= rng.integers(0, 2, (rows, 1), dtype=np.int32)
    return batch


def _one_step(model, optimizer, state, frozen, batch, num_microbatches):
    """(trainable, opt_state, metrics)"""
    step = trainer.make_step(model, optimizer, num_microbatches=num_microbatches)
    return step(state.trainable, state.opt_state, frozen, batch, jnp.int32(0))


def _distance(found, expected):
    """(relative distance of two flat trees, the largest of one leaf)"""
    norms = [[float(np.linalg.norm(np.ravel(x))) for x in (found[n] - e, e)] for n, e in expected.items()]
    return np.divide(*np.sqrt(np.sum(np.square(norms), axis=0))), max(off / size for off, size in norms)


@pytest.mark.parametrize("stage", ["prompt_tuning", "model_tuning"])
def test_microbatches_make_the_update_of_the_whole_batch(stage):
    config = dataclasses.replace(ONE_LAYER, dropout_rate=0.0)
    batch = _uneven_batch()
    weights = batch["decoder_loss_weights"]
    tokens = [float(weights[i::4].sum()) for i in range(4)]
    assert len(set(tokens)) == 4 and min(tokens) > 0 and weights.sum(axis=1).min() == 0
    rate, reference = 1e3, None
    cases = [(None, 1), (None, 2), (None, 4), (2.5, 2), ("NUM_REAL_TARGET_TOKENS", 1), ("NUM_REAL_TARGET_TOKENS", 4)]
    for factor, count in cases:
        model = EncoderDecoderModel(config, label_smoothing=0.1, loss_normalizing_factor=factor)
        before, optimizer, state, frozen = _start(model, stage, optax.sgd(rate))
        trainable, _, metrics = _one_step(model, optimizer, state, frozen, batch, count)
        # At this rate the update outweighs the parameters.
        flat = parameter_names.flatten(trainable)
        updates = {name: (parameter_names.flatten(before)[name] - leaf) / rate for name, leaf in flat.items()}
        sums = np.array([metrics["sums"].loss, metrics["sums"].weight_sum, metrics["sums"].correct])
        if reference is None:  # the sum over the whole batch
            reference = updates, float(metrics["gradient_norm"]), sums
        normalizer = {None: 1.0, 2.5: 2.5}.get(factor, weights.sum())
        expected = {name: leaf / normalizer for name, leaf in reference[0].items()}
        whole, leaf = _distance(updates, expected)
        assert whole < 1e-6 and leaf < 5e-6, (factor, count)
        np.testing.assert_allclose(metrics["gradient_norm"], reference[1] / normalizer, rtol=1e-6)
        np.testing.assert_allclose(sums, reference[2], rtol=1e-6)
    assert reference[1] > 0.1


class _Linear:
    """A loss whose gradient is the sum of `factor` over rows, exactly, and whose only randomness is its dropout key."""

    def loss_sum(self, params, batch, rng):
        del rng
        loss = jnp.sum(batch["factor"].astype(params["w"].dtype) * params["w"])
        return loss, losses.LossSums(*[jnp.float32(1)] * 4)

    def loss_normalizer(self, sums):
        return 1.0


def test_bfloat16_gradients_are_added_in_float32():
    """256 + 1 is 256 in bfloat16, and would stay so four times."""
    params = {"w": jnp.zeros(1, jnp.bfloat16)}
    step = trainer.make_step(_Linear(), optax.sgd(1.0), num_microbatches=5)  # pyright: ignore[reportArgumentType]
    batch = {"factor": np.array([256, 1, 1, 1, 1], np.float32)[:, None]}
    trainable, _, metrics = step(params, optax.sgd(1.0).init(params), {"w": None}, batch, jnp.int32(0))
    assert trainable["w"].dtype == jnp.bfloat16 and float(trainable["w"][0]) == -260.0
    assert float(metrics["sums"].weight_sum) == 5 and metrics["sums"].weight_sum.dtype == jnp.float32


@pytest.mark.parametrize("dropout_rate", [0.0, 0.3])
def test_each_microbatch_has_dropout_masks_of_its_own(dropout_rate):
    """Both microbatches have the same rows; the weights of one of them are 0."""
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=dropout_rate))
    _, optimizer, state, frozen = _start(model, "prompt_tuning", optax.sgd(1.0))
    step = trainer.make_step(model, optimizer, num_microbatches=2)
    found = []
    for counted in (0, 1, 0):
        batch = {name: np.repeat(rows, 2, axis=0) for name, rows in _batch(rows=2).items()}
        batch["decoder_loss_weights"][1 - counted :: 2] = 0.0
        args = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
        metrics = step(*args, frozen, batch, jnp.int32(0))[2]
        found.append((float(metrics["sums"].loss), float(metrics["gradient_norm"])))
    assert found[0] == found[2] and step._cache_size() == 1
    if dropout_rate:
        assert np.all(np.abs(np.divide(found[0], found[1]) - 1) > 1e-3)
    else:
        np.testing.assert_allclose(found[0], found[1], rtol=1e-6)


def test_microbatches_divide_the_batch():
    model = EncoderDecoderModel(ONE_LAYER)
    _, optimizer, state, frozen = _start(model, "prompt_tuning")
    step = trainer.make_step(model, optimizer, num_microbatches=2)
    sentence = "trainer.LoopConfig.num_microbatches is 2, which does not divide the batch of 3 rows; choose a divisor."
    with pytest.raises(ValueError, match=sentence):
        jax.eval_shape(step, state.trainable, state.opt_state, frozen, _batch(rows=3), jnp.int32(0))


def test_a_run_in_microbatches_compiles_its_step_once(tmp_path, monkeypatch):
    made, original = [], trainer.make_step
    monkeypatch.setattr(trainer, "make_step", lambda *args: made.append(original(*args)) or made[-1])
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    shardings = Partitioner().shardings(model.logical_axes(), model.abstract_params())
    ends = []
    for count in (1, 4):
        params = jax.device_put(_random_params(model), shardings)
        _, optimizer, state, frozen = _start(model, "prompt_tuning", params=params)
        config, batches = trainer.LoopConfig(3, num_microbatches=count), (_batch(i, rows=4) for i in range(3))
        end = _run(model, optimizer, state, frozen, tmp_path, batches, config=config, batch_size=4)
        ends.append(parameter_names.flatten(end.trainable))
    assert [step._cache_size() for step in made] == [1, 1]
    assert _distance(*ends)[0] < 1e-5


def test_a_prompt_tuning_step_returns_the_prompt_and_leaves_the_model_alone():
    """What comes out is the prompt, its optimizer's state and five numbers; the model is not returned or copied."""
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, embed_dim=64, mlp_dim=1024))
    before, optimizer, state, frozen = _start(model, "prompt_tuning")
    given = state.trainable, state.opt_state, frozen, _batch(), jnp.int32(0)
    compiled = trainer.make_step(model, optimizer).lower(*given).compile()
    weights = parameter_names.flatten(frozen)
    places = {name: leaf.unsafe_buffer_pointer() for name, leaf in weights.items()}
    trainable, opt_state, metrics = compiled(*given)

    prompt_bytes = P * 64 * 4
    assert list(parameter_names.flatten(trainable)) == ["soft_prompt/embedding"]
    assert [leaf.shape for leaf in jax.tree.leaves(metrics)] == [()] * 5
    slots = sorted(leaf.nbytes for leaf in jax.tree.leaves(opt_state))
    assert slots[-1] == prompt_bytes and sum(slots[:-1]) <= 4 * len(slots), "a second moment, counters, placeholders"
    outputs = jax.tree.leaves((trainable, opt_state, metrics))
    memory = compiled.memory_analysis()
    # XLA's count holds a pointer for every output.
    assert memory.output_size_in_bytes <= sum(leaf.nbytes for leaf in outputs) + 8 * len(outputs)
    assert 2 * prompt_bytes <= memory.alias_size_in_bytes <= memory.output_size_in_bytes
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given[:2]) if leaf.size > 1), "their memory is used again"

    # Activations, and what the CPU lays out anew for a product: the larger kernels at most.
    assert memory.temp_size_in_bytes < 0.75 * sum(leaf.nbytes for leaf in weights.values())
    assert {name: leaf.unsafe_buffer_pointer() for name, leaf in weights.items()} == places
    for name, leaf in weights.items():
        assert np.asarray(leaf).tobytes() == parameter_names.flatten(before)[name].tobytes(), name


# Whole runs: train.train on a small seqio task.


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    rows = [(rng.integers(3, V, n % 4 + 2).tolist(), [n % 30 + 3]) for n in range(26)]
    signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}

    def dataset(split, shuffle_files):
        return tf.data.Dataset.from_generator(
            lambda: ({"inputs": a, "targets": b} for a, b in rows), output_signature=signature
        )

    feature = seqio.Feature(seqio.PassThroughVocabulary(V, eos_id=1))
    seqio.TaskRegistry.add(
        "trainer_test",
        seqio.FunctionDataSource(dataset, splits=("train",)),
        {"inputs": feature, "targets": feature},
        preprocessors=[seqio.preprocessors.append_eos],
    )
    yield "trainer_test"
    seqio.TaskRegistry.remove("trainer_test")


def _train(folder, stage, task, initial=None, steps=6):
    config = dataclasses.replace(ONE_LAYER, scan_layers=stage == "joint_tuning")
    prompt = {"prompt_init": lambda key, n, p, e: jax.random.uniform(key, (n, p, e.shape[1]))}
    return stage_run.run_stage(
        EncoderDecoderModel(config, label_smoothing=0.1, z_loss=1e-4),
        stage,
        optimizers.adafactor(0.05),
        training_batches.DatasetConfig(task, {"inputs": T, "targets": U}, batch_size=4, shards=2),
        trainer.LoopConfig(steps, log_period=3),
        str(folder),
        saving.CheckpointConfig(period=2, keep_latest=1),
        initial_checkpoint_path=initial,
        **({} if stage == "fine_tuning" else prompt),
    )


class _Stopped(Exception):
    pass


def _recorded_batches(monkeypatch, stop_after=None):
    """Records every batch that a run takes, and ends it when it asks for the one after `stop_after`."""
    taken, original = [], stage_run.training_batches.training_batches

    def train_batches(*args, **kwargs):
        for batch in original(*args, **kwargs):
            if len(taken) == stop_after:
                raise _Stopped
            taken.append({k: v.tobytes() for k, v in batch.items()})
            yield batch

    monkeypatch.setattr(stage_run.training_batches, "training_batches", train_batches)
    return taken


def _contents(folder):
    """Every array of a checkpoint, parameters and optimizer state, as bytes."""
    found = {}
    for item in ("params", "opt_state"):
        tree = saving.ocp.StandardCheckpointer().restore(folder / item)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            found[item + jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
    return found


@pytest.mark.parametrize("stage", ["prompt_tuning", "joint_tuning"])
def test_a_resumed_run_is_the_uninterrupted_one(stage, task, tmp_path, monkeypatch):
    initial = str(tmp_path / "base")
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, prompt_length=0))
    saving.export(initial, _random_params(model), {"step": 0, "base": None})
    with monkeypatch.context() as patch:
        whole_order = _recorded_batches(patch)
        _train(tmp_path / "whole", stage, task, initial)
    assert len(whole_order) == 6 and len({batch["encoder_input_tokens"] for batch in whole_order}) == 6

    with monkeypatch.context() as patch:
        first_part = _recorded_batches(patch, stop_after=5)
        with pytest.raises(_Stopped):
            _train(tmp_path / "stopped", stage, task, initial)
    assert saving.all_steps(tmp_path / "stopped") == [4]
    assert [line["step"] for line in run_metrics.read(tmp_path / "stopped")] == [3]
    with (tmp_path / "stopped" / run_metrics.FILE).open("a") as stream:
        stream.write('{"step": 5, "train/loss": 1.0}\n')  # as if written before a checkpoint that never came
    with monkeypatch.context() as patch:
        second_part = _recorded_batches(patch)
        result = _train(tmp_path / "stopped", stage, task, initial)
    assert first_part == whole_order[:5] and second_part == whole_order[4:]
    assert result is not None and result.best_step == 6

    expected = _contents(tmp_path / "whole" / "checkpoint_6")
    assert _contents(tmp_path / "stopped" / "checkpoint_6") == expected
    assert len(expected) > 2 and any("opt_state" in name for name in expected)
    metrics = {name: run_metrics.read(tmp_path / name) for name in ("whole", "stopped")}
    assert [line["step"] for line in metrics["stopped"]] == [line["step"] for line in metrics["whole"]] == [3, 6]
    assert metrics["stopped"][0]["train/loss"] == metrics["whole"][0]["train/loss"]
    # What a finished run is asked again, it does not do again.
    with monkeypatch.context() as patch:
        nothing = _recorded_batches(patch, stop_after=0)
        assert _train(tmp_path / "stopped", stage, task, initial) == result
    assert nothing == []


def test_dropout_depends_on_seed_and_step(tmp_path):
    model = EncoderDecoderModel(ONE_LAYER)
    losses = {}
    _, optimizer, state, frozen = _start(model, "prompt_tuning", optax.sgd(0.0))
    for seed in (0, 1):
        step = trainer.make_step(model, optimizer, seed)
        for number in (0, 1, 0):
            args = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
            loss = float(step(*args, frozen, _batch(), jnp.int32(number))[2]["sums"].loss)
            assert losses.setdefault((seed, number), loss) == loss
    assert len(set(losses.values())) == 4


@pytest.mark.slow  # three processes, each with its imports and compilation
def test_a_killed_run_resumes(tmp_path):
    program = """
import os, signal, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
import importlib.util
spec = importlib.util.spec_from_file_location("trainer_test", sys.argv[1])
test = importlib.util.module_from_spec(spec)
sys.modules["trainer_test"] = test
spec.loader.exec_module(test)
task = test.task.__wrapped__ if hasattr(test.task, "__wrapped__") else test.task.__pytest_wrapped__.obj
generator = task()
name = next(generator)
kill_after = int(sys.argv[3])
original = test.stage_run.training_batches.training_batches
def train_batches(*args, **kwargs):
    for i, batch in enumerate(original(*args, **kwargs)):
        if i == kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch
test.stage_run.training_batches.training_batches = train_batches
test._train(sys.argv[2], "joint_tuning", name)
"""

    def start(folder, kill_after):
        command = [sys.executable, "-c", program, __file__, str(tmp_path / folder), str(kill_after)]
        return subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)

    whole = start("whole", 100)
    assert whole.returncode == 0, whole.stderr[-3000:]
    # Killed right after the second save has begun: whether it is whole by then is a matter of luck.
    assert start("killed", 4).returncode == -signal.SIGKILL
    resumed = start("killed", 100)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    assert _contents(tmp_path / "killed" / "checkpoint_6") == _contents(tmp_path / "whole" / "checkpoint_6")
    assert json.loads((tmp_path / "killed" / "finished.json").read_text())["best_step"] == 6


def test_configuration_errors():
    with pytest.raises(ValueError, match="total_steps=0"):
        trainer.LoopConfig(0)
    with pytest.raises(ValueError, match="num_microbatches=0: expected at least 1"):
        trainer.LoopConfig(1, num_microbatches=0)
    with pytest.raises(ValueError, match="eval_period=0, num_microbatches=1: expected at least 1"):
        trainer.LoopConfig(1, eval_period=0)
    with pytest.raises(ValueError, match="is 3, which does not divide saving.CheckpointConfig.period, 4;"):
        trainer.LoopConfig(1, eval_period=3).check_eval_period(4)
    trainer.LoopConfig(1, eval_period=2).check_eval_period(4)
