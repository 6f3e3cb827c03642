"""``muscle-hf train``: a run as a YAML file says."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from muscle_hf.pipeline.config import RunSettings
    from muscle_hf.pipeline.launch import Processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run's file, and how many processes do it."""
    from muscle_hf.pipeline.launch import add_config_arguments, add_launch_arguments

    add_config_arguments(parser)
    add_launch_arguments(parser)
    parser.add_argument("--dry-run", action="store_true", help="print what would be done and what it takes, and stop")
    parser.epilog = (
        "Every setting of the file can be given on the command line too: --data.train.limit 500 --lora.r 16; those of "
        "'training' (any field of MuscleConfig) need no prefix: --learning_rate 1e-4 --mask old_right."
    )


def run(args: argparse.Namespace) -> int:
    """Do the run and print its table."""
    from muscle_hf.pipeline.launch import Processes, resolved

    settings = resolved(args, args.overrides)
    processes = Processes.of(args, settings)
    return _plan(settings, processes) if args.dry_run else do_run(args, settings, processes)


def do_run(args: argparse.Namespace, settings: RunSettings, processes: Processes) -> int:
    """Do a run, in this process or in those that accelerate launches; gives the exit code."""
    from muscle_hf.pipeline.launch import interruptible
    from muscle_hf.pipeline.recipes import find_recipe

    if not processes.launched:
        return interruptible(lambda: _here(settings))
    smoke = ["--smoke"] if args.smoke else []
    return processes.launch(["--config", str(find_recipe(args.config)), *smoke, *args.overrides])


def _here(settings: RunSettings) -> None:
    from rich.console import Console

    from muscle_hf.pipeline import table
    from muscle_hf.pipeline.run import run as run_settings
    from muscle_hf.report.terminal import print_warnings

    console = Console(highlight=False, soft_wrap=True)
    result = run_settings(settings, console.print)
    if result is not None:
        console.print(table.to_rich(result))
        print_warnings(result.warnings, console)
    adapter = f": the compatibility adapter in {settings.output_dir}/muscle" if settings.compatibility else ""
    console.print(f"Everything is in {settings.output_dir}{adapter}.")


def _plan(settings: RunSettings, processes: Processes) -> int:
    from muscle_hf.pipeline.plan import Spread, describe
    from muscle_hf.pipeline.reading import read_yaml
    from muscle_hf.pipeline.run import Run

    content = {} if processes.config is None else read_yaml(processes.config)
    print(describe(Run.of(settings), Spread.of({**content, "num_processes": processes.number})))
    return 0
