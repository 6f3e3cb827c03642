"""Any JSONL, CSV or Parquet file with named columns."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from muscle_hf.compare.table import Detail, Row, hash_key, text_key
from muscle_hf.errors import MuscleError

# Role -> column names that are tried, in this order.
NAMES: dict[str, tuple[str, ...]] = {
    "id": ("id", "item_id", "example_id", "doc_id", "question_id", "qid", "idx", "index", "uid"),
    "prediction": (
        "prediction",
        "pred",
        "predicted",
        "predictions",
        "output",
        "response",
        "generated_text",
        "completion",
    ),
    "target": ("target", "label", "gold", "reference", "references", "expected", "answer", "targets"),
    "correct": ("correct", "is_correct", "exact_match", "acc", "right", "passed"),
    "score": ("score", "similarity", "rougeL", "rouge1", "value"),
    "task": ("task", "task_name", "subset", "dataset"),
    "prompt": ("prompt", "question", "input", "query", "text"),
    "hash": ("hash", "prompt_hash", "doc_hash"),
}
ROW_NUMBER = "#"
_YES, _NO = {"1", "1.0", "true", "yes", "right", "correct"}, {"0", "0.0", "false", "no", "wrong", "incorrect"}


class PlainFormat:
    """Rows with columns that have a role each.

    Args:
        present: The columns of the file.
        roles: Role -> column as the user says; the others are found by name. ``id=#`` numbers the rows.
        name: ``jsonl``, ``csv`` or ``parquet``.

    Raises:
        MuscleError: A column that does not exist (the nearest name is suggested), or roles that are not enough.
    """

    def __init__(self, present: Sequence[str], roles: Mapping[str, str], name: str) -> None:
        self.name, self.number = name, -1
        unknown = [role for role in roles if role not in NAMES]
        if unknown:
            raise MuscleError(
                f"unknown column role {unknown[0]!r}{_nearest(unknown[0], NAMES)}; roles are {', '.join(NAMES)}"
            )
        for role, column in roles.items():
            if column not in present and not (role == "id" and column == ROW_NUMBER):
                raise MuscleError(
                    f"there is no column {column!r}{_nearest(column, present)}; the columns are {', '.join(present)}"
                )
        found = {role: next((name for name in names if name in present), None) for role, names in NAMES.items()}
        self.roles: dict[str, str | None] = {**found, **roles}
        columns = ", ".join(present)
        if self.roles["id"] is None:
            raise MuscleError(
                f"no column with the items' ids{_nearest('id', present)}; the columns are {columns}. Name it with "
                "--columns id=NAME, or --columns id=# if all files have the same rows in the same order"
            )
        self.metric = self._how(roles) or self._how({role: name for role, name in self.roles.items() if name})
        if not self.metric:
            raise MuscleError(
                f"nothing says which answers are right; the columns are {columns}. Name a column of 1 and 0 with "
                "--columns correct=NAME, of scores with score=NAME, or of answers and right answers with "
                "prediction=NAME,target=NAME"
            )
        self.others = [column for column in present if column not in self.roles.values()]

    @staticmethod
    def _how(roles: Mapping[str, Any]) -> str:
        """What the answers are judged by, which is also the name of the metric; "" if the roles do not say."""
        if "correct" in roles:
            return "correct"
        if "score" in roles:
            return "score"
        return "exact_match" if {"prediction", "target"} <= roles.keys() else ""

    def _get(self, row: Mapping[str, Any], role: str) -> Any:
        column = self.roles[role]
        return None if column is None else row.get(column)

    def extract(self, row: Mapping[str, Any]) -> Row:
        """What counts in a row."""
        self.number += 1
        column = self.roles["id"]
        key = self.number if column == ROW_NUMBER else row.get(column)
        if key is None or key == "":
            raise MuscleError(f"the column {column!r} is empty; every item needs an id")
        prediction, target, task = self._get(row, "prediction"), self._get(row, "target"), self._get(row, "task")
        digest, prompt = self._get(row, "hash"), self._get(row, "prompt")
        content = hash_key(digest) if digest else 0
        if not content and (prompt is not None or target is not None):
            content = text_key(repr((prompt, _normal(target)))) or 1
        return Row(
            "predictions" if task is None else str(task),
            str(key),
            self._value(row, prediction, target),
            self.metric != "score",
            None if prediction is None else text_key(_normal(prediction)),
            content,
            0,
            self.metric,
            _is_index(prediction),
            {name: row.get(name) for name in self.others},
        )

    def _value(self, row: Mapping[str, Any], prediction: Any, target: Any) -> float:
        if self.metric == "correct":
            return _as_flag(self._get(row, "correct"), self.roles["correct"])
        if self.metric == "score":
            return _as_number(self._get(row, "score"), self.roles["score"])
        if prediction is None or target is None:
            raise MuscleError(f"the column {self.roles['prediction' if prediction is None else 'target']!r} is empty")
        targets = target if isinstance(target, (list, tuple)) else [target]
        return float(_normal(prediction) in {_normal(entry) for entry in targets})

    def detail(self, row: Mapping[str, Any]) -> Detail:
        """The texts of a row."""
        prediction, target, prompt = (self._get(row, role) for role in ("prediction", "target", "prompt"))
        targets = target if isinstance(target, (list, tuple)) else [] if target is None else [target]
        return Detail(
            prompt=None if prompt is None else str(prompt),
            target=" | ".join(map(str, targets)),
            answer=None if prediction is None else str(prediction),
            columns={name: row.get(name) for name in self.others},
        )


def _nearest(name: str, known: Sequence[str] | Mapping[str, Any]) -> str:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _normal(value: Any) -> str:
    """Answers as text: 2, 2.0 and "2" are one answer, as CSV files do not tell them apart."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return value.strip() if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _as_number(value: Any, column: str | None) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise MuscleError(f"the column {column!r} holds {value!r}, which is no number") from None


def _as_flag(value: Any, column: str | None) -> float:
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _YES | _NO:
            return float(word in _YES)
    elif value is not None:
        number = _as_number(value, column)
        if number in (0.0, 1.0) or math.isnan(number):
            return number
    raise MuscleError(
        f"the column {column!r} must say right or wrong (true/false, 1/0), not {value!r}; "
        f"for scores use --columns score={column}"
    )
