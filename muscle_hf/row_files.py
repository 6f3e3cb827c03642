"""Rows of logs and data sets, from files or from memory, in blocks; a row can be read again by its place."""

from __future__ import annotations

import codecs
import contextlib
import csv
import gzip
import io
import json
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.files import not_utf8, parse_json

try:  # a fast parser where the extra "compare" is installed; the same results without, also for integers of any size
    from msgspec.json import Decoder

    _fast_loads, _fast_lines = Decoder().decode, Decoder().decode_lines
except ImportError:
    _fast_loads = json.loads

    def _fast_lines(text: bytes, /) -> list[Any]:
        return list(map(json.loads, text.splitlines()))


Row = Mapping[str, Any]

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".eval")
_PACKED = (".gz", ".zst")
# Bytes of lines, and number of rows in memory, that are handled at once: few enough to be gone before the garbage
# collector counts them as lasting, which would set off searches through all objects.
_BYTES, _ROWS = 1 << 16, 1000
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class Block(NamedTuple):
    """Consecutive rows, where each can be read again (int64), and the line or row that messages name, from 1."""

    rows: list[Row]
    places: NDArray[np.int64]
    numbers: Sequence[int]


@dataclass(frozen=True)
class Records:
    """The rows of one file or table: its ``kind`` (``jsonl``, ``json``, ``csv``, ``parquet``, ``eval`` or ``memory``),
    the rows in blocks, from the start at each call, and ``again``, the rows at some places. Of one JSON document all
    of it, whose rows are still to be found (:func:`rows_of`)."""

    kind: str
    blocks: Callable[[], Iterator[Block]]
    again: Callable[[Sequence[int]], Iterator[Row]]
    document: Any = None


def suffix_of(file: Path) -> str:
    """The suffix that tells the format, without that of a compressed file."""
    return Path(file.stem if file.suffix.lower() in _PACKED else file.name).suffix.lower()


def stem_of(file: Path) -> str:
    """The name of a file without its suffixes."""
    return Path(file.stem if file.suffix.lower() in _PACKED else file.name).stem


def open_records(file: Path) -> Records:
    """The rows of a file; a MuscleError where its format is not known, or it is empty or damaged."""
    suffix = suffix_of(file)
    if suffix not in SUFFIXES:
        raise MuscleError(f"{file}: unknown format {suffix or '(no suffix)'!r}; known are {', '.join(SUFFIXES)}")
    if file.stat().st_size == 0:
        raise MuscleError(f"{file} is empty; was the run that writes it stopped?")
    if suffix == ".parquet":
        return _parquet(file)
    if suffix == ".eval":
        return replace(in_memory([], "eval"), document=_inspect_log(file))
    with _open(file) as stream:
        if suffix in (".csv", ".tsv"):
            return in_memory(_csv_rows(file, stream), "csv")
        start = stream.tell()
        first = stream.readline()
        second = next(filter(bytes.strip, stream), b"") if suffix == ".json" else b""
        rows = first.strip() and first.lstrip()[:1] != b"["
        if suffix == ".json":  # one line is a document, several are rows
            rows = second and _is_object(first)
        if not rows and (text := first + second + stream.read()).strip():
            document = _document(file, text)
            if document is not None:
                return replace(in_memory([], "json"), document=document)
    return _lines(file, start)


def in_memory(rows: Sequence[Row], kind: str = "memory") -> Records:
    """Rows that are in memory."""

    def blocks() -> Iterator[Block]:
        for start in range(0, len(rows), _ROWS):
            block = list(rows[start : start + _ROWS])
            yield Block(block, np.arange(start, start + len(block)), range(start + 1, start + len(block) + 1))

    return Records(kind, blocks, lambda places: (rows[place] for place in places))


def read_rows(file: Path) -> list[Row]:
    """All rows of a file; errors as of :func:`open_records` and, for one JSON document, :func:`rows_of`."""
    records = open_records(file)
    if records.document is None:
        return [row for block in records.blocks() for row in block.rows]
    try:
        return rows_of(records.document)
    except MuscleError as error:
        raise MuscleError(f"{file}: {error}") from error


def rows_of(table: Any) -> list[Row]:
    """The rows of a table in memory: a data frame of pandas or polars, a ``datasets.Dataset``, a list of dictionaries,
    columns by name (each a list, or values by row as ``DataFrame.to_json`` writes them), an object of dictionaries by
    id (the id becomes the field ``key``), or ``{"columns": [...], "data": [[...], ...]}``."""
    if isinstance(table, Mapping):
        if set(table) >= {"columns", "data"}:
            return [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
        if "schema" in table and _is_list(table.get("data")):  # pandas' "table"
            return rows_of(table["data"])
        if has_columns(table):
            columns = [list(found.values() if isinstance(found, Mapping) else found) for found in table.values()]
            return rows_of([dict(zip(table, row, strict=True)) for row in zip(*columns, strict=True)])
        table = [{"key": key, **row} for key, row in table.items() if isinstance(row, Mapping)]
    elif hasattr(table, "to_dicts"):  # polars
        table = table.to_dicts()
    elif hasattr(table, "to_pylist"):  # pyarrow
        table = table.to_pylist()
    elif hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas
        if not table.columns.is_unique:
            raise MuscleError(f"the data frame names a column twice: {', '.join(map(str, table.columns))}")
        named = {name for name in table.index.names if name is not None}
        table = (table.reset_index() if named and not named & set(table.columns) else table).to_dict("records")
    rows = [row.to_dict() if hasattr(row, "to_dict") else row for row in table] if _is_list(table) else [table]
    if not all(isinstance(row, Mapping) for row in rows):
        raise MuscleError(
            "rows must be a data frame, a datasets.Dataset or a list of dictionaries with named fields, not "
            f"{type(table).__name__}"
        )
    return list(map(unboxed, rows))


def has_columns(document: Any) -> bool:
    """Whether an object holds columns by name: lists of equal length, or values by the same numbers of rows."""
    columns = list(document.values()) if isinstance(document, Mapping) else []
    if columns and all(isinstance(found, Mapping) for found in columns):
        return len({tuple(found) for found in columns}) == 1 and all(str(row).isdigit() for row in columns[0])
    if not columns or not all(isinstance(found, list) and found for found in columns):
        return False
    # Lists of objects are rows.
    return len({len(found) for found in columns}) == 1 and not any(isinstance(found[0], Mapping) for found in columns)


_BUILT_IN = {str, int, float, bool, type(None), dict, list}


def unboxed(row: Row) -> Row:
    """A row whose arrays and scalars of NumPy are lists and plain values."""
    if _BUILT_IN.issuperset(map(type, row.values())):
        return row
    return {name: value.tolist() if hasattr(value, "tolist") else value for name, value in row.items()}


def _is_list(table: Any) -> bool:
    return isinstance(table, Iterable) and not isinstance(table, (str, bytes))


def _open(file: Path) -> IO[bytes]:
    """The bytes of a file, unpacked, in UTF-8 and after the byte-order mark."""
    try:
        if file.suffix.lower() == ".gz":
            stream: IO[bytes] = io.BytesIO(gzip.decompress(file.read_bytes()))
        elif file.suffix.lower() == ".zst":
            stream = io.BytesIO(_unpack_zst(file))
        else:
            stream = file.open("rb")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise MuscleError(f"{file}: the compressed file is damaged or cut off ({error})") from error
    start = stream.read(3)
    coding = next((coding for mark, coding in _MARKS.items() if start.startswith(mark)), None)
    stream.seek(3 if coding == "utf-8-sig" else 0)
    if coding != "utf-16":
        return stream
    try:
        return io.BytesIO(stream.read().decode(coding).encode())
    except UnicodeDecodeError as error:
        raise MuscleError(f"{file} is UTF-16 text that is damaged or cut off ({error})") from error


def _unpack_zst(file: Path) -> bytes:
    try:
        import pyarrow
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "compare", "reading .zst files") from error
    with pyarrow.input_stream(str(file), compression="zstd") as stream:
        return stream.read()


def _is_object(line: bytes) -> bool:
    """Whether a line is a whole JSON object, as files named .json often have one a line."""
    try:
        return isinstance(json.loads(line), dict) and line.endswith(b"\n")
    except ValueError:
        return False


def _document(file: Path, text: bytes) -> Any:
    """One JSON document; None if there are several, one a line."""
    try:
        return _loads(text, str(file))
    except MuscleError as error:
        if text.lstrip()[:1] == b"[" or suffix_of(file) == ".json":
            raise MuscleError(f"{error}; was its writer stopped?") from error
        return None


def _loads(text: bytes, where: str) -> Any:
    try:
        return _fast_loads(text)
    except (ValueError, RecursionError):  # the fast parser refuses NaN and lone surrogates
        return parse_json(text, where)


def _lines(file: Path, start: int) -> Records:
    def blocks() -> Iterator[Block]:
        place, number = start, 1
        with _open(file) as stream:
            while text := stream.read(_BYTES) + stream.readline():
                ends = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\n")) + 1
                starts = np.concatenate([[0], ends[ends < len(text)]])
                rows = _parse_block(text, len(starts), file, number)
                numbers: Sequence[int] = range(number, number + len(starts))
                places, number = place + starts, number + len(starts)
                if None in rows:  # blank lines
                    known = [i for i, row in enumerate(rows) if row is not None]
                    rows, places, numbers = [rows[i] for i in known], places[known], [numbers[i] for i in known]
                yield Block(cast("list[Row]", rows), places, numbers)
                place += len(text)

    def again(places: Sequence[int]) -> Iterator[Row]:
        with _open(file) as stream:
            for place in places:
                stream.seek(place)
                yield _parse(stream.readline(), file, 0)

    return Records("jsonl", blocks, again)


def _parse_block(text: bytes, lines: int, file: Path, number: int) -> list[Row | None]:
    """The rows of consecutive lines, None for blank ones."""
    # The line by line way below finds out which line is wrong, or that it is only blank.
    with contextlib.suppress(ValueError, RecursionError):
        rows = _fast_lines(text)
        if len(rows) == lines and set(map(type, rows)) == {dict}:
            return rows
    return [_parse(line, file, number + i) if line.strip() else None for i, line in enumerate(io.BytesIO(text))]


def _parse(line: bytes, file: Path, number: int) -> Row:
    try:
        row = _loads(line, f"{file}, line {number}")
    except MuscleError as error:
        end = "" if line.endswith(b"\n") else ". The file ends in the middle of a line: was its writer stopped?"
        raise MuscleError(f"{error}{end}") from error
    if row.__class__ is not dict:
        raise MuscleError(f"{file}, line {number}: expected an object with named fields")
    return row


def _csv_rows(file: Path, stream: IO[bytes]) -> list[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    start = stream.tell()
    header = stream.readline().decode("utf-8", "replace")
    stream.seek(start)
    delimiter = "\t" if suffix_of(file) == ".tsv" else max(",;\t", key=header.count)
    if header.lower().startswith("sep="):  # Excel's line before the header
        delimiter = header[4:5]
        stream.readline()
    lines = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    rows = []
    try:
        names = next(reader, [])
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise MuscleError(f"{file}: the header names {twice!r} twice; give each column a name of its own")
        for values in filter(None, reader):
            if len(values) != len(names):
                count = "more" if len(values) > len(names) else "fewer"
                raise MuscleError(
                    f"{file}, line {reader.line_num}: {count} fields than the {len(names)} of the header; is a quote "
                    "or the end of the file missing?"
                )
            rows.append(dict(zip(names, values, strict=True)))
    except UnicodeDecodeError as error:
        raise not_utf8(file, error) from error
    except csv.Error as error:
        raise MuscleError(f"{file}, line {reader.line_num}: not valid CSV ({error})") from error
    return rows


def _parquet(file: Path) -> Records:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise MissingDependencyError("pyarrow", "compare", "reading Parquet files") from error
    try:
        table = parquet.read_table(file, memory_map=True)
    except (OSError, ValueError) as error:
        raise MuscleError(f"{file} is no readable Parquet file: {error}") from error

    def blocks() -> Iterator[Block]:
        start = 0
        for batch in table.to_batches(max_chunksize=_ROWS):
            rows, end = batch.to_pylist(), start + len(batch)
            yield Block(rows, np.arange(start, end), range(start + 1, end + 1))
            start = end

    return Records("parquet", blocks, lambda places: iter(table.take(list(places)).to_pylist()))


def _inspect_log(file: Path) -> Any:
    """A log of inspect_ai in its own packed form, as the document that its JSON form is."""
    try:
        from inspect_ai.log import read_eval_log
    except ImportError as error:
        raise MissingDependencyError("inspect_ai", "inspect", f"reading {file.name}") from error
    return read_eval_log(str(file)).model_dump(mode="json")
