"""Choose each method's learning rate and epochs on validation rows, every method with the same trials.

    python benchmarks/study/tune.py [--runs runs/study]

The plan says which cells and seeds are trained for it, and the trials: all methods on one cell, those of cells with
`tuned_on` on that one as well. Chosen is what negative flips least among the trials whose accuracy is not below v2's
(the most accurate trial where none is so good), all on validation rows, the mean over the seeds. Writes
benchmarks/study/tuned.yaml and benchmarks/results/study_tuning.md.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from study import ROOT, TUNED, Cell, load_plan, trial_name
from tables import table_head
from untrained import UNTRAINED

from muscle_hf.metrics import flip_metrics
from muscle_hf.pipeline.steps import hush

RESULT = ROOT / "benchmarks" / "results" / "study_tuning.md"


def measured(cells: list[Cell], name: str | None = None, trial: dict[str, float] | None = None) -> dict[str, float]:
    """Flip metrics on validation rows, the mean over seeds of a method in a trial; without a name of v2."""
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


def tuned_methods(plan: dict[str, Any]) -> dict[str, list[str]]:
    """The cells that methods are tuned on, and which."""
    found = {plan["tuning"]["cell"]: list(plan["methods"])}
    for cell in plan["cells"].values():
        found.setdefault(cell["tuned_on"], []).extend(cell["methods"])
    of_their_own = {
        name
        for name, method in plan["methods"].items()
        if "settings_of" not in method and method["kind"] not in UNTRAINED
    }
    return {cell: [name for name in dict.fromkeys(names) if name in of_their_own] for cell, names in found.items()}


def main() -> None:
    plan = load_plan()
    tuning, methods = plan["tuning"], tuned_methods(plan)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--cells", nargs="+", choices=methods, help="train the trials of these alone, write nothing")
    parser.add_argument("--methods", nargs="+", choices=plan["methods"], help="likewise")
    parser.add_argument("--seeds", nargs="+", type=int, choices=tuning["seeds"], help="likewise")
    args = parser.parse_args()
    hush()
    trials = tuning["trials"]
    chosen: dict[str, dict[str, dict[str, float]]] = {}
    tables = []
    for cell in args.cells or methods:
        seeds = [Cell(cell, seed, plan, args.runs) for seed in args.seeds or tuning["seeds"]]
        v2, lines = measured(seeds), []
        chosen[cell] = {}
        for name in methods[cell]:
            if args.methods and name not in args.methods:
                continue
            figures = [measured(seeds, name, trial) for trial in trials]
            choice = best(trials, figures, v2)
            chosen[cell][name] = dict(choice)
            for seed in seeds:
                seed.chosen[name] = choice  # what goes on from it
            shown = (
                f"{'**' * (trial == choice)}{100 * figure['acc_new']:.2f} / {100 * figure['nfr']:.2f}"
                f"{'**' * (trial == choice)}"
                for trial, figure in zip(trials, figures, strict=True)
            )
            lines.append(f"| `{name}` | {' | '.join(shown)} |")
            print(cell, lines[-1], flush=True)
        head = ["method", *(trial_name(trial, ", ") for trial in trials)]
        tables.append(
            f"## {cell}\n\nOn {len(seeds[0].rows[2].validation)} validation rows; v2's task adapter has "
            f"{100 * v2['acc_new']:.2f} / {100 * v2['nfr']:.2f}.\n\n" + "\n".join([*table_head(head), *lines])
        )
    if args.cells or args.methods or args.seeds:
        return
    TUNED.write_text(
        "# Written by benchmarks/study/tune.py: what it chose for each method, by the cell it was tuned on.\n"
        + yaml.safe_dump(chosen, sort_keys=False),
        encoding="utf-8",
    )
    RESULT.write_text(
        f"# Tuning of the study's methods\n\n`python benchmarks/study/tune.py`, CPU ({platform.machine()}), one "
        f"thread; seeds {', '.join(map(str, tuning['seeds']))}.\n\n"
        "Accuracy / NFR in percent on validation rows, which no model was trained on and no test row is among. Bold: "
        "least NFR among the trials with no less accuracy than v2, or the most accurate where there is none.\n\n"
        + "\n\n".join(tables)
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    main()
