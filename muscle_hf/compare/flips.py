"""The list of items that flip, with their texts, the worst first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.analyse import AnalysisOptions, update_of
from muscle_hf.compare.document import Flip
from muscle_hf.compare.inheritance import answer_of, returned_errors
from muscle_hf.compare.join import Joined
from muscle_hf.compare.table import Detail
from muscle_hf.metrics.update import OUTCOMES

# Nothing that a person reads is longer; what is cut says so.
_MAX_TEXT = 1 << 20


def list_flips(joined: Joined, options: AnalysisOptions) -> tuple[list[Flip], int]:
    """The items on which an updated model does otherwise than the old one, and how many there are in all.

    Sorted as :attr:`TaskResult.flips <muscle_hf.compare.document.TaskResult>` says and cut off at ``max_flips``.
    """
    old, *updated = joined.labels
    graded = joined.kind == "correct"
    codes = {label: update_of(joined, label, options).codes for label in updated}
    returned = {label: returned_errors(joined, label, options.epsilon) for label in updated[1:]}
    rank = _rank(joined, codes)
    for found in returned.values():
        rank = np.where(found.returned, np.maximum(rank, 1.5), rank)
    flipped = np.flatnonzero(rank > 0)
    items = flipped[np.argsort(-rank[flipped], kind="stable")][: options.max_flips].tolist()
    details = {label: joined.details(label, items) for label in joined.labels}
    shared = _shared_columns(details)

    def flip(item: int, said: dict[str, Detail]) -> Flip:
        values = {label: float(value[item]) for label, value in joined.values.items()}
        rates = {label: values[label] for label in joined.runs if graded}
        own = {label: _told(detail.columns, lambda name: name not in shared) for label, detail in said.items()}
        return Flip(
            id=joined.ids[item],
            outcomes={label: OUTCOMES[joined.kind][code[item]] for label, code in codes.items()},
            prompt=_cut(next((detail.prompt for detail in said.values() if detail.prompt is not None), None)),
            target=_cut(said[old].target) or "",
            answers={label: _cut(detail.answer) for label, detail in said.items()},
            correct={label: value > 0.5 if graded else None for label, value in values.items()},
            scores={label: None if graded else value for label, value in values.items()},
            choices=[str(choice) for choice in said[old].choices],
            columns=_told(said[old].columns, lambda name: name in shared),
            severity=float(rank[item]) + _confidence_lost(said[old], [said[label] for label in updated]),
            inherited={label: answer_of(found, item) for label, found in returned.items() if found.returned[item]},
            own={label: columns for label, columns in own.items() if columns},
            rates=rates,
            noise=any(0 < rate < 1 for rate in rates.values()),
        )

    rows = zip(*details.values(), strict=True)
    flips = [flip(item, dict(zip(details, row, strict=True))) for item, row in zip(items, rows, strict=True)]
    return sorted(flips, key=lambda flip: -flip.severity), len(flipped)


def _rank(joined: Joined, codes: dict[str, NDArray[np.int8]]) -> NDArray[np.float64]:
    """From 4 up: negative flips of the new model; from 2: of a compatibility model; from 1: positive flips.

    Positive flips that a compatibility model does not keep are put at 1.5, before the others.
    """
    worse, better = (3, 1) if joined.kind == "correct" else (2, 0)
    rank = np.zeros(len(joined.ids))
    for place, (label, code) in enumerate(codes.items()):
        rank = np.maximum(rank, np.select([code == worse, code == better], [4.0 if place == 0 else 2.0, 1.0], 0.0))
        if joined.kind == "score":
            moved = np.abs(joined.values[label] - joined.values[joined.labels[0]])
            rank += np.where(rank > 0, moved / (1 + moved) / len(codes) * 0.5, 0.0)
    return rank


def _told(columns: Mapping[str, Any], keep: Callable[[str], bool]) -> dict[str, str]:
    return {
        str(name): _cut(str(value)) or ""
        for name, value in columns.items()
        if value is not None and value != "" and keep(name)
    }


def _shared_columns(details: dict[str, list[Detail]]) -> set[str]:
    """Columns of the items: those on which the logs of all models agree; the others are what a model wrote."""
    names = {name for rows in details.values() for row in rows for name in row.columns}
    return {
        name
        for name in names
        if all(len({str(row.columns.get(name)) for row in item}) == 1 for item in zip(*details.values(), strict=True))
    }


def _cut(text: str | None) -> str | None:
    if text is None or len(text) <= _MAX_TEXT:
        return text
    return text[:_MAX_TEXT] + f" [... {len(text) - _MAX_TEXT} more characters]"


def _confidence_lost(old: Detail, updated: Sequence[Detail]) -> float:
    """How much probability the right choice lost at worst, scaled to less than the step between ranks."""
    before = _confidence(old)
    after = [_confidence(detail) for detail in updated]
    moved = [abs(before - value) for value in after if value is not None] if before is not None else []
    return 0.5 * max(moved, default=0.0)


def _confidence(detail: Detail) -> float | None:
    """Probability of the right choices among all choices; None if the log does not tell."""
    n = len(detail.choices)
    scores = detail.log_likelihoods[:n]
    right = [i for i in detail.target_indices if i < len(scores)]
    if len(scores) < 2 or len(scores) < n or not right or not all(map(math.isfinite, scores)):
        return None
    top = max(scores)
    weights = [math.exp(score - top) for score in scores]
    return sum(weights[i] for i in right) / sum(weights)
