"""HTML, SVG and Markdown that are escaped by construction: plain strings are data, tags and templates make markup."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from muscle_hf.report.text import one_line, visible

# Everything that Markdown, the HTML inside it, or its maths could take for markup within a line, or for a link. An
# underscore between letters is none.
_MARKDOWN = re.compile(
    r"(?i)[\\`*\[\]<>|~$#!{}&^]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=\bmailto):|(?<=\bxmpp):|(?<=\bwww)\."
)
# What would begin a list, a rule or a heading where a line begins.
_BEGINNING = re.compile(r"^((?:[-+]|\d+[.)])(?=\s|$)|-(?=-)|=)")


def number(value: float) -> str:
    """A coordinate: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def markdown(value: Any, limit: int = 2000) -> Markup:
    """A value as one line of Markdown that shows exactly its text, cut off at ``limit``: no markup, HTML, link, image
    or second line. :class:`markupsafe.Markup` is kept; None is nothing."""
    if value is None or isinstance(value, Markup):
        return Markup() if value is None else value
    text = _MARKDOWN.sub(lambda match: _entity(match.group()), one_line(str(value), limit))
    return Markup(_BEGINNING.sub(lambda match: match[0][:-1] + _entity(match[0][-1]), text))


def _entity(character: str) -> str:
    return {"<": "&lt;", ">": "&gt;", "&": "&amp;"}.get(character, f"&#{ord(character)};")


def code(value: Any, limit: int = 300, *, table: bool = True) -> Markup:
    """A value as a code span that shows exactly its text, by default within a table; a dash for None."""
    if value is None or value == "":
        return Markup("–")
    text = one_line(str(value), limit)
    text = text.replace("|", "\\|") if table else text
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return Markup(f"{fence}{space}{text}{space}{fence}")


def asset(name: str) -> str:
    """A file of the reports' assets."""
    return (files("muscle_hf.report") / "assets" / name).read_text(encoding="utf-8")


def render(template: str, context: dict[str, Any]) -> str:
    """A page from a template in the assets; what stands in it from data is made harmless."""
    return _pages().get_template(template).render(context)


def macros(template: str, context: dict[str, Any]) -> Any:
    """The macros of a template in the assets, as functions."""
    return _pages().get_template(template).make_module(context)


def _harmless(value: Any) -> Any:
    if isinstance(value, float):
        return number(value)
    return "" if value is None else visible(value) if type(value) is str else value


@cache
def _pages() -> Environment:
    return _environment(_harmless, loader=FunctionLoader(asset))


def markdown_environment(finalize: Callable[[Any], Markup] = markdown, **options: Any) -> Environment:
    """Where templates of Markdown are compiled: each value is made harmless unless it is markup already."""
    environment = _environment(finalize, keep_trailing_newline=True, **options)
    environment.filters |= {"markdown": markdown, "code": code, "raw": Markup}
    return environment


def _environment(finalize: Callable[[Any], Any], **options: Any) -> Environment:
    # Escaped is what `finalize` has not made markup: a template cannot forget to.
    return Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize, **options
    )
