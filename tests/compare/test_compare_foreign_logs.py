"""Logs of tools that no layout knows: read by the names of their columns, or told what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from muscle_hf import MuscleError
from muscle_hf.cli.main import main
from muscle_hf.compare import AnalysisOptions, Budget, ReadOptions, compare

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


@pytest.mark.parametrize(
    ("head", "row"),
    [
        (
            "Nr;Id;Score",
            lambda i, right: f"x;{i};{'0,75' if right else '0,5'}",
        ),  # a spreadsheet where commas are points
        ("Id;Score", lambda i, right: f"{i};{'75,5 %' if right else '5 %'}"),
        ("id, correct, note", lambda i, right: f' {i} , {right}, "a, b"'),
        (",prediction,target", lambda i, right: f"{i},{4 if right else 5},4"),  # pandas' numbers of rows
        ("id,prediction,target", lambda i, right: f"{i}, {4.0 if right else 5} ,4"),
        ("id,prediction,target", lambda i, right: f"{i},\u200f{'שלום' if right else 'لا'}\u200f\ufeff,\u00a0שלום"),
        ("id,passed", lambda i, right: f"{i},{'✅' if right else '❌'}"),
        ("id,predicted_label,label,score", lambda i, right: f"{i},{'A' if right else 'B'},A,0.9"),
        ("id,y_pred,y_true", lambda i, right: f"{i},{int(right)},1"),
    ],
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_what_spreadsheets_and_scripts_write(head, row, end, tmp_path: Path):
    paths = []
    for name, found in (("old", RIGHT), ("new", NOW)):
        lines = [head, *(row(i, right) for i, right in enumerate(found))]
        paths.append(tmp_path / f"{name}.csv")
        paths[-1].write_bytes((end.join(lines) + end).encode("utf-8-sig"))
    task = compare(*paths).tasks[0]
    counts = task.updates[0].counts
    assert (counts.get("negative_flips", counts.get("regressed")), task.items) == (1, 4) and not task.doubt


def test_a_thousand_is_no_decimal(tmp_path: Path):
    path = tmp_path / "a.csv"
    path.write_text("id;score\n1;1,234\n", encoding="utf-8")
    with pytest.raises(MuscleError, match="1,234"):
        compare(path, path)


def test_ids_that_start_again_in_each_part():
    old, new = sides(lambda i, right: {"id": i // 2, "subject": "ab"[i % 2], "correct": right})
    with pytest.raises(MuscleError, match=r"id=ID\+subject"):
        compare(old, new)
    assert compare(old, new, read=ReadOptions(columns={"id": "subject+id"})).tasks[0].updates[0].counts == FLIPS
    for name in ("run", "runId", "sample_nr"):
        old, new = sides(lambda i, right, name=name: {"id": i // 2, name: "ab"[i % 2], "correct": right})
        assert compare(old, new).tasks[0].runs == 2
    old, new = sides(lambda i, right: {"id": i // 2, "country": "ab"[i % 2], "correct": right})
    with pytest.raises(MuscleError, match="country"):
        compare(old, new)


def test_one_file_of_both_models(tmp_path: Path, capsys):
    both = tmp_path / "both.csv"
    rows = [f"{i},A,{'A' if a else 'B'},{'A' if b else 'B'}" for i, (a, b) in enumerate(zip(RIGHT, NOW, strict=True))]
    both.write_text("\n".join(["id,gold,first,second", *rows]), encoding="utf-8")
    columns = "target=gold,base:prediction=first,tuned:prediction=second"
    command = ["compare", str(both), str(both), "--labels", "base,tuned", "--json", "-"]
    assert main([*command, "--columns", columns]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["updates"][0]["counts"] == FLIPS
    runs = [
        row | {"model": name}
        for name, found in zip(("a", "b"), sides(lambda i, right: {"id": i, "correct": right}), strict=True)
        for row in found
    ]
    read = ReadOptions(where={"old:model": "a", "new:model": "b"})
    assert compare(runs, runs, read=read).tasks[0].updates[0].counts == FLIPS


def test_what_looks_like_a_mistake_is_told():
    old, new = sides(lambda i, right: {"id": i, "prediction": i if right else -1, "target": i, "score": right * 0.5})
    assert any("'score'" in text for text in compare(old, new).warnings)
    assert any("two models" in text for text in compare(old, old).warnings)
    assert not any("two models" in text for text in compare(old, new).warnings)
    scores, percents = ([{"id": i, "score": factor * i} for i in range(9)] for factor in (0.1, 10))
    document = compare(scores, percents, budget=Budget(limits={"max_regression": {"*": 0.5}}))
    assert "80" in document.tasks[0].doubt and document.gate.verdict == "too little data"
    assert not compare(scores, scores).tasks[0].doubt


def test_one_log_under_two_names_passes_no_gate(tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f'{{"id": {i}, "correct": true}}\n' for i in range(400)), encoding="utf-8")
    (tmp_path / "b.jsonl").symlink_to(path)
    copy = tmp_path / "copy.jsonl"
    copy.write_bytes(path.read_bytes())
    budget = Budget(limits={"max_nfr": {"*": 0.05}})
    for sides, verdict in (((path, tmp_path / "b.jsonl"), "too little data"), ((path, copy), "pass")):
        assert compare(*sides, budget=budget).gate.verdict == verdict


@pytest.mark.parametrize("written", ["{}.", "Answer: {}", "({})", '{{"answer": "{}"}}', "\\boxed{{{}}}"])
def test_answers_amid_other_words_pass_no_gate(written):
    rows = [{"id": i, "target": "ABCD"[i % 4]} for i in range(400)]
    sides = [
        [
            {**row, "prediction": said if i % 9 == 0 else written.format(said)}
            for i, row in enumerate(rows)
            for said in [letters[i % 4]]
        ]
        for letters in ("ABCD", "ABDD")
    ]
    document = compare(*sides, budget=Budget(limits={"max_nfr": {"*": 0.05}}))
    assert document.tasks[0].doubt and document.gate.verdict == "too little data"


def test_a_label_with_a_score_is_an_answer_with_its_confidence():
    rows = [{"id": i, "label": "POSITIVE", "score": 0.9} for i in range(3)]
    with pytest.raises(MuscleError, match="target"):
        compare(rows, rows)


def test_letters_against_numbers_pass_no_gate():
    rows = [{"id": i, "prediction": "ABCD"[i % 4], "target": i % 4 if i % 10 else "A"} for i in range(400)]
    document = compare(rows, [dict(row) for row in rows], budget=Budget(limits={"max_nfr": {"*": 0.05}}))
    assert document.tasks[0].doubt and document.gate.verdict == "too little data"
    labels = [{**row, "target": "ABCD"[i * i % 4]} for i, row in enumerate(rows)]
    assert not compare(labels, [dict(row) for row in labels]).tasks[0].doubt


@pytest.mark.parametrize(
    ("rows", "verdict"),
    [
        # Scores, and rates of several answers, that never change say little of other items where they are few.
        ([{"id": i, "score": 0.1 * i} for i in range(6)], "too little data"),
        ([{"id": i, "score": 0.001 * i} for i in range(600)], "pass"),
        ([{"id": i % 6, "correct": i % 3 > 0} for i in range(12)], "too little data"),
        ([{"id": i % 600, "correct": i % 3 > 0} for i in range(1200)], "pass"),
        # Every score is the same: nothing was measured.
        ([{"id": i, "rating": 5} for i in range(600)], "too little data"),
    ],
)
def test_what_never_changes_is_not_sure_of_few_items(rows, verdict):
    limits = {"max_nfr": {"*": 0.05}, "max_regression": {"*": 0.02}}
    gate = compare(rows, [dict(row) for row in rows], budget=Budget(limits=limits)).gate
    assert {check.verdict for check in gate.checks} == {verdict}


@pytest.mark.parametrize(("items", "cluster"), [(3, None), (300, "text")])
def test_three_scores_that_rise_alike_show_no_gain(items, cluster):
    sides = [[{"id": i, "text": i % 3, "score": 0.01 * i + up} for i in range(items)] for up in (0.0, 0.2)]
    budget = Budget(limits={"min_accuracy_gain": {"*": 0.1}})
    assert compare(*sides, budget=budget, analysis=AnalysisOptions(cluster=cluster)).gate.verdict == "too little data"
    if cluster:
        assert compare(*sides, budget=budget).gate.verdict == "pass"
