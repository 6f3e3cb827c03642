"""Rows of a log, whose fields have roles, as columns of a table."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.answers import (
    ANSWERED,
    ERROR,
    NO_ANSWER,
    NO_SCORE,
    answer_key,
    as_flag,
    as_number,
    is_failure,
    is_missing,
    is_text,
    matches,
    normal,
    sign_of,
    targets_of,
)
from muscle_hf.compare.layouts import Layout
from muscle_hf.compare.paths import Getter, Row, column, compiled, getter
from muscle_hf.compare.roles import ROW_NUMBER, ReadOptions, Roles
from muscle_hf.compare.table import Batch, Detail, RowError, each, hash_key, once_each, text_key
from muscle_hf.errors import MuscleError

_LISTED = 20


class RowReader(Roles):
    """Reads the rows of one file by their :class:`~muscle_hf.compare.roles.Roles`, whose arguments it has."""

    def __init__(self, layout: Layout, first: Sequence[Row], options: ReadOptions, task: str, kind: str) -> None:
        super().__init__(layout, first, options, task, kind)
        self.rules = {path: getter(path, self.present) for path in options.where}
        self.models: set[str] = set()
        self.unmatched: dict[str, set[str]] = {path: set() for path in options.where}
        # What gave the answers, each once; None for rows that do not say.
        self.origins: list[Mapping[str, Any] | None] = []
        self.number = 0
        self._where = compiled(self.layout.where) if self.layout.where else None

    def read(self, rows: Sequence[Row]) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """The rows that count, by task, and which of the given ones they are."""
        rows, chosen = self._chosen(rows)
        if not rows:
            return
        if "model" in self.getters:
            self._check_model(self.getters["model"](rows))
        if "origin" in self.getters:
            self._note(self.getters["origin"](rows))
        numbers = range(self.number, self.number + len(rows))
        self.number += len(rows)
        for (task, metric), places in self._groups(rows):
            part = rows if len(places) == len(rows) else [rows[i] for i in places]
            numbered = [numbers[i] for i in places] if self.roles["id"] == ROW_NUMBER else None
            columns = _Columns(self.getters, part, numbered)
            which = chosen[places][columns.take_apart(self.how)]
            try:
                yield which, self._batch(self.task if is_missing(task) else str(task), str(metric), columns)
            except RowError as error:
                raise RowError(int(which[error.row]), str(error)) from error

    def _groups(self, rows: Sequence[Row]) -> list[tuple[tuple[Any, Any], NDArray[np.int64]]]:
        """The rows of each task and metric."""
        names = [
            self.getters[role](rows) if role in self.getters else [default]
            for role, default in (("task", None), ("metric", self.metric))
        ]
        if all(len(set(values)) == 1 for values in names):
            return [((names[0][0], names[1][0]), np.arange(len(rows)))]
        groups: dict[tuple[Any, Any], list[int]] = {}
        for i, key in enumerate(zip(*(v if len(v) == len(rows) else v * len(rows) for v in names), strict=True)):
            groups.setdefault(key, []).append(i)
        return [(key, np.array(places, dtype=np.int64)) for key, places in groups.items()]

    def _chosen(self, rows: Sequence[Row]) -> tuple[Sequence[Row], NDArray[np.int64]]:
        keep = np.ones(len(rows), dtype=bool)
        if self._where is not None:
            keep &= [bool(self._where(row)) for row in rows]
        for path, get in self.rules.items():
            found = list(map(normal, get(rows)))
            keep &= [value == normal(self.options.where[path]) for value in found]
            if len(self.unmatched[path]) < _LISTED:
                self.unmatched[path].update(found)
        if not keep.all():
            rows = [row for row, kept in zip(rows, keep, strict=True) if kept]
        chosen = np.flatnonzero(keep)
        if (prepare := self.prepare) is not None:
            prepared = each(lambda row: prepare(row, False), rows)
            kept = [i for i, row in enumerate(prepared) if row is not None]
            rows, chosen = [prepared[i] for i in kept], chosen[kept]
        return rows, chosen

    def _check_model(self, models: list[Any] | None) -> None:
        self.models.update(str(model) for model in models or () if model is not None)
        if len(self.models) > 1:
            path = self.roles["model"].partition(" ||")[0]
            raise MuscleError(
                f"the file holds answers of several models; choose one with --where '{path}=NAME': "
                f"{', '.join(sorted(self.models))}"
            )

    def _note(self, origins: list[Any]) -> None:
        """Keeps what gave the answers."""
        for origin in origins[:1] if origins.count(origins[0]) == len(origins) else origins:
            known = origin if isinstance(origin, Mapping) else None
            if known not in self.origins:
                self.origins.append(known)

    def _other_columns(self, rows: Sequence[Row], mappings: list[Any]) -> dict[str, list[Any]]:
        columns = {name: get(rows) for name, get in self.others.items()}
        if set(map(type, mappings)) != {dict}:
            mappings = [entry if isinstance(entry, dict) else {} for entry in mappings]
        for name in dict.fromkeys(itertools.chain.from_iterable(mappings)):
            columns[name] = column(name)(mappings)
        return columns

    def _batch(self, task: str, metric: str, columns: _Columns) -> Batch:
        predictions = columns["prediction"]
        answers = np.array(once_each(_key, predictions), dtype=np.int64)
        unanswered = answers < 0
        metric, graded, values, missing = self._values(metric, columns, unanswered)
        free, labels = 0, set()
        if self.how == "exact_match":
            labels = set(itertools.chain.from_iterable(once_each(_keys, columns["target"])))
            free = sum(itertools.compress(once_each(is_text, predictions, columns["target"]), values == 0))
        digests = columns["prompt_hash"] if "prompt_hash" in self.getters else []
        return Batch(
            task=task,
            metric=metric,
            graded=graded,
            ids=self._ids(columns["id"]),
            values=values,
            missing=missing,
            answers=answers,
            content=_content(columns),
            prompts=np.array([hash_key(value) for value in digests] or [0] * len(values), dtype=np.uint64),
            choice=not unanswered.all()
            and (
                all(columns["choices"])
                or all(map(any, zip(columns["choices"], columns["log_likelihoods"], missing.tolist(), strict=True)))
            ),
            columns=self._other_columns(columns.rows, columns["columns"]),
            verbatim=self.how == "exact_match",
            free_text=free,
            labels=labels,
        )

    def _ids(self, values: list[Any]) -> list[str]:
        if set(map(type, values)) == {str}:
            values = list(map(str.strip, values))
            if all(values) and ".0\n" not in "\n".join([*values, ""]):
                return values
        return each(self._id, values)

    def _id(self, value: Any) -> str:
        if value == "" if isinstance(value, str) else is_missing(value):
            raise MuscleError(f"the column {self.roles['id']!r} is empty; every item needs an id")
        if value.__class__ is not str:
            return normal(value)
        # Integers beside a missing value are floats to pandas.
        return value[:-2] if value.endswith(".0") and value[:-2].isdecimal() else value

    def _values(
        self, metric: str, columns: _Columns, unanswered: NDArray[np.bool_]
    ) -> tuple[str, bool | None, NDArray[np.float64], NDArray[np.int8]]:
        """The metric's name, whether it is right or wrong, the values, and why some are missing."""
        graded: bool | None = True
        if self.how == "exact_match":
            values = self._verbatim(columns["prediction"], columns["target"])
        elif self.how == "correct":
            values, path = self._numbers("correct", columns["correct"]), self.roles["correct"]
            # A comparison says itself which way is right.
            if re.search("[<>=!]", path) is None and (not self.layout.columns or "correct" in self.options.columns):
                values = values if sign_of(path, self.options.lower_is_better) > 0 else 1 - values
        elif self.how == "score":
            values, graded = self._numbers("score", columns["score"]), None if self.layout.open else False
            metric, values = self._directed(metric, values, self.roles["score"] if metric == "score" else metric)
        else:
            values, graded = self._as_rows_say(columns)
            if graded is not True:
                metric, values = self._directed(metric, values, metric)
        failed = np.zeros(len(values), dtype=bool)
        if "error" in self.getters:
            failed = np.array(once_each(is_failure, columns["error"]), dtype=bool)
        # What a run that failed is given as a score is no judgement of the model.
        sure = bool(self.layout.columns) or "error" in self.options.columns
        lost = np.isnan(values) | (failed & (sure | (unanswered & (values == 0))))
        kinds = np.where(failed, ERROR, np.where(unanswered & ("prediction" in self.getters), NO_ANSWER, NO_SCORE))
        return metric, graded, np.where(lost, np.nan, values), np.where(lost, kinds, ANSWERED).astype(np.int8)

    def _directed(self, metric: str, values: NDArray[np.float64], name: str) -> tuple[str, NDArray[np.float64]]:
        return (metric, values) if sign_of(name, self.options.lower_is_better) > 0 else (f"-{metric}", -values)

    def _verbatim(self, predictions: list[Any], targets: list[Any]) -> NDArray[np.float64]:
        names = (self.roles["prediction"], self.roles["target"])

        def judged(said: Any, right: Any) -> float:
            return math.nan if is_missing(said) or is_missing(right) else float(matches(said, right, names))

        return np.array(once_each(judged, predictions, targets), dtype=np.float64)

    def _as_rows_say(self, columns: _Columns) -> tuple[NDArray[np.float64], bool | None]:
        flags, scores = (self._numbers(role, columns[role]) for role in ("correct", "score"))
        known, scored = ~np.isnan(flags), ~np.isnan(scores)
        if known.any() and (~known & scored).any():
            raise RowError(
                int((~known & scored).argmax()) if known[0] else int(known.argmax()),
                f"item {columns['id'][int((~known & scored).argmax())]!r} has no 'correct', which the others have; "
                "judge all items of a task in one way",
            )
        graded = True if known.any() else None if self.layout.open or not scored.any() else False
        return np.where(known, flags, scores), graded

    def _numbers(self, role: str, values: list[Any]) -> NDArray[np.float64]:
        kinds = set(map(type, values))
        if kinds <= {bool} or (role == "score" and kinds <= {float, int}):
            return np.array(values, dtype=np.float64)
        if kinds == {type(None)}:
            return np.full(len(values), np.nan)
        words, name = self.layout.words, self.roles[role]
        right = {normal(word).lower() for word in self.options.right}

        def number(value: Any) -> float:
            if isinstance(value, str) and value in words:
                return words[value]
            if right and not is_missing(value):
                return float(normal(value).lower() in right)
            return as_flag(value, name) if role == "correct" else as_number(value, name)

        return np.array(each(number, values), dtype=np.float64)

    def details(self, rows: Sequence[Row]) -> list[Detail]:
        """The texts of some rows."""
        if self.prepare is not None:
            rows = [self.prepare(row, True) or {} for row in rows]
        columns = _Columns(self.getters, rows, None)
        first = np.unique(columns.take_apart(self.how), return_index=True)[1].tolist()
        others = self._other_columns(columns.rows, columns["columns"])

        def detail(place: int) -> Detail:
            prompt, prediction, target, choices, likelihoods = (
                columns[role][place] for role in ("prompt", "prediction", "target", "choices", "log_likelihoods")
            )
            choices, targets = tuple(map(str, choices or ())), targets_of(target)
            indices = tuple(entry for entry in targets if entry.__class__ is int) if choices or likelihoods else ()
            own = {name: values[place] for name, values in others.items()}
            return Detail(
                prompt=None if prompt is None else _text(prompt),
                target=" | ".join(_text(entry, choices) for entry in targets),
                answer=None if is_missing(prediction) else _text(prediction, choices),
                choices=choices,
                target_indices=indices,
                log_likelihoods=tuple(likelihoods or ()),
                columns={k: v for k, v in own.items() if v is not None and not isinstance(v, (list, dict, bytes))},
            )

        return list(map(detail, first))


def _text(value: Any, choices: Sequence[str] = ()) -> str:
    """What a reader is shown: of the index of a choice its text."""
    if type(value) is int and 0 <= value < len(choices):
        return choices[value]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


class _Columns(dict[str, list[Any]]):
    """The values of each role, read when they are first asked for; nothing for roles that no column has."""

    def __init__(self, getters: Mapping[str, Getter], rows: Sequence[Row], numbers: list[int] | None) -> None:
        super().__init__({} if numbers is None else {"id": numbers})
        self.getters, self.rows = getters, rows

    def __missing__(self, role: str) -> list[Any]:
        self[role] = self.getters[role](self.rows) if role in self.getters else [None] * len(self.rows)
        return self[role]

    def take_apart(self, how: str) -> NDArray[np.int64]:
        """Makes a row of each judgement where a row has a list of them; which row each was."""
        judged = self[how] if how == "correct" else []
        if list not in set(map(type, judged)):
            return np.arange(len(self.rows))
        many = [value if isinstance(value, list) and value else [value or None] for value in judged]
        which = np.repeat(np.arange(len(many)), [len(values) for values in many])
        answers = self["prediction"]
        self["prediction"] = [
            answer
            for said, values in zip(answers, many, strict=True)
            for answer in (said if isinstance(said, list) and len(said) == len(values) else [said] * len(values))
        ]
        self["correct"] = [value for values in many for value in values]
        for role in self.getters.keys() - {"prediction", "correct"}:
            self[role] = [self[role][row] for row in which]
        self.rows = [self.rows[row] for row in which.tolist()]
        return which


def _key(answer: Any) -> int:
    return -1 if is_missing(answer) else answer_key(answer)


def _keys(target: Any) -> list[int]:
    return list(map(answer_key, targets_of(target)))


def _content(columns: _Columns) -> NDArray[np.uint64]:
    """Identity of each item: the logged hash, else the texts; 0 where neither is there."""
    digests = columns["hash"]
    if any(digests):
        try:  # the usual case, ten times as fast
            packed = bytes.fromhex("".join([digest[:16] for digest in digests]))
            if len(packed) == 8 * len(digests):
                return np.maximum(np.frombuffer(packed, dtype=">u8").astype(np.uint64), 1)
        except (TypeError, ValueError):
            pass
        return np.array([hash_key(digest) for digest in digests], dtype=np.uint64)
    return np.array(once_each(_text_of, columns["prompt"], columns["target"], columns["choices"]), dtype=np.uint64)


def _text_of(prompt: Any, target: Any, choices: Any) -> int:
    targets = targets_of(target)
    if is_missing(prompt) and not choices and not targets:
        return 0
    return text_key(repr((prompt, sorted(map(normal, targets)), choices)))
