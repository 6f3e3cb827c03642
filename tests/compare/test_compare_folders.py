"""Folders of results: which files are logs, and what tasks are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from tool_logs import LOGS, RIGHT, TOOLS, kept, write_log

from muscle_hf import MuscleError
from muscle_hf.cli.main import main
from muscle_hf.compare import Budget, ReadOptions, compare, measure_noise, read_baseline, read_source


def rows(side: str) -> list[dict]:
    return [{"id": i, "correct": right} for i, right in enumerate(RIGHT[side])]


def write_both(folder: Path, *names: str) -> tuple[Path, Path]:
    """The same files in a folder of each side; ``{}`` in a name is the side."""
    for side in RIGHT:
        for name in names:
            path = folder / side / name.format(side)
            write_log(path.parent, rows(side), path.name)
    return folder / "old", folder / "new"


def tasks(old, new) -> list[str]:
    document = compare(old, new)
    for task in document.tasks:
        assert (task.items, task.updates[0].counts["negative_flips"]) == (4, 1)
    return [task.name for task in document.tasks]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("gsm8k.jsonl", "mmlu.jsonl"), ["gsm8k", "mmlu"]),
        (("gsm8k/predictions.jsonl", "mmlu/predictions.jsonl"), ["gsm8k", "mmlu"]),
        (("model/gsm8k/a.jsonl", "model/mmlu/a.jsonl", "model/mmlu/b.jsonl"), ["model/gsm8k/a", "model/mmlu/a"]),
        (("gsm8k.jsonl",), ["gsm8k"]),
        (("answers-of-{}.jsonl",), ["predictions"]),
        (("gsm8k/predictions.jsonl",), ["gsm8k"]),
    ],
)
def test_a_file_or_its_folder_names_its_task(names, expected, tmp_path):
    old, new = write_both(tmp_path, *names)
    (old / ".cache").mkdir()
    (old / ".cache" / "x.jsonl").write_text("nothing\n", encoding="utf-8")
    assert tasks(old, new)[: len(expected)] == expected


def test_two_files_of_one_name_are_that_task(tmp_path):
    old, new = write_both(tmp_path, "gsm8k.jsonl", "mmlu/results.jsonl", "{}.jsonl")
    assert tasks(old / "gsm8k.jsonl", new / "gsm8k.jsonl") == ["gsm8k"]
    assert tasks(old / "mmlu" / "results.jsonl", new / "mmlu" / "results.jsonl") == ["mmlu"]
    assert tasks(old / "old.jsonl", new / "new.jsonl") == ["predictions"]
    assert tasks(rows("old"), new / "gsm8k.jsonl") == ["predictions"]
    floors = measure_noise([read_source(side / "gsm8k.jsonl") for side in (old, new)])
    assert [floor.task for floor in floors] == ["gsm8k"]
    metrics = compare(old / "gsm8k.jsonl", new / "gsm8k.jsonl", read=ReadOptions(metric="correct,correct"))
    assert [task.name for task in metrics.tasks] == ["gsm8k [correct]"]


def test_what_was_measured_before_is_of_the_same_task_whatever_files_were_called(tmp_path):
    old, new = write_both(tmp_path, "gsm8k.jsonl", "{}.jsonl")
    write_log(old, rows("old"), "again.jsonl")
    document = compare(old / "old.jsonl", new / "new.jsonl")
    (tmp_path / "earlier.json").write_text(document.to_json(), encoding="utf-8")
    floors = measure_noise([read_source(old / name) for name in ("old.jsonl", "again.jsonl")])
    budget = Budget(baseline=read_baseline(str(tmp_path / "earlier.json")))
    document = compare(old / "gsm8k.jsonl", new / "gsm8k.jsonl", noise=floors, budget=budget)
    assert [floor.task for floor in document.noise] == ["gsm8k"]
    assert [(check.rule, check.noise_floor) for check in document.gate.checks] == [("baseline", 0.0)]
    write_log(old, rows("old"), "mmlu.jsonl")
    write_log(new, rows("new"), "mmlu.jsonl")
    budget = Budget(baseline={"other": budget.baseline["predictions"]}, limits={"max_nfr": {"*": 0.9}})
    with pytest.raises(MuscleError, match="other"):
        compare(old / "mmlu.jsonl", new / "mmlu.jsonl", budget=budget)


def test_what_holds_no_answers_is_left_aside(tmp_path):
    old, new = write_both(tmp_path, "gsm8k.json", "mmlu.json")
    for side in (old, new):
        write_log(side, {"accuracy": 0.5, "tasks": ["gsm8k", "mmlu"]}, "run_summary.json")
        (side / "metrics.csv").write_text("task,accuracy\ngsm8k,0.5\n", encoding="utf-8")
    assert tasks(old, new) == ["gsm8k", "mmlu"]
    warnings = compare(old, new).warnings
    assert sum("run_summary.json" in text for text in warnings) == 2 == sum("metrics.csv" in t for t in warnings)
    with pytest.raises(MuscleError, match="run_summary"):
        compare(old / "run_summary.json", new / "run_summary.json")
    (new / "mmlu.json").write_text('[{"id": 1, "correct": tr', encoding="utf-8")
    with pytest.raises(MuscleError, match=r"mmlu\.json"):
        compare(old, new)


def test_logs_below_a_summary_are_found(tmp_path):
    old, new = write_both(tmp_path, "tasks/gsm8k.jsonl", "tasks/mmlu.jsonl")
    for side in (old, new):
        write_log(side, {"accuracy": 0.5}, "summary.json")
    assert tasks(old, new) == ["gsm8k", "mmlu"]
    old, new = write_both(tmp_path / "other", "gsm8k/results.jsonl", "mmlu/results.jsonl")
    for side in (old, new):
        write_log(side / "mmlu", {"shots": 5}, "config.json")
    assert tasks(old, new) == ["gsm8k", "mmlu"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(MuscleError, match="--log_samples"):
        read_source(tmp_path / "empty")


def test_folders_of_helm_and_opencompass(tmp_path):
    for side in RIGHT:
        for task in ("sums:subject=all,", "products:"):
            run = tmp_path / side / f"{task}model={side}"
            write_log(run, {"request_states": [{"instance": {"id": "id0"}}]}, "scenario_state.json")
            for log in ("helm", "helm display"):
                (run / LOGS[log][1]).write_bytes(kept(log, side).read_bytes())
    assert tasks(tmp_path / "old", tmp_path / "new") == ["products", "sums:subject=all"]
    assert tasks(*(TOOLS / "opencompass" / side for side in RIGHT)) == ["acc", "gsm", "ppl"]


@pytest.mark.parametrize("limit", ["-60%", "-6e-1", "-.6", "gsm8k=-60%"])
def test_a_limit_may_be_negative(limit, tmp_path):
    old, new = write_both(tmp_path, "gsm8k.jsonl")
    assert main(["compare", str(old), str(new), "--quiet", "--min-accuracy-gain", limit]) == 0
    assert main(["compare", str(old), str(new), "--quiet", "--max-nfr", limit]) == 2
