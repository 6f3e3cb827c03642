"""Equations (1) and (5): the loss of each trained token."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.errors import MuscleError
from muscle_hf.objective.divergence import DIVERGENCES, Divergence, blended
from muscle_hf.objective.masks import Mask
from muscle_hf.objective.named import MASKS, resolve_mask

BLENDS = ("probabilities", "logits")
# Called with ``old`` or ``new`` and the numbers of some tokens, ascending; None: all of them.
TeacherLogits = Callable[[str, Tensor | None], Tensor]
# Called with the same, and the student's logits of these tokens, (n, V) with gradient: how far it is, (n,).
Distance = Callable[[str, Tensor | None, Tensor, Divergence], Tensor]


@dataclass(frozen=True)
class TokenTerms:
    """What the objective says about each trained token; every tensor has shape (N,) and the student's dtype.

    Args:
        loss: The token's part of L (equation 5), with gradient; its sum over tokens divided by n is the loss.
        compatibility: Its part of L_comp alone (equation 1, and what the mask gives the label within it), with
            gradient.
        weight_old: m_i, or w_i for a mixture; no gradient.
        weight_new: What the token follows the new model with: 1 - weight_old, unless the mask says otherwise.
        kl_old: a_1 where the token follows the old model at all, else 0; no gradient. Of another divergence than KL,
            or another blend of both, that.
        kl_new: a_2 where the token follows the new model at all, else 0; no gradient.
        labelled: 1 where the token has a right answer, 0 in rows without labels.
        cross_entropy: -log p(label), with ``label_smoothing`` if set; no gradient. 0 without a label.
        correct: 1 where the student's argmax is the label; no gradient. 0 without a label.
    """

    loss: Tensor
    compatibility: Tensor
    weight_old: Tensor
    weight_new: Tensor
    kl_old: Tensor
    kl_new: Tensor
    labelled: Tensor
    cross_entropy: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Objective:
    """The objective of MUSCLE with its settings.

    Args:
        temperature: T of equation (1).
        mask: Which tokens follow the old model.
        transfer_mask: The same in rows without labels, where there is no cross-entropy either; it may not look at
            labels.
        divergence: How far the student is from a teacher: ``kl``, or ``logit_difference``
            (:func:`~muscle_hf.objective.divergence.logit_difference`), which knows no temperature.
        blend: What a token follows that follows both teachers: the mean of their ``probabilities``, or of their
            ``logits``.
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
    transfer_mask: Mask = field(default_factory=lambda: resolve_mask("mean"))
    divergence: str = "kl"
    blend: str = "probabilities"

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
        if self.transfer_mask.reads_labels:
            raise MuscleError(
                f"transfer_mask is {self.transfer_mask.name!r}, which looks at the labels that transfer rows do not "
                "have; choose one of always_old, always_new, mean, more_confident, more_confident_sequence"
            )
        for name, value, known in (("divergence", self.divergence, DIVERGENCES), ("blend", self.blend, BLENDS)):
            if value not in known:
                raise MuscleError(f"{name} is {value!r}; choose one of {', '.join(known)}")
        if self.mask.needs_cross_entropy and self.compatibility_weight == 1:
            warnings.warn(
                f"The mask {self.mask.name!r} is unstable without the auxiliary cross-entropy (paper, A.4): set "
                "compatibility_weight below 1.",
                UserWarning,
                stacklevel=3,
            )

    @property
    def reads(self) -> frozenset[str]:
        """Whose logits the masks look at."""
        return self.mask.reads | self.transfer_mask.reads

    def weights(
        self,
        student: Tensor | None,
        old: Tensor | None,
        new: Tensor | None,
        labels: Tensor,
        sequence_ids: Tensor,
        labelled: Tensor | None = None,
    ) -> Tensor:
        """What each token follows, (N, 3): weights of the old model, of the new one, and of the label within L_comp.
        Arguments as of a call; logits that no mask reads may be None."""
        weight = self.mask(student, old, new, labels, sequence_ids)
        return self.joined(weight, labelled, lambda: self.transfer_mask(student, old, new, labels, sequence_ids))

    def joined(self, weight: Tensor, labelled: Tensor | None, of_transfer: Callable[[], Tensor]) -> Tensor:
        """The weights of labelled tokens, with those of the other tokens in their place."""
        if labelled is None or bool(labelled.all()):
            return weight
        without = of_transfer() * weight.new_tensor([1, 1, 0])
        return torch.where(labelled.unsqueeze(-1), weight, without)

    def __call__(
        self,
        student: Tensor,
        old: Tensor,
        new: Tensor,
        labels: Tensor,
        sequence_ids: Tensor,
        labelled: Tensor | None = None,
    ) -> TokenTerms:
        """Evaluate the objective on the trained tokens of a batch.

        Args:
            student: Logits with gradient, shape (N, V), float32 or float64; N may be 0.
            old: Logits of the old task model, shape (N, V_old), same dtype.
            new: Logits of the new task model, shape (N, V), same dtype.
            labels: Ground-truth tokens, shape (N,), int64; none of them ignored.
            sequence_ids: The sequence in the batch that each row belongs to, shape (N,), int64.
            labelled: Whether ``labels`` is a right answer there, shape (N,), boolean; by default it is.
        """
        teachers = {"old": old, "new": new}
        weight = self.weights(student.detach(), old, new, labels, sequence_ids, labelled)

        def of_teacher(role: str, rows: Tensor | None) -> Tensor:
            return teachers[role] if rows is None else teachers[role].index_select(0, rows)

        return self.terms(student, of_teacher, weight, labels, labelled)

    def terms(
        self,
        student: Tensor,
        of_teacher: TeacherLogits,
        weight: Tensor,
        labels: Tensor,
        labelled: Tensor | None = None,
        *,
        distance: Distance | None = None,
        fast: bool = False,
    ) -> TokenTerms:
        """Equations (1) and (5) of tokens whose weights are known.

        Args:
            student: Logits with gradient, shape (N, V).
            of_teacher: Gives a teacher's logits of the tokens that follow it, (n, V).
            weight: (N, 3), from :meth:`weights`.
            labels: (N,), int64.
            labelled: (N,), boolean; by default all are.
            distance: How far the student is from a teacher; by default the divergence from its logits.
            fast: Make the gradient of the KL by hand (:class:`~muscle_hf.objective.divergence.Divergence`).
        """
        frozen = student.detach()
        follows_old, follows_new, of_label = weight.unbind(-1)
        divergence = Divergence(self.divergence, self.temperature, fast)
        both = (follows_old > 0) & (follows_new > 0) & (self.blend == "logits")

        def of_one(role: str, rows: Tensor | None, own: Tensor) -> Tensor:
            if distance is not None:
                return distance(role, rows, own, divergence)
            return divergence(of_teacher(role, rows), own)

        def of_blend(rows: Tensor | None, own: Tensor) -> Tensor:
            shares = [share if rows is None else share[rows] for share in (follows_old, follows_new)]
            return divergence(blended(of_teacher("old", rows), of_teacher("new", rows), *shares), own)

        kl_old = _on_rows((follows_old > 0) & ~both, partial(of_one, "old"), student)
        kl_new = _on_rows((follows_new > 0) & ~both, partial(of_one, "new"), student)
        if self.blend == "logits":
            of_both = _on_rows(both, of_blend, student)
            kl_old, kl_new = torch.where(both, of_both, kl_old), torch.where(both, of_both, kl_new)
        compatibility = follows_old * kl_old + follows_new * kl_new
        if self.scale_by_temperature_squared:
            compatibility = compatibility * self.temperature**2
        lam, with_labels = self.compatibility_weight, bool((of_label > 0).any())
        # What the cross-entropy of each token counts in L.
        share = 1 - lam + lam * of_label if with_labels else 1 - lam
        share = share if labelled is None else share * labelled.to(weight)
        counts = isinstance(share, Tensor) or share > 0
        cross_entropy = functional.cross_entropy(
            student if counts else frozen, labels, reduction="none", label_smoothing=self.label_smoothing
        )
        known = torch.ones_like(follows_old) if labelled is None else labelled.to(student.dtype)
        return TokenTerms(
            loss=lam * compatibility + share * cross_entropy if counts else compatibility,
            compatibility=compatibility + of_label * cross_entropy if with_labels else compatibility,
            weight_old=follows_old,
            weight_new=follows_new,
            kl_old=kl_old.detach(),
            kl_new=kl_new.detach(),
            labelled=known,
            cross_entropy=cross_entropy.detach() * known,
            correct=(frozen.argmax(dim=-1) == labels).to(student.dtype) * known,
        )


def _on_rows(chosen: Tensor, distance: Callable[[Tensor | None, Tensor], Tensor], student: Tensor) -> Tensor:
    # A teacher is compared only where it counts: under a boolean mask both KLs together cost one.
    rows = chosen.nonzero().squeeze(-1)
    if len(rows) == len(chosen) > 0:
        return distance(None, student)
    own = student.index_select(0, rows)
    # Of no rows nothing is asked, but the student stays in the graph.
    values = distance(rows, own) if len(rows) else own[:, 0]
    return torch.zeros_like(student[:, 0]).index_put((rows,), values)
