"""One line about a whole run: how far it is, and how much time is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class Line:
    """Of a run whose size in training steps is about known; without a console: nothing.

    The line moves on a terminal (``with line.shown``); elsewhere there is one a stage.
    """

    def __init__(self, total: int = 0, console: Console | None = None):
        self.console = console or Console(quiet=True)
        columns = (
            TextColumn("{task.percentage:3.0f} %,"),
            TimeRemainingColumn(),
            TextColumn("left: {task.description}"),
        )
        self.shown = Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.task = self.shown.add_task("", total=total)

    def move(self, steps: int, stage: str | None = None) -> None:
        """So many steps more are done; ``stage`` is the one that begins."""
        self.shown.update(self.task, advance=steps, description=stage)
        if stage is not None and not self.console.is_terminal:
            task = self.shown.tasks[0]
            left = task.time_remaining
            # Until models are trained the time went into loading.
            told = "" if left is None or task.percentage < 10 else f", about {left // 60:.0f}:{left % 60:02.0f} left"
            self.console.print(f"{task.percentage:3.0f} %{told}: {stage}", markup=False)


class Stages(TrainerCallback):
    """What one process does, in order, and about how many training steps each is worth; a callback that counts them.

    ``move`` is :meth:`Line.move`, or brings its arguments to one.
    """

    def __init__(self, stages: Sequence[tuple[str, int]], move: Callable[[int, str | None], Any]):
        self._stages, self._move, self._begun, self._done = list(stages), move, 0, 0

    def next(self) -> None:
        """The next stage begins, or with the last one all is done."""
        before = sum(size for _, size in self._stages[: self._begun])
        name = self._stages[self._begun][0] if self._begun < len(self._stages) else None
        self._move(before - self._done, name)
        self._done, self._begun = before, self._begun + 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step of the stage is done."""
        self._done += 1
        self._move(1, None)
