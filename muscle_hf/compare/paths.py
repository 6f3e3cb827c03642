"""Fields of rows by the name of a column, by a comparison, or by a JMESPath."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from muscle_hf.compare.answers import as_number
from muscle_hf.compare.layouts import plain_name
from muscle_hf.errors import MissingDependencyError, MuscleError

Row = Mapping[str, Any]
Getter = Callable[[Sequence[Row]], list[Any]]

_THRESHOLD = re.compile(r"^(?P<path>[^<>=!]+?)\s*(?P<sign>>=|<=|==|!=|>|<)\s*(?P<limit>-?[0-9.]+(?:e-?[0-9]+)?)$")
_COMPARE: dict[str, Callable[[float, float], bool]]
_COMPARE = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}


def search(path: str, value: Any) -> Any:
    """What a JMESPath finds in a value."""
    return compiled(path)(value)


def compiled(path: str) -> Callable[[Any], Any]:
    try:
        import jmespath.exceptions
    except ImportError as error:
        raise MissingDependencyError("jmespath", "compare", f"the path {path!r}") from error
    try:
        return jmespath.compile(path).search
    except jmespath.exceptions.JMESPathError as error:
        raise MuscleError(f"{path!r} is no JMESPath: {error}") from error


def getter(path: str, present: Mapping[str, str]) -> Getter:
    """Reads a column by its name, in any case and spelling (``present``: plain name -> name), or by a JMESPath."""
    name = path if path in present.values() else present.get(plain_name(path)) if is_name(path) else None
    if name is not None:
        return column(name)
    parts = path.split(".")
    if all(part.isidentifier() for part in parts):
        return lambda rows: _descend(rows, parts)
    if found := _THRESHOLD.match(path):
        inner, compare, limit = getter(found["path"], present), _COMPARE[found["sign"]], float(found["limit"])
        return lambda rows: [
            None if math.isnan(number := as_number(value, path)) else compare(number, limit) for value in inner(rows)
        ]
    find = compiled(path)
    return lambda rows: [find(row) for row in rows]


def column(name: str) -> Getter:
    """Reads a field of rows by its very name; None where there is none."""
    item = operator.itemgetter(name)

    def read(rows: Sequence[Row]) -> list[Any]:
        try:  # the usual case, twice as fast
            return list(map(item, rows))
        except KeyError:
            return [row.get(name) for row in rows]

    return read


def is_name(path: str) -> bool:
    """Whether a path can only be the name of a column."""
    return re.fullmatch(r"[\w\- ]+", path) is not None


def _descend(rows: Sequence[Any], parts: Sequence[str]) -> list[Any]:
    values = column(parts[0])(rows)
    for part in parts[1:]:
        values = [value.get(part) if isinstance(value, Mapping) else None for value in values]
    return values
