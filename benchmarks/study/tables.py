"""The study's tables over answers that are recorded, as lines of Markdown."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from answers import BOTH, FIGURES, V1, V2
from compared import (
    CONTROL,
    Seeds,
    agreeing,
    changes,
    flips_between,
    means,
    over_cells,
    over_seeds,
    with_model,
)
from pictures import PAIRS
from study import ROOT

from muscle_hf.metrics import holm

# The seeds of each cell, and the figures of its models.
Parts = Mapping[str, tuple[Seeds, dict[str, dict]]]

# Methods that most cells have, in the tables over all cells.
SHOWN = ("ce_long", "ce_pseudo", "muscle", "muscle_ce", "focal_ce", "transfer_mean", "transfer_mean_ce",
         "transfer_calibrated", "long_transfer_mean")  # fmt: skip
# What the goals of the study are held against.
FOR_GOALS = ("transfer_mean", "transfer_mean_dropout", "long_transfer_mean_dropout",
             "transfer_mean_dropout_from_old", "long_transfer_mean_dropout_from_old",
             "long_transfer_old65_dropout_from_old")  # fmt: skip


def called(name: str, methods: Mapping[str, Mapping[str, Any]]) -> str:
    """What a model is called in a table's head: its readable name, with that of the records where it shares it."""
    return methods.get(name, {}).get("called", name)


def near_chance(seeds: Seeds) -> bool:
    """Whether the accuracy of v1 or v2 is within three standard errors of what guessing gives: then flips decide
    nothing."""
    if seeds[0].right is None:
        return False
    guessed = 1 / (1 + max(int(of.max()) for seed in seeds for of in (seed.right, *seed.choice.values())))
    error = math.sqrt(guessed * (1 - guessed) / len(seeds[0].right))
    found = means(seeds, V2)
    return min(found["acc_old"], found["acc_new"]) <= guessed + 3 * error


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
        texts[name] = f"{100 * estimate.value:+.2f}{share} {ends}, p {p_text(p)}"
    return texts


def _says(name: str, methods: Mapping[str, Mapping[str, Any]]) -> str:
    says = {V2: "v2's task adapter", BOTH: "both at inference, mean of probabilities (not deployable)"}
    return says.get(name) or f"{methods[name]['says']} (`{name}`)"


def _figure(key: str, value: float) -> str:
    if math.isnan(value):
        return ""
    return f"{value:.3f}" if key == "relative_nfr" else f"{100 * value:.2f}"


def p_text(value: float) -> str:
    """A p-value in words; nan is unknown."""
    if math.isnan(value):
        return "unknown"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def summary(parts: Parts, methods: Mapping[str, Any]) -> list[str]:
    """One line a cell that has methods which most cells have: their figures."""
    shown = (CONTROL, *SHOWN, BOTH)
    lines = table_head(["cell", "seeds", "v1", "v2", *(called(name, methods) for name in shown)])
    for cell, (seeds, figures) in parts.items():
        if figures.keys().isdisjoint(SHOWN):
            continue
        where = f"[{cell}](#{cell}){', near chance' * near_chance(seeds)}"
        row = [where, str(len(seeds)), f"{100 * figures[V2]['acc_old']:.2f}"]
        for name in (V2, *shown):
            if name not in figures:
                row.append("")
                continue
            here = means(with_model(seeds, name), V2)["nfr"]
            share = f" ({100 * (figures[name]['nfr'] / here - 1):+.0f} %)" if name != V2 and here else ""
            fewer = fewer_seeds(seeds, name)
            row.append(f"{100 * figures[name]['acc_new']:.2f} / {100 * figures[name]['nfr']:.2f}{share}{fewer}")
        lines.append("| " + " | ".join(row) + " |")
    return lines


def fewer_seeds(seeds: Seeds, name: str) -> str:
    """How many seeds have a model, if not all."""
    counted = len(with_model(seeds, name))
    return f", {counted} seed{'s' * (counted > 1)}" if counted < len(seeds) else ""


def against(parts: Parts, methods: Mapping[str, Any], reference: str, names: Sequence[str]) -> list[str]:
    """One line a cell: each method's change of NFR and accuracy against a control, marked where it is not chance."""
    lines = table_head(["cell", *(called(name, methods) for name in names)])
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
            same, counted = agreeing(seeds, name, reference)
            row.append(
                f"{100 * flips.value:+.2f}{_star(p)} ({100 * flips.value / base:+.0f} %"
                f"{f', {same} of {counted} seeds' if same < counted else ''}) / "
                f"{100 * accuracy.value:+.2f}{_star(p_accuracy)}"
            )
        lines.append("| " + " | ".join(row) + " |")
    return lines


def goals(parts: Parts, methods: Mapping[str, Any]) -> list[str]:
    """One line a cell: the figures that the goals of the study are about; near chance there is none."""
    lines = table_head(["cell", *(called(name, methods) for name in FOR_GOALS)])
    for cell, (seeds, figures) in parts.items():
        here = [name for name in FOR_GOALS if name in figures]
        if not here:
            continue
        if near_chance(seeds):
            lines.append("| " + " | ".join([cell, "near chance, no goal", *[""] * (len(FOR_GOALS) - 1)]) + " |")
            continue
        flips = [_marked(seeds, here, reference) for reference in (V2, CONTROL)]
        accuracy = changes(seeds, here, CONTROL, "acc_new")
        texts = {
            name: " / ".join([*(of[name] for of in flips), f"{100 * estimate.value:+.2f}{_star(p)}"])
            for name, (estimate, p) in accuracy.items()
        }
        lines.append("| " + " | ".join([cell, *(texts.get(name, "") for name in FOR_GOALS)]) + " |")
    return lines


def chance(parts: Parts, methods: Mapping[str, Any]) -> list[str]:
    """One line a cell whose seeds have the same items: negative flips of v1 trained anew, beside those of models."""
    names = (V2, *FOR_GOALS, BOTH)
    lines = table_head(["cell", "v1 trained anew", *(called(name, methods) for name in names)])
    for cell, (seeds, figures) in parts.items():
        anew = flips_between(seeds, V1, same=False)
        if math.isnan(anew):
            continue
        row = [cell, f"{100 * anew:.2f}"]
        for name in names:
            found = [flips_between(seeds, name, same=same) for same in (True, False)] if name in figures else []
            row.append(" / ".join(f"{100 * share:.2f}" for share in found))
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


def table_7(parts: Parts, methods: Mapping[str, Any]) -> list[str]:
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
        row = (" / ".join(text[name] for text in texts) + fewer_seeds(seeds, name) for name in TABLE_7)
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


def both_tests(cells: Mapping[str, Seeds]) -> list[str]:
    """The changes of the pictures over all cells, tested over items and over seeds."""
    lines = table_head(["", "cell", "seeds", "change of NFR", "over items", "over seeds",
                        "change of accuracy", "over items", "over seeds"])  # fmt: skip
    for name, reference in PAIRS:
        columns = []
        for figure in ("nfr", "acc_new"):
            of_items = over_cells(cells, name, reference, figure)
            of_seeds = [over_seeds(cells[cell], name, reference, figure) for cell in of_items]
            columns.append(
                [
                    f"{100 * estimate.value:+.2f}, sd {100 * deviation:.2f}"
                    for (estimate, _), (deviation, _) in zip(of_items.values(), of_seeds, strict=True)
                ]
            )
            corrected = holm([p for _, p in of_seeds]) if of_seeds else []
            columns += [
                [f"p {p_text(p)}" for p in tested] for tested in ((p for _, p in of_items.values()), corrected)
            ]
        for cell, *row in zip(of_items, *columns, strict=True):
            counted = len(with_model(cells[cell], name, reference))
            lines.append("| " + " | ".join([f"`{name}` against `{reference}`", cell, str(counted), *row]) + " |")
    return lines
