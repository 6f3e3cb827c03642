"""Tables and pictures of the study, from the records of what is finished: benchmarks/results/study.md and *.svg, the
tables of benchmarks/study/REPORT.md, and those of docs/explanation/study.md, the page about it (`--page`: these alone,
and in REPORT.md the names and the baselines).

    python benchmarks/study/report.py [--page]

Figures are means over seeds. Changes are paired over seeds and items: intervals from a bootstrap that resamples items
(with all their seeds), p-values from a sign test that flips whole items, corrected by Holm over the methods of a cell.
"""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Mapping
from typing import Any

from answers import V2, Answers
from compared import CONTROL, Seeds, with_model
from page import PAGE_CELLS, page_names, page_rows, page_table
from pictures import PAIRS, overview, page_picture, picture
from records import read_record
from study import ROOT, load_plan, trial_name
from tables import (
    FOR_GOALS,
    SHOWN,
    Parts,
    against,
    both_tests,
    cell_table,
    chance,
    goals,
    published,
    summary,
    table_7,
    table_head,
)

sys.path.insert(0, str(ROOT / "benchmarks"))  # what all benchmarks share
from reporting import put_between

RESULTS = ROOT / "benchmarks" / "results"
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
        (
            "transfer_mean_dropout",
            "long_transfer_mean_dropout",
            "transfer_mean_dropout_from_old",
            "long_transfer_mean_dropout_from_old",
            "long_transfer_old65_dropout_from_old",
        ),
        "The same against twice as many steps (`ce_longer_dropout`), as many as `long_transfer_mean_dropout` has:",
    ),
    "ce_long_dropout_from_old": (
        ("transfer_mean_dropout", "transfer_mean_dropout_from_old", "long_transfer_mean_dropout_from_old"),
        "And against plain CE that starts from v1's adapter on v2's base, with dropout and as many steps "
        "(`ce_long_dropout_from_old`):",
    ),
    "ce_longer_dropout_from_old": (
        (
            "transfer_mean_dropout_from_old",
            "long_transfer_mean_dropout_from_old",
            "long_transfer_old65_dropout_from_old",
        ),
        "The same against twice as many steps (`ce_longer_dropout_from_old`), as many as "
        "`long_transfer_mean_dropout_from_old` has:",
    ),
}
# The same, of what costs nothing or little, and of what was tried in place of consensus.
BASELINES = {
    V2: (
        (
            "port",
            "mixture",
            "recycle_short",
            "ce_old_answers",
            "ce_long_dropout_from_old",
            "transfer_mean_dropout_from_old",
            "non_target_ce",
            "ce_long",
            "transfer_mean",
        ),
        "Against v2's adapter, change of NFR in points (in percent) / of accuracy in points, as in the tables below:",
    ),
    "transfer_mean": (
        ("transfer_answer", "transfer_reverse", "transfer_jsd", "transfer_student", "transfer_excess"),
        "Other ways of following both models on the same rows, against consensus (`transfer_mean`):",
    ),
}
# Of these, what other cells have as well.
ELSEWHERE = (
    "ce_long",
    "transfer_mean",
    "transfer_answer",
    "ce_long_dropout_from_old",
    "transfer_mean_dropout_from_old",
)
BASELINES_MARK = "<!-- baselines: written by benchmarks/study/report.py -->"
PICTURES = (
    "Changes in points, with the 95 % interval of a bootstrap over items; in colour what is not chance (p < 0.05 "
    "after Holm's correction over the cells), blue for the better."
)
MARK = "<!-- tables: written by benchmarks/study/report.py -->"
PAGE = ROOT / "docs" / "explanation" / "study.md"
NOTEBOOK = ROOT / "benchmarks" / "study" / "REPORT.md"
NAMES_MARK = "<!-- names: written by benchmarks/study/report.py -->"
WORDS = """{}.

Accuracy (or mean similarity) / NFR in percent, means over the seeds that have the method; in
brackets NFR against v2's on these:

{}

{}

{}

The goals, 40 % fewer negative flips than v2 and 25 % fewer than plain CE at no less accuracy: change of NFR against
v2 / against plain CE / of accuracy against plain CE, in points; \\* as above. Near chance, where the accuracy of v1
or v2 is within three standard errors of what guessing gives, nothing is decided and there is no goal:

{}

How often v1's right answers are wrong elsewhere, in percent: by v1 trained anew, from another seed (there is no
update), and by models of the same seed as v1 / of another seed:

{}

The masks of the paper's Table 7, changes of NFR against v2 / against plain CE; \\* as above:

{}
"""


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


def settings(plan: Mapping[str, Any], parts: Parts) -> str:
    """What tuning chose for the methods that are recorded, a line for each cell that methods were tuned on."""
    chosen: dict[str, dict[str, str]] = {}
    for cell, (_, figures) in parts.items():
        tuned = chosen.setdefault(plan["cells"][cell]["tuned_on"], {})
        found = plan["cells"][cell]["chosen"]
        tuned |= {name: f"`{name}` {trial_name(trial, ', ')}" for name, trial in found.items() if name in figures}
    return "\n\n".join(f"Settings tuned on {cell}: {'; '.join(tuned.values())}." for cell, tuned in chosen.items())


def recorded(cell: str, plan: Mapping[str, Any]) -> dict[int, Answers]:
    """The recorded seeds of a cell."""
    read = {seed: read_record(cell, seed) for seed in plan["seeds"]}
    return {seed: found for seed, found in read.items() if found is not None}


def finished(cell: str, plan: Mapping[str, Any]) -> dict[int, Answers]:
    """The recorded seeds that count in the tables over all cells: from the control on, which each method there is
    compared with."""
    return {seed: found for seed, found in recorded(cell, plan).items() if CONTROL in found.quality}


def write_baselines(plan: Mapping[str, Any]) -> None:
    """Write the tables of what costs nothing or little, of the cells that have it."""
    cheap = {name for names, _ in BASELINES.values() for name in names} - set(ELSEWHERE)
    cells = {name: tuple(recorded(name, plan).values()) for name in plan["cells"]}
    parts: Parts = {
        name: (seeds, {}) for name, seeds in cells.items() if any(with_model(seeds, method) for method in cheap)
    }
    tables = [
        "\n".join([above, "", *against(parts, plan["methods"], reference, names)])
        for reference, (names, above) in BASELINES.items()
        if any(with_model(seeds, method) for seeds, _ in parts.values() for method in set(names) & cheap)
    ]
    put_between(NOTEBOOK, BASELINES_MARK, "\n\n".join(tables))


def write_page(plan: Mapping[str, Any]) -> None:
    """Write figure and tables of the page about the study."""
    cells = {name: tuple(finished(name, plan).values()) for name in PAGE_CELLS if name in plan["cells"]}
    rows = page_rows({name: seeds for name, seeds in cells.items() if seeds})
    (RESULTS / "study-page.svg").write_text(page_picture(rows), encoding="utf-8")
    put_between(PAGE, MARK, "\n".join(page_table(rows)))
    put_between(NOTEBOOK, NAMES_MARK, "\n".join(page_names(plan)))
    write_baselines(plan)


def write_report(plan: Mapping[str, Any]) -> None:
    """Write what the records of the plan's cells say into the results and the documents."""
    parts, texts = {}, []
    for name in plan["cells"]:
        if not (read := finished(name, plan)):
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
        "seeds; they show the main methods, where they have all seeds of the cell; `@v1`: from v1's adapter, with "
        "dropout, as `drop`. Returned: of v1's "
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
        "Holm):\n\n" + ablation + f"\n\n{settings(plan, parts)}\n\n" + "\n".join(texts)
    )
    (RESULTS / "study.md").write_text(text, encoding="utf-8")
    controls = [
        "\n".join([above, "", *against(parts, plan["methods"], reference, names)])
        for reference, (names, above) in AGAINST.items()
    ]
    shown = [*(name for reference, (names, _) in AGAINST.items() for name in (reference, *names)), *FOR_GOALS]
    known = [name for name in dict.fromkeys(shown) if name in plan["methods"]]
    legend = "; ".join(f"`{name}`: {plan['methods'][name]['says']}" for name in known)
    more = ("\n".join(make(parts, plan["methods"])) for make in (goals, chance))
    words = WORDS.format(legend, summed_up, pictures, "\n\n".join(controls), *more, ablation)
    words = words.replace("](#", "](../results/study.md#").replace("](study_", "](../results/study_")
    put_between(NOTEBOOK, MARK, words)
    print(text)
    write_page(plan)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="write the page's figure and tables alone: seconds")
    (write_page if parser.parse_args().page else write_report)(load_plan())


if __name__ == "__main__":
    main()
