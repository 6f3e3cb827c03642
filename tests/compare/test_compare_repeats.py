"""Items that were answered several times: rates, flips, flakiness; and how many items a limit needs."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from compare_files import choice_predictions, flipping, sources, three

from muscle_hf import MuscleError
from muscle_hf.compare import AnalysisOptions, Budget, compare, measure_noise
from muscle_hf.compare.analyse import TaskAnalysis, count_repeats
from muscle_hf.compare.document import Model
from muscle_hf.compare.gate import plan_items
from muscle_hf.compare.join import join
from muscle_hf.metrics.intervals import wilson_interval
from muscle_hf.metrics.power import items_for_change, items_for_rate


def repeated(items=200, runs=4, seed=0, fall=0.0):
    """A task whose items both models answer several times; the new one is right less often by ``fall``."""
    (joined,), _ = join(dict(zip(("old", "new"), sources(*flipping(items, 0)), strict=True)))
    rng = np.random.default_rng(seed)
    rates = rng.choice([0.0, 0.5, 1.0], items)
    answers = {
        label: (rng.random((items, runs)) < rate[:, None]) * 1.0
        for label, rate in (("old", rates), ("new", rates * (1 - fall)))
    }
    return dataclasses.replace(joined, runs=answers, values={label: a.mean(1) for label, a in answers.items()})


def analysed(joined, **options):
    models = [Model("old", "old", "", ""), Model("new", "new", "", "")]
    return TaskAnalysis(joined, models, AnalysisOptions(**options)).result()


def test_an_item_has_a_rate_and_flips_are_what_the_rate_loses():
    joined = repeated()
    task = analysed(joined)
    (update,) = task.updates
    old, new = joined.values["old"], joined.values["new"]
    assert task.accuracy_old.value == pytest.approx(old.mean()) and update.accuracy.value == pytest.approx(new.mean())
    assert update.rates["nfr"].value == pytest.approx(np.maximum(old - new, 0).mean())
    assert update.change.value == pytest.approx(update.rates["pfr"].value - update.rates["nfr"].value)
    assert task.runs == 4 and task.flaky["old"] == np.mean((old > 0) & (old < 1)) > 0.2
    # The two models are one: what they lose is luck, and the test says so.
    assert update.verdict == "no difference shown"
    assert update.nfr_by_chance == pytest.approx((update.rates["nfr"].value + update.rates["pfr"].value) / 2, rel=0.3)
    assert analysed(repeated(fall=0.4)).updates[0].verdict == "worse"


def test_majority_and_pass_at_k():
    joined = repeated()
    majority = count_repeats(joined, "majority")
    assert set(np.unique(majority.values["old"])) == {0.0, 1.0} and not majority.runs
    right = joined.runs["old"].sum(1)
    passed = count_repeats(joined, "pass@2").values["old"]
    assert passed[right == 1] == pytest.approx(0.5) and passed[right == 3] == pytest.approx(1.0)
    assert (count_repeats(joined, "pass@4").values["old"] == (right > 0)).all()
    for how, message in (("pass@5", "5 answers"), ("pass@2", "scores")):
        with pytest.raises(MuscleError, match=message):
            count_repeats(dataclasses.replace(joined, kind="score" if how == "pass@2" else "correct"), how)
    with pytest.raises(MuscleError, match="pass@K"):
        compare(*sources(*flipping(5, 1)), analysis=AnalysisOptions(repeats="best"))


def test_a_model_that_was_asked_once_is_held_against_rates():
    old = [{"id": i, "correct": True} for i in range(300)]
    new = [{"id": i, "correct": right} for i in range(300) for right in (True, True, False)]
    document = compare(old, new, budget=Budget(limits={"max_nfr": {"*": 0.05}}))
    (update,) = document.tasks[0].updates
    assert update.accuracy.value == pytest.approx(2 / 3) and update.rates["nfr"].value == pytest.approx(1 / 3)
    assert document.gate.verdict == "fail" and document.tasks[0].flaky.keys() == {"new"}


def test_a_flip_of_an_item_that_flips_by_itself_is_noise():
    old, again = flipping(100, 3)
    _, new = flipping(100, 5)
    floors = measure_noise(sources(old, again))
    assert floors[0].flaky == ["item-0", "item-1", "item-2"]
    flips = compare(*sources(old, new), noise=floors).tasks[0].flips
    assert {flip.id for flip in flips if flip.noise} == set(floors[0].flaky) and len(flips) == 5


@pytest.mark.parametrize(("limit", "rate"), [(0.02, 0.0), (0.02, 0.01), (0.02, 0.04), (0.3, 0.2)])
def test_that_many_items_decide_a_limit(limit, rate):
    items = items_for_rate(limit, rate)
    counts = np.random.default_rng(0).binomial(items, rate, 2000)
    side = "upper" if rate < limit else "lower"
    bounds = [wilson_interval(int(count), items, side=side) for count in counts]
    decided = np.mean([b.high <= limit if rate < limit else b.low > limit for b in bounds])
    assert decided > 0.75 and (rate == 0 or decided < 0.9)
    assert items_for_rate(limit, limit) is None


def test_the_gate_and_the_plan_say_how_many_items_are_needed():
    (check,) = compare(*sources(*flipping(50, 0)), budget=Budget(limits={"max_nfr": {"*": 0.03}})).gate.checks
    assert check.verdict == "too little data" and check.items_needed == items_for_rate(0.03, 0.0) > 50
    rows = plan_items(Budget(limits={"max_nfr": {"*": 0.03}, "max_regression": {"ways": 0.02}}))
    assert rows[0] == ("max_nfr", "*", 0.03, 0.0, check.items_needed)
    needed = [row[4] for row in rows if row[0] == "max_regression"]
    assert needed == sorted(needed) and needed[0] == items_for_change(0.02, 0.0, 0.1)


def test_what_answers_take_is_told_beside_them():
    sides = [
        [dataclasses.replace(p, columns={**p.columns, "tokens": base + i % 7}) for i, p in enumerate(side)]
        for base, side in zip((100, 140, 90), three(200), strict=True)
    ]
    new, compat = compare(*sources(*sides)).tasks[0].updates
    assert [(m.name, m.change.value) for m in new.measures] == [("tokens", 40.0)]
    assert compat.measures[0].change.value == -10 and compat.measures[0].items == 200
    assert choice_predictions(3, 1.0, 1)[0].columns.keys() == {"tone", "source", "length"}
