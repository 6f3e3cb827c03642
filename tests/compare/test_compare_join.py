"""Items of several models side by side: joins that refuse, and what is left out."""

from __future__ import annotations

import dataclasses

import pytest
from compare_files import choice_predictions, sources, write

from muscle_hf import MuscleError
from muscle_hf.compare import (
    compare,
)


def test_missing_and_extra_items_are_listed_or_left_out():
    old, new = choice_predictions(30, 0.8, 1), choice_predictions(32, 0.8, 2)[2:]
    with pytest.raises(MuscleError, match=r"in old \(2\): 'item-30', 'item-31'; .* in new \(2\): 'item-0', 'item-1'"):
        compare(*sources(old, new))
    document = compare(*sources(old, new), missing="drop")
    assert document.tasks[0].items == 28 and document.tasks[0].left_out == 4
    assert any("missing in new" in warning for warning in document.warnings)


def test_changed_items_are_listed_or_left_out():
    old, new = choice_predictions(30, 0.8, 1), choice_predictions(30, 0.8, 2)
    new[4] = dataclasses.replace(new[4], hash="0" * 15 + "7")
    with pytest.raises(MuscleError, match=r"changed in new \(1\): 'item-4'.*--missing drop"):
        compare(*sources(old, new))
    assert compare(*sources(old, new), missing="drop").tasks[0].items == 29


def test_long_lists_are_cut():
    with pytest.raises(MuscleError, match="and 90 more"):
        compare(*sources(choice_predictions(200, 0.8, 1), choice_predictions(100, 0.8, 1)))


def test_nothing_in_common():
    old, new = choice_predictions(5, 1, 1), choice_predictions(10, 1, 1)[5:]
    with pytest.raises(MuscleError, match="No item is left"):
        compare(*sources(old, new), missing="drop")


def test_mixed_tasks():
    ways, roads = choice_predictions(20, 0.8, 1), choice_predictions(20, 0.8, 1, task="roads")
    with pytest.raises(MuscleError, match=r"not asked the same tasks.*'ways'.*'roads'"):
        compare(*sources(ways, roads))
    with pytest.raises(MuscleError, match=r"new has 'roads', which old .* lacks.*--task"):
        compare(*sources(ways, ways + roads))
    document = compare(*sources(ways, ways + roads), missing="drop")
    assert [task.name for task in document.tasks] == ["ways"] and "'roads'" in document.warnings[0]


def test_different_metrics_and_kinds():
    old = choice_predictions(5, 1, 1)
    with pytest.raises(MuscleError, match=r"different metrics .*acc_norm"):
        compare(*sources(old, choice_predictions(5, 1, 1, metric="acc_norm")))
    scores = [dataclasses.replace(p, correct=None, score=0.5) for p in old]
    with pytest.raises(MuscleError, match="right / wrong for some models and a score for others"):
        compare(*sources(old, scores))


def asked_with(shots, accuracy, seed):
    """As ``muscle-hf evaluate --num-fewshot`` writes it: one hash of prompt, choices and references."""
    rows = choice_predictions(30, accuracy, seed)
    return [dataclasses.replace(p, prompt=shots + p.prompt, hash=f"{hash((shots, p.id)) % 2**64:016x}") for p in rows]


def test_other_prompts_in_prediction_files_are_named_and_can_be_ignored(tmp_path):
    old, new = asked_with("", 0.8, 1), asked_with("Question: one more. Answer: yes\n\n", 0.8, 2)
    paths = [write(tmp_path / name, rows) for name, rows in (("old.jsonl", old), ("new.jsonl", new))]
    with pytest.raises(MuscleError, match=r"30 of 30 prompts of new differ.*few-shot.*--ignore-prompts"):
        compare(*paths)
    document = compare(*paths, ignore_prompts=True)
    assert document.tasks[0].items == 30 and "30 of 30 prompts of new differ" in document.warnings[0]


def test_ignored_prompts_are_no_excuse_for_other_items():
    old, new = asked_with("", 0.8, 1), asked_with("Again: ", 0.8, 2)
    new[3] = dataclasses.replace(new[3], choices=["up", "down", "left", "right"])
    for ignore in (False, True):
        with pytest.raises(MuscleError, match=r"changed in new .*'item-3'"):
            compare(*sources(old, new), ignore_prompts=ignore)
    document = compare(*sources(old, new), ignore_prompts=True, missing="drop")
    assert document.tasks[0].items == 29 and any("29 of 29 prompts" in warning for warning in document.warnings)
