"""Flips between right and wrong: identities, brute force, published numbers, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from muscle_hf import MuscleError
from muscle_hf.metrics import flip_metrics, flip_metrics_from_correct, is_correct, quadrants

RATES = ("acc_old", "acc_new", "nfr", "pfr", "nfr_mc", "btc", "bec", "nfi", "relative_nfr", "agreement")


@st.composite
def answered(draw, models: int = 2, min_size: int = 1):
    """Answers of several models to the same items, with one or several right answers each."""
    items = draw(st.integers(min_size, 40))
    answers = st.lists(st.integers(0, 3), min_size=items, max_size=items)
    targets = st.lists(
        st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3), min_size=1, max_size=3)),
        min_size=items,
        max_size=items,
    )
    return [draw(answers) for _ in range(models)], draw(targets)


def brute_force(old, new, targets):
    """The paper's definitions, one item at a time."""
    right = [set(t) if isinstance(t, list) else {t} for t in targets]
    rows = list(zip(old, new, right, strict=True))
    n = len(rows)

    def share(among, having):
        return sum(having(*row) for row in among) / len(among) if among else math.nan

    old_right = [row for row in rows if row[0] in row[2]]
    new_wrong = [row for row in rows if row[1] not in row[2]]
    independent = len(old_right) / n * len(new_wrong) / n
    nfr = share(rows, lambda a, b, y: a in y and b not in y)
    return {
        "acc_old": len(old_right) / n,
        "acc_new": 1 - len(new_wrong) / n,
        "nfr": nfr,
        "pfr": share(rows, lambda a, b, y: a not in y and b in y),
        "nfr_mc": share(rows, lambda a, b, y: b not in y and a != b),
        "btc": share(old_right, lambda a, b, y: b in y),
        "bec": share(new_wrong, lambda a, b, y: a not in y),
        "nfi": share(new_wrong, lambda a, b, y: a in y),
        "relative_nfr": nfr / independent if independent else math.nan,
        "agreement": share(rows, lambda a, b, y: a == b),
    }


@given(answered())
def test_rates_agree_with_a_count_by_hand(data):
    (old, new), targets = data
    found = flip_metrics(old, new, targets)
    expected = brute_force(old, new, targets)
    assert {name: found[name] for name in RATES} == pytest.approx(expected, nan_ok=True)


@given(answered())
def test_identities(data):
    (old, new), targets = data
    m = flip_metrics(old, new, targets)
    parts = [m[name] for name in ("both_right", "positive_flips", "both_wrong", "negative_flips")]
    assert sum(parts) == m["items"] == len(old)
    assert sum(part / m["items"] for part in parts) == pytest.approx(1)
    assert m["acc_new"] - m["acc_old"] == pytest.approx(m["pfr"] - m["nfr"])
    assert m["nfr"] <= m["nfr_mc"] + 1e-12
    assert m["bec"] + m["nfi"] == pytest.approx(1, nan_ok=True) or math.isnan(m["bec"])
    assert m["nfr"] <= min(m["acc_old"], 1 - m["acc_new"]) + 1e-12


@given(answered())
def test_exchanging_the_models_exchanges_the_flips(data):
    (old, new), targets = data
    there, back = flip_metrics(old, new, targets), flip_metrics(new, old, targets)
    assert (there["nfr"], there["pfr"]) == (back["pfr"], back["nfr"])
    assert (there["acc_old"], there["agreement"]) == (back["acc_new"], back["agreement"])


@given(answered(), st.randoms())
def test_order_of_the_items_does_not_matter(data, random):
    (old, new), targets = data
    order = list(range(len(old)))
    random.shuffle(order)
    shuffled = flip_metrics(*([values[i] for i in order] for values in (old, new, targets)))
    assert shuffled == pytest.approx(flip_metrics(old, new, targets), nan_ok=True)


@given(answered())
def test_strings_count_like_indices(data):
    (old, new), targets = data
    as_text = [[str(t) for t in target] if isinstance(target, list) else str(target) for target in targets]
    found = flip_metrics([str(a) for a in old], [str(a) for a in new], as_text)
    assert found == pytest.approx(flip_metrics(old, new, targets), nan_ok=True)


@given(answered(models=3))
def test_compatibility_forms_are_the_plain_ones_of_the_third_model(data):
    (old, new, compat), targets = data
    m = flip_metrics(old, new, targets, compat_predictions=compat)
    alone = flip_metrics(old, compat, targets)
    assert m["acc_c"] == alone["acc_new"]
    for name in ("nfr", "pfr", "nfr_mc"):
        assert m[f"{name}_c"] == alone[name]
        assert m[f"delta_{name}_c"] == pytest.approx(alone[name] - m[name])
    expected = 100 * (alone["nfr"] - m["nfr"]) / m["nfr"] if m["nfr"] else math.nan
    assert m["delta_nfr_c_percent"] == pytest.approx(expected, nan_ok=True)
    assert m["delta_acc_c"] == pytest.approx((m["pfr_c"] - m["nfr_c"]) - (m["pfr"] - m["nfr"]))


def test_an_unchanged_model_flips_nothing():
    m = flip_metrics([0, 1, 2, 1], [0, 1, 2, 1], [0, 0, 2, 1])
    assert (m["nfr"], m["pfr"], m["nfr_mc"], m["agreement"], m["btc"]) == (0, 0, 0, 1, 1)


def test_empty_denominators_are_nan():
    nothing = flip_metrics([], [], [])
    assert nothing["items"] == 0 and all(math.isnan(nothing[name]) for name in RATES)
    old_always_wrong = quadrants([False, False], [True, False])
    assert math.isnan(old_always_wrong.btc) and math.isnan(old_always_wrong.relative_nfr)
    new_always_right = quadrants([True, False], [True, True])
    assert math.isnan(new_always_right.bec) and math.isnan(new_always_right.nfi)
    assert math.isnan(flip_metrics_from_correct([True], [True], [False])["delta_nfr_c_percent"])


# Table of the paper's results: accuracy of v1, v2 and v2^C, NFR, the change of NFR and its percentage. With rounded
# accuracies every quadrant follows from these.
PUBLISHED = {
    "HellaSwag Llama 1->2": (72.74, 72.91, 79.53, 10.27, -4.17, -40.60, 10_000),
    "HellaSwag Phi 1.5->2": (69.76, 78.02, 77.86, 3.09, 0.24, 7.77, 10_000),
    "PIQA Llama 1->2": (74.86, 74.76, 79.27, 11.59, -3.97, -34.25, 10_000),
    "GSM8K Vicuna 1.3->1.5": (26.72, 29.91, 31.84, 11.60, -0.99, -8.53, 10_000),
}


def rebuilt(acc_old, acc_new, nfr, n):
    """Right-or-wrong arrays with these rates (percent)."""
    right, lost, total = (round(x * n / 100) for x in (acc_old, nfr, acc_new))
    old = np.arange(n) < right
    new = np.zeros(n, dtype=bool)
    new[: right - lost] = True
    new[right : right + total - (right - lost)] = True
    return old, new


@pytest.mark.parametrize("row", PUBLISHED)
def test_published_numbers(row):
    acc_old, acc_new, acc_c, nfr, delta, percent, n = PUBLISHED[row]
    old, new = rebuilt(acc_old, acc_new, nfr, n)
    _, compat = rebuilt(acc_old, acc_c, nfr + delta, n)
    m = flip_metrics_from_correct(old, new, compat)
    assert 100 * m["acc_new"] == pytest.approx(acc_new, abs=0.01)
    assert 100 * m["delta_nfr_c"] == pytest.approx(delta, abs=0.01)
    assert m["delta_nfr_c_percent"] == pytest.approx(percent, abs=0.1)
    assert 100 * m["pfr"] == pytest.approx(acc_new - acc_old + nfr, abs=0.02)


def test_relative_nfr_of_the_published_hellaswag_update():
    old, new = rebuilt(72.74, 72.91, 10.27, 10_000)
    _, compat = rebuilt(72.74, 79.53, 10.27 - 4.17, 10_000)
    m = flip_metrics_from_correct(old, new, compat)
    assert m["relative_nfr"] == pytest.approx(0.521, abs=5e-4)
    assert m["relative_nfr_c"] == pytest.approx(0.410, abs=5e-4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flip_metrics([0, 1], [0], [0, 1]), "new_predictions has 1"),
        (lambda: flip_metrics([0], [0], [0, 1]), "targets has 2"),
        (lambda: flip_metrics([0.0, math.nan], [0, 1], [0, 1]), "nan at position 1"),
        (lambda: flip_metrics(["a", math.nan], ["a", "b"], ["a", "b"]), "old_predictions holds nan at position 1"),
        (lambda: flip_metrics(["a"], ["b"], [0]), "strings and targets are numbers"),
        (lambda: flip_metrics([[0]], [[1]], [0]), "one-dimensional"),
        (lambda: quadrants([0, 2], [1, 1]), "True/False"),
        (lambda: quadrants([True], [True, False]), "unequal lengths"),
        (lambda: flip_metrics_from_correct([True], [True], [True, True]), "unequal lengths"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(MuscleError, match=message):
        call()


def test_several_right_answers_of_many_kinds():
    assert is_correct(["a", "b", "c"], [{"a", "x"}, ("y",), np.array(["c", "d"])]).tolist() == [True, False, True]
