"""The dial on the study's adapters: a point chosen on validation rows, measured on test rows.

    python benchmarks/study/dial.py [--runs runs/study] [--cells level-trec ...] [--methods muscle_ce ...] [--seeds 0]

Takes the adapters that `run.py` trained, v2's at t = 0 and the method's at t = 1, and the rule `least_nfr_at_no_loss`.
Writes benchmarks/results/dial.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from report import RESULTS
from reporting import where
from study import Cell, load_plan

from muscle_hf.dial import Dial, choose, walk
from muscle_hf.evaluation import evaluate_task, read_predictions
from muscle_hf.metrics import flip_metrics
from muscle_hf.pipeline.steps import hush

POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)
Figures = tuple[float, float]


def figures(cell: Cell, answers: Sequence) -> Figures:
    """Accuracy and NFR of answers to the test items."""
    old = read_predictions(cell.answers_file(cell.version_folder("old"), "test"))
    found = flip_metrics(*([row.prediction for row in rows] for rows in (old, answers)), [row.target for row in old])
    return found["acc_new"], found["nfr"]


def measure(cell: Cell, method: str) -> tuple[float, list[Figures]]:
    """The point that is chosen, and the test figures of v2, of t = 1 and of the chosen point."""
    task, _, splits = cell.rows
    new, compat = cell.version("new"), cell.method(method)
    dial = Dial.load(new.adapter, compat.adapter, task, base_model=new.base)
    old = cell.answers(cell.version("old"), "validation")
    path = walk(dial, task, splits.validation, old, POINTS, progress=False)
    chosen = choose(path)
    t = 0.0 if chosen is None else chosen.t
    answers = [cell.answers(model, "test") for model in (new, compat)]
    if t in (0.0, 1.0):
        answers.append(answers[int(t)])
    else:
        with dial.at(t) as model:
            answers.append(evaluate_task(model, dial.tokenizer, task, splits.test, progress=False))
    return t, [figures(cell, rows) for rows in answers]


def main() -> None:
    plan = load_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument(
        "--cells", nargs="+", choices=plan["cells"], default=["level-trec", "demo-routing", "level-ag_news"]
    )
    parser.add_argument("--methods", nargs="+", choices=plan["methods"], default=["muscle_ce", "transfer_mean"])
    parser.add_argument("--seeds", nargs="+", type=int, default=plan["seeds"])
    args = parser.parse_args()
    hush()
    lines = ["| cell, t = 1 | chosen t, by seed | v2 | t = 1 | chosen |", "|---|---|---|---|---|"]
    for name in args.cells:
        for method in args.methods:
            found = [measure(Cell(name, seed, plan, args.runs), method) for seed in args.seeds]
            means = 100 * np.mean([of_seed for _, of_seed in found], axis=0)
            texts = [f"{accuracy:.2f} / {nfr:.2f}" for accuracy, nfr in means]
            lines.append(f"| {name}, `{method}` | {', '.join(f'{t:g}' for t, _ in found)} | {' | '.join(texts)} |")
            print(lines[-1], flush=True)
    words = " ".join(["python benchmarks/study/dial.py", *(f"--{key} {' '.join(map(str, getattr(args, key)))}"
                      for key in ("cells", "methods", "seeds"))])  # fmt: skip
    text = (
        "Accuracy / NFR on test rows in percent, means over the seeds; t is chosen by `least_nfr_at_no_loss` on "
        "validation rows of the same seed (0: nothing is better than v2).\n\n" + "\n".join(lines) + "\n"
    )
    (RESULTS / "dial.md").write_text(
        f"# The dial on the study's adapters\n\n`{words}`, {where()}, one thread.\n\n{text}", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
