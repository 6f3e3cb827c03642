"""HTML and SVG that is escaped by construction: plain strings are data, only :func:`tag` makes markup."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape
from typing import TypeAlias

from muscle_hf.report.text import visible


class Markup(str):
    """Text that is safe to stand in a page as it is."""

    __slots__ = ()


Child: TypeAlias = "str | int | float | Iterable[Child] | None"

_VOID = frozenset({"meta", "input", "br", "hr"})


def tag(name: str, *children: Child, **attributes: str | int | float | bool | None) -> Markup:
    """An element.

    Args:
        name: Name of the element.
        children: :class:`Markup` is kept, other text is escaped and its control characters are spelled out; iterables
            are flattened; None is left out.
        attributes: Written as ``class_="x"`` or ``aria_label="y"``; None and False are left out, True is bare.
    """
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _VOID:
        return Markup(f"<{name}{written}>")
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
        return child
    if isinstance(child, str):
        return escape(visible(child), quote=True)
    if isinstance(child, (int, float)):
        return number(child)
    return "".join(_child(one) for one in child)


def _attribute(key: str, value: str | int | float | bool | None) -> str:
    name = key.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    if value is True:
        return f" {name}"
    text = number(value) if isinstance(value, (int, float)) else escape(visible(value), quote=True)
    return f' {name}="{text}"'
