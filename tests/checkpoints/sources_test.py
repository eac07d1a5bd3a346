"""promot_t5x.checkpoints.sources: what an opened checkpoint says of itself; no array is read."""

import numpy as np
import pytest

from promot_t5x.checkpoints import fingerprints, networks, saving, sources, stored_leaves
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel

CONFIG = T5Config(23, 6, 2, 4, 10, 2, 2, prompt_length=3, scan_layers=True)


@pytest.fixture
def base(tmp_path):
    shapes = parameter_names.flatten(EncoderDecoderModel(CONFIG).abstract_params())
    params = {name: np.full(leaf.shape, 1 + i, np.float32) for i, (name, leaf) in enumerate(shapes.items())}
    saving.export(tmp_path / "base", params, {"step": 7, "base": None, **networks.described(CONFIG)})
    return tmp_path / "base", params


def test_a_checkpoint_describes_itself(base, monkeypatch):
    folder, params = base
    with monkeypatch.context() as patch:
        patch.setattr(stored_leaves, "empty", lambda *_: pytest.fail("an array was read"))
        source = sources.open_source(folder)
        assert (source.folder, source.format, source.layout, source.step) == (folder, "promot", "stacked", 7)
        assert (source.adapters, source.base, source.assumed) == (("soft_prompt",), None, {})
        assert source.config == CONFIG and source.leaves.keys() == params.keys()
    assert source.fingerprint == fingerprints.fingerprint(params)


def test_a_prompt_alone_brings_its_model(base, tmp_path):
    folder, params = base
    prompt = np.zeros((2, 5, 6), np.float32)
    named = {"path": str(folder), "fingerprint": fingerprints.fingerprint(params)}
    saving.export(tmp_path / "prompt", {"soft_prompt": {"embedding": prompt}}, {"step": 9, "base": named})
    source = sources.open_source(tmp_path / "prompt")
    assert (source.model.folder, source.step, source.base_fingerprint) == (folder, 9, named["fingerprint"])
    assert (source.config.num_prompts, source.config.prompt_length) == (2, 5)
    sources.check_base(source, source.fingerprint)
    with pytest.raises(ValueError, match="but the model there now has 0000; put the original model back"):
        sources.check_base(source, "0000")
