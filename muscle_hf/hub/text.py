"""Text from outside (names, answers, settings) made harmless in Markdown, in code and on a terminal."""

from __future__ import annotations

import json
import re
from typing import Any

from muscle_hf.report.text import one_line

# Everything that Markdown, the HTML inside it, or its maths could take for markup within a line.
_MARKUP = re.compile(r"([\\`*_\[\]|~$#!{}])")
_WORD_JOINER = re.compile(r"(?<=\w)\\_(?=\w)")
# What would begin a list, a rule or a heading where the text begins a line.
_LIST = re.compile(r"^([-+](?=\s|$)|-(?=-)|=|\d+(?=[.)](?:\s|$)))")
_LINK = re.compile(r"(?i)(://|\bwww\.|\bmailto:)")


class Markdown(str):
    """Text that may stand in a card as it is."""

    __slots__ = ()


def markdown(value: Any, limit: int = 2000) -> Markdown:
    """A value as one line of Markdown that shows exactly its text: no markup, HTML, link, image or second line.

    Args:
        value: :class:`Markdown` is kept; None is nothing; anything else is shown as text.
        limit: Longer text is cut off.
    """
    if isinstance(value, Markdown):
        return value
    if value is None:
        return Markdown("")
    text = one_line(str(value), limit)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _WORD_JOINER.sub("_", _MARKUP.sub(r"\\\1", text))
    text = _LIST.sub(lambda match: f"\\{match[1]}" if match[1] in "-+=" else f"{match[1]}\\", text)
    # Renderers turn bare addresses into links; a character reference in them is only ever text.
    text = _LINK.sub(lambda match: match.group().replace(":", "&#58;").replace(".", "&#46;"), text)
    return Markdown(text)


def literal(value: str, limit: int = 300) -> Markdown:
    """A string as a Python literal that can stand in a fenced block of code."""
    text = json.dumps(one_line(value, limit), ensure_ascii=False)
    # A backtick could close the fence, a dollar or backslash sign is safe within the quotes.
    return Markdown(text.replace("`", "\\u0060"))


def shell_word(value: str) -> Markdown:
    """A word for a shell command in a fenced block; quoted where it must be."""
    import shlex

    return Markdown(shlex.quote(one_line(value, 300).replace("`", "")))


def plain(value: Any, limit: int = 200) -> str:
    """A value as one line without control characters, for YAML and for a terminal."""
    return one_line(str(value), limit)


def code(value: Any, limit: int = 300) -> Markdown:
    """A value as a code span that shows exactly its text, also within a table; a dash for None."""
    if value is None or value == "":
        return Markdown("–")
    text = one_line(str(value), limit).replace("|", "\\|")
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    space = " " if text.startswith(("`", " ")) or text.endswith(("`", " ")) else ""
    return Markdown(f"{fence}{space}{text}{space}{fence}")
