"""What the table of a run says beyond its figures."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest
from rich.console import Console

from muscle_hf import demo
from muscle_hf.demo.run import demo_settings, demo_splits
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import Prediction
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.table import Result, interval_text, to_rich

ITEMS = 100


def answers(right: int, *, scored: bool = False) -> list[Prediction]:
    """The first ``right`` items right, the others wrong; or scores of 0.9 and 0.1."""
    metric = "rouge1" if scored else "acc"
    return [
        Prediction(
            "task",
            str(index),
            "text" if scored else int(index >= right),
            "text" if scored else 0,
            None if scored else index < right,
            (0.9 if index < right else 0.1) if scored else None,
            metric,
            f"{index:016x}",
        )
        for index in range(ITEMS)
    ]


def result_of(scored: bool, **right: int) -> Result:
    return Result.of({name: answers(count, scored=scored) for name, count in right.items()})


@pytest.mark.parametrize("scored", [False, True])
def test_a_control_that_is_surely_better_than_v2_says_that_v2_has_not_converged(scored):
    result = result_of(scored, old=50, new=60, control=80, muscle=62)
    share = 0.8 if scored else 1.0
    assert result.row("control").quality_change.value == pytest.approx(0.2 * share)
    assert result.row("new").quality_change is None
    (warning,) = result.warnings
    assert "not converged" in warning and f"{20 * share:+.2f}" in warning and "new.adapter" in warning


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize("control", [55, 60, 61])
def test_nothing_is_said_of_a_control_within_chance_or_below(control, scored):
    assert result_of(scored, old=50, new=60, control=control, muscle=62).warnings == []


def test_without_a_control_nothing_is_said():
    assert result_of(False, old=50, new=60, muscle=90).warnings == []


@pytest.mark.parametrize(
    ("side", "name"),
    [*((side, name) for side in ("old", "new") for name in ("control", "muscle")), ("old", "new"), ("new", "old")],
)
def test_a_run_does_not_train_over_its_own_task_adapter(side, name, tmp_path):
    settings = demo_settings("routing", 0, tmp_path / "run")
    named = dataclasses.replace(getattr(settings, side), adapter=str(Path(tmp_path, "other", "..", "run", name)))
    settings = dataclasses.replace(settings, **{side: named})
    with pytest.raises(MuscleError, match=rf"{name} is a task adapter of this run.*another output_dir"):
        Run(settings, demo.TASKS["routing"], demo_splits("routing", 0))


def test_a_narrow_terminal_cuts_nothing_off():
    table, out = to_rich(result_of(False, old=50, new=80, control=20, muscle=5)), io.StringIO()
    Console(file=out, width=80).print(table)
    assert "…" not in out.getvalue()
    assert interval_text(result_of(False, old=50, new=80, muscle=5).row("muscle").change).split()[-1] in out.getvalue()
