"""Uploads that are made while training goes on."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.hub.fetching import copy_to
from muscle_hf.hub.publishing import publish


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
