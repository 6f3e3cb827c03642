"""Choose each method's learning rate and epochs on validation rows, every method with the same trials.

    python benchmarks/study/tune.py [--runs runs/study]

The plan says which cells and seeds are trained for it, and the trials. Chosen is what negative flips least among the
trials whose accuracy is not below v2's (the most accurate trial where none is so good), all on validation rows, pooled
over the seeds. Writes benchmarks/study/tuned.yaml and benchmarks/results/study_tuning.md.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import numpy as np
import yaml
from study import ROOT, TUNED, Cell, load_plan, trial_name

from muscle_hf.metrics import flip_metrics
from muscle_hf.pipeline.steps import hush

RESULT = ROOT / "benchmarks" / "results" / "study_tuning.md"


def measured(cells: list[Cell], name: str | None = None, trial: dict[str, float] | None = None) -> dict[str, float]:
    """Flip metrics on validation rows, the mean over cells of a method in a trial; without a name of v2."""
    found = []
    for cell in cells:
        old, new = cell.version("old"), cell.version("new")
        model = new if name is None else cell.method(name, trial)
        old, model = (cell.answers(side, "validation") for side in (old, model))
        answers = ([row.prediction for row in rows] for rows in (old, model))
        found.append(flip_metrics(*answers, [row.target for row in old]))
    return {key: float(np.mean([one[key] for one in found])) for key in ("acc_old", "acc_new", "nfr")}


def best(trials: list[dict[str, float]], figures: list[dict[str, float]], v2: dict[str, float]) -> dict[str, float]:
    """The trial that the rule chooses."""
    allowed = [index for index, figure in enumerate(figures) if figure["acc_new"] >= v2["acc_new"]]
    if allowed:
        return trials[min(allowed, key=lambda index: (figures[index]["nfr"], -figures[index]["acc_new"]))]
    return trials[max(range(len(trials)), key=lambda index: figures[index]["acc_new"])]


def main() -> None:
    plan = load_plan()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument(
        "--methods", nargs="+", choices=plan["methods"], help="train the trials of these, write nothing"
    )
    args = parser.parse_args()
    hush()
    tuning = plan["tuning"]
    cells = [Cell(name, seed, plan, args.runs) for name in tuning["cells"] for seed in tuning["seeds"]]
    trials, v2 = tuning["trials"], measured(cells)
    chosen, lines = {}, []
    for name in args.methods or [name for name, method in plan["methods"].items() if "settings_of" not in method]:
        figures = [measured(cells, name, trial) for trial in trials]
        chosen[name] = dict(best(trials, figures, v2))
        shown = (
            f"{'**' * (trial == chosen[name])}{100 * figure['acc_new']:.2f} / {100 * figure['nfr']:.2f}"
            f"{'**' * (trial == chosen[name])}"
            for trial, figure in zip(trials, figures, strict=True)
        )
        lines.append(f"| `{name}` | {' | '.join(shown)} |")
        print(lines[-1], flush=True)
    if args.methods:
        return
    TUNED.write_text(
        "# Written by benchmarks/study/tune.py: what it chose for each method.\n"
        + yaml.safe_dump(chosen, sort_keys=False),
        encoding="utf-8",
    )
    rows = len(cells[0].rows[2].validation)
    head = ["method", *(trial_name(trial, ", ") for trial in trials)]
    RESULT.write_text(
        f"# Tuning of the study's methods\n\n`python benchmarks/study/tune.py`, CPU ({platform.machine()}), one "
        f"thread; cells {', '.join(tuning['cells'])}, seeds {', '.join(map(str, tuning['seeds']))}.\n\n"
        f"Accuracy / NFR in percent on {rows} validation rows, which no model was trained on and no test row is "
        f"among; v2's task adapter has {100 * v2['acc_new']:.2f} / {100 * v2['nfr']:.2f}. Bold: least NFR among the "
        "trials with no less accuracy than v2, or the most accurate where there is none.\n\n"
        + "\n".join(["| " + " | ".join(head) + " |", "|" + "---|" * len(head), *lines])
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
