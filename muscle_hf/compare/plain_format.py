"""Any JSONL, CSV or Parquet file with named columns."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from muscle_hf.compare.answers import (
    ANSWERED,
    ERROR,
    NO_ANSWER,
    NO_SCORE,
    answer_key,
    as_flag,
    as_number,
    is_free_text,
    is_missing,
    matches,
    normal,
    sign_of,
    targets_of,
)
from muscle_hf.compare.table import Detail, Row, hash_key, text_key
from muscle_hf.errors import MuscleError
from muscle_hf.words import did_you_mean

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
    "choices": ("choices", "options"),
    "error": ("error", "exception"),
}
ROW_NUMBER = "#"


class PlainFormat:
    """Rows with columns that have a role each.

    Args:
        present: The columns of the file.
        roles: Role -> column as the user says; the others are found by name. ``id=#`` numbers the rows.
        name: ``jsonl``, ``csv`` or ``parquet``.
        lower_is_better: Whether lower scores are better, or "correct" says what is wrong; None if only names can tell.

    Raises:
        MuscleError: A column that does not exist (the nearest name is suggested), or roles that are not enough.
    """

    def __init__(
        self, present: Sequence[str], roles: Mapping[str, str], name: str, lower_is_better: bool | None = None
    ) -> None:
        self.name, self.number = name, -1
        unknown = [role for role in roles if role not in NAMES]
        if unknown:
            raise MuscleError(f"unknown column role {unknown[0]!r}; {did_you_mean(unknown[0], NAMES)}")
        for role, column in roles.items():
            if column not in present and not (role == "id" and column == ROW_NUMBER):
                raise MuscleError(f"there is no column {column!r}; {did_you_mean(column, present)}")
        found = {role: next((name for name in names if name in present), None) for role, names in NAMES.items()}
        self.roles: dict[str, str | None] = {**found, **roles}
        columns = ", ".join(present)
        if self.roles["id"] is None:
            raise MuscleError(
                "no column with the items' ids: name it with --columns id=NAME, or --columns id=# if all files have "
                f"the same rows in the same order; {did_you_mean('id', present)}"
            )
        self.metric = self._how(roles) or self._how({role: name for role, name in self.roles.items() if name})
        if not self.metric:
            raise MuscleError(
                f"nothing says which answers are right; the columns are {columns}. Name a column of 1 and 0 with "
                "--columns correct=NAME, of scores with score=NAME, or of answers and right answers with "
                "prediction=NAME,target=NAME"
            )
        self.sign = 1
        if self.metric != "exact_match":
            self.sign = sign_of(str(self.roles[self.metric]), lower_is_better)
            self.metric = "-score" if (self.metric, self.sign) == ("score", -1) else self.metric
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
        digest, prompt, choices = self._get(row, "hash"), self._get(row, "prompt"), self._get(row, "choices")
        content = hash_key(digest) if digest else 0
        if not content and not (is_missing(prompt) and is_missing(target) and is_missing(choices)):
            content = text_key(repr((prompt, sorted(map(normal, targets_of(target))), choices))) or 1
        value, missing = self._value(row, prediction, target)
        verbatim = self.metric == "exact_match"
        return Row(
            "predictions" if task is None else str(task),
            str(key),
            value,
            self.metric not in ("score", "-score"),
            None if is_missing(prediction) else answer_key(prediction),
            content,
            0,
            self.metric,
            choices is not None and normal(prediction).isdigit(),
            {name: row.get(name) for name in self.others},
            missing,
            verbatim and (is_free_text(prediction) or any(map(is_free_text, targets_of(target)))),
        )

    def _value(self, row: Mapping[str, Any], prediction: Any, target: Any) -> tuple[float, int]:
        """Right or wrong, or a score; and why there is none."""
        failed = not is_missing(self._get(row, "error"))
        if self.metric == "exact_match":
            if is_missing(prediction):
                return math.nan, ERROR if failed else NO_ANSWER
            if is_missing(target):
                return math.nan, NO_SCORE
            return float(matches(prediction, target, (self.roles["prediction"], self.roles["target"]))), ANSWERED
        role = "correct" if self.metric == "correct" else "score"
        value = (as_flag if role == "correct" else as_number)(self._get(row, role), self.roles[role])
        if failed and not value and is_missing(prediction):  # the run failed, not the model
            return math.nan, ERROR
        if math.isnan(value):
            return value, ERROR if failed else NO_ANSWER if is_missing(prediction) else NO_SCORE
        return value if self.sign > 0 else 1 - value if role == "correct" else -value, ANSWERED

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
