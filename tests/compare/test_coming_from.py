"""Every line of the page for those who come from another tool, on logs in that tool's form."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import paths
import pytest
from tool_logs import LOGS, answers, kept

from muscle_hf.cli.main import main

ROOT = paths.ROOT
PAGE = (ROOT / "docs" / "howto" / "coming-from.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r"^\| (\w.*?) \| `(muscle-hf compare .*?)`", PAGE, re.MULTILINE))


@pytest.mark.parametrize("tool", LINES)
def test_a_line_of_the_page(tool, tmp_path, monkeypatch, capsys):
    program, *arguments = shlex.split(LINES[tool])
    monkeypatch.chdir(tmp_path)
    (name,) = {Path(word).name for word in arguments if word.startswith(("old/", "new/"))} or {""}
    (log,) = [log for log, (_, file) in LOGS.items() if file == name] or [None]
    for side in ("old", "new"):
        folder = tmp_path / side
        if log == "lighteval":
            shutil.copytree(kept(log, side), folder)
            continue
        folder.mkdir()
        if log is not None:
            shutil.copy(kept(log, side), folder / name)
        else:
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["number", "said", "truth"])
                writer.writerows(row[:3] for row in answers(side))
    assert (program, main(arguments)) == ("muscle-hf", 0), capsys.readouterr()


def test_the_page_knows_every_tool():
    named = {log.partition(" ")[0].replace("json", "mlflow") for log, (_, name) in LOGS.items() if name in PAGE}
    assert named == {log.partition(" ")[0].replace("json", "mlflow") for log in LOGS}
