"""Rules that ask both teachers at inference, on the study's test items; nothing is trained.

    python benchmarks/study/gate.py [--runs runs/study] [--cells level-trec ...]

What is fitted is fitted on half of the items and used on the other half, and vice versa: the temperatures of the
calibrated models, and the learned gate, a logistic regression that says from both models' confidence and entropy which
of them to believe where they differ. Writes benchmarks/results/study_gate.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from answers import V1, V2, Answers, probabilities, read_versions
from study import ROOT, Cell, load_plan

from muscle_hf.compare.targets import target_choices
from muscle_hf.training.calibration import fitted_temperature, negative_log_likelihoods

SHARES = (0.5, 0.55, 0.6, 0.65)
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


def tempered(p: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Probabilities of choices, (items, choices), at the temperature that the other half's right ones fit best."""
    found, half = np.empty_like(p), np.arange(len(right)) % 2
    logs = torch.from_numpy(np.log(p.clip(1e-30)))
    for fold in (0, 1):
        known = half != fold
        costs = negative_log_likelihoods(logs[known], torch.from_numpy(right[known]))
        found[~known] = torch.softmax(logs[~known] / fitted_temperature(costs.sum(dim=0)), dim=-1)
    return found


def rules(old: np.ndarray, new: np.ndarray, right: np.ndarray) -> dict[str, np.ndarray]:
    """What each rule chooses."""
    asked = target_choices(old, new, SHARES)
    asked |= {
        "mean, calibrated": (tempered(old, right) + tempered(new, right)).argmax(axis=1),
        "mean of logits": (np.log(old.clip(1e-30)) + np.log(new.clip(1e-30))).argmax(axis=1),
        "learned gate": gated(old, new, right),
    }
    return asked


def table(cell: str, plan: dict[str, Any], runs: Path) -> list[str]:
    """The figures of the rules on a cell, and how sure both models are."""
    found: dict[str, list[tuple[float, float]]] = {}
    sure: list[list[float]] = []
    for seed in plan["seeds"]:
        versions = read_versions(Cell(cell, seed, plan, runs))
        if versions is None:
            continue
        answers = Answers()
        for name, rows in zip((V1, V2), versions, strict=True):
            answers.add(name, rows)
        of_both = [probabilities(version) for version in versions]
        sure.append([x for p in of_both for x in (p.max(axis=1).mean(), (p.argmax(axis=1) == answers.right).mean())])
        for name, chosen in rules(*of_both, answers.right).items():
            answers.choose(name, chosen)
            metrics = answers.figures(name)
            found.setdefault(name, []).append((metrics["acc_new"], metrics["nfr"]))
    lines = [f"## {cell}", "", f"| {len(sure)} seeds | accuracy | NFR |", "|---|---|---|"]
    for name, figures in found.items():
        accuracy, nfr = 100 * np.mean(figures, axis=0)
        lines.append(f"| {name} | {accuracy:.2f} | {nfr:.2f} |")
    of_old, old_right, of_new, new_right = 100 * np.mean(sure, axis=0)
    says = f"v1 gives its choice {of_old:.0f} on average and is right in {old_right:.0f}"
    return [*lines, "", f"{says}; v2 gives its own {of_new:.0f} and is right in {new_right:.0f}.", ""]


def main() -> None:
    plan = load_plan()
    cells = ["level-trec", "gap-trec", "rows-trec", "demo-routing", "level-sst2", "level-ag_news"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--cells", nargs="+", choices=plan["cells"], default=cells)
    args = parser.parse_args()
    names = " ".join(args.cells)
    command = f"python benchmarks/study/run.py --cells {names} && python benchmarks/study/gate.py --cells {names}"
    lines = ["# Rules that ask both models", "", f"`{command}`; percent, means over seeds.", ""]
    lines += [line for cell in args.cells for line in table(cell, plan, args.runs)]
    RESULT.write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
