"""The plan command: compiles a recipe for a TPU slice without having one, and prints memory, FLOPs and traffic."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from etils import epy

from promot_t5x.configuration import flags, gin_checks, gin_files, program
from promot_t5x.runtime import files

with epy.lazy_imports():  # --help needs no jax
    from promot_t5x.partitioning import partitioner
    from promot_t5x.planning import chips, programs, search, tables
    from promot_t5x.recipes import gin_runs, running
    from promot_t5x.recipes import recipe as recipes
    from promot_t5x.training import stage_run, stages

_FOLDERS = ("WORK_DIR", "MODEL_DIR", "INITIAL_CHECKPOINT_PATH")


def configured(invocation: flags.Invocation, devices: tuple[Any, ...]) -> search.Planned:
    """The programs to plan: those of a recipe's training runs, or of the single stage that the gin files describe.

    Of a recipe's runs, those with `Method.planned` are planned, or all runs that train if there are none. Runs of the
    same stage share a program.

    Args:
      invocation: the parsed command line, with a recipe that binds pipeline.run, or with files as for `train`.
      devices: the devices of the slice.

    Raises:
      ConfigError: neither is configured, or a flag changes nothing.
    """
    # A plan does not use these folders, so they need no value; a value on the command line still overrides this one.
    unread = tuple(f"{name} = 'not read'" for name in _FOLDERS)
    invocation = dataclasses.replace(invocation, gin_bindings=(*unread, *invocation.gin_bindings))
    program.configure(invocation, has_runs=True)
    if not gin_files.is_configured(running.run_recipe):
        program.configure(invocation)  # which refuses what a recipe's runs could use
        _, unused = gin_checks.flags_by_use("train.train")
        gin_checks.refuse({name: sentence for name, sentence in unused.items() if name not in _FOLDERS})
        bound = gin_files.bound_arguments(stage_run.run_stage, "train.train")
        training, validation = _training(bound, devices), bound.get("validation")
        return search.Planned(
            {stages.stage(training.stage).name: training}, _answering(training, validation and validation.config)
        )
    # A recipe that names no evaluation is planned without one.
    bound = gin_files.bound_arguments(running.run_recipe, "pipeline.run", given=("train", "evaluation_config"))
    recipe, by_stage = bound["recipe"], {}
    trained = [run for run in recipes.planned_runs(recipe) if run.trains]
    if not trained:
        raise ValueError("The recipe has no run to plan: no method of pipeline.Recipe.methods trains anything.")
    runs = gin_runs.GinRuns(invocation.gin_files, invocation.gin_bindings, invocation.gin_search_paths)
    runs.check(trained)
    for run in [run for run in trained if run.planned] or trained:
        runs.configure(run, "not read", ["not read"] * len(run.starts_from))
        training = _training(gin_files.bound_arguments(stage_run.run_stage, "train.train"), devices)
        by_stage.setdefault(stages.stage(training.stage).name, training)
    return search.Planned(by_stage, _answering(next(iter(by_stage.values())), bound.get("evaluation_config")))


def _training(bound: dict[str, Any], devices: tuple[Any, ...]) -> programs.Training:
    dataset = bound["dataset"]
    return programs.Training(
        bound["model"],
        bound["stage"],
        bound["optimizer"],
        dataset.task_feature_lengths,
        dataset.batch_size,
        dataclasses.replace(bound.get("partitioner", partitioner.Partitioner()), devices=devices),
        bound["loop"].num_microbatches,
        bound.get("frozen_weights_dtype"),
    )


def _answering(training: programs.Training, config: Any) -> programs.Answering | None:
    if config is None:
        return None
    return programs.Answering(training.model, config.task_feature_lengths, config.batch_size, training.partitioner)


def parser() -> argparse.ArgumentParser:
    """The command's flags."""
    result = flags.flag_parser(
        "promot-t5x plan",
        __doc__,
        {
            "NUM_PARTITIONS": "devices that share the model",
            "BATCH_SIZE": "rows of a training batch",
        },
        (
            "promot-t5x plan --gin_file=recipes/promot_rte.gin --topology=v4:4x4x4",
            "promot-t5x plan --gin_file=models/mt5_xl.gin --gin_file=tasks/rte.gin "
            "--gin_file=stages/prompt_tuning.gin --topology=v5e:4x8 --search",
        ),
    )
    result.add_argument("--topology", required=True, help="the slice: v4:4x4x4, v5e:4x8, v5p:4x4x4, v6e:4x8, v3:8x8 …")
    result.add_argument("--slices", type=int, default=1, help="number of such slices, data parallel (default: 1)")
    result.add_argument("--programs", metavar="A,B", default="", help="compile only these: prompt_tuning, scoring …")
    result.add_argument("--search", action="store_true", help="also try all presets and meshes and rank them")
    result.add_argument("--json", metavar="FILE", help="also write the plan as JSON")
    return result


def parse(argv: Sequence[str]) -> flags.Invocation:
    """Parses the command line; the options of `plan` are in `extra`."""
    return flags.parse_flags(argv, parser())


def main(argv: Sequence[str]) -> None:
    """Plans what the gin files and flags describe."""
    invocation = parse(argv)
    if invocation.extra["json"] is not None:
        files.writable_file(invocation.extra["json"], "--json")
    topology = chips.topology(invocation.extra["topology"], invocation.extra["slices"])
    planned = configured(invocation, topology.devices())
    if invocation.dry_run:
        return
    only = [name for name in invocation.extra["programs"].split(",") if name]
    compiled = search.plan_programs(planned, topology, only)
    print(tables.text(compiled))
    written = tables.as_json(compiled)
    if invocation.extra["search"]:
        written["search"] = {}
        for stage, training in ((s, t) for s, t in planned.stages.items() if s in (only or planned.stages)):
            ranked = search.search(training, topology)
            print(f"\n{stage} on {topology}, fastest bound first\n{tables.comparison(ranked)}", flush=True)
            written["search"][stage] = [tables.candidate_json(*pair) for pair in ranked]
    if invocation.extra["json"] is not None:
        files.write_json(files.absolute(invocation.extra["json"]), written)


if __name__ == "__main__":
    sys.exit(program.run_main(main))
