"""Uploads that are made while training goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.hub.fetching import copy_to
from muscle_hf.hub.publishing import publish

logger = logging.get_logger(__name__)


def places_of(checkpoint: str, args: TrainingArguments, state: TrainerState) -> tuple[list[str], str]:
    """The folders of a repository that a checkpoint's adapter goes to, and what its commit says of when it is from."""
    at = f"step {state.global_step}"
    if args.save_strategy == SaveStrategy.EPOCH:
        at = f"epoch {int(state.epoch or 0)}"
    snapshots = {HubStrategy.CHECKPOINT: "last-checkpoint", HubStrategy.ALL_CHECKPOINTS: Path(checkpoint).name}
    return ["", *(name for strategy, name in snapshots.items() if strategy == args.hub_strategy)], at


def report_failed(jobs: list[Future]) -> None:
    """Take out of a list of uploads those that are done, and say which of these failed."""
    for job in [job for job in jobs if job.done()]:
        jobs.remove(job)
        if (error := job.exception()) is not None:
            logger.error(
                f"A checkpoint was not published: {error} trainer.push_to_hub() uploads the last state.",
                exc_info=None if isinstance(error, MuscleError) else error,
            )


def upload_of_copy(
    checkpoint: str, complete: Callable[[str], None], repo_id: str, targets: Sequence[str], **options: Any
) -> Callable[[], None]:
    """What uploads the adapter of a checkpoint, copied now: training goes on and may rotate the checkpoint away.

    Args:
        checkpoint: Its folder.
        complete: Called with the folder of the copy, to put into it what goes out beside the adapter.
        repo_id: Of the Hub.
        targets: Folders in the repository.
        options: Of :func:`publish`.

    Returns:
        A function that raises MuscleError where it could not be copied or is not uploaded.
    """
    copy = tempfile.TemporaryDirectory(prefix="muscle-hf-push-")
    failed = None
    try:
        folder = copy_to(Path(checkpoint), Path(copy.name, "adapter"))
        complete(str(folder))
    except MuscleError as error:
        failed = error

    def push() -> None:
        with copy:
            if failed is not None:
                raise failed
            for path in targets:
                publish(folder, repo_id, path_in_repo=path, **options)

    return push
