"""HTML and SVG that is escaped by construction: plain strings are data, only :func:`tag` and templates make markup."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from html import escape
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeAlias

from markupsafe import Markup

from muscle_hf.report.text import visible

if TYPE_CHECKING:
    from jinja2 import Environment

Child: TypeAlias = "str | int | float | Iterable[Child] | None"


def tag(name: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element.

    Args:
        name: Name of the element.
        children: :class:`markupsafe.Markup` is kept, other text is escaped and its control characters are spelled out;
            iterables are flattened; None is left out.
        attributes: Written as ``class_="x"`` or ``aria_label="y"``; None and False are left out, True is bare.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def join(*children: Child) -> Markup:
    """Children without an element around them."""
    return Markup("".join(_child(child) for child in children))


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _child(child: Child) -> str:
    if child is None:
        return ""
    if isinstance(child, Markup):
        return str(child)
    if isinstance(child, str):
        return escape(visible(child), quote=True)
    if isinstance(child, (int, float)):
        return number(child)
    return "".join(_child(one) for one in child)


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{_child(value)}"'


def asset(name: str) -> str:
    """A file of the reports' assets."""
    return (files("muscle_hf.report") / "assets" / name).read_text(encoding="utf-8")


def render(template: str, context: dict[str, Any]) -> str:
    """A page from a template in the assets; what stands in it from data is made harmless as in :func:`tag`."""
    return _templates().get_template(template).render(context)


@cache
def _templates() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    return Environment(
        loader=FunctionLoader(asset),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else visible(value) if type(value) is str else value,
    )
