"""Does a learned gate between both teachers pay? Both-at-inference rules on the study's test items, no training.

    python benchmarks/study/gate.py [--runs runs/study] [--cell level-trec]

The gate is a logistic regression that is fitted on half of the items and used on the other half, and vice versa: from
both models' confidence and entropy it says which of them to believe where they differ. Writes
benchmarks/results/study_gate.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from answers import V1, Answers, probabilities, read_versions
from study import ROOT, Cell, load_plan

RESULT = ROOT / "benchmarks" / "results" / "study_gate.md"


def gated(old: np.ndarray, new: np.ndarray, right: np.ndarray) -> np.ndarray:
    """What the gate chooses, each half of the items by the gate of the other half."""
    import statsmodels.api as sm

    features = []
    for p in (old, new):
        top = p.max(axis=1).clip(1e-6, 1 - 1e-6)
        features += [np.log(top / (1 - top)), -(p * np.log(p.clip(1e-9))).sum(axis=1)]
    features = sm.add_constant(np.column_stack(features))
    of_old, of_new = old.argmax(axis=1), new.argmax(axis=1)
    old_right, new_right = of_old == right, of_new == right
    half = np.arange(len(right)) % 2
    chosen = of_old.copy()
    for fold in (0, 1):
        known = (half != fold) & (old_right != new_right)
        asked = (half == fold) & (of_old != of_new)
        gate = sm.GLM(old_right[known].astype(float), features[known], family=sm.families.Binomial()).fit()
        chosen[asked] = np.where(gate.predict(features[asked]) > 0.5, of_old[asked], of_new[asked])
    return chosen


def rules(old: np.ndarray, new: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """What each rule chooses."""
    of_old, of_new = old.argmax(axis=1), new.argmax(axis=1)
    return {
        "v2 alone": of_new,
        "mean of probabilities": (old + new).argmax(axis=1),
        "0.65 v1 + 0.35 v2": (0.65 * old + 0.35 * new).argmax(axis=1),
        "mean of logits": (np.log(old.clip(1e-30)) + np.log(new.clip(1e-30))).argmax(axis=1),
        "the more confident": np.where(old.max(axis=1) > new.max(axis=1), of_old, of_new),
        "learned gate": gated(old, new, right),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--cell", default="level-trec")
    args = parser.parse_args()
    plan = load_plan()
    found: dict[str, list[tuple[float, float]]] = {}
    seeds = 0
    for seed in plan["seeds"]:
        versions = read_versions(Cell(args.cell, seed, plan, args.runs))
        if versions is None:
            continue
        seeds += 1
        answers = Answers()
        answers.add(V1, versions[0])
        for name, chosen in rules(*map(probabilities, versions), answers.right).items():
            answers.choose(name, chosen)
            metrics = answers.figures(name)
            found.setdefault(name, []).append((metrics["acc_new"], metrics["nfr"]))
    lines = [f"| {args.cell}, {seeds} seeds | accuracy | NFR |", "|---|---|---|"]
    for name, figures in found.items():
        accuracy, nfr = 100 * np.mean(figures, axis=0)
        lines.append(f"| {name} | {accuracy:.2f} | {nfr:.2f} |")
    command = (
        f"python benchmarks/study/run.py --cells {args.cell} && python benchmarks/study/gate.py --cell {args.cell}"
    )
    text = f"# Rules that ask both models\n\n`{command}`; percent, means over seeds.\n\n" + "\n".join(lines) + "\n"
    RESULT.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
