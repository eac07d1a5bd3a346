"""promot_t5x.training.trainer: what the loop logs, evaluates, saves and profiles, and when it stops."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tensorflow as tf

from promot_t5x.data import cuts
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import progress, run_metrics, train_step, trainer
from tests.training import tiny
from tests.training.tiny import ONE_LAYER, B, U, V

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_loop_evaluates_saves_and_logs(tmp_path):
    model = EncoderDecoderModel(ONE_LAYER)
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
    saved, scores = [], iter([0.25, 0.5, 0.75])
    tiny.run(
        model,
        optimizer,
        state,
        frozen,
        tmp_path,
        (tiny.batch(i) for i in itertools.count()),
        config=trainer.LoopConfig(5, log_period=3),
        save_period=2,
        evaluate=lambda params: next(scores) if "token_embedder" in params else None,
        save=lambda state, score: saved.append((state.step, score)),
    )
    assert saved == [(2, 0.25), (4, 0.5), (5, 0.75)]
    written = {}
    for file in tmp_path.glob("events*"):
        for event in tf.compat.v1.train.summary_iterator(str(file)):
            for value in event.summary.value:
                written.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    assert written["validation/score"] == {2: 0.25, 4: 0.5, 5: 0.75}
    for name in ("loss", "accuracy", "gradient_norm", "steps_per_second", "target_tokens_per_second"):
        assert set(written[f"train/{name}"]) == {3, 5}
        assert all(np.isfinite(v) and v >= 0 for v in written[f"train/{name}"].values())
    assert 0.5 < written["train/loss"][3] / np.log(V) < 5


def test_the_logged_loss_is_the_mean_over_tokens_since_the_last_report(tmp_path):
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    before, optimizer, state, frozen = tiny.start(model, "prompt_tuning", optax.sgd(0.0))
    batches = [tiny.batch(i) for i in range(3)]
    batches[1]["decoder_loss_weights"][:, 1:] = 0.0
    for number, batch in enumerate(batches):
        batch[cuts.FEATURE] = np.outer(np.arange(B), [0, number, 0, 0, 1]).astype(np.int32)
    written = tiny.Written()

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
        writer=written,  # pyright: ignore[reportArgumentType]
    )
    for name, counts in {"target_cut": (3, 6), "article_cut": (6, 3), "input_cut": (0, 0)}.items():
        assert tuple(written[n][f"train/{name}"] for n in (2, 3)) == counts, "what was cut in the same steps"
    sums = [jax.jit(model.loss_fn)(before, batch, None)[1] for batch in batches]
    first = (sums[0].loss + sums[1].loss) / (B * U + B)
    np.testing.assert_allclose(
        [written[2]["train/loss"], written[3]["train/loss"]], [first, sums[2].loss / (B * U)], 1e-5
    )
    per_step = [written[n]["train/target_tokens_per_second"] / written[n]["train/steps_per_second"] for n in (2, 3)]
    np.testing.assert_allclose(per_step, [(B * U + B) / 2, B * U], 1e-6)


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_numbers_that_are_not_finite_end_the_run_before_a_checkpoint(broken, tmp_path):
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, dropout_rate=0.0))
    before, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
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
            batch = tiny.batch(i)
            if i == 3:
                batch["decoder_loss_weights"][0, 0] = poison
            yield batch

    with pytest.raises(FloatingPointError, match="at step 4;"):
        tiny.run(
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
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
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
    tiny.run(
        model,
        optimizer,
        state,
        frozen,
        tmp_path,
        (tiny.batch(i) for i in range(5)),
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
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
    saved, scores = [], iter(range(1, 10))
    writer = run_metrics.MetricsFile(tmp_path)
    trainer.train(
        model,
        optimizer,
        state,
        frozen,
        (tiny.batch(i) for i in itertools.count()),
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
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
    for profile in (False, True):
        args = train_step.TrainState(0, *jax.tree.map(jnp.copy, (state.trainable, state.opt_state)))
        config = trainer.LoopConfig(steps, profile=profile)
        batches = (tiny.batch(i) for i in range(steps))
        tiny.run(model, optimizer, args, frozen, tmp_path, batches, config=config, profile_dir=str(tmp_path))
        assert bool(list(tmp_path.glob("plugins/profile/*/*.xplane.pb"))) == profile
