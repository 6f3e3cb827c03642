"""One line about a whole run: how far it is, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Of a run whose stages are known, with about how many training steps each is worth; as a callback it counts them.

    The line moves on a terminal (``with progress.line``); elsewhere there is one a stage. Without a console: nothing.
    """

    def __init__(self, stages: Sequence[tuple[str, int]] = (), console: Console | None = None):
        self.stages, self.console = list(stages), console
        self.total, self.before, self.steps, self.skipped = sum(size for _, size in stages), 0, 0, 0
        self.stage, self.start = -1, time.monotonic()
        self.line = console.status("") if console is not None and console.is_terminal else None

    def next(self, said: str = "") -> None:
        """The next stage begins, or with the last one all is done; what it says of itself is not shown."""
        self.stage, self.steps = self.stage + 1, 0
        self.before = sum(size for _, size in self.stages[: self.stage])
        if ": done before" in said and self.stage < len(self.stages):
            self.skipped += self.stages[self.stage][1]  # says nothing about the time that is left
        self._show(new=True)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step of the stage is done."""
        self.steps += 1
        self._show()

    @property
    def left(self) -> float | None:
        """Seconds; None as long as nobody can tell."""
        done = self.before + self.steps
        worked = done - self.skipped
        return (time.monotonic() - self.start) * (self.total - done) / worked if worked > 0 else None

    def _show(self, new: bool = False) -> None:
        if self.console is None or self.stage >= len(self.stages):
            return
        left = "" if self.left is None else f", about {self.left // 60:.0f}:{self.left % 60:02.0f} left"
        text = f"{100 * (self.before + self.steps) // self.total:3d} %{left}: {self.stages[self.stage][0]}"
        if self.line is not None:
            self.line.update(text)
        elif new:
            self.console.print(text, markup=False)
