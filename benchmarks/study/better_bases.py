"""Whether the gain shrinks as bases get better: of each cell with choices, all seeds and adapters above chance,
negative flips beside the parameters of v2's base, and beside how much more accurate v2 is than v1.

    python benchmarks/study/better_bases.py

Reads the records alone; writes a table into benchmarks/study/REPORT.md and two pictures into benchmarks/results.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from answers import V2
from bases import KEPT, READY
from compared import Seeds, change, means, with_model
from pictures import alone
from report import recorded
from safetensors import safe_open
from scipy.stats import spearmanr
from study import ROOT, load_plan
from tables import near_chance, table_head

from muscle_hf.demo import base as demo_base
from muscle_hf.metrics import Estimate
from muscle_hf.report import charts, wording

sys.path.insert(0, str(ROOT / "benchmarks"))  # what all benchmarks share
from reporting import RESULTS, put_between

MARK = "<!-- better bases: written by benchmarks/study/better_bases.py -->"
METHOD, CONTROL = "transfer_mean", "ce_long"
STAR = " \\*"


def base_folder(base: str, plan: Mapping[str, Any]) -> Path:
    """The folder of a base of the plan, or of one with as many parameters."""
    kind, _, name = base.partition(":")
    if kind == "demo":
        return demo_base(name)
    if kind != "made":
        return ROOT / base
    described = plan["bases"][name]
    return ROOT / described["like"] if "like" in described else ROOT / described.get("body", KEPT / name)


def parameters(folder: Path) -> int:
    """How many parameters a base has, from the header of its file."""
    with safe_open(folder / READY, "pt") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.offset_keys())


def compared_cells(plan: Mapping[str, Any]) -> dict[str, tuple[int, Seeds]]:
    """Of each cell in question the parameters of v2's base, and its seeds."""
    found = {}
    for name, cell in plan["cells"].items():
        seeds = with_model(tuple(recorded(name, plan).values()), METHOD, CONTROL)
        if len(seeds) == len(plan["seeds"]) and seeds[0].right is not None and not near_chance(seeds):
            version = plan["versions"][plan["updates"][cell["update"]]["new"]]
            found[name] = parameters(base_folder(version["base"], plan)), seeds
    return dict(sorted(found.items(), key=lambda item: item[1][0]))


def main() -> None:
    cells, lines, points = compared_cells(load_plan()), [], {"parameters": [], "accuracy": []}
    measured: dict[str, list[float]] = {"parameters": [], "accuracy": [], "left": []}
    for name, (size, seeds) in cells.items():
        of_v2, control, consensus = (means(seeds, model) for model in (V2, CONTROL, METHOD))
        gained = of_v2["acc_new"] - of_v2["acc_old"]
        left = consensus["nfr"] / control["nfr"]
        _, p = change(seeds, METHOD, CONTROL, "nfr")
        lines.append(
            f"| {name} | {len(seeds)} | {size / 1e6:.2f} | {100 * of_v2['acc_old']:.1f} | {100 * gained:+.1f} | "
            f"{100 * of_v2['nfr']:.1f} | {100 * control['nfr']:.1f} | {100 * consensus['nfr']:.1f} | "
            f"{100 * (left - 1):+.0f} %{STAR * (p < 0.05)} |"
        )
        for against, value in (("parameters", size / 1e6), ("accuracy", gained)):
            flips, of_base = (Estimate(number, number, number) for number in (left, value))
            points[against].append(charts.Point(name, flips, of_base, True))
            measured[against].append(value)
        measured["left"].append(left)
    head = ["cell", "seeds", "parameters of v2, millions", "accuracy of v1", "of v2 - v1", "NFR of v2",
            "plain training as long", "consensus", "consensus / plain"]  # fmt: skip
    axes = {
        "parameters": ("millions of parameters of v2", lambda value: f"{value:.1f}"),
        "accuracy": ("accuracy of v2 - v1", wording.points),
    }
    unknown, shown = Estimate(math.nan, math.nan, math.nan), []
    for against, (axis, show) in axes.items():
        title = f"Negative flips of consensus over plain training's, and {axis}"
        names = ("flips left of plain training's", axis)
        drawn = charts.trade_off(title, points[against], ("", unknown), names, (wording.percent, show))
        (RESULTS / f"study_bases-{against}.svg").write_text(alone(drawn), encoding="utf-8")
        rho = spearmanr(measured[against], measured["left"])
        shown.append(f"![{title}](../results/study_bases-{against}.svg)\n\nSpearman's rho {rho.statistic:+.2f}, "
                     f"p {rho.pvalue:.3f} over {len(cells)} cells.")  # fmt: skip
    text = "\n".join([*table_head(head), *lines]) + "\n\n" + "\n\n".join(shown)
    put_between(ROOT / "benchmarks" / "study" / "REPORT.md", MARK, text)
    print(text)


if __name__ == "__main__":
    main()
