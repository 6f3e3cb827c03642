"""Tables and pictures of the study, from whatever runs are finished: writes benchmarks/results/study.md and *.svg.

    python benchmarks/study/report.py [--runs runs/study]

Figures are means over seeds. Changes are paired over seeds and items: intervals from a bootstrap that resamples items
(with all their seeds), p-values from a sign test that flips whole items, corrected by Holm over the methods of a cell.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from muscle_hf.evaluation import Prediction, read_predictions
from muscle_hf.metrics import Estimate, bootstrap, cluster_sign_test, flip_metrics, holm, is_correct
from muscle_hf.report import charts, wording

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).with_name("plan.yaml")
RESULTS = ROOT / "benchmarks" / "results"
V2, CONTROL, BOTH = "v2", "ce", "both at inference"
FIGURES = ("acc_new", "nfr", "relative_nfr", "nfr_mc", "pfr")


def chosen(predictions: list[Prediction]) -> np.ndarray:
    """What one model chose: (items,), int64."""
    return np.array([prediction.prediction for prediction in predictions])


@dataclass(frozen=True)
class Seed:
    """One seed of a cell: the old model's answers, the right ones, and those of every other model."""

    old: np.ndarray
    right: np.ndarray
    models: Mapping[str, np.ndarray]


def read_seed(folder: Path, methods: Mapping[str, Mapping[str, Any]]) -> Seed:
    """The predictions of one seed, as far as they are there."""
    old, new = (read_predictions(folder / "predictions" / f"{side}.jsonl") for side in ("old", "new"))
    likelihoods = [np.array([row.log_likelihoods for row in rows]) for rows in (old, new)]
    probabilities = [np.exp(v - v.max(axis=1, keepdims=True)) for v in likelihoods]
    mean = sum(p / p.sum(axis=1, keepdims=True) for p in probabilities) / 2
    models = {V2: chosen(new), BOTH: mean.argmax(axis=1)}
    for name, method in methods.items():
        model = "control" if method["kind"] == "ce" else "muscle"
        file = folder / "methods" / name / "predictions" / f"{model}.jsonl"
        if file.is_file():
            models[name] = chosen(read_predictions(file))
    right = np.array([row.target for row in old])
    return Seed(chosen(old), right, models)


def change(seeds: list[Seed], name: str, reference: str, figure: str) -> tuple[Estimate, float]:
    """A model's figure minus a reference's, ``nfr`` or ``acc_new``, and the p-value of no change."""
    values, items = [], []
    for seed in with_model(seeds, name):
        old = is_correct(seed.old, seed.right)
        mine, theirs = (is_correct(seed.models[model], seed.right).astype(int) for model in (name, reference))
        per_item = mine - theirs
        values.append(np.where(old, -per_item, 0) if figure == "nfr" else per_item)
        items.append(np.arange(len(old)))
    values, items = np.concatenate(values), np.concatenate(items)
    estimate = bootstrap(lambda total, count: total / count, values, np.ones(len(values)), clusters=items)
    return estimate, cluster_sign_test(values, items)


def with_model(seeds: list[Seed], name: str) -> list[Seed]:
    """The seeds that have a model."""
    return [seed for seed in seeds if name in seed.models]


def means(seeds: list[Seed], name: str) -> dict[str, float]:
    """The flip metrics of a model, each the mean over the seeds that have it."""
    found = [flip_metrics(seed.old, seed.models[name], seed.right) for seed in with_model(seeds, name)]
    return {key: float(np.mean([one[key] for one in found])) for key in ("acc_old", *FIGURES)}


def cell_table(seeds: list[Seed], methods: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], dict[str, dict]]:
    """The Markdown table of a cell, and the figures of its picture."""
    names = [V2, BOTH, *(name for name in methods if with_model(seeds, name))]
    figures = {name: means(seeds, name) for name in names}
    compared = [name for name in names if name not in (V2, BOTH)]
    tests = {name: change(seeds, name, V2, "nfr") for name in compared}
    others = [name for name in compared if name != CONTROL] if CONTROL in compared else []
    to_control = {name: change(seeds, name, CONTROL, "nfr") for name in others}
    accuracy = {name: change(seeds, name, CONTROL, "acc_new") for name in others}
    corrected = {
        id(found): dict(zip(found, holm([p for _, p in found.values()]), strict=True))
        for found in (tests, to_control, accuracy)
        if found
    }

    def shown(found: Mapping[str, tuple[Estimate, float]], name: str, reference: str = "") -> str:
        if name not in found:
            return ""
        estimate, p = found[name][0], corrected[id(found)][name]
        # On the seeds that both have.
        base = means(with_model(seeds, name), reference)["nfr"] if reference else 0
        share = f" ({100 * estimate.value / base:+.0f} %)" if base else ""
        ends = f"[{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"
        return f"{100 * estimate.value:+.2f}{share} {ends}, p {_p(p)}"

    head = ["", "seeds", "accuracy", "NFR", "relative NFR", "NFR_mc", "PFR", "NFR against v2", "NFR against CE",
            "accuracy against CE"]  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name in names:
        row = figures[name]
        cells = [_says(name, methods), str(len(with_model(seeds, name))), *(_figure(key, row[key]) for key in FIGURES)]
        cells += [shown(tests, name, V2)]
        cells += [shown(to_control, name, CONTROL)]
        cells += [shown(accuracy, name)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines, figures


def _says(name: str, methods: Mapping[str, Mapping[str, Any]]) -> str:
    says = {V2: "v2's task adapter", BOTH: "both at inference, mean of probabilities (not deployable)"}
    return says.get(name) or f"{methods[name]['says']} (`{name}`)"


def _figure(key: str, value: float) -> str:
    return f"{value:.3f}" if key == "relative_nfr" else f"{100 * value:.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def picture(title: str, figures: Mapping[str, Mapping[str, float]], seeds: list[Seed]) -> str:
    """Accuracy against NFR of the models of a cell that have all its seeds, as an SVG that stands alone."""
    points = []
    for name, row in figures.items():
        if len(with_model(seeds, name)) < len(seeds):
            continue
        better = [
            other for other in figures.values() if other["nfr"] < row["nfr"] and other["acc_new"] > row["acc_new"]
        ]
        spread = {
            figure: [flip_metrics(s.old, s.models[name], s.right)[figure] for s in with_model(seeds, name)]
            for figure in ("nfr", "acc_new")
        }
        flips, accuracy = (
            Estimate(row[figure], min(values), max(values), math.nan, "range of seeds")
            for figure, values in spread.items()
        )
        points.append(charts.Point("both" if name == BOTH else name, flips, accuracy, not better))
    old = Estimate(figures[V2]["acc_old"], math.nan, math.nan)
    drawn = str(
        charts.trade_off(title, points, ("v1", old), ("negative flips", "accuracy"), (wording.percent,) * 2, None)
    )
    style = resources.files("muscle_hf.report").joinpath("assets/report.css").read_text()
    start = drawn.index(">") + 1
    head = drawn[:start].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}<style>{style}</style>{drawn[start:]}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    args = parser.parse_args()
    plan = yaml.safe_load(PLAN.read_text())
    parts = []
    for cell in plan["cells"]:
        folders = [args.runs / cell / f"seed{seed}" for seed in plan["seeds"]]
        finished = [folder for folder in folders if (folder / "predictions" / "new.jsonl").is_file()]
        seeds = [read_seed(folder, plan["methods"]) for folder in finished]
        # A seed counts from the control on, which every method is compared with.
        kept = [(folder, seed) for folder, seed in zip(finished, seeds, strict=True) if CONTROL in seed.models]
        if not kept:
            continue
        seeds = [seed for _, seed in kept]
        lines, figures = cell_table(seeds, plan["methods"])
        file = f"study-{cell}.svg"
        title = f"{cell}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        (RESULTS / file).write_text(picture(title, figures, seeds))
        names = ", ".join(folder.name.removeprefix("seed") for folder, _ in kept)
        old = figures[V2]["acc_old"]
        parts.append(
            f"## {cell}\n\nSeeds {names}; {len(seeds[0].right)} test items; accuracy of v1 {100 * old:.2f}.\n\n"
            + "\n".join(lines)
            + f"\n\n![Accuracy against negative flips]({file})\n"
        )
    text = (
        "# The study\n\n`python benchmarks/study/run.py && python benchmarks/study/report.py`, CPU "
        f"({platform.machine()}), one thread; the plan is benchmarks/study/plan.yaml.\n\n"
        "Figures in percent, means over the seeds that a method has; changes in percentage points with the 95 % "
        "interval of a bootstrap over items, relative to the other's NFR in brackets, and the p-value of a sign test "
        "over items, corrected by Holm over the methods of the cell. Whiskers in the pictures are the range of the "
        "seeds; they show the methods that have all seeds.\n\n" + "\n".join(parts)
    )
    (RESULTS / "study.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
