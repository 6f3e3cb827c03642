"""``muscle-hf compare``: what an update breaks and mends, from the predictions of both models; and the gate."""

from __future__ import annotations

import argparse
import gc
import importlib
import re
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from muscle_hf.errors import MuscleError
from muscle_hf.files import check_outputs, write_outputs

if TYPE_CHECKING:
    from muscle_hf.compare import Budget, Document, ReadOptions

_EPILOG = """\
exit code: 0 done, or the gate passes; 1 the gate fails; 3 the gate has too little data; 2 bad use or bad input.
Limits are fractions (0.02 or 2%), for every task, for one (TASK=0.02) or for the mean of all (total=0.02), held
against one-sided confidence bounds. For tasks with scores, --max-regression and --min-accuracy-gain are about the mean
score, in the unit of the scores.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose answers are compared and how, the gate's limits, and where the result goes."""
    parser.epilog = _EPILOG
    parser.add_argument("old", metavar="OLD", nargs="?", help="predictions of the old model: a file or folder of logs")
    parser.add_argument("new", metavar="NEW", nargs="?", help="predictions of the new model")
    parser.add_argument("compat", metavar="COMPAT", nargs="*", default=[], help="predictions of compatibility models")
    add_reading_arguments(parser)
    parser.add_argument("--labels", metavar="A,B,...", help="short names of the models (old,new,compat)")
    parser.add_argument("--ignore-prompts", action="store_true", help="compare though prompts of an item differ")
    how = parser.add_argument_group("analysis")
    add_flip_arguments(how)
    how.add_argument("--slices", metavar="COLUMN,...", help="columns to slice by (those that look like categories)")
    how.add_argument("--no-slices", action="store_true", help="no slices")
    how.add_argument("--cluster", metavar="COLUMN", help="column that names the source of items that belong together")
    how.add_argument(
        "--repeats",
        metavar="HOW",
        default="mean",
        help="what counts where items were answered several times: mean (the rate), majority, or pass@K (mean)",
    )
    how.add_argument("--max-flips", type=int, default=20_000, help="the most flips listed for each task (20000)")
    _add_gate_arguments(parser)
    out = parser.add_argument_group("output, FILE or - for the screen in place of the table")
    for name, text in _OUTPUTS.items():
        out.add_argument(f"--{name}", metavar="FILE", help=text)
    out.add_argument("--full", action="store_true", help="everything in the terminal, in place of one screen")
    out.add_argument("--quiet", action="store_true", help="no table in the terminal")


def add_flip_arguments(parser: argparse._ActionsContainer) -> None:
    """What is a flip and how sure its rate is, shared with ``muscle-hf noise`` and ``dial``."""
    parser.add_argument("--level", type=float, default=0.95, help="confidence level (0.95)")
    parser.add_argument("--epsilon", type=float, default=0.0, help="score changes up to this size are no flips (0)")


_OUTPUTS = {
    "json": "the whole result as data",
    "markdown": "for a comment on a pull request",
    "junit": "for the test view of a CI system",
    "html": "a report in one file",
}


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments about reading logs, shared with ``muscle-hf noise``."""
    reading = parser.add_argument_group("reading")
    for name, text in (("--task", "only this task, or those of a pattern (mmlu_*)"), ("--skip-task", "not this task")):
        reading.add_argument(name, action="append", default=[], metavar="NAME", help=f"{text}; repeatable")
    reading.add_argument(
        "--metric", help="metric to compare, where a log has several, or several A,B (exact_match, acc, the first)"
    )
    reading.add_argument("--filter", help="lm-eval filter to compare (each is a table of its own)")
    reading.add_argument(
        "--columns",
        metavar="ROLE=NAME,...",
        default="",
        help="columns, or JMESPath to nested fields: id (# numbers, a+b joins), prediction, target, correct (also "
        "score>=7), score, task, prompt, hash, choices, error, model; new:prediction=NAME is of one model alone",
    )
    reading.add_argument("--rows", metavar="PATH", help="JMESPath to the rows of a JSON document, such as 'results[]'")
    reading.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="only rows with this value (new:NAME=VALUE: of one model); repeatable",
    )
    reading.add_argument("--right", metavar="WORD,...", default="", help="words of the correct column that mean right")
    reading.add_argument(
        "--missing",
        choices=["error", "wrong", "drop"],
        default="error",
        help="items without an answer or a score, or that a side lacks: refuse, count as wrong, leave out (error)",
    )
    reading.add_argument("--allow-partial", dest="missing", action="store_const", const="drop", help="--missing drop")
    direction = reading.add_mutually_exclusive_group()
    direction.add_argument(
        "--lower-is-better", action="store_true", default=None, help="lower scores are better (error rates, ranks)"
    )
    direction.add_argument(
        "--higher-is-better", dest="lower_is_better", action="store_false", help="they are not, whatever their name"
    )


def _add_gate_arguments(parser: argparse.ArgumentParser) -> None:
    gate = parser.add_argument_group("gate")
    for name, text in (
        ("--max-nfr", "the most items that may turn from right to wrong"),
        ("--max-regression", "the most that the accuracy (mean score) may fall"),
        ("--min-accuracy-gain", "the least that the accuracy (mean score) must rise"),
    ):
        gate.add_argument(name, action="append", default=[], metavar="[TASK=]X", help=text + " (repeatable)")
    gate.add_argument("--budget", metavar="FILE", help="limits in a YAML file")
    gate.add_argument("--plan", action="store_true", help="only say how many items the limits need")
    gate.add_argument("--baseline", metavar="FILE", help="--json of an earlier comparison that must not be exceeded")
    gate.add_argument("--gate-level", type=float, help="confidence of the gate's one-sided bounds (0.95)")
    gate.add_argument(
        "--candidate",
        action="append",
        default=[],
        metavar="LABEL",
        help="the model that would ship, its label or its path (all COMPAT, or NEW without any); repeatable",
    )
    gate.add_argument(
        "--control",
        action="append",
        default=[],
        metavar="LABEL",
        help="a model that is shown beside the others and never judged; its label or its path; repeatable",
    )
    gate.add_argument("--noise", metavar="FILE", help="noise floor written by muscle-hf noise --json")


def reading_options(args: argparse.Namespace) -> ReadOptions:
    """The options of :func:`add_reading_arguments` as the library takes them."""
    from muscle_hf.compare import ReadOptions

    return ReadOptions(
        metric=args.metric,
        filter=args.filter,
        columns=pairs("--columns", _PAIRS.split(args.columns) if args.columns else [], "prediction=answer"),
        tasks=args.task,
        skip=args.skip_task,
        lower_is_better=args.lower_is_better,
        rows=args.rows,
        where=pairs("--where", args.where, "model=base"),
        right=[word for word in args.right.split(",") if word],
    )


# Columns are split where the next role begins: paths may hold commas.
_PAIRS = re.compile(r",(?=\s*[\w:]+\s*=(?!=))")


def pairs(option: str, entries: Sequence[str], example: str) -> dict[str, str]:
    """What an option's words NAME=VALUE say; others are refused."""
    found = {}
    for entry in entries:
        name, _, value = entry.partition("=")
        if not value.strip():
            raise MuscleError(f"{option}: {entry!r} must be NAME=VALUE, for example {example}")
        found[name.strip()] = value.strip()
    return found


def run(args: argparse.Namespace) -> int:
    """Compares, writes what was asked for, and answers with the gate's exit code."""
    from muscle_hf.compare import AnalysisOptions, compare
    from muscle_hf.compare.noise import read_noise

    if args.plan:
        return _plan(_budget(args))
    if not args.new:
        raise MuscleError(
            "give the predictions of the old and the new model; without any, --plan says what limits need"
        )
    slices = () if args.no_slices else args.slices.split(",") if args.slices else None
    read = (args.old, args.new, *args.compat, args.noise, args.budget, args.baseline)
    check_outputs((getattr(args, name) for name in _OUTPUTS), read)
    gc.disable()  # what a comparison makes has no cycles; searching for them takes a tenth of its time
    try:
        document = compare(
            args.old,
            args.new,
            *args.compat,
            labels=args.labels.split(",") if args.labels else None,
            read=reading_options(args),
            analysis=AnalysisOptions(
                level=args.level,
                epsilon=args.epsilon,
                slices=slices,
                cluster=args.cluster,
                max_flips=args.max_flips,
                repeats=args.repeats,
            ),
            missing=args.missing,
            ignore_prompts=args.ignore_prompts,
            budget=_budget(args),
            candidates=args.candidate or None,
            controls=args.control,
            noise=read_noise(args.noise) if args.noise else (),
        )
    finally:
        gc.enable()
    shown = write_outputs((getattr(args, name), partial(_render, name, document)) for name in _OUTPUTS)
    if not shown and not args.quiet:
        from rich.console import Console

        from muscle_hf.report import terminal

        terminal.render(document, Console(), full=args.full)
    return 0 if document.gate is None else document.gate.exit_code


def _budget(args: argparse.Namespace) -> Budget:
    from muscle_hf.compare.gate import RULES, Budget, read_baseline, read_budget, with_limits

    budget = read_budget(args.budget) if args.budget else Budget()
    if args.baseline:
        budget.baseline = read_baseline(args.baseline)
    return with_limits(budget, {rule: getattr(args, rule) for rule in RULES}, args.gate_level)


def _plan(budget: Budget) -> int:
    """Prints how many items each limit needs."""
    from rich.console import Console

    from muscle_hf.compare.gate import plan_items
    from muscle_hf.report import terminal

    if budget.empty:
        raise MuscleError("--plan needs limits, for example --max-nfr 2%")
    Console().print(terminal.plan_table(plan_items(budget), budget.level))
    return 0


def _render(name: str, document: Document) -> str:
    if name == "json":
        return document.to_json() + "\n"
    return importlib.import_module(f"muscle_hf.report.{name}").render(document)
