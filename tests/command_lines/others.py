"""Command lines with mistakes of their own kind: flags that do not fit together, damaged files, absent hardware."""

from collections.abc import Iterator

from tests.command_lines.cases import (
    CONVERT,
    CONVERT_DEMO,
    EVAL_DATA,
    EVAL_DEMO,
    INFER_DEMO,
    PIPELINE_DEMO,
    TOY,
    TRAIN,
    TRAIN_DATA,
    TRAIN_DEMO,
    Case,
)

_TRAIN_DATA = f"{TRAIN_DATA} --data_dir=data"
_EVAL_DATA = f"{EVAL_DATA} --data_dir=data"
_NO_PROMPT = "--gin.training_batches.DatasetConfig.soft_prompt_id=-1"
_SECOND_STAGE = TRAIN_DEMO.replace("prompt_tuning", "model_tuning")
_TO_PEFT = "convert --from=promot_t5x/demo_checkpoint --to=adapter --to_format=peft"

# name, command line, a part of the sentence
CASES = (
    # verbs and flags
    Case("no such verb", "trian", "(did you mean 'train'?)"),
    Case("an empty verb", "''", "has no verb ''"),
    Case("a flag that no verb has", f"{TRAIN_DEMO} --gin_fil=x", "(did you mean '--gin_file'?)"),
    Case("a flag of another verb", f"{TRAIN_DEMO} --limit=3", "unknown flag --limit"),
    Case("an argument without a flag", f"{TRAIN_DEMO} out", "unexpected argument 'out'"),
    Case("a flag without its value", f"{TRAIN_DEMO} --gin.TRAIN_STEPS", "--gin.TRAIN_STEPS has no value"),
    Case("no gin file", "train", "the gin files never mention train.train"),
    Case(
        "another verb's gin file",
        f"infer {TOY} --gin_file=suites/toy_in_context.gin --gin.CHECKPOINT_PATH=x --gin.EVAL_OUTPUT_DIR=y",
        "never mention infer.infer",
    ),
    Case("a macro without a value", TRAIN, "pass --gin.INITIAL_CHECKPOINT_PATH=VALUE"),
    Case(
        "convert with a gin file",
        f"{CONVERT_DEMO} --gin_file=models/toy.gin",
        "--gin_file (models/toy.gin) would change nothing",
    ),
    Case("convert with a macro", f"{CONVERT_DEMO} --gin.MODEL_DIR=x", "would change nothing"),
    Case("convert as several processes", f"{CONVERT_DEMO} --multiprocess", "would change nothing"),
    Case("report with a macro", "report --results=other.json --out=report --gin.MODEL_DIR=x", "would change nothing"),
    Case("report as a dry run", "report --results=other.json --out=report --dry_run", "would change nothing"),
    Case("doctor with a gin file", "doctor --gin_file=models/toy.gin", "would change nothing"),
    Case(
        "results and scores",
        "report --results=other.json --scores=other.json --out=report",
        "not allowed with argument",
    ),
    Case("a report of nothing", "report --out=report", "--results --scores is required"),
    Case("data without a dry run", f"{TRAIN_DEMO} --data", "add --dry_run"),
    Case("an unused macro", f"{TRAIN_DEMO} --gin.LR=1", "nothing uses LR"),
    Case("an unused parameter", f"{TRAIN_DEMO} --gin.optimizers.adam.b1=0.5", "nothing uses optimizers.adam"),
    Case("a seed of a recipe's runs", f"{PIPELINE_DEMO} --gin.RANDOM_SEED=1", "set pipeline.Recipe.seeds"),
    Case("half of the processes", f"{TRAIN_DEMO} --process_count=2", "need all of --coordinator_address"),
    Case("no cluster", f"{TRAIN_DEMO} --multiprocess", "the cluster does not say which processes take part"),
    Case("a completion for no shell", "--completion cmd", "one of bash"),
    # gin files
    Case("deep brackets in a file", "train --gin_file=deep.gin", "deep.gin:1: gin syntax error: brackets"),
    Case("deep brackets in a flag", f"{TRAIN_DEMO} --gin.A={'[' * 5000}", "brackets are nested too deeply"),
    Case("no gin syntax", "train --gin_file=syntax.gin", "syntax.gin:1: gin syntax error"),
    Case("a file that is not text", "train --gin_file=latin1.gin", "its bytes are not UTF-8 text"),
    Case(
        "an include that is missing",
        "train --gin_file=missing_include.gin",
        "missing_include.gin:1: gin file 'absent.gin'",
    ),
    Case("a module that raises", "train --gin_file=raising.gin", "failed: ZeroDivisionError: division by zero"),
    Case("a search path", "train --gin_file=x.gin --gin_search_paths=absent", "was not found in"),
    # settings that do not fit together
    Case("a prompt that no row has", f"{TRAIN_DEMO} {_NO_PROMPT}", "no row has a soft prompt"),
    Case("batches and devices", f"{TRAIN_DEMO} --gin.NUM_PARTITIONS=2", "2"),
    Case("an export over the run", f"{TRAIN_DEMO} --gin.train.train.export_dir=run", "which an export would delete"),
    Case("an export over files", f"{TRAIN_DEMO} --gin.train.train.export_dir=export", "export"),
    Case("several starts of a prompt", f"{TRAIN} --gin.INITIAL_CHECKPOINT_PATH=\"('a_file','a_file')\"", ""),
    Case("a prompt and no model", f"{TRAIN} --gin.INITIAL_CHECKPOINT_PATH=None", "but INITIAL_CHECKPOINT_PATH is None"),
    Case("no prompt to start from", _SECOND_STAGE, "takes its soft prompt from"),
    Case(
        "another vocabulary", f"{TRAIN_DEMO} --gin.architecture.T5Config.vocab_size=1000", "does not match the network"
    ),
    Case("exemplars of tasks without", f"{EVAL_DEMO} --gin.SHOTS='(1,)'", "takes no exemplars"),
    Case("ranking without choices", f"{_EVAL_DATA} --gin.ANSWERING=rank", "choices"),
    Case("a prompt that is not there", f"{_EVAL_DATA} --gin.PROMPTS=\"('attached',)\"", "soft prompt"),
    Case("all checkpoints of one", f"{_EVAL_DATA} --gin.CHECKPOINT_MODE=all", "is a single checkpoint"),
    Case(
        "infer's own inputs", f"{INFER_DEMO} --gin.INPUTS=answers/predictions.jsonl", "which the output would replace"
    ),
    Case("infer's prompt", f"{INFER_DEMO} --gin.PROMPT_ID=0", "soft prompt"),
    Case(
        "a recipe without a start",
        f"{PIPELINE_DEMO} --gin.pipeline.Recipe.methods=\"('promot',)\"",
        "without prompt_tuning",
    ),
    Case("no prompt to convert", _TO_PEFT, "holds no soft prompt"),
    # data
    Case("a split without a column", f"{TRAIN_DATA} --data_dir=without_target", "validation"),
    Case("a split without rows", f"{TRAIN_DATA} --data_dir=without_rows", "empty"),
    Case(
        "fewer rows than shards",
        f"{_TRAIN_DATA} --gin.training_batches.DatasetConfig.shards=2 --gin.BATCH_SIZE=2",
        "shards",
    ),
    Case("rows with predictions", f"{INFER_DEMO} --gin.INPUTS=with_predictions.jsonl", "has a column `prediction`"),
    Case(
        "an input that is no text", f"{INFER_DEMO} --gin.INPUTS=not_text.jsonl", "not a JSON object with a text `input`"
    ),
    Case("deep JSON in inputs", f"{INFER_DEMO} --gin.INPUTS=deep.jsonl", "levels of nesting"),
    Case("NaN in inputs", f"{INFER_DEMO} --gin.INPUTS=nan.jsonl", "NaN is not a number in JSON"),
    # checkpoints and results
    Case("deep JSON in config.json", f"{CONVERT} --from=hf", "levels of nesting"),
    Case("half a config.json", f"{CONVERT} --from=hf_half", "config.json is damaged"),
    Case("a prompt of another width", f"{CONVERT_DEMO} --soft_prompt=prompt.npy", "is 16 wide"),
    Case("a prompt that is not finite", f"{CONVERT_DEMO} --soft_prompt=nan.npy", "finite"),
    Case(
        "a folder that is in use",
        f"{CONVERT} --to=a_folder --from=promot_t5x/demo_checkpoint",
        "exists and is not empty",
    ),
    Case("a prompt over a file", "convert --from=prompt.npy --to_format=npy --to=a_file", "exists"),
    Case("deep JSON in results", "report --results=deep.json --out=report", "deep.json"),
    Case("half of the results", "report --results=half.json --out=report", "half.json"),
    Case("a list of results", "report --results=list.json --out=report", "list.json"),
    Case("other results", "report --results=other.json --out=report", "other.json"),
    Case("deep JSON in scores", "report --scores=deep.json --out=report", "deep.json"),
    Case("other scores", "report --scores=other.json --out=report", "other.json"),
    # hardware
    Case("hardware that is absent", "doctor", "JAX_PLATFORMS=cuda", {"JAX_PLATFORMS": "cuda"}),
    Case("hardware that is misspelt", "doctor", "JAX_PLATFORMS=cpuu", {"JAX_PLATFORMS": "cpuu"}),
    Case("training without hardware", TRAIN_DEMO, "JAX_PLATFORMS=tpu", {"JAX_PLATFORMS": "tpu"}),
    Case("answers without hardware", INFER_DEMO, "JAX_PLATFORMS=cuda", {"JAX_PLATFORMS": "cuda"}),
)


def cases() -> Iterator[Case]:
    """All of them."""
    yield from CASES
