"""promot_t5x.checkpoints.fingerprints: any bit of the model changes it, soft prompt and layout do not."""

import jax
import numpy as np
import pytest

from promot_t5x.checkpoints import fingerprints, stored_leaves
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel

SIZES = dict(vocab_size=20, embed_dim=8, num_heads=2, head_dim=4, mlp_dim=12, num_encoder_layers=2, prompt_length=3)


def _random(scan_layers=False):
    config = T5Config(**SIZES, num_decoder_layers=2, scan_layers=scan_layers)
    shapes = parameter_names.flatten(EncoderDecoderModel(config).abstract_params())
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in shapes.items()}


NAMES = sorted(_random())


@pytest.mark.parametrize("name", NAMES)
def test_one_bit_of_any_leaf_changes_it_but_for_the_prompt(name):
    params = _random()
    before = fingerprints.fingerprint(params)
    params[name].view(np.uint32).reshape(-1)[-1] ^= 1
    is_same = fingerprints.fingerprint(params) == before
    assert is_same == name.startswith("soft_prompt/")


def test_leaves_in_files_and_on_devices_have_the_same():
    params = _random()
    stored = {name: stored_leaves.from_array(array, name) for name, array in params.items()}
    assert fingerprints.fingerprint(stored) == fingerprints.fingerprint(jax.device_put(params))


def test_stacked_layers_have_that_of_separate_ones():
    stacked = _random(scan_layers=True)
    separate = parameter_names.unstack_layers(stacked, lambda leaf, number: leaf[number])
    assert set(separate) == set(NAMES)
    assert fingerprints.fingerprint(stacked) == fingerprints.fingerprint(separate)
