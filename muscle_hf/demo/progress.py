"""One line about a whole run: how far it is, and how much time is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeRemainingColumn
from transformers import TrainerCallback


class Stages(TrainerCallback):
    """Of a run whose stages are known, with about how many training steps each is worth; as a callback it counts them.

    The line moves on a terminal (``with stages.line``); elsewhere there is one a stage. Without a console: nothing.
    """

    def __init__(self, stages: Sequence[tuple[str, int]] = (), console: Console | None = None):
        self.stages, self.begun, self.console = list(stages), 0, console or Console(quiet=True)
        columns = (
            TextColumn("{task.percentage:3.0f} %,"),
            TimeRemainingColumn(),
            TextColumn("left: {task.description}"),
        )
        self.line = Progress(
            *columns,
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
            speed_estimate_period=600,
        )
        self.task = self.line.add_task("", total=sum(size for _, size in self.stages))

    def next(self, said: str = "") -> None:
        """The next stage begins, or with the last one all is done; what it says of itself is not shown."""
        if self.begun < len(self.stages):
            (name, _), done = self.stages[self.begun], sum(size for _, size in self.stages[: self.begun])
            self.line.update(self.task, completed=done, description=name)
            if not self.console.is_terminal:
                task = self.line.tasks[0]
                left = task.time_remaining
                told = "" if left is None else f", about {left // 60:.0f}:{left % 60:02.0f} left"
                self.console.print(f"{task.percentage:3.0f} %{told}: {name}", markup=False)
        self.begun += 1

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A step of the stage is done."""
        self.line.advance(self.task)
