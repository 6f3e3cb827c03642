"""What a model answered: one row per item, and the file that keeps the rows (JSON lines, no torch needed)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Item
from muscle_hf.files import StrPath, json_rows, read_text, write_text
from muscle_hf.metrics.update import Update

_REQUIRED = ("task", "id", "prediction", "target", "metric", "hash")
_ALWAYS = {*_REQUIRED, "correct", "score"}


@dataclass(frozen=True)
class Prediction:
    """One model's answer to one item.

    Args:
        task: Name of the task.
        id: The item's id, unique within the task; old and new predictions are joined on it.
        prediction: Index of the chosen choice or class, or the generated text without outer blanks.
        target: Index of the right choice or class (a list where several are right), or the reference text(s).
        correct: Whether the answer is right; None where the task has a similarity instead of right and wrong.
        score: Similarity of the answer to the references; None for tasks with right and wrong.
        metric: Rule behind ``correct`` or ``score``: ``acc``, ``acc_norm``, ``exact_match``, ``rouge1``, ...
        hash: Content of the item, :func:`item_hash`; equal for two runs only if they were asked the same.
        prompt: The item's prompt, for reading flips later.
        choices: Choice tasks: the choices.
        log_likelihoods: Summed log-likelihood (nats) of each choice, or log-probability of each class.
        columns: Further properties of the item, for slices and clusters.
        origin: What gave the answer, by name, revision and hash: ``base`` and ``adapter`` (None: there is none) as in
            a provenance, and ``data``, the task and the data set on the Hub. None where unknown (a server's model).
    """

    task: str
    id: str
    prediction: int | str
    target: int | str | list[int] | list[str]
    correct: bool | None
    score: float | None
    metric: str
    hash: str
    prompt: str | None = None
    choices: list[str] | None = None
    log_likelihoods: list[float] | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    origin: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The row of the file; optional fields that are empty are left out."""
        row = dict(vars(self))
        columns = row.pop("columns")
        row = {name: value for name, value in row.items() if value is not None or name in _ALWAYS}
        return {**row, "columns": dict(columns)} if columns else row

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Prediction:
        """Build a prediction from a row of the file; one that lacks a field is refused."""
        missing = [name for name in _REQUIRED if name not in row]
        if missing:
            raise MuscleError(
                f"a prediction needs the fields {', '.join(missing)}; it has: {', '.join(row) or 'none'}"
            )
        if row.get("correct") is None and row.get("score") is None:
            raise MuscleError(f"prediction {row['id']!r} has neither 'correct' nor 'score'")
        known = {name: row.get(name) for name in cls.__dataclass_fields__}
        return cls(**{**known, "id": str(row["id"]), "columns": row.get("columns") or {}})


def signed(predictions: Iterable[Prediction], origin: Mapping[str, Any]) -> list[Prediction]:
    """The same predictions, which say what gave them."""
    return [replace(prediction, origin=origin) for prediction in predictions]


def item_hash(item: Item) -> str:
    """Identity of what is asked: 16 hex digits of the SHA-256 over prompt, choices and references.

    A chat template is a property of the model, not of the question, and does not enter.
    """
    content = json.dumps([item.prompt, list(item.choices), list(item.references)], ensure_ascii=False)
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def write_predictions(path: StrPath, predictions: Iterable[Prediction]) -> Path:
    """Write predictions as JSON lines, in their order; the file appears whole or not at all, and its folder is
    created. An existing file is replaced. Gives the path."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    return write_text(path, (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in predictions))


def iter_predictions(path: StrPath) -> Iterator[Prediction]:
    """Read a prediction file row by row; a line that is no prediction is refused by its number."""
    for number, row in json_rows(read_text(path, "prediction file").split("\n"), path):
        try:
            yield Prediction.from_dict(row)
        except MuscleError as error:
            raise MuscleError(f"{path}, line {number}: {error}") from error


def read_predictions(path: StrPath) -> list[Prediction]:
    """Read a whole prediction file.

    Raises:
        MuscleError: The file is missing, empty or damaged, or an id occurs twice in one task.
    """
    predictions = list(iter_predictions(path))
    if not predictions:
        raise MuscleError(f"{path} holds no predictions")
    seen: set[tuple[str, str]] = set()
    for prediction in predictions:
        key = (prediction.task, prediction.id)
        if key in seen:
            raise MuscleError(f"{path}: item {prediction.id!r} of task {prediction.task!r} occurs twice")
        seen.add(key)
    return predictions


def update_between(old: Sequence[Prediction], new: Sequence[Prediction], epsilon: float = 0.0) -> Update:
    """The flip numbers of an updated model against the old one, both asked the same items in the same order."""
    scored = new[0].correct is None
    before, after = (
        np.array([p.score if scored else p.correct for p in side], dtype=np.float64) for side in (old, new)
    )
    choice = all(isinstance(p.prediction, int) for p in new)
    said: Any = tuple(np.array([p.prediction for p in side]) for side in (old, new)) if choice else None
    return Update(
        before,
        after,
        kind="score" if scored else "correct",
        epsilon=epsilon,
        answers=said,
        choice=choice,
    )


def predictions_of(items: Sequence[Item], given: Iterable[Prediction], task: str, whose: str) -> list[Prediction]:
    """A model's predictions for exactly these items, in their order; ``whose`` they are is said in messages.

    Items that have no prediction, or were others when they were answered, are refused.
    """
    by_id = {prediction.id: prediction for prediction in given if prediction.task == task}
    missing = [item.id for item in items if item.id not in by_id]
    changed = [item.id for item in items if item.id in by_id and by_id[item.id].hash != item_hash(item)]
    for problem, ids in (("have no answer to", missing), ("were given to other prompts or choices for", changed)):
        if ids:
            raise MuscleError(
                f"the {whose} model's predictions {problem} {len(ids)} of {len(items)} items of task "
                f"{task!r}, for example {ids[:3]}; run muscle-hf evaluate on the same items"
            )
    return [by_id[item.id] for item in items]
