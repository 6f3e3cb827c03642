"""``muscle-hf targets``: what rows without labels had best follow, from the predictions of both models."""

from __future__ import annotations

import argparse
import json

from muscle_hf.cli.compare import add_reading_arguments, reading_options
from muscle_hf.files import check_outputs, write_outputs

_EPILOG = """\
Ask both models on rows with labels that neither task adapter was trained on (muscle-hf evaluate), and give their
predictions here.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The predictions of both models, and the shares to try."""
    parser.epilog = _EPILOG
    parser.add_argument("old", metavar="OLD", help="predictions of the old model, with log-likelihoods of choices")
    parser.add_argument("new", metavar="NEW", help="predictions of the new model on the same rows")
    add_reading_arguments(parser)
    parser.add_argument("--shares", type=float, nargs="+", metavar="S", help="of the old model, to try (0.3 to 0.8)")
    parser.add_argument("--level", type=float, default=0.95, help="confidence level (0.95)")
    parser.add_argument("--json", metavar="FILE", help="all figures as JSON (- for the screen)")
    parser.add_argument("--html", metavar="FILE", help="a page with the picture")


def run(args: argparse.Namespace) -> int:
    """Tries the targets, prints them and says which one to train with."""
    from rich.console import Console
    from rich.text import Text

    from muscle_hf.compare.targets import SHARES, measure_targets
    from muscle_hf.report import targets as report
    from muscle_hf.report.terminal import print_warnings

    check_outputs((args.json, args.html), (args.old, args.new))
    found = measure_targets(
        args.old,
        args.new,
        shares=args.shares or SHARES,
        level=args.level,
        read=reading_options(args),
        missing=args.missing,
    )
    figures = [targets.to_dict() for targets in found]
    outputs = ((args.json, lambda: json.dumps(figures, indent=1) + "\n"), (args.html, lambda: report.page(found)))
    if not write_outputs(outputs):
        console = Console()
        for targets in found:
            console.print(report.terminal_table(targets))
            console.print(Text(report.why(targets), "bold"))
            console.print(Text(report.advice(targets)))
        print_warnings(report.warnings(found), console)
    return 0
