"""Teachers whose weights are not here."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.teacher import Teacher


class TeacherElsewhere(Teacher):
    """A teacher that computes nothing here.

    Attributes:
        where: What is known of it, for messages.
    """

    where = "is elsewhere: its weights are not here"

    @property
    def models(self) -> list[nn.Module]:
        return []

    @property
    def model(self) -> nn.Module:
        raise MuscleError(f"the {self.role} model {self.where}")

    @property
    def adapter(self) -> str | None:
        raise MuscleError(f"the {self.role} model {self.where}")

    def answering(self) -> contextlib.AbstractContextManager[nn.Module]:
        return contextlib.nullcontext(self.model)

    def open_head(self, *_: Any) -> None:
        """It has none here."""

    def work(self, batch: Batch) -> float:
        return 0.0
