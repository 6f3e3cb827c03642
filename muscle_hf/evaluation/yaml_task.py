"""A task in a few lines of YAML; docs/howto/tasks.md describes the fields."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Item, Source, Task
from muscle_hf.files import read_yaml
from muscle_hf.words import did_you_mean

_PLACEHOLDER = re.compile(r"\{([A-Za-z_][\w.]*)\}")
_FIELDS = {
    "choice": {"choices", "answer", "answer_labels"},
    "generation": {"reference", "max_new_tokens", "stop", "no_repeat_ngram_size", "extract"},
    "classification": {"labels", "answer"},
}
_COMMON = {"name", "kind", "prompt", "metric", "delimiter", "id", "columns", "data"}
_SHAPES: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(("choices", "reference", "labels", "answer_labels"), (str, list)),
    **dict.fromkeys(("stop", "columns"), list),
    **dict.fromkeys(("max_new_tokens", "no_repeat_ngram_size"), int),
    **dict.fromkeys(("delimiter", "metric"), str),
}
_NEEDED = {"choice": ("choices", "answer"), "generation": ("reference",), "classification": ("answer",)}


def read_task(path: Path) -> Task:
    """The task that a YAML file describes."""
    content = read_yaml(path, "task file")
    if not isinstance(content, dict):
        raise MuscleError(f"{path}: expected fields such as name, kind and prompt")
    try:
        return task_from_dict({"name": path.stem, **content})
    except MuscleError as error:
        raise MuscleError(f"{path}: {error}") from error


def task_from_dict(content: Mapping[str, Any]) -> Task:
    """The task that a mapping of YAML's fields describes."""
    kind = content.get("kind")
    if kind not in _FIELDS:
        raise MuscleError(f"kind must be one of {', '.join(_FIELDS)}, not {kind!r}")
    _check_fields(content, kind)
    try:
        source = Source(**content["data"]) if content.get("data") else None
    except TypeError as error:
        raise MuscleError(f"data needs path, and may have name, revision and splits ({error})") from error
    options = {name: content[name] for name in _FIELDS["generation"] & content.keys() - {"reference", "stop"}}
    return Task(
        name=str(content["name"]),
        kind=kind,
        to_item=_item_maker(content, kind),
        metric=content.get("metric", "exact_match" if kind == "generation" else "acc"),
        stop=tuple(content.get("stop", ())),
        source=source,
        **options,
    )


def _check_fields(content: Mapping[str, Any], kind: str) -> None:
    known = _COMMON | _FIELDS[kind]
    for name in content:
        if name not in known:
            raise MuscleError(f"a {kind} task has no field {name!r}; {did_you_mean(name, known)}")
    missing = [name for name in ("prompt", *_NEEDED[kind]) if name not in content]
    if missing:
        raise MuscleError(f"a {kind} task needs: {', '.join(missing)}")
    for name, kinds in _SHAPES.items():
        if name in content and (isinstance(content[name], bool) or not isinstance(content[name], kinds)):
            names = " or ".join(each.__name__ for each in (kinds if isinstance(kinds, tuple) else (kinds,)))
            raise MuscleError(f"{name} is {content[name]!r}; expected {names}")
    if not all(isinstance(text, str) for text in content.get("stop", ())):
        raise MuscleError("stop must be a list of strings; put them in quotes")


def _item_maker(content: Mapping[str, Any], kind: str) -> Callable[[Mapping[str, Any], int], Item]:
    prompt = _template(content["prompt"])
    delimiter = content.get("delimiter", " ")
    id_column = content.get("id")
    shown = content.get("columns", [])
    texts = _texts(content.get({"choice": "choices", "generation": "reference"}.get(kind, ""), []))

    def to_item(row: Mapping[str, Any], index: int) -> Item:
        found = tuple(text if text[:1].isspace() else f"{delimiter}{text}" for text in texts(row))
        return Item(
            id=str(index if id_column is None else look_up(row, id_column)),
            prompt=prompt(row),
            choices=found if kind == "choice" else (),
            references=found if kind == "generation" else (),
            answers=() if kind == "generation" else _answers(content, row, texts(row)),
            columns={name: look_up(row, name) for name in shown},
        )

    return to_item


def _answers(content: Mapping[str, Any], row: Mapping[str, Any], texts: list[str]) -> tuple[int, ...]:
    """Indices of the right choices: the column holds numbers, labels, or the texts of choices, one or a list."""
    value = look_up(row, content["answer"])
    labels = content.get("answer_labels", content.get("labels"))
    if isinstance(labels, list):
        labels = [str(label) for label in labels]
    names = texts if labels is None else _texts(labels)(row)
    labelled, numbers = labels is not None, labels is None or content["kind"] == "classification"
    ones = value if isinstance(value, list) else [value]
    answers = tuple(_answer(one, names, labelled, numbers) for one in ones)
    if not all(0 <= answer < (len(names) or answer + 1) for answer in answers):
        raise MuscleError(f"the answer {value!r} is out of range for {len(names)} choices; numbers count from 0")
    return answers


def _answer(answer: Any, names: list[str], labelled: bool, numbers: bool) -> int:
    """Its place among ``names``: labels or texts of choices.

    Without labels a number is an index, whatever the choices say, and a string the text of a choice, else the index
    that it spells.
    """
    is_index = not labelled and isinstance(answer, int) and not isinstance(answer, bool)
    if is_index or str(answer) not in names:
        fraction = isinstance(answer, float) and not answer.is_integer()
        with contextlib.suppress(TypeError, ValueError):
            if numbers and not fraction:
                return int(answer)
        raise MuscleError(f"the answer {answer!r} is neither an index nor one of {names}")
    place = names.index(str(answer))
    # In a CSV file an index is a string too, so that which of the two is meant cannot be told.
    if not labelled and str(answer).isdecimal() and place != int(answer) < len(names):
        raise MuscleError(
            f"the answer {answer!r} is the text of choice {place} and the index of choice {int(answer)}; say which: "
            "answer_labels: [0, 1, ...] for indices, answer_labels with what choices has for texts"
        )
    return place


def _texts(field: str | list[str]) -> Callable[[Mapping[str, Any]], list[str]]:
    """Templates (a list), one template, or the name of a column that holds one text or several."""
    if isinstance(field, list):
        templates = [_template(text) for text in field]
        return lambda row: [template(row) for template in templates]
    if "{" in field:
        template = _template(field)
        return lambda row: [template(row)]

    def column(row: Mapping[str, Any]) -> list[str]:
        value = look_up(row, field)
        return [str(text) for text in value] if isinstance(value, (list, tuple)) else [str(value)]

    return column


def _template(text: Any) -> Callable[[Mapping[str, Any]], str]:
    """``{column}`` and ``{column.field}``; a text with ``{{`` or ``{%`` is a Jinja template."""
    if isinstance(text, bool) or not isinstance(text, (str, int, float)):
        raise MuscleError(f"{text!r} is no text; put it in quotes")  # YAML reads yes, no, on and off as booleans
    text = str(text)
    if "{{" in text or "{%" in text:
        return _jinja(text)

    def fill(row: Mapping[str, Any]) -> str:
        return _PLACEHOLDER.sub(lambda match: str(look_up(row, match[1])), text)

    return fill


def _jinja(text: str) -> Callable[[Mapping[str, Any]], str]:
    from jinja2 import StrictUndefined, TemplateError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    try:
        # Sandboxed: task files are passed around.
        template = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
            text
        )
    except TemplateError as error:
        raise MuscleError(f"the template {text!r} is not valid Jinja: {error}") from error

    def fill(row: Mapping[str, Any]) -> str:
        try:
            return template.render(**row)
        except Exception as error:  # filters and operators raise Python's own
            raise MuscleError(f"the template {text!r} cannot be filled: {error}") from error

    return fill


def look_up(row: Mapping[str, Any], name: str) -> Any:
    """A column, or with dots a field of a column (``choices.text``, ``options.0``)."""
    value: Any = row
    for part in str(name).split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, (list, tuple)) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            names = [str(key) for key in value] if isinstance(value, Mapping) else []
            raise MuscleError(f"there is no column {name!r}; {did_you_mean(part, names)}")
    return value
