"""The dial on the real small updates: a point chosen on validation rows, measured on test rows.

    python benchmarks/dial.py --runs runs [--tasks trec ag_news piqa sst2]

Takes the adapters that ``benchmarks/real_data.py --runs runs`` trained (seed 0); the validation rows are 1,000 that
neither training nor testing has seen. Writes benchmarks/results/dial.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from reporting import publish, where

from muscle_hf.compare import AnalysisOptions, compare, source_of
from muscle_hf.compare.document import Update
from muscle_hf.dial import Dial, DialPoint, choose, walk
from muscle_hf.evaluation import evaluate_task, load_items, load_task, read_predictions
from muscle_hf.evaluation.loading import load_for_evaluation
from muscle_hf.metrics import Estimate
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.steps import hush

ROOT = Path(__file__).parents[1]
# Task -> split and first row of its validation rows.
VALIDATION = {"trec": ("train", 2000), "ag_news": ("test", 2000), "piqa": ("train", 1000), "sst2": ("train", 2000)}
ROWS = 1000
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def points(estimate: Estimate | None) -> str:
    """A change in percentage points."""
    return "" if estimate is None else "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in ends(estimate)))


def ends(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def table(rows: list[list[str]]) -> list[str]:
    """Lines of Markdown; the first row is the heading."""
    head, *body = [f"| {' | '.join(row)} |" for row in rows]
    return [head, "| --- " + "| ---: " * (len(rows[0]) - 1) + "|", *body, ""]


def path_row(point: DialPoint, chosen: DialPoint | None) -> list[str]:
    name = f"**{point.t:g}**" if point == chosen else f"{point.t:g}"
    figures = [f"{100 * rate.value:.1f}" for rate in (point.accuracy, point.nfr, point.nfr_mc, point.pfr)]
    return [name, *figures, points(point.change_of_accuracy), points(point.change_of_nfr)]


def test_row(name: str, update: Update) -> list[str]:
    against = update.against_new
    changes = ["", ""] if against is None else [points(against.delta_accuracy), points(against.delta_nfr)]
    rates = (update.accuracy, update.rates["nfr"], update.rates["nfr_mc"], update.rates["pfr"])
    return [name, *(f"{100 * rate.value:.1f}" for rate in rates), *changes]


def measure(task_name: str, run: Path) -> list[str]:
    settings = load_settings(ROOT / "recipes" / "stories260k" / f"{task_name}.yaml", [])
    task, (split, start) = load_task(task_name), VALIDATION[task_name]
    items = load_items(task, settings.data.source, split, start=start, limit=ROWS)
    model, tokenizer = load_for_evaluation(settings.old.base, task, adapter=run / "old")
    old = evaluate_task(model, tokenizer, task, items, progress=False)
    dial = Dial.load(run / "new", run / "muscle", task, base_model=settings.new.base)
    path = walk(dial, task, items, old, POINTS, progress=False)
    chosen = choose(path)
    heading = ["t", "Accuracy", "NFR", "NFR_mc", "PFR", "Change of accuracy", "Change of NFR"]
    lines = [f"## {task_name}", "", f"Validation, {path.items} rows; the chosen point in bold:", ""]
    lines += table([heading, *(path_row(point, chosen) for point in path.points)])
    if chosen is None:
        return [*lines, "No point has less NFR than v2 without losing accuracy: nothing is chosen.", ""]
    test = settings.data.test
    items = load_items(task, settings.data.source, test.split, start=test.start or 0, limit=test.limit)
    known = {name: read_predictions(run / "predictions" / f"{name}.jsonl") for name in ("old", "new", "muscle")}
    with dial.at(chosen.t) as model:
        found = evaluate_task(model, dial.tokenizer, task, items, progress=False)
    sides = [source_of(rows, name) for name, rows in [*known.items(), ("chosen", found)]]
    document = compare(*sides, labels=["old", "v2", "MUSCLE (t = 1)", f"chosen (t = {chosen.t:g})"],
                       analysis=AnalysisOptions(slices=(), max_flips=0))  # fmt: skip
    lines += [f"Test, {len(items)} rows that took no part in the choice:", ""]
    return lines + table([["Model", *heading[1:]], *(test_row(u.label, u) for u in document.tasks[0].updates)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=VALIDATION, default=list(VALIDATION))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of the runs")
    args = parser.parse_args()
    hush()
    lines = [
        "# The dial on real data",
        "",
        f"`python benchmarks/dial.py --tasks {' '.join(args.tasks)}`, {where()}, one thread.",
        "",
        "Adapters of [real_data.md](real_data.md), seed 0: v2's at t = 0, MUSCLE's at t = 1. Chosen by "
        "`least_nfr_at_no_loss`. Figures in percent; changes are against v2 on the same items, in percentage points, "
        "with 95 % intervals.",
        "",
    ]
    for task in args.tasks:
        part = measure(task, args.runs / f"stories260k-{task}-seed0")
        print("\n".join(part), flush=True)
        lines += part
    publish("dial", lines)


if __name__ == "__main__":
    main()
