"""``muscle-hf reproduce``: a row of the paper's tables, measured against the published figures."""

from __future__ import annotations

import argparse

TAKES_OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("row", help="a recipe: paper/phi_1_to_1.5/piqa; `muscle-hf recipes paper` lists them")
    parser.add_argument("--smoke", action="store_true", help="try it out on tiny random models and few rows")
    parser.epilog = "Settings can be given as for `muscle-hf train`."


def run(args: argparse.Namespace) -> int:
    """Do all steps of the row, and write measured against published figures."""
    from pathlib import Path

    from muscle_hf.errors import MuscleError
    from muscle_hf.pipeline import recipes
    from muscle_hf.pipeline.launch import report, resolved
    from muscle_hf.pipeline.run import load_result_predictions
    from muscle_hf.pipeline.run import run as run_settings
    from muscle_hf.pipeline.steps import hush

    args.config = args.row
    settings = resolved(args, args.overrides)
    if settings.task is None:
        raise MuscleError(f"{args.row} has no task, so there is nothing to compare")
    hush()
    result = run_settings(settings)
    folder = Path(settings.output_dir)
    lines = recipes.compare_with_published(settings.published, result, load_result_predictions(folder))
    table = recipes.reproduction_table(lines, settings, result)
    report(f"{table}\n{recipes.write_reproduction(folder, lines, table)}")
    return 0
