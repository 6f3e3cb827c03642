"""The masks that have a name: the paper's, the field's, and those that need no labels.

Each function's docstring names its source; docs/explanation/objective.md has the table with equations.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from muscle_hf.errors import MuscleError
from muscle_hf.objective.divergence import label_log_likelihood
from muscle_hf.objective.masks import Mask, MaskFunction, widest_float

_STUDENT, _OLD, _NEW = (frozenset({name}) for name in ("student", "old", "new"))
_BOTH = _OLD | _NEW


# ---- The paper's ----


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


# ---- The field's ----


def old_right_student_wrong(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """Follow v1 only where that repairs something: v1 right and the student wrong."""
    return old_right(student, old, new, labels) & student_wrong(student, old, new, labels)


def focal(alpha: float = 1.0, beta: float = 5.0) -> MaskFunction:
    """Focal distillation: (alpha + beta [v1 right]) KL(v1), nothing of v2 (Yan et al. 2021)."""

    def focal(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
        weight = alpha + beta * old_right(student, old, new, labels).to(old.dtype)
        return torch.stack([weight, torch.zeros_like(weight), torch.zeros_like(weight)], dim=-1)

    return focal


def dissonance(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """New-error dissonance: the label's cross-entropy once more where v1 is right (Bansal et al. 2019).

    No teacher is followed, so only the label counts: with lambda, L = (1 - lambda + lambda [v1 right]) CE.
    """
    right = old_right(student, old, new, labels).to(old.dtype)
    return torch.stack([torch.zeros_like(right), torch.zeros_like(right), right], dim=-1)


def margin(margin: float = 0.1) -> MaskFunction:
    """Follow v1 where it gives the label a log-probability higher by more than a margin, in nats (Zhu et al. 2024)."""

    def margin_gate(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
        return _advantage(student, old, new, labels) > margin

    return margin_gate


def label_likelihood(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """Follow both, each by its share of the probability that they give the label: p_1 / (p_1 + p_2)."""
    return torch.sigmoid(_old_over_new(student, old, new, labels))


def sequence_likelihood(student: Tensor, old: Tensor, new: Tensor, labels: Tensor, sequence_ids: Tensor) -> Tensor:
    """The same for whole sequences, by their mean log-likelihood: a weight for each instance, as the paper suggests
    for large gaps between the versions."""
    return _share_in_sequence(_old_over_new(student, old, new, labels), sequence_ids)


def _old_over_new(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    return label_log_likelihood(old, labels) - label_log_likelihood(new, labels)


def _share_in_sequence(advantage: Tensor, sequence_ids: Tensor) -> Tensor:
    return torch.sigmoid(_mean_in_sequence(advantage, sequence_ids))


# ---- Without labels ----


def always_new(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """Follow v2 everywhere."""
    return torch.zeros_like(labels, dtype=torch.bool)


def mean(old_share: float = 0.5) -> MaskFunction:
    """Follow the mean of both teachers' probabilities, v1's with a share in [0, 1]."""
    if not 0 <= old_share <= 1:
        raise MuscleError(f"the mask mean({old_share}) needs v1's share, in [0, 1]")

    def mean_of_both(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
        return torch.full(labels.shape, old_share, dtype=widest_float(labels.device), device=labels.device)

    return mean_of_both


def more_confident(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    """Follow the teacher that gives its own first choice more probability; v2 if they are equal."""
    return _confidence(student, old, new, labels) > 0


def more_confident_sequence(student: Tensor, old: Tensor, new: Tensor, labels: Tensor, sequence_ids: Tensor) -> Tensor:
    """The same for whole sequences, by the mean log-probability of the first choices."""
    return _positive_in_sequence(_confidence(student, old, new, labels), sequence_ids)


def _confidence(student: Tensor, old: Tensor, new: Tensor, labels: Tensor) -> Tensor:
    return old.log_softmax(dim=-1).amax(dim=-1) - new.log_softmax(dim=-1).amax(dim=-1)


def _mean_in_sequence(values: Tensor, sequence_ids: Tensor) -> Tensor:
    sequences = int(sequence_ids.max()) + 1 if sequence_ids.numel() else 0
    totals = values.new_zeros(sequences).index_add_(0, sequence_ids, values)
    counts = values.new_zeros(sequences).index_add_(0, sequence_ids, torch.ones_like(values))
    return (totals / counts.clamp(min=1))[sequence_ids]


# ---- Names ----

MASKS: dict[str, Mask] = {
    mask.name: mask
    for mask in (
        Mask("student_wrong", student_wrong, reads=_STUDENT),
        Mask("old_right", old_right, reads=_OLD),
        Mask("always_old", always_old, reads=frozenset(), reads_labels=False),
        Mask("old_likelier", old_likelier, needs_cross_entropy=True, reads=_STUDENT | _OLD),
        Mask(
            "old_likelier_sequence",
            old_likelier_sequence,
            needs_cross_entropy=True,
            reads=_STUDENT | _OLD,
            parts=(_advantage, _positive_in_sequence),
        ),
        Mask("old_right_student_wrong", old_right_student_wrong, reads=_STUDENT | _OLD),
        Mask("dissonance", dissonance, reads=_OLD),
        Mask("label_likelihood", label_likelihood, reads=_BOTH),
        Mask("sequence_likelihood", sequence_likelihood, reads=_BOTH, parts=(_old_over_new, _share_in_sequence)),
        Mask("always_new", always_new, reads=frozenset(), reads_labels=False),
        Mask("more_confident", more_confident, reads=_BOTH, reads_labels=False),
        Mask(
            "more_confident_sequence",
            more_confident_sequence,
            reads=_BOTH,
            reads_labels=False,
            parts=(_confidence, _positive_in_sequence),
        ),
    )
}

# Masks with numbers: "mean" stands for "mean(0.5)".
_MASKS_WITH_NUMBERS: dict[str, Callable[..., Mask]] = {
    "focal": lambda *numbers: Mask("focal", focal(*numbers), reads=_OLD),
    "margin": lambda *numbers: Mask("margin", margin(*numbers), needs_cross_entropy=True, reads=_STUDENT | _OLD),
    "mean": lambda *numbers: Mask("mean", mean(*numbers), reads=frozenset(), reads_labels=False),
}
MASK_NAMES = (*MASKS, *_MASKS_WITH_NUMBERS)


def resolve_mask(mask: str | MaskFunction | Mask) -> Mask:
    """The mask that is meant: one of :data:`MASK_NAMES` (``mean``, ``focal`` and ``margin`` may have numbers:
    ``mean(0.65)``), ``"package.module:function"``, a function, or a :class:`Mask`."""
    if isinstance(mask, Mask):
        return mask
    if callable(mask):
        return Mask(getattr(mask, "__name__", type(mask).__name__), mask)
    if mask in MASKS:
        return MASKS[mask]
    if with_numbers := re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", mask):
        name, numbers = with_numbers.groups()
        if name in _MASKS_WITH_NUMBERS:
            return _with_numbers(name, numbers or "")
    module, separator, function = mask.partition(":")
    if not separator:
        raise MuscleError(
            f"unknown mask {mask!r}; choose one of {', '.join(MASK_NAMES)}, or name a function of your own as "
            "'package.module:function'"
        )
    from muscle_hf.user_code import about_to_run

    about_to_run(f"the Python module {module}, for the mask {function!r}")
    try:
        return Mask(mask, getattr(importlib.import_module(module), function))
    except (ImportError, AttributeError) as error:
        raise MuscleError(f"the mask {mask!r} cannot be imported: {error}") from error


def _with_numbers(name: str, numbers: str) -> Mask:
    try:
        values = [float(number) for number in numbers.split(",") if number.strip()]
        made = _MASKS_WITH_NUMBERS[name](*values)
    except MuscleError:
        raise
    except (TypeError, ValueError) as error:
        raise MuscleError(f"the mask {name}({numbers}) takes numbers, as in 'mean(0.65)' or 'focal(1, 5)'") from error
    return replace(made, name=f"{name}({', '.join(f'{value:g}' for value in values)})" if values else name)
