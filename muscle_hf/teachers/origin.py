"""Where a loaded base model came from: a repository's commit, or a folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from torch import nn

from muscle_hf.record import valid_repo_id
from muscle_hf.teachers.weights import base_of, base_weights, same_as_files

_SNAPSHOT = re.compile(r"models--([^/\\]+)[/\\]snapshots[/\\]([0-9a-f]{40})[/\\]?$")


@dataclass(frozen=True)
class Origin:
    """Where a base model came from, without its place on this machine: a repository's id if ``on_hub``, or the last
    part of a folder's path, or None for a model built in memory; and the commit, where that can be told: nobody has
    written to what was fetched."""

    name: str | None
    revision: str | None
    on_hub: bool


def origin_of(model: nn.Module) -> Origin:
    """Find out where a model's base was loaded from.

    ``transformers`` keeps the name but not the commit: that is read off the Hub's cache, by content where several
    commits of a repository lie there.
    """
    base = base_of(model)
    name = getattr(getattr(base, "config", None), "name_or_path", None)
    if not name:
        return Origin(None, None, False)
    from muscle_hf.teachers.snapshots import written_to

    if found := _SNAPSHOT.search(name):
        return Origin(found[1].replace("--", "/"), None if written_to(Path(name)) else found[2], True)
    if os.path.isdir(name) or os.path.isabs(name) or not valid_repo_id(name):
        return Origin(Path(name).resolve().name, None, False)
    repository = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}")
    commit = getattr(base.config, "_commit_hash", None) or _cached_commit(base, repository)
    return Origin(name, None if commit and written_to(repository / "snapshots" / commit) else commit, True)


def _cached_commit(base: nn.Module, repository: Path) -> str | None:
    # Commits that share all weight files are one: the client keeps each file once, under its hash.
    by_content: dict[tuple[str, ...], list[Path]] = {}
    for snapshot in sorted(repository.glob("snapshots/*")):
        weights = sorted(os.path.realpath(file) for file in snapshot.glob("*.safetensors"))
        if weights:
            by_content.setdefault(tuple(weights), []).append(snapshot)
    candidates = list(by_content.values())
    if len(candidates) > 1:
        loaded = base_weights(base)
        candidates = [group for group in candidates if same_as_files(loaded, group[0], base)]
    if len(candidates) != 1:
        return None
    commits = [snapshot.name for snapshot in candidates[0]]
    main = repository / "refs" / constants.DEFAULT_REVISION
    present = main.read_text(encoding="utf-8").strip() if main.is_file() else None
    return present if present in commits else commits[-1]


def local_model_folder(name: str | None, revision: str | None = None) -> Path | None:
    """The folder of a model's files if it is on this disk: a folder itself, or in the Hub's cache; else None."""
    if not name:
        return None
    if os.path.isdir(name):
        return Path(name)
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=["*.safetensors"], local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError):
        return None
