"""Steps of a run that are done once: a note in the folder of each says for what it was done."""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from accelerate import PartialState
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object, write_json
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.steps import free_memory
from muscle_hf.record import file_sha256
from muscle_hf.teachers.loading import find_adapter

logger = logging.get_logger(__name__)

DONE_FILE = "muscle_step.json"


class Once:
    """Does each step of a run once, in a folder of its name, and says so."""

    def __init__(self, folder: Path, process: PartialState, say: Callable[[str], None]):
        self._folder, self._process, self._say = folder, process, say
        self._finished: set[str] = set()

    def __call__(self, name: str, what: str, key: str, work: Callable[[Path], dict[str, int] | None]) -> Path:
        """Do a step, unless it was done with this key, which changes with everything that it depends on.

        What ``work`` returns, which does it in its folder, is noted there; gives the folder.
        """
        folder = self._folder / name
        if name in self._finished:
            return folder
        free_memory()
        note, before = folder / DONE_FILE, read_note(folder)
        self._process.wait_for_everyone()  # before the note is written anew
        same = before.get("key") == key
        if same and before.get("done"):
            self._say(f"{what}: done before, in {folder}")
        else:
            self._say(what)
            if self._process.is_main_process:
                if before and not same:
                    logger.warning(f"{folder} was trained with other settings or data; it is trained again.")
                # Going on from those of other settings or data would mix the two.
                for checkpoint in () if same else folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
                    shutil.rmtree(checkpoint)
                folder.mkdir(parents=True, exist_ok=True)
                write_json(note, {"key": key, "done": False}, indent=None)
            self._process.wait_for_everyone()
            noted = work(folder) or {}
            self._process.wait_for_everyone()
            if self._process.is_main_process:
                write_json(note, {"key": key, "done": True, **noted}, indent=None)
            self._process.wait_for_everyone()
        self._finished.add(name)
        return folder


def read_note(folder: Path) -> dict[str, Any]:
    """What a step noted in its folder when it began or ended; nothing where it was not noted whole."""
    with contextlib.suppress(MuscleError):
        return read_object(folder / DONE_FILE)
    return {}


def weights_key(side: ModelSettings) -> str:
    """Changes with a side's base and the content of its adapter; of one behind a server with its name there."""
    if side.answers:
        return fingerprint("answers", *map(file_sha256, map(Path, side.answers)))
    if side.server is not None:
        return fingerprint("server", side.server.model, side.server.top_k, side.base, side.tokenizer)
    found = find_adapter(cast("str", side.adapter), side.adapter_revision, {})
    adapter = found and file_sha256(found.folder / SAFETENSORS_WEIGHTS_NAME)
    return fingerprint(side.base, side.revision, adapter, *filter(None, [side.tokenizer]))


def fingerprint(*parts: Any) -> str:
    """A hash of things that are told apart by how they are printed."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()
