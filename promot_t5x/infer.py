"""The infer command: answers the inputs of a JSONL file.

    python -m promot_t5x.infer --gin_file=models/mt5_small.gin --gin_file=suites/infer.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=out/answers
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epy

from promot_t5x.configuration import flags, gin_checks, gin_files, program

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.evaluation import inference

with epy.lazy_api_imports(globals()):  # gin files say infer.infer, as T5X's do
    from promot_t5x.evaluation.inference import infer  # noqa: F401


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = flags.flag_parser(
        "promot-t5x infer",
        "Answers the inputs of a JSONL file.",
        {
            "CHECKPOINT_PATH": "the checkpoint, or a run's folder, whose best one is taken",
            "INPUTS": "the JSONL file, with a column `input`",
            "INFER_OUTPUT_DIR": "the folder for the answers",
        },
        (
            "promot-t5x infer --gin_file=models/toy.gin --gin_file=suites/infer.gin "
            "--gin.CHECKPOINT_PATH=promot_t5x/demo_checkpoint --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=out/answers",
            "promot-t5x infer --gin_file=models/mt5_small.gin --gin_file=suites/infer.gin "
            "--gin.CHECKPOINT_PATH=/path/to/run --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=out/answers",
        ),
    )
    flags.add_data_flag(result)
    return result


def main(argv: Sequence[str]) -> None:
    """Runs `infer.infer` as the gin files and flags say."""
    invocation = program.start(argv, parser())
    gin_checks.check_flags("infer.infer")
    if flags.opens_data(invocation):
        bound = gin_files.bound_arguments(inference.infer, "infer.infer")
        rows = inference.check(bound["inputs"], bound["output_dir"], bound["vocabulary"], bound["model"])
        print(f"opened: {len(rows)} rows of {bound['inputs']}, and the vocabulary")
    if not invocation.dry_run:
        gin_files.configurable(inference.infer, "infer.infer")()


if __name__ == "__main__":
    sys.exit(program.run_main(main))
