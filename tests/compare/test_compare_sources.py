"""Reading logs: every format gives the same counts, and every fault has a message that says where and what to do."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import paths
import pytest
from compare_files import choice_predictions, lighteval_rows, write, write_lighteval, write_lines, write_parquet

from muscle_hf import MuscleError
from muscle_hf.compare import Budget, ReadOptions, compare, read_source, source_of

LOGS = paths.DATA / "lm_eval"


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def plain_rows(predictions) -> list[dict]:
    return [
        {"id": p.id, "prediction": p.prediction, "target": p.target, "prompt": p.prompt, "tone": p.columns["tone"]}
        for p in predictions
    ]


def write_csv(path: Path, rows: list[dict]) -> str:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def counts(document) -> dict:
    task = document.tasks[0]
    return task.updates[0].counts | {"items": task.items, "flips": task.flips_total}


@pytest.fixture
def sides():
    return choice_predictions(60, 0.8, 1), choice_predictions(60, 0.7, 2)


@pytest.fixture
def expected(sides):
    return counts(compare(*map(source_of, sides)))


@pytest.mark.parametrize("kind", ["muscle-hf", "jsonl", "csv", "parquet", "lighteval", "underscored"])
def test_every_format_gives_the_same_counts(kind, sides, expected, tmp_path):
    paths = []
    for name, predictions in zip(("old", "new"), sides, strict=True):
        if kind == "muscle-hf":
            paths.append(write(tmp_path / f"{name}.jsonl", predictions))
        elif kind == "jsonl":
            paths.append(write_lines(tmp_path / f"{name}.jsonl", plain_rows(predictions)))
        elif kind == "csv":
            paths.append(write_csv(tmp_path / f"{name}.csv", plain_rows(predictions)))
        elif kind == "parquet":
            paths.append(write_parquet(tmp_path / f"{name}.parquet", plain_rows(predictions)))
        else:
            rows = lighteval_rows(predictions)
            if kind == "underscored":
                rows = [{f"__{column}__": value for column, value in row.items()} for row in rows]
            paths.append(write_lighteval(tmp_path / name, rows))
    document = compare(*paths)
    assert counts(document) == expected
    assert document.models[0].format == ("lighteval" if kind == "underscored" else kind)
    update = document.tasks[0].updates[0]
    flip = next(f for f in document.tasks[0].flips if f.outcomes["new"] == "negative")
    item = int(flip.id.removeprefix("item-"))
    assert flip.prompt == sides[0][item].prompt and flip.correct == {"old": True, "new": False}
    if kind not in ("jsonl", "csv", "parquet"):  # where nothing tells an index from a number
        assert update.rates["nfr_mc"].value >= update.rates["nfr"].value
    if kind in ("muscle-hf", "lighteval", "underscored"):
        assert flip.target == sides[0][item].choices[sides[0][item].target] == flip.answers["old"]


def test_columns_can_be_named(sides, expected, tmp_path):
    rows = [
        [{"key": p.id, "said": p.prediction, "truth": p.target, "ok": "yes" if p.correct else "no"} for p in side]
        for side in sides
    ]
    paths = [write_lines(tmp_path / f"{i}.jsonl", side) for i, side in enumerate(rows)]
    for columns in (
        {"id": "key", "prediction": "said", "target": "truth"},
        {"id": "key", "correct": "ok"},
        {"id": "#", "correct": "ok"},
    ):
        found = counts(compare(*paths, read=ReadOptions(columns=columns)))
        assert found == expected


def test_numbers_in_csv_and_json_are_the_same_answer(sides, expected, tmp_path):
    old = write_csv(tmp_path / "old.csv", plain_rows(sides[0]))
    new = write_lines(tmp_path / "new.jsonl", plain_rows(sides[1]))
    assert counts(compare(old, new)) == expected


def test_real_harness_logs_count_like_their_own_metrics():
    document = compare(str(LOGS / "old"), str(LOGS / "new"))
    assert [task.name for task in document.tasks] == ["endings", "names (first-word)", "names (last-word)"]
    for task in document.tasks:
        name, _, filter_name = task.name.partition(" (")
        for side, found in (("old", task.accuracy_old), ("new", task.updates[0].accuracy)):
            rows = rows_of(next((LOGS / side).glob(f"samples_{name}_*.jsonl")))
            logged = [row[task.metric] for row in rows if row["filter"] == (filter_name.rstrip(")") or "none")]
            assert (found.count, found.total) == (sum(logged), len(logged))
    assert document.models[0].format == "lm-eval"
    assert document.totals == []  # two filters of one task would count it twice


@pytest.mark.parametrize("metric", ["acc", "acc_norm"])
def test_the_choice_of_a_harness_log_is_the_one_its_metric_judged(metric):
    source = read_source(str(LOGS / "old"), ReadOptions(metric=metric, tasks=["endings"]))
    table = source.tables["endings"]
    targets = [int(row["target"]) for row in rows_of(next((LOGS / "old").glob("samples_endings_*.jsonl")))]
    assert [float(a == t) for a, t in zip(table.answers.tolist(), targets, strict=True)] == table.values.tolist()


def test_harness_filters_are_never_mixed():
    both = read_source(str(LOGS / "old"), ReadOptions(tasks=["names (first-word)"]))
    chosen = read_source(
        str(LOGS / "old" / next((LOGS / "old").glob("samples_names_*")).name), ReadOptions(filter="first-word")
    )
    assert list(chosen.tables) == ["names (first-word)"]
    assert both.tables["names (first-word)"].values.tolist() == chosen.tables["names (first-word)"].values.tolist()
    assert len(chosen.tables["names (first-word)"].ids) == 20
    with pytest.raises(MuscleError, match=r"no filter 'nothing'.*'none'"):
        read_source(str(LOGS / "old"), ReadOptions(filter="nothing"))


def test_harness_texts_are_shown():
    document = compare(str(LOGS / "old"), str(LOGS / "new"), read=ReadOptions(tasks=["names (first-word)"]))
    flip = document.tasks[0].flips[0]
    assert flip.prompt.startswith("The ") and flip.target in ("big", "very")
    assert flip.answers["old"] == flip.target != flip.answers["new"]


def test_older_logs_of_a_task_are_left_aside(tmp_path):
    log = next((LOGS / "old").glob("samples_names_*"))
    (tmp_path / "samples_names_2020-01-01T00-00-00.1.jsonl").write_text("not even JSON\n", encoding="utf-8")
    (tmp_path / "samples_names_2030-01-01T00-00-00.1.jsonl").write_bytes(log.read_bytes())
    source = read_source(str(tmp_path))
    assert "1 older lm-eval log" in source.warnings[0] and len(source.tables) == 2


def edited_log(tmp_path: Path, **changes) -> str:
    rows = rows_of(next((LOGS / "new").glob("samples_endings_*.jsonl")))
    folder = tmp_path / "edited"
    folder.mkdir(exist_ok=True)
    write_lines(folder / "samples_endings_2026-01-01T00-00-00.jsonl", [row | changes for row in rows])
    return str(folder)


def test_other_prompts_are_an_error_unless_ignored(tmp_path):
    one = ReadOptions(tasks=["endings"])
    other = edited_log(tmp_path, prompt_hash="ab" * 32)
    with pytest.raises(MuscleError, match=r"few-shot.*--ignore-prompts"):
        compare(str(LOGS / "old"), other, read=one)
    document = compare(str(LOGS / "old"), other, read=one, ignore_prompts=True)
    assert document.tasks[0].items == 40 and "prompts of new differ" in document.warnings[0]


def test_changed_items_are_an_error(tmp_path):
    with pytest.raises(MuscleError, match=r"changed in new.*No item"):
        compare(str(LOGS / "old"), edited_log(tmp_path, doc_hash="ab" * 32), read=ReadOptions(tasks=["endings"]))


def test_a_metric_missing_on_one_side(tmp_path):
    one = ReadOptions(tasks=["endings"], metric="acc_norm")
    with pytest.raises(MuscleError, match=r"no metric 'acc_norm'.*it has acc\. Choose"):
        compare(str(LOGS / "old"), edited_log(tmp_path, metrics=["acc"]), read=one)
    with pytest.raises(MuscleError, match="different metrics"):
        compare(str(LOGS / "old"), edited_log(tmp_path, metrics=["f1"], f1=0.5), read=ReadOptions(tasks=["endings"]))
    with pytest.raises(MuscleError, match="better when lower"):
        read_source(edited_log(tmp_path, metrics=["perplexity"], perplexity=2.0))
    with pytest.raises(MuscleError, match="no number per item"):
        read_source(edited_log(tmp_path, metrics=["f1"], f1=[1, 2]))


def test_a_metric_that_a_prediction_file_has_not(tmp_path):
    path = write(tmp_path / "side.jsonl", choice_predictions(10, 1.0, 1))
    assert read_source(str(path), ReadOptions(metric="acc")).tables["ways"].metric == "acc"
    with pytest.raises(MuscleError, match=r"'acc_norm'.*acc"):
        read_source(str(path), ReadOptions(metric="acc_norm"))


def with_line(tmp_path: Path, number: int, line: str) -> str:
    """A prediction file in which one line (counted from 1) is replaced."""
    path = tmp_path / "broken.jsonl"
    write(path, choice_predictions(2000, 0.8, 1))
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[number - 1] = line
    path.write_text("".join(lines), encoding="utf-8")
    return str(path)


GOOD = json.dumps(choice_predictions(1, 1.0, 1, id="x")[0].to_dict())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"task": "ways", "id"\n', "line 1500: not valid JSON"),
        ("[1, 2]\n", "line 1500: expected an object"),
        ('{"task": "ways"}\n', "line 1500: .*'id'"),
        (GOOD.replace('"correct": true', '"correct": 3') + "\n", "line 1500: .*'correct'"),
        (GOOD.replace('"id": "x"', '"id": "item-7"') + "\n", "occur more than once: 'item-7'"),
        (GOOD.replace('"acc"', '"acc_norm"') + "\n", "line 1500: .*mixes the metrics 'acc' and 'acc_norm'"),
        (
            GOOD.replace('"correct": true', '"correct": null').replace('"score": null', '"score": 0.5') + "\n",
            "line 1500: .*item 'x' has no 'correct', which the others have",
        ),
    ],
)
def test_broken_lines_are_named(line, message, tmp_path):
    with pytest.raises(MuscleError, match=message) as caught:
        read_source(with_line(tmp_path, 1500, line))
    assert "broken.jsonl" in str(caught.value)


def test_a_truncated_file(tmp_path):
    path = Path(write(tmp_path / "cut.jsonl", choice_predictions(2000, 0.8, 1)))
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(MuscleError, match=r"line 2000: not valid JSON.*ends in the middle of a line"):
        read_source(str(path))


def test_blank_lines_are_nothing(tmp_path):
    assert len(read_source(with_line(tmp_path, 1500, "\n")).tables["ways"].ids) == 1999


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("score", "NaN", "no score"),
        ("score", "Infinity", "no score"),
        ("score", "null", "no score"),
        ("correct", '""', "no score"),
        ("prediction", "null", "no answer"),
        ("prediction", '" "', "no answer"),
        ("prediction", "NaN", "no answer"),
        ("target", "null", "no score"),
        ("correct", 'null, "prediction": null, "error": "timeout"', "error"),
        ("prediction", 'null, "error": "timeout"', "error"),
    ],
)
@pytest.mark.parametrize("suffix", ["jsonl", "csv"])
def test_missing_answers_follow_one_rule_in_every_format(suffix, field, value, kind, tmp_path):
    whole = (
        {"score": 0.5}
        if field == "score"
        else {"correct": 1}
        if field == "correct"
        else {"prediction": 1, "target": 1}
    )
    rows = [{"id": i, **whole, "prediction": 1, "error": None} for i in range(5)]
    broken = [dict(row) for row in rows]
    broken[3] |= json.loads(f'{{"{field}": {value}}}')
    writer = write_lines if suffix == "jsonl" else write_csv
    sides = [writer(tmp_path / f"{name}.{suffix}", side) for name, side in (("old", rows), ("new", broken))]
    with pytest.raises(MuscleError, match=r"new \(1\): '3'.*--missing drop"):
        compare(*sides)
    dropped = compare(*sides, missing="drop").tasks[0]
    wrong = compare(*sides, missing="wrong").tasks[0]
    assert dropped.missing == wrong.missing == {"new": {kind: 1}}
    assert (dropped.items, dropped.left_out, wrong.items, wrong.left_out) == (4, 1, 5, 0)
    assert dropped.updates[0].change.value == 0
    assert wrong.updates[0].change.value == pytest.approx(-0.1 if field == "score" else -0.2)


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        ("", {}, "is empty"),
        ("\n\n", {}, "only blank lines"),
        ('{"nr": 1, "said": true}\n', {}, "id=NAME.*correct=NAME.*nr, said"),
        ('{"id": 1, "cleverness": 1}\n', {}, "nothing says which answers are right"),
        ('{"id": 1, "said": 1, "truth": 2}\n', {"prediction": "sayd", "target": "truth"}, "did you mean 'said'"),
        ('{"id": 1, "correct": 1}\n', {"predicton": "id"}, "unknown column role 'predicton'.*'prediction'"),
        ('{"id": 1, "correct": 0.5}\n', {}, "right or wrong.*score=correct"),
        ('{"id": 1, "score": "high"}\n', {}, "'high', which is no number"),
        ('{"id": null, "correct": 1}\n', {}, "every item needs an id"),
        ('[{"id": 1}, 2]\n', {}, "named fields"),
        ('[\n {"id": 1},\n', {}, "not valid JSON"),
    ],
)
def test_bad_plain_files(content, options, message, tmp_path):
    path = tmp_path / "file.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MuscleError, match=message):
        read_source(str(path), ReadOptions(columns=options))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,correct\n1,1\n2\n", "line 3: fewer fields"),
        ("id,correct\n1,1,9\n", "line 2: more fields"),
        ('id,correct\n1,"1\n', "not valid CSV|fewer"),
        ("id,correct\n", "no predictions"),
        ("id,correct,correct\n1,1,0\n", "'correct'"),
    ],
)
def test_bad_csv(content, message, tmp_path):
    path = tmp_path / "file.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MuscleError, match=message):
        read_source(str(path))


def test_bad_paths(tmp_path):
    with pytest.raises(MuscleError, match="no file or folder"):
        read_source(str(tmp_path / "nothing"))
    with pytest.raises(MuscleError, match="--log_samples"):
        read_source(str(tmp_path))
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(MuscleError, match=r"unknown format '\.xlsx'"):
        read_source(str(tmp_path / "a.xlsx"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(MuscleError, match="no readable Parquet"):
        read_source(str(tmp_path / "a.parquet"))
    with pytest.raises(MuscleError, match=r"no task 'ways2'.*'ways'"):
        read_source(write(tmp_path / "a.jsonl", choice_predictions(3, 1, 1)), ReadOptions(tasks=["ways2"]))


def test_logs_of_several_models_in_one_folder():
    with pytest.raises(MuscleError, match="logs of 2 models"):
        read_source(str(LOGS))


def test_several_tasks_in_one_file_and_one_task_in_several(tmp_path):
    ways, roads = choice_predictions(30, 0.8, 1), choice_predictions(30, 0.7, 1, task="roads")
    write(tmp_path / "both.jsonl", ways, roads)
    assert set(read_source(str(tmp_path)).tables) == {"ways", "roads"}
    write(tmp_path / "more.jsonl", roads)
    with pytest.raises(MuscleError, match="'roads' is in more than one file"):
        read_source(str(tmp_path))


def test_without_the_fast_parser_the_result_is_the_same(tmp_path, monkeypatch):
    path = write(tmp_path / "p.jsonl", choice_predictions(500, 0.8, 1))
    fast = read_source(path).tables["ways"]
    monkeypatch.setattr("muscle_hf.row_files._fast_loads", json.loads)
    slow = read_source(path).tables["ways"]
    assert slow.ids == fast.ids and (slow.values == fast.values).all() and (slow.content == fast.content).all()


def test_rows_in_blocks_and_row_by_row_are_the_same(tmp_path):
    """Tasks that change from row to row cannot be read in blocks; the result is the same."""
    ways, roads = choice_predictions(3000, 0.8, 1), choice_predictions(3000, 0.7, 1, task="roads")
    apart = read_source(write(tmp_path / "apart.jsonl", ways, roads)).tables
    mixed_rows = [row for pair in zip(ways, roads, strict=True) for row in pair]
    mixed = read_source(write(tmp_path / "mixed.jsonl", mixed_rows)).tables
    for task in ("ways", "roads"):
        left, right = apart[task], mixed[task]
        assert left.ids == right.ids and (left.values == right.values).all()
        assert (left.answers == right.answers).all() and (left.content == right.content).all()
        assert left.fetch([5, 2999]) == right.fetch([5, 2999])
        for name, (codes, values) in left.columns.items():
            other_codes, other_values = right.columns[name]
            assert [values[c] for c in codes] == [other_values[c] for c in other_codes]


def test_several_metrics_at_once():
    sides = str(LOGS / "old"), str(LOGS / "new")
    both = compare(*sides, read=ReadOptions(tasks=["endings"], metric="acc,acc_norm"))
    assert [(task.name, task.metric) for task in both.tasks] == [
        ("endings [acc]", "acc"),
        ("endings [acc_norm]", "acc_norm"),
    ]
    for task in both.tasks:
        (alone,) = compare(*sides, read=ReadOptions(tasks=["endings"], metric=task.metric)).tasks
        assert task.updates[0].rates == alone.updates[0].rates
    assert both.totals == []  # the items of one task are not counted twice
    limited = compare(
        *sides,
        read=ReadOptions(tasks=["endings"], metric="acc,acc_norm"),
        budget=Budget(limits={"max_nfr": {"endings": 0.5}}),
    )
    assert len(limited.gate.checks) == 2
