"""Comparisons: counts against brute force, joins that refuse, slices, flips, pooling, the gate and the noise floor."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import sys

import numpy as np
import pytest
from compare_files import choice_predictions, score_predictions, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_documents import full_document

from muscle_hf import MuscleError
from muscle_hf.compare import (
    AnalysisOptions,
    Budget,
    compare,
    measure_noise,
    read_baseline,
    read_budget,
    source_of,
)
from muscle_hf.compare.noise import noise_json, read_noise
from muscle_hf.metrics import flip_metrics, flip_metrics_from_correct, smooth_flip_metrics
from muscle_hf.report import wording


def sources(*predictions):
    return [source_of(rows) for rows in predictions]


def three(items=400):
    old, new = choice_predictions(items, 0.7, 1), choice_predictions(items, 0.72, 2)
    rng = random.Random(3)
    compat = [a if a.correct and rng.random() < 0.8 else b for a, b in zip(old, new, strict=True)]
    return old, new, compat


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_a_document_has_the_numbers_of_the_metrics():
    old, new, compat = three()
    document = compare(*sources(old, new, compat))
    task = document.tasks[0]
    answers = [[p.prediction for p in side] for side in (old, new, compat)]
    m = flip_metrics(answers[0], answers[1], [p.target for p in old], compat_predictions=answers[2])
    plain, c = task.updates
    for name in ("nfr", "pfr", "nfr_mc", "btc", "bec", "nfi", "relative_nfr", "agreement"):
        assert plain.rates[name].value == pytest.approx(m[name])
        assert c.rates[name].value == pytest.approx(m[f"{name}_c"])
    assert task.accuracy_old.value == m["acc_old"] and plain.accuracy.value == m["acc_new"]
    assert plain.change.value == pytest.approx(m["acc_new"] - m["acc_old"])
    assert sum(plain.counts.values()) == task.items == 400
    versus = c.against_new
    assert versus.delta_nfr.value == pytest.approx(m["delta_nfr_c"])
    assert versus.delta_nfr_percent == pytest.approx(m["delta_nfr_c_percent"])
    assert versus.delta_pfr.value == pytest.approx(m["delta_pfr_c"])
    assert versus.delta_accuracy.value == pytest.approx(m["delta_acc_c"])
    assert versus.verdict == "better" and versus.delta_nfr.high < 0
    assert plain.against_new is None


def test_flows_add_up_to_the_quadrants():
    task = compare(*sources(*three())).tasks[0]
    flows = {flow.states: flow.items for flow in task.updates[1].against_new.flows}
    assert len(flows) == 8 and sum(flows.values()) == task.items
    for place, update in ((1, task.updates[0]), (2, task.updates[1])):
        lost = sum(n for states, n in flows.items() if (states[0], states[place]) == ("right", "wrong"))
        assert lost == update.counts["negative_flips"]


def test_scores():
    old, new, compat = (score_predictions(200, level, seed) for level, seed in ((0.5, 1), (0.5, 2), (0.6, 3)))
    task = compare(*sources(old, new, compat), analysis=AnalysisOptions(epsilon=0.05)).tasks[0]
    scores = [[p.score for p in side] for side in (old, new, compat)]
    m = smooth_flip_metrics(scores[0], scores[1], compat_scores=scores[2], epsilon=0.05)
    plain, c = task.updates
    assert task.kind == "score" and task.metric == "rouge1"
    for name in ("nfr_smooth", "pfr_smooth", "m_g", "m_r"):
        assert plain.rates[name].value == pytest.approx(m[name])
        assert plain.rates[name].low <= m[name] <= plain.rates[name].high
    assert plain.counts == {
        "improved": m["improved"],
        "unchanged": 200 - m["improved"] - m["regressed"],
        "regressed": m["regressed"],
    }
    assert c.verdict == "better" and c.against_new.delta_nfr.value == pytest.approx(m["delta_nfr_smooth_c"])
    assert sum(flow.items for flow in c.against_new.flows) == 200
    worst = task.flips[0]
    assert worst.outcomes["new"] == "regressed" and worst.correct["old"] is None
    moved = [f.scores["old"] - f.scores["new"] for f in task.flips if f.outcomes["new"] == "regressed"]
    assert len(moved) == m["regressed"] and max(moved[:5]) == pytest.approx(max(moved), abs=0.2)


@settings(max_examples=25, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30), st.randoms())
def test_the_order_of_a_file_does_not_matter(answers, rng):
    base = choice_predictions(len(answers), 1.0, 0)

    def side(place):
        return [
            dataclasses.replace(p, prediction=pair[place], correct=pair[place] == p.target)
            for p, pair in zip(base, answers, strict=True)
        ]

    old, new = side(0), side(1)
    shuffled = rng.sample(new, len(new))
    straight, mixed = (compare(*sources(old, other)).tasks[0].updates[0] for other in (new, shuffled))
    assert straight.counts == mixed.counts and straight.rates == mixed.rates
    m = flip_metrics_from_correct([p.correct for p in old], [p.correct for p in new])
    assert straight.counts["negative_flips"] == m["negative_flips"]


def test_a_document_is_plain_json_and_nan_is_null():
    right = choice_predictions(5, 1.0, 1)
    data = json.loads(compare(*sources(right, right)).to_json())
    update = data["tasks"][0]["updates"][0]
    assert data["schema_version"] == 1 and update["rates"]["bec"]["value"] is None
    assert update["verdict"] == "no difference shown" and update["p_value"] == 1.0


# --- flips -----------------------------------------------------------------------------------------------------------


def test_flips_come_worst_first_with_their_texts():
    old, new, compat = three()
    task = compare(*sources(old, new, compat)).tasks[0]
    kinds = [
        3 if f.outcomes["new"] == "negative" else 2 if f.outcomes["compat"] == "negative" else 1 for f in task.flips
    ]
    assert kinds == sorted(kinds, reverse=True) and set(kinds) >= {1, 3}
    expected = {
        a.id for a, b, c in zip(old, new, compat, strict=True) if a.correct != b.correct or a.correct != c.correct
    }
    assert {flip.id for flip in task.flips} == expected and task.flips_total == len(expected)
    first = task.flips[0]
    assert first.prompt.startswith("Question") and first.answers["old"] == first.target in first.choices
    assert first.columns["tone"] in ("calm", "angry")


def test_flips_are_sorted_by_lost_confidence():
    old = choice_predictions(40, 1.0, 1)
    new = [
        dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False, log_likelihoods=[0.0] * 4)
        if i % 4 == 0
        else p
        for i, p in enumerate(old)
    ]
    sure = dataclasses.replace(new[8], log_likelihoods=[-50.0, 0.0, -50.0, -50.0])
    flips = compare(*sources(old, [*new[:8], sure, *new[9:]])).tasks[0].flips
    assert flips[0].id == "item-8" and len(flips) == 10


def test_the_list_of_flips_can_be_cut():
    task = compare(*sources(*three()), analysis=AnalysisOptions(max_flips=3)).tasks[0]
    assert len(task.flips) == 3 < task.flips_total


# --- joining ---------------------------------------------------------------------------------------------------------


def test_missing_and_extra_items_are_listed_or_left_out():
    old, new = choice_predictions(30, 0.8, 1), choice_predictions(32, 0.8, 2)[2:]
    with pytest.raises(MuscleError, match=r"missing in new \(2\): 'item-0', 'item-1'; only in new \(2\): 'item-30'"):
        compare(*sources(old, new))
    document = compare(*sources(old, new), allow_partial=True)
    assert document.tasks[0].items == 28 and document.tasks[0].left_out == 4
    assert any("missing in new" in warning for warning in document.warnings)


def test_changed_items_are_listed_or_left_out():
    old, new = choice_predictions(30, 0.8, 1), choice_predictions(30, 0.8, 2)
    new[4] = dataclasses.replace(new[4], hash="0" * 15 + "7")
    with pytest.raises(MuscleError, match=r"changed in new: 'item-4'.*--allow-partial"):
        compare(*sources(old, new))
    assert compare(*sources(old, new), allow_partial=True).tasks[0].items == 29


def test_long_lists_are_cut():
    with pytest.raises(MuscleError, match="and 90 more"):
        compare(*sources(choice_predictions(200, 0.8, 1), choice_predictions(100, 0.8, 1)))


def test_nothing_in_common():
    old, new = choice_predictions(5, 1, 1), choice_predictions(10, 1, 1)[5:]
    with pytest.raises(MuscleError, match="no item is left"):
        compare(*sources(old, new), allow_partial=True)


def test_mixed_tasks():
    ways, roads = choice_predictions(20, 0.8, 1), choice_predictions(20, 0.8, 1, task="roads")
    with pytest.raises(MuscleError, match=r"not asked the same tasks.*'ways'.*'roads'"):
        compare(*sources(ways, roads))
    with pytest.raises(MuscleError, match=r"new has 'roads', which old .* lacks.*--task"):
        compare(*sources(ways, ways + roads))
    document = compare(*sources(ways, ways + roads), allow_partial=True)
    assert [task.name for task in document.tasks] == ["ways"] and "'roads'" in document.warnings[0]


def test_different_metrics_and_kinds():
    old = choice_predictions(5, 1, 1)
    with pytest.raises(MuscleError, match=r"different metrics .*acc_norm"):
        compare(*sources(old, choice_predictions(5, 1, 1, metric="acc_norm")))
    scores = [dataclasses.replace(p, correct=None, score=0.5) for p in old]
    with pytest.raises(MuscleError, match="right / wrong for some models and a score for others"):
        compare(*sources(old, scores))


# --- many tasks ------------------------------------------------------------------------------------------------------


def many_tasks(accuracy, seed):
    return [row for t in range(4) for row in choice_predictions(150, accuracy, seed + 10 * t, task=f"task{t}")]


def test_tasks_are_pooled_and_corrected():
    document = compare(*sources(many_tasks(0.8, 1), many_tasks(0.6, 2), many_tasks(0.8, 3)))
    pooled, compat = document.pooled
    rates = [task.updates[0].rates["nfr"] for task in document.tasks]
    assert pooled.tasks == 4
    assert pooled.nfr.value == pytest.approx(sum(rate.value for rate in rates) / 4)
    assert pooled.nfr_items.value == pytest.approx(sum(rate.count for rate in rates) / 600)
    assert pooled.p_value < min(task.updates[0].p_value for task in document.tasks)
    assert pooled.p_value_against_new is None and compat.p_value_against_new < 0.05
    for task in document.tasks:
        for update in task.updates:
            assert update.p_value <= update.p_adjusted <= min(1.0, 4 * update.p_value) + 1e-12


def test_clusters_count_in_the_pooled_result():
    old = many_tasks(0.9, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    new = [wrong[i] if (i // 5) % 4 == 0 else p for i, p in enumerate(old)]
    apart = compare(*sources(old, new, old)).pooled
    together = compare(*sources(old, new, old), analysis=AnalysisOptions(cluster="source")).pooled
    for narrow, wide in zip(apart, together, strict=True):
        assert wide.nfr.value == narrow.nfr.value and wide.nfr.high >= narrow.nfr.high
        assert wide.p_value >= narrow.p_value
    assert together[0].nfr.high > apart[0].nfr.high and together[1].p_value_against_new < 0.01


# --- slices and clusters ---------------------------------------------------------------------------------------------


def sliced(items=400):
    """The new model fails on angry items only."""
    old = choice_predictions(items, 0.9, 1)
    angry = [p.columns["tone"] == "angry" for p in old]
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    return old, [wrong[i] if angry[i] and i % 3 == 0 else p for i, p in enumerate(old)]


def test_the_slice_that_regresses_comes_first():
    update = compare(*sources(*sliced())).tasks[0].updates[0]
    first, *others = update.slices
    assert (first.column, first.value, first.verdict) == ("tone", "angry", "worse")
    calm = next(entry for entry in others if entry.value == "calm")
    assert calm.verdict == "no difference shown" and calm.nfr.value == 0
    assert first.items + calm.items == 400
    for entry in update.slices:
        assert sum(entry.counts.values()) == entry.items and entry.p_adjusted >= entry.p_value
    assert first.counts["negative_flips"] + calm.counts["negative_flips"] == update.counts["negative_flips"]


def test_the_correction_grows_with_the_number_of_slices():
    old, new = sliced()
    one = compare(*sources(old, new), analysis=AnalysisOptions(slices=["tone"])).tasks[0].updates[0].slices
    two = compare(*sources(old, new), analysis=AnalysisOptions(slices=["tone", "source"])).tasks[0].updates[0].slices
    assert len(one) == 2 and len(two) == 82
    find = lambda slices: next(entry for entry in slices if entry.value == "angry")  # noqa: E731
    assert find(two).p_adjusted > find(one).p_adjusted and find(two).p_value == find(one).p_value


def test_numbers_are_cut_into_quarters_and_none_means_no_slices():
    old, new = sliced()
    quarters = compare(*sources(old, new), analysis=AnalysisOptions(slices=["length"])).tasks[0].updates[0].slices
    assert len(quarters) == 4 and sum(entry.items for entry in quarters) == 400
    assert compare(*sources(old, new), analysis=AnalysisOptions(slices=())).tasks[0].updates[0].slices == []


def test_slices_of_scores():
    old, new = score_predictions(200, 0.5, 1), score_predictions(200, 0.5, 1)
    new = [dataclasses.replace(p, score=p.score / 2) if i % 2 else p for i, p in enumerate(new)]
    first, second = compare(*sources(old, new)).tasks[0].updates[0].slices
    assert (first.value, first.verdict, second.verdict) == ("angry", "worse", "no difference shown")


def test_unknown_columns():
    with pytest.raises(MuscleError, match=r"no column 'tome' to slice by .did you mean 'tone'"):
        compare(*sources(*sliced()), analysis=AnalysisOptions(slices=["tome"]))
    homeless = [dataclasses.replace(p, columns={"source": None if p.id == "item-3" else "a"}) for p in sliced()[0]]
    with pytest.raises(MuscleError, match="item 'item-3' has no 'source'"):
        compare(*sources(homeless, homeless), analysis=AnalysisOptions(cluster="source"))
    with pytest.raises(MuscleError, match="no column 'origin' that names clusters"):
        compare(*sources(*sliced()), analysis=AnalysisOptions(cluster="origin"))


def test_clusters_make_everything_less_certain():
    old = choice_predictions(300, 0.9, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    new = [wrong[i] if (i // 5) % 4 == 0 else p for i, p in enumerate(old)]  # whole sources fail
    apart = compare(*sources(old, new)).tasks[0].updates[0]
    together = compare(*sources(old, new), analysis=AnalysisOptions(cluster="source")).tasks[0].updates[0]
    for name in ("nfr", "btc", "relative_nfr"):
        narrow, wide = apart.rates[name], together.rates[name]
        assert wide.value == narrow.value and wide.high - wide.low > narrow.high - narrow.low
    assert together.change.high - together.change.low > apart.change.high - apart.change.low
    assert together.p_value > apart.p_value


# --- the gate --------------------------------------------------------------------------------------------------------


def gate_of(old, new, *compat, **kwargs):
    return compare(*sources(old, new, *compat), **kwargs).gate


def flipping(items, flips):
    """An update that breaks exactly this many right answers."""
    old = choice_predictions(items, 1.0, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old[:flips]]
    return old, wrong + old[flips:]


@pytest.mark.parametrize(
    ("items", "flips", "limit", "verdict", "code"),
    [
        (1000, 10, 0.03, "pass", 0),
        (1000, 10, 0.01, "too little data", 3),  # the point keeps the limit, the bound does not
        (1000, 50, 0.03, "fail", 1),
        (50, 0, 0.03, "too little data", 3),  # no flip at all, but among too few items
        (200, 0, 0.03, "pass", 0),
    ],
)
def test_the_gate_decides_on_the_bound(items, flips, limit, verdict, code):
    gate = gate_of(*flipping(items, flips), budget=Budget(limits={"max_nfr": {"*": limit}}))
    assert (gate.verdict, gate.exit_code, gate.checks[0].limit) == (verdict, code, limit)
    assert gate.checks[0].estimate.value == flips / items and gate.checks[0].estimate.low == 0


def test_messages_name_the_bound_that_decided():
    messages = {}
    for flips in (10, 50):
        (check,) = gate_of(*flipping(1000, flips), budget=Budget(limits={"max_nfr": {"*": 0.03}})).checks
        messages[check.verdict] = check.message
    assert "NFR is 1.00%, at most 1.67%" in messages["pass"]
    assert "NFR is 5.00%, at least 3.98%" in messages["fail"]


def test_regression_and_gain():
    old, new = choice_predictions(2000, 0.6, 1), choice_predictions(2000, 0.8, 2)
    budget = Budget(limits={"min_accuracy_gain": {"ways": 0.1}, "max_regression": {"*": 0.0}})
    gate = gate_of(old, new, budget=budget)
    assert gate.verdict == "pass" and {check.rule for check in gate.checks} == {"max_regression", "min_accuracy_gain"}
    back = gate_of(new, old, budget=budget)
    assert [check.verdict for check in back.checks] == ["fail", "fail"]
    gain = next(check.estimate.value for check in gate.checks if check.rule == "min_accuracy_gain")
    unsure = gate_of(old, new, budget=Budget(limits={"min_accuracy_gain": {"*": gain}}))
    assert unsure.verdict == "too little data"


def test_the_gate_judges_what_would_ship():
    old, new, compat = three(2000)
    budget = Budget(limits={"max_nfr": {"*": 0.12}})
    assert [c.label for c in gate_of(old, new, budget=budget).checks] == ["new"]
    assert [c.label for c in gate_of(old, new, compat, budget=budget).checks] == ["compat"]
    both = gate_of(old, new, compat, budget=budget, candidates=["new", "compat"])
    assert [c.verdict for c in both.checks] == ["fail", "pass"] and both.exit_code == 1
    with pytest.raises(MuscleError, match="no updated model 'old'"):
        gate_of(old, new, budget=budget, candidates=["old"])


def test_scores_have_a_gate_too():
    old, new = score_predictions(300, 0.6, 1), score_predictions(300, 0.4, 2)
    limits = {"max_regression": {"*": 0.05}, "max_nfr": {"*": 0.9}}
    assert [c.verdict for c in gate_of(old, new, budget=Budget(limits=limits)).checks] == ["pass", "fail"]


def test_limits_of_scores_are_in_their_own_unit():
    """A judge's marks from 0 to 10: a fall of two marks is no fall of 200 %."""
    old, new = score_predictions(300, 0.6, 1), score_predictions(300, 0.4, 2)
    old, new = ([dataclasses.replace(p, score=10 * p.score) for p in side] for side in (old, new))
    gate = gate_of(old, new, budget=Budget(limits={"max_regression": {"*": 1.5}, "min_accuracy_gain": {"*": -5.0}}))
    fall, gain = gate.checks
    assert (fall.verdict, gain.verdict) == ("fail", "pass")
    assert fall.estimate.value == pytest.approx(np.mean([p.score for p in old]) - np.mean([p.score for p in new]))
    for check in gate.checks:
        text = wording.rule_text(check) + wording.with_interval(wording.decisive(check), wording.show_limited(check))
        assert "mean score" in text and "pts" not in text and "%" not in text
        assert "the limit is 1.5" in check.message or "the limit is -5" in check.message
    with pytest.raises(MuscleError, match=r"max_regression of task 'ways' is 5, .* write 0.05 or 5%"):
        gate_of(*flipping(100, 1), budget=Budget(limits={"max_regression": {"*": 5.0}}))


@pytest.mark.parametrize("text", ["plain", "a lone \ud800 surrogate"])
def test_json_is_the_same_with_and_without_the_fast_library(text, monkeypatch):
    document = full_document()
    document = dataclasses.replace(document, warnings=[text], options={"nan": math.nan, 3: (math.inf, None)})
    fast = document.to_json()
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert json.loads(fast) == json.loads(document.to_json()) == json.loads(json.dumps(document.to_dict()))
    assert document.to_dict()["gate"]["exit_code"] == 1


def test_budget_files(tmp_path):
    path = tmp_path / "budget.yaml"
    path.write_text(
        "level: 0.9\nmax_nfr: 3%\nnoise: {ways: 0.004}\ntasks:\n  ways: {max_nfr: 0.05, max_regression: 0.02}\n",
        encoding="utf-8",
    )
    budget = read_budget(str(path))
    assert budget.limit("max_nfr", "ways") == 0.05 and budget.limit("max_nfr", "other") == pytest.approx(0.03)
    assert budget.limit("max_nfr", "ways (strict-match)") == 0.05
    gate = gate_of(*flipping(1000, 10), budget=budget)
    assert gate.verdict == "pass" and gate.budget == str(path) and gate.checks[0].noise_floor == 0.004


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_nrf: 0.1\n", "unknown entry 'max_nrf'; did you mean 'max_nfr'"),
        ("max_nfr: 3\n", "not a fraction"),
        ("max_nfr: much\n", "not a number"),
        ("- 1\n", "table of limits"),
        ("{\n", "not valid YAML"),
        ("tasks: {ways: {max: 1}}\n", "task ways: unknown entry 'max'"),
        ("tasks: {ways: 3}\n", "expected a table"),
        ("level: high\n", "level"),
        ("noise: 3\n", "noise"),
    ],
)
def test_bad_budget_files(text, message, tmp_path):
    path = tmp_path / "budget.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(MuscleError, match=message):
        read_budget(str(path))


def test_limits_for_tasks_that_were_not_compared():
    with pytest.raises(MuscleError, match="'way', which was not compared; there are ways"):
        gate_of(*flipping(10, 1), budget=Budget(limits={"max_nfr": {"way": 0.1}}))


def test_a_baseline_is_a_limit(tmp_path):
    path = tmp_path / "last.json"
    path.write_text(compare(*sources(*flipping(1000, 20))).to_json(), encoding="utf-8")
    budget = Budget(baseline=read_baseline(str(path)))
    verdicts = [gate_of(*flipping(1000, flips), budget=budget).verdict for flips in (15, 28, 80)]
    assert verdicts == ["pass", "too little data", "fail"]
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(MuscleError, match="not a comparison"):
        read_baseline(str(path))
    with pytest.raises(MuscleError, match="no baseline file"):
        read_baseline(str(tmp_path / "nothing"))


# --- the noise floor -------------------------------------------------------------------------------------------------


def test_noise_floor(tmp_path):
    old, again = flipping(400, 4)
    (floor,) = measure_noise(sources(old, again, old))
    # Two of the six ordered pairs lose four answers each.
    assert floor.nfr.value == pytest.approx(2 * 4 / 400 / 6) and floor.nfr_max == pytest.approx(0.01)
    assert floor.runs == 3 and floor.answers_changed == pytest.approx(4 * 4 / 400 / 6)
    assert floor.nfr.low <= floor.nfr.value <= floor.nfr.high
    (silent,) = measure_noise(sources(old, old))
    assert silent.nfr.value == 0 < silent.nfr.high < 0.02
    path = tmp_path / "noise.json"
    path.write_text(noise_json([floor]), encoding="utf-8")
    assert read_noise(str(path)) == [floor]
    document = compare(
        *sources(old, again), noise=[floor], budget=Budget(limits={"max_nfr": {"*": 0.001}}), labels=["a", "b"]
    )
    assert document.noise == [floor] and "below the noise floor" in document.gate.checks[0].message
    assert document.gate.checks[0].noise_floor == floor.nfr.value


def test_a_noise_floor_of_another_task_is_said():
    floors = measure_noise(sources(*(choice_predictions(10, 0.5, seed, task="roads") for seed in (1, 2))))
    document = compare(*sources(*flipping(10, 1)), noise=floors)
    assert document.noise == [] and document.warnings == ["no noise floor was measured for ways"]


def test_noise_needs_two_runs_of_the_same_items(tmp_path):
    with pytest.raises(MuscleError, match="two or more runs"):
        measure_noise(sources(choice_predictions(5, 1, 1)))
    with pytest.raises(MuscleError, match="did not answer the same items"):
        measure_noise(sources(choice_predictions(5, 1, 1), choice_predictions(6, 1, 1)))
    (tmp_path / "bad.json").write_text('{"noise": [{}]}', encoding="utf-8")
    with pytest.raises(MuscleError, match="not a noise floor"):
        read_noise(str(tmp_path / "bad.json"))


# --- bad use ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": ["a"]}, "2 models need 2 different labels"),
        ({"labels": ["a", "a"]}, "different labels"),
        ({"analysis": AnalysisOptions(level=95)}, "level must lie"),
        ({"analysis": AnalysisOptions(epsilon=math.nan)}, "epsilon"),
        ({"analysis": AnalysisOptions(max_flips=-1)}, "max_flips"),
    ],
)
def test_bad_options(kwargs, message):
    with pytest.raises(MuscleError, match=message):
        compare(*sources(*flipping(5, 1)), **kwargs)


def test_files_and_memory_are_the_same(tmp_path):
    old, new, compat = three(50)
    paths = [write(tmp_path / f"{i}.jsonl", side) for i, side in enumerate((old, new, compat))]
    from_files, from_memory = compare(*paths), compare(*sources(old, new, compat))
    assert from_files.tasks == from_memory.tasks
