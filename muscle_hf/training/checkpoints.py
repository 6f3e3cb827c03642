"""Saving that never harms what is already saved."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from muscle_hf.errors import SaveError

logger = logging.get_logger(__name__)

_STAGE = ".saving-"


@contextlib.contextmanager
def staged(folder: str | os.PathLike) -> Iterator[Path]:
    """A temporary folder whose files move into ``folder``, which may be missing, when the block ends well, each one
    atomically; other files there are left alone. Where one cannot be written (a full disk, say) a SaveError says so,
    and ``folder`` is as it was."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for left_behind in folder.glob(f"{_STAGE}*"):  # by a process that was killed
        shutil.rmtree(left_behind, ignore_errors=True)
    # On the same file system, so that moving is a rename and needs no space.
    stage = Path(tempfile.mkdtemp(prefix=_STAGE, dir=folder))
    try:
        try:
            yield stage
        except Exception as error:
            raise SaveError(f"nothing was saved in {folder}: {error}. What was there before is whole") from error
        for file in sorted(path for path in stage.rglob("*") if path.is_file()):
            target = folder / file.relative_to(stage)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end: the trainer's state is its last file."""
    try:
        json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return True


def last_whole_checkpoint(run_folder: str | os.PathLike) -> Path | None:
    """The newest checkpoint of a run that was written to its end; None if there is none.

    A process that is killed while it saves leaves a cut-off folder behind, which is passed over with a warning.
    """
    steps: list[tuple[int, Path]] = []
    for path in Path(run_folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
        if match := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name):
            steps.append((int(match[1]), path))
    for _, path in sorted(steps, reverse=True):
        if is_whole(path):
            return path
        logger.warning(f"{path} was not written to its end and is passed over.")
    return None


def saving_checkpoint(trainer: Trainer, trial: Any) -> contextlib.AbstractContextManager[None]:
    """:func:`whole_or_nothing` around a trainer's checkpoint of this step, in the process that writes it."""
    folder = Path(trainer._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{trainer.state.global_step}")
    return whole_or_nothing(folder) if trainer.args.should_save else contextlib.nullcontext()


@contextlib.contextmanager
def whole_or_nothing(checkpoint: Path) -> Iterator[None]:
    """Remove a checkpoint folder that the block could not write to its end, with a SaveError that says which
    checkpoint is the last whole one. An earlier run's of the same name is put aside meanwhile, and comes back."""
    aside = checkpoint.with_name(f".{checkpoint.name}.replaced")
    if is_whole(checkpoint):
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(checkpoint, aside)
    try:
        yield
    except Exception as error:
        if is_whole(checkpoint):
            raise
        shutil.rmtree(checkpoint, ignore_errors=True)
        if aside.is_dir():
            os.replace(aside, checkpoint)
        last = last_whole_checkpoint(checkpoint.parent)
        kept = f"the last whole checkpoint is {last}" if last else "there is no earlier checkpoint"
        raise SaveError(
            f"{checkpoint.name} could not be saved: {error}; {kept}. Make room or choose another output_dir, then go "
            "on with train(resume_from_checkpoint=True)"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
