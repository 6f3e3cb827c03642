"""Equations (1) and (5): the loss of each trained token."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.errors import MuscleError
from muscle_hf.losses.divergence import kl_divergence
from muscle_hf.losses.masks import MASKS, Mask


@dataclass(frozen=True)
class TokenTerms:
    """What the objective says about each trained token; every tensor has shape (N,) and the student's dtype.

    Args:
        loss: The token's part of L (equation 5), with gradient; its sum over tokens divided by n is the loss.
        compatibility: Its part of L_comp alone (equation 1), with gradient.
        weight_old: m_i, or w_i for a mixture; no gradient.
        kl_old: a_1 where the token follows the old model at all, else 0; no gradient.
        kl_new: a_2 where the token follows the new model at all, else 0; no gradient.
        cross_entropy: -log p(label), with ``label_smoothing`` if set; no gradient.
        correct: 1 where the student's argmax is the label; no gradient.
    """

    loss: Tensor
    compatibility: Tensor
    weight_old: Tensor
    kl_old: Tensor
    kl_new: Tensor
    cross_entropy: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Objective:
    """The objective of MUSCLE with its settings.

    Args:
        temperature: T of equation (1).
        mask: Which tokens follow the old model.
        compatibility_weight: lambda of equation (5); 1 leaves the cross-entropy out.
        scale_by_temperature_squared: Multiply L_comp by T^2 (not in the paper).
        label_smoothing: Of the cross-entropy; as ``torch.nn.functional.cross_entropy``.

    Raises:
        MuscleError: A setting is out of range.
    """

    temperature: float = 2.0
    mask: Mask = field(default_factory=lambda: MASKS["student_wrong"])
    compatibility_weight: float = 1.0
    scale_by_temperature_squared: bool = False
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise MuscleError(f"temperature is {self.temperature}; it must be a finite number > 0 (the paper uses 2)")
        if not 0 < self.compatibility_weight <= 1:
            raise MuscleError(
                f"compatibility_weight (lambda) is {self.compatibility_weight}; it must be in (0, 1]. For plain "
                "cross-entropy (lambda = 0) use transformers.Trainer: no teacher is needed."
            )
        if not 0 <= self.label_smoothing < 1:
            raise MuscleError(f"label_smoothing_factor is {self.label_smoothing}; it must be in [0, 1)")
        if self.label_smoothing and self.compatibility_weight == 1:
            raise MuscleError(
                f"label_smoothing_factor is {self.label_smoothing}, but with compatibility_weight=1 there is no "
                "cross-entropy to smooth; lower compatibility_weight or remove label_smoothing_factor"
            )
        if self.mask.needs_cross_entropy and self.compatibility_weight == 1:
            warnings.warn(
                f"The mask {self.mask.name!r} is unstable without the auxiliary cross-entropy (paper, A.4): set "
                "compatibility_weight below 1.",
                UserWarning,
                stacklevel=3,
            )

    def __call__(self, student: Tensor, old: Tensor, new: Tensor, labels: Tensor, sequence_ids: Tensor) -> TokenTerms:
        """Evaluate the objective on the trained tokens of a batch.

        Args:
            student: Logits with gradient, shape (N, V), float32 or float64; N may be 0.
            old: Logits of the old task model, shape (N, V_old), same dtype.
            new: Logits of the new task model, shape (N, V), same dtype.
            labels: Ground-truth tokens, shape (N,), int64; none of them ignored.
            sequence_ids: The sequence in the batch that each row belongs to, shape (N,), int64.
        """
        frozen = student.detach()
        weight = self.mask(frozen, old, new, labels, sequence_ids)
        kl_old = _on_rows(weight > 0, old, student, self.temperature)
        kl_new = _on_rows(weight < 1, new, student, self.temperature)
        compatibility = weight * kl_old + (1 - weight) * kl_new
        if self.scale_by_temperature_squared:
            compatibility = compatibility * self.temperature**2
        lam = self.compatibility_weight
        cross_entropy = functional.cross_entropy(
            student if lam < 1 else frozen, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        return TokenTerms(
            loss=lam * compatibility + (1 - lam) * cross_entropy if lam < 1 else compatibility,
            compatibility=compatibility,
            weight_old=weight,
            kl_old=kl_old.detach(),
            kl_new=kl_new.detach(),
            cross_entropy=cross_entropy.detach(),
            correct=(frozen.argmax(dim=-1) == labels).to(student.dtype),
        )


def _on_rows(chosen: Tensor, teacher: Tensor, student: Tensor, temperature: float) -> Tensor:
    # A teacher is compared only where it counts: under a boolean mask both KLs together cost one.
    rows = chosen.nonzero().squeeze(-1)
    values = kl_divergence(teacher[rows], student[rows], temperature)
    return torch.zeros_like(student[:, 0]).index_put((rows,), values)
