"""The prediction file: what is written is read back, and damage is found."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import Item, Prediction, item_hash, iter_predictions, read_predictions, write_predictions

CHOICE = Prediction("t", "1", 0, 1, False, None, "acc", "0" * 16, "Wörter\n", [" a", " b"], [-1.5, -2.0], {"x": 1})
TEXT = Prediction("t", "2", "an answer", ["one", "two"], None, 0.25, "rouge1", "1" * 16)


def test_round_trip(tmp_path):
    path = write_predictions(tmp_path / "new" / "p.jsonl", [CHOICE, TEXT])
    assert read_predictions(path) == [CHOICE, TEXT]
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert set(rows[1]) == {"task", "id", "prediction", "target", "correct", "score", "metric", "hash"}
    assert path.stat().st_mode & 0o777 == (tmp_path / "new").stat().st_mode & 0o666
    assert [file.name for file in path.parent.iterdir()] == ["p.jsonl"]


def test_a_failure_leaves_the_old_file(tmp_path):
    path = write_predictions(tmp_path / "p.jsonl", [CHOICE])

    def broken():
        yield TEXT
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="middle"):
        write_predictions(path, broken())
    assert read_predictions(path) == [CHOICE] and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no predictions"),
        ('{"task": "t"}\n', "line 1: a prediction needs"),
        (json.dumps(CHOICE.to_dict()) + '\n{"task": "t", "id', "line 2: not valid JSON"),
        ("[1]\n", "line 1: expected an object"),
        ((json.dumps(CHOICE.to_dict()) + "\n") * 2, "occurs twice"),
        (json.dumps(replace(CHOICE, correct=None).to_dict()), "neither"),
    ],
)
def test_damaged_files(tmp_path, content, message):
    path = tmp_path / "p.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(MuscleError, match=message):
        read_predictions(path)
    with pytest.raises(MuscleError, match="no prediction file"):
        list(iter_predictions(tmp_path / "missing.jsonl"))


def test_the_hash_is_of_what_is_asked():
    item = Item("1", "prompt", (" a", " b"), (0,))
    same = [replace(item, id="2"), replace(item, answers=(1,)), replace(item, columns={"x": 1})]
    other = [replace(item, prompt="Prompt"), replace(item, choices=(" b", " a")), replace(item, references=("r",))]
    assert {item_hash(i) for i in same} == {item_hash(item)}
    assert len({item_hash(i) for i in [item, *other]}) == 4
    assert len(item_hash(replace(item, prompt="\ud83d"))) == 16


def test_reading_predictions_needs_no_torch():
    code = "import sys, muscle_hf.evaluation as e; e.read_predictions, e.Task; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
