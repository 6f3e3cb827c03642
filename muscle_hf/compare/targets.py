"""What rows without labels could follow, tried on held-out rows before anything is trained.

Each target is a rule that asks both models: follow the mean of their probabilities with some share of the old one, or
the more confident of them. What the rule itself answers can be counted from the predictions of both models alone, and
is what a student would answer that had learned it perfectly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from muscle_hf.compare.analyse import AnalysisOptions, TaskAnalysis
from muscle_hf.compare.document import Model, plain
from muscle_hf.compare.join import Joined, Missing, join
from muscle_hf.compare.roles import ReadOptions
from muscle_hf.compare.sources import Source, as_source
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.scoring import choice_scores
from muscle_hf.metrics.flips import fell
from muscle_hf.metrics.intervals import Estimate

Floats = NDArray[np.float64]

# Below, nearly every disagreement goes to v2; above, to v1.
SHARES = (0.3, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.8)


@dataclass(frozen=True)
class Target:
    """What following a target exactly would do on the held-out rows; rates are fractions, differences paired.

    ``mask`` is as in :class:`muscle_hf.MuscleConfig` (``mask``, ``transfer_mask``); ``nfr`` is against the old model,
    the two changes are against the new one.
    """

    mask: str
    accuracy: Estimate
    nfr: Estimate
    change_of_accuracy: Estimate
    change_of_nfr: Estimate


@dataclass(frozen=True)
class Targets:
    """All targets of one ``task``, in the order of the old model's say, of ``items`` rows that were looked at;
    ``nfr_new`` are the negative flips of the new model, ``warnings`` sentences of the whole reading that a reader must
    see (rows left out, prompts not verified, ...). ``chosen``, of the targets no less accurate than the best one by
    more than a standard error of their difference, has the fewest negative flips."""

    task: str
    items: int
    accuracy_old: Estimate
    accuracy_new: Estimate
    nfr_new: Estimate
    targets: list[Target]
    chosen: Target
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready data; nan and infinities are null."""
        return plain(self)


def measure_targets(
    old: str | Source,
    new: str | Source,
    *,
    shares: Sequence[float] = SHARES,
    level: float = 0.95,
    read: ReadOptions | None = None,
    missing: Missing = "error",
) -> list[Targets]:
    """Try every target of each task on the predictions of both models.

    Args:
        old: Predictions of the old model on rows that neither task adapter was trained on, with the log-likelihood of
            each choice: a path (:func:`~muscle_hf.compare.sources.read_source`) or what was read.
        new: Predictions of the new model on the same rows.
        shares: Of the old model, each in (0, 1), for ``mean(share)``.
        level: Confidence level of the intervals.
        read: How to read the logs.
        missing: What becomes of items that a model has no judged answer to (:func:`~muscle_hf.compare.join.join`).

    Raises:
        MuscleError: A share is out of range, the predictions do not belong together, or they have no log-likelihoods
            or do not say which choice is right.
    """
    wrong = [share for share in shares if not 0 < share < 1]
    if wrong or not shares:
        raise MuscleError(f"shares of the old model lie between 0 and 1, for example 0.5; got {wrong or 'none'}")
    options = AnalysisOptions(level=level)
    sides = {name: as_source(side, read or ReadOptions()) for name, side in (("old", old), ("new", new))}
    joined, warnings = join(sides, missing=missing)
    return [_measure(task, shares, options, [*filter(None, [task.doubt]), *warnings]) for task in joined]


def target_choices(old: Floats, new: Floats, shares: Sequence[float] = SHARES) -> dict[str, NDArray[np.int64]]:
    """What each target chooses, mask -> (items,), from the new model alone to the old one alone, by both models'
    probability of each choice, (items, choices)."""
    surer = np.where((old.max(axis=1) > new.max(axis=1))[:, None], old, new)
    means = {share: share * old + (1 - share) * new for share in sorted(shares)}
    mixed = {"always_new": new, **{f"mean({share:g})": mean for share, mean in means.items()}}
    mixed |= {"more_confident_sequence": surer, "always_old": old}
    return {mask: p.argmax(axis=1) for mask, p in mixed.items()}


def probabilities_of(scores: Sequence[Sequence[float] | Floats]) -> Floats:
    """Softmax of each item's scores, (items, choices) float64; items with fewer choices have zeros behind them."""
    widest = max(map(len, scores))
    values = np.array([[*row, *[-np.inf] * (widest - len(row))] for row in scores], dtype=np.float64)
    return softmax(values, axis=1)


def choose_target(masks: Sequence[str], correct: NDArray[np.bool_], old_correct: NDArray[np.bool_]) -> str:
    """The mask of the target with the fewest negative flips among those about as accurate as the best.

    About: the accuracies differ by at most one standard error of their paired difference (the one-standard-error rule
    of model selection: Breiman et al. 1984, section 3.4.3), so that chance on a few hundred rows does not decide. Of
    equals the more accurate one, then the one with less of the old model. ``correct`` is of shape (targets, items).
    """
    values = correct.astype(np.float64)
    accuracy = values.mean(axis=1)
    behind = values[accuracy.argmax()] - values
    error = behind.std(axis=1) / np.sqrt(max(1, values.shape[1]))
    flips = fell(old_correct, correct).mean(axis=1)
    allowed = np.flatnonzero(behind.mean(axis=1) <= error).tolist()
    best: int = min(allowed, key=lambda index: (flips[index], -accuracy[index], index))
    return masks[best]


def _measure(joined: Joined, shares: Sequence[float], options: AnalysisOptions, warnings: list[str]) -> Targets:
    right, (old, new) = _read_likelihoods(joined)
    choices = target_choices(old, new, shares)
    correct = {mask: right[np.arange(len(right)), chosen] for mask, chosen in choices.items()}
    joined.values |= {mask: found.astype(np.float64) for mask, found in correct.items()}
    joined.answers |= choices
    models = [Model("old", "old", "", ""), Model("new", "new", "", ""), *(Model(m, "compat", "", "") for m in choices)]
    result = TaskAnalysis(joined, models, options).result()
    plain_update, *updates = result.updates
    chosen = choose_target(list(choices), np.stack(list(correct.values())), joined.correct("old"))
    targets = {
        update.label: Target(update.label, update.accuracy, update.rates["nfr"], held.delta_accuracy, held.delta_nfr)
        for update in updates
        if (held := update.against_new) is not None
    }
    return Targets(
        task=joined.task,
        items=result.items,
        accuracy_old=result.accuracy_old,
        accuracy_new=plain_update.accuracy,
        nfr_new=plain_update.rates["nfr"],
        targets=list(targets.values()),
        chosen=targets[chosen],
        warnings=warnings,
    )


def _read_likelihoods(joined: Joined) -> tuple[NDArray[np.bool_], list[Floats]]:
    """Which choices are right, (items, choices), and each model's probabilities."""
    details = {label: joined.details(label, range(len(joined.ids))) for label in ("old", "new")}
    for label, rows in details.items():
        lacking = next((i for i, row in enumerate(rows) if len(row.log_likelihoods) < 2), None)
        if lacking is not None or joined.kind != "correct":
            raise MuscleError(
                f"task {joined.task!r}: the predictions of the {label} model have no log-likelihood of each choice "
                f"(item {joined.ids[lacking or 0]!r}), so nothing can be mixed; targets are for tasks with choices. "
                "Where answers are generated, train with a share (mean, mean(0.65)) and compare"
            )
    for item, first, second in zip(joined.ids, details["old"], details["new"], strict=True):
        if len(first.log_likelihoods) != len(second.log_likelihoods):
            raise MuscleError(f"item {item!r}: the models were given different numbers of choices")
    probabilities = [
        probabilities_of([choice_scores(joined.metric, row.choices, row.log_likelihoods) for row in rows])
        for rows in details.values()
    ]
    right = np.zeros(probabilities[0].shape, dtype=bool)
    for place, row in enumerate(details["old"]):
        known = [index for index in row.target_indices if index < len(row.log_likelihoods)]
        if not known:
            raise MuscleError(
                f"task {joined.task!r}, item {joined.ids[place]!r}: which choice is right cannot be told from the "
                f"target {row.target!r}; give it as an index from 0 or as the text of a choice"
            )
        right[place, known] = True
    return right, probabilities
