"""One model's answers to one task, in columns: what every log format is read into.

A million rows as Python objects would take gigabytes; what is needed to count is kept in packed arrays, and the texts
of the few items that are shown are read again from the file (:attr:`Answers.fetch`).
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.answers import ANSWERED, NO_SCORE
from muscle_hf.errors import MuscleError

# Text longer than this, and columns with more distinct values, are no slices unless they are asked for by name.
_MAX_LABEL = 100
_MAX_VALUES = 1000


class Row(NamedTuple):
    """What one row of a log says, in the form that all formats share.

    Args:
        task: Name of the task; tables are split by it.
        id: The item's id within the task.
        value: 1 or 0 for right or wrong, or a score, higher is better; nan where there is none.
        graded: True if ``value`` is right or wrong, False if it is a score, None if only the values can tell.
        answer: The answer as a number that is equal for equal answers (index, or hash of the text); None if unknown.
        content: Identity of the item's content, 0 if unknown.
        prompt: Identity of the prompt as the model saw it, 0 if unknown or covered by ``content``.
        metric: What the value is.
        choice: Whether the answer is one of a few choices, so that flips among wrong answers count.
        columns: Further columns of the item, or None.
        missing: Why there is no value, an index into :data:`~muscle_hf.compare.answers.KINDS`.
        free_text: Whether a sentence or more was held verbatim against a reference.
    """

    task: str
    id: str
    value: float
    graded: bool | None
    answer: int | None
    content: int
    prompt: int
    metric: str
    choice: bool
    columns: Mapping[str, Any] | None
    missing: int = ANSWERED
    free_text: bool = False


class Batch(NamedTuple):
    """Consecutive rows that share task, metric, kind and the names of their columns: :class:`Row` in columns."""

    task: str
    metric: str
    graded: bool
    choice: bool
    ids: list[str]
    values: NDArray[np.float64]
    answers: NDArray[np.int64]
    content: NDArray[np.uint64]
    columns: dict[str, list[Any]]


@dataclass(frozen=True)
class Detail:
    """The texts of one item as a log tells them; None or empty where it does not."""

    prompt: str | None = None
    target: str = ""
    answer: str | None = None
    choices: list[str] = field(default_factory=list)
    target_indices: list[int] = field(default_factory=list)
    log_likelihoods: list[float] = field(default_factory=list)
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Answers:
    """One model's answers to one task.

    Args:
        task: Name of the task.
        metric: What ``values`` are.
        source: Where they came from, for messages.
        ids: The item of each row.
        values: 1 / 0 or scores, float64; nan where there is none.
        missing: Why, int8: an index into :data:`~muscle_hf.compare.answers.KINDS`, 0 where there is a value.
        graded: See :class:`Row`.
        answers: Equal for equal answers, int64; None if some are unknown.
        content: Identity of each item's content, uint64; 0 where unknown.
        prompts: Identity of each prompt, uint64; 0 where unknown.
        choice: Whether the task is multiple choice.
        columns: Codes (int32, -1 for missing) and the values that they stand for.
        fetch: Reads the texts of rows by their numbers.
        free_text: Number of answers of a sentence or more that were held verbatim against a reference.
    """

    task: str
    metric: str
    source: str
    ids: list[str]
    values: NDArray[np.float64]
    graded: bool | None
    answers: NDArray[np.int64] | None
    content: NDArray[np.uint64]
    prompts: NDArray[np.uint64]
    choice: bool
    columns: dict[str, tuple[NDArray[np.int32], list[Any]]]
    fetch: Callable[[Sequence[int]], list[Detail]]
    missing: NDArray[np.int8]
    free_text: int = 0


def text_key(text: str) -> int:
    """A 63-bit number that is equal for equal texts within this process."""
    return hash(text) & 0x7FFFFFFFFFFFFFFF


def hash_key(digest: Any) -> int:
    """A logged hash as a 64-bit number; at least 16 hex digits of it count. 0 for none."""
    if not digest:
        return 0
    try:
        return int(digest[:16], 16) or 1
    except (ValueError, TypeError):
        return text_key(str(digest)) or 1


class _Column:
    __slots__ = ("codes", "index", "keep")

    def __init__(self, keep: bool) -> None:
        self.codes, self.index, self.keep = array("i"), {}, keep

    def add(self, row: int, value: Any) -> bool:
        """Notes the value of a row; False if the column turns out to be no slice."""
        if value.__class__ in (list, dict):
            value = json.dumps(value, ensure_ascii=False)
        if not self.keep and isinstance(value, str) and len(value) > _MAX_LABEL:
            return False
        code = self.index.setdefault(value, len(self.index))
        if code >= _MAX_VALUES and not self.keep:
            return False
        if len(self.codes) < row:
            self.codes.extend([-1] * (row - len(self.codes)))
        self.codes.append(-1 if value is None else code)
        return True

    def add_many(self, row: int, values: list[Any]) -> bool:
        """The same for consecutive rows from ``row`` on."""
        try:
            codes = [self.index[value] for value in values]
        except (KeyError, TypeError):
            return all(self.add(row + i, value) for i, value in enumerate(values))
        if None in self.index:
            codes = [-1 if value is None else code for value, code in zip(values, codes, strict=True)]
        self.codes.extend([-1] * (row - len(self.codes)))
        self.codes.fromlist(codes)
        return True


class TableBuilder:
    """Collects the rows of one task.

    Args:
        first: The first row; metric, kind and task of all others must be the same.
        source: Where the rows come from, for messages.
        wanted: Columns that are kept whatever they hold.
    """

    def __init__(self, first: Row, source: str, wanted: Sequence[str]) -> None:
        self.task, self.metric, self.graded, self.choice = first.task, first.metric, None, True
        self.source, self.wanted = source, wanted
        self.ids: list[str] = []
        self.values, self.answers = array("d"), array("q")
        self.content, self.prompts, self.places = array("Q"), array("Q"), array("q")
        self.missing, self.answers_known, self.free_text = array("b"), False, 0
        self.columns: dict[str, _Column] = {}
        self.dropped: set[str] = set()

    def add(self, row: Row, place: int) -> None:
        """Appends a row; ``place`` is where its text can be found again."""
        if self.graded is None:
            self.graded = row.graded
        if row.metric == self.metric and row.graded != self.graded and not row.missing:
            odd = "has no 'correct', which the others have" if self.graded else "has 'correct', the others a score"
            raise MuscleError(f"task {self.task!r}: item {row.id!r} {odd}; judge all items of a task in one way")
        if row.metric != self.metric:
            raise MuscleError(
                f"task {self.task!r} mixes the metrics {self.metric!r} and {row.metric!r} (item {row.id!r}); "
                "write one metric per task, or give the tasks different names"
            )
        self.ids.append(row.id)
        self.values.append(row.value)
        self.answers_known |= row.answer is not None
        self.answers.append(-1 if row.answer is None else row.answer)
        self.choice &= row.choice or row.missing > 0
        self.missing.append(row.missing)
        self.free_text += row.free_text
        self.content.append(row.content)
        self.prompts.append(row.prompt)
        self.places.append(place)
        if row.columns:
            self._add_columns(row.columns)

    def accepts(self, batch: Batch) -> bool:
        """Whether the batch is of this table's metric and kind; if not, adding its rows says what is wrong."""
        return (batch.metric, batch.graded, True) == (self.metric, self.graded, batch.choice or not self.choice)

    def add_batch(self, batch: Batch, places: NDArray[np.int64]) -> None:
        """Appends many rows at once."""
        start = len(self.ids)
        self.ids.extend(batch.ids)
        self.values.frombytes(batch.values.tobytes())
        self.answers.frombytes(batch.answers.tobytes())
        self.content.frombytes(batch.content.tobytes())
        self.prompts.frombytes(bytes(8 * len(batch.ids)))
        self.places.frombytes(places.tobytes())
        self.missing.frombytes(bytes(len(batch.ids)))
        for name, values in batch.columns.items():
            column = self._column(name)
            if column is not None and not column.add_many(start, values):
                self._drop(name)

    def _column(self, name: str) -> _Column | None:
        if name in self.dropped:
            return None
        if name not in self.columns:
            self.columns[name] = _Column(name in self.wanted)
        return self.columns[name]

    def _drop(self, name: str) -> None:
        del self.columns[name]
        self.dropped.add(name)

    def _add_columns(self, columns: Mapping[str, Any]) -> None:
        number = len(self.ids) - 1
        for name, value in columns.items():
            column = self._column(name)
            if column is not None and not column.add(number, value):
                self._drop(name)

    def build(self, fetch_places: Callable[[Sequence[int]], list[Detail]]) -> Answers:
        """The finished table.

        Raises:
            MuscleError: An id occurs twice.
        """
        self._check()
        values = np.frombuffer(self.values, dtype=np.float64)
        missing = np.frombuffer(self.missing, dtype=np.int8)
        missing = np.where((missing == ANSWERED) & ~np.isfinite(values), NO_SCORE, missing).astype(np.int8)
        places = np.frombuffer(self.places, dtype=np.int64)
        size = len(self.ids)
        columns = {}
        for name, column in self.columns.items():
            column.codes.extend([-1] * (size - len(column.codes)))
            columns[name] = (np.frombuffer(column.codes, dtype=np.int32), list(column.index))
        return Answers(
            task=self.task,
            metric=self.metric,
            source=self.source,
            ids=self.ids,
            values=np.where(missing == ANSWERED, values, np.nan),
            missing=missing,
            graded=self.graded,
            answers=np.frombuffer(self.answers, dtype=np.int64) if self.answers_known else None,
            content=np.frombuffer(self.content, dtype=np.uint64),
            prompts=np.frombuffer(self.prompts, dtype=np.uint64),
            choice=self.choice,
            columns=columns,
            fetch=lambda rows: fetch_places([int(places[row]) for row in rows]),
            free_text=self.free_text,
        )

    def _check(self) -> None:
        if len(set(self.ids)) < len(self.ids):
            seen: set[str] = set()
            twice = list(dict.fromkeys(key for key in self.ids if key in seen or seen.add(key)))  # type: ignore[func-returns-value]
            raise MuscleError(
                f"{self.source}: {len(twice)} id(s) of task {self.task!r} occur more than once: "
                f"{', '.join(map(repr, twice[:5]))}; every item needs an id of its own"
            )
