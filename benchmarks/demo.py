"""The demo on several seeds; writes benchmarks/results/demo.md and demo.svg.

    python benchmarks/demo.py [--seeds 0 1 2] [--tasks routing] [--runs demo-output]

A run that is done is not repeated, so the runs of `muscle-hf demo` are used where they are.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from reporting import RESULTS

from muscle_hf.demo import SETTINGS, TASKS
from muscle_hf.demo.run import BOTH, Demo, demo_settings, demo_splits, run_demo
from muscle_hf.demo.story import NAMES, kept
from muscle_hf.metrics import Estimate
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, Result, columns, interval_text
from muscle_hf.report import charts, wording


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rows = [f"| {' | '.join(cells)} |" for cells in lines]
    return "\n".join([head, "| --- |" + " ---: |" * (len(lines[0]) - 1), *rows]) + "\n"


def means_table(demos: dict[int, Demo]) -> str:
    """A row a model: means over the seeds, and the change of NFR of each."""
    results = [demo.result for demo in demos.values()]
    _, quality, worse, *_ = columns(results[0].metric)
    lines = [["mean of seeds " + ", ".join(map(str, demos)), quality, worse, f"change of {worse} by seed"]]
    for row in results[0].rows:
        rows = [result.row(row.model) for result in results]
        quality, nfr = (100 * sum(getattr(one, name) for one in rows) / len(rows) for name in ("quality", "nfr"))
        changes = "" if row.change is None else ", ".join(f"{100 * one.change.value:+.1f}" for one in rows)
        lines.append([NAMES[row.model], f"{quality:.1f}", "" if row.model == OLD else f"{nfr:.1f}", changes])
    return _table(lines)


def picture(demos: dict[int, Demo]) -> str:
    """NFR of each model as an SVG: mean and range of the seeds."""
    drawn = []
    for row in next(iter(demos.values())).result.rows[1:]:
        rates = [demo.result.row(row.model).nfr for demo in demos.values()]
        found = Estimate(sum(rates) / len(rates), min(rates), max(rates), method="range of seeds")
        css = {COMPAT: "better", BOTH: "trails"}.get(row.model, "plain")
        drawn.append(charts.Row(NAMES[row.model], found, css))
    title = "Right answers that the update turns wrong"
    return charts.standalone(title, [(title, charts.whiskers(title, drawn, wording.percent))])


def seeds_table(demos: dict[int, Demo]) -> str:
    """A row a seed and model, with intervals."""
    _, quality, worse, *_, change = columns(next(iter(demos.values())).result.metric)
    lines = [["seed", "model", quality, worse, change]]
    for seed, demo in demos.items():
        for row in demo.result.rows:
            nfr = "" if row.model == OLD else f"{100 * row.nfr:.2f}"
            changed = "" if row.change is None else interval_text(row.change)
            lines.append([str(seed), NAMES[row.model], f"{100 * row.quality:.2f}", nfr, changed])
    return _table(lines)


def counted(demos: dict[int, Demo]) -> str:
    """The negative flips as numbers of items."""
    said = []
    for seed, demo in demos.items():
        broken, keeps, others = kept(demo, COMPAT)
        _, control_keeps, control_others = kept(demo, CONTROL)
        said.append(
            f"Seed {seed}: of {broken} items that the update breaks, the recommended adapter keeps {keeps} and breaks "
            f"{others} others; plain training keeps {control_keeps} and breaks {control_others}."
        )
    return "\n".join(said) + "\n"


def memorised(task: str, seed: int, folder: Path) -> str:
    """How the task adapters of a run do on the labelled rows they were trained on."""
    splits, settings = demo_splits(task, seed), demo_settings(task, seed, folder)
    how = steps.loading(settings)
    answers = {
        name: steps.answer(
            replace(side, adapter=str(folder / name)),
            TASKS[task],
            splits.train,
            how=how,
            batch_size=256,
            progress=False,
        )
        for name, side in ((OLD, settings.old), (NEW, settings.new))
    }
    result = Result.of(answers)
    figures = [result.row(OLD).quality, result.row(NEW).quality, result.row(NEW).nfr]
    return " / ".join(f"{100 * figure:.2f}" for figure in figures) + f" (seed {seed})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=["routing"])
    parser.add_argument("--runs", default="demo-output", help="folder of the runs")
    args = parser.parse_args()
    steps.hush()
    seeds = " ".join(map(str, args.seeds))
    parts = [
        f"# The demo on seeds {seeds}\n\n`python benchmarks/demo.py --seeds {seeds} --tasks {' '.join(args.tasks)}`, "
        f"CPU ({platform.machine()}).\nIn percent; changes are against v2, in percentage points, with the 95 % "
        "interval of a paired bootstrap over the items. The learning rate is the one that "
        "the study chose, for each of the three by itself, on validation rows of another task "
        "([how](study_tuning.md)).\n"
    ]
    for task in args.tasks:
        demos = {seed: run_demo(task, seed, args.runs) for seed in args.seeds}
        means, chosen = means_table(demos), SETTINGS[task]
        _, quality, worse, *_ = columns(demos[args.seeds[0]].result.metric)
        seen = ", ".join(memorised(task, seed, demo.folder) for seed, demo in demos.items())
        parts.append(
            f"## {task}\n\n{chosen.test} test items, {chosen.train} labelled and {chosen.transfer} unlabelled rows a "
            f"seed; {chosen.steps} steps.\n\n{means}\n{counted(demos)}\n{seeds_table(demos)}\n"
            f"On the labelled rows, {quality} of v1 / of v2 / {worse} of v2: {seen}.\n"
        )
        print(parts[-1], flush=True)
        if task == "routing":
            (RESULTS / "demo.svg").write_text(picture(demos), encoding="utf-8")
    (RESULTS / "demo.md").write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
