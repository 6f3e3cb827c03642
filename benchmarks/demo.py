"""The demo on several seeds; writes benchmarks/results/demo.md and the table in README.md.

    python benchmarks/demo.py [--seeds 0 1 2] [--tasks routing refund summary] [--runs demo-output]

A run that is done is not repeated, so the runs of `muscle-hf demo` are used where they are.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

from reporting import put_between

from muscle_hf.demo import TASKS as TASKS_OF_WORLD
from muscle_hf.demo.run import demo_settings, demo_splits, run_demo
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, Result, columns, interval_text

ROOT = Path(__file__).parents[1]
TASKS = ("routing", "refund", "summary")
MARK = "<!-- demo table: written by benchmarks/demo.py -->"


def seeds_table(results: dict[int, Result]) -> str:
    """One row a seed, and their mean: quality and flips of each model, and how MUSCLE and the control change NFR."""
    first = next(iter(results.values()))
    quality, worse = columns(first.metric)[1:3]
    headings = [
        "Seed",
        f"{quality} v1 / v2 / control / MUSCLE",
        f"{worse} v2 / control / MUSCLE",
        f"Change of {worse}, control",
        f"Change of {worse}, MUSCLE",
    ]
    lines = [headings, ["---", *["---:"] * 4]]

    def means(models: tuple[str, ...], figure: str, chosen: list[Result]) -> str:
        values = [sum(getattr(result.row(model), figure) for result in chosen) / len(chosen) for model in models]
        return " / ".join(f"{100 * value:.2f}" for value in values)

    def line(label: str, chosen: list[Result], changes: list[str]) -> list[str]:
        return [
            label,
            means((OLD, NEW, CONTROL, COMPAT), "quality", chosen),
            means((NEW, CONTROL, COMPAT), "nfr", chosen),
            *changes,
        ]

    for seed, result in results.items():
        lines.append(line(str(seed), [result], [interval_text(result.row(m).change) for m in (CONTROL, COMPAT)]))
    every = list(results.values())
    mean_changes = [
        f"{100 * sum(result.row(model).change.value for result in every) / len(every):+.2f}"
        for model in (CONTROL, COMPAT)
    ]
    lines.append(line("mean", every, mean_changes))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def memorised(task: str, seed: int, folder: Path) -> str:
    """How the task adapters of a run do on the rows they were trained on: all that compatibility training sees."""
    splits, settings = demo_splits(task, seed), demo_settings(task, seed, folder)
    answers = {
        name: steps.answer(side, folder / name, TASKS_OF_WORLD[task], splits.train, how={}, batch_size=None)
        for name, side in ((OLD, settings.old), (NEW, settings.new))
    }
    result = Result.of(answers)
    figures = [result.row(OLD).quality, result.row(NEW).quality, result.row(NEW).nfr]
    return " / ".join(f"{100 * figure:.2f}" for figure in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--runs", default="demo-output", help="folder of the runs")
    args = parser.parse_args()
    steps.hush()
    tables, seconds = {}, []
    for task in args.tasks:
        results, seen = {}, []
        for seed in args.seeds:
            folder, results[seed], took = run_demo(task, seed, args.runs)
            seconds.append(f"{task} {seed}: {took:.0f} s")
            seen.append(f"{memorised(task, seed, folder)} (seed {seed})")
        _, quality, worse, *_ = columns(results[args.seeds[0]].metric)
        tables[task] = (
            f"{results[args.seeds[0]].items} test items a seed.\n\n{seeds_table(results)}\n"
            f"On the training rows, {quality} of v1 / of v2 / {worse} of v2: {', '.join(seen)}.\n"
        )
        print(task, tables[task], sep="\n", flush=True)
    seeds = " ".join(map(str, args.seeds))
    head = (
        f"# The demo on seeds {seeds}\n\n`python benchmarks/demo.py --seeds {seeds} --tasks {' '.join(args.tasks)}`, "
        f"CPU ({platform.machine()}).\nIn percent; changes are against plain v2, in percentage points, with the 95 % "
        "interval of a paired bootstrap over the items.\n\n"
    )
    parts = [f"## {task}\n\n{text}" for task, text in tables.items()]
    (ROOT / "benchmarks" / "results" / "demo.md").write_text(head + "\n".join(parts), encoding="utf-8")
    put_between(ROOT / "README.md", MARK, tables["routing"])
    print("; ".join(seconds))


if __name__ == "__main__":
    main()
