"""What the commands end with: the exit code that scripts and CI read."""

from __future__ import annotations

import os
import subprocess
import sys

import paths
import peft
import pytest

from muscle_hf.cli import compare
from muscle_hf.cli.main import main
from muscle_hf.console import command
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


@pytest.mark.skipif(os.name == "nt", reason="shells of POSIX")
@pytest.mark.parametrize("active", [True, False])
def test_a_printed_command_can_be_pasted(active, tmp_path, monkeypatch):
    """Whether or not the environment is active, and with words as awkward as can be."""
    for name, content in (("muscle-hf", ""), ("python", 'test "$1 $2" = "-m muscle_hf" && shift 2\n')):
        file = tmp_path / "my tools" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f'#!/bin/sh\n{content}printf "%s\\n" "$@"\n')
        file.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "my tools" / "python"))
    if active:
        monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "my tools"), os.environ["PATH"]]))
    shown = command("demo", "a b", "c'd", "$HOME", 7)
    assert shown.startswith("muscle-hf demo ") == active
    done = subprocess.run(["sh", "-c", shown], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["demo", "a b", "c'd", "$HOME", "7"]


def test_the_package_is_the_command_and_warns_of_nothing_it_does_itself(tmp_path):
    from evaluation_models import make_model, make_tokenizer

    adapted = peft.get_peft_model(make_model(), peft.LoraConfig(target_modules=["q_proj"]))
    adapted.save_pretrained(tmp_path / "adapter")
    make_model().save_pretrained(tmp_path / "base")
    make_tokenizer().save_pretrained(tmp_path / "base")
    (tmp_path / "rows.csv").write_text("sentence,label\nfine,1\n")
    words = ["evaluate", "base", "--adapter", "adapter", "--task", "sst2", "--data", "rows.csv", "--output", "o.jsonl"]
    environment = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", "muscle_hf", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and "sst2: acc" in done.stdout
    assert "Warning" not in done.stderr and "pip install" not in done.stderr


def test_ctrl_c_is_one_line_and_code_130(monkeypatch, capsys):
    def stops(args):
        raise KeyboardInterrupt

    monkeypatch.setattr(compare, "run", stops)
    assert main(["compare", "old.jsonl", "new.jsonl"]) == 130
    assert len(capsys.readouterr().err.splitlines()) == 1
