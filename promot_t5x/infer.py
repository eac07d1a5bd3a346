"""The infer binary: answers the inputs of a JSONL file.

    python -m promot_t5x.infer --gin_file=models/mt5_small.gin --gin_file=suites/infer.gin \
        --gin.CHECKPOINT_PATH=/path/to/run --gin.INPUTS=in.jsonl --gin.INFER_OUTPUT_DIR=out/answers
"""

import sys
from collections.abc import Sequence

from promot_t5x.configuration import flags, gin_checks, gin_files, program
from promot_t5x.evaluation.inference import infer

__all__ = ["infer", "main"]  # gin files say infer.infer, as T5X's do


def main(argv: Sequence[str]) -> None:
    """Runs `infer` as the gin files and flags say."""
    parser = flags.flag_parser("python -m promot_t5x.infer", "Answers the inputs of a JSONL file.")
    invocation = program.start(argv, parser)
    gin_checks.check_flags()
    if not invocation.dry_run:
        gin_files.configurable(infer, "infer.infer")()


if __name__ == "__main__":
    sys.exit(program.run_main(main))
