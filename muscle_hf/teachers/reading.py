"""How a teacher reads rows that are in another tokenizer's ids, and what it says of the student's tokens there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.errors import MuscleError
from muscle_hf.objective.chunked import Head, Stream
from muscle_hf.objective.divergence import Divergence
from muscle_hf.teachers.batch import IGNORED, Batch, sequences_of
from muscle_hf.tokens.levels import Vocabularies, compare_vocabularies

# Log-probability of what cannot be: finite, since masks and temperatures calculate with it.
FLOOR = -1e4
# Rows of which it is remembered whether they are read: epochs come back to them.
_KEPT_ROWS = 2**16
# Inputs of token ids.
_IDS = ("input_ids", "decoder_input_ids")


class Reader(ABC):
    """Reads rows of the student's ids for a teacher with another tokenizer."""

    @abstractmethod
    def reading(self, batch: Batch) -> Batch:
        """As :meth:`~muscle_hf.teachers.Teacher.reading`."""

    @abstractmethod
    def silent(self, batch: Batch) -> Tensor | None:
        """As :meth:`~muscle_hf.teachers.Teacher.silent`."""

    @abstractmethod
    def stream(self, batch: Batch, states: Tensor, head: Head | None) -> Stream:
        """As :meth:`~muscle_hf.teachers.Teacher.stream`."""


class RenumberingReader(Reader):
    """For a teacher that has the student's tokens under other ids: it reads the same row of tokens.

    A row, or a part of a row that packs several, is not read where the teacher has no such token, or would have
    segmented its text otherwise.

    Args:
        vocabularies: Of both, renumbered.
    """

    def __init__(self, vocabularies: Vocabularies):
        self.vocabularies = vocabularies
        self._agrees = lru_cache(maxsize=_KEPT_ROWS)(lambda ids: vocabularies.agree(list(ids)))

    def reading(self, batch: Batch) -> Batch:
        inputs = dict(batch.inputs)
        for name in (name for name in _IDS if isinstance(inputs.get(name), Tensor)):
            inputs[name] = self._numbered(inputs[name]).clamp(min=0)
        if batch.kind.generates_text and isinstance(inputs.get("labels"), Tensor):
            # Of which encoder-decoders make what the decoder reads.
            inputs["labels"] = self._numbered(inputs["labels"])
        return replace(batch, inputs=inputs, whole=None if batch.whole is None else self.reading(batch.whole))

    def _numbered(self, ids: Tensor) -> Tensor:
        """The teacher's ids of the student's, -100 where there is none."""
        size = len(self.vocabularies.to_old)
        own = functional.pad(self.vocabularies.to_old, (0, 1), value=-1).to(ids.device)
        found = own[torch.where((ids >= 0) & (ids < size), ids, size)]
        return found.masked_fill(found < 0, IGNORED)

    def silent(self, batch: Batch) -> Tensor | None:
        ids, positions = batch.inputs["input_ids"], batch.inputs.get("position_ids")
        parts = sequences_of(ids, positions, predicts_next=False)
        mask = batch.inputs.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.dim() != 2 else mask != 0
        unread = torch.zeros(int(parts.max()) + 1, dtype=torch.bool)
        own, numbers = (tensor[real].cpu().numpy() for tensor in (ids, parts))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, row in zip(starts, np.split(own, starts[1:]), strict=True):
            unread[numbers[start]] = not self._agrees(tuple(row.tolist()))
        if not bool(unread.any()):
            return None
        rows, columns = batch.places
        return unread.to(ids.device)[parts[rows, columns if batch.kind.shifts_labels else 0]]

    def stream(self, batch: Batch, states: Tensor, head: Head | None) -> Stream:
        if not batch.kind.generates_text:
            return Stream(states, head)
        known = self.vocabularies.known.to(states.device)
        columns = self.vocabularies.to_old.to(states.device)[known]
        return RenumberedStream(states, head, columns, known, self.silent(batch))


@dataclass(frozen=True)
class RenumberedStream(Stream):
    """What a teacher says that has the student's tokens under other ids.

    Tokens that it does not have get no target: both distributions are those over what both vocabularies have.

    Args:
        columns: The teacher's ids of the shared tokens, (S,), int64.
        known: The student's ids of the same, (S,), int64, ascending.
        unread: (N,), boolean: tokens of rows that the teacher cannot read; None if there are none.
    """

    columns: Tensor
    known: Tensor
    unread: Tensor | None

    @property
    def leans(self) -> bool:
        """Masks are shown what the student says itself where the teacher says nothing."""
        return self.unread is not None

    def _shared(self, rows: slice | Tensor) -> Tensor:
        return super().logits(rows).index_select(-1, self.columns)

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        shared = self._shared(rows).log_softmax(dim=-1)
        width = int(self.known[-1]) + 1 if student is None else student.size(-1)
        found = shared.new_full((len(shared), width), FLOOR).index_copy_(-1, self.known, shared)
        if self.unread is None or student is None:
            return found
        own = student if chosen is None else student[chosen]
        return torch.where(self.unread[rows].unsqueeze(-1), own.to(found), found)

    def distance(
        self, rows: slice | Tensor, student: Tensor, divergence: Divergence, logits: Callable[[], Tensor]
    ) -> Tensor:
        return divergence(self._shared(rows).to(student), student.index_select(-1, self.known))


def reader_of(old_tokenizer: Any, tokenizer: Any) -> Reader:
    """How a model reads rows of another tokenizer's ids.

    Args:
        old_tokenizer: The model's.
        tokenizer: That of the rows, which is another.

    Raises:
        MuscleError: The tokens of one are not byte strings, so that they cannot be compared.
    """
    vocabularies = compare_vocabularies(old_tokenizer, tokenizer)
    if vocabularies.level == "renumbered":
        return RenumberingReader(vocabularies)
    raise MuscleError("the old and the new model have different vocabularies")
