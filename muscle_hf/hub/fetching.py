"""Fetch a compatibility adapter: one pinned commit, its known files only, no pickles and no code."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.hub.errors import hub_errors
from muscle_hf.hub.files import ADAPTER_FILES, PUBLISHED, is_published, regular_files
from muscle_hf.hub.publishing import hub_api
from muscle_hf.record import check_weights, read_provenance, valid_repo_id
from muscle_hf.training.checkpoints import staged

_AFTERWARDS = "Nothing was loaded; run the same again, or name a commit that is in the local cache with revision=."


@dataclass(frozen=True)
class Fetched:
    """A compatibility adapter on this disk: its folder, where it came from (the folder as it was named, for a local
    one), the commit that was fetched (None for a local folder) and the content of ``muscle_provenance.json``."""

    folder: Path
    repo_id: str
    commit: str | None
    provenance: dict[str, Any]


def fetch(
    repo: str | os.PathLike,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
) -> Fetched:
    """Fetch a published compatibility adapter, or open a local one, and check its weights against its provenance.

    The revision is resolved to a commit once; every file comes from that commit, wherever a branch moves meanwhile.
    Files that are in the cache are not fetched again. Without a connection a revision that is in the cache is used.

    Args:
        repo: Hub id, or a folder.
        revision: Branch, tag or commit; by default ``main``.
        token: Of the Hub, for private repositories; by default the stored one.
        cache_dir: By default the Hub's cache.

    Raises:
        HubError: The Hub cannot be reached, or does not give it.
        MuscleError: It is no compatibility adapter, or has no safetensors.
        MismatchError: The weights are not those of the provenance.
    """
    name = os.fspath(repo)
    if os.path.isdir(name):
        folder, commit = Path(name), None
    elif not valid_repo_id(name):
        raise MuscleError(f"{name} is neither a folder nor a repository's id (NAMESPACE/NAME)")
    else:
        folder, commit = _download(name, revision, token, cache_dir)
    if missing := [file for file in ADAPTER_FILES if not (folder / file).is_file()]:
        raise MuscleError(
            f"{name} has no {', '.join(missing)}: it is no compatibility adapter of muscle-hf. A plain adapter is "
            "loaded with peft; pickled weights are never loaded"
        )
    provenance = read_provenance(folder)
    check_weights(folder, provenance)
    return Fetched(folder, name, commit, provenance)


def copy_to(source: Path, folder: str | os.PathLike) -> Path:
    """Copy an adapter's files, from the Hub's cache or from a checkpoint, all or none, into a folder, which must be
    new, empty or hold the same adapter."""
    folder = Path(folder)
    if folder.is_dir():
        foreign = [path.name for path in folder.iterdir() if not is_published(path.name)]
        if foreign:
            raise MuscleError(f"{folder} holds other files ({', '.join(sorted(foreign)[:3])}); name an empty folder")
    with staged(folder) as stage:
        for name, file in regular_files(source).items():
            (stage / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, stage / name)
    return folder


def _download(
    name: str, revision: str | None, token: str | bool | None, cache_dir: str | Path | None
) -> tuple[Path, str]:
    where = {"revision": revision, "token": token, "cache_dir": cache_dir}
    with hub_errors(f"fetching {name}", _AFTERWARDS, token):
        folder = Path(hub_api(token).snapshot_download(name, allow_patterns=list(PUBLISHED), **where))
    return folder, folder.name
