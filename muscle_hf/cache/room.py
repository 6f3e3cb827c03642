"""What a cache will take on the disk, and whether there is room."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from muscle_hf.cache.shards import KEY_BYTES, Column
from muscle_hf.errors import MuscleError

# Beside a row's content: its key, offset and checksum.
_ROW_BYTES = KEY_BYTES + 16
# Left free on a disk that a cache is written to.
_SPARE_BYTES = 256 * 2**20


def predicted_bytes(rows: int, tokens: int, columns: Mapping[str, Column]) -> int:
    """What rows (sequences) with so many trained tokens will take on the disk; the headers of the shards, a few KB
    each, come on top."""
    return rows * _ROW_BYTES + tokens * sum(column.bytes_per_token for column in columns.values())


def require_space(folder: str | os.PathLike, needed: int) -> None:
    """Refuse a cache that needs more bytes than the disk of ``folder``, which need not exist, has room for."""
    place = next(path for path in (Path(folder).absolute(), *Path(folder).absolute().parents) if path.exists())
    free = shutil.disk_usage(place).free - _SPARE_BYTES
    if needed > free:
        raise MuscleError(
            f"the teacher cache needs {human_bytes(needed)}, but {folder} has room for {human_bytes(max(free, 0))} "
            "(256 MB are left free). Choose a folder on a larger disk, train on fewer tokens "
            "(trained_tokens='completion'), or train without the cache"
        )


def human_bytes(count: float) -> str:
    """``1.5 GB``: powers of 1000, as disks are sold."""
    size, units = float(count), ["bytes", "KB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} bytes" if units[0] == "bytes" else f"{size:.1f} {units[0]}"
