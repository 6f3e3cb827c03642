"""The dial's path: measured, chosen from, drawn, and walked by the command."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from pathlib import Path

import builders
import paths
import pytest
import torch
from chromium import Chromium, find_chromium
from dial_world import ITEMS, TASK, WORDS, two_adapters
from peft import PeftModel
from report_documents import HOSTILE
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from muscle_hf import MuscleError, load_compatible
from muscle_hf.cli.main import main
from muscle_hf.dial import Dial, DialPath, DialPoint, check_points, choose, report, walk
from muscle_hf.evaluation import evaluate_task, read_predictions, write_predictions
from muscle_hf.metrics import Estimate, flip_metrics

DOCUMENT = paths.ROOT / "docs" / "howto" / "dial.md"


# ---- The path ----


def point(t: float, accuracy: float, nfr: float, rank: int = 8) -> DialPoint:
    def made(value: float) -> Estimate:
        return Estimate(value, value - 0.01, value + 0.01, 0.95, "wilson")

    change = (None, None) if t == 0 else (made(0.01), made(-0.02))
    return DialPoint(t, rank, made(accuracy), made(nfr), made(0.1), made(0.2), *change)


def path(*points: DialPoint, task: str = "tiny") -> DialPath:
    return DialPath(task, "acc", "correct", 400, Estimate(0.7, 0.6, 0.8), list(points))


@pytest.mark.parametrize(
    ("rule", "max_loss", "t"),
    [
        ("least_nfr_at_no_loss", 0.0, 0.25),
        ("least_nfr_at_no_loss", 0.03, 0.75),
        ("least_nfr", 0.0, 1.0),
        ("most_accurate", 0.0, 0.5),
    ],
)
def test_each_rule_chooses_its_point(rule: str, max_loss: float, t: float):
    figures = [(0, 0.80, 0.10), (0.25, 0.80, 0.07), (0.5, 0.82, 0.08), (0.75, 0.78, 0.05), (1, 0.7, 0.04)]
    measured = path(*(point(*row) for row in figures))
    chosen = choose(measured, rule, max_loss=max_loss)
    assert chosen is not None and chosen.t == t
    assert choose(measured, lambda given: given.points[-1]).t == 1


def test_no_point_may_qualify_and_that_is_said():
    measured = path(point(0, 0.80, 0.10), point(0.5, 0.79, 0.05), point(1, 0.81, 0.10))
    assert choose(measured) is None
    words = report.verdict(measured, None, "least_nfr_at_no_loss")
    assert "No point qualifies" in words and "none has less NFR than v2 without losing accuracy" in words
    assert choose(measured, "least_nfr").t == 0.5
    assert "No point qualifies" in report.page(measured, None, "least_nfr_at_no_loss")


def test_of_equal_points_the_better_answers_win_then_the_lower_rank():
    measured = path(
        point(0, 0.80, 0.10), point(0.5, 0.80, 0.05, 16), point(0.75, 0.82, 0.05, 16), point(1, 0.82, 0.05, 8)
    )
    assert choose(measured).t == 1


def test_bad_questions_are_refused():
    measured = path(point(0, 0.8, 0.1), point(1, 0.8, 0.1))
    with pytest.raises(MuscleError, match="there are least_nfr_at_no_loss, least_nfr, most_accurate"):
        choose(measured, "best")
    with pytest.raises(MuscleError, match="max_loss is for"):
        choose(measured, "least_nfr", max_loss=0.1)
    with pytest.raises(MuscleError, match=r"t = 0\.3 was not measured"):
        measured.point(0.3)
    with pytest.raises(MuscleError, match=r"-0\.5, 1\.5 lie beyond"):
        check_points([-0.5, 0.5, 1.5])
    with pytest.raises(MuscleError, match="finite"):
        check_points([float("inf")], extrapolate=True)
    assert check_points([0.5, -0.5], extrapolate=True) == [-0.5, 0.0, 0.5, 1.0]


def test_the_path_is_what_the_points_answer():
    old_model = builders.with_lora(builders.llama(1), 10)
    tokenizer = builders.tokenizer(WORDS)
    old = evaluate_task(old_model, tokenizer, TASK, ITEMS, progress=False)
    dial = Dial(two_adapters(builders.llama(2)), tokenizer, new="new", compat="compat")
    told: list[str] = []
    measured = walk(dial, TASK, ITEMS, old, [0.5], progress=False, say=told.append)
    assert [p.t for p in measured.points] == [0.0, 0.5, 1.0] and told == [
        "t = 0 (rank 4)",
        "t = 0.5 (rank 8)",
        "t = 1 (rank 4)",
    ]
    for p in measured.points:
        answers = measured.predictions[p.t]
        expected = flip_metrics(*([q.prediction for q in side] for side in (old, answers)), [q.target for q in old])
        assert (p.accuracy.value, p.nfr.value) == pytest.approx((expected["acc_new"], expected["nfr"]))
        assert (p.nfr_mc.value, p.pfr.value) == pytest.approx((expected["nfr_mc"], expected["pfr"]))
    half = measured.point(0.5)
    assert half.change_of_nfr.value == pytest.approx(half.nfr.value - measured.new.nfr.value)
    with pytest.raises(MuscleError, match="the old model's predictions have no answer to 1 of 40"):
        walk(dial, TASK, ITEMS, old[1:], [0.5], progress=False)


def test_a_walk_that_was_stopped_goes_on(tmp_path):
    old_model, tokenizer = builders.with_lora(builders.llama(1), 10), builders.tokenizer(WORDS)
    old = evaluate_task(old_model, tokenizer, TASK, ITEMS, progress=False)
    told: list[str] = []

    def say(line: str) -> None:
        told.append(line.partition(" (")[0])
        if len(told) == 2:
            raise KeyboardInterrupt

    def go(model, items=ITEMS):
        dial = Dial(model, tokenizer, new="new", compat="compat")
        return walk(dial, TASK, items, old, [0.5], progress=False, say=say, keep=tmp_path)

    with pytest.raises(KeyboardInterrupt):
        go(two_adapters(builders.llama(2)))
    went_on = go(two_adapters(builders.llama(2)))
    assert told == ["t = 0", "t = 0.5", "t = 0.5", "t = 1"]
    alone = walk(Dial(two_adapters(builders.llama(2)), tokenizer, new="new", compat="compat"), TASK, ITEMS, old, [0.5],
                 progress=False)  # fmt: skip
    assert went_on.to_dict() == alone.to_dict() and went_on.predictions == alone.predictions
    every = ["t = 0", "t = 0.5", "t = 1"]
    for model, items in ((two_adapters(builders.llama(3)), ITEMS), (two_adapters(builders.llama(2)), ITEMS[1:]),
                         (two_adapters(builders.llama(2), {"lora_alpha": 7}), ITEMS)):  # fmt: skip
        told[:] = ["", "", ""]
        go(model, items)
        # v2's own adapter is the same where only the other one is scaled differently.
        assert told[3:] == (every if items is not ITEMS or model.peft_config["compat"].lora_alpha != 7 else every[1:])


def test_csv_and_json_hold_every_figure():
    measured = path(point(0, 0.8, 0.1), point(1, 0.8, 0.05))
    rows = list(csv.DictReader(io.StringIO(measured.to_csv())))
    assert [row["t"] for row in rows] == ["0", "1"] and rows[0]["change_of_nfr"] == ""
    assert float(rows[1]["nfr_low"]) == pytest.approx(0.04) and float(rows[1]["change_of_nfr"]) == -0.02
    data = json.loads(json.dumps(measured.to_dict(), allow_nan=False))
    assert data["points"][1]["nfr"]["value"] == 0.05 and "predictions" not in data


# ---- The page ----


def test_the_page_shows_the_path_and_trusts_nothing(tmp_path: Path):
    if find_chromium() is None:
        pytest.skip("no Chromium on the path; install it (Debian: apt-get install chromium)")
    measured = path(point(0, 0.8, 0.1), point(0.5, 0.82, 0.07, 16), point(1, 0.8, 0.06), task=HOSTILE)
    file = tmp_path / "path.html"
    file.write_text(report.page(measured, measured.point(1), "least_nfr_at_no_loss", 0.0, HOSTILE), encoding="utf-8")
    with Chromium() as browser:
        browser.resize(420, 900)
        browser.open(file)
        assert browser.evaluate("window.hacked") is None
        assert browser.evaluate("document.querySelectorAll('figure svg').length") == 3
        assert browser.evaluate("document.querySelectorAll('svg .dot.leads').length") == 3
        assert browser.evaluate("document.querySelector('tr.chosen th').textContent") == "1 compat"
        assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert "measure it on test items" in browser.evaluate("document.body.innerText").lower()


# ---- The command ----


@pytest.fixture
def scene(tmp_path: Path, monkeypatch) -> Path:
    """A new base on disk, both adapters of it, the old model's answers, a task and its validation rows."""
    monkeypatch.chdir(tmp_path)
    tokenizer = builders.tokenizer(WORDS)
    base = builders.llama(2)
    base.save_pretrained("base")
    tokenizer.save_pretrained("base")
    trainer = builders.trainer(
        Path("compat"),
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), _saved(base), is_trainable=True),
        processing_class=tokenizer,
        learning_rate=0.05,
        max_steps=4,
    )
    trainer.train()
    trainer.save_model()
    old = evaluate_task(builders.with_lora(builders.llama(1), 10), tokenizer, TASK, ITEMS, progress=False)
    write_predictions("old.jsonl", old)
    rows = [{"prompt": item.prompt, "choices": list(item.choices), "answer": item.answers[0]} for item in ITEMS]
    Path("validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("tiny.py").write_text(
        "from muscle_hf.evaluation import Item, Task\n"
        "def item(row, i):\n"
        "    return Item(str(i), row['prompt'], choices=tuple(row['choices']), answers=(row['answer'],))\n"
        "TASK = Task('tiny', 'choice', item)\n"
    )
    return tmp_path


def _saved(base: nn.Module) -> str:
    model = builders.with_lora(builders.llama(2), 20)
    model.peft_config["default"].base_model_name_or_path = "base"
    model.save_pretrained("new")
    return "new"


COMMAND = (
    "dial --old old.jsonl --new new --compat compat --task tiny.py:TASK --data validation.jsonl --output out --quiet"
)


def dial_command(*more: str) -> int:
    return main([*COMMAND.split(), *more])


@pytest.mark.slow
def test_the_command_from_end_to_end(scene: Path, capsys):
    assert dial_command("--points", "0.5", "0.25", "--choose", "0.5") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "t = 0.5 (rank 8), chosen by hand" in said and "Measure it on test items that took no part" in said
    result = json.loads(Path("out/path.json").read_text())
    assert [p["t"] for p in result["points"]] == [0.0, 0.25, 0.5, 1.0] and result["choice"]["t"] == 0.5
    assert len(read_predictions("out/predictions/t=0.25.jsonl")) == 40
    assert {path.name for path in Path("out").iterdir()} == {
        "adapter",
        "predictions",
        "path.json",
        "path.csv",
        "path.html",
    }

    record = json.loads(Path("out/adapter/muscle_dial.json").read_text())
    provenance = json.loads(Path("out/adapter/muscle_provenance.json").read_text())
    parent = json.loads(Path("compat/muscle_provenance.json").read_text())
    assert record["t"] == provenance["dial"]["t"] == 0.5 and record["choice"]["items"] == 40
    assert record["compat"]["sha256"] == parent["adapter_sha256"] != provenance["adapter_sha256"]
    assert record["new"]["sha256"] == parent["new"]["adapter"]["sha256"]
    assert str(scene) not in Path("out/adapter/muscle_dial.json").read_text()
    assert provenance["metrics"] == {} and provenance["adapter_file_sha256"] == record["adapter_file_sha256"]

    model, tokenizer = load_compatible("out/adapter", base_model="base")
    answers = evaluate_task(model, tokenizer, TASK, ITEMS, progress=False)
    assert [a.to_dict() for a in answers] == [p.to_dict() for p in read_predictions("out/predictions/t=0.5.jsonl")]
    card = Path("out/adapter/README.md").read_text()
    assert "0.5 times that of v2's" in card.replace("\n", " ") and "Chosen by hand on 40 items" in card
    assert "--max-lora-rank 8" in card


@pytest.mark.slow
def test_the_command_saves_nothing_where_no_point_qualifies(scene: Path, capsys):
    shutil.rmtree("compat")
    shutil.copytree("new", "compat")  # no point can differ from v2
    assert dial_command() == 1
    assert "No point qualifies" in capsys.readouterr().out
    assert not Path("out/adapter").exists() and Path("out/path.html").is_file()
    assert dial_command() == 2
    assert "exists; choose another --output, or pass --overwrite" in capsys.readouterr().err
    assert dial_command("--overwrite", "--choose", "1") == 0
    one, other = (load_file(f"{folder}/adapter_model.safetensors") for folder in ("out/adapter", "compat"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
    assert not Path("out/adapter/muscle_provenance.json").exists()  # its parent has none
    assert json.loads(Path("out/adapter/muscle_dial.json").read_text())["t"] == 1


@pytest.mark.slow
def test_the_command_refuses_early(scene: Path, capsys):
    for more, says in (
        (["--points", "1.5"], "--extrapolate"),
        (["--max-loss", "-1"], "max_loss must be a number of at least 0"),
        (["--rule", "least_nfr", "--max-loss", "0.1"], "max_loss is for the rule"),
        (["--level", "95"], "level must lie between"),
        (["--compat", "base"], "is a whole model"),
        (["--compat", "."], "neither an adapter"),
        (["--old", "nothing.jsonl"], "there is no prediction file"),
    ):
        assert dial_command(*more) == 2
        assert says in capsys.readouterr().err
        assert not Path("out").exists()


# ---- Its page ----


@pytest.mark.slow
def test_the_documentation_runs(scene: Path, capsys):
    """The commands and snippets of docs/howto/dial.md, on small models."""
    for source, target in {"new": "adapters/task-v2", "compat": "out"}.items():
        shutil.copytree(source, target)
    Path("task.yaml").write_text('name: tiny\nkind: choice\nprompt: "{prompt}"\nchoices: choices\nanswer: answer\n')
    Path("data").mkdir()
    rows = [{"prompt": item.prompt, "choices": list(item.choices), "answer": item.answers[0]} for item in ITEMS]
    for split in ("validation", "test"):
        Path("data", f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name in ("old_test", "new_test"):
        shutil.copyfile("old.jsonl", f"{name}.jsonl")
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("muscle-hf ") for kind, body in blocks if kind == "sh" for line in body.splitlines()]
    dial, evaluate, compare = (command.split() for command in commands)
    assert main([*dial, "--quiet"]) in (0, 1)
    by_hand = [word for word in dial if word not in ("--rule", "least_nfr_at_no_loss")]
    assert main([*by_hand, "--quiet", "--overwrite", "--choose", "0.75"]) == 0
    assert main([*evaluate, "--quiet"]) == 0
    assert main([*compare, "--quiet"]) in (0, 1, 3)
    namespace: dict = {}
    for kind, body in blocks:
        if kind == "python":
            exec(compile(body, DOCUMENT.name, "exec"), namespace)
    assert namespace["middle"].config.r == 8
    assert Path("adapters/chosen/adapter_model.safetensors").is_file()
