"""Every snippet and command of docs/howto/publish-and-load.md runs, top to bottom, against the Hub on loopback."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import paths
import pytest
from compare_files import choice_predictions, write
from hub_server import TOKEN, HubServer
from hub_world import make_trainer

from muscle_hf.cli.main import main

TEXT = (paths.ROOT / "docs" / "howto" / "publish-and-load.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_the_page_runs_from_top_to_bottom(
    bases: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    pytest.importorskip("evaluate")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.chdir(tmp_path)
    old, new = choice_predictions(40, 0.9, 1), choice_predictions(40, 0.8, 2)
    for name, rows in {"old": old, "new": new, "compat": old[:20] + new[20:]}.items():
        write(tmp_path / f"{name}.jsonl", rows)
    trainer = make_trainer(tmp_path / "out", max_steps=1)
    trainer.train()
    trainer.save_model()
    namespace = {"trainer": trainer}
    for kind, body in BLOCK.findall(TEXT):
        if kind == "python":
            exec(compile(body, "hub.md", "exec"), namespace)
            continue
        for line in body.splitlines():
            words = shlex.split(line)
            assert words[0] == "muscle-hf"
            assert main(words[1:]) == 0, line
    told = capsys.readouterr().out
    assert "tester/support-v1-v2" in told
    assert "routing of help-desk tickets" in (tmp_path / "out" / "README.md").read_text()
    assert (tmp_path / "adapters" / "support" / "adapter_model.safetensors").is_file()
