"""Errors of the old model that come back: what a compatibility model takes over although the new model had shed it.

The paper leaves open which of the old model's errors its method passes on (its limitations). They lie among the items
that the old model has wrong and the new one right: there a compatibility model that errs has lost something that the
update had gained, and one that errs with the old model's own wrong answer has, it seems, learned it from there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike

from muscle_hf.errors import MuscleError
from muscle_hf.metrics.flips import BoolArray, all_correct, as_answers, check_lengths, fell, ratio
from muscle_hf.metrics.smooth import as_scores, check_epsilon


@dataclass(frozen=True)
class InheritedErrors:
    """Which items are what, boolean arrays of shape ``(items,)``.

    Args:
        shed: The old model is wrong and the new one right: errors that the update sheds. The denominator.
        returned: Of these, the compatibility model is wrong again.
        inherited: Of those, with the old model's own wrong answer; None if the answers are unknown.
        settled: The old and the new model are both right: the denominator of ``fresh``.
        fresh: Of these, the compatibility model is wrong: an error that neither of the two made.
    """

    shed: BoolArray
    returned: BoolArray
    inherited: BoolArray | None
    settled: BoolArray
    fresh: BoolArray

    def to_dict(self) -> dict[str, float]:
        """Counts (by the names of the masks) and rates.

        ``return_rate`` and ``inheritance_rate`` are among the shed errors, ``fresh_rate`` among the settled items; nan
        where a denominator is 0. The two of ``inherited`` are left out if the answers are unknown.
        """
        masks = {name: getattr(self, name) for name in ("shed", "returned", "inherited", "settled", "fresh")}
        counts: dict[str, float] = {name: int(mask.sum()) for name, mask in masks.items() if mask is not None}
        rates = {"return_rate": ratio(counts["returned"], counts["shed"])}
        if "inherited" in counts:
            rates["inheritance_rate"] = ratio(counts["inherited"], counts["shed"])
        return counts | rates | {"fresh_rate": ratio(counts["fresh"], counts["settled"])}


def inherited_errors(
    old_correct: ArrayLike,
    new_correct: ArrayLike,
    compat_correct: ArrayLike,
    *,
    old_predictions: Any = None,
    compat_predictions: Any = None,
) -> InheritedErrors:
    """Which of the old model's errors a compatibility model makes again although the new model had shed them.

    Args:
        old_correct: Whether the old model is right, boolean, shape ``(items,)``.
        new_correct: The same of the new model (the plain update).
        compat_correct: The same of the compatibility model, or of a control to compare with.
        old_predictions: The old model's answers (indices or text), to tell its own wrong answer from another one.
        compat_predictions: The compatibility model's.

    Raises:
        MuscleError: Unequal lengths, or only one of the two sets of answers.

    Examples:
        >>> right = [False, False, False, True], [True, True, True, True], [False, False, True, False]
        >>> found = inherited_errors(*right, old_predictions=[1, 1, 1, 0], compat_predictions=[1, 2, 0, 3])
        >>> found.to_dict()["returned"], found.to_dict()["inherited"]
        (2, 1)
    """
    old, new, compat = all_correct(old_correct=old_correct, new_correct=new_correct, compat_correct=compat_correct)
    if (old_predictions is None) != (compat_predictions is None):
        raise MuscleError("give the answers of both models, old_predictions and compat_predictions, or of neither")
    shed, settled = ~old & new, old & new
    returned, inherited = shed & ~compat, None
    if old_predictions is not None:
        before = as_answers(old_predictions, "old_predictions")
        here = as_answers(compat_predictions, "compat_predictions")
        check_lengths(old_correct=old, old_predictions=before, compat_predictions=here)
        inherited = returned & (before == here)
    return InheritedErrors(shed, returned, inherited, settled, settled & ~compat)


def inherited_scores(
    old_scores: ArrayLike, new_scores: ArrayLike, compat_scores: ArrayLike, *, epsilon: float = 0.0
) -> InheritedErrors:
    """The same for answers that have a similarity to the reference instead of being right or wrong.

    The update *sheds* an error where the score rises by more than epsilon. It has *returned* where the compatibility
    model is not above the old model's score by more than epsilon, and is *inherited* where it is back at that score,
    within epsilon (elsewhere it fell below). *Settled* are items whose score the update leaves as it was, *fresh*
    those of them on which the compatibility model falls below. Scores are of shape ``(items,)``, higher is better.

    Raises:
        MuscleError: Unequal lengths, a score that is nan or infinite, or a negative epsilon.
    """
    check_epsilon(epsilon)
    old, new = as_scores(old_scores, "old_scores"), as_scores(new_scores, "new_scores")
    compat = as_scores(compat_scores, "compat_scores")
    check_lengths(old_scores=old, new_scores=new, compat_scores=compat)
    shed, below = fell(new, old, epsilon), fell(old, compat, epsilon)
    settled = ~shed & ~fell(old, new, epsilon)
    returned = shed & ~fell(compat, old, epsilon)
    return InheritedErrors(shed, returned, returned & ~below, settled, settled & below)
