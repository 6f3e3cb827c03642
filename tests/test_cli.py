"""What the commands end with: the exit code that scripts and CI read."""

from __future__ import annotations

import pytest

from muscle_hf.cli import compare
from muscle_hf.cli.main import main
from muscle_hf.errors import MuscleError
from muscle_hf.pipeline.launch import script


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MuscleError("the file is none of ours"), 2, "compare: error: the file is none of ours"),
        (IsADirectoryError(21, "Is a directory", "folder"), 2, "compare: error: [Errno 21] Is a directory: 'folder'"),
        (UnicodeEncodeError("cp1252", "→", 0, 1, "no such character"), 70, "Traceback"),
        (ZeroDivisionError("division by zero"), 70, "Traceback"),
    ],
)
def test_no_error_looks_like_a_gate_that_failed(error, code, said, monkeypatch, capsys):
    def fails(args):
        raise error

    monkeypatch.setattr(compare, "run", fails)
    assert main(["compare", "old.jsonl", "new.jsonl"]) == code
    assert said in capsys.readouterr().err


def test_a_recipe_script_ends_with_2_for_bad_settings(capsys):
    def work():
        raise MuscleError("there is no recipe 'nosuch'")

    with pytest.raises(SystemExit) as ended:
        script(work)
    assert ended.value.code == 2
    assert "error: there is no recipe 'nosuch'" in capsys.readouterr().err


@pytest.mark.parametrize(("output", "said"), [("file/out.jsonl", "File exists"), (".", "name a file in it")])
def test_predictions_that_could_not_be_kept_are_not_made(output, said, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    (tmp_path / "rows.csv").write_text("sentence,label\nfine,1\n")
    words = ["nosuch/model", "--task", "sst2", "--data", str(tmp_path / "rows.csv"), "--overwrite"]
    assert main(["evaluate", *words, "--output", str(tmp_path / output)]) == 2
    assert said in capsys.readouterr().err
