"""Every argument that is a number or a name, times what can be wrong with it."""

from collections.abc import Iterator

from tests.command_lines.cases import (
    CONVERT_DEMO,
    EVAL_DATA,
    EVAL_DEMO,
    INFER_DEMO,
    PIPELINE_DEMO,
    PLAN,
    TRAIN_DATA,
    TRAIN_DEMO,
    Case,
)

BEYOND_64_BITS = 10**30

_TRAIN_DATA = f"{TRAIN_DATA} --data_dir=data"
_INFER_BEAM = f"{INFER_DEMO} --gin.encoder_decoder.EncoderDecoderModel.decoding=@encoder_decoder.DecodingConfig()"

# (name, command line, the values that are refused); each is refused by a sentence that has the value or the name.
NUMBERS = (
    ("TRAIN_STEPS", TRAIN_DEMO, (0, -1, "nan", BEYOND_64_BITS)),
    ("BATCH_SIZE", TRAIN_DEMO, (0, -8, 12, "nan", BEYOND_64_BITS)),
    ("RANDOM_SEED", TRAIN_DEMO, (-1, "nan", 2**32, BEYOND_64_BITS)),
    ("LEARNING_RATE", TRAIN_DEMO, (0, -1.0, "nan", "1e400", "word")),
    ("CHECKPOINT_PERIOD", TRAIN_DEMO, (0,)),
    ("EVAL_PERIOD", TRAIN_DEMO, (0, 3)),
    ("STATS_PERIOD", TRAIN_DEMO, (0,)),
    ("NUM_MICROBATCHES", TRAIN_DEMO, (0, 3)),
    ("EVAL_BATCH_SIZE", TRAIN_DEMO, (0,)),
    ("EVAL_STEPS", TRAIN_DEMO, (-1,)),
    ("NUM_PARTITIONS", TRAIN_DEMO, (0, 3, "word", BEYOND_64_BITS)),
    ("LABEL_SMOOTHING", TRAIN_DEMO, (-0.1, 1.0)),
    ("DROPOUT_RATE", TRAIN_DEMO, (-0.1, 1.0)),
    ("TASK_FEATURE_LENGTHS", TRAIN_DEMO, ("{'inputs':0,'targets':4}", "{'inputs':-1,'targets':4}", "{}", "10")),
    ("training_batches.DatasetConfig.shards", TRAIN_DEMO, (0, 7, BEYOND_64_BITS)),
    ("training_batches.DatasetConfig.soft_prompt_id", TRAIN_DEMO, (-2, 1)),
    ("train.Validation.prompt_id", TRAIN_DEMO, (-1, 1)),
    ("optimizers.adafactor.decay_rate", TRAIN_DEMO, (-1,)),
    ("optimizers.adafactor.weight_decay_rate", TRAIN_DEMO, (-1,)),
    ("encoder_decoder.EncoderDecoderModel.z_loss", TRAIN_DEMO, (-1,)),
    ("saving.CheckpointConfig.keep_latest", TRAIN_DEMO, (0,)),
    ("architecture.T5Config.embed_dim", TRAIN_DEMO, (0, BEYOND_64_BITS)),
    ("architecture.T5Config.vocab_size", TRAIN_DEMO, (0, BEYOND_64_BITS)),
    ("architecture.T5Config.prompt_length", TRAIN_DEMO, (-1, BEYOND_64_BITS)),
    ("architecture.T5Config.num_encoder_layers", TRAIN_DEMO, (-1,)),
    ("SHOTS", EVAL_DATA + " --data_dir=data", ("(-1,)", "('word',)", "2")),
    ("SEEDS", EVAL_DATA + " --data_dir=data --gin.SHOTS='(1,)'", ("(-1,)", "('word',)", "2")),
    ("scoring.EvaluationConfig.limit", _INFER_BEAM, (0, -1)),
    ("PROMPT_ID", _INFER_BEAM, (-1, 1)),
    ("encoder_decoder.DecodingConfig.num_beams", _INFER_BEAM, (0, -1)),
    ("encoder_decoder.DecodingConfig.alpha", _INFER_BEAM, ("nan",)),
    ("encoder_decoder.DecodingConfig.temperature", _INFER_BEAM, (0, -1)),
    ("encoder_decoder.DecodingConfig.top_k", _INFER_BEAM, (-1,)),
    ("encoder_decoder.DecodingConfig.top_p", _INFER_BEAM, (0, 1.5)),
    ("pipeline.Recipe.learning_rates", PIPELINE_DEMO, ("(0.0,)", "(-1.0,)", "1e-3", "()")),
    ("pipeline.Recipe.seeds", PIPELINE_DEMO, ("(-1,)", "(1,1)", f"({BEYOND_64_BITS},)", "3", "()")),
)

# (name, command line without the value, refused values)
FLAGS = (
    (
        "--limit",
        "eval --gin_file=models/toy.gin --gin_file=suites/toy_in_context.gin --gin.CHECKPOINT_PATH=x "
        "--gin.EVAL_OUTPUT_DIR=scores",
        (0, -1, "word"),
    ),
    ("--show", EVAL_DEMO, (0, -1)),
    ("--slices", PLAN, (0, -1, "word")),
    ("--process_count", f"{TRAIN_DEMO} --coordinator_address=localhost:9 --process_index=0", (0, -1, "word")),
    ("--process_index", f"{TRAIN_DEMO} --coordinator_address=localhost:9 --process_count=2", (-1, 2)),
    (
        "--coordinator_address",
        f"{TRAIN_DEMO} --process_count=2 --process_index=0",
        ("localhost", "localhost:", ":1", "localhost:0", "localhost:99999", "localhost:word", "localhost:-1"),
    ),
    ("--multiprocess_timeout", f"{TRAIN_DEMO} --multiprocess", (0, -1)),
    ("--dry_run", TRAIN_DEMO, ("maybe",)),
    (
        "--topology",
        "plan --gin_file=recipes/promot_rte.gin",
        ("v4", "v4:", "v9:2x2x1", "v4:-2x2x1", "''"),
    ),
    ("--network", CONVERT_DEMO, ("dropout=0.1", "dropout_rate=2", "dropout_rate=word", "mlp_activations=geluu", "''")),
    ("--to_format", "convert --from=promot_t5x/demo_checkpoint --to=new", ("huggingfac", "''")),
)

# (name, command line, refused values): misspelt and empty ones
NAMES = (
    ("MIXTURE_OR_TASK_NAME", TRAIN_DEMO, ("toy_enf", "''")),
    ("MIXTURE_OR_TASK_MODULE", TRAIN_DEMO, ("no_such_module", "broken_module", "wrong_module", "ending_module", "''")),
    ("TRAIN_SPLIT", TRAIN_DEMO, ("trian", "''")),
    ("VALIDATION_SPLIT", _TRAIN_DATA, ("validaton", "''")),
    ("VALIDATION_TASK", TRAIN_DEMO, ("toy_enf", "''")),
    ("STAGE", TRAIN_DEMO, ("prompt_tunin", "''")),
    ("PRESET", TRAIN_DEMO, ("mixd", "''")),
    ("OPTIMIZER", TRAIN_DEMO, ("@optimizers.adafactor", "@optimizers.adafacto()", "adafactor", "None")),
    ("FROZEN_WEIGHTS_DTYPE", TRAIN_DEMO, ("bfloat61", "''")),
    ("PROFILE", TRAIN_DEMO, ("maybe", "true")),
    ("architecture.T5Config.mlp_activations", TRAIN_DEMO, ("('geluu',)", "()")),
    ("architecture.T5Config.dtype", TRAIN_DEMO, ("float16", "''")),
    ("architecture.T5Config.remat", TRAIN_DEMO, ("som", "''")),
    ("train.train.prompt_init", TRAIN_DEMO, ("uniform", "@prompt_initializers.random_unifor()")),
    ("TRAIN_STEP", TRAIN_DEMO, (5,)),
    ("trainer.LoopConfig.log_perio", TRAIN_DEMO, (5,)),
    ("trainr.LoopConfig.log_period", TRAIN_DEMO, (5,)),
    ("trainer.LoopConfi.log_period", TRAIN_DEMO, (5,)),
    ("TASKS", EVAL_DEMO, ("('toy_wi',)", "('',)", "()", "toy_wic")),
    ("MIXTURE_OR_TASK_SPLIT", EVAL_DEMO, ("tset", "''")),
    ("PROMPTS", EVAL_DEMO, ("('remove',)", "()", "removed")),
    ("ANSWERING", EVAL_DEMO, ("generat", "''")),
    ("CHECKPOINT_MODE", EVAL_DEMO, ("al", "''")),
    ("encoder_decoder.DecodingConfig.method", _INFER_BEAM, ("bea", "''")),
    ("encoder_decoder.DecodingConfig.method", INFER_DEMO, ("beam",)),
    ("pipeline.Recipe.methods", PIPELINE_DEMO, ("('promt',)", "()", "promot", "('promot','promot')", "('promot',)")),
    ("pipeline.Recipe.target", PIPELINE_DEMO, ("toy_enf", "''")),
    ("pipeline.Recipe.in_context", PIPELINE_DEMO, ("('toy_wi',)", "('toy_wic','toy_wic')", "toy_wic")),
    ("pipeline.Recipe.target_split", PIPELINE_DEMO, ("tset", "''")),
    ("pipeline.Recipe.stage_files", PIPELINE_DEMO, ("{'promt':()}",)),
    ("pipeline.Recipe.headline", PIPELINE_DEMO, ("('promot',)", "('promt','fine_tuning','pretrained')")),
    ("jsonl.jsonl_task.metric", _TRAIN_DATA, ("accurac", "''")),
    ("jsonl.jsonl_task.input_column", _TRAIN_DATA, ("inpt", "''")),
    ("jsonl.jsonl_task.choices_column", _TRAIN_DATA, ("choices",)),
    ("TASK_NAME", _TRAIN_DATA, ("'my task'", "''")),
)


def cases() -> Iterator[Case]:
    """One case for each argument and value; the sentence has the value, or else the argument's name."""
    for name, command, refused in (*NUMBERS, *NAMES):
        for value in refused:
            parameter = name.rpartition(".")[2].lower()
            yield Case(
                f"{name}={value}",
                f'{command} --gin.{name}="{value}"',
                f"{_text(value)}|{parameter}|{parameter.upper()}",
            )
    for name, command, refused in FLAGS:
        for value in refused:
            yield Case(f"{name}={value}", f"{command} {name}={value}", f"{_text(value)}|{name}")


def _text(value: object) -> str:
    """A value as the sentence has it, without quotes."""
    return str(value).strip("'@(),{}:") or "''"
