"""Results at a URL of fsspec, where machines share no folder, or a machine's disk does not stay."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import fsspec

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json, write_json
from muscle_hf.hub.publishing import hub_api
from muscle_hf.record import json_sha256

# In a task's folder, of each file that is at the URL too: a hash of what it is there, and what it was here then.
_NOTE = ".results.json"


@contextlib.contextmanager
def results_at(url: str | None) -> Iterator[None]:
    """Within the block what goes wrong at a URL is told as bad input."""
    try:
        yield
    except (OSError, ValueError, ImportError, NotImplementedError) as error:
        raise MuscleError(f"results: {url} cannot be read and written ({error})") from error


def fetch(url: str | None, folder: Path) -> None:
    """Bring what is at a URL (None: nowhere) into a folder, but for what has not changed there since it was fetched or
    left."""
    if url is None:
        return
    files, root = fsspec.core.url_to_fs(url)
    files.invalidate_cache()  # other machines write there, too
    try:
        found = files.find(root, detail=True)
    except FileNotFoundError:
        return
    noted = _noted(folder)
    for path, info in found.items():
        place = os.path.relpath(path, root)
        target, there = folder / place, json_sha256(info, default=str)
        if place.startswith(os.pardir) or (target.is_file() and noted.get(place, [None])[0] == there):
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(path, str(target))
        noted[place] = [there, _stamp(target)]
        write_json(folder / _NOTE, noted)


def leave(url: str | None, folder: Path) -> None:
    """Put the files of a folder to a URL (None: nowhere) that are not there as they are; checkpoints are for this
    machine alone, and so is what links lead to."""
    if url is None:
        return
    noted, paths = _noted(folder), sorted(folder.rglob("*"))
    found = {path.relative_to(folder): path for path in paths if path.is_file() and not path.is_symlink()}
    new = {
        place.as_posix(): _stamp(path)
        for place, path in found.items()
        if not any(part.startswith((".", "checkpoint-")) for part in place.parts)
        and noted.get(place.as_posix(), [None, None])[1] != _stamp(path)
    }
    if new:
        put(url, folder, new)
        files, root = fsspec.core.url_to_fs(url)
        files.invalidate_cache()
        there = {os.path.relpath(path, root): info for path, info in files.find(root, detail=True).items()}
        write_json(
            folder / _NOTE,
            noted | {place: [json_sha256(there[place], default=str), stamp] for place, stamp in new.items()},
        )


def put(url: str, folder: Path, places: Iterable[str]) -> None:
    """Put files of a folder to the same places under a URL; to a repository of the Hub in one commit."""
    files, root = fsspec.core.url_to_fs(url)
    if "hf" in files.protocol and not root.startswith("buckets/"):
        # The Hub takes some hundred commits an hour.
        where = files.resolve_path(root)
        names = {"repo_id": where.repo_id, "repo_type": where.repo_type, "revision": where.revision}
        hub_api().upload_folder(**names, folder_path=folder, path_in_repo=where.path_in_repo, allow_patterns=[*places])
        return
    for place in places:
        files.makedirs(os.path.dirname(f"{root}/{place}"), exist_ok=True)
        files.put_file(str(folder / place), f"{root}/{place}")


def _noted(folder: Path) -> dict[str, list[Any]]:
    return read_json(folder / _NOTE) if (folder / _NOTE).is_file() else {}


def _stamp(path: Path) -> list[int]:
    return [path.stat().st_mtime_ns, path.stat().st_size]
