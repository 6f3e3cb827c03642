"""Divergences between a frozen teacher's and the student's next-token distributions."""

from __future__ import annotations

import torch
from torch import Tensor


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


def label_log_likelihood(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each row's label at temperature 1.

    Args:
        logits: Shape (N, V), floating point.
        labels: Shape (N,), int64, each in [0, V).

    Returns:
        Shape (N,), nats.
    """
    return torch.log_softmax(logits, dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)
