"""Command lines with mistakes of their own kind: flags that do not fit together, damaged files, absent hardware."""

import itertools
from collections.abc import Iterator

from tests.command_lines.cases import (
    CONVERT,
    CONVERT_DEMO,
    EVAL_DATA,
    EVAL_DEMO,
    INFER_DEMO,
    PIPELINE_DEMO,
    TRAIN,
    TRAIN_DATA,
    TRAIN_DEMO,
    Case,
)

_TRAIN_DATA = f"{TRAIN_DATA} --data_dir=data"
_EVAL_DATA = f"{EVAL_DATA} --data_dir=data"
_NO_PROMPT = "--gin.training_batches.DatasetConfig.soft_prompt_id=-1"
_RECIPE = f"{PIPELINE_DEMO} --gin.pipeline.Recipe"
_EIGHT_SHARDS = "--gin.training_batches.DatasetConfig.shards=8"
_SECOND_STAGE = TRAIN_DEMO.replace("prompt_tuning", "model_tuning")
_TO_PEFT = "convert --from=promot_t5x/demo_checkpoint --to=adapter --to_format=peft"

# fmt: off
# name, command line, a part of the sentence, environment
CASES = (
    # verbs and flags
    ("no such verb", "trian", "(did you mean 'train'?)"),
    ("an empty verb", "''", "has no verb ''"),
    ("a flag that no verb has", f"{TRAIN_DEMO} --gin_fil=x", "(did you mean '--gin_file'?)"),
    ("a flag of another verb", f"{TRAIN_DEMO} --limit=3", "unknown flag --limit"),
    ("an argument without a flag", f"{TRAIN_DEMO} out", "unexpected argument 'out'"),
    ("a flag without its value", f"{TRAIN_DEMO} --gin.TRAIN_STEPS", "--gin.TRAIN_STEPS has no value"),
    ("no gin file", "train", "the gin files never mention train.train"),
    ("another verb's gin file", EVAL_DEMO.replace("eval", "infer", 1), "never mention infer.infer"),
    ("a macro without a value", TRAIN, "pass --gin.INITIAL_CHECKPOINT_PATH=VALUE"),
    ("convert with a gin file", f"{CONVERT_DEMO} --gin_file=models/toy.gin", "--gin_file (models/toy.gin)"),
    ("convert with a macro", f"{CONVERT_DEMO} --gin.MODEL_DIR=x", "would change nothing"),
    ("convert as several processes", f"{CONVERT_DEMO} --multiprocess", "would change nothing"),
    ("report with a macro", "report --results=other.json --out=report --gin.MODEL_DIR=x", "would change nothing"),
    ("report as a dry run", "report --results=other.json --out=report --dry_run", "would change nothing"),
    ("compare with a macro", "compare a_folder a_folder --gin.MODEL_DIR=x", "would change nothing"),
    ("one evaluation to compare", "compare a_folder", "the following arguments are required: RUN_B"),
    ("three evaluations to compare", "compare a_folder a_folder a_folder", "unexpected argument 'a_folder'"),
    ("doctor with a gin file", "doctor --gin_file=models/toy.gin", "would change nothing"),
    ("results and scores", "report --results=other.json --scores=other.json --out=report", "not allowed with argument"),
    ("a report of nothing", "report --out=report", "--results --scores is required"),
    ("data without a dry run", f"{TRAIN_DEMO} --data", "add --dry_run"),
    ("an unused macro", f"{TRAIN_DEMO} --gin.LR=1", "nothing uses LR"),
    ("an unused parameter", f"{TRAIN_DEMO} --gin.optimizers.adam.b1=0.5", "nothing uses optimizers.adam"),
    ("a seed of a recipe's runs", f"{PIPELINE_DEMO} --gin.RANDOM_SEED=1", "set pipeline.Recipe.seeds"),
    ("half of the processes", f"{TRAIN_DEMO} --process_count=2", "need all of --coordinator_address"),
    ("no cluster", f"{TRAIN_DEMO} --multiprocess", "the cluster does not say which processes take part"),
    ("a completion for no shell", "--completion cmd", "one of bash"),
    # gin files
    ("deep brackets in a file", "train --gin_file=deep.gin", "deep.gin:1: gin syntax error: brackets"),
    ("deep brackets in a flag", f"{TRAIN_DEMO} --gin.A={'[' * 5000}", "brackets are nested too deeply"),
    ("no gin syntax", "train --gin_file=syntax.gin", "syntax.gin:1: gin syntax error"),
    ("a file that is not text", "train --gin_file=latin1.gin", "its bytes are not UTF-8 text"),
    ("an include that is missing", "train --gin_file=missing_include.gin", "include.gin:1: gin file 'absent.gin'"),
    ("a module that raises", "train --gin_file=raising.gin", "failed: ZeroDivisionError: division by zero"),
    ("a module that ends the program", "train --gin_file=ending.gin", "`import ending_module` failed: SystemExit"),
    ("a gin file that is a device", "train --gin_file=/dev/null", "is a folder or device, expected a file"),
    ("a search path", "train --gin_file=x.gin --gin_search_paths=absent", "was not found in"),
    # settings that do not fit together
    ("equal learning rates", f"{_RECIPE}.learning_rates='(1e-3,1.00000001e-3)'", "would share"),
    ("a method's file", f"{_RECIPE}.stage_files=\"{{'promot':('absent.gin',)}}\"", "'absent.gin'"),
    ("a prompt that no row has", f"{TRAIN_DEMO} {_NO_PROMPT}", "no row has a soft prompt"),
    ("batches and devices", f"{TRAIN_DEMO} --gin.NUM_PARTITIONS=2", "2"),
    ("an export over the run", f"{TRAIN_DEMO} --gin.train.train.export_dir=run", "which an export would delete"),
    ("an export over files", f"{TRAIN_DEMO} --gin.train.train.export_dir=export", "export"),
    ("several starts of a prompt", f"{TRAIN} --gin.INITIAL_CHECKPOINT_PATH=\"('a_file','a_file')\"", ""),
    ("a prompt and no model", f"{TRAIN} --gin.INITIAL_CHECKPOINT_PATH=None", "but INITIAL_CHECKPOINT_PATH is None"),
    ("no prompt to start from", _SECOND_STAGE, "takes its soft prompt from"),
    ("another vocabulary", f"{TRAIN_DEMO} --gin.architecture.T5Config.vocab_size=1000", "does not match the network" ),
    ("exemplars of tasks without", f"{EVAL_DEMO} --gin.SHOTS='(1,)'", "takes no exemplars"),
    ("ranking without choices", f"{_EVAL_DATA} --gin.ANSWERING=rank", "choices"),
    ("a prompt that is not there", f"{_EVAL_DATA} --gin.PROMPTS=\"('attached',)\"", "soft prompt"),
    ("all checkpoints of one", f"{_EVAL_DATA} --gin.CHECKPOINT_MODE=all", "is a single checkpoint"),
    ("infer's own inputs", f"{INFER_DEMO} --gin.INPUTS=answers/predictions.jsonl", "which the output would replace" ),
    ("infer's prompt", f"{INFER_DEMO} --gin.PROMPT_ID=0", "soft prompt"),
    ("a recipe without a start", f"{PIPELINE_DEMO} --gin.pipeline.Recipe.methods=\"('promot',)\"", "prompt_tuning"),
    ("no prompt to convert", _TO_PEFT, "holds no soft prompt"),
    # data
    ("a split without a column", f"{TRAIN_DATA} --data_dir=without_target", "validation"),
    ("a split without rows", f"{TRAIN_DATA} --data_dir=without_rows", "empty"),
    ("fewer rows than shards", f"{_TRAIN_DATA} --gin.BATCH_SIZE=8 {_EIGHT_SHARDS}", "shards"),
    ("rows with predictions", f"{INFER_DEMO} --gin.INPUTS=with_predictions.jsonl", "has a column `prediction`"),
    ("an input that is no text", f"{INFER_DEMO} --gin.INPUTS=not_text.jsonl", "not a JSON object with a text `input`" ),
    ("deep JSON in inputs", f"{INFER_DEMO} --gin.INPUTS=deep.jsonl", "levels of nesting"),
    ("NaN in inputs", f"{INFER_DEMO} --gin.INPUTS=nan.jsonl", "NaN is not a number in JSON"),
    # checkpoints and results
    ("deep JSON in config.json", f"{CONVERT} --from=hf", "levels of nesting"),
    ("half a config.json", f"{CONVERT} --from=hf_half", "config.json is damaged"),
    ("a prompt of another width", f"{CONVERT_DEMO} --soft_prompt=prompt.npy", "is 16 wide"),
    ("a prompt that is not finite", f"{CONVERT_DEMO} --soft_prompt=nan.npy", "finite"),
    ("a folder that is in use", f"{CONVERT_DEMO} --to=a_folder", "exists and is not empty"),
    ("a prompt without .npy", "convert --from=prompt.npy --to_format=npy --to=out", "give a path that ends in .npy"),
    ("a prompt over a file", "convert --from=prompt.npy --to_format=npy --to=a_file", "exists"),
    ("deep JSON in results", "report --results=deep.json --out=report", "deep.json"),
    ("half of the results", "report --results=half.json --out=report", "half.json"),
    ("a list of results", "report --results=list.json --out=report", "list.json"),
    ("other results", "report --results=other.json --out=report", "other.json"),
    ("deep JSON in scores", "report --scores=deep.json --out=report", "deep.json"),
    ("a folder without scores to compare", "compare a_folder a_folder", "a_folder/scores.json does not exist"),
    ("other scores to compare", "compare other.json other.json", "other.json"),
    ("other scores", "report --scores=other.json --out=report", "other.json"),
    # hardware
    ("hardware that is absent", "doctor", "JAX_PLATFORMS=cuda", {"JAX_PLATFORMS": "cuda"}),
    ("hardware that is misspelt", "doctor", "JAX_PLATFORMS=cpuu", {"JAX_PLATFORMS": "cpuu"}),
    ("training without hardware", TRAIN_DEMO, "JAX_PLATFORMS=tpu", {"JAX_PLATFORMS": "tpu"}),
    ("answers without hardware", INFER_DEMO, "JAX_PLATFORMS=cuda", {"JAX_PLATFORMS": "cuda"}),
)
# fmt: on


def cases() -> Iterator[Case]:
    """All of them."""
    yield from itertools.starmap(Case, CASES)
