"""The card of the adapter that a run has made: its flips on the test items, and what the settings say about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.tasks import Task
from muscle_hf.hub.completing import complete_card
from muscle_hf.pipeline.config import DataSettings
from muscle_hf.pipeline.table import COMPAT, NEW, OLD


def complete_run_card(
    adapter: Path,
    task: Task,
    data: DataSettings,
    words: Mapping[str, Any],
    predictions: Mapping[str, Sequence[Prediction]],
) -> Path:
    """Put a run's flips on the card of its compatibility adapter.

    Args:
        adapter: Folder of the compatibility adapter.
        task: Names the card's task, and its data set if the rows came from the Hub.
        data: The run's rows.
        words: Fields of :class:`~muscle_hf.hub.CardState`, which come before what is known of the task.
        predictions: By model: ``old``, ``new``, ``muscle``.

    Returns:
        The path of the card.
    """
    from muscle_hf.compare import compare, source_of

    document = compare(*(source_of(predictions[name], name) for name in (OLD, NEW, COMPAT)))
    known: dict[str, Any] = {"task": task.name}
    if data.source is None and task.source is not None:
        known["datasets"] = [task.source.path]
    return complete_card(adapter, {**known, **words}, comparison=document)
