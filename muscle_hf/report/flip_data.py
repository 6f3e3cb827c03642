"""The flips as compact JSON for the page's list; the page reads it, nothing of it is ever parsed as HTML."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from muscle_hf.compare.document import Document, Flip
from muscle_hf.report.markup import Markup

# One letter per outcome; `flips.js` knows the same letters.
OUTCOMES = {
    "both_right": "R",
    "positive": "P",
    "both_wrong": "W",
    "negative": "N",
    "improved": "I",
    "unchanged": "U",
    "regressed": "D",
}
# An error of the old model made again: with its own answer, with another one, or nobody knows.
INHERITED = {"same": "S", "other": "O", "unknown": "A", None: "-"}
# Characters that could end the script element, open a comment in it, reorder the source, or cannot be encoded; JSON
# escapes say the same.
_UNSAFE = re.compile("[<>&\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")


def pack(document: Document) -> dict[str, Any]:
    """The flips of all tasks: ``models`` and ``tasks`` (names), ``roles``, ``choices`` (distinct lists of choices),
    ``columns`` (names) and ``flips``: arrays ``[task, id, outcomes, prompt, target, answers, scores, choices, columns,
    severity, inherited, own, rates, noise]``, where ``outcomes`` has a letter per updated model, ``columns`` a value a
    name (null where an item has none), ``inherited`` a letter per updated model (null where none makes an error of old
    again), ``own`` a table per model of what its log says of its answer, ``rates`` of right answers where there are
    several."""
    names = list(dict.fromkeys(name for task in document.tasks for flip in task.flips for name in flip.columns))
    choices: dict[tuple[str, ...], int] = {}
    rows = [
        _row(index, flip, document, choices, names) for index, task in enumerate(document.tasks) for flip in task.flips
    ]
    return {
        "models": [model.label for model in document.models],
        "roles": [model.role for model in document.models],
        "tasks": [task.name for task in document.tasks],
        "total": sum(task.flips_total for task in document.tasks),
        "choices": [list(texts) for texts in choices],
        "columns": names,
        "flips": rows,
    }


def to_script(data: dict[str, Any]) -> Markup:
    """JSON that may stand inside ``<script type="application/json">``."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(_UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text))


def _row(
    task: int, flip: Flip, document: Document, choices: dict[tuple[str, ...], int], names: list[str]
) -> list[Any]:
    labels = [model.label for model in document.models]
    scores = [_finite(flip.scores.get(label)) for label in labels]
    return [
        task,
        flip.id,
        "".join(OUTCOMES.get(flip.outcomes.get(label, ""), "-") for label in labels[1:]),
        flip.prompt,
        flip.target,
        [flip.answers.get(label) for label in labels],
        None if all(score is None for score in scores) else scores,
        choices.setdefault(tuple(flip.choices), len(choices)) if flip.choices else None,
        [flip.columns.get(name) for name in names],
        _finite(flip.severity) or 0,
        "".join(INHERITED[flip.inherited.get(label)] for label in labels[1:]) if flip.inherited else None,
        [flip.own.get(label, {}) for label in labels] if flip.own else None,
        [_finite(flip.rates.get(label)) for label in labels] if flip.rates else None,
        int(flip.noise),
    ]


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 6)
