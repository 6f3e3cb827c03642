"""A comparison as GitHub-flavoured Markdown, for a pull-request comment."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import FunctionLoader, Template
from markupsafe import Markup

from muscle_hf.compare.document import Document
from muscle_hf.report import inheritance, rows
from muscle_hf.report import wording as w
from muscle_hf.report.markup import asset, markdown, markdown_environment

# GitHub refuses comments of more than 65,536 characters; flips are left out before the tables are.
MAX_LENGTH = 60_000
_FOLDED = ("all_rates", "worst_slices", "worst_flips", "inherited_slices", "inherited_items")
# What GitHub turns into mentions, references and links; an invisible joiner stops that.
_AUTOLINK = re.compile(r"@|&#58;|&#35;(?=\d)|(?i:gh-)(?=\d)|(?=&#46;)")


def render(document: Document, *, worst: int = 10, slices: int = 10) -> str:
    """The comparison as Markdown of at most ``MAX_LENGTH`` characters or, if the tables alone are longer, with the
    tables only. Nothing from data can format, mention, reference or link.

    ``worst`` of each task's flips to the worse are listed, and ``slices`` of its slices for each updated model, folded
    away.
    """
    results = [*document.totals, *document.tasks]
    context = {"document": document, "results": results, "worst": worst, "slices": slices}
    context["measures"] = [w.measure(key) for key in dict.fromkeys(map(w.negative_key, document.tasks))]
    macros: Any = _template().make_module({**context, "w": w, "rows": rows, "inheritance": inheritance})
    overview, kept = macros.overview(results), len(document.tasks)
    if len(overview) > MAX_LENGTH // 2:
        kept = max(1, kept * (MAX_LENGTH // 2) // len(overview))
        overview = macros.overview([*document.totals, *sorted(document.tasks, key=w.most_lost)[:kept]])
    parts = [macros.head(overview, len(document.tasks) - kept), macros.foot()]
    length = sum(map(len, parts))
    for task in results:
        for name in _FOLDED:
            folded = getattr(macros, name)(task)
            if length + len(folded) < MAX_LENGTH:
                parts.insert(-1, folded)
                length += len(folded)
    return re.sub(r"\n{3,}", "\n\n", "\n\n".join(parts)).strip() + "\n"


@cache
def _template() -> Template:
    return markdown_environment(_escaped, loader=FunctionLoader(asset)).get_template("comment.md")


def _escaped(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(_AUTOLINK.sub(r"\g<0>&#8288;", str(markdown(value))))
