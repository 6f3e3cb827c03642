"""A run of ``muscle-hf train`` whose v1 is behind a server, and answers that come from one."""

from __future__ import annotations

import json
import re

import builders
import paths
import pytest
import yaml
from loopback import Scripted, serving
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf import MuscleError, TransferPrompts, demo
from muscle_hf.cli.main import main
from muscle_hf.evaluation import Item, Task, evaluate_task, read_predictions
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.smoke import smoke_settings
from muscle_hf.served.server import Server
from muscle_hf.teachers import ModelTeacher
from muscle_hf.training.data import encode_items
from muscle_hf.training.transfer_rows import Models


@pytest.fixture(scope="module")
def v1():
    return builders.with_lora(builders.llama(1), 10).eval()


@pytest.fixture
def run_file(tmp_path):
    """A recipe of which v1 has no weights here."""
    base = builders.llama(2)
    base.save_pretrained(tmp_path / "base-new")
    builders.tokenizer().save_pretrained(tmp_path / "base-new")
    model = builders.with_lora(base, 20)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base-new")
    model.save_pretrained(tmp_path / "new")
    builders.choice_files(tmp_path, train=14, test=5)
    settings = {
        "task": str(tmp_path / "task.yaml"),
        "old": {"base": str(tmp_path / "base-new")},
        "new": {"base": str(tmp_path / "base-new"), "adapter": str(tmp_path / "new")},
        "output_dir": str(tmp_path / "out"),
        "data": {"source": str(tmp_path), "validation_share": 0.5},
        "control": False,
        "training": {"max_steps": 2, "use_cpu": True, "disable_tqdm": True, "preset": "consensus"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path / "run.yaml"


def test_the_cache_is_filled_from_the_server_and_the_run_needs_it_for_answers_alone(run_file, tmp_path, v1, capsys):
    with serving({"v1": v1}, builders.tokenizer(), greedy=True) as url:
        asked = ["--server", url, "--server-model", "v1", "--top-k", "7"]
        assert main(["cache", "--config", str(run_file), "--cache", str(tmp_path / "cache"), *asked]) == 0
        assert "old model: 14 rows" in capsys.readouterr().out
        (folder,) = (path.parent for path in (tmp_path / "cache").glob("*/manifest.json") if "top7-T1" in str(path))
        assert json.loads((folder / "manifest.json").read_text())["teacher"]["served"] == "v1"
        before = len(Scripted.requests)
        settings = {"url": url, "model": "v1", "top_k": "7"}
        words = [word for name, value in settings.items() for word in (f"--old.server.{name}", value)]
        words += ["--training.teacher_cache", str(tmp_path / "cache")]
        assert main(["train", "--config", str(run_file), *words]) == 0
        bodies = [body for _, _, body, _ in Scripted.requests[before:]]
        # Two choices of five test items; not one row of the training.
        assert len(bodies) == 10 and not any("prompt_logprobs" in body for body in bodies)
    run = Run.of(load_settings(run_file, []), lambda text: None)
    expected = evaluate_task(v1, builders.tokenizer(), run.task, run.splits.test, progress=False)
    answers = read_predictions(tmp_path / "out" / "predictions" / "old.jsonl")
    for answer, other in zip(answers, expected, strict=True):
        assert answer.log_likelihoods == pytest.approx(other.log_likelihoods, abs=1e-4)
    provenance = json.loads((tmp_path / "out" / "muscle" / "muscle_provenance.json").read_text())
    assert provenance["old"]["base"]["name"] == "v1" and provenance["old"]["adapter"] is None


@pytest.mark.parametrize(
    "words",
    [
        ["--new.server.url", "http://127.0.0.1:9/v1", "--new.server.model", "v2"],
        ["--old.server.url", "http://127.0.0.1:9/v1", "--old.server.model", "v1", "--old.adapter", "folder"],
        ["--old.server.url", "http://127.0.0.1:9/v1", "--old.server.model", "v1", "--start_from", "old"],
        ["--old.server.url", "http://127.0.0.1:9/v1"],
    ],
    ids=["new", "adapter", "start_from", "model"],
)
def test_what_does_not_go_with_a_server(words, run_file):
    with pytest.raises(MuscleError):
        load_settings(run_file, words)


def test_a_smoke_run_asks_no_server(run_file):
    words = ["--old.server.url", "http://127.0.0.1:9/v1", "--old.server.model", "v1", "--data.transfer.split", "train"]
    words += ["--data.transfer.servers.new.url", "http://127.0.0.1:9/v1", "--data.transfer.servers.new.model", "v2"]
    given = load_settings(run_file, words)
    assert given.old.server.top_k == 20 and given.data.transfer.servers.new.model == "v2"
    smoke = smoke_settings(given)
    assert smoke.old.server is None and smoke.data.transfer.servers.new is None


@pytest.mark.parametrize("kind", ["text", "choice"])
def test_answers_from_a_server_are_the_models_own(kind, tmp_path, v1):
    tokenizer, prompts = builders.tokenizer(), [f"w{3 + i} w{9 + i} w{20 + i}" for i in range(4)]
    task = None
    if kind == "choice":
        prompts = [Item(str(i), prompt, choices=(" w41", " w42")) for i, prompt in enumerate(prompts)]
        task = Task("two", "choice", lambda row, index: prompts[index], metric="acc")
    models = {"student": v1, "teachers": {"old": ModelTeacher("old", v1)}, "tokenizer": tokenizer, "progress": False}
    own = TransferPrompts(prompts, "old", task, 6).rows(Models(folder=tmp_path / "own", **models))
    with serving({"v1": v1}, tokenizer, greedy=True) as url:
        server = Server(url, "v1", retries=0)
        asking = TransferPrompts(prompts, "old", task, 6, servers={"old": server})
        assert asking.rows(Models(folder=tmp_path / "served", **models)) == own
        count = len(Scripted.requests)
        assert count == (8 if kind == "choice" else 4)
        # By ids, so that no tokenizer of a server's is between; and asked once.
        assert all(isinstance(body["prompt"], list) for _, _, body, _ in Scripted.requests)
        assert asking.rows(Models(folder=tmp_path / "served", **models)) == own
        assert len(Scripted.requests) == count
    assert not list(tmp_path.rglob("*.partial"))


def test_the_snippets_of_the_page_run(tmp_path, monkeypatch):
    tokenizer = AutoTokenizer.from_pretrained(demo.base("v2"))
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(demo.base("v2")), config)
    adapted.save_pretrained(tmp_path / "adapters" / "task-v2")
    items = [demo.TASKS["routing"].to_item(row, i) for i, row in enumerate(demo.rows("routing", "train", count=8))]
    rows = [{name: ids[:24] for name, ids in row.items()} for row in encode_items(tokenizer, items)]
    monkeypatch.chdir(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(demo.base("v2"))
    names = {"base_v2": base, "train": rows, "tokenizer": tokenizer}
    page = (paths.ROOT / "docs" / "howto" / "served-v1.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    old = AutoModelForCausalLM.from_pretrained(demo.base("v1")).eval()
    with serving({"task-v1": old, "task-v2": adapted.eval()}, tokenizer, greedy=True) as url:
        for snippet in snippets:
            exec(compile(snippet.replace("http://localhost:8000/v1", url), "served-v1.md", "exec"), names)
            if "trainer" in snippet:
                names["trainer"].args.max_steps = 1
        assert names["trainer"].train().global_step == 1
        models = Models(base, names["trainer"].teachers, tokenizer, tmp_path, progress=False)
        names["rows"].rows(models)
        assert {body["model"] for _, _, body, _ in Scripted.requests} == {"task-v1", "task-v2"}


def test_an_address_with_a_password_is_not_used():
    with pytest.raises(MuscleError, match="api_key") as refused:
        Server("http://user:hunter2@127.0.0.1:9/v1", "v1").client()
    assert "hunter2" not in str(refused.value)
