"""Puts the same items of several models side by side, and refuses to where they are not the same."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.answers import ABSENT, ANSWERED, CHANGED, KINDS, normal
from muscle_hf.compare.sources import Source, call_alike
from muscle_hf.compare.table import Answers, Detail, mean_of
from muscle_hf.errors import MuscleError
from muscle_hf.metrics.update import Kind
from muscle_hf.words import name_tasks

Missing = Literal["error", "wrong", "drop"]
Column = tuple[NDArray[np.int32], list[Any]]

_LISTED = 10
# Changed items whose texts are held at a time.
_BLOCK = 10_000
# Scores that differ by less than this, relative to their size, are equal: 0.1 + 0.2 and 0.3.
_EQUAL = 1e-9
# Scores of one scale hardly ever reach so many times as far for one model as for another.
_SCALE = 10
# Of so many answers that were held against their targets here, one should be right.
_ENOUGH = 20
# So many different answers in a whole task are labels, not texts.
_LABELS = 10
_REMEDY = (
    "Say what becomes of them: --missing wrong counts them as wrong, --missing drop leaves them out for every model"
)
_NO_COMMON_ID = (
    "No item is left to compare, as no id is in all logs. Are they ids of a run? Then say what tells the items, for "
    "example with --columns id=prompt"
)


@dataclass
class Joined:
    """The items of one task that all models answered, in the old model's order; per model label, the old one first.

    Args:
        kind: ``correct`` (values are 1 and 0) or ``score``.
        values: Float64, shape ``(items,)``; the mean of ``runs`` where items were answered several times.
        answers: Equal for equal answers, int64; None for models whose log has none.
        choice: Whether the task is multiple choice.
        columns: Columns of the items, which are equal in all logs: name -> code of each item (int32, -1 for missing)
            and the values that codes stand for.
        left_out: Number of items that a side lacks or has changed.
        tables: Where the rows came from.
        rows: The row of each item in its model's table; -1 where it has none.
        own_columns: The further columns of a model's own log (its grades, tokens, latency, ...).
        missing: How many items have no judged answer, by kind (:data:`~muscle_hf.compare.answers.KINDS`).
        reworded: How many prompts differ from the old model's, of models that were asked in other words.
        doubt: Why right and wrong of this task cannot be trusted; empty if nothing speaks against it.
        runs: Of models that answered items several times: 1, 0 or a score of each answer, float64, shape
            ``(items, answers)``, nan where there are fewer.
    """

    task: str
    metric: str
    kind: Kind
    ids: list[str]
    values: dict[str, NDArray[np.float64]]
    answers: dict[str, NDArray[np.int64] | None]
    choice: bool
    columns: dict[str, Column]
    left_out: int
    tables: dict[str, Answers]
    rows: dict[str, NDArray[np.int64]]
    own_columns: dict[str, dict[str, Column]]
    missing: dict[str, dict[str, int]]
    doubt: str
    runs: dict[str, NDArray[np.float64]]
    reworded: dict[str, int]

    @property
    def labels(self) -> list[str]:
        """The models, old first."""
        return list(self.values)

    def correct(self, label: str) -> NDArray[np.bool_]:
        """Who is right, for tasks of kind ``correct``."""
        return self.values[label] > 0.5

    def details(self, label: str, items: Sequence[int]) -> list[Detail]:
        """The texts of some items in a model's log; without an answer where it has none, but with the question."""
        rows = self.rows[label]
        known = iter(self.tables[label].fetch([int(rows[item]) for item in items if rows[item] >= 0]))
        return [next(known) if rows[item] >= 0 else self._asked(item) for item in items]

    def _asked(self, item: int) -> Detail:
        label = next(label for label, rows in self.rows.items() if rows[item] >= 0)
        (detail,) = self.details(label, [item])
        return detail._replace(answer=None, log_likelihoods=[], columns={})


def join(
    sources: Mapping[str, Source],
    *,
    missing: Missing = "error",
    ignore_prompts: bool = False,
    wanted: Sequence[str] = (),
) -> tuple[list[Joined], list[str]]:
    """Joins the tables of all models (by label, the old one first), task by task; what it returns beside the tasks are
    warnings. ``missing``: what becomes of items that a model has no judged answer to: refuse, count them as wrong, or
    leave them out for all models; items and tasks that a side lacks are the same to ``drop``.

    With ``ignore_prompts`` answers to the same items are compared even if the models saw other prompts. ``wanted``
    columns must be known of every item; one of them may be in one log alone. Tasks or items that are missing,
    additional or changed on a side, and prompts, metrics or wanted columns that differ, are refused.
    """
    if missing not in ("error", "wrong", "drop"):
        raise MuscleError(f"missing answers are an 'error', 'wrong', or to 'drop', not {missing!r}")
    sources = call_alike(sources)
    warnings = [note for source in sources.values() for note in source.warnings]
    joined = []
    for task in _common_tasks(sources, missing == "drop", warnings):
        tables = {label: source.tables[task] for label, source in sources.items()}
        joined.append(_join_task(task, tables, missing, ignore_prompts, wanted, warnings))
    unverified = [
        task.task
        for task in joined
        if not all(_pick(table.content, task.rows[label], 1).all() for label, table in task.tables.items())
    ]
    if unverified:
        warnings.append(f"{name_tasks(unverified)}: the logs have no hashes, so the items were joined by id alone")
    return joined, warnings


def _common_tasks(sources: Mapping[str, Source], common_only: bool, warnings: list[str]) -> list[str]:
    (first, old), *others = sources.items()
    problems = []
    for label, source in others:
        for has, lacks, there, here in ((old, source, first, label), (source, old, label, first)):
            missing = [name for name in has.tables if name not in lacks.tables]
            if missing:
                problems.append(f"{there} has {_some(missing)}, which {here} ({lacks.path}) lacks")
    common = [name for name in old.tables if all(name in source.tables for source in sources.values())]
    if problems and (not common or not common_only):
        remedy = (
            "Choose common ones with --task, or compare what is common with --missing drop"
            if common
            else "Give each side answers to the same task, under the same name"
        )
        raise MuscleError(f"the models were not asked the same tasks: {'; '.join(problems)}. {remedy}.")
    warnings.extend(f"left out: {problem}" for problem in problems)
    return common


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_LISTED])
    return shown + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "")


def _join_task(
    task: str,
    tables: dict[str, Answers],
    missing: Missing,
    ignore_prompts: bool,
    wanted: Sequence[str],
    warnings: list[str],
) -> Joined:
    (first, old), *others = tables.items()
    metrics = {table.metric for table in tables.values()}
    if len(metrics) > 1:
        listed = ", ".join(f"{label}: {table.metric}" for label, table in tables.items())
        raise MuscleError(f"task {task!r} was judged by different metrics ({listed}); choose one that all have")
    ids, rows = _match_ids(tables)
    states = {label: _pick(table.missing, rows[label], ABSENT) for label, table in tables.items()}
    other_prompts = {}
    for label, table in others:
        changed = _differ(_pick(old.content, rows[first], 0), _pick(table.content, rows[label], 0))
        same, asked_otherwise = _by_texts((old, rows[first]), (table, rows[label]), changed)
        changed &= ~same
        if ignore_prompts or (asked_otherwise == changed).all():
            other_prompts[label] = asked_otherwise
            changed &= ~asked_otherwise
        states[label] = np.where(changed, CHANGED, states[label])
    keep, reworded = _kept(task, ids, states, missing, warnings), {}
    rows = {label: picked[keep] for label, picked in rows.items()}
    kept_ids = ids if keep.all() else _at(ids, keep)
    for label, table in others:
        prompts = _differ(_pick(old.prompts, rows[first], 0), _pick(table.prompts, rows[label], 0))
        if label in other_prompts:
            prompts |= other_prompts[label][keep]
        if not prompts.any():
            continue
        text = (
            f"task {task!r}: {prompts.sum()} of {len(prompts)} prompts of {label} differ from those of {first} though "
            f"the items are the same ({_some(_at(kept_ids, prompts))})"
        )
        if not ignore_prompts:
            raise MuscleError(
                f"{text}. Was it run with another number of few-shot examples, another template or description? Run "
                "both alike, or compare all the same with --ignore-prompts"
            )
        warnings.append(text)
        reworded[label] = int(prompts.sum())
    missed = {label: found for label, state in states.items() if (found := _counts(state))}
    return _assemble(task, tables, rows, kept_ids, len(ids) - len(kept_ids), wanted, missed, reworded)


def _pick(values: NDArray[Any], rows: NDArray[np.int64], default: Any) -> NDArray[Any]:
    """The values of some rows; the default where an item has no row."""
    return values[rows] if (rows >= 0).all() else np.where(rows < 0, default, values[rows]).astype(values.dtype)


def _match_ids(tables: dict[str, Answers]) -> tuple[list[str], dict[str, NDArray[np.int64]]]:
    """All items, the old model's first, and each one's row in each table (-1 for none)."""
    old, *others = tables.values()
    if all(table.ids == old.ids for table in others):
        everything = np.arange(len(old.ids))
        return old.ids, dict.fromkeys(tables, everything)
    ids = list(dict.fromkeys(key for table in tables.values() for key in table.ids))
    rows = {}
    for label, table in tables.items():
        place = {key: row for row, key in enumerate(table.ids)}
        rows[label] = np.array([place.get(key, -1) for key in ids], dtype=np.int64)
    return ids, rows


def _at(ids: list[str], chosen: NDArray[np.bool_]) -> list[str]:
    return list(itertools.compress(ids, chosen.tolist()))


def _counts(states: NDArray[np.int8]) -> dict[str, int]:
    numbers = np.bincount(states, minlength=len(KINDS)).tolist()
    return {kind: n for kind, n in zip(KINDS[1:], numbers[1:], strict=True) if n}


def _kept(
    task: str, ids: list[str], states: dict[str, NDArray[np.int8]], missing: Missing, warnings: list[str]
) -> NDArray[np.bool_]:
    """Which items are compared."""
    problems = [
        f"{'missing' if kind == 'absent' else kind} in {label} ({found.sum()}): {_some(_at(ids, found))}"
        for label, state in states.items()
        for code, kind in enumerate(KINDS)
        if code != ANSWERED and (found := state == code).any()
    ]
    everywhere = np.logical_and.reduce([state == ANSWERED for state in states.values()])
    if not problems:
        return everywhere
    changed = any((state == CHANGED).any() for state in states.values())
    if missing == "error" or (missing == "wrong" and changed) or not everywhere.any():
        if np.logical_or.reduce([state == ABSENT for state in states.values()]).all():
            hint = _NO_COMMON_ID
        elif not everywhere.any():
            hint = "No item is left to compare"
        else:
            hint = "Leave changed items out for every model with --missing drop" if changed else _REMEDY
        raise MuscleError(f"task {task!r}: the models did not answer the same items: {'; '.join(problems)}. {hint}.")
    done = "counted as wrong" if missing == "wrong" else "left out"
    warnings.extend(f"task {task!r}, {done}: {problem}" for problem in problems)
    return np.ones_like(everywhere) if missing == "wrong" else everywhere


def _differ(left: NDArray[np.uint64], right: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Where both hashes are known and not equal."""
    return (left != right) & (left != 0) & (right != 0)


def _by_texts(
    old: tuple[Answers, NDArray[np.int64]], other: tuple[Answers, NDArray[np.int64]], changed: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which of the items with another hash are the same by their texts, whatever the order of their right answers, and
    which had only another prompt; where prompts have a hash of their own, a changed item is another item."""
    same, other_prompt = np.zeros_like(changed), np.zeros_like(changed)
    if any(table.prompts.any() for table, _ in (old, other)):
        return same, other_prompt
    places = np.flatnonzero(changed)
    for start in range(0, len(places), _BLOCK):
        block = places[start : start + _BLOCK]
        sides = [table.fetch(rows[block].tolist()) for table, rows in (old, other)]
        pairs = list(zip(*sides, strict=True))
        alike = np.array([None not in (a.prompt, b.prompt) and _question(a) == _question(b) for a, b in pairs])
        repeated = np.array([a.prompt == b.prompt for a, b in pairs])
        turned = np.array([a.target != b.target for a, b in pairs])
        same[block], other_prompt[block] = alike & repeated & turned, alike & ~repeated
    return same, other_prompt


def _question(detail: Detail) -> tuple[Sequence[str], list[str]]:
    return detail.choices, sorted(detail.target.split(" | "))


def _assemble(
    task: str,
    tables: dict[str, Answers],
    rows: dict[str, NDArray[np.int64]],
    ids: list[str],
    left_out: int,
    wanted: Sequence[str],
    missing: dict[str, dict[str, int]],
    reworded: dict[str, int],
) -> Joined:
    several = any(table.runs is not None for table in tables.values())
    runs = {label: _runs(table, rows[label]) for label, table in tables.items() if several}
    values = {
        label: mean_of(runs[label]) if label in runs else _pick(table.values, rows[label], np.nan)
        for label, table in tables.items()
    }
    graded = _is_graded(task, tables, {label: runs.get(label, value) for label, value in values.items()})
    if not graded and any(np.isnan(value).any() for value in values.values()):
        known = np.concatenate([value[~np.isnan(value)] for value in values.values()])
        if known.min() < 0 or known.max() > 1:
            raise MuscleError(
                f"task {task!r}: the scores lie between {known.min():g} and {known.max():g}, so that no score "
                "stands for wrong; leave items without a score out for every model with --missing drop"
            )
    values = {label: np.nan_to_num(value) for label, value in values.items()}
    columns, own_columns = _split_columns(task, tables, rows, wanted)
    answers = {
        label: None if table.answers is None else _pick(table.answers, rows[label], -1)
        for label, table in tables.items()
    }
    return Joined(
        task=task,
        metric=next(iter(tables.values())).metric,
        kind="correct" if graded else "score",
        ids=ids,
        values=_equalized(values),
        answers=answers,
        choice=all(table.choice for table in tables.values()),
        columns=columns,
        left_out=left_out,
        tables=tables,
        rows=rows,
        own_columns=own_columns,
        missing=missing,
        doubt=_doubt(tables, values, answers) if graded else _doubt_of_scales(values),
        runs=runs,
        reworded=reworded,
    )


def _runs(table: Answers, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """The values of an item's repeats, (items, most repeats), nan behind the last one; those without one are wrong."""
    runs = table.values[:, None] if table.runs is None else table.runs
    repeats = np.ones(len(runs), dtype=np.int64) if table.repeats is None else table.repeats
    answered = (rows >= 0)[:, None] & (np.arange(runs.shape[1]) < repeats[rows][:, None])
    return np.where(answered, np.nan_to_num(runs[rows]), np.nan)


def _doubt_of_scales(values: dict[str, NDArray[np.float64]]) -> str:
    """Why scores say little: all are the same, or one model's look like fractions, another's like percent."""
    known = np.concatenate(list(values.values()))
    if len(known) > _ENOUGH and np.ptp(known) == 0:
        return f"every score of every model is {known[0]:g}, so nothing was measured; compare another column"
    most = {label: float(np.abs(value).max(initial=0)) for label, value in values.items()}
    if not 0 < _SCALE * min(most.values()) < max(most.values()):
        return ""
    listed = ", ".join(f"{label} {value:g}" for label, value in most.items())
    return f"scores reach {listed}, which are hardly on one scale; log them alike"


def _is_graded(task: str, tables: dict[str, Answers], values: dict[str, NDArray[np.float64]]) -> bool:
    hints = {table.graded for table in tables.values()} - {None}
    if len(hints) > 1:
        raise MuscleError(f"task {task!r} is right / wrong for some models and a score for others; use one of them")
    # A metric that is usually right or wrong but was averaged over repeats is a score here.
    whole = all((np.isin(value, (0.0, 1.0)) | np.isnan(value)).all() for value in values.values())
    return whole and hints != {False}


def _equalized(values: dict[str, NDArray[np.float64]]) -> dict[str, NDArray[np.float64]]:
    """Scores in which equal ones are the same number, whatever way they were computed."""
    done: dict[str, NDArray[np.float64]] = {}
    for label, value in values.items():
        for earlier in done.values():
            value = np.where(np.isclose(value, earlier, rtol=_EQUAL, atol=1e-12), earlier, value)
        done[label] = value
    return done


def _split_columns(
    task: str, tables: dict[str, Answers], rows: dict[str, NDArray[np.int64]], wanted: Sequence[str]
) -> tuple[dict[str, Column], dict[str, dict[str, Column]]]:
    """The columns of the items, which are equal in all logs, and each model's own."""
    shared: dict[str, Column] = {}
    own: dict[str, dict[str, Column]] = {label: {} for label in tables}
    for name in dict.fromkeys(name for table in tables.values() for name in table.columns):
        having = {label: table.columns[name] for label, table in tables.items() if name in table.columns}
        picked = {label: _pick(codes, rows[label], -1) for label, (codes, _) in having.items()}
        equal, merged = _same_column(picked, having, rows)
        if equal and (len(having) == len(tables) or name in wanted):
            shared[name] = merged
        elif name in wanted:
            raise MuscleError(
                f"task {task!r}: the column {name!r} differs between {' and '.join(having)}, so it says something "
                "about the models, not about the items; slices and clusters need columns that are equal in all logs"
            )
        else:
            for label, codes in picked.items():
                own[label][name] = (codes, having[label][1])
    return shared, own


def _same_column(
    picked: dict[str, NDArray[np.int32]], having: dict[str, Column], rows: dict[str, NDArray[np.int64]]
) -> tuple[bool, Column]:
    """Whether the logs agree on a column wherever they have an item, and what they say together."""
    index: dict[str, int] = {}
    values: list[Any] = []
    merged = np.full(len(next(iter(picked.values()))), -2, dtype=np.int32)
    equal = True
    for label, codes in picked.items():
        places = []
        for value in having[label][1]:
            key = normal(value)
            if key not in index:
                index[key] = len(values)
                values.append(value)
            places.append(index[key] if key else -1)
        codes = np.array([*places, -1], dtype=np.int32)[codes]
        there = rows[label] >= 0
        equal &= bool((~there | (merged == -2) | (merged == codes)).all())
        merged = np.where(there & (merged == -2), codes, merged)
    return equal, (np.maximum(merged, -1), values)


def _doubt(
    tables: dict[str, Answers],
    values: dict[str, NDArray[np.float64]],
    answers: Mapping[str, NDArray[np.int64] | None],
) -> str:
    """Why it cannot be told which answers are right."""
    never = [label for label, value in values.items() if not value.any()]
    alone = [label for label in never if tables[label].verbatim and len(values[label]) >= _ENOUGH]
    if len(never) == len(values) or alone:
        whose = "any model" if len(never) == len(values) else " and ".join(alone)
        return (
            f"no answer of {whose} is right; check that answers and targets are of the same form (an index, a letter, "
            "the text of a choice, a number alone), or give a column that says who is right (--columns correct=NAME)"
        )
    right = {t: np.nansum(table.values if table.runs is None else table.runs) for t, table in tables.items()}
    verbatim = {label for label, table in tables.items() if table.free_text > right[label]}
    if verbatim and next(iter(values.values())).mean() < 0.5:
        return (
            f"text was held word by word against a reference ({', '.join(sorted(verbatim))}), which says little: more "
            "answers are sentences, no label at all, or their target amid other words than are right; "
            "give a column of a judge (--columns correct=NAME) or of a similarity (score=NAME)"
        )
    if not any(table.verbatim for table in tables.values()) and _is_a_target(values, answers):
        return (
            "all models are right on the same items, whatever they answer; does the column of right and wrong hold "
            "the right answer? Then say so (--columns prediction=NAME,target=NAME)"
        )
    return ""


def _is_a_target(values: dict[str, NDArray[np.float64]], answers: Mapping[str, NDArray[np.int64] | None]) -> bool:
    """Whether what should say who is right (1, 0) looks like an index of the right choice.

    Then it is the same for all models, and where it is 1, they have different labels for the one right answer.
    """
    first, *others = values.values()
    known = [found for found in answers.values() if found is not None]
    right = first > 0
    if right.sum() < _ENOUGH or len(known) < len(values) or any((other != first).any() for other in others):
        return False
    labels = len(np.unique(np.concatenate(known)))
    differ = np.logical_or.reduce([found[right] != known[0][right] for found in known])
    return labels <= _LABELS and bool(differ.mean() > 0.2)
