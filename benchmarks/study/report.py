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
from typing import Any

import yaml
from answers import BOTH, FIGURES, V2, Answers
from compared import CONTROL, Seeds, agreeing, changes, means, over_cells, over_seeds, with_model
from pictures import PAIRS, overview, picture
from records import read_record
from study import ROOT, load_plan, trial_name

from muscle_hf.metrics import holm

sys.path.insert(0, str(ROOT / "benchmarks"))  # what all benchmarks share
from reporting import put_between

RESULTS = ROOT / "benchmarks" / "results"
# Methods that most cells have, in the tables over all cells.
SHOWN = ("ce_long", "ce_pseudo", "muscle", "muscle_ce", "focal_ce", "transfer_mean", "transfer_mean_ce",
         "transfer_calibrated", "long_transfer_mean")  # fmt: skip
# What is held against each control, and the words above its table.
AGAINST = {
    CONTROL: (
        SHOWN,
        "Against the control, plain CE: change of NFR in points (in percent) / of accuracy in points; \\* p < 0.05 "
        "after Holm's\ncorrection over the row; each on the seeds that have the method. Where NFR does not change to "
        "the same side in all of\nthem, it says in how many it does:",
    ),
    "ce_long": (
        ("muscle_ce", "focal_ce", "transfer_mean", "transfer_mean_ce", "transfer_calibrated"),
        "The same against plain CE with as many steps as with transfer rows (`ce_long`), on the seeds that have both:",
    ),
    "ce_longer": (
        ("transfer_mean", "long_transfer_mean", "long_transfer_calibrated"),
        "And against plain CE that goes on after `ce_long` for as many steps again (`ce_longer`), at least as\nmany "
        "as `long_transfer_mean` has:",
    ),
    "ce_long_dropout": (
        ("transfer_mean_all", "transfer_mean_dropout"),
        "With dropout, and all transfer rows there are, against plain CE with the same dropout and as many steps as "
        "with all of\nthese rows (`ce_long_dropout`):",
    ),
    "ce_longer_dropout": (
        ("transfer_mean_dropout", "long_transfer_mean_dropout"),
        "The same against twice as many steps (`ce_longer_dropout`), as many as `long_transfer_mean_dropout` has:",
    ),
}
PICTURES = (
    "Changes in points, with the 95 % interval of a bootstrap over items; in colour what is not chance (p < 0.05 "
    "after Holm's correction over the cells), blue for the better."
)
MARK = "<!-- tables: written by benchmarks/study/report.py -->"
WORDS = """{}.

Accuracy (or mean similarity) / NFR in percent, means over the seeds that have the method; in
brackets NFR against v2's on these:

{}

{}

{}

The masks of the paper's Table 7, changes of NFR against v2 / against plain CE; \\* as above:

{}
"""


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
    if math.isnan(value):
        return "unknown"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


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
            same, counted = agreeing(seeds, name, reference)
            row.append(
                f"{100 * flips.value:+.2f}{_star(p)} ({100 * flips.value / base:+.0f} %"
                f"{f', {same} of {counted} seeds' if same < counted else ''}) / "
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
            columns += [[f"p {_p(p)}" for p in tested] for tested in ((p for _, p in of_items.values()), corrected)]
        for cell, *row in zip(of_items, *columns, strict=True):
            counted = len(with_model(cells[cell], name, reference))
            lines.append("| " + " | ".join([f"`{name}` against `{reference}`", cell, str(counted), *row]) + " |")
    return lines


def pictures_over_cells(cells: Mapping[str, Seeds], methods: Mapping[str, Any]) -> str:
    """Writes the pictures over all cells; the Markdown that shows them, a line for each pair of method and control."""
    lines = []
    for name, reference in PAIRS:
        shown = []
        for figure, drawn in overview(cells, name, reference).items():
            file = f"study_{name}-{figure}.svg"
            (RESULTS / file).write_text(drawn, encoding="utf-8")
            shown.append(f"![Change of {figure} over the cells]({file})")
        if shown:
            says = f"{methods[name]['says']}, against {methods[reference]['says']}"
            lines.append("| " + " | ".join([says, *shown]) + " |")
    if not lines:
        return ""
    return "\n".join([PICTURES, "", *table_head(["", "change of NFR", "change of accuracy"]), *lines])


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
    cells = {name: seeds for name, (seeds, _) in parts.items()}
    pictures = pictures_over_cells(cells, plan["methods"])
    summed_up, ablation = ("\n".join(make(parts, plan["methods"])) for make in (summary, table_7))
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
        + summed_up
        + f"\n\n{pictures}\n\nThe same, and their standard deviation over seeds; p-values of the sign "
        "test over items and of a paired t-test over seeds, each corrected by Holm over the cells:\n\n"
        + "\n".join(both_tests(cells))
        + "\n\nThe paper's changes of NFR against v2, with CE where it used it (Tables 4 to 6; no control was trained "
        "there):\n\n"
        + "\n".join(published())
        + "\n\nThe masks of its Table 7, changes of NFR against v2 / against plain CE (\\* p < 0.05 after "
        "Holm):\n\n" + ablation + f"\n\nSettings: {settings}.\n\n" + "\n".join(texts)
    )
    (RESULTS / "study.md").write_text(text, encoding="utf-8")
    controls = [
        "\n".join([above, "", *against(parts, reference, names)]) for reference, (names, above) in AGAINST.items()
    ]
    shown = [name for reference, (names, _) in AGAINST.items() for name in (reference, *names)]
    known = [name for name in dict.fromkeys(shown) if name in plan["methods"]]
    legend = "; ".join(f"`{name}`: {plan['methods'][name]['says']}" for name in known)
    words = WORDS.format(legend, summed_up, pictures, "\n\n".join(controls), ablation)
    words = words.replace("](#", "](../benchmarks/results/study.md#").replace(
        "](study_", "](../benchmarks/results/study_"
    )
    put_between(ROOT / "docs" / "study.md", MARK, words)
    print(text)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    write_report(load_plan())


if __name__ == "__main__":
    main()
