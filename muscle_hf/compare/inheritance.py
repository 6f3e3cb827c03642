"""The audit of a compatibility model: which of the old model's errors it takes over that the new one had shed."""

from __future__ import annotations

from typing import Literal

import numpy as np

from muscle_hf.compare.analyse import AnalysisOptions, update_of
from muscle_hf.compare.document import Inheritance, InheritanceSlice, InheritedItem
from muscle_hf.compare.join import Joined
from muscle_hf.compare.slices import slice_columns
from muscle_hf.metrics.inheritance import InheritedErrors, inherited_errors, inherited_scores
from muscle_hf.metrics.intervals import Estimate
from muscle_hf.metrics.update import Bools

# Slices with fewer shed errors than this come last.
ENOUGH = 5
Answer = Literal["same", "other", "unknown"]


def returned_errors(joined: Joined, label: str, epsilon: float) -> InheritedErrors:
    """Which items are shed, returned and inherited, for one compatibility model."""
    old, new = joined.labels[:2]
    if joined.kind == "score":
        return inherited_scores(*(joined.values[name] for name in (old, new, label)), epsilon=epsilon)
    before, here = joined.answers[old], joined.answers[label]
    known = before is not None and here is not None
    return inherited_errors(
        *(joined.correct(name) for name in (old, new, label)),
        old_predictions=before if known else None,
        compat_predictions=here if known else None,
    )


def answer_of(found: InheritedErrors, item: int) -> Answer:
    """How a returned error came back: with the old model's own wrong answer, or with another one."""
    if found.inherited is None:
        return "unknown"
    return "same" if found.inherited[item] else "other"


def audit(joined: Joined, label: str, options: AnalysisOptions) -> Inheritance:
    """The audit of one compatibility model on one task."""
    found = returned_errors(joined, label, options.epsilon)
    update = update_of(joined, label, options)

    def known(indicator: Bools | None, among: Bools) -> Estimate | None:
        return None if indicator is None else update.share(indicator, among)

    slices = []
    for column, (codes, names) in slice_columns(joined, options.slices).items():
        for code, value in enumerate(names):
            among = found.shed & (codes == code)
            if among.any():
                returned = update.share(found.returned, among)
                slices.append(InheritanceSlice(column, value, returned, known(found.inherited, among)))
    return Inheritance(
        shed=int(found.shed.sum()),
        returned=update.share(found.returned, found.shed),
        inherited=known(found.inherited, found.shed),
        usual=known(*_alike(joined)) if joined.kind == "correct" and found.inherited is not None else None,
        fresh=update.share(found.fresh, found.settled),
        slices=sorted(slices, key=_surely, reverse=True),
        items=_listed(joined, found, options.max_flips),
    )


def _alike(joined: Joined) -> tuple[Bools | None, Bools]:
    """Where the old and the new model give the same answer, and where both are wrong."""
    old, new = joined.labels[:2]
    before, after = joined.answers[old], joined.answers[new]
    both_wrong = ~joined.correct(old) & ~joined.correct(new)
    return (None if before is None or after is None else before == after), both_wrong


def _surely(entry: InheritanceSlice) -> tuple[bool, float]:
    """What slices are sorted by: a few unlucky items make no slice bad."""
    rate = entry.returned if entry.inherited is None else entry.inherited
    return (rate.total or 0) >= ENOUGH, rate.low


def _listed(joined: Joined, found: InheritedErrors, limit: int) -> list[InheritedItem]:
    same = np.zeros_like(found.returned) if found.inherited is None else found.inherited
    places = np.concatenate([np.flatnonzero(same), np.flatnonzero(found.returned & ~same)])[:limit]
    return [InheritedItem(joined.ids[item], answer_of(found, item)) for item in places.tolist()]
