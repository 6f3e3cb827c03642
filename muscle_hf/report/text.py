"""Texts from data, made harmless: characters that act instead of being seen are spelled out."""

from __future__ import annotations

import re
from typing import Any

# Characters that move the cursor, reorder or hide text, or cannot be encoded: C0 and C1 controls (except tab and line
# feed), soft hyphen, Arabic letter mark, zero-width space, bidirectional marks, line separators, invisible operators,
# byte-order mark, interlinear marks, lone surrogates, noncharacters, tags. Joiners (U+200C/D) stay: scripts and emoji
# need them.
_ACTING = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f"
)
_ACTING_CHARACTER = re.compile(f"[{_ACTING}]")
_BREAK = re.compile(r"[ \t]*\r?\n\s*")


def visible(text: str) -> str:
    """Spell out the characters that would act on a terminal or page: ``\\x1b`` becomes ``⟨U+001B⟩``.

    Line feeds and tabs stay. What returns can be encoded as UTF-8 and shown anywhere after escaping for the medium.
    """
    return _ACTING_CHARACTER.sub(lambda match: f"⟨U+{ord(match.group()):04X}⟩", text.replace("\r\n", "\n"))


def one_line(text: str, limit: int | None = None, *, middle: bool = False) -> str:
    """:func:`visible` text on one line: ``⏎`` for line breaks, cut to ``limit`` characters with an ellipsis.

    The ellipsis stands at the end, or in the ``middle``, so that names with a common beginning stay apart.
    """
    if limit is not None and not middle:
        text = text[: 4 * limit]  # a long answer need not be scanned whole to show its start
    line = visible(_BREAK.sub(" ⏎ ", text.strip())).replace("\t", " ")
    if limit is None or len(line) <= limit:
        return line
    if middle:
        return line[: limit // 2] + "…" + line[len(line) - (limit - 1 - limit // 2) :]
    return line[: limit - 1] + "…"


def plain(value: Any, limit: int = 200) -> str:
    """A value as one line without control characters, for YAML and for a terminal."""
    return one_line(str(value), limit)
