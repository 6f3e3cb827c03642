"""What users see of each task after a release, and how it came to be: the old side of the next one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object, write_json
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.record import WEIGHTS_FILE, file_sha256
from muscle_hf.words import did_you_mean

LOCK_FILE = "muscle-fleet.lock"
FORMAT = 1


@dataclass(frozen=True)
class Version:
    """One version of a task model.

    Args:
        base: Folder or Hub id of its base; this and the next ones as a side of a run's settings has them.
        revision: Its revision on the Hub.
        adapter: Folder or Hub id of its adapter.
        adapter_revision: Its revision on the Hub.
        tokenizer: Where it is not the base's.
        task: The task that asks this version in words of its own.
        chat_template: That its prompts are put into.
        sha256: Of the adapter's file of weights; None where that is on the Hub alone.
        base_sha256: Content hash of the base's weights; None where they are on the Hub alone.
        kind: ``first``, ``plain`` or ``compatible``: how it was trained, as far as a fleet knows.
    """

    base: str
    revision: str | None = None
    adapter: str | None = None
    adapter_revision: str | None = None
    tokenizer: str | None = None
    task: str | None = None
    chat_template: str | None = None
    sha256: str | None = None
    base_sha256: str | None = None
    kind: str = "first"

    @classmethod
    def of(cls, side: ModelSettings, kind: str = "first") -> Version:
        """Of one side of a run, whose adapter is there."""
        file = Path(side.adapter or "", WEIGHTS_FILE)
        sha256 = file_sha256(file) if side.adapter and file.is_file() else None
        return cls(**vars(side), sha256=sha256, base_sha256=base_hash(side.base, side.revision), kind=kind)

    def side(self) -> dict[str, Any]:
        """As a side of a run's settings."""
        return {setting.name: getattr(self, setting.name) for setting in fields(ModelSettings)}

    def moved(self, folder: Path, *, out: bool) -> Version:
        """With what is on this disk told from the folder of the lock (``out``), so that both can move together, or
        from here."""

        def place(name: str | None, here: Callable[[str], bool]) -> str | None:
            if name is None:
                return None
            if out:
                return f".{os.sep}{os.path.relpath(name, folder)}" if here(name) else name
            # Names of the Hub, of tasks and of templates never begin so.
            return os.path.normpath(folder / name) if name.startswith(".") else name

        places = dict.fromkeys(("base", "adapter", "tokenizer"), os.path.isdir)
        places |= dict.fromkeys(("task", "chat_template"), os.path.isfile)
        return replace(self, **{name: place(getattr(self, name), here) for name, here in places.items()})

    def check(self, name: str) -> None:
        """Refuse an adapter that is no longer the one that the lock names.

        Raises:
            MuscleError: Its weights changed, or are gone.
        """
        if self.sha256 is None or self.adapter is None:
            return
        file = Path(self.adapter, WEIGHTS_FILE)
        if not file.is_file():
            raise MuscleError(
                f"the lock's adapter {self.adapter} of {name} is gone; fetch it, or name it as old.adapter"
            )
        if (found := file_sha256(file)) != self.sha256:
            raise MuscleError(
                f"the adapter {self.adapter} of {name} has the SHA-256 {found}, but the lock says {self.sha256}: it "
                "was replaced after the release"
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
                parts = [Version(**part).moved(folder, out=False) for part in (entry["now"], *entry["ancestors"])]
                tasks[name] = {**entry, "now": parts[0], "ancestors": parts[1:]}
        except (KeyError, TypeError, AttributeError) as error:
            raise MuscleError(f"{path} is damaged ({type(error).__name__}: {error})") from error
        return cls(tasks, content.get("update", {}), content.get("version", ""))

    def write(self, folder: Path) -> Path:
        """Write it into the folder of its fleet."""
        tasks = {}
        for name, entry in self.tasks.items():
            now, *ancestors = (asdict(part.moved(folder, out=True)) for part in (entry["now"], *entry["ancestors"]))
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
