"""promot_t5x.training.validation: what the first validation would stumble over is said before anything is read."""

import pytest

from promot_t5x.evaluation.scoring import EvaluationConfig
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner
from promot_t5x.training import stages, validation
from promot_t5x.training.validation import Validation
from tests import absent_devices

MODEL = EncoderDecoderModel(T5Config(288, 16, 2, 8, 32, 1, 1, prompt_length=3, num_prompts=2))
CONFIG = EvaluationConfig({"inputs": 10, "targets": 4}, batch_size=6)
FOUR = Partitioner(devices=absent_devices.devices(4))


def _check(stage="prompt_tuning", partitioner=Partitioner(), **settings):
    chosen = Validation("no task that is read", "validation", CONFIG, **settings)
    validation.check(chosen, stages.stage(stage), MODEL, partitioner)


@pytest.mark.parametrize("prompt_id", [2, -1])
def test_a_prompt_that_the_model_does_not_have(prompt_id):
    sentence = (
        f"^train.Validation.prompt_id is {prompt_id}, expected the number of a soft prompt of the model, which has 2"
    )
    with pytest.raises(ValueError, match=sentence):
        _check(prompt_id=prompt_id)
    _check("fine_tuning", prompt_id=prompt_id)  # attaches none
    _check(prompt_id=1)


def test_batches_that_the_devices_cannot_share():
    with pytest.raises(ValueError, match="^A batch has 6 rows, which do not divide over the 4 devices"):
        _check(partitioner=FOUR)


def test_no_validation():
    stage = stages.stage("fine_tuning")
    validation.check(None, stage, MODEL, FOUR)
    assert (
        validation.evaluator(None, stage, MODEL, FOUR)({}) is None
        and validation.loss(None, stage, MODEL, FOUR)({}) == {}
    )
