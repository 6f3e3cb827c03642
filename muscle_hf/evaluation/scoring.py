"""From raw outputs (log-likelihoods, texts) to predictions that are right, wrong, or more or less similar."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction, item_hash
from muscle_hf.evaluation.tasks import Item, Task

_NEEDED = {"generation": ("references",), "choice": ("choices", "answers"), "classification": ("answers",)}


def check_items(task: Task, items: Sequence[Item]) -> None:
    """Refuse items that the task cannot ask or score, before anything is computed."""
    if not items:
        raise MuscleError(f"task {task.name!r}: there are no items to evaluate")
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise MuscleError(f"task {task.name!r}: the id {item.id!r} occurs twice; old and new are joined on it")
        seen.add(item.id)
        if missing := [name for name in _NEEDED[task.kind] if not getattr(item, name)]:
            raise MuscleError(f"task {task.name!r} is a {task.kind} task, but item {item.id!r} has no {missing[0]}")
        if task.kind == "choice" and not all(0 <= answer < len(item.choices) for answer in item.answers):
            raise MuscleError(f"item {item.id!r}: answers {item.answers} do not index its {len(item.choices)} choices")


def cut_at(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings."""
    found = [position for position in (text.find(string) for string in stop if string) if position >= 0]
    return text[: min(found)] if found else text


def choice_scores(metric: str, choices: Sequence[str], log_likelihoods: Sequence[float]) -> np.ndarray:
    """What the choices of an item are compared by, (choices,) float64: log-likelihoods, or with the rule of
    lm-evaluation-harness (the space after the prompt does not count) per character (``acc_norm``) or UTF-8 byte
    (``acc_bytes``).
    """
    scores = np.asarray(log_likelihoods, dtype=np.float64)
    texts = [choice.removeprefix(" ") for choice in choices]
    if metric == "acc_norm":
        return scores / [max(1, len(text)) for text in texts]
    if metric == "acc_bytes":
        return scores / [max(1, len(text.encode())) for text in texts]
    return scores


def chosen_prediction(task: Task, item: Item, log_likelihoods: Sequence[float]) -> Prediction:
    """The prediction of a choice or classification task."""
    if any(math.isnan(value) for value in log_likelihoods):
        raise MuscleError(
            f"the model gives nan for item {item.id!r}; try another dtype (bfloat16 in place of float16)"
        )
    # The first one among equals.
    index = int(choice_scores(task.metric, item.choices, log_likelihoods).argmax())
    answer = _prediction(task, item, index, list(item.answers), correct=index in item.answers, score=None)
    likelihoods = [float(value) for value in log_likelihoods]
    return replace(answer, choices=list(item.choices) or None, log_likelihoods=likelihoods)


def predictions_from(task: Task, items: Sequence[Item], answers: Mapping[str, Any]) -> list[Prediction]:
    """The predictions of items, of raw answers by id: log-likelihoods of choices or classes, or a text."""
    found = [answers[item.id] for item in items]
    if task.kind == "generation":
        return text_predictions(task, items, found)
    return [chosen_prediction(task, item, values) for item, values in zip(items, found, strict=True)]


def text_predictions(task: Task, items: Sequence[Item], texts: Sequence[str]) -> list[Prediction]:
    """The predictions of a generation task, scored together (some similarities are models themselves)."""
    from muscle_hf.metrics.similarity import score_texts

    answers = [text.strip() for text in texts]
    references = [[reference.strip() for reference in item.references] for item in items]
    options = {"extract": task.extract} if task.exact and task.extract is not None else {}
    scores = score_texts(answers, references, task.similarity or task.metric, **options).tolist()
    judged = [
        {"correct": bool(score) if task.exact else None, "score": None if task.exact else score} for score in scores
    ]
    rows = zip(items, answers, references, judged, strict=True)
    return [_prediction(task, item, answer, right, **how) for item, answer, right, how in rows]


def _prediction(task: Task, item: Item, answer: Any, right: list[Any], **judged: Any) -> Prediction:
    return Prediction(
        task=task.name,
        id=item.id,
        prediction=answer,
        target=right[0] if len(right) == 1 else right,
        metric=task.metric,
        hash=item_hash(item),
        prompt=item.prompt,
        columns=item.columns,
        **judged,
    )
