"""Filling a cache ahead of training: what it will take, whether there is room, and the work itself."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from muscle_hf.cache.keys import KeyRules, row_keys
from muscle_hf.cache.shards import KEY_BYTES, Column
from muscle_hf.cache.store import HiddenStore, RowStore
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.kinds import kind_of
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.weights import base_of

# Beside a row's content: its key, offset and checksum.
_ROW_BYTES = KEY_BYTES + 16
# Left free on a disk that a cache is written to.
_SPARE_BYTES = 256 * 2**20

Autocast = Callable[..., contextlib.AbstractContextManager]


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


@dataclass(frozen=True)
class CachePlan:
    """What is to be computed; of the sequences with trained tokens, how many are missing in the store and how many
    have no key of their own.

    Args:
        batches: Indices into the dataset, of batches with a sequence that is missing; the longest rows first, so that
            a batch that does not fit fails at once.
    """

    batches: list[list[int]]
    sequences: int
    missing: int
    missing_tokens: int
    uncacheable: int


def plan_cache(
    dataset: Any,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]],
    store: RowStore,
    batch_size: int,
    rules: KeyRules,
    read: Callable[[Mapping[str, Any]], Batch],
    share: tuple[int, int] = (0, 1),
) -> CachePlan:
    """Find out what is missing; reads the whole dataset, runs no model.

    Arguments as :func:`build_cache`; ``read`` makes what the teacher reads of what ``collate`` gives.
    """
    rank, processes = share
    order = sorted(range(len(dataset)), key=lambda index: -_length(dataset[index]))
    batches: list[list[int]] = []
    seen: set[bytes] = set()
    sequences = missing_tokens = uncacheable = 0
    for start in range(rank * batch_size, len(order), processes * batch_size):
        indices = order[start : start + batch_size]
        batch = read(collate([dataset[index] for index in indices]))
        found = row_keys(batch.inputs, batch.labels, rules)
        new = {part.key: part.count for part in found if part.key is not None and part.key not in store}
        new = {key: count for key, count in new.items() if key not in seen}
        seen.update(new)
        sequences += len(found)
        uncacheable += sum(part.key is None for part in found)
        missing_tokens += sum(new.values())
        if new:
            batches.append(indices)
    return CachePlan(batches, sequences, len(seen), missing_tokens, uncacheable)


def build_cache(
    teacher: Teacher,
    dataset: Any,
    collate: Callable[[Sequence[Any]], Mapping[str, Any]],
    store: HiddenStore,
    batch_size: int = 8,
    *,
    autocast: Autocast = contextlib.nullcontext,
    rules: KeyRules | None = None,
    trained_labels: Callable[[Mapping[str, Any]], Tensor] | None = None,
    share: tuple[int, int] = (0, 1),
    progress: bool = True,
    name: str = "cache",
    say: Callable[[str], None] | None = None,
) -> CachePlan:
    """Run a teacher once over what a store does not hold yet; may be interrupted and called again.

    Args:
        teacher: Loaded, on its device.
        store: Gets the sequences; of this teacher's fingerprint.
        batch_size: Rows per forward pass.
        autocast: Makes the context in which its forward runs.
        rules: What the teacher's hidden states depend on; from its model by default.
        trained_labels: Aligned labels of a batch, -100 where nothing is trained; every label that is not -100 by
            default.
        share: (index, count) of this process among those that build the cache together.
        name: On the bar that ``progress`` shows.
        say: Told the size before it is written.

    Raises:
        MuscleError: The disk is too small (before anything is written), nothing can be cached, the model has no output
            head of its own, or a write failed.
    """
    kind = kind_of(teacher.model)
    teacher.head = teacher.head or Head(teacher.model, autocast)
    rules = rules or KeyRules.of(teacher.model, kind)
    trained_labels = trained_labels or (lambda batch: kind.trained_labels(batch["labels"]))

    def read(batch: Mapping[str, Any]) -> Batch:
        return teacher.reading(Batch(batch, trained_labels(batch), kind))

    plan = plan_cache(dataset, collate, store, batch_size, rules, read, share)
    if plan.sequences and plan.uncacheable == plan.sequences:
        model = type(base_of(teacher.model)).__name__
        raise MuscleError(
            f"no row of this dataset can be cached for {model}: what it computes for one depends on more than its own "
            f"content ({rules.excluded or 'inputs without text'}); train without the cache"
        )
    checked = False
    with tqdm(total=plan.missing, desc=name, unit="row", disable=not progress) as bar:
        for indices in plan.batches:
            batch = read(collate([dataset[index] for index in indices]))
            rows = _missing_rows(teacher, batch, rules, store, autocast)
            if not checked and rows:
                columns = {"hidden": Column.of(next(iter(rows.values())))}
                needed = predicted_bytes(plan.missing, plan.missing_tokens, columns)
                if say is not None:
                    say(
                        f"{name}: {plan.missing:,} of {plan.sequences:,} sequences to compute, "
                        f"{plan.missing_tokens:,} tokens, {human_bytes(needed)}"
                    )
                require_space(store.folder, needed * share[1])  # the others write about as much
                checked = True
            store.put(list(rows), list(rows.values()))
            bar.update(len(rows))
    store.flush()
    return plan


def _missing_rows(
    teacher: Teacher, batch: Batch, rules: KeyRules, store: HiddenStore, autocast: Autocast
) -> dict[bytes, Tensor]:
    """What of a batch, as the teacher reads it, is not in the store yet."""
    parts = row_keys(batch.inputs, batch.labels, rules)
    device = next(teacher.model.parameters()).device
    moved = {name: v.to(device) if isinstance(v, Tensor) else v for name, v in batch.inputs.items()}
    with torch.no_grad(), autocast():
        states = teacher.states(Batch(moved, batch.labels.to(device), batch.kind))
        if teacher.head is None:
            raise MuscleError(
                f"the hidden states of {type(base_of(teacher.model)).__name__} alone do not give its logits; train "
                "without the cache"
            )
        pieces = zip(parts, states.split([part.count for part in parts]), strict=True)
        return {
            part.key: store.kept(piece, teacher.head)
            for part, piece in pieces
            if part.key is not None and part.key not in store
        }


def _length(row: Any) -> int:
    ids = row.get("input_ids") if isinstance(row, Mapping) else None
    return 0 if ids is None else len(ids)
