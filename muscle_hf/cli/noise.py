"""``muscle-hf noise``: how many answers flip when the same model is run again."""

from __future__ import annotations

import argparse

from muscle_hf.cli.compare import add_flip_arguments, add_reading_arguments, reading_options
from muscle_hf.files import check_outputs, write_outputs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The runs of one model, and how they are read."""
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", help="predictions of the same model: other batch size, dtype, machine, ..."
    )
    add_reading_arguments(parser)
    add_flip_arguments(parser)
    parser.add_argument("--json", metavar="FILE", help="file for muscle-hf compare --noise (- for the screen)")


def run(args: argparse.Namespace) -> int:
    """Measures the noise floor, prints it and writes it."""
    from muscle_hf.compare import measure_noise, read_source
    from muscle_hf.compare.noise import noise_json

    check_outputs([args.json], args.runs)
    options = reading_options(args)
    runs = [read_source(path, options) for path in args.runs]
    floors = measure_noise(runs, level=args.level, epsilon=args.epsilon, missing=args.missing)
    if not write_outputs([(args.json, lambda: noise_json(floors) + "\n")]):
        from rich.console import Console

        from muscle_hf.report import terminal

        Console().print(terminal.noise_table(floors))
    return 0
