"""Tables and pictures of the study, from the records of what is finished: benchmarks/results/study.md and *.svg.

    python benchmarks/study/report.py

Figures are means over seeds. Changes are paired over seeds and items: intervals from a bootstrap that resamples items
(with all their seeds), p-values from a sign test that flips whole items, corrected by Holm over the methods of a cell.
"""

from __future__ import annotations

import argparse
import math
import platform
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

import numpy as np
import yaml
from answers import BOTH, FIGURES, V1, V2, Answers
from records import read_record
from study import ROOT, load_plan, trial_name

from muscle_hf.metrics import Estimate, bootstrap, cluster_sign_test, holm
from muscle_hf.report import charts, wording

sys.path.insert(0, str(ROOT / "benchmarks"))  # what all benchmarks share
from reporting import put_between

RESULTS = ROOT / "benchmarks" / "results"
CONTROL = "ce"
# Methods that most cells have, in the tables over all cells.
SHOWN = ("ce_long", "ce_pseudo", "muscle", "muscle_ce", "focal_ce", "transfer_mean", "transfer_mean_ce",
         "transfer_calibrated", "long_transfer_mean")  # fmt: skip
# In the pictures, where more would hide each other.
DRAWN = ("ce", "ce_long", "muscle", "muscle_ce", "focal_ce", "transfer_mean", "transfer_calibrated",
         "long_transfer_mean", "long_transfer_calibrated")  # fmt: skip
# What is held against each control: the plain one, the one with as many steps as the methods with transfer rows, and
# the one with as many as those that begin with the former.
AGAINST = {
    CONTROL: SHOWN,
    "ce_long": ("muscle_ce", "focal_ce", "transfer_mean", "transfer_mean_ce", "transfer_calibrated"),
    "ce_longer": ("transfer_mean", "long_transfer_mean", "long_transfer_calibrated"),
}
MARK = "<!-- tables: written by benchmarks/study/report.py -->"
WORDS = """{}.

Accuracy (or mean similarity) / NFR in percent, means over the seeds that have the method; in
brackets NFR against v2's on these:

{}

Against the control, plain CE: change of NFR in points (in percent) / of accuracy in points; \\* p < 0.05 after Holm's
correction over the row; each on the seeds that have the method:

{}

The same against plain CE with as many steps as with transfer rows (`ce_long`), on the seeds that have both:

{}

And against plain CE that goes on after `ce_long` for as many steps again (`ce_longer`), at least as
many as `long_transfer_mean` has:

{}

The masks of the paper's Table 7, changes of NFR against v2 / against plain CE; \\* as above:

{}
"""


Seeds = tuple[Answers, ...]


def with_model(seeds: Seeds, *names: str) -> Seeds:
    """The seeds that have all of some models."""
    return tuple(seed for seed in seeds if seed.quality.keys() >= set(names))


@cache
def change(seeds: Seeds, name: str, reference: str, figure: str) -> tuple[Estimate, float]:
    """A model's figure minus a reference's, ``nfr`` or ``acc_new``, and the p-value of no change."""
    values, items = [], []
    for seed in with_model(seeds, name, reference):
        mine, theirs = (
            seed.worse(model).astype(float) if figure == "nfr" else seed.quality[model] for model in (name, reference)
        )
        values.append(mine - theirs)
        # The embedded world's items are others in each seed.
        items.append([f"{seed.items} {index}" for index in range(len(mine))])
    values, items = np.concatenate(values), np.concatenate(items)
    estimate = bootstrap(lambda total, count: total / count, values, np.ones(len(values)), clusters=items)
    return estimate, cluster_sign_test(values, items)


def changes(seeds: Seeds, names: Sequence[str], reference: str, figure: str) -> dict[str, tuple[Estimate, float]]:
    """Of several models, with p-values that are corrected together."""
    found = {name: change(seeds, name, reference, figure) for name in names}
    corrected = holm([p for _, p in found.values()]) if found else []
    return {name: (estimate, p) for (name, (estimate, _)), p in zip(found.items(), corrected, strict=True)}


def means(seeds: Seeds, name: str) -> dict[str, float]:
    """The figures of a model, each the mean over the seeds that have it."""
    found = [seed.figures(name) for seed in with_model(seeds, name)]
    return {key: float(np.mean([one.get(key, math.nan) for one in found])) for key in ("acc_old", *FIGURES)}


def table_head(head: list[str]) -> list[str]:
    """The first two lines of a Markdown table."""
    return ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]


def cell_table(seeds: Seeds, methods: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], dict[str, dict]]:
    """The Markdown table of a cell, and the figures of its picture."""
    names = [name for name in (V2, BOTH, *methods) if with_model(seeds, name)]
    figures = {name: means(seeds, name) for name in names}
    compared = [name for name in names if name not in (V2, BOTH)]
    others = [name for name in compared if name != CONTROL]
    tests = {
        (reference, figure): _tested(seeds, against, reference, figure)
        for reference, figure, against in (
            (V2, "nfr", compared),
            (CONTROL, "nfr", others),
            (CONTROL, "acc_new", others),
        )
    }
    head = ["", "seeds", "accuracy", "NFR", "relative NFR", "NFR_mc", "PFR", "returned", "inherited",
            "NFR against v2", "NFR against CE", "accuracy against CE"]  # fmt: skip
    lines = table_head(head)
    for name in names:
        row = figures[name]
        cells = [_says(name, methods), str(len(with_model(seeds, name))), *(_figure(key, row[key]) for key in FIGURES)]
        cells += [found.get(name, "") for found in tests.values()]
        lines.append("| " + " | ".join(cells) + " |")
    return lines, figures


def _tested(seeds: Seeds, names: list[str], reference: str, figure: str) -> dict[str, str]:
    """The change of each model against a reference as text."""
    texts = {}
    for name, (estimate, p) in changes(seeds, names, reference, figure).items():
        # On the seeds that both have.
        base = means(with_model(seeds, name), reference)["nfr"] if figure == "nfr" else 0
        share = f" ({100 * estimate.value / base:+.0f} %)" if base else ""
        ends = f"[{100 * estimate.low:+.2f}, {100 * estimate.high:+.2f}]"
        texts[name] = f"{100 * estimate.value:+.2f}{share} {ends}, p {_p(p)}"
    return texts


def _says(name: str, methods: Mapping[str, Mapping[str, Any]]) -> str:
    says = {V2: "v2's task adapter", BOTH: "both at inference, mean of probabilities (not deployable)"}
    return says.get(name) or f"{methods[name]['says']} (`{name}`)"


def _figure(key: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if key == "relative_nfr" else f"{100 * value:.2f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def picture(title: str, figures: Mapping[str, Mapping[str, float]], seeds: Seeds) -> str:
    """Accuracy against NFR of v2, the controls and the main methods, as far as they have all seeds of the cell, as an
    SVG that stands alone."""
    points = []
    for name in (V2, *DRAWN, BOTH):
        if name not in figures or len(with_model(seeds, name)) < len(seeds):
            continue
        row = figures[name]
        better = [
            other for other in figures.values() if other["nfr"] < row["nfr"] and other["acc_new"] > row["acc_new"]
        ]
        each = [seed.figures(name) for seed in with_model(seeds, name)]
        flips, accuracy = (
            Estimate(
                row[figure],
                min(one[figure] for one in each),
                max(one[figure] for one in each),
                math.nan,
                "range of seeds",
            )
            for figure in ("nfr", "acc_new")
        )
        label = "both" if name == BOTH else name.replace("transfer_", "")
        points.append(charts.Point(label, flips, accuracy, not better))
    old = Estimate(figures[V2]["acc_old"], math.nan, math.nan)
    axes = ("negative flips", "mean similarity" if seeds[0].scored else "accuracy")
    drawn = str(charts.trade_off(title, points, (V1, old), axes, (wording.percent,) * 2, None))
    style = resources.files("muscle_hf.report").joinpath("assets/report.css").read_text(encoding="utf-8")
    start = drawn.index(">") + 1
    head = drawn[:start].replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)
    return f"{head}<style>{style}</style>{drawn[start:]}\n"


def summary(parts: Mapping[str, tuple[Seeds, dict[str, dict]]], methods: Mapping[str, Any]) -> list[str]:
    """One line a cell: the figures of the methods that most cells have."""
    shown = (CONTROL, *SHOWN, BOTH)
    head = ["cell", "seeds", "v1", "v2", *(f"`{name}`" if name in methods else name for name in shown)]
    lines = table_head(head)
    for cell, (seeds, figures) in parts.items():
        row = [f"[{cell}](#{cell})", str(len(seeds)), f"{100 * figures[V2]['acc_old']:.2f}"]
        for name in (V2, *shown):
            if name not in figures:
                row.append("")
                continue
            here = means(with_model(seeds, name), V2)["nfr"]
            share = f" ({100 * (figures[name]['nfr'] / here - 1):+.0f} %)" if name != V2 and here else ""
            fewer = _fewer(seeds, name)
            row.append(f"{100 * figures[name]['acc_new']:.2f} / {100 * figures[name]['nfr']:.2f}{share}{fewer}")
        lines.append("| " + " | ".join(row) + " |")
    return lines


def _fewer(seeds: Seeds, name: str) -> str:
    """How many seeds have a model, if not all."""
    counted = len(with_model(seeds, name))
    return f", {counted} seed{'s' * (counted > 1)}" if counted < len(seeds) else ""


def against(parts: Mapping[str, tuple[Seeds, dict[str, dict]]], reference: str, names: Sequence[str]) -> list[str]:
    """One line a cell: each method's change of NFR and accuracy against a control, marked where it is not chance."""
    lines = table_head(["cell", *(f"`{name}`" for name in names)])
    for cell, (seeds, _) in parts.items():
        here = [name for name in names if with_model(seeds, name, reference)]
        if not here:
            continue
        found = [changes(seeds, here, reference, figure) for figure in ("nfr", "acc_new")]
        row = [cell]
        for name in names:
            if name not in here:
                row.append("")
                continue
            base = means(with_model(seeds, name, reference), reference)["nfr"]
            (flips, p), (accuracy, p_accuracy) = (of[name] for of in found)
            row.append(
                f"{100 * flips.value:+.2f}{_star(p)} ({100 * flips.value / base:+.0f} %) / "
                f"{100 * accuracy.value:+.2f}{_star(p_accuracy)}"
            )
        lines.append("| " + " | ".join(row) + " |")
    return lines


def published() -> list[str]:
    """The paper's own changes of NFR, from the recipes of its rows: a line an update, a column a task."""
    changes: dict[str, dict[str, float]] = {}
    for file in sorted((ROOT / "recipes" / "paper").glob("*_to_*/*.yaml")):
        row = yaml.safe_load(file.read_text(encoding="utf-8")).get("published", {})
        if row.get("nfr_change_percent") is not None:
            changes.setdefault(file.parent.name, {})[file.stem] = row["nfr_change_percent"]
    tasks = sorted({task for row in changes.values() for task in row})
    lines = [f"| | {' | '.join(tasks)} |", "|" + "---|" * (len(tasks) + 1)]
    for update, row in changes.items():
        cells = (f"{row[task]:+.1f} %" if task in row else "" for task in tasks)
        lines.append(f"| {update.replace('_', ' ')} | {' | '.join(cells)} |")
    return lines


# Methods that Table 7 has too, and the recipes that hold its figures.
TABLE_7 = {
    "muscle": "llama_1_to_2_7b/piqa",
    "muscle_ce": "masks/student_wrong_ce",
    "old_right": "masks/old_right",
    "always_old": "masks/always_old",
    "old_likelier_ce": "masks/old_likelier_ce",
    "old_likelier_sequence_ce": "masks/old_likelier_sequence_ce",
}


def table_7(parts: Mapping[str, tuple[Seeds, dict[str, dict]]], methods: Mapping[str, Any]) -> list[str]:
    """The masks of the paper's ablation below its percentages: a line for each cell that has them all."""
    having = {cell: seeds for cell, (seeds, figures) in parts.items() if figures.keys() >= TABLE_7.keys()}
    if not having:
        return []
    lines = table_head(["", *(methods[name]["says"] for name in TABLE_7)])
    recipes = (ROOT / "recipes" / "paper" / f"{recipe}.yaml" for recipe in TABLE_7.values())
    paper = (yaml.safe_load(file.read_text(encoding="utf-8"))["published"]["nfr_change_percent"] for file in recipes)
    lines.append(f"| paper (PIQA, Llama 1 to 2), against v2 | {' | '.join(f'{share:+.0f} %' for share in paper)} |")
    for cell, seeds in having.items():
        texts = [_marked(seeds, tuple(TABLE_7), reference) for reference in (V2, CONTROL)]
        row = (" / ".join(text[name] for text in texts) + _fewer(seeds, name) for name in TABLE_7)
        lines.append("| " + " | ".join([cell, *row]) + " |")
    return lines


def _marked(seeds: Seeds, names: Sequence[str], reference: str) -> dict[str, str]:
    """Each model's change of NFR against a reference in percent, marked where it is not chance."""
    texts = {}
    for name, (estimate, p) in changes(seeds, names, reference, "nfr").items():
        base = means(with_model(seeds, name), reference)["nfr"]
        texts[name] = f"{100 * estimate.value / base:+.0f} %{_star(p)}"
    return texts


def _star(p: float) -> str:
    return r"\*" if p < 0.05 else ""


def chosen_targets(read: Mapping[int, Answers]) -> str:
    """What the seeds of a cell chose to follow on their validation rows."""
    masks = [f"{answers.training['transfer_chosen']['transfer_mask']} (seed {seed})"
             for seed, answers in read.items() if "transfer_chosen" in answers.training]  # fmt: skip
    return f" Targets chosen: {', '.join(masks)}." if masks else ""


def write_report(plan: Mapping[str, Any]) -> None:
    """Write what the records of the plan's cells say into the results and the documents."""
    parts, texts = {}, []
    for name in plan["cells"]:
        read = {seed: read_record(name, seed) for seed in plan["seeds"]}
        # A seed counts from the control on, which every method is compared with.
        read = {seed: found for seed, found in read.items() if found is not None and CONTROL in found.quality}
        if not read:
            continue
        seeds = tuple(read.values())
        lines, figures = cell_table(seeds, plan["methods"])
        parts[name] = (seeds, figures)
        file = f"study-{name}.svg"
        title = f"{name}, {len(seeds)} seed{'s' * (len(seeds) > 1)}"
        (RESULTS / file).write_text(picture(title, figures, seeds), encoding="utf-8")
        items = len(seeds[0].quality[V2])
        texts.append(
            f"## {name}\n\nSeeds {', '.join(map(str, read))}; {items} test items; "
            f"{'mean similarity' if seeds[0].scored else 'accuracy'} of v1 {100 * figures[V2]['acc_old']:.2f}."
            f"{chosen_targets(read)}\n\n" + "\n".join(lines) + f"\n\n![Accuracy against negative flips]({file})\n"
        )
    done = {name for _, figures in parts.values() for name in figures}
    chosen = {name: method["chosen"] for name, method in plan["methods"].items() if name in done}
    settings = "; ".join(f"`{name}` {trial_name(trial, ', ')}" for name, trial in chosen.items())
    over_cells, ablation = ("\n".join(make(parts, plan["methods"])) for make in (summary, table_7))
    text = (
        "# The study\n\n`python benchmarks/study/tune.py && python benchmarks/study/run.py && "
        f"python benchmarks/study/report.py`, CPU ({platform.machine()}), one thread; the plan is "
        "benchmarks/study/plan.yaml, the tuning is in [study_tuning.md](study_tuning.md).\n\n"
        "Figures in percent, means over the seeds that a method has; changes in percentage points with the 95 % "
        "interval of a bootstrap over items, relative to the other's NFR in brackets, and the p-value of a sign test "
        "over items, corrected by Holm over the methods of the cell. Whiskers in the pictures are the range of the "
        "seeds; they show the main methods, where they have all seeds of the cell. Returned: of v1's "
        "errors that v2 had shed, the share that the model makes again; inherited: with v1's own wrong "
        "answer.\n\n## All cells\n\n"
        "Accuracy (or mean similarity) / NFR, and NFR against v2's on the same seeds.\n\n"
        + over_cells
        + "\n\nThe paper's changes of NFR against v2, with CE where it used it (Tables 4 to 6; no control was trained "
        "there):\n\n"
        + "\n".join(published())
        + "\n\nThe masks of its Table 7, changes of NFR against v2 / against plain CE (\\* p < 0.05 after "
        "Holm):\n\n" + ablation + f"\n\nSettings: {settings}.\n\n" + "\n".join(texts)
    )
    (RESULTS / "study.md").write_text(text, encoding="utf-8")
    controls = [against(parts, reference, names) for reference, names in AGAINST.items()]
    shown = [name for reference, names in AGAINST.items() for name in (reference, *names)]
    known = [name for name in dict.fromkeys(shown) if name in plan["methods"]]
    legend = "; ".join(f"`{name}`: {plan['methods'][name]['says']}" for name in known)
    words = WORDS.format(legend, over_cells, *map("\n".join, controls), ablation)
    put_between(ROOT / "docs" / "study.md", MARK, words.replace("](#", "](../benchmarks/results/study.md#"))
    print(text)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_report(load_plan())


if __name__ == "__main__":
    main()
