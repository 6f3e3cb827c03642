"""Ask every point of a dial the same questions."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from muscle_hf.compare import AnalysisOptions, compare, source_of
from muscle_hf.dial.dial import Dial, identity_of
from muscle_hf.dial.path import DEFAULT_POINTS, DialPath, check_points, label
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.engine import evaluate_task
from muscle_hf.evaluation.predictions import Prediction, predictions_of, read_predictions, write_predictions
from muscle_hf.evaluation.tasks import Item, Task


def walk(
    dial: Dial,
    task: Task,
    items: Sequence[Item],
    old: Sequence[Prediction],
    points: Sequence[float] = DEFAULT_POINTS,
    *,
    extrapolate: bool = False,
    batch_size: int | None = None,
    chat: bool = False,
    epsilon: float = 0.0,
    level: float = 0.95,
    progress: bool = True,
    say: Callable[[str], None] | None = None,
    keep: str | os.PathLike | None = None,
) -> DialPath:
    """Evaluate points between v2's adapter and the compatibility adapter against the old model's answers.

    Args:
        dial: The two adapters on their base.
        task: What is asked.
        items: Validation items. Not the test items: the path is there to be chosen from.
        old: The old model's predictions for them.
        points: Values of t; 0 and 1 are always measured.
        extrapolate: Whether points outside of [0, 1] are meant.
        batch_size: See :func:`~muscle_hf.evaluation.evaluate_task`.
        chat: See :func:`~muscle_hf.evaluation.evaluate_task`.
        epsilon: Tasks with scores: changes of at most this size are no flips.
        level: Of the intervals.
        progress: Show a progress bar for each point.
        say: Told each point before it is asked.
        keep: Folder for the answers of each point as soon as they are there. A walk that was stopped goes on from
            them, where weights, items and rules are the same.

    Returns:
        Accuracy and flips at each point, with the predictions.

    Raises:
        MuscleError: The old predictions are not those of the items, a point lies outside of [0, 1], or there is no
            tokenizer.
    """
    chosen = check_points(points, extrapolate=extrapolate)
    if dial.tokenizer is None:
        raise MuscleError("the dial has no tokenizer; make it with one: Dial(model, tokenizer)")
    options = AnalysisOptions(level=level, epsilon=epsilon, slices=(), max_flips=0)
    before = predictions_of(items, old, task.name, "old")
    answers: dict[float, list[Prediction]] = {}
    asked = None if keep is None else (dial.base_hash, identity_of(items), task.rules(), chat)
    for t in chosen:
        file = None if keep is None or asked is None else Path(keep, f"{label(t)}-{_question(dial, t, asked)}.jsonl")
        if file is not None and file.is_file():
            answers[t] = predictions_of(items, read_predictions(file), task.name, label(t))
            continue
        if say is not None:
            say(f"t = {t:g} (rank {dial.rank(t)})")
        with dial.at(t) as model:
            settings = {"batch_size": batch_size, "chat": chat, "progress": progress}
            answers[t] = evaluate_task(model, dial.tokenizer, task, items, **settings)
        if file is not None:
            write_predictions(file, answers[t])
    others = [t for t in chosen if t]
    document = compare(
        source_of(before, "old"),
        *(source_of(answers[t], label(t)) for t in (0.0, *others)),
        labels=["old", *(label(t) for t in (0.0, *others))],
        analysis=options,
    )
    return DialPath.of(document, {t: dial.rank(t) for t in chosen}, answers)


def _question(dial: Dial, t: float, asked: tuple) -> str:
    """A hash of what is asked of whom."""
    adapter = dial.point(t).content_hash if dial.rank(t) else ""
    return hashlib.sha256(repr((adapter, *asked)).encode()).hexdigest()[:16]
