"""Tasks by name, by YAML file, or from Python; and their rows and items."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.builtin import TASKS
from muscle_hf.evaluation.rows import Place, Rows, find_rows, read_rows
from muscle_hf.evaluation.tasks import Item, Source, Task
from muscle_hf.files import StrPath
from muscle_hf.user_code import about_to_run
from muscle_hf.words import did_you_mean


def builtin_tasks() -> list[str]:
    """Names of the tasks that are ready to use."""
    return list(TASKS)


def load_task(name: StrPath | Task) -> Task:
    """A task by what the user wrote.

    Args:
        name: A built-in name (:func:`builtin_tasks`), a YAML file (docs/howto/tasks.md), ``file.py:variable`` for a
            :class:`Task` in one's own Python file, or a task itself.

    Raises:
        MuscleError: There is no such task (the nearest name is suggested), or the file is not a valid task.
    """
    if isinstance(name, Task):
        return name
    text = os.fspath(name)
    if text in TASKS:
        return TASKS[text]
    if text.endswith((".yaml", ".yml")):
        from muscle_hf.evaluation.yaml_task import read_task

        return read_task(Path(text))
    if ".py:" in text:
        task = python_variable(text)
        if not isinstance(task, Task):
            raise MuscleError(f"{text} is no Task but {task!r}")
        return task
    raise MuscleError(
        f"unknown task {text!r} (one of your own is a .yaml file or file.py:variable); {did_you_mean(text, TASKS)}"
    )


def load_rows(task: StrPath | Task, source: Place | None = None, split: str = "test") -> Rows:
    """The rows of a task's split, as the data set has them; arguments as of :func:`load_items`. A task without public
    test labels reads its validation split as test."""
    place, splits = _source_of(load_task(task), source)
    return read_rows(place, split, splits=splits)


def place_of_rows(task: StrPath | Task, source: Place | None = None, split: str = "test") -> tuple[str | None, ...]:
    """Where :func:`load_rows` finds a split, which may be where it finds another: a file, or a split on the Hub."""
    named, splits = _source_of(load_task(task), source)
    place = find_rows(named, split, splits=splits)
    if isinstance(place, Source):
        return place.path, place.name, place.revision, place.splits.get(split, split)
    return (str(place.resolve()),)


def describe_data(task: StrPath | Task, source: Place | None = None, split: str = "test") -> dict[str, str | None]:
    """What the origin of predictions says of their data: ``task``, its name, and of a data set on the Hub ``path``,
    ``config``, ``revision`` and ``split``.
    """
    place = place_of_rows(task, source, split)
    names = ("path", "config", "revision", "split")
    return {"task": load_task(task).name, **(dict(zip(names, place, strict=True)) if len(place) == len(names) else {})}


def _source_of(task: Task, source: Place | None) -> tuple[Place, Mapping[str, str]]:
    """Where the rows are, and the splits that stand in for the task's."""
    place = source if source is not None else task.source
    if place is None:
        raise MuscleError(f"task {task.name!r} names no data set; say where its rows are")
    return place, task.source.splits if task.source else {}


def load_items(
    task: StrPath | Task,
    source: Place | None = None,
    split: str = "test",
    *,
    start: int = 0,
    limit: int | None = None,
    num_fewshot: int = 0,
) -> list[Item]:
    """The items of a task's split.

    Args:
        task: See :func:`load_task`.
        source: See :func:`load_rows`.
        split: See :func:`load_rows`.
        start: The first row to take; ids stay those of the whole split.
        limit: The most rows to take.
        num_fewshot: Solved items of the training split that each prompt begins with (the first ones of the split).

    Raises:
        MuscleError: No such data, a row that lacks what the task needs (which one is said), nothing left, or examples
            that are among the items.
    """
    loaded = load_task(task)
    rows = load_rows(loaded, source, split)
    stop = len(rows) if limit is None else min(len(rows), start + limit)
    if start < 0 or (limit is not None and limit < 1) or start >= stop:
        raise MuscleError(f"rows {start} to {stop} of {len(rows)} are nothing; check start and limit")
    items = [to_item(loaded, rows[index], index) for index in range(start, stop)]
    if not num_fewshot:
        return items
    if start < num_fewshot and place_of_rows(loaded, source, "train") == place_of_rows(loaded, source, split):
        raise MuscleError(
            f"the examples before each prompt are the first {num_fewshot} training items, which here are among those "
            f"of {split!r}: items would be shown their own answers. Take later ones (start: {num_fewshot}), or name a "
            "folder that has a training file too"
        )
    examples = [to_item(loaded, row, i) for i, row in enumerate(load_rows(loaded, source, "train")[:num_fewshot])]
    shots = "".join(f"{example.prompt}{example.target}\n\n" for example in examples)
    return [replace(item, prompt=shots + item.prompt) for item in items]


def to_item(task: Task, row: dict[str, object], index: int) -> Item:
    """The item of a row; an error says which row."""
    try:
        return task.to_item(row, index)
    except KeyError as error:
        raise MuscleError(
            f"task {task.name!r}, row {index}: there is no column {error}; the row has: {', '.join(row)}"
        ) from error
    except MuscleError as error:
        raise MuscleError(f"task {task.name!r}, row {index}: {error}") from error


def python_variable(text: str) -> Any:
    """What ``file.py:variable`` names; the file is run, which is said before."""
    file, _, variable = text.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise MuscleError(f"there is no Python file {file!r}; {text!r} should be file.py:variable")
    about_to_run(f"the Python file {path.resolve()}, for {variable!r}")
    spec: Any = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, variable):
        raise MuscleError(f"{path} has no {variable!r}")
    return getattr(module, variable)
