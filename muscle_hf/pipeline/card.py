"""The card of the adapter that a run has made: its flips on the test items, and what the settings say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.tasks import Task
from muscle_hf.hub.completing import complete_card
from muscle_hf.pipeline.config import RunSettings
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD


def card_words(settings: RunSettings, task: Task) -> dict[str, Any]:
    """What the settings say on the card: the task's name, its data set if the rows came from the Hub, ``card``."""
    words: dict[str, Any] = {"task": task.name}
    if settings.data.source is None and task.source is not None:
        words["datasets"] = [task.source.path]
    return {**words, **settings.card}


def complete_run_card(
    adapter: Path, words: Mapping[str, Any], predictions: Mapping[str, Sequence[Prediction]]
) -> Path:
    """Put a run's flips on the card of its compatibility adapter; gives the card's path.

    Args:
        words: Fields of :class:`~muscle_hf.hub.CardState`.
        predictions: By model, ``control`` if there is one: the baseline of the errors that come back.
    """
    from muscle_hf.compare import compare, source_of

    labels = {OLD: "old", NEW: "new", COMPAT: "compat", CONTROL: "control: plain training for as long"}
    names = [name for name in labels if name in predictions]
    document = compare(
        *(source_of(predictions[name], name) for name in names), labels=[labels[name] for name in names]
    )
    return complete_card(adapter, words, comparison=document, label=labels[COMPAT])
