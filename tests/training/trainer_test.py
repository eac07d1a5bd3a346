"""promot_t5x.training.trainer: T5X's own step, and what a step computes and changes."""

import dataclasses
import itertools

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from promot_t5x.checkpoints import stored_leaves
from promot_t5x.checkpoints.t5x import reader
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.training import optimizers, stages, train_step, trainer
from tests.training import tiny
from tests.training.tiny import CONFIG, ONE_LAYER, P

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_one_fine_tuning_step_is_t5x(testdata):
    folder = testdata / "t5x_tiny"
    leaves = reader.read(folder / "t5_legacy" / "checkpoint_0")
    params = parameter_names.unflatten({name: jnp.asarray(stored_leaves.whole(leaf)) for name, leaf in leaves.items()})
    config = T5Config(384, 32, 4, 8, 64, 2, 2, dropout_rate=0.0)
    model = EncoderDecoderModel(config, z_loss=1e-4)
    fixture = dict(np.load(folder / "t5_batch_logits_loss.npz"))
    batch = {k: jnp.asarray(fixture[k]) for k in tiny.batch() if k in fixture}
    expected = dict(np.load(folder / "t5_after_one_adafactor_step.npz"))
    before, optimizer, state, frozen = tiny.start(model, "fine_tuning", optimizers.adafactor(1e-3), params)
    step = train_step.make_step(model, optimizer)
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

    def produced(name):
        stage = stages.stage(name)
        trainable, frozen = stages.partition(params, stage)
        optimizer = optimizers.Staged(optimizers.adafactor(0.1), stage)
        step = train_step.make_step(model, optimizer)
        opt_state = jax.eval_shape(optimizer.init, trainable)
        return _produced_shapes(jax.make_jaxpr(step)(trainable, opt_state, frozen, tiny.batch(), jnp.int32(0)).jaxpr)

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
    model = EncoderDecoderModel(ONE_LAYER)
    before, optimizer, state, frozen = tiny.start(model, stage, optax.sgd(0.1))
    batches = (tiny.batch(i) for i in itertools.count())
    if not stages.stage(stage).attaches_prompt:
        batches = ({k: v for k, v in batch.items() if k != "soft_prompt_ids"} for batch in batches)
    end = tiny.run(model, optimizer, state, frozen, tmp_path, batches)
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
    before, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
    batch = tiny.batch()
    gradients = jax.jit(jax.grad(lambda p: model.loss_fn(p, batch, None)[0]))(before)
    step = train_step.make_step(model, optimizer)
    _, _, metrics = step(state.trainable, state.opt_state, frozen, batch, jnp.int32(0))
    expected = np.linalg.norm(np.asarray(gradients["soft_prompt"]["embedding"]).ravel())
    np.testing.assert_allclose(metrics["gradient_norm"], expected, rtol=1e-5)


def test_a_prompt_tuning_step_returns_the_prompt_and_leaves_the_model_alone():
    """What comes out is the prompt, its optimizer's state and five numbers; the model is not returned or copied."""
    model = EncoderDecoderModel(dataclasses.replace(ONE_LAYER, embed_dim=64, mlp_dim=1024))
    before, optimizer, state, frozen = tiny.start(model, "prompt_tuning")
    args = state.trainable, state.opt_state, frozen, tiny.batch(), jnp.int32(0)
    step = train_step.make_step(model, optimizer)
    compiled = step.lower(*args).compile()
    weights = parameter_names.flatten(frozen)
    places = {name: leaf.unsafe_buffer_pointer() for name, leaf in weights.items()}
    trainable, opt_state, metrics = compiled(*args, *step.of_run)

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
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(args[:2]) if leaf.size > 1), "their memory is used again"

    # Activations, and what the CPU lays out anew for a product: the larger kernels at most.
    assert memory.temp_size_in_bytes < 0.75 * sum(leaf.nbytes for leaf in weights.values())
    assert {name: leaf.unsafe_buffer_pointer() for name, leaf in weights.items()} == places
    for name, leaf in weights.items():
        assert np.asarray(leaf).tobytes() == parameter_names.flatten(before)[name].tobytes(), name


def test_dropout_depends_on_seed_and_step(tmp_path):
    model = EncoderDecoderModel(ONE_LAYER)
    losses = {}
    _, optimizer, state, frozen = tiny.start(model, "prompt_tuning", optax.sgd(0.0))
    for seed in (0, 1):
        step = train_step.make_step(model, optimizer, seed)
        for number in (0, 1, 0):
            args = jax.tree.map(jnp.copy, (state.trainable, state.opt_state))
            loss = float(step(*args, frozen, tiny.batch(), jnp.int32(number))[2]["sums"].loss)
            assert losses.setdefault((seed, number), loss) == loss
    assert len(set(losses.values())) == 4


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
