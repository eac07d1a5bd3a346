"""The train binary: one stage of ProMoT, or a baseline, on one task or mixture.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=/tmp/stage1 --gin.INITIAL_CHECKPOINT_PATH=/a/checkpoint
"""

import sys
from collections.abc import Sequence

from promot_t5x.configuration import flags, gin_checks, gin_files, program
from promot_t5x.training.stage_run import Validation
from promot_t5x.training.stage_run import run_stage as train

__all__ = ["Validation", "main", "train"]  # gin files say train.train and train.Validation, as T5X's say train.train


def main(argv: Sequence[str]) -> None:
    """Runs `train` as the gin files and flags say."""
    parser = flags.flag_parser("python -m promot_t5x.train", "Trains one stage of ProMoT, or a baseline.")
    invocation = program.start(argv, parser)
    gin_checks.check_flags()
    gin_files.configurable(train, "train.train")(dry_run=invocation.dry_run, config_gin=gin_files.operative_config)


if __name__ == "__main__":
    sys.exit(program.run_main(main))
