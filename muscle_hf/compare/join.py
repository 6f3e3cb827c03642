"""Puts the same items of several models side by side, and refuses to where they are not the same."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.sources import Source
from muscle_hf.compare.table import Answers, Detail
from muscle_hf.errors import MuscleError

_LISTED = 10
# Changed items whose texts are held at a time.
_BLOCK = 10_000


@dataclass
class Joined:
    """The items of one task that all models answered, in the old model's order.

    Args:
        task: Name of the task.
        metric: What the values are.
        kind: ``correct`` (values are 1 and 0) or ``score``.
        ids: The items.
        values: Per model label, float64, shape ``(items,)``.
        answers: Per model label, equal for equal answers, int64; None for models whose log has none.
        choice: Whether the task is multiple choice.
        columns: Column -> code of each item (int32, -1 for missing) and the values that codes stand for.
        left_out: Items that were left out because a side lacks or changed them.
        tables: Per model label, where the rows came from.
        rows: Per model label, the row of each item in its table.
    """

    task: str
    metric: str
    kind: str
    ids: list[str]
    values: dict[str, NDArray[np.float64]]
    answers: dict[str, NDArray[np.int64] | None]
    choice: bool
    columns: dict[str, tuple[NDArray[np.int32], list[object]]]
    left_out: int
    tables: dict[str, Answers]
    rows: dict[str, NDArray[np.int64]]

    @property
    def labels(self) -> list[str]:
        """The models, old first."""
        return list(self.values)

    def correct(self, label: str) -> NDArray[np.bool_]:
        """Who is right, for tasks of kind ``correct``."""
        return self.values[label] > 0.5

    def details(self, label: str, items: Sequence[int]) -> list[Detail]:
        """The texts of some items in a model's log."""
        rows = self.rows[label]
        return self.tables[label].fetch([int(rows[item]) for item in items])


def join(
    sources: Mapping[str, Source], *, allow_partial: bool = False, ignore_prompts: bool = False
) -> tuple[list[Joined], list[str]]:
    """Joins the tables of all models, task by task.

    Args:
        sources: Model label -> what was read; the old model first.
        allow_partial: Compare the common items and report the others, instead of refusing.
        ignore_prompts: Compare answers to the same items even if the models saw other prompts.

    Returns:
        The joined tasks, and warnings.

    Raises:
        MuscleError: Tasks or items are missing, additional or changed on a side; prompts or metrics differ.
    """
    labels = list(sources)
    warnings = [note for source in sources.values() for note in source.warnings]
    tasks = _common_tasks(sources, allow_partial, warnings)
    joined = []
    for task in tasks:
        tables = {label: sources[label].tables[task] for label in labels}
        joined.append(_join_task(task, tables, allow_partial, ignore_prompts, warnings))
    return joined, warnings


def _common_tasks(sources: Mapping[str, Source], allow_partial: bool, warnings: list[str]) -> list[str]:
    (first, old), *others = sources.items()
    problems = []
    for label, source in others:
        for has, lacks, there, here in ((old, source, first, label), (source, old, label, first)):
            missing = [name for name in has.tables if name not in lacks.tables]
            if missing:
                problems.append(f"{there} has {_some(missing)}, which {here} ({lacks.path}) lacks")
    common = [name for name in old.tables if all(name in source.tables for source in sources.values())]
    if problems and (not common or not allow_partial):
        near = difflib.get_close_matches(*_unmatched(sources), n=1) if not common else []
        raise MuscleError(
            f"the models were not asked the same tasks: {'; '.join(problems)}."
            + (f" The nearest name is {near[0]!r}." if near else "")
            + (
                " Choose common ones with --task, or compare what is common with --allow-partial."
                if common
                else " Give each side answers to the same task, under the same name."
            )
        )
    warnings.extend(f"left out: {problem}" for problem in problems)
    return common


def _unmatched(sources: Mapping[str, Source]) -> tuple[str, list[str]]:
    (_, old), *others = sources.items()
    return next(iter(old.tables)), [name for _, source in others for name in source.tables]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _join_task(
    task: str, tables: dict[str, Answers], allow_partial: bool, ignore_prompts: bool, warnings: list[str]
) -> Joined:
    (first, old), *others = tables.items()
    metrics = {table.metric for table in tables.values()}
    if len(metrics) > 1:
        listed = ", ".join(f"{label}: {table.metric}" for label, table in tables.items())
        raise MuscleError(f"task {task!r} was judged by different metrics ({listed}); choose one that all have")
    rows, problems = _match_ids(first, old, others)
    keep = np.ones(len(rows[first]), dtype=bool)
    other_prompts = {}
    for label, table in others:
        changed = _differ(old.content[rows[first]], table.content[rows[label]])
        asked_otherwise = _asked_otherwise((old, rows[first]), (table, rows[label]), changed)
        if ignore_prompts or (asked_otherwise == changed).all():
            other_prompts[label] = asked_otherwise
            changed &= ~asked_otherwise
        if changed.any():
            problems.append(f"changed in {label}: {_some([old.ids[i] for i in rows[first][changed]])}")
            keep &= ~changed
    if problems and not (allow_partial and keep.any()):
        hint = "compare the common ones with --allow-partial" if keep.any() else "no item is left to compare"
        raise MuscleError(
            f"task {task!r}: the models did not answer the same items. {'; '.join(problems)}. Or {hint}."
        )
    warnings.extend(f"task {task!r}: {problem}" for problem in problems)
    rows = {label: picked[keep] for label, picked in rows.items()}
    for label, table in others:
        prompts = _differ(old.prompts[rows[first]], table.prompts[rows[label]])
        if label in other_prompts:
            prompts |= other_prompts[label][keep]
        ids = [old.ids[i] for i in rows[first][prompts]]
        _check_prompts(
            f"task {task!r}: {len(ids)} of {len(prompts)} prompts of {label}", first, ids, ignore_prompts, warnings
        )
    if not _verified(tables, rows):
        warnings.append(f"task {task!r}: the logs have no hashes, so the items were joined by id alone")
    return _assemble(task, tables, rows, _left_out(tables, rows[first]) if problems else 0)


def _left_out(tables: dict[str, Answers], kept: NDArray[np.int64]) -> int:
    return len(set().union(*(table.ids for table in tables.values()))) - len(kept)


def _match_ids(
    first: str, old: Answers, others: Sequence[tuple[str, Answers]]
) -> tuple[dict[str, NDArray[np.int64]], list[str]]:
    """Rows of the common items in each table, in the old one's order, and what is missing or extra where."""
    if all(table.ids == old.ids for _, table in others):
        everything = np.arange(len(old.ids))
        return {first: everything, **{label: everything for label, _ in others}}, []
    places = {label: {key: row for row, key in enumerate(table.ids)} for label, table in others}
    known, problems = set(old.ids), []
    for label, table in others:
        missing = [key for key in old.ids if key not in places[label]]
        extra = [key for key in table.ids if key not in known]
        for word, keys in (("missing in", missing), ("only in", extra)):
            if keys:
                problems.append(f"{word} {label} ({len(keys)}): {_some(keys)}")
    common = [row for row, key in enumerate(old.ids) if all(key in place for place in places.values())]
    rows = {first: np.array(common, dtype=np.int64)}
    for label, _ in others:
        place = places[label]
        rows[label] = np.array([place[old.ids[row]] for row in common], dtype=np.int64)
    return rows, problems


def _differ(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Where both hashes are known and not equal."""
    return (left != right) & (left != 0) & (right != 0)


def _verified(tables: dict[str, Answers], rows: dict[str, NDArray[np.int64]]) -> bool:
    return all((table.content[rows[label]] != 0).all() for label, table in tables.items())


def _asked_otherwise(
    old: tuple[Answers, NDArray[np.int64]], other: tuple[Answers, NDArray[np.int64]], changed: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which of the changed items have the same choices and the same target, and only another prompt.

    For logs with one hash of the whole item; where prompts have a hash of their own, a changed item is another item.
    """
    same = np.zeros_like(changed)
    if any(table.prompts.any() for table, _ in (old, other)):
        return same
    places = np.flatnonzero(changed)
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        sides = [table.fetch(rows[block].tolist()) for table, rows in (old, other)]
        same[block] = [
            None not in (a.prompt, b.prompt)
            and a.prompt != b.prompt
            and (a.choices, a.target) == (b.choices, b.target)
            for a, b in zip(*sides, strict=True)
        ]
    return same


def _check_prompts(what: str, first: str, ids: Sequence[str], ignore_prompts: bool, warnings: list[str]) -> None:
    if not ids:
        return
    text = f"{what} differ from those of {first} though the items are the same ({_some(ids)})"
    if not ignore_prompts:
        raise MuscleError(
            f"{text}. Was it run with another number of few-shot examples, another template or description? Run "
            "both alike, or compare all the same with --ignore-prompts"
        )
    warnings.append(text)


def _assemble(task: str, tables: dict[str, Answers], rows: dict[str, NDArray[np.int64]], left_out: int) -> Joined:
    (first, old), *_ = tables.items()
    picked = rows[first]
    values = {label: table.values[rows[label]] for label, table in tables.items()}
    hints = {table.graded for table in tables.values()} - {None}
    if len(hints) > 1:
        raise MuscleError(f"task {task!r} is right / wrong for some models and a score for others; use one of them")
    graded = hints.pop() if hints else all(np.isin(value, (0.0, 1.0)).all() for value in values.values())
    if graded and not all(np.isin(value, (0.0, 1.0)).all() for value in values.values()):
        # A metric that is usually right or wrong but was averaged over repeats is a score here.
        graded = False
    return Joined(
        task=task,
        metric=old.metric,
        kind="correct" if graded else "score",
        ids=[old.ids[row] for row in picked] if len(picked) < len(old.ids) else old.ids,
        values=values,
        answers={
            label: None if table.answers is None else table.answers[rows[label]] for label, table in tables.items()
        },
        choice=all(table.choice for table in tables.values()),
        columns={name: (codes[picked], names) for name, (codes, names) in old.columns.items()},
        left_out=left_out,
        tables=tables,
        rows=rows,
    )
