"""One line about a whole run: how far it is, and how much time is left."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bar
from transformers import TrainerCallback


class Progress(TrainerCallback):
    """Of a run whose stages are known; as a callback it counts the steps of the one that trains.

    Args:
        stages: What is done and about how much it is, in training steps, in order.
        console: Where the line goes: one that moves on a terminal, else one a stage. None: nowhere.
    """

    def __init__(self, stages: Sequence[tuple[str, int]] = (), console: Console | None = None):
        self.stages, self.console = list(stages), console
        self.total, self.before, self.steps, self.skipped = sum(size for _, size in stages), 0, 0, 0
        self.stage, self.start, self.bar = -1, time.monotonic(), None

    def __enter__(self) -> Progress:
        if self.console is not None and self.console.is_terminal:
            self.bar = Bar(BarColumn(24), TextColumn("{task.description}"), console=self.console, transient=True)
            self.bar.start()
            self.line = self.bar.add_task("", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def next(self, said: str = "") -> None:
        """The next stage begins, or with the last one all is done; what it says of itself is not shown."""
        if 0 <= self.stage < len(self.stages):
            self.before += self.stages[self.stage][1]
        self.stage, self.steps = self.stage + 1, 0
        # What was done by an earlier run says nothing about the time that is left.
        self.skipped += self.stages[self.stage][1] if ": done before" in said and self.stage < len(self.stages) else 0
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
        done, left = min(self.before + self.steps, self.total), self.left
        time_left = "" if left is None else f", about {left // 60:.0f}:{left % 60:02.0f} left"
        text = f"{100 * done // self.total:3d} %{time_left}: {self.stages[self.stage][0]}"
        if self.bar is not None:
            self.bar.update(self.line, completed=done, description=text)
        elif new:
            self.console.print(text, markup=False)
