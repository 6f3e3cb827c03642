"""Names in messages: those that are not known, and those of tasks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def did_you_mean(name: object, known: Iterable[object], otherwise: str | None = None) -> str:
    """What to say of a name that is not known: the nearest one, else ``otherwise``, by default all known names."""
    names = [str(one) for one in known]
    if near := difflib.get_close_matches(str(name), names, n=1, cutoff=0.5):
        return f"did you mean {near[0]!r}?"
    return f"there are: {', '.join(sorted(names)) or 'none'}" if otherwise is None else otherwise


def name_tasks(names: Sequence[str]) -> str:
    """What a sentence calls a task, or several."""
    return f"task {names[0]!r}" if len(names) == 1 else f"{len(names)} tasks"
