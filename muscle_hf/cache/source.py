"""Targets from the disk: what a teacher says of rows that it has seen before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.utils import logging

from muscle_hf.cache.compact import CompactStream
from muscle_hf.cache.keys import KeyRules, SequenceKey, row_keys
from muscle_hf.cache.store import HiddenStore
from muscle_hf.objective.chunked import Stream
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.teacher import Teacher

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class _Kept:
    """What a cache holds of a batch.

    Args:
        batch: Which.
        parts: Its sequences with trained tokens, in the order of these.
        hidden: Of each, on the batch's device; None where it is not there.
        missing: (B,), boolean, on the CPU: rows with a sequence that is not there.
    """

    batch: Batch
    parts: list[SequenceKey]
    hidden: list[Tensor | None]
    missing: Tensor


class CachedTargets:
    """A cache in front of a teacher: what is there is read, what is missing is computed and put.

    Args:
        teacher: Whose head is apart.
        store: Of its hidden states.
        rules: What these depend on.
    """

    def __init__(self, teacher: Teacher, store: HiddenStore, rules: KeyRules):
        self.teacher, self.store, self.rules = teacher, store, rules
        self._kept: _Kept | None = None

    @property
    def head(self) -> Head | None:
        """The teacher's."""
        return self.teacher.head

    def prepare(self, batch: Batch) -> _Kept:
        """Read what is there of a batch, ahead of :meth:`targets` and :meth:`work`."""
        if self._kept is None or self._kept.batch is not batch:
            self._kept = self._look_up(batch)
        return self._kept

    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        """As :meth:`~muscle_hf.teachers.teacher.Teacher.targets`."""
        kept = self.prepare(batch)
        missing = kept.missing if needed is None else kept.missing & needed.cpu()
        states = self.teacher.states(self.teacher.reading(batch), missing)
        if self.head is None:
            return self.teacher.stream(batch, states)
        if bool(missing.any()):
            states = self.store.kept(states, self.head)
        computed = states.split([part.count for part in kept.parts])
        fresh = [(part.key, piece) for part, piece in zip(kept.parts, computed, strict=True) if missing[part.row]]
        self.store.put([key for key, _ in fresh], [piece for _, piece in fresh])
        pieces = [own if known is None else known for own, known in zip(computed, kept.hidden, strict=True)]
        width = max((piece.size(-1) for piece in pieces), default=1)
        # Where nothing was computed, what is neither known nor needed is one column of zeros.
        hidden = torch.cat([p if p.size(-1) == width else p.new_zeros(len(p), width) for p in pieces] or [computed[0]])
        return CompactStream(hidden, None, self.store.form) if self.store.form else self.teacher.stream(batch, hidden)

    def work(self, batch: Batch) -> float:
        """As :meth:`~muscle_hf.teachers.teacher.Teacher.work`, of the rows that are not there."""
        return self.teacher.work(batch) * float(self.prepare(batch).missing.float().mean())

    def silent(self, batch: Batch) -> Tensor | None:
        """As :meth:`~muscle_hf.teachers.teacher.Teacher.silent`."""
        return self.teacher.silent(batch)

    def flush(self) -> None:
        """Write to the disk what is only in memory."""
        self.store.flush()

    def _look_up(self, batch: Batch) -> _Kept:
        # A key is of the row as it came: what was cut off may count for some models.
        whole = self.teacher.reading(batch.whole or batch)
        parts = row_keys(whole.inputs, whole.labels, self.rules)
        if any(part.key is None for part in parts):
            logger.warning_once(
                "The teacher cache does not hold some rows, of which it is not known what all of their content is "
                "(which images of the batch, say); teachers compute them at every step, unless batches are one row."
            )
        hidden = self.store.get([part.key for part in parts])
        missing = torch.zeros(len(batch), dtype=torch.bool)
        missing[[part.row for part, piece in zip(parts, hidden, strict=True) if piece is None]] = True
        device = batch.labels.device
        return _Kept(batch, parts, [None if piece is None else _moved(piece, device) for piece in hidden], missing)


def _moved(kept: Tensor, device: torch.device) -> Tensor:
    # From memory that is pinned a GPU fetches by itself, while the files of the next row are read.
    return kept.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else kept.to(device)
