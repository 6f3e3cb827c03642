"""Tables of the cells whose v2 has another tokenizer, beside the cells with one tokenizer that they repeat.

    python benchmarks/study/other_tokens.py

Reads the records alone (``run.py --cells tokenizer-trec ...`` makes them) and writes into benchmarks/study/REPORT.md
and docs/explanation/results.md. Figures are over the seeds that have a method; changes are paired over seeds and
items.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import NamedTuple

from answers import BOTH, V2
from compared import Seeds, change, means, with_model
from records import read_record
from study import ROOT, load_plan
from tables import table_head

sys.path.insert(0, str(ROOT / "benchmarks"))  # what all benchmarks share
from reporting import put_between

# The cell with one tokenizer that has the same task, rows, steps and settings, and its method.
TWINS = {
    "tokenizer-trec": "level-trec",
    "tokenizer-ag_news": "level-ag_news",
    "tokenizer-sst2": "level-sst2",
    "tokenizer-routing": "demo-routing",
    "dropout-ag_news": "level-ag_news",
    "dropout-sst2": "level-sst2",
    "tokenizer-refund": "demo-refund",
    "tokenizer-summary": "demo-summary",
}


class Method(NamedTuple):
    """What is said of v1's signal, the plain training with as many steps, and the method with one tokenizer."""

    says: str
    control: str = "ce_long"
    twin: str = "transfer_mean"


METHODS = {
    "transfer_answer": Method("one number an answer (X4)"),
    "transfer_tokens": Method("tokens (X1, X2)"),
    "transfer_choices": Method("scores of choices (X3)"),
}
# On v2 with more plain training, or with dropout and all transfer rows.
LONGER = {
    "long_transfer_tokens": Method("tokens, after plain training", "ce_longer", "long_transfer_mean"),
    "transfer_answer_dropout": Method("X4 with dropout", "ce_long_dropout", "transfer_mean_dropout"),
    "long_transfer_answer_dropout": Method(
        "X4 with dropout, after plain training", "ce_longer_dropout", "long_transfer_mean_dropout"
    ),
}
EVERY = METHODS | LONGER
FEWER_THAN_V2, FEWER_THAN_CONTROL = 0.30, 0.20
MARK = "<!-- tables: written by benchmarks/study/other_tokens.py -->"
DOCUMENTS = (ROOT / "benchmarks" / "study" / "REPORT.md", ROOT / "docs" / "explanation" / "results.md")


def figures(seeds: Seeds, name: str) -> str:
    """Accuracy (or mean similarity) / NFR of a model, and its NFR against v2's."""
    having = with_model(seeds, name)
    if not having:
        return ""
    found, v2 = means(having, name), means(having, V2)["nfr"]
    share = f" ({100 * (found['nfr'] / v2 - 1):+.0f} %)" if name != V2 and v2 else ""
    return f"{100 * found['acc_new']:.2f} / {100 * found['nfr']:.2f}{share}{fewer(having, seeds)}"


def fewer(having: Seeds, seeds: Seeds) -> str:
    """How many seeds have a method, where not all of the row's have it."""
    return "" if len(having) == len(seeds) else f", {len(having)} of {len(seeds)} seeds"


def reached(seeds: Seeds, name: str) -> float | None:
    """Of the flips that both models at inference avoid, the share that a method avoids; None if there are none."""
    having = with_model(seeds, name, BOTH)
    if not having:
        return None
    v2, own, both = (means(having, model)["nfr"] for model in (V2, name, BOTH))
    return (v2 - own) / (v2 - both) if v2 > both else None


def goal(seeds: Seeds, name: str) -> list[str]:
    """What is asked of a method: NFR against v2 and against its control, accuracy against that, all of it."""
    beside = EVERY[name].control
    flips, accuracy = (change(seeds, name, beside, figure)[0] for figure in ("nfr", "acc_new"))
    having = with_model(seeds, name, beside)
    own, v2, control = (means(having, model)["nfr"] for model in (name, V2, beside))
    below = [own / v2 - 1, own / control - 1 if control else float("nan")]
    met = below[0] <= -FEWER_THAN_V2 and below[1] <= -FEWER_THAN_CONTROL and accuracy.value >= 0
    ends = [f"{100 * of.value:+.2f} [{100 * of.low:+.2f}, {100 * of.high:+.2f}]" for of in (flips, accuracy)]
    return [f"{100 * below[0]:+.0f} %", f"{100 * below[1]:+.0f} % ({ends[0]})", ends[1], "yes" if met else "no"]


def percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f} %"


def all_figures(cells: Mapping[str, Seeds]) -> list[str]:
    heads = ["plain CE as long", *(method.says for method in METHODS.values()), "both at inference"]
    lines = table_head(["cell", "seeds", "v1", "v2", *heads])
    for cell, seeds in cells.items():
        row = [cell, str(len(seeds)), f"{100 * means(seeds, V2)['acc_old']:.2f}"]
        row += [figures(seeds, name) for name in (V2, "ce_long", *METHODS, BOTH)]
        lines.append("| " + " | ".join(row) + " |")
    lines += ["", *table_head(["cell", "seeds", "with longer training", "as much plain CE", "consensus"])]
    for cell, seeds in cells.items():
        for name, method in LONGER.items():
            if having := with_model(seeds, name, method.control):
                row = [cell, str(len(having)), method.says, figures(having, method.control), figures(having, name)]
                lines.append("| " + " | ".join(row) + " |")
    return lines


def all_goals(cells: Mapping[str, Seeds], twins: Mapping[str, Seeds]) -> list[str]:
    lines = table_head(
        ["cell", "of v1", "seeds", "NFR against v2", "NFR against as much plain CE (points)",
         "accuracy against it, points", "goal met", "share of both at inference", "with one tokenizer"]
    )  # fmt: skip
    for cell, seeds in cells.items():
        for name, method in EVERY.items():
            if having := with_model(seeds, name, method.control):
                twin = percent(reached(twins.get(cell, ()), method.twin))
                row = [cell, method.says, str(len(having)), *goal(seeds, name), percent(reached(seeds, name)), twin]
                lines.append("| " + " | ".join(row) + " |")
    return lines


def short_table(cells: Mapping[str, Seeds], twins: Mapping[str, Seeds]) -> list[str]:
    """NFR against v2, for the page: with another tokenizer, and with one."""
    lines = table_head(
        [
            "",
            "seeds",
            "plain training as long",
            *(method.says for method in METHODS.values()),
            "consensus with one tokenizer",
            "both models (bound)",
        ]
    )
    for cell, seeds in cells.items():
        kind, task = cell.split("-")
        names, twin = ["ce_long", *METHODS], "transfer_mean"
        if kind == "dropout":
            names, twin = ["ce_long_dropout", "transfer_answer_dropout", "", ""], "transfer_mean_dropout"
            task += ", dropout and all rows"
        row = [task, str(len(seeds)), *(against_v2(seeds, name) for name in names)]
        row += [against_v2(twins.get(cell, ()), twin), against_v2(seeds, BOTH)]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def against_v2(seeds: Seeds, name: str) -> str:
    having = with_model(seeds, name)
    v2 = means(having, V2)["nfr"] if having else 0
    return f"{100 * (means(having, name)['nfr'] / v2 - 1):+.0f} %{fewer(having, seeds)}" if v2 else ""


def recorded(plan: Mapping, names: Mapping[str, str]) -> dict[str, Seeds]:
    found = {
        key: tuple(filter(None, (read_record(cell, seed) for seed in plan["seeds"]))) for key, cell in names.items()
    }
    return {key: seeds for key, seeds in found.items() if with_model(seeds, V2)}


def main() -> None:
    plan = load_plan()
    cells = recorded(plan, {cell: cell for cell in TWINS})
    twins = recorded(plan, {cell: twin for cell, twin in TWINS.items() if cell in cells})
    long = [
        "Accuracy (or mean similarity) / NFR in percent; in brackets NFR against v2's:",
        "",
        *all_figures(cells),
        "",
        "The goal: NFR 30 % below v2's and 20 % below as much plain CE, at no less accuracy; with 95 % intervals "
        "of a bootstrap over items. Of the flips that both at inference avoid, the share that a method avoids, and "
        "that of the same method in the cell with one tokenizer:",
        "",
        *all_goals(cells, twins),
    ]
    for document, lines in zip(DOCUMENTS, (long, short_table(cells, twins)), strict=True):
        put_between(document, MARK, "\n".join(lines))
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
