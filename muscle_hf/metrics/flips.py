"""Flips between right and wrong when a model is updated (section 3.1 of the paper)."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from muscle_hf.errors import MuscleError

BoolArray = NDArray[np.bool_]

# Relative error of a number that went through other sums, or through float32.
_ROUNDING = 1e-7


def ratio(numerator: float, denominator: float) -> float:
    """``numerator / denominator``, or nan where there is nothing to divide by."""
    return float(numerator) / float(denominator) if denominator else float("nan")


@dataclass(frozen=True)
class Quadrants:
    """The four outcomes of an update, counted over items, and every rate that follows from them alone.

    Args:
        both_right: Items that the old and the new model answer correctly (quadrant 1 of the paper).
        positive_flips: Old wrong, new right (quadrant 2).
        both_wrong: Both wrong, with the same or another wrong answer (quadrant 3).
        negative_flips: Old right, new wrong (quadrant 4).
    """

    both_right: int
    positive_flips: int
    both_wrong: int
    negative_flips: int

    @property
    def items(self) -> int:
        """Number of items."""
        return self.both_right + self.positive_flips + self.both_wrong + self.negative_flips

    @property
    def acc_old(self) -> float:
        """Accuracy of the old model."""
        return ratio(self.both_right + self.negative_flips, self.items)

    @property
    def acc_new(self) -> float:
        """Accuracy of the new model."""
        return ratio(self.both_right + self.positive_flips, self.items)

    @property
    def nfr(self) -> float:
        """Negative flip rate: the share of all items that the old model had right and the new one has wrong."""
        return ratio(self.negative_flips, self.items)

    @property
    def pfr(self) -> float:
        """Positive flip rate: the share of all items that the old model had wrong and the new one has right."""
        return ratio(self.positive_flips, self.items)

    @property
    def btc(self) -> float:
        """Backward trust compatibility: the share of the old model's right answers that stay right."""
        return ratio(self.both_right, self.both_right + self.negative_flips)

    @property
    def bec(self) -> float:
        """Backward error compatibility: the share of the new model's errors that the old model made too."""
        return ratio(self.both_wrong, self.both_wrong + self.negative_flips)

    @property
    def nfi(self) -> float:
        """Negative flip impact: negative flips among all errors of the new model, ``1 - bec``."""
        return ratio(self.negative_flips, self.both_wrong + self.negative_flips)

    @property
    def relative_nfr(self) -> float:
        """NFR over what independent models of these accuracies would have: ``nfr / (acc_old * (1 - acc_new))``."""
        old_right = self.both_right + self.negative_flips
        new_wrong = self.both_wrong + self.negative_flips
        return ratio(self.negative_flips * self.items, old_right * new_wrong)

    def to_dict(self) -> dict[str, float]:
        """Counts and rates by the keys listed in :mod:`muscle_hf.metrics`."""
        counts = ("items", "both_right", "positive_flips", "both_wrong", "negative_flips")
        rates = ("acc_old", "acc_new", "nfr", "pfr", "btc", "bec", "nfi", "relative_nfr")
        return {name: getattr(self, name) for name in counts + rates}


def as_correct(values: ArrayLike, name: str = "correct") -> BoolArray:
    """Checks and converts a one-dimensional array of right / wrong flags (booleans, or 0 and 1)."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise MuscleError(f"{name} must be one-dimensional, one flag per item; got shape {array.shape}")
    if array.dtype != np.bool_ and array.size and (array.dtype.kind not in "iuf" or not np.isin(array, (0, 1)).all()):
        raise MuscleError(f"{name} must hold only True/False (or 1/0); to compare answers use flip_metrics")
    return array.astype(np.bool_, copy=False)


def check_lengths(**arrays: Any) -> int:
    """The common length of the arrays given by name, or an error that lists all of them."""
    lengths = {name: len(array) for name, array in arrays.items() if array is not None}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise MuscleError(f"unequal lengths: {listed}; give one entry per item, in the same order for every model")
    return next(iter(lengths.values()))


def all_correct(**flags: ArrayLike) -> list[BoolArray]:
    """:func:`as_correct` of several models, by their names in messages, for the same items."""
    arrays = {name: as_correct(values, name) for name, values in flags.items()}
    check_lengths(**arrays)
    return list(arrays.values())


def as_answers(values: Any, name: str) -> NDArray[Any]:
    """Checks and converts one answer per item: indices or text, no nan."""
    if not isinstance(values, np.ndarray) and any(isinstance(value, str) for value in values):
        # A fixed-width string array would reserve the longest answer's length for every item.
        array = np.empty(len(values), dtype=object)
        array[:] = list(values)
    else:
        array = np.asarray(values)
    if array.ndim != 1:
        raise MuscleError(f"{name} must be one-dimensional, one answer per item; got shape {array.shape}")
    missing = array != array  # of all values only nan is not itself, in arrays of objects too
    if array.dtype.kind in "fO" and missing.any():
        raise MuscleError(f"{name} holds nan at position {int(missing.argmax())}; drop or fix that item")
    return array


def _kind(array: NDArray[Any]) -> str:
    if array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(value, str) for value in array)):
        return "strings"
    return "numbers" if array.dtype.kind in "iufb" else "mixed"


def is_correct(predictions: Sequence[Any] | ArrayLike, targets: Sequence[Any] | ArrayLike) -> BoolArray:
    """Which predictions are right.

    Args:
        predictions: One answer per item: choice or class indices, or strings. Shape ``(items,)``.
        targets: One right answer per item, or a list, tuple or set of several right ones.

    Returns:
        Boolean array of shape ``(items,)``.

    Raises:
        MuscleError: Unequal lengths, nan among the answers, or strings compared with numbers.

    Examples:
        >>> is_correct([0, 2, 1], [0, [1, 2], 0]).tolist()
        [True, True, False]
    """
    answers, targets = as_answers(predictions, "predictions"), cast("Sequence[Any]", targets)
    check_lengths(predictions=answers, targets=targets)
    several = [isinstance(target, (list, tuple, AbstractSet, np.ndarray)) for target in targets]
    if not any(several):
        right = as_answers(targets, "targets")
        if len(right) and {_kind(answers), _kind(right)} == {"numbers", "strings"}:
            raise MuscleError(
                f"predictions are {_kind(answers)} and targets are {_kind(right)}; give both as indices or as text"
            )
        return answers == right
    sets = [target if many else (target,) for target, many in zip(targets, several, strict=True)]
    return np.fromiter(
        (answer in right for answer, right in zip(answers.tolist(), sets, strict=True)), bool, len(sets)
    )


def fell(before: ArrayLike, after: ArrayLike, epsilon: float = 0.0) -> BoolArray:
    """Where an item's value falls by more than ``epsilon``: a negative flip, of right and wrong as of scores.

    The last digits of a number are rounding, so that 0.1 + 0.2 has not fallen to 0.3. Values are higher for better: 1
    and 0 (or booleans), rates, or scores.
    """
    old, new = np.asarray(before, dtype=np.float64), np.asarray(after, dtype=np.float64)
    return old - new > epsilon + _ROUNDING * np.maximum(np.abs(old), np.abs(new))


def negative_flips(old_correct: ArrayLike, new_correct: ArrayLike) -> BoolArray:
    """NF(x) for each item: old right and new wrong."""
    old, new = all_correct(old_correct=old_correct, new_correct=new_correct)
    return fell(old, new)


def positive_flips(old_correct: ArrayLike, new_correct: ArrayLike) -> BoolArray:
    """PF(x) for each item: old wrong and new right."""
    return negative_flips(new_correct, old_correct)


def negative_flips_mc(old_predictions: ArrayLike, new_predictions: ArrayLike, new_correct: ArrayLike) -> BoolArray:
    """NF_mc(x) for each item: the new answer is wrong and differs from the old one, be that right or wrong."""
    old, new = as_answers(old_predictions, "old_predictions"), as_answers(new_predictions, "new_predictions")
    correct = as_correct(new_correct, "new_correct")
    check_lengths(old_predictions=old, new_predictions=new, new_correct=correct)
    return ~correct & (old != new)


def quadrants(old_correct: ArrayLike, new_correct: ArrayLike) -> Quadrants:
    """Counts the four outcomes of an update; from whether each model is right, boolean, shape ``(items,)``.

    Examples:
        >>> q = quadrants([True, True, False, False], [True, False, True, False])
        >>> q.nfr, q.pfr, q.btc
        (0.25, 0.25, 0.5)
    """
    old, new = all_correct(old_correct=old_correct, new_correct=new_correct)
    both, old_right, new_right = int((old & new).sum()), int(old.sum()), int(new.sum())
    return Quadrants(both, new_right - both, len(old) - old_right - new_right + both, old_right - both)


def with_compat(
    plain: dict[str, float], compat: dict[str, float], value: str, deltas: Sequence[str], relative: Sequence[str]
) -> dict[str, float]:
    """Adds the suffix-c forms, differences and relative differences (%) to the metrics of the plain update.

    ``value`` is what is called ``{value}_old`` and ``{value}_new`` there: ``acc`` or ``score``.
    """
    result = dict(plain)
    for key, number in compat.items():
        if key not in ("items", f"{value}_old"):
            result[f"{value}_c" if key == f"{value}_new" else f"{key}_c"] = number
    for rate in deltas:
        base = f"{value}_new" if rate == value else rate
        if base in plain:
            result[f"delta_{rate}_c"] = result[f"{rate}_c"] - plain[base]
    for rate in relative:
        result[f"delta_{rate}_c_percent"] = 100.0 * ratio(result[f"delta_{rate}_c"], plain[rate])
    return result


_DELTAS: dict[str, Any] = {"value": "acc", "deltas": ("acc", "nfr", "pfr", "nfr_mc"), "relative": ("nfr", "pfr")}


def flip_metrics_from_correct(
    old_correct: ArrayLike, new_correct: ArrayLike, compat_correct: ArrayLike | None = None
) -> dict[str, float]:
    """Flip metrics, by the keys listed in :mod:`muscle_hf.metrics`, from who is right alone.

    Takes whether each model is right, boolean, shape ``(items,)``; the compatibility model adds the suffix-c forms.
    ``nfr_mc`` and ``agreement`` need the answers (:func:`flip_metrics`).
    """
    plain = quadrants(old_correct, new_correct).to_dict()
    if compat_correct is None:
        return plain
    return with_compat(plain, quadrants(old_correct, compat_correct).to_dict(), **_DELTAS)


def _metrics_of_answers(
    old: NDArray[Any], new: NDArray[Any], targets: Sequence[Any] | ArrayLike, multiple_choice: bool
) -> dict[str, float]:
    new_correct = is_correct(new, targets)
    metrics = quadrants(is_correct(old, targets), new_correct).to_dict()
    if multiple_choice:
        metrics["nfr_mc"] = ratio(int(negative_flips_mc(old, new, new_correct).sum()), len(old))
    metrics["agreement"] = ratio(int((old == new).sum()), len(old))
    return metrics


def flip_metrics(
    old_predictions: Sequence[Any] | ArrayLike,
    new_predictions: Sequence[Any] | ArrayLike,
    targets: Sequence[Any] | ArrayLike,
    *,
    compat_predictions: Sequence[Any] | ArrayLike | None = None,
    multiple_choice: bool = True,
) -> dict[str, float]:
    """Flip metrics of an update from the models' answers (section 3.1).

    Args:
        old_predictions: The old model's answers: choice or class indices, or strings. Shape ``(items,)``.
        new_predictions: The new model's answers to the same items in the same order.
        targets: The right answer of each item, or a list of several right ones.
        compat_predictions: Answers of the compatibility model; adds the suffix-c forms and Delta, Delta%.
        multiple_choice: Adds ``nfr_mc``, which also counts flips among wrong answers. Turn it off for free text,
            where two wrong answers nearly always differ.

    Returns:
        Metrics by the keys listed in :mod:`muscle_hf.metrics`.

    Raises:
        MuscleError: Unequal lengths, nan among the answers, or strings compared with numbers.

    Examples:
        >>> m = flip_metrics([0, 1, 2, 3], [0, 2, 2, 1], [0, 1, 1, 0])
        >>> m["nfr"], m["nfr_mc"], m["acc_old"], m["acc_new"]
        (0.25, 0.5, 0.5, 0.25)
    """
    old, new = as_answers(old_predictions, "old_predictions"), as_answers(new_predictions, "new_predictions")
    compat = None if compat_predictions is None else as_answers(compat_predictions, "compat_predictions")
    check_lengths(old_predictions=old, new_predictions=new, compat_predictions=compat, targets=targets)
    plain = _metrics_of_answers(old, new, targets, multiple_choice)
    if compat is None:
        return plain
    return with_compat(plain, _metrics_of_answers(old, compat, targets, multiple_choice), **_DELTAS)
