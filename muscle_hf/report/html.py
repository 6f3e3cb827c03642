"""A comparison as one HTML file that needs nothing else: no network, no fonts, no libraries."""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files
from string import Template

from muscle_hf.compare.document import Document
from muscle_hf.report import flip_data, sections
from muscle_hf.report.decision import decision
from muscle_hf.report.markup import Markup, join, tag


def render(document: Document) -> str:
    """The comparison as a page.

    The pictures are drawn here, as SVG; only the list of flips is built in the browser, a page at a time. The page's
    content security policy names its one script and its one style sheet by their hashes, forbids everything else (the
    network, inline handlers, forms, frames), and forbids the script itself to parse text as HTML.

    Args:
        document: What to show. None of its texts is trusted.

    Returns:
        The page. Write it as UTF-8.
    """
    return assemble(
        sections.title(document),
        join(
            sections.header(document),
            decision(document),
            sections.tasks(document),
            sections.flips(document),
            sections.glossary(document),
        ),
        data=tag("script", flip_data.to_script(flip_data.pack(document)), type="application/json", id="flip-data"),
        script=_asset("diff.js") + _asset("flips.js"),
    )


def assemble(title: str, body: Markup, *, data: Markup | None = None, script: str = "") -> str:
    """A page in one file with the reports' style sheet.

    Args:
        title: Of the window; not trusted.
        body: What is on it.
        data: A ``script`` element that holds data.
        script: The one script that its policy lets run.
    """
    style = _asset("report.css")
    return Template(_asset("report.html")).substitute(
        csp=_policy(script, style), title=join(title), style=style, body=body, data=data or "", script=script
    )


def _asset(name: str) -> str:
    return files("muscle_hf.report").joinpath("assets", name).read_text(encoding="utf-8")


def _policy(script: str, style: str) -> Markup:
    return Markup(
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; base-uri 'none'; "
        "form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
