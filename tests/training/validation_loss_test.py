"""promot_t5x.training.validation_loss: the objective on the first batches of a split, against all of it at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import seqio

from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.tasks import toy_world  # noqa: F401 (registers the task)
from promot_t5x.training.validation_loss import validation_loss

LENGTHS = {"inputs": 10, "targets": 4}
CONFIG = T5Config(288, 16, 2, 8, 32, 1, 1, prompt_length=3, num_prompts=2)


@pytest.mark.parametrize("prompt_id", [None, 0, 1])
def test_the_loss_is_the_mean_over_the_tokens_of_the_first_batches(prompt_id):
    model = EncoderDecoderModel(CONFIG, label_smoothing=0.1, z_loss=1e-4)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: jnp.asarray(0.3 * rng.normal(size=x.shape), x.dtype), model.abstract_params())
    partitioner = Partitioner()

    def of(batch_size, steps):
        settings = dict(batch_size=batch_size, steps=steps, prompt_id=prompt_id, partitioner=partitioner)
        with partitioner.context():
            return validation_loss(model, "toy_enfr", "validation", LENGTHS, **settings)(params)

    task = seqio.TaskRegistry.get("toy_enfr")
    examples = list(task.get_dataset(LENGTHS, "validation", shuffle=False).take(7).as_numpy_iterator())
    total = np.zeros(3)
    for example in examples:  # one at a time, unpadded, with the whole vocabulary's logits
        targets = np.asarray(example["targets"])
        batch = {
            "encoder_input_tokens": np.asarray(example["inputs"])[None],
            "decoder_input_tokens": np.array([[0, *targets[:-1]]]),
            **({} if prompt_id is None else {"soft_prompt_ids": np.array([prompt_id])}),
        }
        logits_UxV = np.asarray(model.logits(params, {**batch, "decoder_target_tokens": targets[None]}), np.float64)[0]
        log_z = np.log(np.exp(logits_UxV).sum(axis=-1))
        log_p = logits_UxV - log_z[:, None]
        q = np.full(log_p.shape, 0.1 / 287)
        q[np.arange(len(targets)), targets] = 0.9
        loss = (q * (np.log(q) - log_p)).sum() + 1e-4 * np.square(log_z).sum()
        total += [loss, (logits_UxV.argmax(axis=-1) == targets).sum(), len(targets)]
    assert total[2] > 7
    expected = {"validation/loss": total[0] / total[2], "validation/accuracy": total[1] / total[2]}
    computed = of(batch_size=7, steps=1)
    assert computed.keys() == expected.keys()
    np.testing.assert_allclose(list(computed.values()), list(expected.values()), rtol=1e-5)
    sizes = [of(5, 2)["validation/loss"], of(10, 1)["validation/loss"]]
    np.testing.assert_allclose(*sizes, rtol=1e-6)
