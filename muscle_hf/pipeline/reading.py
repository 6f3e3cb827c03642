"""Settings dataclasses from YAML and command-line words: unknown names and values of the wrong kind are refused."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

import yaml

from muscle_hf import files
from muscle_hf.errors import MuscleError
from muscle_hf.words import did_you_mean

T = TypeVar("T")


def read_yaml(file: str | os.PathLike, above: Sequence[Path] = ()) -> dict[str, Any]:
    """The content of a settings file, laid over the files that its ``include`` names (from its own folder); ``above``
    are those that include it."""
    path, content = Path(file), files.read_yaml(file)
    if path.resolve() in above:
        raise MuscleError(f"{above[-1]} includes {path}, which includes it")
    if not isinstance(content, dict):
        raise MuscleError(f"{path} must be a mapping of settings")
    names = content.pop("include", [])
    names, below = [names] if isinstance(names, str) else names, {}
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise MuscleError(f"{path}: include is {names!r}; it must be a file or a list of files")
    for name in names:
        below = laid_over(read_yaml(path.parent / name, (*above, path.resolve())), below)
    return laid_over(content, below)


def laid_over(upper: Mapping[str, Any], below: Mapping[str, Any]) -> dict[str, Any]:
    """One mapping over another; groups of settings are merged, everything else is replaced."""
    merged = dict(below)
    for key, value in upper.items():
        both = isinstance(value, dict) and isinstance(below.get(key), dict)
        merged[key] = laid_over(value, below[key]) if both else value
    return merged


def build(cls: type[T], content: Any, where: str = "") -> T:
    """Make a settings dataclass of plain data, with nested ones in it; unknown names and wrong kinds are refused."""
    if not isinstance(content, Mapping):
        raise MuscleError(f"{where.rstrip('.') or 'the settings'} must be a mapping, not {content!r}")
    hints = get_type_hints(cls)
    values = {}
    for key, value in content.items():
        if key not in hints:
            raise MuscleError(f"unknown setting {where}{key}; {did_you_mean(key, hints)}")
        values[key] = convert(value, hints[key], f"{where}{key}")
    required = [
        setting.name
        for setting in dataclasses.fields(cast("Any", cls))
        if setting.default is dataclasses.MISSING and setting.default_factory is dataclasses.MISSING
    ]
    missing = [f"{where}{name}" for name in required if name not in values]
    if missing:
        raise MuscleError(f"missing: {', '.join(missing)}")
    return cls(**values)


def convert(value: Any, hint: Any, where: str) -> Any:
    """A value as a field of this type takes it."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    nested: Any = next((kind for kind in kinds if dataclasses.is_dataclass(kind)), None)
    if value is None and type(None) in kinds:
        return None
    if nested is not None:
        return build(nested, value, f"{where}.")
    plain = tuple(get_origin(kind) or kind for kind in kinds)
    if isinstance(value, bool) and bool not in plain:
        raise MuscleError(f"{where} is {value!r}; expected {_names(plain)}")
    if isinstance(value, int) and float in plain:
        return float(value)
    if not isinstance(value, plain):
        raise MuscleError(f"{where} is {value!r}; expected {_names(plain)}")
    return value


def _names(kinds: Sequence[type]) -> str:
    return " or ".join("nothing" if kind is type(None) else kind.__name__ for kind in kinds)


def parse_overrides(words: Sequence[str]) -> list[tuple[str, Any]]:
    """Names and values of command-line words ``--name value``, ``--name=value`` or ``--flag``."""
    pairs, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise MuscleError(f"unexpected {word!r}; settings are given as --name value")
        name, equals, text = word[2:].partition("=")
        if not equals:
            # A name without a value is a flag.
            text = "true" if not rest or rest[0].startswith("--") else rest.pop(0)
        pairs.append((name, _value(text)))
    return pairs


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text  # words with a colon or a bracket, dates that are none
    if isinstance(value, str):
        try:
            return float(value)  # YAML 1.1 takes 1e-4 for text
        except ValueError:
            return text
    return value


def put(content: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by its dotted name."""
    *sections, key = name.split(".")
    place = content
    for section in sections:
        if place.get(section) is None:
            place[section] = {}
        place = place[section]
        if not isinstance(place, dict):
            raise MuscleError(f"--{name}: {section} is not a group of settings")
    place[key] = value


def one_of(name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a MuscleError unless a setting has one of the values that there are."""
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise MuscleError(f"{name} is {value!r}; choose one of {known}")
