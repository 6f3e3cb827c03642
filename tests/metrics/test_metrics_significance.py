"""Intervals and tests, held against scipy, statsmodels, formulas and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar as statsmodels_mcnemar
from statsmodels.stats.multitest import multipletests

from muscle_hf import MuscleError
from muscle_hf.metrics import (
    bootstrap,
    cluster_sign_test,
    compat_test,
    holm,
    mcnemar,
    nfr_change,
    paired_difference,
    pooled_rate,
    quadrants,
    stratified_mcnemar,
    wilson_interval,
)
from muscle_hf.metrics.intervals import effective_items


def share(total, items):
    return total / items


@given(st.integers(1, 300), st.data())
def test_wilson_is_scipys(n, data):
    k = data.draw(st.integers(0, n))
    level = data.draw(st.sampled_from([0.8, 0.95, 0.99]))
    for side, alternative in (("two-sided", "two-sided"), ("upper", "less"), ("lower", "greater")):
        ours = wilson_interval(k, n, level=level, side=side)
        theirs = stats.binomtest(k, n, alternative=alternative).proportion_ci(level, method="wilson")
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
        assert ours.low <= ours.value <= ours.high


def test_wilson_of_nothing_is_nan():
    assert math.isnan(wilson_interval(0, 0).value) and math.isnan(wilson_interval(0, 0).high)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_mcnemar_is_statsmodels(pairs):
    first, second = map(np.array, zip(*pairs, strict=True))
    result = mcnemar(first, second)
    table = [[(first & second).sum(), result.first_only], [result.second_only, (~first & ~second).sum()]]
    if result.first_only + result.second_only:
        assert result.p_value == pytest.approx(statsmodels_mcnemar(table, exact=True).pvalue)
    else:
        assert result.p_value == 1.0
    assert mcnemar(second, first).p_value == result.p_value


def test_compat_test_looks_at_what_the_old_model_has_right():
    old = np.array([True] * 20 + [False] * 20)
    new = np.array([True] * 10 + [False] * 30)
    compat = np.array([True] * 19 + [False] * 21)
    result = compat_test(old, new, compat)
    assert (result.first_only, result.second_only, result.p_value) == (0, 9, pytest.approx(0.5**8))
    wrong_ones_changed = np.where(old, compat, True)
    assert compat_test(old, new, wrong_ones_changed) == result


def test_bootstrap_is_scipys_on_a_ratio():
    rng = np.random.default_rng(0)
    above, below = (rng.random(300) < 0.3).astype(float), (rng.random(300) < 0.7).astype(float)
    ours = bootstrap(share, above, below, resamples=9999)
    theirs = stats.bootstrap(
        (above, below),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        vectorized=True,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.method == "bca"
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


@pytest.mark.parametrize("rare", [False, True])
def test_bootstrap_of_many_items_is_the_central_limit_theorem(rare):
    rng = np.random.default_rng(0)
    values = (rng.random(50_000) < 0.01).astype(float) if rare else rng.normal(1.0, 2.0, 50_000)
    ours = bootstrap(share, values, np.ones(50_000), resamples=9999)
    half = stats.norm.ppf(0.975) * values.std(ddof=1) / math.sqrt(50_000)
    assert ours.method == "bca"
    assert (ours.low, ours.high) == (
        pytest.approx(values.mean() - half, abs=0.1 * half),
        pytest.approx(values.mean() + half, abs=0.1 * half),
    )


def test_bootstrap_does_not_depend_on_the_order_of_items():
    values = np.random.default_rng(0).normal(size=3_000)
    assert bootstrap(share, values, np.ones(3_000)) == bootstrap(share, values[::-1], np.ones(3_000))


def test_bootstrap_is_sure_of_nothing_from_one_item_or_one_source():
    one = bootstrap(share, [0.5], [1])
    source = bootstrap(share, [1, 0, 0], [1, 1, 1], clusters=[4, 4, 4], side="upper")
    assert (one.value, one.low, one.high) == (0.5, -math.inf, math.inf)
    assert source.value == pytest.approx(1 / 3) and source.high == math.inf


def test_bootstrap_of_a_ratio_that_one_item_decides():
    """Without that item the ratio is undefined: no jackknife, hence no BCa."""
    ours = bootstrap(share, [0.4, 0, 0, 0], [1, 0, 0, 0])
    assert ours.method == "percentile"
    assert (ours.low, ours.value, ours.high) == pytest.approx((0.4, 0.4, 0.4))


def test_bootstrap_falls_back_where_bca_is_undefined():
    constant = bootstrap(share, np.full(20, 0.5), np.ones(20))
    assert (constant.low, constant.value, constant.high, constant.method) == (0.5, 0.5, 0.5, "percentile")
    undefined = bootstrap(share, np.ones(5), np.zeros(5))
    assert math.isnan(undefined.value) and math.isnan(undefined.low)


def test_bootstrap_weights_are_repeated_rows():
    rows = bootstrap(share, [1] * 30 + [0] * 70, [1] * 100, seed=3)
    counted = bootstrap(share, [0, 1], [1, 1], weights=[70, 30], seed=3)
    assert rows == counted


def test_clusters_widen_the_interval():
    rng = np.random.default_rng(0)
    cluster = np.repeat(np.arange(40), 10)
    flips = np.repeat(rng.random(40) < 0.3, 10).astype(float)  # items of one source flip together
    apart, together = (bootstrap(share, flips, np.ones(400), clusters=c) for c in (None, cluster))
    assert together.high - together.low > 2 * (apart.high - apart.low)
    assert effective_items(flips, cluster) == pytest.approx(40, rel=0.1)
    assert effective_items(flips, np.arange(400)) == pytest.approx(400, rel=0.01)
    signed = np.repeat(rng.choice([-1.0, 0.0, 1.0], 40), 10)
    assert effective_items(signed, cluster) == pytest.approx(40, rel=0.1)
    wide = wilson_interval(int(flips.sum()), 400, effective_total=effective_items(flips, cluster))
    assert wide.high - wide.low > 2 * (apart.high - apart.low)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60))
@settings(max_examples=30)
def test_nfr_change_is_the_difference_of_the_rates(rows):
    old, new, compat = map(np.array, zip(*rows, strict=True))
    change = nfr_change(old, new, compat)
    assert change.value == pytest.approx(quadrants(old, compat).nfr - quadrants(old, new).nfr)
    assert change.low <= change.value + 1e-9 and change.value <= change.high + 1e-9


def test_nfr_change_of_equal_models_is_not_certain():
    right = np.array([True] * 20)
    change = nfr_change(right, right, right)
    assert change.value == 0 and change.low < 0 < change.high


def test_nfr_change_of_equal_models_knows_the_clusters():
    """400 items from 10 sources that say nothing of their spread are worth 10."""
    right = [True] * 400
    change = nfr_change(right, right, right, clusters=[i // 40 for i in range(400)])
    ten = nfr_change(right[:10], right[:10], right[:10])
    assert change.value == 0 and (change.low, change.high) == pytest.approx((ten.low, ten.high))


@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_intervals_cover_the_truth_about_as_often_as_they_say(rate):
    """Simulation with known rates: at least 90 % of the 95 % intervals hold the truth."""
    rng = np.random.default_rng(0)
    hits = {"change": 0, "difference": 0}
    runs = 200
    for _ in range(runs):
        old = rng.random(400) < 0.7
        new, compat = (np.where(rng.random(400) < 2 * rate, ~old, old) for _ in range(2))
        change = nfr_change(old, new, compat)
        hits["change"] += change.low <= 0 <= change.high
        difference = paired_difference(old, new)
        hits["difference"] += difference.low <= 2 * rate * (0.3 - 0.7) <= difference.high
    assert min(hits.values()) / runs >= 0.9


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_paired_difference_is_the_difference_of_accuracies(pairs):
    first, second = map(np.array, zip(*pairs, strict=True))
    both = paired_difference(first, second)
    assert both.value == pytest.approx(second.mean() - first.mean())
    assert -1 <= both.low <= both.value <= both.high <= 1
    assert both.low < both.high  # never certain, not even without a flip
    upper = paired_difference(first, second, side="upper")
    assert upper.low == -1 and upper.high <= both.high + 1e-12


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=15)  # statsmodels collects garbage at each call
def test_holm_is_statsmodels(p_values):
    assert holm(p_values).tolist() == pytest.approx(multipletests(p_values, method="holm")[1].tolist())


def test_holm_and_nan():
    assert holm([0.01, math.nan, 0.04, 0.03]).tolist() == pytest.approx([0.03, math.nan, 0.06, 0.06], nan_ok=True)
    assert holm([]).tolist() == []


def test_stratified_mcnemar_adds_the_flips_of_the_tasks():
    rng = np.random.default_rng(0)
    tasks = [(rng.random(100) < 0.6, rng.random(100) < 0.7) for _ in range(3)]
    together = stratified_mcnemar(tasks)
    at_once = mcnemar(*(np.concatenate(side) for side in zip(*tasks, strict=True)))
    assert together == at_once


def test_pooled_rate_weighs_tasks_alike():
    tasks = pooled_rate([10, 0], [100, 900])
    assert tasks.value == pytest.approx(0.05) and tasks.low < 0.05 < tasks.high
    one = pooled_rate([10], [100])
    assert (one.low, one.high) == pytest.approx(
        (wilson_interval(10, 100).low, wilson_interval(10, 100).high), abs=0.01
    )
    assert math.isnan(pooled_rate([0], [0]).value)


def test_sign_test_is_mcnemars_for_single_items():
    changes = [1] * 8 + [-1] * 2 + [0] * 50
    assert cluster_sign_test(changes) == pytest.approx(stats.binomtest(8, 10).pvalue, abs=0.02)
    assert cluster_sign_test([0, 0]) == 1.0
    # One source with many equal changes is one coin toss.
    assert cluster_sign_test([1] * 10, clusters=[7] * 10) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: wilson_interval(3, 2),
        lambda: wilson_interval(1, 2, level=95),
        lambda: wilson_interval(1, 2, side="left"),
        lambda: bootstrap(share, [1.0], [1.0], clusters=[1, 2]),
        lambda: bootstrap(share, [1.0], [1.0], clusters=[1], weights=[1]),
        lambda: mcnemar([True], [True, False]),
    ],
)
def test_bad_input(call):
    with pytest.raises(MuscleError):
        call()
