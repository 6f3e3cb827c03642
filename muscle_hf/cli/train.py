"""``muscle-hf train``: a run as a YAML file says."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from muscle_hf.pipeline.config import RunSettings

# What the parser does not know are settings of the run.
TAKES_OVERRIDES = True
INTERRUPTED = 130


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from muscle_hf.pipeline.launch import add_config_arguments

    add_config_arguments(parser)
    parser.add_argument(
        "--accelerate-config",
        metavar="NAME",
        help="an accelerate configuration, or the name of one in recipes/accelerate: ddp, fsdp2, zero3, ...; starts "
        "recipes/run.py by `accelerate launch`",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print what would be done, and what it would take, and stop"
    )
    parser.epilog = (
        "Every setting of the file can be given on the command line too: --data.train.limit 500 --lora.r 16; those of "
        "'training' (any field of MuscleConfig) need no prefix: --learning_rate 1e-4 --mask old_right."
    )


def run(args: argparse.Namespace) -> int:
    """Do the run and print its table."""
    from muscle_hf.pipeline.launch import launch, resolved
    from muscle_hf.pipeline.recipes import accelerate_config, find_recipe, is_distributed

    config = None if args.accelerate_config is None else accelerate_config(args.accelerate_config)
    settings = resolved(args, args.overrides)
    if args.dry_run:
        return _plan(settings, config)
    if (config is not None and is_distributed(config)) or (config is None and _several_gpus()):
        smoke = ["--smoke"] if args.smoke else []
        return launch(["--config", str(find_recipe(args.config)), *smoke, *args.overrides], config)
    from rich.console import Console

    from muscle_hf.pipeline import table
    from muscle_hf.pipeline.interrupt import Interrupted
    from muscle_hf.pipeline.run import run as run_settings
    from muscle_hf.pipeline.steps import hush

    hush()
    console = Console(highlight=False, soft_wrap=True)
    try:
        result = run_settings(settings, console.print)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        return INTERRUPTED
    except KeyboardInterrupt:
        print("Stopped. The same command goes on after the last step that was finished.", file=sys.stderr)
        return INTERRUPTED
    if result is not None:
        console.print(table.to_rich(result))
    adapter = f": the compatibility adapter in {settings.output_dir}/muscle" if settings.compatibility else ""
    console.print(f"Everything is in {settings.output_dir}{adapter}.")
    return 0


def _several_gpus() -> bool:
    if "LOCAL_RANK" in os.environ:
        return False  # launched already
    import torch

    return torch.cuda.device_count() > 1


def _plan(settings: RunSettings, config: Path | None) -> int:
    from muscle_hf.pipeline.plan import Spread, describe
    from muscle_hf.pipeline.reading import read_yaml
    from muscle_hf.pipeline.run import make_run
    from muscle_hf.pipeline.steps import hush

    hush()
    print(describe(make_run(settings), Spread() if config is None else Spread.of(read_yaml(config))))
    return 0
