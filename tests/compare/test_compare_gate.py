"""The gate of a comparison, its budget and baseline, and the noise floor."""

from __future__ import annotations

import dataclasses
from xml.etree import ElementTree

import numpy as np
import pytest
from compare_files import choice_predictions, flipping, score_predictions, sources, three, write

from muscle_hf import MuscleError
from muscle_hf.compare import (
    Budget,
    compare,
    measure_noise,
    read_baseline,
    read_budget,
)
from muscle_hf.compare.noise import noise_json, read_noise
from muscle_hf.report import junit, wording


def gate_of(old, new, *compat, **kwargs):
    return compare(*sources(old, new, *compat), **kwargs).gate


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
    estimate = gate.checks[0].estimate
    # A broken limit is shown with the bound that is beyond it.
    assert estimate.value == flips / items and (estimate.high == 1 if verdict == "fail" else estimate.low == 0)


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
    with pytest.raises(MuscleError, match=r"last.*tasks"):
        read_baseline(str(path))
    with pytest.raises(MuscleError, match="no baseline file"):
        read_baseline(str(tmp_path / "nothing"))


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
    with pytest.raises(MuscleError, match=r"bad.*nfr"):
        read_noise(str(tmp_path / "bad.json"))


def test_the_noise_floor_of_flips_is_not_held_against_differences():
    old, again = flipping(400, 4)
    budget = Budget(limits={"max_nfr": {"*": 0.1}, "max_regression": {"*": 0.1}}, noise={"ways": 0.05})
    floors = {check.rule: check.noise_floor for check in compare(*sources(old, again), budget=budget).gate.checks}
    assert floors == {"max_nfr": 0.05, "max_regression": None}


def test_a_control_is_shown_and_never_judged():
    old, new, compat = three(2000)
    budget = Budget(limits={"max_nfr": {"*": 0.12}})
    sides = sources(old, new, compat, new)
    judged = compare(*sides, labels=["old", "new", "muscle", "control"], budget=budget, controls=["control"])
    assert judged.gate.verdict == "pass" and judged.gate.by_candidate == {"muscle": "pass"}
    assert [model.role for model in judged.models] == ["old", "new", "compat", "control"]
    control = judged.tasks[0].updates[2]
    assert control.role == "control" and control.against_new.delta_nfr.value == 0 and control.inheritance is not None
    both = compare(*sides, labels=["old", "new", "muscle", "control"], budget=budget).gate
    assert both.verdict == "fail" and both.by_candidate == {"muscle": "pass", "control": "fail"}
    only = compare(*sources(old, compat, new), labels=["a", "b", "c"], budget=budget, controls=["c"]).gate
    assert only.by_candidate == {"b": "pass"}
    for bad in ({"controls": ["x"]}, {"controls": ["c"], "candidates": ["c"]}, {"controls": ["b", "c"]}):
        with pytest.raises(MuscleError, match="control"):
            compare(*sources(old, compat, new), labels=["a", "b", "c"], **bad)


def test_models_are_named_by_any_path_that_leads_to_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = ("old", "new", "muscle", "control")
    for name, rows in zip(names, [*three(200), three(200)[1]], strict=True):
        write(tmp_path / f"{name}.jsonl", rows)
    (tmp_path / "link.jsonl").symlink_to("muscle.jsonl")
    budget, sides = Budget(limits={"max_nfr": {"*": 0.5}}), [f"{name}.jsonl" for name in names]
    for control, candidate in (("./control.jsonl", "muscle"), (str(tmp_path / "control.jsonl"), "link.jsonl")):
        document = compare(*sides, labels=names, budget=budget, controls=[control], candidates=[candidate])
        assert document.gate.by_candidate == {"muscle": "pass"} and document.models[3].role == "control"


def test_the_total_has_limits_of_its_own():
    old = [row for t in range(5) for row in choice_predictions(200, 1.0, t, task=f"t{t}")]
    new = [
        dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) if i % 50 == 0 else p
        for i, p in enumerate(old)
    ]
    gate = gate_of(old, new, budget=Budget(limits={"max_nfr": {"total": 0.035}}))
    assert [(check.task, check.verdict) for check in gate.checks] == [("total", "pass")]
    document = compare(*sources(old, new), budget=Budget(limits={"max_nfr": {"total": 0.001}}))
    assert ElementTree.fromstring(junit.render(document)).get("failures") == "1"
    each = gate_of(old, new, budget=Budget(limits={"max_nfr": {"*": 0.035}}))
    assert {check.task for check in each.checks} == {f"t{t}" for t in range(5)} and each.exit_code == 3


def test_what_limits_nothing_is_no_gate(tmp_path):
    sides = flipping(400, 60)
    for text in ("tasks: {}\n", "max_nfr: 1%\nmax_nfr: 90%\n"):
        (tmp_path / "budget.yaml").write_text(text, encoding="utf-8")
        with pytest.raises(MuscleError, match="max_nfr"):
            gate_of(*sides, budget=read_budget(str(tmp_path / "budget.yaml")))
    for level in (0.05, 1.0, float("nan")):
        with pytest.raises(MuscleError, match="level"):
            gate_of(*sides, budget=Budget(limits={"max_nfr": {"*": 0.5}}, level=level))


def test_tasks_that_a_baseline_has_more_or_less_are_named(tmp_path):
    old, new = flipping(100, 3)
    path = tmp_path / "earlier.json"
    others = ([dataclasses.replace(row, task="other") for row in side] for side in (old, new))
    twice = [[*side, *more] for side, more in zip((old, new), others, strict=True)]
    path.write_text(compare(*sources(*twice)).to_json(), encoding="utf-8")
    warnings = compare(*sources(old, new), budget=Budget(baseline=read_baseline(str(path)))).warnings
    assert any("other" in text for text in warnings)
