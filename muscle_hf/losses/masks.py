"""Masks: which tokens follow the old model (m_i of equation 1 and the ablation of section 6.5).

A mask is a function ``(student, old, new, labels) -> weight``:

- ``student``, ``old``, ``new``: logits of the trained tokens, shape (N, V), float32 (or float64); no gradient;
- ``labels``: the ground-truth token of each row, shape (N,), int64;
- returns each row's weight on the old model, shape (N,): boolean for the paper's kind, or floating point in [0, 1]
  for the mixture ``w KL(old) + (1 - w) KL(new)``.

A mask that decides for whole sequences takes a fifth argument named ``sequence_ids``, shape (N,), int64: the index,
within the batch, of the sequence that each row belongs to.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.losses.divergence import label_log_likelihood

MaskFunction = Callable[..., Tensor]


def student_wrong(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """The method: follow v1 where the model being trained is wrong (equation 1)."""
    return student.argmax(dim=-1) != labels


def old_right(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """Follow v1 where v1's own prediction is right (section 6.5)."""
    return old.argmax(dim=-1) == labels


def always_old(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """Follow v1 everywhere: no mask (section 6.5)."""
    return torch.ones_like(labels, dtype=torch.bool)


def old_likelier(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """LL_L: follow v1 where it gives the label more probability than the student does (equation 2)."""
    return label_log_likelihood(student, labels) < label_log_likelihood(old, labels)


def old_likelier_sequence(student: Tensor, old: Tensor, new: Tensor, labels: Tensor, sequence_ids: Tensor) -> Tensor:
    """LL_S: follow v1 in the whole sequence where it gives the sequence more probability (equation 3)."""
    return _positive_in_sequence(_advantage(student, old, new, labels), sequence_ids)


def _advantage(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    return label_log_likelihood(old, labels) - label_log_likelihood(student, labels)


def _positive_in_sequence(advantage: Tensor, sequence_ids: Tensor) -> Tensor:
    sequences = int(sequence_ids.max()) + 1 if sequence_ids.numel() else 0
    totals = advantage.new_zeros(sequences).index_add_(0, sequence_ids, advantage)
    return (totals > 0)[sequence_ids]


EVERY_MODEL = frozenset({"student", "old", "new"})


@dataclass(frozen=True)
class Mask:
    """A mask function and what the trainer has to know about it.

    Args:
        name: As in ``MuscleConfig.mask``, or the function's own name.
        function: See the module's docstring.
        needs_cross_entropy: Whether training is unstable without the auxiliary cross-entropy (A.4).
        reads: Whose logits the function looks at, of ``student``, ``old`` and ``new``; the others may be None.
        parts: For a mask over sequences: a function (student, old, new, labels) -> (N,) of each token alone, and one
            (its joined values, sequence_ids) -> weight. Without them, whole sequences are looked at at once.
    """

    name: str
    function: MaskFunction
    needs_cross_entropy: bool = False
    reads: frozenset[str] = EVERY_MODEL
    parts: tuple[MaskFunction, MaskFunction] | None = None

    def __post_init__(self) -> None:
        parameters = list(inspect.signature(self.function).parameters.values())
        variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        takes_four = variadic or len([p for p in positional if p.name != "sequence_ids"]) >= 4
        required = [p for p in positional if p.default is p.empty and p.name != "sequence_ids"]
        if not takes_four or len(required) > 4:
            raise MuscleError(
                f"the mask {self.name!r} must be a function (student, old, new, labels[, sequence_ids]); "
                f"it takes ({', '.join(p.name for p in parameters)})"
            )

    @property
    def over_sequences(self) -> bool:
        """Whether a token's weight depends on the other tokens of its sequence."""
        return "sequence_ids" in inspect.signature(self.function).parameters

    def __call__(
        self, student: Tensor | None, old: Tensor | None, new: Tensor | None, labels: Tensor, sequence_ids: Tensor
    ) -> Tensor:
        """Each row's weight on the old model, shape (N,), in the dtype of the logits.

        Raises:
            MuscleError: The function returned another shape, or weights outside [0, 1].
        """
        extra = {"sequence_ids": sequence_ids} if self.over_sequences else {}
        dtype = next((logits.dtype for logits in (student, old, new) if logits is not None), torch.float32)
        return self.checked(self.function(student, old, new, labels, **extra), labels, dtype)

    def checked(self, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """The function's result as weights of a dtype.

        Raises:
            MuscleError: It has another shape than ``labels``, or values outside [0, 1].
        """
        if not isinstance(weight, Tensor) or weight.shape != labels.shape:
            shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
            raise MuscleError(f"the mask {self.name!r} returned {shape}; expected a tensor of shape ({len(labels)},)")
        if weight.dtype is torch.bool:
            return weight.to(dtype)
        weight = weight.detach().to(dtype)
        if not bool(((weight >= 0) & (weight <= 1)).all()):
            raise MuscleError(f"the mask {self.name!r} returned weights outside [0, 1] (or nan)")
        return weight


MASKS: dict[str, Mask] = {
    mask.name: mask
    for mask in (
        Mask("student_wrong", student_wrong, reads=frozenset({"student"})),
        Mask("old_right", old_right, reads=frozenset({"old"})),
        Mask("always_old", always_old, reads=frozenset()),
        Mask("old_likelier", old_likelier, needs_cross_entropy=True, reads=frozenset({"student", "old"})),
        Mask(
            "old_likelier_sequence",
            old_likelier_sequence,
            needs_cross_entropy=True,
            reads=frozenset({"student", "old"}),
            parts=(_advantage, _positive_in_sequence),
        ),
    )
}


def resolve_mask(mask: str | MaskFunction | Mask) -> Mask:
    """The mask that a name, an import path or a function stands for.

    Args:
        mask: A name in :data:`MASKS`, ``"package.module:function"``, a function, or a :class:`Mask`.

    Raises:
        MuscleError: Unknown name, a path that cannot be imported, or a function with another signature.
    """
    if isinstance(mask, Mask):
        return mask
    if callable(mask):
        return Mask(getattr(mask, "__name__", type(mask).__name__), mask)
    if mask in MASKS:
        return MASKS[mask]
    module, separator, function = mask.partition(":")
    if not separator:
        raise MuscleError(
            f"unknown mask {mask!r}; choose one of {', '.join(MASKS)}, or name a function of your own as "
            "'package.module:function'"
        )
    try:
        return Mask(mask, getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise MuscleError(f"the mask {mask!r} cannot be imported: {error}") from error
