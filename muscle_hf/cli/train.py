"""``muscle-hf train``: a run as a YAML file says."""

from __future__ import annotations

import argparse

# What the parser does not know are settings of the run.
TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML with the settings of the run")
    parser.epilog = (
        "Every setting of the file can be given on the command line too: --data.train.limit 500 --lora.r 16; those of "
        "'training' (any field of MuscleConfig) need no prefix: --learning_rate 1e-4 --mask old_right."
    )


def run(args: argparse.Namespace) -> int:
    """Do the run and print its table."""
    from muscle_hf.pipeline.config import load_settings

    settings = load_settings(args.config, args.overrides)
    from rich.console import Console

    from muscle_hf.pipeline import table
    from muscle_hf.pipeline.run import run as run_settings
    from muscle_hf.pipeline.steps import hush

    hush()
    console = Console(highlight=False, soft_wrap=True)
    result = run_settings(settings, console.print)
    console.print(table.to_rich(result))
    console.print(
        f"Everything is in {settings.output_dir}: the compatibility adapter in {settings.output_dir}/muscle."
    )
    return 0
