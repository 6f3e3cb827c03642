"""Every snippet and command of the pages on comparing runs."""

from __future__ import annotations

import csv
import dataclasses
import json
import re
import shlex
import shutil

import paths
import pytest
from compare_files import choice_predictions, write, write_lines

from muscle_hf.cli.main import main

ROOT = paths.ROOT
DOCS = ROOT / "docs"
# Page -> the kinds of blocks that it has, and the files that these write.
PAGES = {
    "howto/compare.md": (
        {"bash", "yaml", "python"},
        ("report.html", "comment.md", "gate.xml", "result.json", "noise.json"),
    ),
    "howto/gate-in-ci.md": ({"bash", "yaml"}, ("report.html", "comment.md", "gate.xml")),
    "explanation/flips.md": ({"python"}, ()),
    "reference/metrics.md": ({"python"}, ()),
}
BLOCK = re.compile(r"(?:<!-- (?P<mark>[^>]+) -->\n)?^```(?P<kind>\w+)\n(?P<body>.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """The files that the page speaks of."""
    old, new = choice_predictions(300, 0.9, 1), choice_predictions(300, 0.88, 2)
    compat = [a if i % 2 else b for i, (a, b) in enumerate(zip(old, new, strict=True))]
    for name in ("old", "new"):
        results = [{"testIdx": i, "scores": {"match": {"value": "CI"[i % 2]}}} for i in range(20)]
        (tmp_path / f"{name}.json").write_text(json.dumps({"results": results}), encoding="utf-8")
    for name in ("monday", "friday"):
        rows = [
            {"model": m, "subject": s, "nr": i, "score": i} for m in ("base", "big") for s in "ab" for i in range(9)
        ]
        write_lines(tmp_path / f"{name}.jsonl", rows)
    again = [dataclasses.replace(old[0], prediction=3, correct=False), *old[1:]]
    for name, rows in {"old": old, "new": new, "compat": compat, "old_again": again}.items():
        write(tmp_path / f"{name}.jsonl", rows)
        with (tmp_path / f"{name}.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["number", "said", "truth"])
            writer.writerows([p.id, p.prediction, p.target] for p in rows)
    with (tmp_path / "both.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["number", "model_a", "model_b", "truth"])
        writer.writerows([a.id, a.prediction, b.prediction, a.target] for a, b in zip(old, new, strict=True))
    runs = [{"id": i, "model": m, "correct": i % n == 0} for m, n in (("base", 2), ("tuned", 3)) for i in range(20)]
    write_lines(tmp_path / "runs.jsonl", runs)
    shutil.copytree(paths.DATA / "lm_eval", tmp_path / "lm_eval")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs_from_top_to_bottom(page, scene, capsys):
    text, (kinds, written) = (DOCS / page).read_text(encoding="utf-8"), PAGES[page]
    seen = set()
    for block in BLOCK.finditer(text):
        kind, body, mark = block["kind"], block["body"], block["mark"]
        if kind == "sh":  # for logs of another form; that they parse is tested with all documents
            continue
        seen.add(kind)
        if kind == "python":
            exec(compile(body, f"{page}.md", "exec"), {})
        elif kind == "yaml":
            path = scene / mark.removeprefix("file: ")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
        else:
            for line in body.splitlines():
                program, *arguments = shlex.split(line)
                assert (program, mark) == ("muscle-hf", "run")
                assert main(arguments) == 0, f"{line}\n{capsys.readouterr()}"
    assert seen == kinds
    for name in written:
        assert (scene / name).stat().st_size > 0


def test_the_reference_names_all_rates():
    from muscle_hf.metrics import flip_metrics, smooth_flip_metrics

    text = (DOCS / "reference" / "metrics.md").read_text(encoding="utf-8")

    counted = {"items", "both_right", "positive_flips", "both_wrong", "negative_flips", "acc_old", "acc_new"}
    counted |= {"improved", "regressed", "score_old", "score_new"}
    for name in {*flip_metrics([0], [0], [0]), *smooth_flip_metrics([0.0], [0.0])} - counted:
        assert f"`{name}`" in text
