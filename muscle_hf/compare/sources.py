"""Finds out what kind of log a path is and reads it into one table per task."""

from __future__ import annotations

import fnmatch
import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from muscle_hf.compare.answers import NotJudged
from muscle_hf.compare.layouts import PLAIN, Layout, find_layout
from muscle_hf.compare.lm_eval_format import base_task
from muscle_hf.compare.paths import search
from muscle_hf.compare.roles import ReadOptions
from muscle_hf.compare.rows import RowReader
from muscle_hf.compare.table import Answers, Detail, RowError, TableBuilder
from muscle_hf.errors import MuscleError
from muscle_hf.row_files import (
    SUFFIXES,
    Records,
    has_columns,
    in_memory,
    open_records,
    rows_of,
    stem_of,
    suffix_of,
    unboxed,
)
from muscle_hf.words import did_you_mean, name_tasks

# The time stamps that lm-evaluation-harness and lighteval put at the end of file names.
_STAMP = re.compile(r"_(\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?)$")
# What a task is called that has no name, and names of files and folders that are none of a task.
UNNAMED = "predictions"
_ANY_TASK = "per_instance_stats results outputs answers samples logs runs data tmp"
_SAY_NOTHING = {"", "..", UNNAMED, *_ANY_TASK.split()}
# Rows whose texts are read at a time.
_AT_ONCE = 100
# Rows from the start that may tell the layout: some logs begin with a head.
_SEEN = 5


@dataclass
class Source:
    """What was read from one path: one table per task, what the reader should be told, and what gave the answers.

    ``named_by`` is set where nothing but one file names the tasks: what they begin with, and the file.
    """

    path: str
    format: str
    tables: dict[str, Answers]
    warnings: list[str] = field(default_factory=list)
    origins: list[Mapping[str, Any] | None] = field(default_factory=list)
    named_by: tuple[str, Path] | None = None


def read_source(path: str | os.PathLike[str], options: ReadOptions | None = None) -> Source:
    """Reads a prediction file, the log of another tool, a plain file, or a folder of these: lm-eval's
    ``samples_*.jsonl``, lighteval's ``details_*.parquet``, or one file (or folder) per task.

    Files are ``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet`` and ``.eval``; text also ``.gz`` and ``.zst``.
    One that is empty, truncated or of no known format, or whose rows contradict each other, is refused by file and
    line.
    """
    options, root = options or ReadOptions(), Path(path)
    if not root.exists():
        raise MuscleError(f"there is no file or folder {path}")
    source = Source(str(path), "", {})
    filters: set[str] = set()
    aside: list[NotJudged] = []
    names: list[str] = []
    bases = list(map(base_task, options.tasks))
    for files, source.warnings in _choices(root) if root.is_dir() else [([root], [])]:
        names = _names(root, files)
        for file, name in zip(files, names, strict=True):
            # Such a log holds the task that its name tells, perhaps by several filters.
            if _STAMP.search(stem_of(file)) and options.tasks and not _is_among(name, [*options.tasks, *bases]):
                continue
            try:
                known = bool(source.tables)
                filters |= _add(source, open_records(file), str(file), name, options)
                alone = not known and all(task.startswith(name) for task in source.tables)
                source.named_by = (name, file) if alone and not _STAMP.search(stem_of(file)) else None
            except NotJudged as error:
                aside.append(error)
        if source.tables:
            break
    return _checked(source, names, options, filters, aside)


def source_of(data: Any, name: str = "memory", options: ReadOptions | None = None) -> Source:
    """What is in memory, as if it had been read from a file.

    Args:
        data: Predictions of our own format; or a data frame of pandas or polars, a ``datasets.Dataset``, a list of
            dictionaries, or a JSON document.
        name: What messages call it.
        options: How to read it.

    Raises:
        MuscleError: It is empty, or its columns are not enough.
    """
    options, source = options or ReadOptions(), Source(name, "", {})
    rows = _rows_in(unboxed(data), options) if isinstance(data, dict) else (rows_of(data), PLAIN)
    if not rows[0]:
        raise MuscleError(f"{name} holds no predictions")
    filters = _add(source, in_memory(rows[0]), name, UNNAMED, options, rows[1])
    source.named_by = (UNNAMED, Path()) if set(source.tables) == {UNNAMED} else None
    return _checked(source, [], options, filters, [])


def as_source(entry: Any, options: ReadOptions) -> Source:
    """A side of a comparison: a path, a table in memory, or what was read already.

    By several metrics (``metric="acc,acc_norm"``), each task is one of its own for each.
    """
    if isinstance(entry, Source):
        return entry
    metrics = [metric.strip() for metric in (options.metric or "").split(",")]
    if len(metrics) > 1:
        found = [as_source(entry, replace(options, metric=metric)) for metric in metrics]
        tables = {
            (name := f"{task} [{metric}]"): replace(table, task=name)
            for metric, source in zip(metrics, found, strict=True)
            for task, table in source.tables.items()
        }
        return replace(found[0], tables=tables)
    return read_source(entry, options) if isinstance(entry, (str, os.PathLike)) else source_of(entry, options=options)


def _checked(
    source: Source, names: Sequence[str], options: ReadOptions, filters: set[str], aside: list[NotJudged]
) -> Source:
    """The source with the tasks that were asked for."""
    path = source.path
    for task in options.tasks:
        if not any(_is_among(name, [task]) for name in source.tables) and not aside:
            raise MuscleError(f"{path} has no task {task!r}; {did_you_mean(task, source.tables or sorted(names))}")
    source.tables = {
        name: table
        for name, table in source.tables.items()
        if (not options.tasks or _is_among(name, options.tasks)) and not _is_among(name, options.skip)
    }
    if not source.tables and aside:
        raise aside[0]
    source.warnings += [f"left out: {error}" for error in aside]
    if options.filter is not None and not source.tables:
        raise MuscleError(f"{path} has no filter {options.filter!r}; {did_you_mean(options.filter, sorted(filters))}")
    if not source.tables:
        raise MuscleError(f"{path} holds no predictions")
    judged = sorted({table.metric.removeprefix("-") for table in source.tables.values()})
    if options.metric and options.metric not in judged:
        raise MuscleError(
            f"{path} has no answers judged by {options.metric!r}; {did_you_mean(options.metric, judged)}"
        )
    return source


def _is_among(name: str, patterns: Sequence[str]) -> bool:
    """Whether a task, with or without its filter, is one of some names or patterns."""
    return any(
        pattern in (name, base_task(name)) or fnmatch.fnmatchcase(base_task(name), pattern) for pattern in patterns
    )


def _task_of(file: Path) -> str:
    return re.sub(r"^(samples|details)_", "", _STAMP.sub("", stem_of(file)))


def _names(root: Path, files: Sequence[Path]) -> list[str]:
    """What the tasks of some files are called: by the file, else by its folder, else by its whole path."""
    if not root.is_dir():
        return [_task_of(root) if _STAMP.search(stem_of(root)) else UNNAMED]
    called = [_task_of(file) for file in files]
    for names in (called, [_folder_of(file) for file in files]):
        if len(set(names)) == len(files):
            return names
    # A name that any task's file may have is none.
    parts = [[] if name in _SAY_NOTHING else [name] for name in called]
    return [file.relative_to(root).parent.joinpath(*part).as_posix() for file, part in zip(files, parts, strict=True)]


def _folder_of(file: Path) -> str:
    """The name of a file's folder, without that of the model that HELM puts there."""
    return re.sub(r"[:,]model=[^,]*", "", file.parent.name)


def call_alike(sources: Mapping[str, Source]) -> dict[str, Source]:
    """The sides of a comparison, where nothing but a file of each names their tasks: by what the files share."""
    named = [source.named_by for source in sources.values()]
    if None in named:
        return dict(sources)
    files = [found[1] for found in named if found is not None]
    shared = [set(map(_task_of, files)), set(map(_folder_of, files))] if len(set(map(_task_of, files))) == 1 else []
    name = next((found.pop() for found in shared if len(found) == 1 and not found & _SAY_NOTHING), UNNAMED)

    def called(source: Source, old: str) -> Source:
        tables = {name + task.removeprefix(old): table for task, table in source.tables.items()}
        return replace(source, tables={task: replace(table, task=task) for task, table in tables.items()})

    return {label: called(source, (source.named_by or "")[0]) for label, source in sources.items()}


def _choices(folder: Path) -> Iterator[tuple[list[Path], list[str]]]:
    """The log files of one run in a folder, the newest of each task, and what is to be said; else others."""
    for pattern, writer in (("samples_*.jsonl*", "lm-eval"), ("details_*.parquet", "lighteval")):
        files = sorted(folder.rglob(pattern))
        if files:
            # lighteval has one folder per time below the model's, lm-eval puts the files right into it.
            homes = {file.parent.parent if writer == "lighteval" else file.parent for file in files}
            if len(homes) > 1:
                listed = ", ".join(sorted(str(home) for home in homes))
                raise MuscleError(f"{folder} holds the logs of {len(homes)} models; name one of {listed}")
            newest: dict[str, Path] = {}
            for file in sorted(files, key=lambda file: (_STAMP.findall(stem_of(file)), str(file))):
                newest[_task_of(file)] = file
            old = len(files) - len(newest)
            note = f"{folder}: {old} older {writer} log(s) of the same tasks were left aside" if old else ""
            yield list(newest.values()), [note] if note else []
            return
    seen: set[Path] = set()
    # Beside the judgements of an item, HELM writes several files about them.
    for pattern in ("**/per_instance_stats.json*", "*", "**/*"):
        found = {file for file in folder.glob(pattern) if suffix_of(file) in SUFFIXES and file.is_file()} - seen
        files = sorted(file for file in found if not re.search(r"(^|/)\.", file.relative_to(folder).as_posix()))
        if files:
            yield files, []
        seen |= found
    if not seen:
        raise MuscleError(
            f"{folder} has no log that is known: lm-eval's samples_*.jsonl (run it with --log_samples), lighteval's "
            f"details_*.parquet (--save-details), or files of predictions ({', '.join(SUFFIXES)})"
        )


def _rows_in(document: Any, options: ReadOptions) -> tuple[list[Any], Layout]:
    """The rows of a JSON document, and its layout if that tells."""
    layout = PLAIN if options.rows or isinstance(document, list) else find_layout(document, document=True)
    path = options.rows or layout.rows
    found = search(path, document) if path else _only_rows(document) if isinstance(document, dict) else document
    if found is None:
        raise MuscleError(f"there are no rows at {path!r}; the document's fields are {', '.join(document)}")
    return rows_of(found), layout


def _only_rows(document: dict[str, Any]) -> Any:
    """An object that is a table itself, or else the one list of rows in it."""
    whole = "data" in document and not {"columns", "schema"}.isdisjoint(document)  # as pandas writes them
    if whole or has_columns(document) or _is_rows(list(document.values())):
        return document
    lists = [name for name, value in document.items() if _is_rows(value)]
    if len(lists) != 1:
        raise NotJudged(
            "the rows are not found in the document; say where they are with --rows, for example --rows "
            f"{lists[0] if lists else next(iter(document), 'results')}; its fields are {', '.join(document)}"
        )
    return document[lists[0]]


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _add(
    source: Source, records: Records, name: str, task: str, options: ReadOptions, layout: Layout = PLAIN
) -> set[str]:
    """Adds the tables of a file; the filters that it has."""
    try:
        if records.document is not None:
            rows, layout = _rows_in(records.document, options)
            task = (search(layout.task, records.document) if layout.task else None) or task
            records = in_memory(rows, records.kind)
        elif options.rows:
            rows, layout = _rows_in([row for block in records.blocks() for row in block.rows], options)
            records = in_memory(rows, records.kind)
        reader, tables, notes = _read(records, layout, name, task, options)
    except MuscleError as error:
        if str(error).startswith(name):
            raise
        kind = NotJudged if isinstance(error, NotJudged) else MuscleError
        raise kind(f"{name}: {error}") from error
    if source.format and reader.name != source.format:
        formats = ", ".join(sorted({source.format, reader.name}))
        raise MuscleError(f"{source.path} mixes the formats {formats}; keep one format in a folder")
    if both := sorted(source.tables.keys() & tables.keys()):
        raise MuscleError(f"{source.path}: task {both[0]!r} is in more than one file; give one of the files instead")
    source.format = reader.name
    source.tables.update(tables)
    source.origins += [origin for origin in reader.origins if origin not in source.origins]
    source.warnings += [f"{name}: {note}" for note in notes]
    return getattr(reader.prepare, "filters", set())


def _read(
    records: Records, layout: Layout, name: str, task: str, options: ReadOptions
) -> tuple[RowReader, dict[str, Answers], list[str]]:
    blocks = records.blocks()
    first = next((block for block in blocks if block.rows), None)
    if first is None:
        raise MuscleError(f"{name} holds no predictions, only blank lines or a header")
    if layout is PLAIN and not options.rows:
        known = (find_layout(row, document=False) for row in first.rows[:_SEEN])
        layout = next((found for found in known if found is not PLAIN), PLAIN)
    reader = RowReader(layout, first.rows, options, task, records.kind)
    builders: dict[str, TableBuilder] = {}
    for block in itertools.chain([first], blocks):
        try:
            for chosen, batch in reader.read(block.rows):
                if batch.task not in builders:
                    builders[batch.task] = TableBuilder(batch, name, options.wanted)
                builders[batch.task].add(batch, chosen, block.places[chosen])
        except RowError as error:
            unit = "line" if records.kind == "jsonl" else "row"
            raise MuscleError(f"{name}, {unit} {block.numbers[error.row]}: {error}") from error
    if not builders and options.where:
        listed = "; ".join(f"{path} is {', '.join(sorted(found))}" for path, found in reader.unmatched.items())
        raise MuscleError(f"no row of {name} is one of --where; {listed}")

    def fetch(places: Sequence[int]) -> list[Detail]:
        rows = records.again(places)
        parts = iter(lambda: list(itertools.islice(rows, _AT_ONCE)), [])
        return [detail for part in parts for detail in reader.details(part)]

    built = {key: builder.build(fetch) for key, builder in builders.items()}
    told: dict[str, list[str]] = {}
    for key, (_, note) in built.items():
        told.setdefault(note, []).append(key)
    notes = reader.notes + [f"{name_tasks(keys)}: {note}" for note, keys in told.items() if note]
    return reader, {key: table for key, (table, _) in built.items()}, notes
