"""Finds out what kind of log a path is and reads it into one table per task."""

from __future__ import annotations

import contextlib
import csv
import gc
import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from muscle_hf.compare.lighteval_format import LightevalFormat
from muscle_hf.compare.lm_eval_format import LmEvalFormat, base_task
from muscle_hf.compare.own_format import OwnFormat
from muscle_hf.compare.plain_format import PlainFormat
from muscle_hf.compare.table import Answers, Detail, Row, TableBuilder
from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.files import check_encoding, parse_json
from muscle_hf.words import did_you_mean

try:  # a fast parser where the extra "compare" is installed; the same results without, also for integers of any size
    from msgspec.json import decode as _fast_loads
except ImportError:
    _fast_loads = json.loads

_SUFFIXES = (".jsonl", ".json", ".ndjson", ".csv", ".tsv", ".parquet")
# Bytes of lines that are parsed at once: small enough that the parsed rows stay in the processor's cache.
_BLOCK = 1 << 18
# The time stamps that lm-evaluation-harness and lighteval put at the end of file names.
_STAMP = re.compile(r"_(\d{4}-\d{2}-\d{2}T\d{2}-\d{2}-\d{2}(?:\.\d+)?)$")


class Format(Protocol):
    """How the rows of a kind of log are understood."""

    name: str

    def extract(self, row: Mapping[str, Any]) -> Row | None:
        """What counts in a row; None to leave it out."""

    def detail(self, row: Mapping[str, Any]) -> Detail:
        """The texts of a row."""


@dataclass(frozen=True)
class ReadOptions:
    """How to read logs.

    Args:
        metric: Metric to compare, for logs with several.
        filter: lm-eval filter to compare; by default each is a table of its own.
        columns: Role -> column name, for plain files.
        tasks: Only these tasks, by their name with or without the filter; all by default.
        wanted: Columns that are needed for slices or clusters, whatever they hold.
        lower_is_better: Whether lower scores are better; None to go by the measure's name, and ask where it says so.
    """

    metric: str | None = None
    filter: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    wanted: Sequence[str] = ()
    lower_is_better: bool | None = None


@dataclass
class Source:
    """What was read from one path: its format, one table per task, what the reader should be told, and what gave the
    answers, as far as the rows say (:class:`~muscle_hf.compare.document.Model`)."""

    path: str
    format: str
    tables: dict[str, Answers]
    warnings: list[str] = field(default_factory=list)
    origins: list[Mapping[str, Any] | None] = field(default_factory=list)


def read_source(path: str, options: ReadOptions | None = None) -> Source:
    """Reads a prediction file, a plain file, or a folder of logs.

    Args:
        path: A ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file; or a folder with lm-eval's ``samples_*.jsonl``,
            lighteval's ``details_*.parquet``, or prediction files.
        options: See :class:`ReadOptions`.

    Raises:
        MuscleError: The path does not exist, is empty, truncated or of no known format, or its rows contradict each
            other; the message names the file and the line.
    """
    options = options or ReadOptions()
    root = Path(path)
    if not root.exists():
        raise MuscleError(f"there is no file or folder {path}")
    files, warnings = _choose_files(root) if root.is_dir() else ([root], [])
    tables: dict[str, Answers] = {}
    formats: set[str] = set()
    origins: list[Mapping[str, Any] | None] = []
    for file in files:
        if _STAMP.search(file.stem) and not _may_hold(file, options.tasks):
            continue
        form, found = _read_file(file, options)
        formats.add(form.name)
        origins += [origin for origin in getattr(form, "origins", []) if origin not in origins]
        both = sorted(tables.keys() & found.keys())
        if both:
            raise MuscleError(f"{path}: task {both[0]!r} is in more than one file; give one of the files instead")
        tables.update(found)
    if len(formats) > 1:
        raise MuscleError(f"{path} mixes the formats {', '.join(sorted(formats))}; keep one format in a folder")
    for task in options.tasks:
        if not any(_is_asked(name, [task]) for name in tables):
            raise MuscleError(f"{path} has no task {task!r}; it has {', '.join(tables) or _tasks_of(files)}")
    tables = {name: table for name, table in tables.items() if _is_asked(name, options.tasks)}
    if not tables:
        raise MuscleError(
            f"{path} holds no predictions" + (f" of filter {options.filter!r}" if options.filter else "")
        )
    judged = sorted({table.metric.removeprefix("-") for table in tables.values()})
    if options.metric and options.metric not in judged:
        hint = did_you_mean(options.metric, judged)
        raise MuscleError(f"{path} has no answers judged by {options.metric!r}; {hint}")
    return Source(path, formats.pop(), tables, warnings, origins)


def source_of(predictions: Iterable[Prediction], name: str = "memory") -> Source:
    """Predictions that are in memory, as if they had been read from a file.

    Args:
        predictions: Rows of our own format, of one or more tasks.
        name: What messages call them.
    """
    rows = [prediction.to_dict() for prediction in predictions]
    if not rows:
        raise MuscleError(f"{name} holds no predictions")
    form, tables = _read_rows(Path(name), rows, ReadOptions())
    return Source(name, OwnFormat.name, tables, origins=form.origins)


def _choose_files(folder: Path) -> tuple[list[Path], list[str]]:
    """The log files of one run below a folder, the newest of each task."""
    for pattern, writer in (("samples_*.jsonl", "lm-eval"), ("details_*.parquet", "lighteval")):
        files = sorted(folder.rglob(pattern))
        if files:
            # lighteval has one folder per time below the model's, lm-eval puts the files right into it.
            homes = {file.parent.parent if writer == "lighteval" else file.parent for file in files}
            if len(homes) > 1:
                listed = ", ".join(sorted(str(home) for home in homes))
                raise MuscleError(f"{folder} holds the logs of {len(homes)} models; name one of {listed}")
            newest: dict[str, Path] = {}
            for file in sorted(files, key=lambda file: (_stamp(file), str(file))):
                newest[_task_of(file)] = file
            old = len(files) - len(newest)
            note = f"{folder}: {old} older {writer} log(s) of the same tasks were left aside" if old else ""
            return list(newest.values()), [note] if note else []
    files = sorted(file for file in folder.iterdir() if file.suffix in _SUFFIXES and file.suffix != ".json")
    if not files:
        raise MuscleError(
            f"{folder} has no log that is known: lm-eval's samples_*.jsonl (run it with --log_samples), lighteval's "
            "details_*.parquet (--save-details), or .jsonl, .csv, .parquet files of predictions"
        )
    return files, []


def _is_asked(name: str, tasks: Sequence[str]) -> bool:
    """Whether a table is among the tasks that were asked for; all are if none was."""
    return not tasks or name in tasks or base_task(name) in tasks


def _may_hold(file: Path, tasks: Sequence[str]) -> bool:
    """Whether a log whose name tells its task can hold one of the tasks that were asked for."""
    return not tasks or _task_of(file) in {word for task in tasks for word in (task, base_task(task))}


def _tasks_of(files: Sequence[Path]) -> str:
    return ", ".join(sorted(map(_task_of, files))) or "none"


def _stamp(file: Path) -> str:
    found = _STAMP.search(file.stem)
    return found.group(1) if found else ""


def _task_of(file: Path) -> str:
    stem = _STAMP.sub("", file.stem)
    return re.sub(r"^(samples|details)_", "", stem)


def _read_file(file: Path, options: ReadOptions) -> tuple[Format, dict[str, Answers]]:
    if file.suffix not in _SUFFIXES:
        raise MuscleError(f"{file}: unknown format {file.suffix or '(no suffix)'!r}; known are {', '.join(_SUFFIXES)}")
    if file.stat().st_size == 0:
        raise MuscleError(f"{file} is empty; was the run that writes it stopped?")
    check_encoding(file)
    if file.suffix in (".csv", ".tsv"):
        return _read_rows(file, _csv_rows(file), options)
    if file.suffix == ".parquet":
        return _read_rows(file, _ParquetRows(file), options)
    return _read_json_lines(file, options)


def _format_of(row: Mapping[str, Any], file: Path, options: ReadOptions) -> Format:
    if LmEvalFormat.recognises(row):
        return LmEvalFormat(_task_of(file), options.metric, options.filter, options.lower_is_better)
    if LightevalFormat.recognises(row):
        return LightevalFormat(_task_of(file), options.metric, options.lower_is_better)
    if OwnFormat.recognises(row) and not options.columns:
        return OwnFormat(options.lower_is_better)
    suffix = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv"}.get(file.suffix, "jsonl")
    try:
        return PlainFormat(list(row), options.columns, suffix, options.lower_is_better)
    except MuscleError as error:
        raise MuscleError(f"{file}: {error}") from error


def _parse(line: bytes, file: Path, number: int) -> Mapping[str, Any]:
    try:
        row = _fast_loads(line)
    except (ValueError, RecursionError):
        try:  # the fast parser refuses NaN, which has a message of its own later on
            row = parse_json(line, f"{file}, line {number}")
        except MuscleError as error:
            end = "" if line.endswith(b"\n") else ". The file ends in the middle of a line: was its writer stopped?"
            if number == 1 and line.lstrip()[:1] == b"[":
                end = ". A JSON array must be written one object a line (JSON lines)."
            raise MuscleError(f"{error}{end}") from error
    if row.__class__ is not dict:
        hint = "; a JSON array must be written one object a line (JSON lines)" if number == 1 else ""
        raise MuscleError(f"{file}, line {number}: expected an object with named fields{hint}")
    return row


def _read_json_lines(file: Path, options: ReadOptions) -> tuple[Format, dict[str, Answers]]:
    form: Format | None = None
    builders: dict[str, TableBuilder] = {}
    place, number = 0, 1
    with file.open("rb") as stream, _collector_paused():
        while lines := stream.readlines(_BLOCK):
            places = place + np.concatenate([[0], np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)))])
            place = int(places[-1])
            form = _add_block(builders, form, lines, places, file, number, options)
            number += len(lines)
    if form is None:
        raise MuscleError(f"{file} holds no predictions, only blank lines")
    chosen = form

    def fetch(places: Sequence[int]) -> list[Detail]:
        with file.open("rb") as lines:
            details = []
            for place in places:
                lines.seek(place)
                details.append(chosen.detail(_parse(lines.readline(), file, 0)))
        return details

    return form, {name: builder.build(fetch) for name, builder in builders.items()}


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """No search for reference cycles: parsed JSON has none, and looking for them doubles the time to read it."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _add_block(
    builders: dict[str, TableBuilder],
    form: Format | None,
    lines: list[bytes],
    places: NDArray[np.int64],
    file: Path,
    number: int,
    options: ReadOptions,
) -> Format | None:
    """Parses consecutive lines and adds them to their tables; the format is settled by the first row."""
    rows = _parse_block(lines, file, number)
    if form is None and any(rows):
        form = _format_of(next(filter(None, rows)), file, options)
    if form is not None and not _add_batch(builders, form, rows, places[:-1]):
        _add_rows(builders, form, rows, places, file, number, options)
    return form


def _parse_block(lines: list[bytes], file: Path, number: int) -> list[dict[str, Any] | None]:
    """The rows of consecutive lines, None for blank ones."""
    try:
        rows = [_fast_loads(line) for line in lines]
        if set(map(type, rows)) == {dict}:
            return rows
    except (ValueError, RecursionError):
        pass  # the line by line way below finds out which line it is, or that it is only blank
    return [_parse(line, file, number + i) if line.strip() else None for i, line in enumerate(lines)]


def _add_batch(
    builders: dict[str, TableBuilder], form: Format, rows: list[dict[str, Any] | None], places: NDArray[np.int64]
) -> bool:
    """The fast way for blocks of equal rows of a table that exists already; False if it is not open."""
    extract = getattr(form, "extract_batch", None)
    if extract is None or None in rows:
        return False
    batch = extract(rows)
    if batch is None or batch.task not in builders or not builders[batch.task].accepts(batch):
        return False
    builders[batch.task].add_batch(batch, places)
    return True


def _add_rows(
    builders: dict[str, TableBuilder],
    form: Format,
    rows: list[dict[str, Any] | None],
    places: NDArray[np.int64],
    file: Path,
    number: int,
    options: ReadOptions,
) -> None:
    for i, row in enumerate(rows):
        if row is None:
            continue
        try:
            _add(builders, form.extract(row), int(places[i]), file, options)
        except MuscleError as error:
            raise MuscleError(f"{file}, line {number + i}: {error}") from error


def _add(builders: dict[str, TableBuilder], row: Row | None, place: int, file: Path, options: ReadOptions) -> None:
    if row is None:
        return
    builder = builders.get(row.task)
    if builder is None:
        builder = builders[row.task] = TableBuilder(row, str(file), options.wanted)
    builder.add(row, place)


class _ParquetRows:
    """Rows of a Parquet file, a batch at a time; a row can be read again by its number."""

    def __init__(self, file: Path) -> None:
        try:
            import pyarrow.parquet as parquet
        except ImportError as error:
            raise MissingDependencyError("pyarrow", "compare", "reading Parquet files") from error
        try:
            self.table = parquet.read_table(file, memory_map=True)
        except (OSError, ValueError) as error:
            raise MuscleError(f"{file} is no readable Parquet file: {error}") from error

    def __iter__(self) -> Iterator[Mapping[str, Any]]:
        for batch in self.table.to_batches(max_chunksize=1000):
            yield from batch.to_pylist()

    def __getitem__(self, number: int) -> Mapping[str, Any]:
        return self.table.slice(number, 1).to_pylist()[0]


# What the fields beyond the header go by: no text, as a column may have any name ("" is that of pandas' index).
_MORE = object()


def _csv_rows(file: Path) -> list[Mapping[str, Any]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        delimiter = "\t" if file.suffix == ".tsv" else ","
        reader = csv.DictReader(lines, delimiter=delimiter, restkey=_MORE, strict=True)  # type: ignore[type-var]
        rows = []
        try:
            for row in reader:
                if _MORE in row or None in row.values():
                    raise MuscleError(
                        f"{file}, line {reader.line_num}: {'more' if _MORE in row else 'fewer'} fields than the "
                        f"{len(reader.fieldnames or [])} of the header; is a quote or the end of the file missing?"
                    )
                rows.append(row)
        except (csv.Error, UnicodeDecodeError) as error:
            raise MuscleError(f"{file}, line {reader.line_num}: not valid CSV ({error})") from error
    return rows


def _read_rows(file: Path, rows: Any, options: ReadOptions) -> tuple[Format, dict[str, Answers]]:
    form: Format | None = None
    builders: dict[str, TableBuilder] = {}
    for number, row in enumerate(rows):
        if form is None:
            form = _format_of(row, file, options)
        try:
            _add(builders, form.extract(row), number, file, options)
        except MuscleError as error:
            raise MuscleError(f"{file}, row {number + 1}: {error}") from error
    if form is None:
        raise MuscleError(f"{file} has no rows")
    chosen = form

    def fetch(places: Sequence[int]) -> list[Detail]:
        return [chosen.detail(rows[place]) for place in places]

    return form, {name: builder.build(fetch) for name, builder in builders.items()}
