"""Code that comes with models, data and settings: never a repository's, and one's own only after it was said."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import paths
import pytest

from muscle_hf import MuscleError, demo
from muscle_hf.cli.main import main
from muscle_hf.evaluation.registry import load_task
from muscle_hf.user_code import NO_CODE

ROOT = paths.ROOT
LOADERS = {"from_pretrained", "from_config", "pipeline"}
# PEFT reads configurations and tensors, and has no such argument.
WITHOUT_CODE = {"PeftModel", "PeftConfig"}


def unguarded(source: str) -> list[int]:
    """Lines with a loader that is not called, or bound (``partial``), with ``trust_remote_code=False``."""
    nodes = list(ast.walk(ast.parse(source)))
    guarded = set()
    for call in (node for node in nodes if isinstance(node, ast.Call)):
        if any(
            word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in call.keywords
        ):
            guarded |= {id(node) for node in (call.func, *call.args)}
    loaders = [node for node in nodes if getattr(node, "attr", getattr(node, "id", None)) in LOADERS]
    owners = {id(node): getattr(getattr(node, "value", None), "id", None) for node in loaders}
    return [node.lineno for node in loaders if id(node) not in guarded and owners[id(node)] not in WITHOUT_CODE]


def test_every_loader_refuses_the_code_of_repositories():
    folders = [ROOT / name for name in ("muscle_hf", "recipes", "benchmarks", "examples")]
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert len(files) > 100
    found = {str(file.relative_to(ROOT)): unguarded(file.read_text(encoding="utf-8")) for file in files}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_a_loader_without_the_argument_is_found():
    assert unguarded("AutoTokenizer.from_pretrained(name)") == [1]
    assert unguarded("AutoModel.from_pretrained(name, trust_remote_code=True)") == [1]
    assert unguarded("auto.from_config(config, **arguments)") == [1]
    assert unguarded("load = AutoModel.from_pretrained") == [1]
    assert unguarded("partial(auto.from_pretrained, name, use_safetensors=True)") == [1]
    assert unguarded("partial(auto.from_pretrained, name, trust_remote_code=False)") == []
    assert unguarded("AutoModel.from_pretrained(name, trust_remote_code=False, **arguments)") == []


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a task, a mask and rows of one's own; a file ``ran`` appears in it once one of them is run."""
    monkeypatch.setenv(NO_CODE, "0")  # so that it is as before when the test ends
    monkeypatch.syspath_prepend(str(tmp_path))
    note = f"open({str(tmp_path / 'ran')!r}, 'a').write('x')\n"
    (tmp_path / "own_mask.py").write_text(note + "def wrong(logits, labels, old): return labels >= 0\n")
    make = "lambda row, index: Item(str(index), row['q'], references=(row['a'],))"
    (tmp_path / "own_task.py").write_text(
        f"{note}from muscle_hf.evaluation import Item, Task\n"
        f"asking = Task('asking', 'generation', {make}, metric='exact_match')\n"
    )
    rows = "".join(json.dumps({"q": f"{n} plus 1 is", "a": str(n + 1)}) + "\n" for n in range(8))
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows)
    return tmp_path


def settings(own: Path, **changes: object) -> str:
    bases = {side: {"base": str(demo.base(version))} for side, version in (("old", "v1"), ("new", "v2"))}
    content = {**bases, "output_dir": str(own / "run"), "data": {"source": str(own)}, **changes}
    (own / "run.yaml").write_text(json.dumps(content))
    return str(own / "run.yaml")


def commands(own: Path) -> dict[str, list[str]]:
    task = f"{own}/own_task.py:asking"
    asked = ["--task", task, "--data", str(own), "--output", str(own / "out")]
    run = settings(own, task=task)
    (own / "plain.yaml").write_text("{kind: generation, prompt: '{q}', reference: '{a}'}")
    words = ["--task", str(own / "plain.yaml"), "--old.task", task]
    fleet = {"update": {"old": str(demo.base("v1")), "new": str(demo.base("v2"))}, "output_dir": str(own / "fleet")}
    fleet["tasks"] = [{"task": task, "data": {"source": str(own)}, "budget": {"max_nfr": 0.9}}]
    (own / "fleet.yaml").write_text(json.dumps(fleet))
    return {
        "fleet": ["fleet", str(own / "fleet.yaml")],
        "plan": ["fleet", str(own / "fleet.yaml"), "--plan"],
        "old task": ["train", "--config", run, *words],
        "checker": ["train", "--config", run, *words[:2], "--data.transfer", f"{{split: train, checker: {task}}}"],
        "train": ["train", "--config", run],
        "dry": ["train", "--dry-run", "--config", run],
        "reproduce": ["reproduce", run],
        "cache": ["cache", "--config", run, "--cache", str(own / "cache")],
        "evaluate": ["evaluate", "model", *asked],
        "dial": ["dial", "--old", "v1", "--new", "v2", "--compat", "c", *asked],
    }


@pytest.mark.parametrize(
    "name", ["train", "dry", "reproduce", "cache", "evaluate", "dial", "fleet", "plan", "old task", "checker"]
)
def test_no_code_refuses_a_task_of_ones_own(own: Path, name: str, capsys: pytest.CaptureFixture):
    assert main([*commands(own)[name], "--no-code"]) == 2
    assert "own_task.py" in capsys.readouterr().err
    assert not (own / "ran").exists()


def test_the_variable_refuses_masks_and_harness_functions_too(own: Path, monkeypatch: pytest.MonkeyPatch):
    from muscle_hf.evaluation.harness import run_harness
    from muscle_hf.objective.named import resolve_mask

    monkeypatch.setenv(NO_CODE, "1")
    with pytest.raises(MuscleError, match="own_mask"):
        resolve_mask("own_mask:wrong")
    with pytest.raises(MuscleError, match="tasks"):
        run_harness({}, ["mine"], include_path=own / "tasks")
    assert not (own / "ran").exists()
    assert resolve_mask("student_wrong").name == "student_wrong"


def test_code_of_ones_own_is_said_before_it_runs(own: Path, caplog: pytest.LogCaptureFixture):
    (own / "own_task.py").write_text("raise RuntimeError('it runs')")
    with pytest.raises(RuntimeError, match="it runs"):
        load_task(f"{own}/own_task.py:asking")
    assert [str(own / "own_task.py") in record.getMessage() for record in caplog.records] == [True]


def test_a_recipe_script_takes_no_code(own: Path):
    run = settings(own, task=f"{own}/own_task.py:asking")
    command = [sys.executable, str(ROOT / "recipes" / "run.py"), "--config", run, "--no-code"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2 and "own_task.py" in done.stderr
    assert not (own / "ran").exists()
