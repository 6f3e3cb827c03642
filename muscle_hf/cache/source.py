"""Targets from the disk: what a teacher says of rows that it has seen before."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor
from transformers.utils import logging

from muscle_hf.cache.compact import CompactStream
from muscle_hf.cache.keys import KeyRules, SequenceKey, row_keys
from muscle_hf.cache.store import HiddenStore
from muscle_hf.objective.chunked import Stream
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.teacher import TargetSource, Teacher

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Known:
    """What is kept of a batch; ``missing``, (B,), boolean, on the CPU: rows of which something is not there."""

    batch: Batch
    missing: Tensor


_Known = TypeVar("_Known", bound=Known)


class InFront(TargetSource, Generic[_Known]):
    """A cache in front of a teacher: what is there is read, what is missing is computed and put."""

    def __init__(self, teacher: Teacher):
        self.teacher = teacher
        self._known: _Known | None = None

    @property
    def head(self) -> Head | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The teacher's."""
        return self.teacher.head

    def prepare(self, batch: Batch) -> _Known:
        """Read what is there of a batch, ahead of :meth:`targets` and :meth:`work`."""
        if self._known is None or self._known.batch is not batch:
            self._known = self._look_up(batch)
        return self._known

    @abstractmethod
    def _look_up(self, batch: Batch) -> _Known: ...

    def work(self, batch: Batch) -> float:
        return self.teacher.work(batch) * float(self.prepare(batch).missing.float().mean())


@dataclass(frozen=True)
class _KnownStates(Known):
    """Of each sequence with trained tokens in a batch its hidden states, on the batch's device; None where they are
    not there."""

    parts: list[SequenceKey]
    hidden: list[Tensor | None]


class CachedTargets(InFront[_KnownStates]):
    """A teacher's hidden states, from a store; ``rules`` say what these depend on."""

    def __init__(self, teacher: Teacher, store: HiddenStore, rules: KeyRules):
        super().__init__(teacher)
        self.store, self.rules = store, rules

    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        known = self.prepare(batch)
        missing = known.missing if needed is None else known.missing & needed.cpu()
        states = self.teacher.states(self.teacher.reading(batch), missing)
        if self.head is None:
            return self.teacher.stream(batch, states)
        if bool(missing.any()):
            states = self.store.kept(states, self.head)
        computed = states.split([part.count for part in known.parts])
        fresh = [(part.key, piece) for part, piece in zip(known.parts, computed, strict=True) if missing[part.row]]
        self.store.put([key for key, _ in fresh], [piece for _, piece in fresh])
        pieces = [own if there is None else there for own, there in zip(computed, known.hidden, strict=True)]
        width = max((piece.size(-1) for piece in pieces), default=1)
        # Where nothing was computed, what is neither known nor needed is one column of zeros.
        hidden = torch.cat([p if p.size(-1) == width else p.new_zeros(len(p), width) for p in pieces] or [computed[0]])
        return CompactStream(hidden, None, self.store.form) if self.store.form else self.teacher.stream(batch, hidden)

    def silent(self, batch: Batch) -> Tensor | None:
        return self.teacher.silent(batch)

    def flush(self) -> None:
        self.store.flush()

    def _look_up(self, batch: Batch) -> _KnownStates:
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
        return _KnownStates(batch, missing, parts, [None if p is None else _moved(p, device) for p in hidden])


def _moved(kept: Tensor, device: torch.device) -> Tensor:
    # From memory that is pinned a GPU fetches by itself, while the files of the next row are read.
    return kept.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else kept.to(device)
