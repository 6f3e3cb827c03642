"""Masks: what each trained token follows (m_i of equation 1, the ablation of section 6.5, and their generalisation).

A mask is a function ``(student, old, new, labels) -> weight``:

- ``student``, ``old``, ``new``: logits of the trained tokens, shape (N, V), float32 (or float64); no gradient;
- ``labels``: the ground-truth token of each row, shape (N,), int64;
- returns each row's weight on the old model, shape (N,): boolean for the paper's kind, or floating point in [0, 1]
  for the mixture ``w KL(old) + (1 - w) KL(new)``, whose gradient is that of the KL to the mean of both teachers'
  probabilities with these weights; or three weights >= 0 for each row, shape (N, 3): of ``KL(old)``, of ``KL(new)``
  and of the label's cross-entropy within the compatibility loss.

A mask that decides for whole sequences takes a fifth argument named ``sequence_ids``, shape (N,), int64: the index,
within the batch, of the sequence that each row belongs to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError

MaskFunction = Callable[..., Tensor]


EVERY_MODEL = frozenset({"student", "old", "new"})


def widest_float(device: torch.device) -> torch.dtype:
    """float64, or float32 where the device has no such."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class Mask:
    """A mask function and what the trainer has to know about it.

    Args:
        name: As in ``MuscleConfig.mask``, or the function's own name.
        function: See the module's docstring.
        needs_cross_entropy: Whether training is unstable without the auxiliary cross-entropy (A.4).
        reads: Whose logits the function looks at, of ``student``, ``old`` and ``new``; the others may be None.
        reads_labels: Whether it looks at the labels, so that it means nothing on rows without labels.
        parts: For a mask over sequences: a function (student, old, new, labels) -> (N,) of each token alone, and one
            (its joined values, sequence_ids) -> weight. Without them, whole sequences are looked at at once.
    """

    name: str
    function: MaskFunction
    needs_cross_entropy: bool = False
    reads: frozenset[str] = EVERY_MODEL
    reads_labels: bool = True
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
        """What each row follows: weights of KL(old), of KL(new) and of the label, (N, 3), of the logits' dtype, or the
        widest there is without any. Another shape, or weights out of range, are refused."""
        extra = {"sequence_ids": sequence_ids} if self.over_sequences else {}
        given = (logits.dtype for logits in (student, old, new) if logits is not None)
        dtype = next(given, widest_float(labels.device))
        return self.checked(self.function(student, old, new, labels, **extra), labels, dtype)

    def checked(self, weight: Tensor, labels: Tensor, dtype: torch.dtype) -> Tensor:
        """The function's result as (N, 3) weights of a dtype; refused if its shape is not that of ``labels``, or
        values lie outside [0, 1] (three columns: below 0)."""
        shape = tuple(weight.shape) if isinstance(weight, Tensor) else type(weight).__name__
        if shape not in ((len(labels),), (len(labels), 3)):
            raise MuscleError(
                f"the mask {self.name!r} returned {shape}; expected a tensor of shape ({len(labels)},) or "
                f"({len(labels)}, 3)"
            )
        mixture, in_range = weight.dim() == 1, weight.dtype is torch.bool
        weight = weight.detach().to(dtype)
        if not in_range and not bool(((weight >= 0) & (weight <= (1 if mixture else torch.finfo(dtype).max))).all()):
            limits = "outside [0, 1]" if mixture else "below 0 or infinite"
            raise MuscleError(f"the mask {self.name!r} returned weights {limits} (or nan)")
        return torch.stack([weight, 1 - weight, torch.zeros_like(weight)], dim=-1) if mixture else weight
