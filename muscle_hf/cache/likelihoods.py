"""How likely a teacher finds whole answers: one number a row, computed once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from muscle_hf.cache.keys import TEXT_RULES, KeyRules, row_keys
from muscle_hf.cache.source import InFront, Known
from muscle_hf.cache.store import RowStore
from muscle_hf.objective.chunked import Stream, chunk_rows
from muscle_hf.objective.divergence import label_log_likelihood
from muscle_hf.objective.masks import widest_float
from muscle_hf.objective.whole_answers import AnswerStream
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.kinds import kind_of
from muscle_hf.teachers.teacher import Teacher

VARIANT = "answers"
# In a run's folder, where there is no teacher cache.
FOLDER = "answer_likelihoods"
_COLUMN = "log_likelihood"


@dataclass(frozen=True)
class _KnownAnswers(Known):
    """What is kept of a batch's answers: these in the teacher's own tokens, the rows that it can read, (B,), boolean,
    and of each row its key and its number, (B,), on the CPU, nan where that is missing."""

    read: Batch
    spoken: Tensor
    keys: list[bytes | None]
    numbers: Tensor


class AnswerLikelihoods(InFront[_KnownAnswers]):
    """A teacher's log-likelihood of each row's answer (X4), in place of all that it says there.

    Its body sees a row once; four bytes are kept of it, in a store that is opened when the first one is needed.
    """

    def __init__(self, teacher: Teacher, open_store: Callable[[], RowStore]):
        super().__init__(teacher)
        self._open_store = open_store

    @cached_property
    def store(self) -> RowStore:
        """The numbers that are known already."""
        return self._open_store()

    @cached_property
    def _rules(self) -> KeyRules:
        models = self.teacher.models
        return replace(KeyRules.of(models[0], kind_of(models[0])) if models else TEXT_RULES, spells=True)

    def _look_up(self, batch: Batch) -> _KnownAnswers:
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
        return _KnownAnswers(batch, numbers.isnan(), read, spoken, keys, numbers)

    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        known = self.prepare(batch)
        missing = known.missing if needed is None else known.missing & needed.cpu()
        numbers = known.numbers
        if bool(missing.any()):
            numbers = torch.where(missing, self._computed(known.read.trimmed(), missing), numbers)
            fresh = (missing & numbers.isfinite()).nonzero().squeeze(-1).tolist()
            columns = [{_COLUMN: numbers[row : row + 1]} for row in fresh]
            self.store.put_rows([known.keys[row] for row in fresh], columns)
        of_tokens = numbers.to(batch.labels.device)[batch.rows]
        return AnswerStream(of_tokens, None, batch.own_tokens, batch.rows, self._spoken(batch))

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

    def silent(self, batch: Batch) -> Tensor | None:
        # Of no answer, or of one that the teacher cannot read.
        spoken = self._spoken(batch)
        return None if bool(spoken.all()) else ~spoken

    def _spoken(self, batch: Batch) -> Tensor:
        return batch.of_answers & self.prepare(batch).spoken[batch.rows]

    def flush(self) -> None:
        if "store" in vars(self):
            self.store.flush()
        self.teacher.flush()

    def _keys(self, read: Batch) -> list[bytes | None]:
        """Of each row: what the teacher reads, and which tokens of it are the answer."""
        keys: list[bytes | None] = [None] * len(read)
        for part in row_keys(read.inputs, read.labels, self._rules):
            keys[part.row] = part.key
        return keys
