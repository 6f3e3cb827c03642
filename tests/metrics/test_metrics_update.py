"""One model against an older one: flips, rates, rounding, guesses."""

from __future__ import annotations

import numpy as np
import pytest

from muscle_hf.metrics import quadrants, smooth_flip_metrics
from muscle_hf.metrics.intervals import Estimate, mean_estimate, wilson_interval
from muscle_hf.metrics.significance import run_permutation_test
from muscle_hf.metrics.update import Update


def test_rounding_is_no_flip():
    old, new = [0.3, 0.1 + 0.2, 1 / 3, 0.5], [0.1 + 0.2, 0.3, np.float32(1 / 3), 0.4999]
    found = smooth_flip_metrics(old, new)
    assert (found["regressed"], found["improved"]) == (1, 0)
    assert Update(np.array(old), np.array(new, dtype=float), kind="score").counts == {
        "improved": 0,
        "unchanged": 3,
        "regressed": 1,
    }
    # At epsilon's own edge too: 0.8 - 0.7 is a bit more than 0.1.
    assert smooth_flip_metrics([0.8], [0.7], epsilon=0.1)["regressed"] == 0


def test_guesses_are_taken_off_the_flips():
    """arXiv 2510.17776: (1 - acc_old) (1 - acc_new) / (k - 1) of the items flip by guessing."""
    rng = np.random.default_rng(0)
    guesses = [rng.random(200_000) < 0.25 for _ in range(2)]
    q = quadrants(*guesses)
    chance = Update(guesses[0] * 1.0, guesses[1] * 1.0, chance=0.25)
    assert q.nfr > 0.18 and chance.rates()["nfr_adjusted"].value < 0.002
    known = np.arange(200_000) < 100_000
    lost = known & (np.arange(200_000) < 20_000)  # 10 % that old knew and new does not
    q = quadrants(known | guesses[0], (known & ~lost) | guesses[1])
    update = Update((known | guesses[0]) * 1.0, ((known & ~lost) | guesses[1]) * 1.0, chance=0.25)
    rate = update.rates()["nfr_adjusted"]
    assert (
        rate.value == pytest.approx(q.nfr - (1 - q.acc_old) * (1 - q.acc_new) / 3)
        and rate.low < rate.value < rate.high
    )


def test_the_mean_of_estimates_is_the_estimate_of_a_mean():
    each = [wilson_interval(40, 400) for _ in range(4)]
    whole, mean = wilson_interval(160, 1600), mean_estimate(each)
    assert mean.value == whole.value
    assert (mean.low, mean.high) == pytest.approx((whole.low, whole.high), abs=0.004)
    assert np.isnan(mean_estimate([]).value)
    assert mean_estimate([Estimate(np.nan, np.nan, np.nan), each[0]]) == mean_estimate(each[:1])


def test_runs_of_one_model_do_not_differ_and_those_of_another_do():
    rng = np.random.default_rng(1)
    rates = rng.random(300)
    same, again, worse = (rng.random((300, n)) < r[:, None] for n, r in ((5, rates), (3, rates), (4, rates * 0.8)))
    p_same, floor = run_permutation_test(same * 1.0, again * 1.0)
    p_worse, _ = run_permutation_test(same * 1.0, worse * 1.0)
    assert p_same > 0.05 > p_worse and 0.05 < floor < 0.2
    update = Update(same.mean(1), again.mean(1), runs=(same * 1.0, again * 1.0))
    assert update.nfr.value == pytest.approx(np.maximum(same.mean(1) - again.mean(1), 0).mean())
    assert update.change.value == pytest.approx(update.pfr.value - update.nfr.value)
    assert update.p_value == p_same and sum(update.counts.values()) == 300
