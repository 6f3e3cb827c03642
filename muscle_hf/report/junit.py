"""A comparison as JUnit XML: one test suite a task, one test case for each limit of the gate."""

from __future__ import annotations

from muscle_hf.compare.document import Document
from muscle_hf.report import markup
from muscle_hf.report import wording as w


def render(document: Document) -> str:
    """The comparison as a well-formed XML document; characters that XML forbids are spelled out.

    A failed check is a ``failure``; a check with too little data is an ``error``, so that a CI system never shows it
    as passed. Without a gate each updated model has one case that passes and tells its numbers.
    """
    return markup.render("junit.xml", {"document": document, "w": w}) + "\n"
