"""The prompts without labels of a run."""

from __future__ import annotations

from typing import cast

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.registry import python_variable
from muscle_hf.evaluation.tasks import Task
from muscle_hf.pipeline.config import RunSettings
from muscle_hf.pipeline.sides import Side
from muscle_hf.prompts import Checker, TransferPrompts


def transfer_prompts(
    settings: RunSettings, task: Task | None, old: Side, new: Side, checker: Checker | None
) -> TransferPrompts | None:
    """The prompts, each side's in its words; None where there are none."""
    transfer = settings.data.transfer
    if not new.splits.transfer or transfer is None:
        return None
    return TransferPrompts(
        new.splits.transfer,
        transfer.answers,
        task,
        checker=checker,
        end_answers=settings.data.end_answers,
        batch_size=settings.eval_batch_size,
        old_prompts=None if old.splits.transfer == new.splits.transfer else old.splits.transfer,
        old_task=old.task,
        servers={
            role: there.server(side.tokenizer)
            for role, side, there in (("old", old, transfer.servers.old), ("new", new, transfer.servers.new))
            if there is not None
        },
    )


def load_checker(name: str | None) -> Checker | None:
    """The function that ``data.transfer.checker`` names.

    Raises:
        MuscleError: It names none.
    """
    if name is None:
        return None
    checker = python_variable(name)
    if not callable(checker):
        raise MuscleError(f"data.transfer.checker: {name} is no function but {checker!r}")
    return cast("Checker", checker)
