"""Divergences between a frozen teacher's and the student's next-token distributions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.objective.fused import KlWithSlope

DIVERGENCES = ("kl", "logit_difference")
# Of the tokens that a teacher finds likeliest, so many are compared by `logit_difference`.
TOP_TOKENS = 10


def kl_divergence(teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    """Forward KL from teacher to student at a temperature (the a_1 and a_2 of equation 1).

    Args:
        teacher: Logits, shape (N, V_t), floating point.
        student: Logits, shape (N, V_s), the dtype of ``teacher``. Where the two widths differ, the embeddings were
            padded differently: only the ids that both have are compared.
        temperature: Divides both logits; > 0.

    Returns:
        KL(softmax(teacher / T) || softmax(student / T)) in nats, shape (N,). Exactly 0 where both rows are equal.
    """
    width = min(teacher.size(-1), student.size(-1))
    teacher_log = torch.log_softmax(teacher[:, :width] / temperature, dim=-1)
    student_log = torch.log_softmax(student[:, :width] / temperature, dim=-1)
    return (teacher_log.exp() * (teacher_log - student_log)).sum(dim=-1)


def logit_difference(teacher: Tensor, student: Tensor) -> Tensor:
    """Logit difference inhibition: squared differences on the tokens that the teacher finds likeliest (ELODI).

    Zhao et al. 2022 take logits as they are. Those of two language models differ by a constant that says nothing, so
    log-probabilities are compared here.

    Args:
        teacher: Logits, shape (N, V_t), floating point.
        student: Logits, shape (N, V_s), the dtype of ``teacher``; only the ids that both have are compared.

    Returns:
        Shape (N,), >= 0, in squared nats.
    """
    width = min(teacher.size(-1), student.size(-1))
    student_log = torch.log_softmax(student[:, :width], dim=-1)
    highest, where = torch.log_softmax(teacher[:, :width], dim=-1).topk(min(TOP_TOKENS, width), dim=-1)
    return (student_log.gather(-1, where) - highest).square().sum(dim=-1)


@dataclass(frozen=True)
class Divergence:
    """How far the student is from a teacher: ``kl`` at a temperature (``fast``: its gradient is made by hand beside
    the value, instead of by autograd), or ``logit_difference``."""

    name: str
    temperature: float
    fast: bool = False

    def __post_init__(self) -> None:
        if self.name not in DIVERGENCES:
            raise MuscleError(f"divergence is {self.name!r}; choose one of {', '.join(DIVERGENCES)}")

    def __call__(self, teacher: Tensor, student: Tensor) -> Tensor:
        """Of logits (n, V) each, the teacher's without gradient: (n,)."""
        if self.name == "logit_difference":
            return logit_difference(teacher, student)
        if self.fast:
            return KlWithSlope.apply(student, teacher, self.temperature)
        return kl_divergence(teacher, student, self.temperature)


def blended(old: Tensor, new: Tensor, share_old: Tensor, share_new: Tensor) -> Tensor:
    """Logits whose probabilities are the weighted geometric mean of both teachers': of (n, V_old) and (n, V), with
    shares (n,) >= 0, to (n, V'), V' the ids that both have; where both shares are 0 the result means nothing."""
    width = min(old.size(-1), new.size(-1))
    share = (share_old / (share_old + share_new).clamp(min=torch.finfo(old.dtype).tiny)).unsqueeze(-1)
    return share * old[:, :width] + (1 - share) * new[:, :width]


def label_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability, (N,), nats, of each row's label (N,), int64, by logits (N, V) at temperature 1."""
    return torch.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
