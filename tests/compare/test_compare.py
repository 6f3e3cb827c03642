"""Comparisons: counts against brute force, flips, documents, several tasks."""

from __future__ import annotations

import dataclasses
import json
import math
import sys

import numpy as np
import pytest
from compare_files import choice_predictions, flipping, score_predictions, sources, three, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from report_documents import full_document

from muscle_hf import MuscleError
from muscle_hf.compare import (
    AnalysisOptions,
    Budget,
    compare,
)
from muscle_hf.metrics import flip_metrics, flip_metrics_from_correct, smooth_flip_metrics


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


@pytest.mark.parametrize("column", ["correct", "score"])
@pytest.mark.parametrize(("lost", "verdict"), [(8, "no difference shown"), (0, "better")])
def test_gains_elsewhere_are_no_fewer_flips(column, lost, verdict):
    """Answered twice, right at a rate, or as scores: new loses half of each of 8 items of 40, compat of 8 others."""
    values = {"old": [1.0] * 40 + [0.0] * 40}
    values["new"] = [0.5] * 8 + [1.0] * 32 + [0.0] * 40
    values["compat"] = [1.0] * 8 + [0.5] * lost + [1.0] * (32 - lost) + [1.0] * 40

    def rows(side):
        if column == "score":
            return [{"id": i, "score": value} for i, value in enumerate(values[side])]
        return [{"id": i, "correct": value > run} for i, value in enumerate(values[side]) for run in (0.0, 0.5)]

    for tasks in ("ab", "a"):  # a total, and a task
        sides = [[{"task": task, **row} for task in tasks for row in rows(side)] for side in values]
        document = compare(*sides)
        versus = [each.updates[1].against_new for each in [*document.tasks, *document.totals]]
        assert all(v.delta_accuracy.low > 0 for v in versus) and len(versus) == (3 if tasks == "ab" else 1)
        assert {v.verdict for v in versus} == {verdict}
        assert all((v.p_value == 1) == (verdict == "no difference shown") for v in versus)


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
    assert data["schema_version"] == 2 and update["rates"]["bec"]["value"] is None
    assert update["verdict"] == "no difference shown" and update["p_value"] == 1.0


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


def many_tasks(accuracy, seed):
    return [row for t in range(4) for row in choice_predictions(150, accuracy, seed + 10 * t, task=f"task{t}")]


def test_tasks_have_a_total_and_are_corrected():
    document = compare(*sources(many_tasks(0.8, 1), many_tasks(0.6, 2), many_tasks(0.8, 3)))
    (total,) = document.totals
    new, compat = total.updates
    rates = [task.updates[0].rates["nfr"] for task in document.tasks]
    assert (total.name, total.items, total.tasks) == ("total", 600, [f"task{i}" for i in range(4)])
    assert new.rates["nfr"].value == pytest.approx(sum(rate.value for rate in rates) / 4)
    assert new.counts["negative_flips"] == sum(rate.count for rate in rates)
    assert total.accuracy_old.value == pytest.approx(np.mean([task.accuracy_old.value for task in document.tasks]))
    changes = [task.updates[0].change for task in document.tasks]
    assert new.change.value == pytest.approx(np.mean([change.value for change in changes]))
    assert new.change.high - new.change.low < min(change.high - change.low for change in changes)
    assert new.p_value < min(task.updates[0].p_value for task in document.tasks) and new.verdict == "worse"
    assert new.against_new is None and compat.against_new.p_value < 0.05
    for task in document.tasks:
        for update in task.updates:
            assert update.p_value <= update.p_adjusted <= min(1.0, 4 * update.p_value) + 1e-12


def test_scores_have_a_total_for_each_metric():
    sides = [
        [row for t in range(2) for row in score_predictions(60, level, seed + t, task=f"sum{t}")]
        + choice_predictions(40, 0.8, seed)
        for level, seed in ((0.5, 1), (0.3, 5))
    ]
    document = compare(*sources(*sides), budget=Budget(limits={"max_regression": {"total rouge1": 0.05}}))
    (total,) = document.totals
    assert total.name == "total rouge1" and total.kind == "score" and total.updates[0].verdict == "worse"
    (check,) = document.gate.checks
    assert (check.task, check.verdict) == ("total rouge1", "fail")
    falls = [-task.updates[0].change.value for task in document.tasks if task.kind == "score"]
    assert check.estimate.value == pytest.approx(np.mean(falls))


def test_clusters_count_in_the_total():
    old = many_tasks(0.9, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    new = [wrong[i] if (i // 5) % 4 == 0 else p for i, p in enumerate(old)]
    apart = compare(*sources(old, new, old)).totals[0].updates
    together = compare(*sources(old, new, old), analysis=AnalysisOptions(cluster="source")).totals[0].updates
    for narrow, wide in zip(apart, together, strict=True):
        assert wide.rates["nfr"].value == narrow.rates["nfr"].value
        assert wide.p_value >= narrow.p_value
    assert together[0].rates["nfr"].high > apart[0].rates["nfr"].high
    assert together[1].against_new.p_value < 0.01


@pytest.mark.parametrize("text", ["plain", "a lone \ud800 surrogate"])
def test_json_is_the_same_with_and_without_the_fast_library(text, monkeypatch):
    document = full_document()
    document = dataclasses.replace(document, warnings=[text], options={"nan": math.nan, 3: (math.inf, None)})
    fast = document.to_json()
    monkeypatch.setitem(sys.modules, "orjson", None)
    assert json.loads(fast) == json.loads(document.to_json()) == json.loads(json.dumps(document.to_dict()))
    assert document.to_dict()["gate"]["exit_code"] == 1


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        (["a"], {}, "2 models need 2 different labels"),
        (["a", "a"], {}, "different labels"),
        (None, {"level": 95}, "level must lie"),
        (None, {"epsilon": math.nan}, "epsilon"),
        (None, {"max_flips": -1}, "max_flips"),
    ],
)
def test_bad_options(labels, options, message):
    with pytest.raises(MuscleError, match=message):
        compare(*sources(*flipping(5, 1)), labels=labels, analysis=AnalysisOptions(**options))


def test_files_and_memory_are_the_same(tmp_path):
    old, new, compat = three(50)
    paths = [write(tmp_path / f"{i}.jsonl", side) for i, side in enumerate((old, new, compat))]
    from_files, from_memory = compare(*paths), compare(*sources(old, new, compat))
    assert from_files.tasks == from_memory.tasks
