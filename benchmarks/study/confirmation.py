"""What was expected of the confirmation (expected.yaml, written before it was run), and what came out.

    python benchmarks/study/confirmation.py

Reads the records alone (``run.py --cells confirm-urgency ...`` makes them) and writes into benchmarks/study/REPORT.md
and docs/explanation/study.md.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from answers import BOTH, V2
from compared import Seeds, agreeing, change, means, over_seeds, with_model
from other_tokens import figures, recorded
from study import ROOT, load_plan
from tables import fewer_seeds, near_chance, p_text, table_head

from muscle_hf.metrics import holm

sys.path.insert(0, str(ROOT / "benchmarks"))  # what all benchmarks share
from reporting import put_between

EXPECTED = Path(__file__).with_name("expected.yaml")
MARK = "<!-- tables: written by benchmarks/study/confirmation.py -->"
DOCUMENTS = (ROOT / "benchmarks" / "study" / "REPORT.md", ROOT / "docs" / "explanation" / "study.md")
# Name in the records -> what the page calls it.
METHODS = {
    V2: "v2 as it is",
    "ce_long": "plain training for as long",
    "muscle": "the paper's objective",
    "transfer_mean": "consensus",
    "ce_longer": "plain training for twice as long",
    "long_transfer_mean": "consensus after plain training",
    BOTH: "both models (bound)",
}
AFTER_PLAIN = ("long_transfer_mean", "ce_longer")


def all_figures(cells: Mapping[str, Seeds], names: Mapping[str, str]) -> list[str]:
    """Accuracy / NFR of every model that a cell has, a line a cell."""
    names = {name: says for name, says in names.items() if any(with_model(seeds, name) for seeds in cells.values())}
    lines = table_head(["cell", "seeds", "v1", *names.values()])
    for cell, seeds in cells.items():
        told = [figures(seeds, name) + fewer_seeds(seeds, name) if with_model(seeds, name) else "" for name in names]
        row = [cell, str(len(seeds)), f"{100 * means(seeds, V2)['acc_old']:.2f}", *told]
        lines.append("| " + " | ".join(row) + " |")
    return lines


def came_out(seeds: Seeds, method: str, reference: str, figure: str) -> tuple[float, float, float]:
    """A change and the ends of its 95 % interval over items: of NFR in percent of the reference's, else in points."""
    found, _ = change(seeds, method, reference, figure)
    whole = means(with_model(seeds, method, reference), reference)["nfr"] if figure == "nfr" else 1
    return tuple(100 * value / whole if whole else math.nan for value in (found.value, found.low, found.high))


def held(cells: Mapping[str, Seeds], expected: Mapping[str, Any]) -> list[str]:
    """What was expected, what came out, and whether it lies where it was expected."""
    lines = table_head(["cell", "change", "seeds", "expected", "came out", "as expected", "same side", "p over seeds"])
    for cell, seeds in cells.items():
        for row in expected["cells"][cell]["expected"]:
            named = [row[key] for key in ("method", "reference", "figure")]
            having = with_model(seeds, *named[:2])
            if not having:
                continue
            unit = "%" if row["figure"] == "nfr" else "points"
            value, low, high = came_out(having, *named)
            says = f"`{row['method']}` against {_name(row['reference'])}, {'NFR' if unit == '%' else 'accuracy'}"
            same, counted = agreeing(having, *named[:2]) if unit == "%" else (0, 0)
            told = [
                cell,
                says,
                str(len(having)),
                f"{row['expect']:+g} ({row['from']:+g} to {row['to']:+g}) {unit}",
                f"{value:+.1f} [{low:+.1f}, {high:+.1f}] {unit}",
                "yes" if row["from"] <= value <= row["to"] else "no",
                f"{same} of {counted}" if counted else "",
                p_text(over_seeds(having, *named)[1]),
            ]
            lines.append("| " + " | ".join(told) + " |")
    return lines


def _name(model: str) -> str:
    return model if model == V2 else f"`{model}`"


def primary(cells: Mapping[str, Seeds], expected: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """Of the question that was asked beforehand: change in percent and its p-value over seeds, corrected by Holm."""
    named = [expected["primary"][key] for key in ("method", "reference", "figure")]
    having = {cell: seeds for cell, seeds in cells.items() if with_model(seeds, *named[:2])}
    corrected = holm([over_seeds(seeds, *named)[1] for seeds in having.values()])
    return {cell: (came_out(having[cell], *named)[0], p) for cell, p in zip(having, corrected, strict=True)}


def main() -> None:
    plan, expected = load_plan(), yaml.safe_load(EXPECTED.read_text(encoding="utf-8"))
    cells = recorded(plan, {cell: cell for cell in expected["cells"]})
    guessed = [cell for cell, seeds in cells.items() if near_chance(seeds)]
    answers = primary({cell: seeds for cell, seeds in cells.items() if cell not in guessed}, expected)
    asked = "; ".join(f"{cell} {value:+.0f} %, p {p_text(p)}" for cell, (value, p) in answers.items())
    told = ["", f"Flips of consensus against plain training for as long, paired t-test over seeds (Holm): {asked}."]
    for cell, seeds in cells.items():
        if having := with_model(seeds, *AFTER_PLAIN):
            value, p = came_out(having, *AFTER_PLAIN, "nfr")[0], over_seeds(having, *AFTER_PLAIN, "nfr")[1]
            found = f"{cell} {value:+.0f} %, p {p_text(p)}, {len(having)} seeds"
            told.append(f"Flips of consensus after plain training against plain training for twice as long: {found}.")
    if guessed:
        told.append(f"Near chance, where nothing is decided: {', '.join(guessed)}.")
    if missing := [cell for cell in expected["cells"] if cell not in cells]:
        told.append(f"Not run: {', '.join(missing)}.")
    long = [
        "Accuracy / NFR in percent; in brackets NFR against v2's:",
        "",
        *all_figures(cells, METHODS),
        "",
        "Intervals are of a bootstrap over items, p-values of a paired t-test over seeds, not corrected:",
        "",
        *held(cells, expected),
        *told,
    ]
    page = [*all_figures(cells, METHODS), *told]
    for document, lines in zip(DOCUMENTS, (long, page), strict=True):
        put_between(document, MARK, "\n".join(lines))
        print("\n".join(lines), end="\n\n")


if __name__ == "__main__":
    main()
