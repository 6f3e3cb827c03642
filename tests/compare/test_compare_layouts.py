"""Logs of the usual tools are read at first try, and any other by saying where its rows and columns are."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys

import pytest
from compare_files import choice_predictions, write, write_lines
from tool_logs import FAILING, LOGS, RIGHT, TOOLS, answers, content, kept, write_log

from muscle_hf import MuscleError
from muscle_hf.compare import ReadOptions, compare, measure_noise, read_source, source_of


def outcome(document) -> tuple[int, int, int]:
    """Items, and how many got worse and better."""
    (task,) = document.tasks
    counts = task.updates[0].counts
    names = ("negative_flips", "positive_flips") if task.kind == "correct" else ("regressed", "improved")
    return task.items, *(counts[name] for name in names)


@pytest.mark.parametrize("log", [log for log in LOGS if log not in ("inspect_ai", "lighteval")])
def test_logs_that_a_tool_made(log):
    sides = [kept(log, side) for side in ("old", "new")]
    if log in FAILING:
        with pytest.raises(MuscleError, match=r"error in new \(1\)"):
            compare(*sides)
    document = compare(*sides, missing="drop")
    assert document.models[0].format == log.partition(" ")[0]
    turns = 2 if log == "mt-bench" else 1
    assert outcome(document) == (3 if log in FAILING else 4 * turns, turns, turns)
    (task,) = document.tasks
    assert not task.doubt and task.missing == ({"new": {"error": 1}} if log in FAILING else {})
    flip = task.flips[0]
    if log not in ("evalplus", "helm", "swe-bench", "mt-bench", "openai-evals graded"):
        assert flip.answers == {"old": "4", "new": "5"}
    if log not in ("evalplus", "swe-bench", "mt-bench", "alpaca_eval") and not log.startswith(("helm", "openai")):
        assert flip.target == "4"


def test_epochs_of_inspect_ai_and_tasks_of_lighteval():
    assert outcome(compare(*(kept("inspect_ai", side) for side in ("old", "new")))) == (4, 2, 1)
    document = compare(*(kept("lighteval", side) for side in ("old", "new")))
    assert [(task.name, task.metric) for task in document.tasks] == [("sums-0", "em"), ("sums_of_six-0", "acc")]
    for task in document.tasks:
        flip = task.flips[0]
        assert (flip.prompt, flip.target, flip.answers) == ("What is 2+2?", "4", {"old": "4", "new": "5"})
        assert task.updates[0].counts["negative_flips"] == task.updates[0].counts["positive_flips"] == 1


def test_a_packed_log_of_inspect_ai_is_its_json():
    pytest.importorskip("inspect_ai")
    packed, plain = (read_source(str(TOOLS / f"inspect-new.{form}")).tables["sums"] for form in ("eval", "json.gz"))
    assert packed.ids == plain.ids and (packed.runs == plain.runs).all()


def test_epochs_are_repeats():
    table = read_source(str(TOOLS / "inspect-new.json.gz"), ReadOptions(metric="includes")).tables["sums"]
    assert table.ids == ["sum-1", "sum-2", "sum-3", "sum-4"] and table.metric == "includes"
    assert table.repeats.tolist() == [2] * 4
    assert table.runs.tolist() == [[1, 1], [0, 0], [1, 1], [1, 0]] and table.values.tolist() == [1, 0, 1, 0.5]


def test_samples_are_repeats_and_uneven_ones_are_told(tmp_path):
    log = content("evalplus", "old")
    log["eval"]["HumanEval/1"] *= 3
    source = read_source(write_log(tmp_path, log, "log.json"))
    assert source.tables["predictions"].repeats.tolist() == [3, 1, 1, 1]
    assert any("1 to 3" in note for note in source.warnings)
    base = read_source(write_log(tmp_path, log, "log.json"), ReadOptions(metric="base")).tables["predictions"]
    assert base.values.tolist() == [1, 1, 0, 1]
    stricter = [read_source(kept("evalplus", "new"), ReadOptions(metric=name)) for name in ("base", "plus")]
    assert [source.tables["predictions"].values[1] for source in stricter] == [1, 0]


def test_a_repeat_without_a_value_is_missing_or_wrong(tmp_path):
    rows = [{"id": i, "correct": True} for i in (1, 1, 2, 2)]
    broken = [*rows[:3], {"id": 2, "correct": None}]
    sides = [write_lines(tmp_path / name, side) for name, side in (("a.jsonl", rows), ("b.jsonl", broken))]
    with pytest.raises(MuscleError, match=r"new \(1\): '2'"):
        compare(*sides)
    assert compare(*sides, missing="drop").tasks[0].items == 1
    assert compare(*sides, missing="wrong").tasks[0].updates[0].accuracy.value == pytest.approx(0.75)


def test_one_id_for_different_items_is_no_repeat(tmp_path):
    rows = [{"id": 1, "prediction": i, "target": i} for i in range(3)]
    with pytest.raises(MuscleError, match="more than once"):
        read_source(write_lines(tmp_path / "a.jsonl", rows))
    joined = ReadOptions(columns={"id": "id+target"})
    assert len(read_source(write_lines(tmp_path / "a.jsonl", rows), joined).tables["predictions"].ids) == 3


def test_several_models_in_one_file(tmp_path):
    path = write_log(tmp_path, content("mt-bench", "old") + content("mt-bench", "new"), "log.jsonl")
    with pytest.raises(MuscleError, match="--where 'model=NAME': new, old"):
        read_source(path)
    sides = [read_source(path, ReadOptions(where={"model": side})) for side in ("old", "new")]
    assert outcome(compare(*sides)) == (8, 2, 2)
    with pytest.raises(MuscleError, match=r"model is new, old"):
        read_source(path, ReadOptions(where={"model": "none"}))


def test_a_judge_that_gave_no_score(tmp_path):
    rows = content("mt-bench", "old")
    rows[0]["score"] = -1
    table = read_source(write_log(tmp_path, rows, "log.jsonl")).tables["predictions"]
    assert table.missing.tolist() == [3] + [0] * 7


def test_events_without_their_head_and_with_failures(tmp_path):
    rows = content("openai-evals", "old")[2:]
    path = write_log(tmp_path, rows, "log.jsonl")
    table = read_source(path).tables["predictions"]
    assert dict(zip(table.ids, table.values.tolist(), strict=True))["match.dev.2"] == 0.0
    failed = next(row for row in rows if row["type"] == "match" and row["sample_id"] == "match.dev.1")
    failed |= {"type": "error", "data": {"type": "TimeoutError", "message": "no answer"}}
    other = write_log(tmp_path / "new", rows, "log.jsonl")
    with pytest.raises(MuscleError, match=r"error in new \(1\): 'match.dev.1'"):
        compare(path, other)
    assert compare(path, other, missing="wrong").tasks[0].updates[0].counts["negative_flips"] == 1


def test_judgements_in_a_table_are_told_or_chosen():
    sides = [kept("json", side) for side in ("old", "new")]
    warnings = compare(*sides).warnings
    assert any("'inputs'" in note for note in warnings) and any("same/score" in note for note in warnings)
    task = compare(*sides, read=ReadOptions(metric="same/score")).tasks[0]
    assert (task.kind, task.updates[0].counts["regressed"]) == ("score", 1)


def test_a_layout_that_finds_no_measure_takes_a_named_one(tmp_path):
    rows = [row | {"assessments": str(row["assessments"])} for row in content("mlflow", "old")]  # as CSV has them
    path = write_log(tmp_path, rows, "log.json")
    with pytest.raises(MuscleError, match="correct=PATH"):
        read_source(path)
    table = read_source(path, ReadOptions(columns={"correct": "correctness/value"})).tables["predictions"]
    assert table.values.tolist() == [1, 1, 0, 1] and table.ids[0] == '{"question": "What is 1+1?"}'


@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_a_list_of_judgements_is_one_of_answers(form, tmp_path):
    rows = [{"id": i, "correct": right, "prediction": ["a", "b"]} for i, right in enumerate(([1, 0], [1, 1], []))]
    table = read_source(write_log(tmp_path, rows, f"log.{form}")).tables["predictions"]
    assert table.repeats.tolist() == [2, 2, 1] and table.values.tolist()[:2] == [0.5, 1.0]
    assert table.missing.tolist() == [0, 0, 2] and table.fetch([1])[0].answer == "a"


def test_what_a_tool_counts_of_a_run_is_no_measure():
    rows = content("helm display", "old")
    stats = {"num_train_trials": 1.0, "prompt_truncated": 0.0}
    judged = [row | {"stats": stats | {"f1_score": row["stats"]["quasi_exact_match"]}} for row in rows]
    assert source_of(judged).tables["predictions"].metric == "f1_score"
    with pytest.raises(MuscleError, match="num_train_trials"):
        source_of([row | {"stats": stats} for row in rows])


@pytest.mark.parametrize("text", ["{}", "{}\n", "{}\n\n"])
def test_a_document_on_one_line(text, tmp_path):
    path = tmp_path / "log.json"
    path.write_text(text.format(json.dumps(content("opencompass", "old"))), encoding="utf-8")
    assert len(read_source(path).tables["predictions"].ids) == 4


RESULTS = {
    "config": {"model": "x"},
    "results": [
        {
            "nr": i,
            "part": "ab"[i % 2],
            "scores": {"match": {"value": grade}, "points": points},
            "said": {"text": str(i)},
        }
        for i, (grade, points) in enumerate([("A", 9), ("C", 7), ("pass", 7.5), ("D", 2), ("F", 6.9)])
    ],
}


@pytest.mark.parametrize(
    ("options", "right"),
    [
        ({"columns": {"id": "nr", "correct": "scores.match.value"}, "right": ["A", "C", "pass"]}, [1, 1, 1, 0, 0]),
        ({"columns": {"id": "nr", "correct": "scores.points>=7"}}, [1, 1, 1, 0, 0]),
        ({"columns": {"id": "part+nr", "correct": "scores.points < 7"}}, [0, 0, 0, 1, 1]),
        ({"columns": {"id": "nr", "correct": "contains(['A', 'pass'], scores.match.value)"}}, [1, 0, 1, 0, 0]),
        ({"columns": {"id": "NR", "correct": "scores.points>=7"}, "where": {"part": "a"}}, [1, 1, 0]),
        ({"columns": {"id": "nr", "score": "scores.points"}, "lower_is_better": True}, [-9, -7, -7.5, -2, -6.9]),
    ],
)
def test_users_say_where_rows_and_columns_are(options, right, tmp_path):
    path = write_log(tmp_path, RESULTS, "log.json")
    for rows in ("results[]", None):  # the only list of rows is found
        table = read_source(path, ReadOptions(rows=rows, **options)).tables["predictions"]
        assert table.values.tolist() == right
    assert source_of(RESULTS, options=ReadOptions(**options)).tables["predictions"].values.tolist() == right


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"id": "nr", "correct": "scores.match.grade"}, "nothing at|no row has anything"),
        ({"id": "nr", "correct": "scores.[match"}, "JMESPath"),
        ({"id": "mr", "correct": "scores.points>=7"}, "'nr'"),
        ({"id": "nr"}, "correct=NAME"),
        ({"prediction": "said.text"}, r"id=NAME.*correct=NAME"),
    ],
)
def test_what_is_wrong_with_paths(columns, message, tmp_path):
    with pytest.raises(MuscleError, match=message):
        read_source(write_log(tmp_path, RESULTS, "log.json"), ReadOptions(columns=columns))


def test_a_document_with_several_lists_of_rows(tmp_path):
    with pytest.raises(MuscleError, match="--rows"):
        read_source(write_log(tmp_path, {"a": [{"id": 1}], "b": [{"id": 1}]}, "log.json"))
    by_id = write_log(tmp_path, {"x": {"resolved": True}, "y": {"resolved": False}}, "log.json")
    assert read_source(by_id).tables["predictions"].ids == ["x", "y"]


ROWS = [{"Task ID": f"é{i}", "Model-Output": answer, "groundTruth": target} for i, answer, target, _ in answers("old")]


def csv_text(delimiter: str) -> str:
    return "\n".join([delimiter.join(ROWS[0]), *(delimiter.join(row.values()) for row in ROWS)]) + "\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("semicolon.csv", csv_text(";").encode()),
        ("mark.csv", csv_text(",").encode("utf-8-sig")),
        ("utf16.csv", csv_text(",").encode("utf-16")),
        ("utf16.tsv", csv_text("\t").encode("utf-16")),
        ("rows.csv.gz", gzip.compress(csv_text(",").encode(), mtime=0)),
        ("list.json", json.dumps(ROWS).encode()),
        ("list.jsonl", json.dumps(ROWS, indent=1).encode()),
        ("lines.json", "".join(json.dumps(row) + "\n" for row in ROWS).encode()),
        ("mark.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-8-sig")),
        ("lines.jsonl.gz", gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode(), mtime=0)),
        ("utf16.jsonl", "".join(json.dumps(row) + "\n" for row in ROWS).encode("utf-16")),
    ],
)
def test_files_of_every_kind(name, content, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    (table,) = read_source(str(path)).tables.values()
    assert table.ids == [row["Task ID"] for row in ROWS] and table.values.tolist() == [1, 1, 0, 1]
    assert [detail.answer for detail in table.fetch([2, 0])] == ["?", "2"]


def test_zstandard(tmp_path):
    pa = pytest.importorskip("pyarrow")
    path = tmp_path / "lines.jsonl.zst"
    with pa.output_stream(str(path), compression="zstd") as stream:
        stream.write("".join(json.dumps(row) + "\n" for row in ROWS).encode())
    assert read_source(str(path)).tables["predictions"].values.tolist() == [1, 1, 0, 1]
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(MuscleError, match="damaged"):
        read_source(str(path))


def test_tables_in_memory():
    rows = [
        {"id": i, "prediction": answer, "target": target, "topic": i % 2} for i, answer, target, _ in answers("old")
    ]
    other = [row | {"prediction": answer} for row, (_, answer, _, _) in zip(rows, answers("new"), strict=True)]
    made = [list]
    for module, make in (("pandas", "DataFrame"), ("polars", "DataFrame"), ("datasets", "Dataset.from_list")):
        try:
            found = __import__(module)
        except ImportError:
            continue
        for part in make.split("."):
            found = getattr(found, part)
        made.append(found)
    assert len(made) >= 3
    for make in made:
        assert outcome(compare(make(rows), make(other))) == (4, 1, 1)
        assert measure_noise([source_of(make(rows)), source_of(make(other))])[0].nfr.value == 0.25
    with pytest.raises(MuscleError, match="data frame"):
        compare(3, rows)


def test_a_file_in_a_folder_is_a_task_and_tasks_are_chosen_by_patterns(tmp_path):
    for side in ("old", "new"):
        for task in ("mmlu_law", "mmlu_art", "gsm8k"):
            rows = [{"id": i, "correct": ok} for i, _, _, ok in answers(side)]
            write_log(tmp_path / side, rows, f"{task}.jsonl")
    sides = [str(tmp_path / side) for side in ("old", "new")]
    assert [task.name for task in compare(*sides).tasks] == ["gsm8k", "mmlu_art", "mmlu_law"]
    for options, left in (
        ({"tasks": ["mmlu_*"]}, {"mmlu_art", "mmlu_law"}),
        ({"skip": ["mmlu_*"]}, {"gsm8k"}),
        ({"tasks": ["mmlu_*"], "skip": ["mmlu_art"]}, {"mmlu_law"}),
    ):
        assert set(read_source(sides[0], ReadOptions(**options)).tables) == left
    with pytest.raises(MuscleError, match=r"'mmlu_x\*'"):
        read_source(sides[0], ReadOptions(tasks=["mmlu_x*"]))


def test_tasks_without_a_number_per_item_are_left_out(tmp_path):
    # Versions before 0.4.3 had lists of arguments.
    rows = [row | {"arguments": [["1+1", {"until": ["."]}]]} for row in content("lm-eval", "old")]
    corpus = [
        {key: value for key, value in row.items() if key != "exact_match"} | {"bleu": ["2", "4"]} for row in rows
    ]
    perplexity = [{key: row[key] for key in row if key != "exact_match"} | {"perplexity": 3.5} for row in rows]
    home = tmp_path / "model"
    for task, log in (("sums", rows), ("translation", corpus), ("text", perplexity)):
        write_log(home, log, f"samples_{task}_2026-01-01T00-00-00.000001.jsonl")
    source = read_source(str(home))
    assert set(source.tables) == {"sums"}
    assert sum("translation" in note or "text" in note for note in source.warnings) == 2
    with pytest.raises(MuscleError, match="bleu"):
        read_source(str(home), ReadOptions(tasks=["translation"]))


def test_a_preference_is_a_score(tmp_path):
    rows = content("alpaca_eval", "old")
    rows[0]["preference"] = 0  # a draw, to older versions
    task = compare(kept("alpaca_eval", "old"), write_log(tmp_path, rows, "annotations.json")).tasks[0]
    assert (task.kind, task.accuracy_old.value) == ("score", 1.75)
    assert task.updates[0].change.value == pytest.approx(-0.125)


def test_the_command_reads_what_the_library_reads(tmp_path):
    path = write_log(tmp_path, RESULTS, "log.json")
    command = [sys.executable, "-m", "muscle_hf.cli.main", "compare", path, path, "--quiet", "--json", "-"]
    command += ["--rows", "results[]", "--where", "part=a", "--right", "A,pass"]
    command += ["--columns", "id=join('-', [part, to_string(nr)]),correct=scores.match.value"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    task = json.loads(done.stdout)["tasks"][0]
    assert (task["items"], task["accuracy_old"]["count"]) == (3, 2)


def test_own_predictions_need_no_choice_of_columns(tmp_path):
    rows = choice_predictions(6, 0.5, 1)
    table = read_source(write(tmp_path / "own.jsonl", rows), ReadOptions(columns={"id": "#", "correct": "correct"}))
    assert table.tables["ways"].ids == [str(i) for i in range(6)]


def both(row) -> list[list[dict]]:
    """The rows of both models, of which ``row(item, right, side)`` is one."""
    return [[row(i, right, side) for i, right in enumerate(RIGHT[side])] for side in ("old", "new")]


@pytest.mark.parametrize(
    "row",
    [
        # promptfoo's lines, and its results before version 3
        lambda i, right, side: {
            "testIdx": i,
            "promptIdx": 0,
            "success": right,
            "response": {"output": "x"},
            "vars": {"a": i},
            "provider": {"id": side},
            "prompt": {"raw": f"q{i}", "label": "q"},
        },
        lambda i, right, side: {
            "success": right,
            "response": {"output": "x"},
            "vars": {"a": i},
            "provider": {"id": side},
            "prompt": {"raw": "the same for all", "label": "q"},
        },
        # output items of OpenAI's API for evals
        lambda i, right, side: {
            "object": "eval.run.output_item",
            "status": "pass" if right else "fail",
            "id": f"outputitem_{side}{i}",
            "datasource_item_id": i,
            "datasource_item": {"topic": "sums"},
            "results": [{"name": "match", "passed": right, "score": float(right)}],
            "sample": {"input": [], "output": [{"role": "assistant", "content": "4"}], "error": None},
        },
        # LiveCodeBench
        lambda i, right, side: {"question_id": i, "code_list": ["a", "b"], "graded_list": [right] * 2, "pass@1": 1.0},
        # VLMEvalKit
        lambda i, right, side: {"index": i, "prediction": "A. cat", "answer": "A", "hit": int(right)},
    ],
)
def test_more_tools_rows_as_lines_and_in_a_list_of_an_api(tmp_path, row):
    listed = [{"object": "list", "data": rows, "has_more": False} for rows in both(row)]
    for sides, suffix in ((both(row), "jsonl"), (listed, "json")):
        task = compare(*(write_log(tmp_path, rows, f"{i}.{suffix}") for i, rows in enumerate(sides))).tasks[0]
        counts = task.updates[0].counts
        assert (counts["negative_flips"], counts["positive_flips"], task.items, task.doubt) == (1, 1, 4, "")
