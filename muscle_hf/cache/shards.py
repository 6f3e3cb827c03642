"""One file of a cache: rows of unequal lengths side by side in a few large tensors, found by their keys.

A shard is a safetensors file that is complete or not there. Its tensors are ``keys`` (rows, 32) uint8, ``offsets``
(rows + 1,) int64, ``checksums`` (rows,) int64 and one (all tokens, ...) tensor per column; row i holds the tokens
``offsets[i]`` to ``offsets[i + 1]``. One tensor per row would make the header, which is JSON, the slowest part.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import struct
import uuid
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from muscle_hf.errors import MuscleError

FORMAT = "muscle_hf.rows/1"
SUFFIX = ".safetensors"
UNFINISHED = ".unfinished"
DAMAGED = ".damaged"
KEY_BYTES = 32
_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
}
_INDEX = ("keys", "offsets", "checksums")


class DamagedShard(Exception):
    """A shard that must not be used; the message says why."""


@dataclass(frozen=True)
class Column:
    """What one column holds for each token: the dtype of its elements and the shape of one token's, () for a
    number."""

    dtype: torch.dtype
    shape: tuple[int, ...] = ()

    @classmethod
    def of(cls, tensor: Tensor) -> Column:
        """The column that a (tokens, ...) tensor belongs to."""
        return cls(tensor.dtype, tuple(tensor.shape[1:]))

    @property
    def bytes_per_token(self) -> int:
        return self.dtype.itemsize * torch.Size(self.shape).numel()

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} x {list(self.shape)}"


Row = Mapping[str, Tensor]


def write_shard(folder: Path, identity: str, rows: Mapping[bytes, Row]) -> Path:
    """Write rows, key -> columns (n, ...) on the CPU, the same columns in each, as a new shard, which appears in a
    folder complete or not at all; a shard of another identity is never read. Gives its file, whose name is new even
    among processes; a MuscleError where it cannot be written (disk full, no permission)."""
    parts = list(rows.values())
    lengths = torch.tensor([len(next(iter(part.values()))) for part in parts])
    index = {
        "keys": torch.frombuffer(bytearray(b"".join(rows)), dtype=torch.uint8).view(-1, KEY_BYTES),
        "offsets": torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
        "checksums": torch.tensor([_checksum(part) for part in parts], dtype=torch.int64),
    }
    metadata = {"format": FORMAT, "identity": identity, "index_sha256": _index_hash(index)}
    target = folder / f"rows-{uuid.uuid4().hex}{SUFFIX}"
    # Begins with a dot and ends in another suffix: no reader takes it for a shard.
    unfinished = folder / f".{target.stem}{UNFINISHED}"
    try:
        columns = {name: [part[name] for part in parts] for name in parts[0]}
        _save({name: [tensor] for name, tensor in index.items()} | columns, unfinished, metadata)
        os.replace(unfinished, target)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)
        raise MuscleError(
            f"{len(parts)} rows could not be written to {folder}: {error}. Make room there, or choose another folder; "
            "what was written before is unharmed"
        ) from error
    # Windows opens no folders, and some network disks sync none.
    with contextlib.suppress(OSError):
        _sync(folder)
    return target


def _save(tensors: Mapping[str, Sequence[Tensor]], file: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whose tensors are given in pieces along their first dimension, and sync it.

    The library's own ``save_file`` wants each tensor whole and copies it once more, which takes three times as long.
    """
    # Wide elements first, so that every tensor starts at a multiple of its element's size.
    order = sorted(tensors, key=lambda name: (-tensors[name][0].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        pieces = tensors[name]
        start, end = end, end + sum(piece.nbytes for piece in pieces)
        shape = [sum(len(piece) for piece in pieces), *pieces[0].shape[1:]]
        header[name] = {"dtype": _DTYPES[pieces[0].dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(file, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            for piece in tensors[name]:
                handle.write(_bytes(piece))
        handle.flush()
        os.fsync(handle.fileno())


class Shard:
    """A shard of the rows of one ``identity``, read through a memory map: no tensor is copied, no row is read before
    it is asked for. ``keys`` are those of the rows, in order, ``columns`` by name.

    A DamagedShard is raised where it is cut off, altered, not a shard, or somebody else's.
    """

    def __init__(self, file: Path, identity: str):
        self.file = file
        try:
            with safe_open(file, framework="pt") as handle:
                metadata = handle.metadata() or {}
                tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118 - not iterable
        except SafetensorError as error:
            raise DamagedShard(f"it is cut off or altered ({error})") from error
        if metadata.get("format") != FORMAT:
            raise DamagedShard(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
        if metadata.get("identity") != identity:
            raise DamagedShard("it holds the rows of another teacher")
        if any(name not in tensors for name in _INDEX) or metadata.get("index_sha256") != _index_hash(tensors):
            raise DamagedShard("its index is altered")
        joined = tensors.pop("keys").numpy().tobytes()
        self.keys = [joined[at : at + KEY_BYTES] for at in range(0, len(joined), KEY_BYTES)]
        self._offsets: list[int] = tensors.pop("offsets").tolist()
        self._checksums: list[int] = tensors.pop("checksums").tolist()
        self._tensors = tensors
        self.columns = {name: Column.of(tensor) for name, tensor in tensors.items()}
        self._verified = bytearray(len(self.keys))

    def row(self, index: int) -> dict[str, Tensor]:
        """The columns of a row as views of the file; its content is checked when it is first read (DamagedShard)."""
        start, end = self._offsets[index], self._offsets[index + 1]
        row = {name: tensor[start:end] for name, tensor in self._tensors.items()}
        if not self._verified[index]:
            if _checksum(row) != self._checksums[index]:
                raise DamagedShard("the content of a row is altered")
            self._verified[index] = 1
        return row


def _checksum(row: Row) -> int:
    # CRC-32 finds accidents, at a speed that hides behind the disk's. Forgery is not the concern: whoever can write
    # here can write checksums too.
    total = 0
    for name in sorted(row):
        total = zlib.crc32(_bytes(row[name]), total)
    return total


def _index_hash(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in _INDEX:
        digest.update(_bytes(tensors[name]))
    return digest.hexdigest()


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.contiguous().view(-1).view(torch.uint8).numpy().data


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def shard_files(folder: Path) -> Sequence[Path]:
    """The complete shards in a folder, damaged ones included that nobody has noticed yet."""
    return sorted(folder.glob(f"rows-*{SUFFIX}"))
