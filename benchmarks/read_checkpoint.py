"""Reading a large T5X checkpoint next to tensorstore alone: memory above what is kept, and speed.

    python benchmarks/read_checkpoint.py --folder=/tmp/t5x_2gb

Makes a random checkpoint of about 2 GB in T5X's legacy format (zarr chunks of at most 64 MB, not compressed further
than T5X does) in that folder if it is not there, then reads it in processes of their own, in turn.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

from promot_t5x.checkpoints import loading, placing, sources, stored_leaves
from promot_t5x.checkpoints.t5x import writer
from promot_t5x.models import parameter_names
from promot_t5x.models.architecture import T5Config
from promot_t5x.models.encoder_decoder import EncoderDecoderModel
from promot_t5x.partitioning.partitioner import Partitioner

ROOT = Path(__file__).resolve().parents[1]
SIZES = {"vocab_size": 32128, "embed_dim": 1024, "num_heads": 16, "head_dim": 64, "mlp_dim": 2816}
LAYERS = 14


def config(scan_layers: bool = False):
    """A T5 of half a billion parameters."""
    return T5Config(**SIZES, num_encoder_layers=LAYERS, num_decoder_layers=LAYERS, scan_layers=scan_layers)


def make(folder: Path) -> None:
    """Writes the checkpoint through this package's writer."""
    import numpy as np

    rng = np.random.default_rng(0)
    shapes = parameter_names.flatten(EncoderDecoderModel(config()).abstract_params())

    def random(shape):
        block = lambda index: rng.normal(size=[i.stop - i.start for i in index]).astype(np.float32)  # noqa: E731
        return stored_leaves.StoredLeaf(shape, np.dtype(np.float32), "random", block)

    writer.write_legacy(folder, {name: random(leaf.shape) for name, leaf in shapes.items()}, step=0)


class _Peak:
    """The largest resident memory of this process while a block runs, sampled."""

    def __enter__(self):
        self.before, self.peak, self._going = _resident(), 0, True
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self):
        while self._going:
            self.peak = max(self.peak, _resident())
            time.sleep(0.005)

    def __exit__(self, *_):
        self._going = False
        self._thread.join()


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def ours(folder: Path, scan_layers: bool):
    """Through this package's reading, onto one device."""
    import jax

    wanted = loading.wanted_params(EncoderDecoderModel(config(scan_layers)), Partitioner())
    jax.block_until_ready(jax.numpy.zeros(1))
    leaves = sources.open_source(folder).leaves
    return lambda: jax.block_until_ready(placing.place(leaves, wanted))


def tensorstore(folder: Path):
    """Every array whole, all at once, by tensorstore."""
    import tensorstore as ts

    stores = [
        ts.open({"driver": "zarr", "kvstore": {"driver": "file", "path": f"{path}/"}}, open=True, read=True).result()
        for path in sorted(folder.glob("target.*"))
    ]
    return lambda: [read.result() for read in [store.read() for store in stores]]


def measure(name: str, folder: Path) -> dict[str, float]:
    """Runs in its own process."""
    read = tensorstore(folder) if name == "tensorstore" else ours(folder, scan_layers=name == "ours, stacked")
    with _Peak() as memory:
        began = time.perf_counter()
        kept = read()
        seconds = time.perf_counter() - began
    arrays = kept.values() if isinstance(kept, dict) else kept
    size = sum(array.nbytes for array in arrays)
    return {"gb": size / 1e9, "peak_by_kept": (memory.peak - memory.before) / size, "gb_per_s": size / 1e9 / seconds}


def main() -> None:
    """Measures all in turn and prints the best of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.measure:
        print(json.dumps(measure(flags.measure, flags.folder)))
        return
    if not (flags.folder / "checkpoint").exists():
        make(flags.folder)
    measured: dict[str, list[dict[str, float]]] = {}
    for _ in range(flags.rounds):
        for name in ("tensorstore", "ours", "ours, stacked"):
            command = [sys.executable, __file__, f"--folder={flags.folder}", "--measure", name]
            path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
            environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": path}
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            if done.returncode:
                sys.exit(f"{name} failed:\n{done.stderr[-3000:]}")
            measured.setdefault(name, []).append(json.loads(done.stdout.splitlines()[-1]))
            print(name, measured[name][-1], flush=True)
    fastest = {name: max(row["gb_per_s"] for row in rows) for name, rows in measured.items()}
    for name, rows in measured.items():
        print(
            f"{name:14} peak memory {max(row['peak_by_kept'] for row in rows):.2f} x the bytes kept, "
            f"speed {fastest[name] / fastest['tensorstore']:.2f} of tensorstore's"
        )


if __name__ == "__main__":
    main()
