"""Every line of the page for those who come from another tool, on logs in that tool's form."""

from __future__ import annotations

import csv
import re
import shlex
import shutil
from pathlib import Path

import paths
import pytest
from compare_files import choice_predictions, lighteval_rows, write_lighteval
from tool_logs import LOGS, answers, write_log

from muscle_hf.cli.main import main

ROOT = paths.ROOT
DATA = paths.DATA / "tools"
PAGE = (ROOT / "docs" / "howto" / "coming-from.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r"^\| (\w.*?) \| `(muscle-hf compare .*?)`", PAGE, re.MULTILINE))


@pytest.mark.parametrize("tool", LINES)
def test_a_line_of_the_page(tool, tmp_path, monkeypatch, capsys):
    program, *arguments = shlex.split(LINES[tool])
    monkeypatch.chdir(tmp_path)
    if tool.startswith("lighteval"):
        for seed, side in enumerate(("old", "new")):
            write_lighteval(tmp_path / side, lighteval_rows(choice_predictions(30, 0.7, seed)))
        assert (program, main(arguments)) == ("muscle-hf", 0), capsys.readouterr()
        return
    (name,) = {Path(word).name for word in arguments if word.startswith(("old/", "new/"))}
    for side in ("old", "new"):
        folder = tmp_path / side
        folder.mkdir()
        made = next(((make, file) for make, file in LOGS.values() if file == name), None)
        kept = DATA / name.replace(".", f"-{side}.", 1)
        if made is not None:
            write_log(folder, made[0](side), name)
        elif kept.exists():
            shutil.copy(kept, folder / name)
        else:
            with (folder / name).open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(["number", "said", "truth"])
                writer.writerows(row[:3] for row in answers(side))
    assert (program, main(arguments)) == ("muscle-hf", 0), capsys.readouterr()


def test_the_page_knows_every_log_that_is_tested():
    assert all(name in PAGE for _, name in LOGS.values() if name != "display_predictions.json")
