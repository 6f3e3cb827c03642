"""A keyed store of tensors on disk that several processes fill and read together, without locks."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers.utils import logging

from muscle_hf.cache.compact import TopTokens
from muscle_hf.cache.fingerprint import Fingerprint
from muscle_hf.cache.shards import (
    DAMAGED,
    KEY_BYTES,
    UNFINISHED,
    Column,
    DamagedShard,
    Row,
    Shard,
    shard_files,
    write_shard,
)
from muscle_hf.errors import MuscleError
from muscle_hf.files import write_json

logger = logging.get_logger(__name__)

_Store = TypeVar("_Store", bound="RowStore")

MANIFEST = "manifest.json"
SHARD_BYTES = 64 * 2**20
# A shard takes seconds to write; what has stayed unfinished for this long was left by a process that was killed.
_ABANDONED_SECONDS = 3600
_SHARD_BITS = 32


class RowStore:
    """Rows of one or more columns, kept under 32-byte keys in a folder of its own below ``folder``.

    Rows are put into a buffer, which becomes a shard when it is large enough or on :meth:`flush`. Whoever is killed
    loses that buffer and nothing else. A damaged shard is set aside with a warning, and its rows are missing from
    then on, so that they are computed again. One process may hold several stores of one folder; a store itself is
    for one thread that writes, beside others that read.

    Args:
        folder: The cache's folder, shared by any teachers and runs.
        fingerprint: Whose rows; from ``teacher_fingerprint``.
        columns: What every row holds; None to take it from what is there, or from the first row put.
        variant: What the rows are, in the folder's name; rows of another variant are another folder.
        shard_bytes: Size from which the buffer is written.

    Raises:
        MuscleError: What is there belongs to another teacher, or has other columns.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        fingerprint: Fingerprint,
        columns: Mapping[str, Column] | None = None,
        *,
        variant: str = "",
        shard_bytes: int = SHARD_BYTES,
    ):
        self.fingerprint = fingerprint
        self.identity = self.fingerprint.digest + (f"/{variant}" if variant else "")
        self.folder = Path(folder, self.fingerprint.digest[:16] + (f"-{variant}" if variant else ""))
        self.shard_bytes = shard_bytes
        self.columns = dict(columns) if columns is not None else None
        self._shards: list[Shard | None] = []
        self._known: set[str] = set()
        # Where a row is: the shard's number above, the row's below. An integer is smaller than a tuple.
        self._places: dict[bytes, int] = {}
        self._buffer: dict[bytes, dict[str, Tensor]] = {}
        self._buffered_bytes = 0
        self._check_manifest()
        self._remove_abandoned()
        self.refresh()

    # ---- Reading ----

    def __len__(self) -> int:
        return len(self._places) + len(self._buffer)

    def __contains__(self, key: bytes) -> bool:
        return key in self._places or key in self._buffer

    def get_rows(self, keys: Sequence[bytes | None]) -> list[Row | None]:
        """The columns of rows, as views of the files (do not change them in place); None for one that is not here, or
        whose key is None."""
        return [None if key is None else self._row(key) for key in keys]

    def _row(self, key: bytes) -> Row | None:
        if key in self._buffer:
            return self._buffer[key]
        place = self._places.get(key)
        shard = None if place is None else self._shards[place >> _SHARD_BITS]
        if place is None or shard is None:
            return None
        try:
            return shard.row(place & (2**_SHARD_BITS - 1))
        except DamagedShard as damage:
            self._set_aside(shard.file, damage)
            self._shards[place >> _SHARD_BITS] = None
            self._places = {}
            for number, other in enumerate(self._shards):
                if other is not None:
                    self._enter(number, other)
            return self._row(key)  # another shard may hold it as well

    def refresh(self) -> int:
        """Take in the shards that other processes have written since, and say how many rows are new."""
        before = len(self)
        for file in shard_files(self.folder):
            if file.name not in self._known:
                self._open(file)
        return len(self) - before

    def _open(self, file: Path) -> None:
        self._known.add(file.name)
        try:
            shard = Shard(file, self.identity)
        except FileNotFoundError:
            return  # set aside by another process just now
        except DamagedShard as damage:
            self._set_aside(file, damage)
            return
        self._require_columns(shard.columns)
        self._shards.append(shard)
        self._enter(len(self._shards) - 1, shard)

    def _enter(self, number: int, shard: Shard) -> None:
        first = number << _SHARD_BITS
        self._places.update(zip(shard.keys, range(first, first + len(shard.keys)), strict=True))

    def _set_aside(self, file: Path, damage: DamagedShard) -> None:
        logger.warning(
            f"The teacher cache has a damaged file, {file}: {damage}. It is set aside as {file.name}{DAMAGED}, and "
            "its rows are computed again."
        )
        with contextlib.suppress(OSError):  # another process was first, or the folder is read-only
            os.replace(file, file.with_name(file.name + DAMAGED))

    # ---- Writing ----

    def put_rows(self, keys: Sequence[bytes | None], rows: Sequence[Row]) -> None:
        """Keep copies of rows (column -> (n, ...), on any device); those that are here already, or whose key is None,
        are passed over. Other columns than the rest, and values that are nan or infinite, are refused."""
        for key, row in zip(keys, rows, strict=True):
            if key is None or key in self:
                continue
            self._require_columns({name: Column.of(tensor) for name, tensor in row.items()})
            self._buffer[key] = kept = {name: _copied(name, tensor) for name, tensor in row.items()}
            self._buffered_bytes += KEY_BYTES + sum(tensor.nbytes for tensor in kept.values())
            if self._buffered_bytes >= self.shard_bytes:
                self.flush()

    def flush(self) -> None:
        """Write what is buffered as a shard; it is on the disk on return, or a MuscleError says why not, and stays in
        memory."""
        if not self._buffer:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.folder / MANIFEST).is_file():
                self._write_manifest()
        except OSError as error:
            raise MuscleError(f"the teacher cache cannot be made in {self.folder}: {error}") from error
        file = write_shard(self.folder, self.identity, self._buffer)
        self._open(file)
        self._buffer, self._buffered_bytes = {}, 0

    def close(self) -> None:
        """Write what is buffered and let go of the files."""
        self.flush()
        self._shards, self._places, self._known = [], {}, set()

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(self, *error: object) -> None:
        # Also after an error: every row in the buffer is whole.
        self.close()

    # ---- Belonging together ----

    def _require_columns(self, columns: Mapping[str, Column]) -> None:
        if self.columns is None:
            self.columns = dict(columns)
        elif columns != self.columns:
            has, given = ({name: str(column) for name, column in c.items()} for c in (self.columns, columns))
            raise MuscleError(
                f"the teacher cache in {self.folder} holds {has} per token, but {given} was given. The teacher "
                "computes otherwise than its fingerprint says; delete the folder if it is the cache that is wrong"
            )

    def _check_manifest(self) -> None:
        file = self.folder / MANIFEST
        if not file.is_file():
            return
        try:
            manifest = json.loads(file.read_text(encoding="utf-8"))
            identity = manifest["identity"]
            columns = {name: _column(text) for name, text in manifest["columns"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            logger.warning(f"{file} cannot be read; it is written anew from what is known.")
            file.unlink(missing_ok=True)
            return
        if identity != self.identity:
            raise MuscleError(f"{self.folder} is the cache of another teacher ({identity}); choose another folder")
        self._require_columns(columns)

    def _write_manifest(self) -> None:
        manifest = {
            "format": 1,
            "identity": self.identity,
            "teacher": self.fingerprint.description,
            "columns": {
                name: {"dtype": str(column.dtype).removeprefix("torch."), "shape": list(column.shape)}
                for name, column in (self.columns or {}).items()
            },
            "packages": {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft")},
            "created": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        }
        write_json(self.folder / MANIFEST, manifest)

    def _remove_abandoned(self) -> None:
        for file in self.folder.glob(f".*{UNFINISHED}"):
            with contextlib.suppress(OSError):  # read-only, or gone
                if time.time() - file.stat().st_mtime > _ABANDONED_SECONDS:
                    file.unlink()


class HiddenStore(RowStore):
    """Cache of a teacher: its last hidden states at a sequence's trained positions, (n, d) per sequence, or, in a
    ``form`` that is smaller, (n, 2 k + 1) numbers in their place. Otherwise as :class:`RowStore`."""

    def __init__(
        self,
        folder: str | os.PathLike,
        fingerprint: Fingerprint,
        *,
        form: TopTokens | None = None,
        shard_bytes: int = SHARD_BYTES,
    ):
        self.form = form
        columns = None if form is None else {"hidden": Column(torch.float32, (form.width,))}
        variant = "" if form is None else form.name
        super().__init__(folder, fingerprint, columns, variant=variant, shard_bytes=shard_bytes)

    def kept(self, hidden: Tensor, head: Callable[[Tensor], Tensor]) -> Tensor:
        """What is kept of hidden states (n, d), as :meth:`put` takes it; ``head`` is the teacher's."""
        return hidden if self.form is None else self.form.of_hidden(hidden, head)

    def get(self, keys: Sequence[bytes | None]) -> list[Tensor | None]:
        """The hidden states of sequences: (n, d) each, a view of the file; None where they are not here."""
        return [None if row is None else row["hidden"] for row in self.get_rows(keys)]

    def put(self, keys: Sequence[bytes | None], tensors: Sequence[Tensor]) -> None:
        """Keep the hidden states of sequences, (n, d) each; see :meth:`RowStore.put_rows`."""
        self.put_rows(keys, [{"hidden": tensor} for tensor in tensors])


def _copied(name: str, tensor: Tensor) -> Tensor:
    # A view would keep the whole batch in memory that it is a part of.
    copied = tensor.detach().to("cpu", copy=True).contiguous()
    # The extremes are found 20 times as fast as every element is looked at, and nan is an extreme too.
    if name == "hidden" and copied.numel() and not bool(torch.stack(torch.aminmax(copied)).isfinite().all()):
        raise MuscleError(
            "a teacher's hidden states are nan or infinite, and are not cached; load the teacher in bfloat16 or "
            "float32 instead of float16"
        )
    return copied


def _column(text: Mapping[str, Any]) -> Column:
    return Column(getattr(torch, text["dtype"]), tuple(text["shape"]))
