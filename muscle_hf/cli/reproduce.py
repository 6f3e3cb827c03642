"""``muscle-hf reproduce``: a row of the paper's tables, measured against the published figures."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The row, and how many processes do it."""
    from muscle_hf.pipeline.launch import add_launch_arguments, add_run_arguments

    parser.add_argument("row", help="a recipe: paper/phi_1_to_1.5/piqa; `muscle-hf recipes paper` lists them")
    add_run_arguments(parser)
    add_launch_arguments(parser)
    parser.epilog = "Settings can be given as for `muscle-hf train`."


def run(args: argparse.Namespace) -> int:
    """Do all steps of the row, and write measured against published figures."""
    from pathlib import Path

    from muscle_hf.cli.train import do_run
    from muscle_hf.errors import MuscleError
    from muscle_hf.pipeline import recipes
    from muscle_hf.pipeline.launch import Processes, resolved
    from muscle_hf.pipeline.table import Result, load_result_predictions

    args.config = args.row
    settings = resolved(args, args.overrides)
    if settings.task is None:
        raise MuscleError(f"{args.row} has no task, so there is nothing to compare")
    code = do_run(args, settings, Processes.of(args, settings))
    if code:
        return code
    folder = Path(settings.output_dir)
    predictions = load_result_predictions(folder)
    result = Result.of(predictions)
    figures = recipes.compare_with_published(settings.published, result, predictions)
    table = recipes.reproduction_table(figures, settings, result)
    print(f"{table}\n{recipes.write_reproduction(folder, figures, table)}")
    return 0
