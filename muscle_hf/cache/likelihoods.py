"""How likely a teacher finds whole answers: one number a row, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from muscle_hf.cache.keys import TEXT_RULES, KeyRules, row_keys
from muscle_hf.cache.store import RowStore
from muscle_hf.objective.chunked import Stream, chunk_rows
from muscle_hf.objective.divergence import label_log_likelihood
from muscle_hf.objective.masks import widest_float
from muscle_hf.objective.whole_answers import AnswerStream
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.teacher import Teacher

VARIANT = "answers"
# In a run's folder, where there is no teacher cache.
FOLDER = "answer_likelihoods"
_COLUMN = "log_likelihood"


@dataclass(frozen=True)
class _Kept:
    """What is known of a batch.

    Args:
        batch: Which.
        read: Its answers in the teacher's own tokens.
        spoken: Rows whose answers it can read, (B,), boolean.
        keys: Of each row.
        numbers: (B,), on the CPU; nan where one is missing.
    """

    batch: Batch
    read: Batch
    spoken: Tensor
    keys: list[bytes | None]
    numbers: Tensor


class AnswerLikelihoods:
    """A teacher's log-likelihood of each row's answer (X4), in place of all that it says there.

    Its body sees a row once; four bytes are kept of it.

    Args:
        teacher: Reads the rows, in whatever tokens.
        open_store: Opens the store of the numbers; called when the first one is needed.
    """

    def __init__(self, teacher: Teacher, open_store: Callable[[], RowStore]):
        self.teacher, self._open_store = teacher, open_store
        self._kept: _Kept | None = None
        self._rules: KeyRules | None = None

    @cached_property
    def store(self) -> RowStore:
        """The numbers that are known already."""
        return self._open_store()

    @property
    def head(self) -> Head | None:
        """The teacher's."""
        return self.teacher.head

    def prepare(self, batch: Batch) -> _Kept:
        """Look up what is known of a batch, ahead of :meth:`targets` and :meth:`work`."""
        if self._kept is None or self._kept.batch is not batch:
            batch.require_apart("the log-likelihoods of whole answers")
            answers = batch.answers()
            read = self.teacher.spelling(answers)
            spoken = torch.zeros(len(batch), dtype=torch.bool, device=read.rows.device).index_fill_(0, read.rows, True)
            if (unread := self.teacher.silent(answers)) is not None:
                spoken = spoken.index_fill(0, answers.rows[unread], False)
            keys, numbers = self._keys(read), torch.zeros(len(batch)).masked_fill(spoken.cpu(), torch.nan)
            for row, found in enumerate(self.store.get_rows(keys)):
                if found is not None:
                    numbers[row] = found[_COLUMN][0]
            self._kept = _Kept(batch, read, spoken, keys, numbers)
        return self._kept

    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        """As :meth:`~muscle_hf.teachers.teacher.Teacher.targets`."""
        kept = self.prepare(batch)
        missing, numbers = kept.numbers.isnan(), kept.numbers
        if needed is not None:
            missing &= needed.cpu()
        if bool(missing.any()):
            numbers = torch.where(missing, self._computed(kept.read.trimmed(), missing), numbers)
            fresh = (missing & numbers.isfinite()).nonzero().squeeze(-1).tolist()
            columns = [{_COLUMN: numbers[row : row + 1]} for row in fresh]
            self.store.put_rows([kept.keys[row] for row in fresh], columns)
        known = numbers.to(batch.labels.device)[batch.rows]
        return AnswerStream(known, None, batch.own_tokens, batch.rows, self._spoken(batch))

    def _computed(self, read: Batch, missing: Tensor) -> Tensor:
        """The numbers of some rows, (B,), float32 on the CPU."""
        if not self.teacher.models:
            return self.teacher.log_likelihoods(read, missing)
        stream, rows = Stream(self.teacher.states(read, missing), self.head), read.rows
        places = missing.to(rows.device)[rows].nonzero().squeeze(-1)
        size = max(1, len(places)) if self.head is None else chunk_rows(self.head.vocabulary, rows.device)
        sums = torch.zeros(len(read), dtype=widest_float(rows.device), device=rows.device)
        with torch.no_grad():
            for few in places.split(size):
                said = label_log_likelihood(stream.logits(few), read.targets[few])
                sums.index_add_(0, rows[few], said.to(sums))
        return sums.float().cpu()

    def work(self, batch: Batch) -> float:
        """As :meth:`~muscle_hf.teachers.teacher.Teacher.work`, of the rows that are not known."""
        return self.teacher.work(batch) * float(self.prepare(batch).numbers.isnan().float().mean())

    def silent(self, batch: Batch) -> Tensor | None:
        """Tokens that are of no answer, or of one that the teacher cannot read."""
        spoken = self._spoken(batch)
        return None if bool(spoken.all()) else ~spoken

    def _spoken(self, batch: Batch) -> Tensor:
        return batch.of_answers & self.prepare(batch).spoken[batch.rows]

    def flush(self) -> None:
        """Write to the disk what is only in memory."""
        if "store" in vars(self):
            self.store.flush()

    def _keys(self, read: Batch) -> list[bytes | None]:
        """Of each row: what the teacher reads, and which tokens of it are the answer."""
        known = self._rules or (KeyRules.of(self.teacher.model, read.kind) if self.teacher.models else TEXT_RULES)
        self._rules = replace(known, spells=True)
        keys: list[bytes | None] = [None] * len(read)
        for part in row_keys(read.inputs, read.labels, self._rules):
            keys[part.row] = part.key
        return keys
