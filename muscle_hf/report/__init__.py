"""Showing the result of a comparison: every renderer reads a :class:`muscle_hf.compare.document.Document`.

    ``muscle_hf.report.terminal.render(document, console)``: tables for a terminal.
    ``muscle_hf.report.markdown.render(document) -> str``: a pull-request comment.
    ``muscle_hf.report.junit.render(document) -> str``: JUnit XML for a CI system.
    ``muscle_hf.report.html.render(document) -> str``: one self-contained page.

Everything in a document that comes from data (texts, ids, labels, columns) is hostile until a renderer has made it
harmless: :mod:`muscle_hf.report.text` spells out control characters, each renderer escapes the rest.
"""

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(__name__, {})
