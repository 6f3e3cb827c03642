"""What a finished run has left: its predictions, and the card that they make."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muscle_hf.compare import compare, source_of
from muscle_hf.evaluation.predictions import Prediction, read_predictions
from muscle_hf.files import read_json
from muscle_hf.hub.completing import complete_card
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD

RESULT_FILE = "result.json"
PREDICTIONS = "predictions"


def load_result_predictions(folder: Path) -> Mapping[str, list[Prediction]]:
    """The predictions of a finished run, by model; of models that its last settings left out nothing is read."""
    rows = read_json(folder / RESULT_FILE, "result of a run")["result"]["rows"]
    return {row["model"]: read_predictions(folder / PREDICTIONS / f"{row['model']}.jsonl") for row in rows}


def complete_run_card(folder: Path, words: Mapping[str, Any]) -> None:
    """Put the flips of a finished run on the card of its compatibility adapter, and what else it shall say."""
    predictions = load_result_predictions(folder)
    # The control is the baseline of the errors that come back.
    labels = {OLD: "old", NEW: "new", COMPAT: "compat", CONTROL: "control: plain training for as long"}
    labels = {name: label for name, label in labels.items() if name in predictions}
    sources = [source_of(predictions[name], name) for name in labels]
    comparison = compare(*sources, labels=list(labels.values()))
    complete_card(folder / COMPAT, words, comparison=comparison, label=labels[COMPAT])
