"""Names in messages: those that are not known, and those of tasks."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def nearest(name: object, known: Iterable[object]) -> str | None:
    """The known name that is most like ``name``; None if none is."""
    return next(iter(difflib.get_close_matches(str(name), [str(one) for one in known], n=1, cutoff=0.5)), None)


def did_you_mean(name: object, known: Iterable[object], otherwise: str | None = None) -> str:
    """What to say of a name that is not known: the nearest one, else ``otherwise``, by default all known names."""
    names = [str(one) for one in known]
    near = nearest(name, names)
    if near is not None:
        return f"did you mean {near!r}?"
    return f"there are: {', '.join(sorted(names)) or 'none'}" if otherwise is None else otherwise


def name_tasks(names: Sequence[str]) -> str:
    """What a sentence calls a task, or several."""
    return f"task {names[0]!r}" if len(names) == 1 else f"{len(names)} tasks"
