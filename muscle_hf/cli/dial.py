"""``muscle-hf dial``: measure the path between v2's adapter and the compatibility adapter, choose a point, save it."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from muscle_hf.cli.compare import add_flip_arguments
from muscle_hf.cli.evaluate import add_item_arguments, add_machine_arguments, asked, loading_arguments
from muscle_hf.errors import MuscleError
from muscle_hf.files import write_json, write_text

if TYPE_CHECKING:
    from muscle_hf.dial import Dial, DialPath, DialPoint
    from muscle_hf.evaluation import Item, Prediction, Task

_RULES = ("least_nfr_at_no_loss", "least_nfr", "most_accurate")
_EPILOG = """\
exit code: 0 a point was chosen and saved; 1 no point qualifies, and none is saved; 2 bad use or bad input.
Choose on validation rows: the chosen point's figures on them are too good. Measure it again on rows that took no part.
"""
# The answers until all are there: a command that was stopped goes on from them.
_ASKED = ".asked"
_PARTS = ("adapter", "predictions", "path.json", "path.csv", "path.html")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Both ends of the path, the rows to choose on, and the rule that chooses."""
    parser.epilog = _EPILOG
    parser.add_argument("--old", required=True, help="the old model: predictions (.jsonl), an adapter or a model")
    parser.add_argument("--new", required=True, help="folder or Hub id of v2's adapter, or of a whole v2 (t = 0)")
    parser.add_argument("--compat", required=True, help="folder or Hub id of the compatibility adapter (t = 1)")
    parser.add_argument("--base-model", help="folder or Hub id of the new base, if not where the adapters record it")
    parser.add_argument("--revision", help="branch, tag or commit of --compat on the Hub")
    parser.add_argument("--new-revision", help="the same for --new")
    parser.add_argument("--output", required=True, type=Path, help="folder for the adapter, the path and its picture")
    parser.add_argument("--overwrite", action="store_true", help="replace what an earlier dial left in the folder")
    dial = parser.add_argument_group("the dial")
    dial.add_argument(
        "--points",
        type=float,
        nargs="+",
        default=[0, 0.25, 0.5, 0.75, 1],
        metavar="T",
        help="0: v2's adapter, 1: the compatibility adapter; both are always measured (0 0.25 0.5 0.75 1)",
    )
    dial.add_argument("--extrapolate", action="store_true", help="allow points beyond the two adapters")
    choice = dial.add_mutually_exclusive_group()
    choice.add_argument("--rule", default=_RULES[0], choices=_RULES, help="which point to save (default: %(default)s)")
    choice.add_argument("--choose", type=float, metavar="T", help="save this point, whatever its figures")
    dial.add_argument(
        "--max-loss",
        type=float,
        default=0.0,
        help="least_nfr_at_no_loss: how far accuracy (mean score) may lie below v2's (default: %(default)s)",
    )
    add_flip_arguments(dial)
    add_item_arguments(parser, "validation")
    add_machine_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Measure the path, draw it, choose, and save the chosen point."""
    from rich.console import Console
    from rich.text import Text

    from muscle_hf.compare import AnalysisOptions
    from muscle_hf.dial import Dial, check_points, choose, report, walk
    from muscle_hf.dial.dial import find_ends
    from muscle_hf.dial.path import check_rule
    from muscle_hf.pipeline.steps import free_memory

    console = Console()
    points = [*args.points, *([] if args.choose is None else [args.choose])]
    check_points(points, extrapolate=args.extrapolate)
    check_rule(args.rule, args.max_loss)
    AnalysisOptions(level=args.level, epsilon=args.epsilon)  # refuses what means nothing, before any model is loaded
    _make_room(args.output, args.overwrite)
    task, items = asked(args)
    loading = loading_arguments(args)
    revisions = {"new_revision": args.new_revision, "compat_revision": args.revision}
    find_ends(args.new, args.compat, **revisions)
    old = _old_predictions(args, task, items, loading)
    free_memory()  # one base in memory, not two
    dial = Dial.load(
        args.new,
        args.compat,
        task,
        base_model=args.base_model,
        **revisions,
        **loading,
    )
    if args.choose is not None:
        dial.point(args.choose)  # which can be saved, before anything is asked
    path = walk(  # pyright: ignore[reportCallIssue] - not the module of that name
        dial,
        task,
        items,
        old,
        points,
        extrapolate=args.extrapolate,
        batch_size=args.batch_size,
        chat=args.chat,
        epsilon=args.epsilon,
        level=args.level,
        progress=not args.quiet,
        keep=args.output / _ASKED,
    )
    rule = "choose" if args.choose is not None else args.rule
    chosen = path.point(args.choose) if args.choose is not None else choose(path, rule, max_loss=args.max_loss)
    choice = {"rule": rule, "max_loss": args.max_loss, "split": args.split}
    _write(args.output, path, chosen, choice, old)
    shutil.rmtree(args.output / _ASKED)
    console.print(report.table(path, chosen))
    console.print(Text(report.verdict(path, chosen, rule, args.max_loss)))
    console.print(Text(report.caution(args.split), style="yellow"))
    if chosen is None:
        return 1
    folder = _save(dial, args.output / "adapter", chosen, path, choice, items)
    console.print(Text(f"{folder}: the adapter. {args.output / 'path.html'}: the picture."))
    return 0


def _make_room(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise MuscleError(f"{output} is a file; name a folder as --output")
    present = [output / name for name in _PARTS if (output / name).exists()]
    if present and not overwrite:
        raise MuscleError(f"{present[0]} exists; choose another --output, or pass --overwrite")


def _old_predictions(
    args: argparse.Namespace, task: Task, items: list[Item], loading: dict[str, Any]
) -> list[Prediction]:
    from muscle_hf.evaluation.engine import evaluate_task
    from muscle_hf.evaluation.loading import load_described
    from muscle_hf.evaluation.predictions import predictions_of, read_predictions, signed

    if args.old.endswith(".jsonl"):
        return predictions_of(items, read_predictions(args.old), task.name, "old")
    model, tokenizer, describe = load_described(args.old, task, **loading)
    answers = evaluate_task(
        model, tokenizer, task, items, batch_size=args.batch_size, progress=not args.quiet, chat=args.chat
    )
    return signed(answers, describe())


def _write(
    output: Path, path: DialPath, chosen: DialPoint | None, choice: dict[str, Any], old: list[Prediction]
) -> None:
    from muscle_hf.dial import report
    from muscle_hf.dial.path import label
    from muscle_hf.evaluation.predictions import write_predictions
    from muscle_hf.training.checkpoints import staged

    for name in _PARTS:  # what an earlier run chose or measured must not stand beside this one's
        part = output / name
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    result = {**path.to_dict(), "choice": {**choice, "t": None if chosen is None else chosen.t}}
    with staged(output) as stage:
        write_json(stage / "path.json", result, indent=1)
        write_text(stage / "path.csv", path.to_csv())
        page = report.page(path, chosen, choice["rule"], choice["max_loss"], choice["split"])
        write_text(stage / "path.html", page)
        write_predictions(stage / "predictions" / "old.jsonl", old)
        for t, answers in path.predictions.items():
            write_predictions(stage / "predictions" / f"{label(t)}.jsonl", answers)


def _save(
    dial: Dial, folder: Path, chosen: DialPoint, path: DialPath, choice: dict[str, Any], items: list[Item]
) -> Path:
    from muscle_hf.compare.document import plain
    from muscle_hf.dial.dial import identity_of
    from muscle_hf.hub.card import write_card
    from muscle_hf.record import PROVENANCE_FILE

    record = {
        **choice,
        "task": path.task,
        "items": path.items,
        "items_sha256": identity_of(items),
        "metric": path.metric,
        "points": [{name: plain(getattr(p, name)) for name in ("t", "accuracy", "nfr")} for p in path.points],
    }
    dial.save(folder, chosen.t, choice=record)
    if (folder / PROVENANCE_FILE).is_file():
        write_card(folder)
    return folder
