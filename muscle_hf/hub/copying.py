"""A fetched adapter as a folder of one's own."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from muscle_hf.errors import MuscleError
from muscle_hf.hub.fetching import Fetched
from muscle_hf.hub.files import is_published, regular_files
from muscle_hf.training.checkpoints import staged


def copy_to(fetched: Fetched, folder: str | os.PathLike) -> Path:
    """Copy an adapter's files out of the Hub's cache, all or none.

    Args:
        fetched: From :func:`muscle_hf.hub.fetch`.
        folder: Is created; must be empty or hold the same adapter.

    Raises:
        MuscleError: The folder holds something else or cannot be written, or a file of the adapter is a link.
    """
    folder = Path(folder)
    if folder.is_dir():
        foreign = [path.name for path in folder.iterdir() if not is_published(path.name)]
        if foreign:
            raise MuscleError(f"{folder} holds other files ({', '.join(sorted(foreign)[:3])}); name an empty folder")
    with staged(folder) as stage:
        for name, source in regular_files(fetched.folder).items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, stage / name)
    return folder
