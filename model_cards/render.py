"""Render the cards of the reference adapters: the demo's and those on real data.

    python model_cards/render.py [--runs FOLDER ...]

A card is made of its run where one of the folders holds it (those that `muscle-hf demo --output`, `benchmarks/demo.py
--runs` and `benchmarks/real_data.py --runs` write to), and otherwise of the JSON files beside the committed card, so
that without --runs all cards follow a change of the template.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muscle_hf.demo import TASKS
from muscle_hf.demo.run import demo_settings
from muscle_hf.hub.card import write_card
from muscle_hf.hub.completing import export_card
from muscle_hf.pipeline.run import complete_run_card
from muscle_hf.pipeline.table import COMPAT, RESULT_FILE

ROOT = Path(__file__).parent
REAL_DATA = {
    # Hub id of the data set that the local files are, and a name for the task.
    "sst2": ("SetFit/sst2", "sentiment of film reviews (SST-2)"),
    "trec": ("CogComp/trec", "kinds of question (TREC)"),
    "ag_news": ("fancyzhx/ag_news", "topics of news (AG News)"),
    "piqa": ("baber/piqa", "everyday physics, two choices (PIQA)"),
}


def references() -> dict[str, tuple[str, dict[str, Any]]]:
    """Name of the card -> (folder of its run, what the card says beside what the run knows)."""
    known: dict[str, tuple[str, dict[str, Any]]] = {}
    for task in TASKS:
        folder = f"{task}-seed0"
        known[f"demo-{task}"] = folder, demo_settings(task, 0, Path(folder)).card
    for task, (dataset, words) in REAL_DATA.items():
        known[f"stories260k-{task}"] = (
            f"stories260k-{task}-seed0",
            {
                "title": f"stories260k on {task}: compatibility adapter of a level update",
                "task": words,
                "language": ["en"],
                "datasets": [dataset],
                "license_old": "mit",
                "license_new": "mit",
                "base_note": "stories260k is the model of this name in karpathy/tinyllamas, in the layout of "
                "transformers; stories260k_update is the same model trained on with more text.",
                "made_by": f"muscle-hf train --config recipes/stories260k/{task}.yaml --seed 0",
            },
        )
    return known


def render(name: str, run: Path | None, words: Mapping[str, Any]) -> str:
    """Render one card; says what it was made of."""
    target = ROOT / name
    if run is not None:
        task = json.loads((run / RESULT_FILE).read_text())["result"]["task"]
        complete_run_card(run, {"task": task, **words})
        export_card(run / COMPAT, target)
        return f"{name}: from its run"
    if target.is_dir():
        write_card(target)
        return f"{name}: from the files beside it"
    return f"{name}: left out, no run {references()[name][0]} in the folders given"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, nargs="+", default=[], metavar="FOLDER")
    args = parser.parse_args()
    for name, (folder, words) in references().items():
        runs = [runs / folder for runs in args.runs if (runs / folder / RESULT_FILE).is_file()]
        print(render(name, runs[0] if runs else None, words))


if __name__ == "__main__":
    main()
