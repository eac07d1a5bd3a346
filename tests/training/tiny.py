"""A tiny network, its batches and its runs, shared by the tests of the trainer."""

import contextlib
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import seqio
import tensorflow as tf
from clu import metric_writers

from promot_t5x.checkpoints import saving
from promot_t5x.data import training_batches
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import optimizers, stage_run, stages, train_step, trainer

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


class Written(dict):
    """A writer of metrics that keeps the scalars of each step."""

    def write_scalars(self, step, scalars):
        self[step] = scalars

    def flush(self):
        pass


def batch(seed=0, rows=B):
    rng = np.random.default_rng(seed)
    targets = rng.integers(2, V, (rows, U)).astype(np.int32)
    return {
        "encoder_input_tokens": rng.integers(1, V, (rows, T)).astype(np.int32),
        "decoder_input_tokens": np.pad(targets[:, :-1], ((0, 0), (1, 0))),
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((rows, U), np.float32),
        "soft_prompt_ids": np.zeros(rows, np.int32),
    }


def random_params(model):
    """Weights drawn by numpy: the network's own initialisers take longer to compile than the tests to run."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), model.abstract_params())


def start(model, stage, transform=None, params=None):
    """(whole parameters as numpy, optimizer, state, frozen)"""
    stage = stages.stage(stage)
    params = random_params(model) if params is None else params
    if not stage.attaches_prompt:
        params = {k: v for k, v in params.items() if k != "soft_prompt"}
    before = jax.tree.map(np.array, params)
    trainable, frozen = stages.partition(params, stage)
    optimizer = optimizers.Staged(transform or optimizers.adafactor(0.05), stage)
    return before, optimizer, train_step.init_state(optimizer, trainable), frozen


def run(model, optimizer, state, frozen, tmp_path, batches, **kwargs):
    kwargs = {"batch_size": B, "save_period": 100, "evaluate": lambda _: None, "save": lambda *_: None, **kwargs}
    config = kwargs.pop("config", trainer.LoopConfig(3, log_period=2))
    writer = metric_writers.create_default_writer(str(tmp_path), asynchronous=False)
    return trainer.train(
        model, optimizer, state, frozen, batches, config, partitioner=Partitioner(), writer=writer, **kwargs
    )


def distance(actual, expected):
    """(relative distance of two flat trees, the largest of one leaf)"""
    norms = [[float(np.linalg.norm(np.ravel(x))) for x in (actual[n] - e, e)] for n, e in expected.items()]
    return np.divide(*np.sqrt(np.sum(np.square(norms), axis=0))), max(off / size for off, size in norms)


@contextlib.contextmanager
def registered_task():
    """A seqio task of 26 short examples; yields its name."""
    rng = np.random.default_rng(0)
    rows = [(rng.integers(3, V, n % 4 + 2).tolist(), [n % 30 + 3]) for n in range(26)]
    signature = {k: tf.TensorSpec([None], tf.int32) for k in ("inputs", "targets")}

    def dataset(split, shuffle_files):
        return tf.data.Dataset.from_generator(
            lambda: ({"inputs": a, "targets": b} for a, b in rows), output_signature=signature
        )

    feature = seqio.Feature(seqio.PassThroughVocabulary(V, eos_id=1))
    seqio.TaskRegistry.add(
        "tiny_runs",
        seqio.FunctionDataSource(dataset, splits=("train",)),
        {"inputs": feature, "targets": feature},
        preprocessors=[seqio.preprocessors.append_eos],
    )
    yield "tiny_runs"
    seqio.TaskRegistry.remove("tiny_runs")


def train(folder, stage, task, initial=None, steps=6, **settings):
    """A whole run as `train.train` makes it."""
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
        **settings,
    )


def stored_bytes(folder) -> dict[str, bytes]:
    """Every array of a checkpoint, parameters and optimizer state."""
    arrays = {}
    for item in ("params", "opt_state"):
        tree = saving.ocp.StandardCheckpointer().restore(folder / item)
        for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
            arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf).tobytes()
    return arrays
