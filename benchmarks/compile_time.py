"""CPU seconds to compile mT5-XXL's model-tuning step for a TPU slice at 24+24 layers and at 12+12, in turn.

    python benchmarks/compile_time.py --topology=v4:4x4x4

The layers are scanned, so the ratio should be near 1. Needs the `tpu` extra, no TPU; a minute or two a compilation.
"""

import argparse
import os
import subprocess
import sys
import time

from promot_t5x import plan
from promot_t5x.configuration import flags


def measure(topology_name: str, layers: int) -> float:
    """CPU seconds of lowering and compiling, in a process of its own."""
    from promot_t5x.planning import chips, programs

    topology = chips.topology(topology_name)
    sizes = [f"--gin.T5Config.num_{side}coder_layers={layers}" for side in ("en", "de")]
    lengths = "--gin.TASK_FEATURE_LENGTHS={'inputs': 512, 'targets': 128}"
    invocation = flags.parse_flags(["--gin_file=recipes/promot_rte.gin", lengths, *sizes])
    training = plan.configured(invocation, topology.devices()).stages["model_tuning"]
    began = time.process_time()
    programs.training_step(training).compile()
    return time.process_time() - began


def main() -> None:
    """Compiles both in turn and prints the ratio of the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v4:4x4x4")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(measure(arguments.topology, arguments.measure))
        return
    seconds_by_layers: dict[int, list[float]] = {12: [], 24: []}
    for _ in range(arguments.rounds):
        for layers, seconds in seconds_by_layers.items():
            command = [sys.executable, __file__, f"--topology={arguments.topology}", f"--measure={layers}"]
            done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True)
            if done.returncode:
                sys.exit(done.stderr[-3000:])
            seconds.append(float(done.stdout.splitlines()[-1]))
            print(f"{layers}+{layers} layers: {seconds[-1]:.1f} CPU seconds", flush=True)
    print(f"24+24 / 12+12: {min(seconds_by_layers[24]) / min(seconds_by_layers[12]):.2f}")


if __name__ == "__main__":
    main()
