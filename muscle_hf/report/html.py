"""A comparison as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

from muscle_hf.compare.document import Document
from muscle_hf.report import charts, flip_data, flows, inheritance, rows
from muscle_hf.report import wording as w
from muscle_hf.report.markup import Markup, asset
from muscle_hf.report.markup import render as render_template
from muscle_hf.report.text import one_line


def render(document: Document) -> str:
    """The comparison, of whose texts none is trusted, as a page; write it as UTF-8.

    The pictures are drawn here, as SVG; only the list of flips is built in the browser, a page at a time. The page's
    content security policy names its one script and its one style sheet by their hashes, forbids everything else (the
    network, inline handlers, forms, frames), and forbids the script itself to parse text as HTML.
    """
    return page(
        "comparison.html",
        script=asset("diff.js") + asset("flips.js"),
        document=document,
        data=flip_data.to_script(flip_data.pack(document)),
        inheritance=inheritance,
        rows=rows,
        flows=flows,
    )


def page(template: str, script: str = "", **context: Any) -> str:
    """A page in one file with the reports' style sheet: a template of the assets, what it shows, and the one script
    that its policy lets run."""
    style = asset("charts.css") + asset("report.css")
    shared = {"w": w, "charts": charts, "one_line": one_line, "csp": _policy(script, style)}
    return render_template(template, {**shared, "style": Markup(style), "script": Markup(script), **context})


def _policy(script: str, style: str) -> Markup:
    return Markup(
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
