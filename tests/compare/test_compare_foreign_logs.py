"""Logs of tools that no layout knows: read by the names of their columns, or told what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from muscle_hf import MuscleError
from muscle_hf.compare import ReadOptions, compare

RIGHT = [True, True, False, False]
NOW = [True, False, True, False]
FLIPS = {"both_right": 1, "positive_flips": 1, "both_wrong": 1, "negative_flips": 1}


def sides(row):
    """Both models' logs, of which ``row(item, right)`` is a row."""
    return [[row(item, right) for item, right in enumerate(found)] for found in (RIGHT, NOW)]


def test_scores_are_called_by_their_column():
    old, new = sides(lambda i, right: {"user_input": f"q{i}", "faithfulness": 0.9 if right else 0.1, "acc": right})
    task = compare(old, new, read=ReadOptions(metric="faithfulness")).tasks[0]
    assert (task.metric, task.kind) == ("faithfulness", "score")
    assert task.updates[0].counts == {"improved": 1, "unchanged": 2, "regressed": 1}
    tasks = compare(old, new, read=ReadOptions(metric="acc,faithfulness")).tasks
    assert [(task.metric, task.kind) for task in tasks] == [("acc", "correct"), ("faithfulness", "score")]
    assert tasks[0].updates[0].counts == FLIPS


def test_two_measures_are_not_compared_with_each_other():
    with pytest.raises(MuscleError, match="rougeL"):
        compare([{"id": 1, "rougeL": 0.5}], [{"id": 1, "f1": 0.5}])
    document = compare([{"id": 1, "Score": 0.5}], [{"id": 1, "score": 0.6}])
    assert document.tasks[0].updates[0].counts["improved"] == 1


@pytest.mark.parametrize("column", ["model", "metric", "judge"])
def test_other_measurements_of_an_item_are_no_repeats(column):
    rows = [{"id": i, column: kind, "correct": kind == "a"} for i in range(3) for kind in "ab"]
    with pytest.raises(MuscleError, match=f"--where '{column}="):
        compare(rows, rows)
    task = compare(rows, rows, read=ReadOptions(where={column: "a"})).tasks[0]
    assert (task.items, task.runs, task.accuracy_old.value) == (3, 1, 1.0)


def test_ids_of_a_run_tell_no_items():
    old, new = sides(lambda i, right: {"input": f"q{i}", "correct": right})
    for side, rows in (("a", old), ("b", new)):
        for place, row in enumerate(rows):
            row["id"] = f"{side}{place}"
    with pytest.raises(MuscleError, match="id=prompt"):
        compare(old, new)
    assert compare(old, new, read=ReadOptions(columns={"id": "input"})).tasks[0].updates[0].counts == FLIPS


def test_judgements_that_are_not_used_are_told():
    row = {"id": 1, "output": "Paris.", "expected": "Paris", "scores": {"Factuality": 1}}
    other = {**row, "output": "Paris"}
    assert any("scores.Factuality" in text for text in compare([row], [other]).warnings)
    read = ReadOptions(columns={"correct": "scores.Factuality"})
    document = compare([row], [other], read=read)
    assert document.tasks[0].updates[0].counts["both_right"] == 1
    assert not any("scores.Factuality" in text for text in document.warnings)


def test_what_other_programs_write_into_csv(tmp_path: Path):
    old, new = tmp_path / "old.csv", tmp_path / "new.csv"
    old.write_text("sep=;\r\nid;passed\r\n1.0;t\r\n2.0;f\r\n", encoding="utf-8")
    new.write_text("id,passed\n1,True\n2,N/A\n", encoding="utf-8")
    task = compare(old, new, missing="wrong").tasks[0]
    assert task.updates[0].counts == {"both_right": 1, "positive_flips": 0, "both_wrong": 1, "negative_flips": 0}
    assert task.missing == {"new": {"no score": 1}}


def test_an_item_without_an_id_is_none():
    with pytest.raises(MuscleError, match="row 1"):
        compare([{"id": float("nan"), "correct": 1}], [{"id": 1, "correct": 1}])


def test_scores_that_an_aggregation_still_needs_more_for():
    def row(i, right):
        score = {"question_id": i, "category": "color", "score": float(right)}
        answer = {"resps": [["yes"]], "filtered_resps": ["yes" if right else "no"], "target": "yes"}
        return {"doc_id": i, "doc": {"category": "color"}, "arguments": [["q"]], "perception": score, **answer}

    task = compare(*sides(row)).tasks[0]
    assert (task.metric, task.updates[0].counts) == ("perception", FLIPS)


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table", "list"])
def test_every_way_pandas_writes_json(orient, tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    paths = []
    for name, found in (("old", RIGHT), ("new", NOW)):
        frame = pandas.DataFrame({"id": [11, 12, 13, 14], "correct": found})
        text = json.dumps(frame.to_dict("list")) if orient == "list" else frame.to_json(orient=orient)
        paths.append(tmp_path / f"{name}.json")
        paths[-1].write_text(text, encoding="utf-8")
    task = compare(*paths).tasks[0]
    assert task.updates[0].counts == FLIPS and task.flips[0].id == "12"


def test_arrays_in_cells_are_lists():
    pandas = pytest.importorskip("pandas")
    # As read_parquet gives columns of lists.
    targets = [np.array([0]), np.array([1, 0]), np.array([1])]
    old = pandas.DataFrame({"id": [1, 2, 3], "prediction": [0, 1, 0], "target": targets})
    document = compare(old.set_index("id"), [{**row, "prediction": np.float32(1)} for row in old.to_dict("records")])
    assert document.tasks[0].updates[0].counts == {
        "both_right": 1,
        "positive_flips": 1,
        "both_wrong": 0,
        "negative_flips": 1,
    }
    with pytest.raises(MuscleError, match="twice"):
        compare(pandas.DataFrame([[1, 1, 0]], columns=["id", "correct", "correct"]), old)


@pytest.mark.parametrize("lower_is_better", [None, True])
def test_a_limit_says_itself_which_way_is_right(lower_is_better):
    old, new = sides(lambda i, right: {"id": i, "latency": 1 if right else 9})
    read = ReadOptions(columns={"correct": "latency<=3"}, lower_is_better=lower_is_better)
    assert compare(old, new, read=read).tasks[0].updates[0].counts == FLIPS
    read = ReadOptions(columns={"correct": "latency==1"})
    assert compare(old, new, read=read).tasks[0].updates[0].counts == FLIPS
