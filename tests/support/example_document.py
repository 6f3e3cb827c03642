"""A small document with everything in it, to try renderers on."""

from __future__ import annotations

import numpy as np

from muscle_hf.compare import document as d
from muscle_hf.metrics import (
    Estimate,
    InheritedErrors,
    compat_test,
    inherited_errors,
    mcnemar,
    nfr_change,
    paired_difference,
    quadrants,
    wilson_interval,
)


def example_document(items: int = 200, seed: int = 0) -> d.Document:
    """A made-up comparison of old, new and two compatibility models on one multiple-choice task.

    Args:
        items: Number of items.
        seed: Of the made-up answers.
    """
    rng = np.random.default_rng(seed)
    right = {"old": rng.random(items) < 0.7}
    for label, kept in (("new", 0.0), ("muscle", 0.6), ("no-mask", 0.4)):
        right[label] = np.where(rng.random(items) < kept, right["old"], rng.random(items) < 0.72)
    updates = [_update(label, right) for label in ("new", "muscle", "no-mask")]
    flips = _flips(right)
    nfr = updates[1].rates["nfr"]
    check = d.GateCheck("max_nfr", "routing", "muscle", 0.2, nfr, "pass", "NFR is at most 0.2", noise_floor=0.004)
    return d.Document(
        models=[
            d.Model("old", "old", "runs/old.jsonl", "muscle-hf"),
            d.Model("new", "new", "runs/new.jsonl", "muscle-hf"),
            d.Model("muscle", "compat", "runs/muscle.jsonl", "muscle-hf"),
            d.Model("no-mask", "compat", "runs/no-mask.jsonl", "muscle-hf"),
        ],
        tasks=[
            d.TaskResult(
                name="routing",
                metric="acc",
                kind="correct",
                items=items,
                accuracy_old=wilson_interval(int(right["old"].sum()), items),
                updates=updates,
                flips=flips,
                flips_total=len(flips),
            )
        ],
        gate=d.Gate("pass", [check], budget="budget.yaml"),
        noise=[d.NoiseFloor("routing", 3, items, wilson_interval(1, items), 0.005, 0.01)],
        warnings=["3 items were left out"],
        options={"level": 0.95, "epsilon": 0.0},
        meta={"version": "0.1.0"},
    )


def _update(label: str, right: dict[str, np.ndarray]) -> d.Update:
    old, new, here = right["old"], right["new"], right[label]
    q, n = quadrants(old, here), len(old)
    p_value = mcnemar(old, here).p_value
    return d.Update(
        label=label,
        role="new" if label == "new" else "compat",
        accuracy=wilson_interval(int(here.sum()), n),
        change=paired_difference(old, here),
        counts={
            "both_right": q.both_right,
            "positive_flips": q.positive_flips,
            "both_wrong": q.both_wrong,
            "negative_flips": q.negative_flips,
        },
        rates={
            "nfr": wilson_interval(q.negative_flips, n),
            "pfr": wilson_interval(q.positive_flips, n),
            "relative_nfr": Estimate(q.relative_nfr, 0.8 * q.relative_nfr, 1.2 * q.relative_nfr, 0.95, "bca"),
        },
        p_value=p_value,
        p_adjusted=p_value,
        verdict="no difference shown",
        slices=[_slice(right, label, value) for value in ("angry", "calm")],
        against_new=None if label == "new" else _against_new(old, new, here),
        inheritance=None if label == "new" else _inheritance(right, label),
    )


def _answers(right: dict[str, np.ndarray], label: str) -> np.ndarray:
    """Choices: the old model has one wrong answer for each item, the others mostly the same."""
    items = np.arange(len(right[label]))
    wrong = items + 1 + (items % 5 == 0) * (label != "old")
    return np.where(right[label], items, wrong) % 3


def _audit(right: dict[str, np.ndarray], label: str) -> InheritedErrors:
    before, here = _answers(right, "old"), _answers(right, label)
    return inherited_errors(right["old"], right["new"], right[label], old_predictions=before, compat_predictions=here)


def _inheritance(right: dict[str, np.ndarray], label: str) -> d.Inheritance:
    found = _audit(right, label)
    angry = np.arange(len(found.shed)) % 2 == 1

    def rate(indicator: np.ndarray, among: np.ndarray) -> Estimate:
        return wilson_interval(int(indicator[among].sum()), int(among.sum()))

    pieces = [("angry", found.shed & angry), ("calm", found.shed & ~angry)]
    return d.Inheritance(
        shed=int(found.shed.sum()),
        returned=rate(found.returned, found.shed),
        inherited=rate(found.inherited, found.shed),
        usual=rate(_answers(right, "old") == _answers(right, "new"), ~right["old"] & ~right["new"]),
        fresh=rate(found.fresh, found.settled),
        slices=[
            d.InheritanceSlice("tone", value, rate(found.returned, among), rate(found.inherited, among))
            for value, among in pieces
        ],
        items=[d.InheritedItem(f"ticket-{i}", _again(found, i)) for i in np.flatnonzero(found.returned)],
    )


def _again(found: InheritedErrors, item: int) -> str:
    return "same" if found.inherited[item] else "other"


def _slice(right: dict[str, np.ndarray], label: str, value: str) -> d.Slice:
    chosen = np.arange(len(right["old"])) % 2 == (value == "angry")
    old, here = right["old"][chosen], right[label][chosen]
    q = quadrants(old, here)
    counts = {"both_right": q.both_right, "positive_flips": q.positive_flips, "both_wrong": q.both_wrong}
    p_value = mcnemar(old, here).p_value
    return d.Slice(
        column="tone",
        value=value,
        items=len(old),
        counts={**counts, "negative_flips": q.negative_flips},
        nfr=wilson_interval(q.negative_flips, len(old)),
        change=paired_difference(old, here),
        p_value=p_value,
        p_adjusted=min(1.0, 2 * p_value),
        verdict="no difference shown",
    )


def _against_new(old: np.ndarray, new: np.ndarray, here: np.ndarray) -> d.AgainstNew:
    change = nfr_change(old, new, here)
    states = [(bool(o), bool(w), bool(c)) for o in (True, False) for w in (True, False) for c in (True, False)]
    flows = [
        d.Flow(
            tuple("right" if state else "wrong" for state in (o, w, c)),  # type: ignore[arg-type]
            int(((old == o) & (new == w) & (here == c)).sum()),
        )
        for o, w, c in states
    ]
    p_value = compat_test(old, new, here).p_value
    return d.AgainstNew(
        delta_nfr=change,
        delta_nfr_percent=100 * change.value / quadrants(old, new).nfr,
        delta_pfr=nfr_change(~old, ~new, ~here),
        delta_accuracy=paired_difference(new, here),
        p_value=p_value,
        p_adjusted=p_value,
        verdict="better" if p_value < 0.05 and change.value < 0 else "no difference shown",
        flows=flows,
    )


def _flips(right: dict[str, np.ndarray]) -> list[d.Flip]:
    names = {
        (True, True): "both_right",
        (False, True): "positive",
        (False, False): "both_wrong",
        (True, False): "negative",
    }
    choices = ["Billing", "Shipping", "Returns"]
    answers = {label: _answers(right, label) for label in right}
    audits = {label: _audit(right, label) for label in right if label not in ("old", "new")}
    flips = []
    for i in range(len(right["old"])):
        correct = {label: bool(values[i]) for label, values in right.items()}
        if len(set(correct.values())) == 1:
            continue
        outcomes = {label: names[correct["old"], ok] for label, ok in correct.items() if label != "old"}
        flips.append(
            d.Flip(
                id=f"ticket-{i}",
                outcomes=outcomes,
                prompt=f"Ticket {i}: my parcel <b>never</b> came & I want my money back.\nTeam:",
                target=choices[i % 3],
                answers={label: choices[given[i]] for label, given in answers.items()},
                correct=dict(correct),
                scores=dict.fromkeys(correct),
                choices=choices,
                columns={"tone": "angry" if i % 2 else "calm"},
                severity=float(outcomes["new"] == "negative"),
                inherited={label: _again(found, i) for label, found in audits.items() if found.returned[i]},
            )
        )
    return sorted(flips, key=lambda flip: -flip.severity)
