"""Never quietly wrong: when two answers are equal, which way a score is read, and what cannot be judged at all."""

from __future__ import annotations

import json
import math
from decimal import Decimal
from pathlib import Path

import pytest
from compare_files import choice_predictions, score_predictions, sources, write_lines

from muscle_hf import MuscleError
from muscle_hf.compare import Budget, ReadOptions, compare, read_source
from muscle_hf.compare.answers import answer_key, as_flag, as_number, is_failure, is_lower_better, matches, normal


def text_file(path: Path, content: str) -> str:
    path.write_text(content, encoding="utf-8")
    return str(path)


def lines(path: Path, *rows: dict) -> str:
    return write_lines(path, list(rows))


def counts(document) -> dict[str, int]:
    return document.tasks[0].updates[0].counts


BUDGET = Budget(limits={"max_nfr": {"*": 0.05}, "max_regression": {"*": 0.03}})


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (5.0, "5"),
        ("5.0", 5),
        ("2", 2),
        (1, 1.0),
        (True, "true"),
        ("True", "true"),
        (False, "False"),
        (" a ", "a"),
        ("5.00", 5),
        (1e22, 10**22),
        ("1e3", 1000),
        (-0.0, 0),
        (2**64, str(2**64)),
        (Decimal("1.50"), 1.5),
        ({"b": 1, "a": [2]}, {"a": [2], "b": 1}),
        ("caf\u00e9", "cafe\u0301"),
        ("a\r\nb", "a\nb"),
    ],
)
def test_equal_answers(left, right):
    assert normal(left) == normal(right) and answer_key(left) == answer_key(right)


@pytest.mark.parametrize(
    ("left", "right"),
    [(2**64, 2**64 + 1), (2**53, 2**53 + 1), ("007", 7), (71, 72), (0.1 + 0.2, 0.3), (True, "yes"), ("3.10", "3.1")],
)
def test_different_answers(left, right):
    assert normal(left) != normal(right) and answer_key(left) != answer_key(right)


@pytest.mark.parametrize(
    ("prediction", "target", "right"),
    [
        ("3.10", "3.1", False),  # versions, dates
        ("2024.10", ["2024.1", "2024.2"], False),
        ("0.50", 0.5, True),
        (2.5, "2.50", True),
        ("3.10", "3.10", True),
        ("5.00", "5", True),
        ("1.5e3", 1500, True),
    ],
)
def test_zeros_at_the_end_count_between_texts(prediction, target, right):
    assert matches(prediction, target, ("prediction", "target")) == right


def test_a_table_that_pandas_wrote(tmp_path):
    old = text_file(tmp_path / "old.csv", "id,prediction,target\n1,5.0,5\n2,,7\n3,3.0,3\n")
    new = text_file(tmp_path / "new.csv", "id,prediction,target\n1,5,5\n2,7,7\n3,4,3\n")
    with pytest.raises(MuscleError, match=r"old \(1\): '2'"):
        compare(old, new)
    task = compare(old, new, missing="wrong").tasks[0]
    assert (task.accuracy_old.count, task.accuracy_old.total) == (2, 3)
    assert task.updates[0].counts == {"both_right": 1, "positive_flips": 1, "both_wrong": 0, "negative_flips": 1}
    assert task.missing == {"old": {"no answer": 1}}


@pytest.mark.parametrize("parser", ["fast", "plain"])
def test_integers_keep_all_their_digits(parser, tmp_path, monkeypatch):
    if parser == "plain":
        monkeypatch.setattr("muscle_hf.row_files._fast_loads", json.loads)
    rows = [{"id": i, "prediction": 2**64 + 1, "target": 2**64 + 1} for i in range(3)]
    old = write_lines(tmp_path / "old.jsonl", rows)
    new = write_lines(tmp_path / "new.jsonl", [rows[0], rows[1], rows[2] | {"prediction": 2**64}])
    assert counts(compare(old, new))["negative_flips"] == 1


@pytest.mark.parametrize(
    ("output", "target", "path"),
    [
        ({"t": "x"}, "x", "prediction=output.t"),
        (["x"], "x", r"prediction=output\[0\]"),
        ("x", {"value": "x"}, "target=target.value"),
        ("x", [{"value": "x"}], "target=target.value"),
        ({"a": {"b": ["x"]}}, "x", r"prediction=output\.a\.b\[0\]"),
    ],
)
def test_objects_are_no_answers(output, target, path, tmp_path):
    rows = [{"id": i, "output": output, "target": target} for i in range(40)]
    with pytest.raises(MuscleError, match=path):
        compare(write_lines(tmp_path / "a.jsonl", rows), write_lines(tmp_path / "b.jsonl", rows), budget=BUDGET)


def test_objects_beside_a_judgement_are_answers(tmp_path):
    rows = [{"id": i, "output": {"t": i}, "correct": True} for i in range(40)]
    other = [row | {"output": {"t": -1}} for row in rows]
    document = compare(write_lines(tmp_path / "a.jsonl", rows), write_lines(tmp_path / "b.jsonl", other))
    assert document.tasks[0].updates[0].rates["agreement"].value == 0


def test_answers_that_never_equal_their_targets_say_nothing(tmp_path):
    rows = [{"id": i, "prediction": "ABCD"[i % 4], "target": i % 4} for i in range(400)]
    sides = [write_lines(tmp_path / name, rows) for name in ("old.jsonl", "new.jsonl")]
    document = compare(*sides, budget=BUDGET)
    assert document.gate.verdict == "too little data" and document.gate.exit_code == 3
    assert document.tasks[0].doubt


@pytest.mark.parametrize("old", ["Answer: B", "b.", 1])
def test_one_model_whose_answers_never_equal_their_targets(old, tmp_path):
    rows = [{"id": i, "prediction": "B", "target": "B"} for i in range(400)]
    sides = [lines(tmp_path / "old.jsonl", *(row | {"prediction": old} for row in rows))]
    sides.append(write_lines(tmp_path / "new.jsonl", rows))
    document = compare(*sides, budget=BUDGET)
    assert document.gate.exit_code == 3 and "old" in document.tasks[0].doubt
    judged = [lines(tmp_path / f"{i}.jsonl", *({"id": row["id"], "correct": i} for row in rows)) for i in (0, 1)]
    assert compare(*judged, budget=BUDGET).gate.exit_code == 0


def test_free_text_against_a_reference_says_little(tmp_path):
    said = "the cat sat on the mat and looked at item {}"
    old = [{"id": i, "prediction": said.format(i), "target": f"a cat was seen on the mat of {i}"} for i in range(400)]
    old[0]["prediction"] = old[0]["target"]
    sides = [write_lines(tmp_path / name, old) for name in ("old.jsonl", "new.jsonl")]
    assert compare(*sides, budget=BUDGET).gate.exit_code == 3
    named = [{"id": i, "prediction": f"Name {i % 7}", "target": f"Name {i % 9}"} for i in range(400)]
    sides = [write_lines(tmp_path / name, named) for name in ("old.jsonl", "new.jsonl")]
    assert compare(*sides, budget=BUDGET).gate.exit_code == 0


def test_equal_scores_are_no_flips(tmp_path):
    values = [(0.1 + 0.2, 0.3), (1.1 + 2.2, 3.3), (0.7 + 0.1, 0.8), (1e9 + 0.1 + 0.2, 1e9 + 0.3), (0.2, 0.3)]
    sides = [
        lines(tmp_path / f"{side}.jsonl", *({"id": i, "score": pair[side]} for i, pair in enumerate(values)))
        for side in (0, 1)
    ]
    assert counts(compare(*sides)) == {"improved": 1, "unchanged": 4, "regressed": 0}
    assert counts(compare(*reversed(sides))) == {"improved": 0, "unchanged": 4, "regressed": 1}


@pytest.mark.parametrize(
    "name", ["wer", "rank", "latency_ms", "word_perplexity", "errorRate", "bits_per_byte", "RMSE", "eval_loss", "ter"]
)
def test_lower_is_better_is_never_read_the_other_way_round(name, tmp_path):
    old = lines(tmp_path / "old.jsonl", *({"id": i, name: 2.0} for i in range(5)))
    new = lines(tmp_path / "new.jsonl", *({"id": i, name: 1.0} for i in range(5)))
    with pytest.raises(MuscleError, match="--lower-is-better"):
        compare(old, new, read=ReadOptions(columns={"score": name}))
    for lower, change in ((True, 1.0), (False, -1.0)):
        read = ReadOptions(columns={"score": name}, lower_is_better=lower)
        assert compare(old, new, read=read).tasks[0].updates[0].change.value == change


def test_lower_is_better_in_own_files_and_for_flags(tmp_path):
    rows = score_predictions(5, 0.5, 1)
    path = lines(tmp_path / "own.jsonl", *(row.to_dict() | {"metric": "wer"} for row in rows))
    with pytest.raises(MuscleError, match="--lower-is-better"):
        read_source(path)
    table = read_source(path, ReadOptions(metric="wer", lower_is_better=True)).tables["summaries"]
    assert table.values.tolist() == [-row.score for row in rows] and table.metric == "-wer"
    path = lines(tmp_path / "flags.jsonl", {"id": 1, "failed": True}, {"id": 2, "failed": False})
    with pytest.raises(MuscleError, match="--lower-is-better"):
        read_source(path, ReadOptions(columns={"correct": "failed"}))
    read = ReadOptions(columns={"correct": "failed"}, lower_is_better=True)
    assert read_source(path, read).tables["predictions"].values.tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "name", ["acc", "rouge1", "mean_reciprocal_rank", "terse_match", "accuracy_per_token", "score"]
)
def test_names_that_say_nothing_about_lower(name):
    assert not is_lower_better(name)


def test_numbers_are_no_choices(tmp_path):
    rows = [{"id": i, "prediction": 70 + i, "target": 70} for i in range(4)]
    other = [row | {"prediction": row["prediction"] + 1} for row in rows]
    old, new = (write_lines(tmp_path / f"{i}.jsonl", side) for i, side in enumerate((rows, other)))
    assert "nfr_mc" not in compare(old, new).tasks[0].updates[0].rates
    own = [row.to_dict() for row in choice_predictions(4, 0.5, 1, choices=None, log_likelihoods=None)]
    old, new = (write_lines(tmp_path / f"{i}.jsonl", own) for i in range(2))
    assert "nfr_mc" not in compare(old, new).tasks[0].updates[0].rates
    choices = [row | {"prediction": 1, "target": 1, "choices": ["a", "b"]} for row in rows]
    old, new = (write_lines(tmp_path / f"{i}.jsonl", choices) for i in range(2))
    assert "nfr_mc" in compare(old, new).tasks[0].updates[0].rates


def test_the_order_of_right_answers_is_no_change_but_other_choices_are(tmp_path):
    rows = [{"id": i, "prediction": "a", "target": ["a", "b"], "choices": ["a", "b", "c"]} for i in range(4)]
    old = write_lines(tmp_path / "old.jsonl", rows)
    turned = write_lines(tmp_path / "new.jsonl", [row | {"target": ["b", "a"]} for row in rows])
    assert compare(old, turned).tasks[0].items == 4
    other = write_lines(tmp_path / "other.jsonl", [row | {"choices": ["a", "b", "d"]} for row in rows])
    with pytest.raises(MuscleError, match="changed in new"):
        compare(old, other)
    first, second = (
        choice_predictions(4, 1, 1, target=order, hash=digest)
        for order, digest in (([0, 1], "1" * 16), ([1, 0], "2" * 16))
    )
    assert compare(*sources(first, second)).tasks[0].items == 4


def test_slices_only_by_columns_that_are_equal_in_all_logs(tmp_path):
    rows = [{"id": i, "correct": i % 2, "topic": f"t{i % 3}", "grade": "AB"[i % 2], "tokens": i} for i in range(90)]
    new = [row | {"correct": 1, "grade": "A", "tokens": 7, "topic": row["topic"]} for row in rows]
    sides = [write_lines(tmp_path / name, side) for name, side in (("old.jsonl", rows), ("new.jsonl", new))]
    task = compare(*sides).tasks[0]
    assert {entry.column for entry in task.updates[0].slices} == {"topic"}
    from muscle_hf.compare import AnalysisOptions
    from muscle_hf.compare.join import join

    with pytest.raises(MuscleError, match="'grade' differs"):
        compare(*sides, analysis=AnalysisOptions(slices=["grade"]))
    (joined,), _ = join({"old": read_source(sides[0]), "new": read_source(sides[1])})
    assert set(joined.columns) == {"topic"} and set(joined.own_columns["new"]) == {"grade", "tokens"}
    codes, values = joined.own_columns["new"]["grade"]
    assert {values[code] for code in codes} == {"A"}


def test_a_column_of_one_log_alone_is_a_slice_if_asked_for(tmp_path):
    from muscle_hf.compare import AnalysisOptions

    rows = [{"id": i, "correct": i % 2, "topic": f"t{i % 3}"} for i in range(90)]
    bare = [{"id": row["id"], "correct": 1} for row in rows]
    sides = [write_lines(tmp_path / name, side) for name, side in (("old.jsonl", rows), ("new.jsonl", bare))]
    assert compare(*sides).tasks[0].updates[0].slices == []
    asked = compare(*sides, analysis=AnalysisOptions(slices=["topic"])).tasks[0].updates[0].slices
    assert {entry.value for entry in asked} == {"t0", "t1", "t2"}


def test_what_says_nothing_about_right_and_wrong():
    assert all(math.isnan(as_flag(word, "correct")) for word in ("N/A", "None", "#N/A", "-", "", None, []))
    assert all(math.isnan(as_number(word, "score")) for word in ("none", "n/a", "NaN", " "))
    assert [as_flag(word, "correct") for word in ("t", "F", "TRUE", "No")] == [1, 0, 1, 0]
    assert as_number("85%", "score") == 0.85
    assert not any(map(is_failure, (0, False, "False", "None", "", None, math.nan)))
    assert all(map(is_failure, (True, 1, "timeout", {"message": "refused"})))


@pytest.mark.parametrize("read", [as_flag, as_number])
def test_the_part_of_a_structure_that_counts_is_named(read):
    with pytest.raises(MuscleError, match=r"=graded\[0\]"):
        read([True, False], "graded")
    with pytest.raises(MuscleError, match=r"=scores\.judge"):
        read({"judge": 1}, "scores")


def test_a_column_of_right_choices_is_not_one_of_right_answers():
    old = [{"id": i, "prediction": i % 2, "correct": i // 2 % 2} for i in range(80)]
    new = [{**row, "prediction": 1 - row["prediction"]} for row in old]
    document = compare(old, new, budget=BUDGET)
    assert document.tasks[0].doubt and document.gate.verdict == "too little data"
    assert not compare(old, old).tasks[0].doubt
