"""Snapshots in the Hub's cache: what is known of their weights without reading them.

The client keeps a file under the hash that the Hub has of it, and links to it from the folder of each commit. The name
says what was fetched; that nobody has written to the file since, only its times do. So a name stands for content as
long as these are the same, and never where weights that are in memory are described: those are hashed themselves.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import cached_assets_path

from muscle_hf.errors import MuscleError
from muscle_hf.record import json_sha256

# Links are made right after what they lead to.
_SLACK_NS = 10**9


def blobs_of(folder: Path) -> dict[str, Path] | None:
    """The kept file behind each safetensors file of a snapshot; None for any other folder."""
    files = sorted(Path(folder).glob("*.safetensors"))
    blobs = {file.name: file.resolve() for file in files}
    kept = (blob.parent.name == "blobs" and blob.parent.parent.name.startswith("models--") for blob in blobs.values())
    return blobs if blobs and all(kept) and all(file.is_symlink() for file in files) else None


def written_to(folder: Path) -> bool:
    """Whether a file of a snapshot may have been changed since it was fetched."""
    blobs = blobs_of(folder) or {}
    return any(
        blob.stat().st_mtime_ns > Path(folder, name).lstat().st_mtime_ns + _SLACK_NS for name, blob in blobs.items()
    )


def remembered(folder: Path, what: str, hashed: Callable[[], str]) -> str:
    """A hash of the weights in a folder, which for a snapshot is taken once and then remembered in the Hub's cache;
    ``what`` is all that it depends on beside the files."""
    if (blobs := blobs_of(folder)) is None:
        return hashed()
    # The time of the last change of any kind cannot be set back, as that of the last writing can.
    stats = [(name, blob.name, blob.stat()) for name, blob in blobs.items()]
    seen = [[name, blob, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns] for name, blob, stat in stats]
    key = json_sha256([seen, what])
    with contextlib.suppress(OSError, ValueError):
        known = (cached_assets_path("muscle_hf", "weights") / key).read_text(encoding="utf-8")
        if re.fullmatch("[0-9a-f]{64}", known):
            return known
    from muscle_hf.files import write_text

    found = hashed()
    with contextlib.suppress(OSError, ValueError, MuscleError):  # a folder that cannot be written to
        write_text(cached_assets_path("muscle_hf", "weights") / key, found)
    return found
