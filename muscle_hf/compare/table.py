"""One model's answers to one task, in columns: what every log format is read into.

A million rows as Python objects would take gigabytes; what is needed to count is kept in packed arrays, and the texts
of the few items that are shown are read again from the file (:attr:`Answers.fetch`).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import re
from array import array
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.answers import ANSWERED, NO_SCORE, NotJudged
from muscle_hf.errors import MuscleError

# Which of several measures is compared if none is asked for: the first of these that there is, else the first one.
_PREFERRED = "exact_match acc em pass@1 extractive_match correctness correct accuracy quasi_exact_match"
# Beside measures, what tools count of a run: their first number is no measure of an answer.
_COUNTED = re.compile(
    "num_|training_|inference_|finish_reason|batch_size|prompt_truncated|max_prob|predicted_index|logprob"
)
# Columns whose values are no repeats of one another: what stands under another of them is another measurement.
_APART = {"model", "model_name", "model_id", "metric", "metric_name", "judge", "grader", "scorer", "evaluator", "lang"}
_APART |= {"language", "locale", "config"}
# Words in the names of columns that number or name the repeats of an item.
_REPEATS = re.compile(
    "(?<![a-z])(run|epoch|repeat|trial|seed|sample|attempt|try|replica|iteration|rollout|completion|turn)s?(?![a-z])"
)
# So many different right answers are labels, if there are so many items for each.
_MAX_LABELS = _ITEMS_PER_LABEL = 10
# Text longer than this, and columns with more distinct values, are no slices unless they are asked for by name.
_MAX_LABEL = 100
_MAX_VALUES = 1000


class RowError(MuscleError):
    """What is wrong with a row; ``row`` is its place among those that were handed over."""

    def __init__(self, row: int, text: str) -> None:
        super().__init__(text)
        self.row = row


def each(function: Callable[[Any], Any], values: Sequence[Any]) -> list[Any]:
    """A function of each value; errors say which row it was."""
    result = []
    try:
        for value in values:
            result.append(function(value))
    except NotJudged:
        raise
    except MuscleError as error:
        raise RowError(len(result), str(error)) from error
    return result


def once_each(function: Callable[..., Any], *columns: Sequence[Any]) -> list[Any]:
    """A function of each row of some columns, once for equal rows where they can be told; errors say which it was."""
    rows = columns[0] if len(columns) == 1 else list(zip(*columns, strict=True))
    call = function if len(columns) == 1 else lambda row: function(*row)
    # Equal values of other types, such as 1 and True, are not the same.
    if all(
        len(kinds := set(map(type, column)) - {type(None)}) < 2 and kinds <= {str, int, bool} for column in columns
    ):
        with contextlib.suppress(MuscleError):
            known = {row: call(row) for row in set(rows)}
            return [known[row] for row in rows]
    return each(call, rows)


@dataclass(kw_only=True)
class Judged:
    """Answers to items of one task that were judged by one metric, in the order of the log.

    Args:
        task: Name of the task.
        metric: What the values are.
        graded: True if they are right or wrong, False for scores, None if only the values can tell.
        ids: The item of each.
        values: 1 / 0 or scores, higher is better, float64; nan where there is none. Of repeats their mean.
        missing: Why, int8: an index into :data:`~muscle_hf.compare.answers.KINDS`, 0 where there is a value.
        answers: Equal for equal answers, int64; None if unknown or repeated.
        content: Identity of each item's content, uint64; 0 where unknown.
        prompts: Identity of each prompt, uint64; 0 where unknown or covered by ``content``.
        choice: Whether the answers are among a few choices, so that flips among wrong answers count.
        verbatim: Whether answers were held word by word against their targets here, not judged by the tool.
        free_text: Number of the wrong ones that could hardly be right (:func:`~muscle_hf.compare.answers.is_text`).
    """

    task: str
    metric: str
    graded: bool | None
    ids: list[str]
    values: NDArray[np.float64]
    missing: NDArray[np.int8]
    answers: NDArray[np.int64] | None
    content: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    choice: bool
    verbatim: bool
    free_text: int


@dataclass(kw_only=True)
class Batch(Judged):
    """Some rows of a log, with their further columns and, where answers were held against them here, their right
    answers (``labels``, as ``answers``)."""

    columns: dict[str, list[Any]]
    labels: Collection[int]


class Detail(NamedTuple):
    """The texts of one item as a log tells them; None or empty where it does not."""

    prompt: str | None
    target: str
    answer: str | None
    choices: Sequence[str]
    target_indices: Sequence[int]
    log_likelihoods: Sequence[float]
    columns: Mapping[str, Any]


@dataclass(kw_only=True)
class Answers(Judged):
    """One model's answers to one task; an item that was answered several times is one item.

    Args:
        source: Where they came from, for messages.
        columns: Codes (int32, -1 for missing) and the values that they stand for.
        fetch: Reads the texts of items by their numbers (the first of several answers).
        runs: The value of each repeat, float64, (items, most repeats), nan where there is none; None if items were
            answered once.
        repeats: How often each item was answered, int64; None like ``runs``.
    """

    source: str
    columns: dict[str, tuple[NDArray[np.int32], list[Any]]]
    fetch: Callable[[Sequence[int]], list[Detail]]
    runs: NDArray[np.float64] | None = None
    repeats: NDArray[np.int64] | None = None


def text_key(text: str) -> int:
    """A 63-bit number that is equal for equal texts within this process, never 0."""
    return hash(text) & 0x7FFFFFFFFFFFFFFF or 1


def hash_key(digest: Any) -> int:
    """A logged hash as a 64-bit number; at least 16 hex digits of it count. 0 for none."""
    if not digest:
        return 0
    if digest.__class__ is int:
        return digest & 0xFFFFFFFFFFFFFFFF
    try:
        return int(digest[:16], 16) or 1
    except (ValueError, TypeError):
        return text_key(str(digest))


def likeliest(scores: Sequence[float]) -> int:
    """The choice with the highest score, the first of equals."""
    return max(range(len(scores)), key=scores.__getitem__)


def choose_metric(names: Sequence[str], asked: str | None, task: str) -> str:
    """The measure that is compared, where a log has several; NotJudged if there is none, or not the one asked for."""
    usual = [name for name in _PREFERRED.split() if name in names] + [
        name for name in names if not _COUNTED.match(name)
    ]
    chosen = asked or next(iter(usual), "")
    if chosen not in names or not chosen:
        raise NotJudged(
            f"task {task!r} has no metric {chosen!r} here; it has {', '.join(names) or 'none'}. Choose one that every "
            "side has with --metric, or name a column with --columns correct=PATH or score=PATH"
        )
    return chosen


class _Column:
    """Codes of the values of a column, in place of the values; ``keep`` it whatever it holds."""

    def __init__(self, keep: bool) -> None:
        self.codes, self.index, self.keep = array("i"), _Index({None: -1}), keep

    def add(self, row: int, values: list[Any]) -> bool:
        """Notes the values of consecutive rows from ``row`` on; False if the column turns out to be no slice."""
        known = len(self.index)
        try:
            codes = list(map(self.index.__getitem__, values))
        except TypeError:  # lists and objects
            if not self.keep:
                return False
            texts = [
                json.dumps(v, ensure_ascii=False, default=str) if isinstance(v, (list, dict)) else v for v in values
            ]
            codes = list(map(self.index.__getitem__, texts))
        self.codes.fromlist([-1] * (row - len(self.codes)) + codes)
        added = itertools.islice(self.index, known, None)
        short = not any(isinstance(value, str) and len(value) > _MAX_LABEL for value in added)
        return self.keep or (short and len(self.index) - 1 <= _MAX_VALUES)


class _Index(dict[Any, int]):
    """Value -> code, given in the order in which values come; -1 for None."""

    def __missing__(self, value: Any) -> int:
        self[value] = code = len(self) - 1
        return code


class TableBuilder:
    """Collects the rows of one task; metric and kind of all must be those of the ``first``."""

    def __init__(self, first: Batch, source: str, wanted: Sequence[str]) -> None:
        self.first, self.graded, self.source, self.wanted = first, first.graded, source, wanted
        self.ids: list[str] = []
        self.parts: list[tuple[Batch, NDArray[np.int64]]] = []
        self.columns: dict[str, _Column | None] = {}
        self.labels: set[int] = set()

    def add(self, batch: Batch, rows: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        """Appends rows: their numbers, for errors, and where their texts can be found again."""
        task, metric, item = batch.task, self.first.metric, batch.ids[0]
        if batch.metric != metric:
            raise RowError(
                int(rows[0]),
                f"task {task!r} mixes the metrics {metric!r} and {batch.metric!r} (item {item!r}); write one metric "
                "per task, or give the tasks different names",
            )
        if self.graded is None:
            self.graded = batch.graded
        if batch.graded not in (None, self.graded):
            odd = "has no 'correct', which the others have" if self.graded else "has 'correct', the others a score"
            raise RowError(int(rows[0]), f"task {task!r}: item {item!r} {odd}; judge all items of a task in one way")
        start = len(self.ids)
        for name, values in batch.columns.items():
            column = self.columns.setdefault(name, _Column(name in self.wanted))
            if column is not None and not column.add(start, values):
                self.columns[name] = None
        if len(self.labels) <= _MAX_LABELS:
            self.labels.update(batch.labels)
        batch.columns = {}
        self.ids.extend(batch.ids)
        self.parts.append((batch, places))

    def build(self, fetch_places: Callable[[Sequence[int]], list[Detail]]) -> tuple[Answers, str]:
        """The finished table, and what readers should know of it."""
        batches, size = [batch for batch, _ in self.parts], len(self.ids)
        places = np.concatenate([places for _, places in self.parts])
        values, missing, answers, content, prompts = (
            np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("values", "missing", "answers", "content", "prompts")
        )
        missing = np.where((missing == ANSWERED) & ~np.isfinite(values), NO_SCORE, missing).astype(np.int8)
        columns = {}
        for name, column in self.columns.items():
            if column is not None:
                column.codes.extend([-1] * (size - len(column.codes)))
                columns[name] = (np.frombuffer(column.codes, dtype=np.int32), list(column.index)[1:])
        table = Answers(
            task=self.first.task,
            metric=self.first.metric,
            source=self.source,
            ids=self.ids,
            values=np.where(missing == ANSWERED, values, np.nan),
            graded=self.graded,
            answers=None if (answers < 0).all() else answers,
            content=content,
            prompts=prompts,
            choice=all(batch.choice for batch in batches),
            columns=columns,
            fetch=lambda rows: fetch_places([int(places[row]) for row in rows]),
            missing=missing,
            verbatim=self.first.verbatim,
            free_text=max(self._strays(answers, values), sum(batch.free_text for batch in batches)),
        )
        return (table, "") if len(set(self.ids)) == size else _folded(table)

    def _strays(self, answers: NDArray[np.int64], values: NDArray[np.float64]) -> int:
        """Number of wrong answers that are no label at all, where the right answers are a few labels."""
        if not 1 < len(self.labels) <= min(_MAX_LABELS, len(values) // _ITEMS_PER_LABEL):
            return 0
        return int(((values == 0) & ~np.isin(answers, list(self.labels))).sum())


def mean_of(runs: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean over an item's repeats, shape ``(items, repeats)``; nan where it has none."""
    counted = (~np.isnan(runs)).sum(axis=1)
    return np.divide(np.nansum(runs, axis=1), counted, out=np.full(len(runs), np.nan), where=counted > 0)


def _folded(table: Answers) -> tuple[Answers, str]:
    """One row an item, where items were answered several times."""
    ids = list(dict.fromkeys(table.ids))
    place = {key: number for number, key in enumerate(ids)}
    items = np.fromiter((place[key] for key in table.ids), np.int64, len(table.ids))
    first = np.unique(items, return_index=True)[1]
    known = (table.content != 0) & (table.content[first[items]] != 0)
    other = known & (table.content != table.content[first[items]])
    if other.any():
        shown = ", ".join(map(repr, dict.fromkeys(table.ids[row] for row in np.flatnonzero(other)[:50])))
        raise MuscleError(
            f"{table.source}: id(s) of task {table.task!r} occur more than once: {shown[:300]}, for different items; "
            "every item needs an id of its own (--columns id=A+B joins columns)"
        )
    for name, (codes, labels) in table.columns.items():
        varies = (codes != codes[first[items]]).any()
        # The same few texts once for each id: items of several parts, each with ids of its own.
        parts = (
            2 * len(labels) <= len(codes)
            and set(map(type, labels)) <= {str}
            and not _REPEATS.search(re.sub("(?<=[a-z])(?=[A-Z])", "_", str(name)).lower())
            and len(np.unique(items * (len(labels) + 1) + codes)) == len(codes)
        )
        if varies and (parts or str(name).lower() in _APART):
            raise MuscleError(
                f"{table.source}: items of task {table.task!r} occur more than once, for several values of {name!r} "
                f"({', '.join(map(str, labels[:10]))}); choose one with --where '{name}=VALUE', or make them items of "
                f"their own with --columns id=ID+{name}"
            )
    repeats = np.bincount(items)
    order = np.argsort(items, kind="stable")
    turn = np.arange(len(items)) - np.repeat(np.cumsum(repeats) - repeats, repeats)
    runs = np.full((len(ids), int(repeats.max())), np.nan)
    runs[items[order], turn] = table.values[order]
    missing = np.zeros(len(ids), dtype=np.int8)
    np.maximum.at(missing, items, table.missing)
    rows_of = table.fetch
    folded = replace(
        table,
        ids=ids,
        values=mean_of(runs),
        answers=None,
        content=table.content[first],
        prompts=table.prompts[first],
        columns={name: (codes[first], names) for name, (codes, names) in table.columns.items()},
        fetch=lambda rows: rows_of([int(first[row]) for row in rows]),
        missing=missing,
        repeats=repeats,
        runs=runs,
    )
    times = " to ".join(map(str, np.unique([repeats.min(), repeats.max()])))
    return folded, f"items have {times} answers each, which count together as a rate"
