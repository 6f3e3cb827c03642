"""A teacher's distribution in a few numbers per token: its k likeliest tokens, and all the others as one.

Far smaller than hidden states where k is far below their width, and needs no output head of the teacher, but not
exact: inside the bucket of the rest the student is not told anything. The KL of the coarser distributions is never
above the true one (data processing inequality), and equals it when k is the whole vocabulary.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.losses.divergence import label_log_likelihood
from muscle_hf.teachers.cache.fingerprint import Fingerprint
from muscle_hf.teachers.cache.shards import Column, Row
from muscle_hf.teachers.cache.store import SHARD_BYTES, Key, RowStore


@dataclass(frozen=True)
class CompactLogits:
    """What is kept of a teacher's logits at N tokens.

    Args:
        log_probabilities: Of the k likeliest tokens at the temperature, falling; (N, k) float32.
        ids: Of these tokens; (N, k) int32. The first is the teacher's prediction.
        log_rest: Log of the probability of all other tokens together, at the temperature; (N,) float32, -inf if none.
        label_log_likelihood: Of the right answer at temperature 1, for masks; (N,) float32.
    """

    log_probabilities: Tensor
    ids: Tensor
    log_rest: Tensor
    label_log_likelihood: Tensor

    @classmethod
    def of(
        cls, logits: Tensor, labels: Tensor, k: int, temperature: float, vocabulary: int | None = None
    ) -> CompactLogits:
        """Reduce logits.

        Args:
            logits: (N, V), floating point.
            labels: (N,), int64.
            k: Tokens to keep, 1 <= k; all of them if k >= V.
            temperature: The run's T, > 0.
            vocabulary: Ids below this are compared: the smaller width where teacher and student are padded to
                different ones. All of V by default.

        Raises:
            MuscleError: k < 1.
        """
        if k < 1:
            raise MuscleError(f"k is {k}; at least one token has to be kept")
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        scaled = torch.log_softmax(logits[:, :vocabulary] / temperature, dim=-1)
        top, ids = scaled.topk(min(k, scaled.size(-1)), dim=-1)
        rest = scaled.scatter(-1, ids, -torch.inf).logsumexp(dim=-1)
        likelihood = label_log_likelihood(logits, labels)
        return cls(top.float(), ids.int(), rest.float(), likelihood.float())

    @property
    def predictions(self) -> Tensor:
        """The teacher's argmax, (N,) int64."""
        return self.ids[:, 0].long()

    def to_row(self) -> dict[str, Tensor]:
        """As columns of a store."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def compact_kl(teacher: CompactLogits, student: Tensor, temperature: float) -> Tensor:
    """KL from teacher to student at a temperature, over the teacher's k tokens and the rest as one.

    Args:
        teacher: Of the same N tokens, reduced at the same temperature.
        student: Logits, (N, V) of the compared ids, float32 or float64.
        temperature: > 0.

    Returns:
        (N,), nats; at most :func:`muscle_hf.losses.kl_divergence`, and equal to it where nothing is in the rest.
    """
    return compact_kl_and_slope(teacher, student, temperature)[0]


def compact_kl_and_slope(teacher: CompactLogits, student: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """:func:`compact_kl`, and T times its gradient in the student's logits, written out.

    Returns:
        (N,) with gradient, and (N, V) without: softmax(student / T) minus the teacher's probabilities, those of the
        rest being spread as the student spreads its own.
    """
    ids = teacher.ids.long()
    scaled = torch.log_softmax(student / temperature, dim=-1)
    teacher_log = teacher.log_probabilities.to(scaled)
    some = torch.isfinite(teacher.log_rest)
    # 0 log 0 = 0: where the teacher has no rest, nothing of it must reach the gradient.
    rest_log = torch.where(some, teacher.log_rest, 0).to(scaled)
    own_rest = scaled.scatter(-1, ids, -torch.inf)
    own_rest = torch.where(some.unsqueeze(-1), own_rest, scaled).logsumexp(dim=-1)
    inside = (teacher_log.exp() * (teacher_log - scaled.gather(-1, ids))).sum(dim=-1)
    outside = torch.where(some, rest_log.exp() * (rest_log - own_rest), torch.zeros_like(rest_log))
    with torch.no_grad():
        probability = scaled.exp()
        ratio = torch.where(some, (rest_log - own_rest).exp(), 0)
        target = (probability * ratio.unsqueeze(-1)).scatter(-1, ids, teacher_log.exp())
    return inside + outside, probability - target


class CompactStore(RowStore):
    """Compact cache of a teacher: :class:`CompactLogits` at a sequence's trained positions.

    Args:
        folder: The cache's folder, shared by any teachers and runs.
        fingerprint: The teacher's.
        k: Tokens kept.
        temperature: The run's.
        vocabulary: How many ids are compared.
        shard_bytes: Size of a shard.

    Raises:
        MuscleError: k is out of range.
    """

    # The right answer's likelihood is kept too, so a row is another where its answers are.
    with_labels = True

    def __init__(
        self,
        folder: str | os.PathLike,
        fingerprint: Fingerprint | str,
        *,
        k: int,
        temperature: float,
        vocabulary: int,
        shard_bytes: int = SHARD_BYTES,
    ):
        if not 1 <= k <= vocabulary:
            raise MuscleError(f"k is {k}; it must be between 1 and the vocabulary's {vocabulary}")
        self.k, self.temperature, self.vocabulary = k, float(temperature), vocabulary
        columns = {
            "log_probabilities": Column(torch.float32, (k,)),
            "ids": Column(torch.int32, (k,)),
            "log_rest": Column(torch.float32),
            "label_log_likelihood": Column(torch.float32),
        }
        variant = f"top{k}-T{self.temperature:g}-V{vocabulary}"
        super().__init__(folder, fingerprint, columns, variant=variant, shard_bytes=shard_bytes)

    def get(self, keys: list[Key | None]) -> list[CompactLogits | None]:
        """What is kept of sequences; None where they are not here."""
        return [None if row is None else CompactLogits(**row) for row in self.get_rows(keys)]

    def row_of(self, hidden: Tensor, labels: Tensor, head: Callable[[Tensor], Tensor]) -> Row:
        """The row of one sequence; see :meth:`HiddenStore.row_of`."""
        return CompactLogits.of(head(hidden), labels, self.k, self.temperature, self.vocabulary).to_row()
