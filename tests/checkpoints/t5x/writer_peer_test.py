"""What promot_t5x.checkpoints.t5x.writer writes, read by T5X itself (its Orbax reading: t5x_binary_peer_test)."""

import numpy as np
import pytest

from promot_t5x.checkpoints import conversion

checkpoints = pytest.importorskip(
    "t5x.checkpoints", reason="needs T5X next to this package: see docs/t5x.md", exc_type=ImportError
)
pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("ignore")]  # T5X and its dependencies warn of their own


@pytest.mark.parametrize("kind,to_format", [("t5", "t5x_legacy"), ("scalable_t5", "t5x_scanned_legacy")])
def test_t5x_reads_the_same_bits(testdata, tmp_path, kind, to_format):
    source = testdata / "t5x_tiny" / f"{kind}_legacy" / "checkpoint_0"
    conversion.convert_checkpoint(str(source), str(tmp_path / "checkpoint_7"), to_format)
    state = checkpoints.load_t5x_checkpoint(str(tmp_path / "checkpoint_7"))
    leaves = {name: np.asarray(leaf) for name, leaf in _flat(state["target"]).items()}
    expected = _flat(checkpoints.load_t5x_checkpoint(str(source))["target"])
    assert leaves.keys() == expected.keys()
    for name, array in expected.items():
        assert leaves[name].shape == array.shape and leaves[name].tobytes() == np.asarray(array).tobytes(), name
    assert int(state["state"]["step"]) == 7


def _flat(tree, prefix=""):
    if not isinstance(tree, dict):
        return {prefix.rstrip("/"): tree}
    return {name: leaf for key, value in tree.items() for name, leaf in _flat(value, f"{prefix}{key}/").items()}
