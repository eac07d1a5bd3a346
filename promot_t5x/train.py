"""The train command: one stage of ProMoT, or a baseline, on one task or mixture.

    python -m promot_t5x.train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin \
        --gin_file=stages/prompt_tuning.gin --gin.MODEL_DIR=/tmp/stage1 --gin.INITIAL_CHECKPOINT_PATH=/a/checkpoint
"""

import argparse
import sys
from collections.abc import Sequence

from etils import epy

from promot_t5x.configuration import flags, gin_checks, gin_files, program

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.training import stage_run

with epy.lazy_api_imports(globals()):  # gin files say train.train and train.Validation, as T5X's say train.train
    from promot_t5x.training.stage_run import run_stage as train  # noqa: F401
    from promot_t5x.training.validation import Validation  # noqa: F401


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = flags.flag_parser(
        "promot-t5x train",
        "Trains one stage of ProMoT, or a baseline.",
        {
            "MODEL_DIR": "the run's folder; the same command resumes an interrupted run",
            "INITIAL_CHECKPOINT_PATH": "the checkpoint to start from, ours, T5X's or Hugging Face's",
            "TRAIN_STEPS": "the number of steps, if the stage's own is not wanted",
        },
        (
            "promot-t5x train --gin_file=models/toy.gin --gin_file=tasks/toy.gin --gin_file=stages/prompt_tuning.gin "
            "--gin.MODEL_DIR=out/stage1 --gin.INITIAL_CHECKPOINT_PATH=promot_t5x/demo_checkpoint",
            "promot-t5x train --gin_file=models/mt5_xxl.gin --gin_file=tasks/rte.gin "
            "--gin_file=stages/model_tuning.gin --gin.MODEL_DIR=gs://bucket/stage2 --gin.INITIAL_CHECKPOINT_PATH=gs://bucket/stage1",
        ),
    )
    flags.add_data_flag(result)
    return result


def main(argv: Sequence[str]) -> None:
    """Runs `train.train` as the gin files and flags configure it."""
    invocation = program.start(argv, parser())
    gin_checks.check_flags("train.train")
    run = gin_files.configurable(stage_run.run_stage, "train.train")
    run(dry_run=invocation.dry_run, dry_run_data=flags.opens_data(invocation), config_gin=gin_files.operative_config)


if __name__ == "__main__":
    sys.exit(program.run_main(main))
