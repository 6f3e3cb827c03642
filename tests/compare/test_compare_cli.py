"""``muscle-hf compare`` and ``muscle-hf noise`` as commands: outputs, exit codes, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from xml.etree import ElementTree

import paths
import pytest
from compare_files import choice_predictions, write

from muscle_hf.cli.main import main
from muscle_hf.evaluation import read_predictions

LOGS = paths.DATA / "lm_eval"


@pytest.fixture
def files(tmp_path):
    old = choice_predictions(300, 0.9, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old]
    new = [wrong[i] if i % 10 == 0 else p for i, p in enumerate(old)]
    return write(tmp_path / "old.jsonl", old), write(tmp_path / "new.jsonl", new), write(tmp_path / "c.jsonl", old)


def test_the_table(files, capsys):
    assert main(["compare", *files]) == 0
    shown = capsys.readouterr().out
    assert "ways" in shown and "NFR" in shown.upper()


def test_all_outputs(files, tmp_path, capsys):
    names = {"json": "r.json", "markdown": "r.md", "junit": "r.xml", "html": "r.html"}
    options = [word for name, file in names.items() for word in (f"--{name}", str(tmp_path / file))]
    assert main(["compare", *files, *options, "--quiet", "--max-nfr", "0.2"]) == 0
    assert capsys.readouterr().out == ""
    data = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert data["gate"]["verdict"] == "pass" and data["gate"]["exit_code"] == 0
    assert "ways" in (tmp_path / "r.md").read_text(encoding="utf-8")
    assert ElementTree.parse(tmp_path / "r.xml").getroot().tag in ("testsuites", "testsuite")
    assert (tmp_path / "r.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    assert not list(tmp_path.glob(".*"))


def test_json_on_the_screen_is_only_json(files, capsys):
    assert main(["compare", *files[:2], "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["items"] == 300


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--max-nfr", "0.2"], 0),
        (["--max-nfr", "20%"], 0),
        (["--max-nfr", "ways=0.02"], 1),
        (["--max-nfr", "0.1"], 3),
        (["--max-regression", "ways=0.01"], 1),
        (["--min-accuracy-gain", "0.0"], 1),
        (["--min-accuracy-gain=-20%"], 0),
        (["--max-nfr", "0.2", "--max-nfr", "ways=0.02"], 1),  # the task's own limit wins
    ],
)
def test_exit_codes_of_the_gate(files, options, code):
    assert main(["compare", *files[:2], "--quiet", *options]) == code


def test_the_compatibility_model_is_what_ships(files):
    assert main(["compare", *files, "--quiet", "--max-nfr", "0.02"]) == 0
    assert main(["compare", *files, "--quiet", "--max-nfr", "0.02", "--candidate", "new"]) == 1


def test_budget_baseline_and_noise(files, tmp_path, capsys):
    budget, noise, last = tmp_path / "budget.yaml", tmp_path / "noise.json", tmp_path / "last.json"
    budget.write_text("max_nfr: 0.001\n", encoding="utf-8")
    assert main(["noise", files[0], files[1], "--json", str(noise)]) == 0
    assert "ways" in capsys.readouterr().out
    assert (
        main(["compare", *files[:2], "--quiet", "--json", str(last), "--noise", str(noise), "--budget", str(budget)])
        == 1
    )
    data = json.loads(last.read_text(encoding="utf-8"))
    assert data["gate"]["checks"][0]["noise_floor"] == data["noise"][0]["nfr"]["value"]
    assert main(["compare", *files[:2], "--quiet", "--baseline", str(last)]) in (0, 3)
    assert main(["compare", files[1], files[0], "--quiet", "--baseline", str(last)]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-nfr", "lots"], "--max-nfr: 'lots' is not a number"),
        (["--max-nfr", "2"], "write 0.02 or 2%"),
        (["--max-nfr", "away=0.1"], "'away', which was not compared"),
        (["--columns", "prediction"], "must be NAME=VALUE"),
        (["--json", "-", "--markdown", "-"], "only one output"),
        (["--json", "no/such/folder/x.json"], "does not exist"),
        (["--html", "."], "is a folder; name a file in it"),
        (["--json", "one.txt", "--html", "./one.txt"], "two outputs would go to"),
        (["--budget", "nothing.yaml"], "no budget file"),
        (["--noise", "nothing.json"], "no noise file"),
        (["--noise", "."], "there is no noise file ."),
        (["--baseline", "nothing.json"], "there is no baseline file nothing.json"),
        (["--baseline", "."], "there is no baseline file ."),
        (["--slices", "tome"], "'tone'"),
        (["--labels", "a,b,c"], "2 models need 2 different labels"),
        (["--task", "roads"], "no task 'roads'; there are: ways"),
    ],
)
def test_bad_use_is_two_and_writes_nothing(files, options, message, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(["compare", *files[:2], *options]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("options", [[], ["--markdown", "-"], ["--json", "-"]])
def test_a_console_that_is_not_utf_8(options, files, tmp_path):
    """It fails no gate: the table has what the console lacks spelled out, and what is piped on is UTF-8."""
    old, new = (
        write(tmp_path / f"{name}.jsonl", [dataclasses.replace(p, prompt="Größe 类?") for p in read_predictions(file)])
        for name, file in (("old", files[0]), ("new", files[1]))
    )
    done = subprocess.run(
        [sys.executable, "-m", "muscle_hf.cli.main", "compare", old, new, *options, "--max-nfr", "0.2"],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.decode("utf-8" if options else "cp1252").count("类" if options else "NFR")


@pytest.mark.parametrize("place", ["no/such/folder/x.json", "."])
def test_noise_checks_its_output_first(files, place, capsys):
    assert main(["noise", *files[:2], "--json", place]) == 2
    captured = capsys.readouterr()
    assert "cannot write" in captured.err and captured.out == ""


def test_an_unreadable_side_leaves_earlier_outputs_alone(files, tmp_path):
    result = tmp_path / "result.json"
    result.write_text("from last time", encoding="utf-8")
    (tmp_path / "cut.jsonl").write_text('{"task": "wa', encoding="utf-8")
    assert main(["compare", files[0], str(tmp_path / "cut.jsonl"), "--json", str(result)]) == 2
    assert result.read_text(encoding="utf-8") == "from last time"


def test_real_harness_logs(capsys):
    assert main(["compare", str(LOGS / "old"), str(LOGS / "new"), "--task", "endings", "--metric", "acc_norm"]) == 0
    assert "endings" in capsys.readouterr().out
