"""What the commands end with: the exit code that scripts and CI read."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys

import paths
import peft
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


@pytest.mark.skipif(os.name == "nt", reason="shells of POSIX")
@pytest.mark.parametrize("start", ["muscle-hf", ".venv/bin/muscle-hf", "my tools/muscle-hf", "{python} -m muscle_hf"])
def test_a_printed_command_can_be_pasted_into_the_shell_that_started_it(start, tmp_path):
    """Whatever it was started as, from a folder with blanks, its words as awkward as can be."""
    code = "from muscle_hf.console import command; print(command('demo', \"a b\", 'c\\'d', '$HOME', 7))"
    program = f"#!{sys.executable}\nimport sys, muscle_hf.console\n{code}\nprint(sys.argv[1:])\n"
    for folder in ("on path", ".venv/bin", "my tools"):
        file = tmp_path / folder / "muscle-hf"
        file.parent.mkdir(parents=True)
        file.write_text(program)
        file.chmod(0o755)
    path = os.pathsep.join([str(tmp_path / "on path"), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(paths.ROOT)}

    def shell(line):
        done = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
        return done.stdout.splitlines()

    if "python" in start:
        shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment).stdout
        assert shlex.split(shown)[1:] == ["-m", "muscle_hf", "demo", "a b", "c'd", "$HOME", "7"]
        assert os.path.abspath(shutil.which(shlex.split(shown)[0])) == shutil.which(sys.executable)
        return
    shown, _ = shell(shlex.quote(start))
    assert shown.startswith(f"{shlex.quote(start)} demo ")
    assert shell(shown)[1] == str(["demo", "a b", "c'd", "$HOME", "7"])


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
