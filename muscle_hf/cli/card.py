"""``muscle-hf card``: complete and render the card of a saved compatibility adapter."""

from __future__ import annotations

import argparse

# Option -> (field of the card's state, help).
_TEXTS = {
    "--title": ("title", "headline"),
    "--summary": ("summary", "one sentence on what it is for"),
    "--task": ("task", "short name of the task"),
    "--license": ("license", "your choice, instead of what the bases leave"),
    "--license-old": ("license_old", "licence of the old base, where it is not found"),
    "--license-new": ("license_new", "licence of the new base, where it is not found"),
    "--base-note": ("base_note", "where to get a base that is not on the Hub"),
    "--notes": ("notes", "a paragraph of your own under the limits"),
    "--made-by": ("made_by", "the command that made it"),
}
_LISTS = {
    "--language": ("language", "code such as en; repeat for more"),
    "--dataset": ("datasets", "Hub id of a data set trained on; repeat for more"),
    "--tag": ("tags", "further tag; repeat for more"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What only people know of the adapter, and the comparison with its flips."""
    parser.add_argument("folder", help="output_dir of a MuscleTrainer")
    for option, (name, text) in _TEXTS.items():
        parser.add_argument(option, dest=name, metavar="TEXT", help=text)
    for option, (name, text) in _LISTS.items():
        parser.add_argument(option, dest=name, metavar="NAME", action="append", help=text)
    parser.add_argument("--comparison", metavar="FILE", help="flips: what `muscle-hf compare ... --json` wrote")
    parser.add_argument("--label", help="which compatibility model of the comparison is this adapter")
    parser.add_argument("--examples", type=int, default=0, metavar="N", help="show N flips with texts of your data")
    parser.add_argument(
        "--export",
        metavar="FOLDER",
        help="also write the card and the files it is made from there, without weights and tokenizer",
    )


def run(args: argparse.Namespace) -> int:
    """Change the card's state, render it, and print its path."""
    from muscle_hf.hub.body import Card
    from muscle_hf.hub.completing import complete_card, export_card
    from muscle_hf.report.text import plain

    changes = {name: getattr(args, name) for name, _ in (*_TEXTS.values(), *_LISTS.values())}
    changes = {name: value for name, value in changes.items() if value is not None}
    print(complete_card(args.folder, changes, comparison=args.comparison, label=args.label, examples=args.examples))
    if args.comparison and (unverified := Card.read(args.folder).unverified):
        print(
            "note: not verified: the comparison does not say, or not so that it can be compared, what gave the "
            f"answers of {', '.join(map(plain, unverified))} (predictions of `muscle-hf evaluate` do)"
        )
    if args.export:
        print(export_card(args.folder, args.export))
    return 0
