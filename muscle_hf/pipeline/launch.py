"""The command line of the recipe scripts, and how ``muscle-hf train`` starts them in several processes."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from muscle_hf.bundled import bundled
from muscle_hf.pipeline.config import RunSettings, load_settings
from muscle_hf.pipeline.recipes import find_recipe


def settings_of_command(description: str, *, choices: Sequence[str] = ()) -> Any:
    """The settings that the command line of a recipe script names.

    Args:
        description: Of the script.
        choices: What its first word may be, if it takes one.

    Returns:
        The settings; with ``choices`` also the chosen one.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if choices:
        parser.add_argument("which", choices=choices)
    add_config_arguments(parser)
    args, overrides = parser.parse_known_args()
    settings = resolved(args, overrides)
    from muscle_hf.pipeline.steps import hush

    hush()
    return (settings, args.which) if choices else settings


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that name a run's settings."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML with the settings, or a recipe's name")
    parser.add_argument("--smoke", action="store_true", help="try the settings out on tiny random models and few rows")


def resolved(args: argparse.Namespace, overrides: Sequence[str]) -> RunSettings:
    """The settings that :func:`add_config_arguments` and further words name."""
    settings = load_settings(find_recipe(args.config), overrides)
    if not args.smoke:
        return settings
    from muscle_hf.pipeline.smoke import smoke_settings

    return smoke_settings(settings)


def report(text: str) -> None:
    """Print on the main process only."""
    from accelerate import PartialState

    if PartialState().is_main_process:
        print(text)


def launch(arguments: Sequence[str], accelerate_config: Path | None) -> int:
    """Run the recipe script of a whole run under ``accelerate launch``.

    Args:
        arguments: Of the script.
        accelerate_config: Says how many processes, and how they share the work; by default one for each GPU.

    Returns:
        The exit code. Ctrl-C reaches the processes, which save a checkpoint each and end by themselves.
    """
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    command += ["--multi_gpu"] if accelerate_config is None else ["--config_file", str(accelerate_config)]
    command += [str(bundled("recipes") / "run.py"), *arguments]
    process = subprocess.Popen(command, env=os.environ.copy())
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            continue
