"""Rows of a log, whose fields have roles, as columns of a table."""

from __future__ import annotations

import fnmatch
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.answers import (
    ANSWERED,
    ERROR,
    NO_ANSWER,
    NO_SCORE,
    NotJudged,
    answer_key,
    as_flag,
    as_number,
    is_failure,
    is_free_text,
    is_missing,
    matches,
    normal,
    paths_below,
    sign_of,
    targets_of,
)
from muscle_hf.compare.layouts import PLAIN, ROLES, Layout, find_roles, plain_name
from muscle_hf.compare.paths import Getter, Row, compiled, getter, is_comparison, is_name, search
from muscle_hf.compare.table import Batch, Detail, RowError, choose_metric, each, hash_key, once_each, text_key
from muscle_hf.errors import MuscleError
from muscle_hf.words import did_you_mean

ROW_NUMBER = "#"
# Columns of scores that do not say what was measured.
_UNNAMED_SCORES = {"score", "similarity", "reward", "rating", "value"}
# Answers of a classifier, whose score is its confidence.
_LABELS = {"predicted_label", "pred_label", "y_pred"}
# Fields that hold the judgements of a tool.
_JUDGEMENTS = {"scores", "grades", "evaluation", "evaluations", "feedback", "feedback_scores", "judgement", "judgment"}
_LISTED = 20


@dataclass(frozen=True)
class ReadOptions:
    """How to read logs.

    Args:
        metric: Metric to compare, for logs with several.
        filter: lm-eval filter to compare; by default each is a table of its own.
        columns: Role -> column or JMESPath. ``id`` may join several by "+", and number the rows with "#"; ``correct``
            may be a comparison (``score>=7``).
        tasks: Only these tasks, by their name with or without the filter, or a pattern (``mmlu_*``); all by default.
        skip: Not these tasks, in the same way.
        wanted: Columns that are needed for slices or clusters, whatever they hold.
        lower_is_better: Whether lower scores are better; None to go by the measure's name, and ask where it says so.
        rows: JMESPath to the rows of a JSON document.
        where: Column or JMESPath -> value of the rows that count, where a file holds several runs. Keys of this and of
            ``columns`` may be of one model alone, by its label: ``new:model``.
        right: Words that say "right" in the column of right and wrong; all others are wrong.
    """

    metric: str | None = None
    filter: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    skip: Sequence[str] = ()
    wanted: Sequence[str] = ()
    lower_is_better: bool | None = None
    rows: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    right: Sequence[str] = ()

    def of(self, label: str, labels: Sequence[str]) -> ReadOptions:
        """What holds for one model: keys such as ``new:prediction`` are of the model with that label alone."""

        def own(table: Mapping[str, str]) -> dict[str, str]:
            common = {key: value for key, value in table.items() if key.partition(":")[0] not in labels}
            return common | {k.partition(":")[2]: v for k, v in table.items() if k.startswith(f"{label}:")}

        return replace(self, columns=own(self.columns), where=own(self.where))


class RowReader:
    """Reads the rows of one file by their roles.

    Args:
        layout: What the file looks like.
        first: Some rows from its start, which tell the columns.
        options: See :class:`ReadOptions`.
        task: What the task is called if no column says it.
        kind: What the format is called if the layout has no name.

    Raises:
        MuscleError: A column does not exist (the nearest name is suggested), or roles are missing.
    """

    def __init__(self, layout: Layout, first: Sequence[Row], options: ReadOptions, task: str, kind: str) -> None:
        if layout.prepare and options.columns:
            layout = PLAIN
        self.name, self.layout, self.options, self.task = layout.name or kind, layout, options, task
        self.prepare = layout.prepare(task, options.metric, options.filter) if layout.prepare else None
        present = dict.fromkeys(ROLES if self.prepare else (str(name) for row in first for name in row))
        self.present = {plain_name(name): name for name in present}
        self.notes: list[str] = []
        self.roles = self._roles(list(present))
        self.how, self.metric = self._judged(first)
        self.roles = {role: path.replace("{metric}", self.metric) for role, path in self.roles.items()}
        self._check_paths(first)
        self.getters = {role: self._getter(role, path) for role, path in self.roles.items()}
        self.others = {} if self.prepare else {name: getter(name, self.present) for name in self._others(present)}
        self.rules = {path: getter(path, self.present) for path in options.where}
        self.models: set[str] = set()
        self.unmatched: dict[str, set[str]] = {path: set() for path in options.where}
        # What gave the answers, each once; None for rows that do not say.
        self.origins: list[Mapping[str, Any] | None] = []
        self.number = 0
        self._where = compiled(layout.where) if layout.where else None

    def _roles(self, present: Sequence[str]) -> dict[str, str]:
        unknown = [role for role in self.options.columns if role not in ROLES]
        if unknown:
            raise MuscleError(f"unknown column role {unknown[0]!r}; {did_you_mean(unknown[0], ROLES)}")
        found = {} if self.layout.columns else find_roles(present)
        named = {role: next(iter(fnmatch.filter(present, path)), path) for role, path in self.layout.columns.items()}
        if plain_name(found.get("prediction", "")) in _LABELS:
            found.pop("score", None)
        roles = {**(named or found), **self.options.columns}
        if (measure := self._measure()) and not self.layout.columns and not _how(self.options.columns):
            role = "correct" if "correct" in find_roles([measure]) else "score"
            roles = {name: path for name, path in roles.items() if name not in ("correct", "score")} | {role: measure}
        problems = []
        index = [name for name in present if plain_name(name) in ("", "unnamed_0", "index_level_0")]
        if "id" not in roles and ("prompt" in roles or index):
            roles["id"] = roles["prompt"] if "prompt" in roles else index[0]
            self.notes.append(f"no column has ids, so items are told by their {roles['id'] or 'row numbers'!r}")
        if "id" not in roles:
            problems.append(
                "no column with the items' ids: name it with id=NAME, or id=# if all files have the same rows in the "
                "same order"
            )
        if not _how(roles):
            problems.append(
                "nothing says which answers are right: name a column of 1 and 0 with correct=NAME, of scores with "
                "score=NAME, or of answers and right answers with prediction=NAME,target=NAME"
            )
        if problems:
            raise NotJudged(
                f"{'; '.join(problems)}. Use --columns ROLE=NAME,...; the columns are {', '.join(present)}"
            )
        return roles

    def _judged(self, first: Sequence[Row]) -> tuple[str, str]:
        """How answers are judged (correct, score, exact_match; rows: as each row says), and the metric."""
        if "metric" in self.roles and "metric" not in self.options.columns:
            return "rows", ""
        metric = ""
        if self.layout.metrics:
            names = (search(self.layout.metrics, row) for row in first)
            metric = choose_metric(next(filter(None, names), []), self.options.metric, self.task)
        how = _how(self.options.columns) or _how(self.roles)
        if metric and "score" in self.layout.columns and self.options.metric:
            how = "score"
        if self.options.right and "correct" not in self.roles and "score" in self.roles:
            self.roles["correct"] = self.roles["score"]
        how = "correct" if self.options.right else how
        if metric and (how == "score" or "{metric}" in self.roles["correct"]):
            return how, metric
        if how == "exact_match" and not _how(self.options.columns):
            self._note_judgements(first)
            return how, how
        path = self.roles.get(how, how)
        if self.options.metric and path == self._measure():
            return how, self.options.metric
        chosen = self.layout.columns or _how(self.options.columns)
        if how == "score" and not chosen and {"prediction", "target"} <= self.roles.keys():
            self.notes.append(
                f"answers were judged by the column {path!r}; if that is a confidence, hold them against their "
                f"targets: --columns prediction={self.roles['prediction']},target={self.roles['target']}"
            )
        named = how == "score" and not self.layout.columns and plain_name(path) not in _UNNAMED_SCORES
        return how, path if named else how

    def _measure(self) -> str | None:
        """The column that has the name of the metric that was asked for."""
        return self.present.get(plain_name(self.options.metric)) if self.options.metric else None

    def _note_judgements(self, first: Sequence[Row]) -> None:
        for name, value in {name: value for row in first for name, value in row.items()}.items():
            nested = plain_name(name) in _JUDGEMENTS and value and isinstance(value, (list, Mapping))
            if nested or re.search(r"[./](score|value)$|^(feedback|scores)\.", name):
                self.notes.append(
                    f"answers were held word by word against their targets; for the judgements in {name!r} use "
                    f"--columns correct=PATH or score=PATH, of {', '.join(paths_below(name, value)[:5])}"
                )

    def _check_paths(self, first: Sequence[Row]) -> None:
        for role, path in self.options.columns.items():
            for part in self._parts(path):
                if part == ROW_NUMBER:
                    continue
                if is_name(part) and plain_name(part) not in self.present:
                    raise NotJudged(f"there is no column {part!r}; {did_you_mean(part, self.present.values())}")
                if all(value is None for value in getter(part, self.present)(first)):
                    raise NotJudged(f"{role}: no row has anything at {part!r}")

    def _parts(self, path: str) -> list[str]:
        return [path] if path in self.present.values() else path.split("+")

    def _getter(self, role: str, path: str) -> Getter:
        if path == ROW_NUMBER:
            return lambda rows: [None] * len(rows)  # numbered by read()
        if role in ("id", "task") and len(self._parts(path)) > 1:
            parts = [getter(part, self.present) for part in self._parts(path)]
            return lambda rows: [_joined(values) for values in zip(*(part(rows) for part in parts), strict=True)]
        return getter(path, self.present)

    def _others(self, present: Mapping[str, Any]) -> list[str]:
        used = {part for path in self.roles.values() for part in self._parts(path)}
        used |= {self.present.get(plain_name(part), "") for part in used if is_name(part)}
        nested = [name for name in self.options.wanted if name not in present and not is_name(name)]
        # A column without a name is the number of a row.
        return [name for name in present if name and name not in used] + nested

    def read(self, rows: Sequence[Row]) -> Iterator[tuple[NDArray[np.int64], Batch]]:
        """The rows that count, by task, and which of the given ones they are.

        Raises:
            RowError: A row cannot be read.
            NotJudged: The task has no number per item.
        """
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

    def _other_columns(self, rows: Sequence[Row], mappings: list[Any] | None) -> dict[str, list[Any]]:
        columns = {name: get(rows) for name, get in self.others.items()}
        tables = [entry if isinstance(entry, dict) else {} for entry in mappings or ()]
        for name in dict.fromkeys(itertools.chain.from_iterable(tables)):
            columns[name] = [table.get(name) for table in tables]
        return columns

    def _batch(self, task: str, metric: str, columns: _Columns) -> Batch:
        predictions = columns["prediction"]
        unanswered = _missing(predictions)
        metric, graded, values, missing = self._values(metric, columns, unanswered)
        free = 0
        if self.how == "exact_match":
            free = sum(once_each(_has_free_text, predictions, columns["target"]))
        answers = None
        if not unanswered.all():
            answers = np.where(unanswered, -1, np.array(once_each(answer_key, predictions), dtype=np.int64))
        digests = columns["prompt_hash"] if "prompt_hash" in self.getters else []
        choices, likelihoods = columns["choices"], columns["log_likelihoods"]
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
            choice=answers is not None
            and (
                all(choices)
                or all(likelihoods)
                or all(map(any, zip(choices, likelihoods, missing.tolist(), strict=True)))
            ),
            columns=self._other_columns(columns.rows, columns["columns"]),
            verbatim=self.how == "exact_match",
            free_text=free,
        )

    def _ids(self, values: list[Any]) -> list[str]:
        if set(map(type, values)) == {str}:
            values = list(map(str.strip, values))
            if all(values) and ".0\n" not in "\n".join([*values, ""]):
                return values
        return each(self._id, values)

    def _id(self, value: Any) -> str:
        if value is None or value == "" or value != value:
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
            values = self._numbers("correct", columns["correct"])
            path = self.roles["correct"]
            if not is_comparison(path) and (not self.layout.columns or "correct" in self.options.columns):
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
        roles = ("prompt", "prediction", "target", "choices", "log_likelihoods")
        return [
            _detail(
                *(columns[role][place] for role in roles),
                columns={name: values[place] for name, values in others.items()},
            )
            for place in first
        ]


def _detail(
    prompt: Any, prediction: Any, target: Any, choices: Any, likelihoods: Any, columns: Mapping[str, Any]
) -> Detail:
    choices, targets = [str(choice) for choice in choices or []], targets_of(target)

    def text(answer: Any) -> str:
        known = answer.__class__ is int and 0 <= answer < len(choices)
        return choices[answer] if known else _text(answer)

    return Detail(
        prompt=None if prompt is None else _text(prompt),
        target=" | ".join(map(text, targets)),
        answer=None if is_missing(prediction) else text(prediction),
        choices=choices,
        target_indices=[entry for entry in targets if entry.__class__ is int] if choices or likelihoods else [],
        log_likelihoods=list(likelihoods or []),
        columns={
            name: value for name, value in columns.items() if value is not None and not isinstance(value, (list, dict))
        },
    )


def _how(roles: Mapping[str, Any]) -> str:
    """What the answers are judged by; empty if the roles do not say."""
    if "correct" in roles:
        return "correct"
    if "score" in roles:
        return "score"
    return "exact_match" if {"prediction", "target"} <= roles.keys() else ""


def _joined(values: Sequence[Any]) -> str | None:
    known = [str(value) for value in values if value is not None]
    return "/".join(known) if known else None


def _text(value: Any) -> str:
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


def _missing(values: list[Any]) -> NDArray[np.bool_]:
    return np.array(once_each(is_missing, values), dtype=bool)


def _has_free_text(prediction: Any, target: Any) -> bool:
    return is_free_text(prediction) or any(map(is_free_text, targets_of(target)))


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
