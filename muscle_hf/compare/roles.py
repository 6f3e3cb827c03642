"""Which column has which role, and what answers are judged by."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from muscle_hf.compare.answers import NotJudged, paths_below
from muscle_hf.compare.layouts import PLAIN, ROLES, Layout, find_roles, plain_name
from muscle_hf.compare.paths import Getter, Row, getter, is_name, search
from muscle_hf.compare.table import choose_metric
from muscle_hf.errors import MuscleError
from muscle_hf.words import did_you_mean

ROW_NUMBER = "#"
_LISTED = 50
# Columns of scores that do not say what was measured.
_UNNAMED_SCORES = {"score", "similarity", "reward", "rating", "value"}
# Answers of a classifier, whose score is its confidence; so is one beside nothing but a label.
_LABELS = {"predicted_label", "pred_label", "y_pred"}
# Fields that hold the judgements of a tool.
_JUDGEMENTS = {"scores", "grades", "evaluation", "evaluations", "feedback", "feedback_scores", "judgement", "judgment"}


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


class Roles:
    """The columns of one file by their roles, told by its ``first`` rows; those that do not exist are refused with the
    nearest name, and so are missing roles. ``task`` is what the task is called if no column says it, ``kind`` the
    format's name if the layout has none."""

    def __init__(self, layout: Layout, first: Sequence[Row], options: ReadOptions, task: str, kind: str) -> None:
        if layout.prepare and options.columns:
            layout = PLAIN
        self.name, self.layout, self.options, self.task = layout.name or kind, layout, options, task
        self.prepare = layout.prepare(task, options.metric, options.filter) if layout.prepare else None
        present = dict.fromkeys(ROLES if self.prepare else (str(name) for row in first for name in row))
        self.present = {plain_name(name): name for name in present}
        self.notes: list[str] = []
        self.roles = self._roles(list(present), first[0] if self.prepare is None else {})
        self.how, self.metric = self._judged(first)
        self.roles = {role: path.replace("{metric}", self.metric) for role, path in self.roles.items()}
        self._check_paths(first)
        self.getters = {role: self._getter(role, path) for role, path in self.roles.items()}
        self.others = {} if self.prepare else {name: getter(name, self.present) for name in self._others(present)}

    def _roles(self, present: Sequence[str], row: Row) -> dict[str, str]:
        unknown = [role for role in self.options.columns if role not in ROLES]
        if unknown:
            raise MuscleError(f"unknown column role {unknown[0]!r}; {did_you_mean(unknown[0], ROLES)}")
        found = {} if self.layout.columns else find_roles(present)
        named = {role: next(iter(fnmatch.filter(present, path)), path) for role, path in self.layout.columns.items()}
        said = found.get("prediction") or found.get("target", "")
        if plain_name(said) in _LABELS or [plain_name(said), plain_name(found.get("score", ""))] == ["label", "score"]:
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
            names = [path for name in present for path in paths_below(name, row.get(name))]
            listed = ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")
            raise NotJudged(f"{'; '.join(problems)}. Use --columns ROLE=NAME,...; the columns are {listed}")
        return roles

    def _judged(self, first: Sequence[Row]) -> tuple[str, str]:
        """How answers are judged (correct, score, exact_match; rows: as each row says), and the metric."""
        if "metric" in self.roles and "metric" not in self.options.columns:
            return "rows", ""
        metric = ""
        if self.layout.metrics and not _how(self.options.columns):
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
        return [name for name in present if name and (name not in used or name in self.options.wanted)] + nested


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
