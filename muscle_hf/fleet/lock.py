"""What users see of each task after a release, and how it came to be: the old side of the next one."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object, write_json
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.reading import build
from muscle_hf.record import WEIGHTS_FILE, file_sha256
from muscle_hf.words import did_you_mean

LOCK_FILE = "muscle-fleet.lock"
FORMAT = 1


@dataclass(frozen=True)
class Version:
    """One version of a task model.

    Args:
        side: As a side of a run's settings has it: base, adapter and their revisions, ...
        sha256: Of the adapter's file of weights; None where that is on the Hub alone, or there is none.
        base_sha256: Content hash of the base's weights; None where they are on the Hub alone.
        kind: ``first``, ``plain`` or ``compatible``: how it was trained, as far as a fleet knows.
    """

    side: ModelSettings
    sha256: str | None = None
    base_sha256: str | None = None
    kind: str = "first"

    @classmethod
    def of(cls, side: ModelSettings, kind: str = "first") -> Version:
        """Of one side of a run, whose adapter is there."""
        file = Path(side.adapter or "", WEIGHTS_FILE)
        sha256 = file_sha256(file) if side.adapter and file.is_file() else None
        return cls(side, sha256, base_hash(side.base, side.revision), kind)

    @classmethod
    def read(cls, content: dict[str, Any], folder: Path) -> Version:
        """From an entry of a lock in a folder."""
        # Names of the Hub, of tasks and of templates never begin so.
        told = {name: isinstance(value, str) and value.startswith(".") for name, value in content["side"].items()}
        places = {name: os.path.normpath(folder / content["side"][name]) for name, here in told.items() if here}
        return cls(**{**content, "side": build(ModelSettings, {**content["side"], **places})})

    def entry(self, folder: Path) -> dict[str, Any]:
        """For a lock in a folder, which what is on this disk is told from, so that both can move together."""
        side = {name: value for name, value in asdict(self.side).items() if value is not None}
        kinds = dict.fromkeys(("base", "adapter", "tokenizer"), os.path.isdir)
        kinds |= dict.fromkeys(("task", "chat_template"), os.path.isfile)
        here = [name for name, is_here in kinds.items() if name in side and is_here(side[name])]
        side |= {name: f".{os.sep}{os.path.relpath(side[name], folder)}" for name in here}
        return {**asdict(self), "side": side}

    def check(self, name: str) -> None:
        """Refuse an adapter that is no longer the one that the lock names.

        Raises:
            MuscleError: Its weights changed, or are gone.
        """
        if self.sha256 is None or self.side.adapter is None:
            return
        file = Path(self.side.adapter, WEIGHTS_FILE)
        found = file_sha256(file) if file.is_file() else "nothing: it is gone"
        if found != self.sha256:
            raise MuscleError(
                f"the lock of {name} names {file} with the SHA-256 {self.sha256}, but there is {found}. Bring back "
                "what was released, or name the old side yourself (old: {base: ..., adapter: ...})"
            )


@cache
def base_hash(base: str, revision: str | None) -> str | None:
    """Content hash of a base's files; None where they are not on this disk."""
    from muscle_hf.teachers.origin import local_model_folder
    from muscle_hf.teachers.weights import folder_hash

    folder = local_model_folder(base, revision)
    return folder_hash(folder) if folder is not None and any(folder.glob("*.safetensors")) else None


@dataclass
class Lock:
    """A release: by task, what users see now, what they saw before, and the gate's verdict."""

    tasks: dict[str, dict[str, Any]]
    update: dict[str, Any] = field(default_factory=dict)
    version: str = ""

    @classmethod
    def read(cls, path: str | os.PathLike) -> Lock:
        """Read a lock; folders are told from here.

        Raises:
            MuscleError: There is none, or it is of a later format.
        """
        content = read_object(path, "lock of a fleet")
        if content.get("format") != FORMAT:
            raise MuscleError(
                f"{path} has format {content.get('format')}; this version reads format {FORMAT}: upgrade"
            )
        folder, tasks = Path(path).parent, {}
        try:
            for name, entry in content["tasks"].items():
                now, *ancestors = (Version.read(part, folder) for part in (entry["now"], *entry["ancestors"]))
                tasks[name] = {**entry, "now": now, "ancestors": ancestors}
        except (KeyError, TypeError, AttributeError) as error:
            raise MuscleError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        return cls(tasks, content.get("update", {}), content.get("version", ""))

    def write(self, folder: Path) -> Path:
        """Write it into the folder of its fleet."""
        tasks = {}
        for name, entry in self.tasks.items():
            now, *ancestors = (part.entry(folder) for part in (entry["now"], *entry["ancestors"]))
            tasks[name] = {**entry, "now": now, "ancestors": ancestors}
        return write_json(
            folder / LOCK_FILE, {"format": FORMAT, "version": self.version, "update": self.update, "tasks": tasks}
        )

    def old_side(self, name: str) -> tuple[Version, list[Version]]:
        """What users see of a task now, and the versions before it, the first one first.

        Raises:
            MuscleError: The lock does not have the task, or its adapter has changed.
        """
        if name not in self.tasks:
            raise MuscleError(
                f"the lock of the last release has no such task; {did_you_mean(name, self.tasks)} For one that is "
                "new, name its old side: old: {base: ..., adapter: ...}"
            )
        entry = self.tasks[name]
        entry["now"].check(name)
        return entry["now"], entry["ancestors"]
