"""What users see of each task after a release, and how it came to be: the old side of the next one."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object, write_json
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.reading import build
from muscle_hf.record import WEIGHTS_FILE, file_sha256
from muscle_hf.words import did_you_mean

logger = logging.get_logger(__name__)

LOCK_FILE = "muscle-fleet.lock"
FORMAT = 1


@dataclass(frozen=True)
class Version:
    """One version of a task model.

    Args:
        side: As a side of a run's settings has it: base, adapter and their revisions, ...
        sha256: Of the adapter's file of weights, or of its answers; None where there are none.
        base_sha256: Content hash of the base's weights; None where there are none on this disk.
        kind: ``first``, ``plain`` or ``compatible``: how it was trained, as far as a fleet knows.
    """

    side: ModelSettings
    sha256: str | None = None
    base_sha256: str | None = None
    kind: str = "first"

    @classmethod
    def of(cls, side: ModelSettings, kind: str = "first") -> Version:
        """Of one side of a run, whose adapter is there; one of the Hub at the commit that was fetched."""
        folder, commit = _adapter(side, local_files_only=True)
        side = replace(side, adapter_revision=commit or side.adapter_revision)
        return cls(side, _hash(side, folder), None if side.answers else base_hash(side.base, side.revision), kind)

    @classmethod
    def read(cls, content: dict[str, Any], folder: Path) -> Version:
        """From an entry of a lock in a folder."""

        def placed(name: str, text: str) -> str:
            # Names of the Hub, of tasks and of templates never begin so.
            return os.path.normpath(folder / text) if text.startswith(".") else text

        return cls(**{**content, "side": build(ModelSettings, _with_texts(content["side"], placed))})

    def entry(self, folder: Path) -> dict[str, Any]:
        """For a lock in a folder, which what is on this disk is told from, so that both can move together."""

        def told(name: str, text: str) -> str:
            is_here = os.path.isfile if name in ("task", "chat_template", "answers") else os.path.isdir
            try:
                return f".{os.sep}{os.path.relpath(text, folder)}" if is_here(text) else text
            except ValueError:  # on another drive
                return os.path.abspath(text)

        return {**asdict(self), "side": _with_texts(asdict(self.side), told)}

    def check(self, name: str) -> None:
        """Refuse a version whose adapter or base is no longer the one that the lock names, or gone; of what it has no
        hash, say so."""
        found: dict[str, tuple[str | None, str | None]] = {}
        if self.side.adapter or self.side.answers:
            here = _hash(self.side, _adapter(self.side)[0]) or "nothing that can be read"
            found[", ".join(self.side.answers or [f"{self.side.adapter}"])] = (self.sha256, here)
        if self.side.is_here:
            # One of the Hub may not be in the cache of this machine.
            here = base_hash(self.side.base, self.side.revision) or self.base_sha256
            found[self.side.base] = (self.base_sha256, here)
        for what, (named, here) in found.items():
            if named is None:
                logger.warning(f"the lock has no hash of {what} of {name}: it was not checked")
            elif here != named:
                raise MuscleError(
                    f"the lock of {name} names {what} with the SHA-256 {named}, but there is {here}. Bring back what "
                    "was released, or name the old side yourself (old: {base: ..., adapter: ...})"
                )


def _with_texts(side: dict[str, Any], change: Callable[[str, str], str]) -> dict[str, Any]:
    """The settings of a side that are given, with each text changed, by the name of its setting."""

    def changed(name: str, value: Any) -> Any:
        if isinstance(value, list):
            return [change(name, part) for part in value]
        return change(name, value) if isinstance(value, str) else value

    return {name: changed(name, value) for name, value in side.items() if value is not None}


def _adapter(side: ModelSettings, **fetch: bool) -> tuple[Path | None, str | None]:
    """The folder of its adapter, and of one of the Hub the commit."""
    from muscle_hf.teachers.loading import find_adapter

    if side.adapter and not os.path.isdir(side.adapter):
        with contextlib.suppress(MuscleError):
            found = find_adapter(side.adapter, side.adapter_revision, fetch)
            return (found.folder, found.commit) if found else (None, None)
    return (Path(side.adapter) if side.adapter else None), None


def _hash(side: ModelSettings, adapter: Path | None) -> str | None:
    files = [Path(file) for file in side.answers or ()] or ([adapter / WEIGHTS_FILE] if adapter else [])
    if not files or not all(file.is_file() for file in files):
        return None
    hashes = [file_sha256(file) for file in files]
    return hashes[0] if len(hashes) == 1 else sha256("".join(hashes).encode()).hexdigest()


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
        """Read a lock; folders are told from here. One of a later format is refused."""
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
        """What users see of a task now, and the versions before it, the first one first; a MuscleError where the lock
        does not have the task, or its adapter has changed."""
        if name not in self.tasks:
            raise MuscleError(
                f"the lock of the last release has no such task; {did_you_mean(name, self.tasks)} For one that is "
                "new, name its old side: old: {base: ..., adapter: ...}"
            )
        entry = self.tasks[name]
        for version in (entry["now"], *entry["ancestors"]):
            version.check(name)
        return entry["now"], entry["ancestors"]
