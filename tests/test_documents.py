"""Every snippet of the documents runs, and every command in them exists."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import paths
import pytest

ROOT = paths.ROOT
STUDY = ROOT / "benchmarks" / "study" / "REPORT.md"
SKILL = ROOT / "skills" / "muscle-hf" / "SKILL.md"
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "AGENTS.md",
    SKILL,
    ROOT / "recipes" / "README.md",
    STUDY,
    *sorted((ROOT / "docs").rglob("*.md")),
]
# Also in a list, which is indented.
BLOCK = re.compile(r"^ *```(\w+)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)

# Documents whose snippets are run by a test of their own, beside what they describe.
TESTED_ELSEWHERE = {
    "compare.md": "compare/test_compare_documents.py",
    "dial.md": "dial/test_dial_path.py",
    "drop-in.md": "training/test_drop_in.py",
    "flips-while-training.md": "test_flip_callback.py",
    "flips.md": "compare/test_compare_documents.py",
    "metrics.md": "compare/test_compare_documents.py",
    "publish-and-load.md": "hub/test_hub_documents.py",
    "served-v1.md": "served/test_served_run.py",
    "tasks.md": "evaluation/test_evaluation_tasks.py",
}


def blocks(document: Path, language: str) -> list[str]:
    return [text for kind, text in BLOCK.findall(document.read_text()) if kind == language]


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """What the snippets take for granted: two bases, a task adapter on each, a tokenizer and tokenized rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    from muscle_hf import demo
    from muscle_hf.training.data import encode_items

    folder = tmp_path_factory.mktemp("documents")
    tokenizer = AutoTokenizer.from_pretrained(demo.base("v2"))
    items = [demo.TASKS["routing"].to_item(row, i) for i, row in enumerate(demo.rows("routing", "train", count=16))]
    rows = encode_items(tokenizer, items)
    for version in demo.VERSIONS:
        set_seed(1)
        config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(demo.base(version)), config)
        model.save_pretrained(folder / "adapters" / f"task-{version}")
    # What the quickstart's demo leaves.
    model.save_pretrained(folder / "demo-output" / "routing-seed0" / "muscle")

    def names():
        return {
            "base_v2": AutoModelForCausalLM.from_pretrained(demo.base("v2")),
            "base_v2_name": str(demo.base("v2")),
            "tokenizer": tokenizer,
            "train": [{"input_ids": row["input_ids"][:24], "labels": row["labels"][:24]} for row in rows[:8]],
            "validation": [{"input_ids": row["input_ids"][:24], "labels": row["labels"][:24]} for row in rows[8:]],
            "old_model": "adapters/task-v1",
        }

    return folder, names


def fix_lengths(names):
    length = min(len(row["input_ids"]) for key in ("train", "validation") for row in names[key])
    for key in ("train", "validation"):
        names[key] = [{column: ids[:length] for column, ids in row.items()} for row in names[key]]
    return names


@pytest.mark.slow
def test_readme_diff_is_the_whole_change(scene, monkeypatch):
    """The script before the diff trains with Trainer, the one after it with MuscleTrainer, and is saved."""
    folder, names = scene
    monkeypatch.chdir(folder)
    (diff,) = blocks(ROOT / "README.md", "diff")
    lines = diff.splitlines()
    before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
    after = "\n".join(line[1:] for line in lines if not line.startswith("-"))
    assert sum(line.startswith("-") for line in lines) == sum(line.startswith("+") for line in lines) == 3
    for script in (before, after):
        exec(compile(script, "README.md", "exec"), namespace := fix_lengths(names()))
    assert type(namespace["trainer"]).__name__ == "MuscleTrainer"
    assert (folder / "out" / "muscle_provenance.json").is_file()
    (load,) = re.findall(r"`(PeftModel\.from_pretrained\(.*?\))`", (ROOT / "README.md").read_text())
    eval(load, {**names(), "PeftModel": namespace["PeftModel"]})


@pytest.mark.slow
@pytest.mark.parametrize("document", [d for d in DOCUMENTS if d.name != "README.md"], ids=lambda d: d.name)
def test_python_snippets_run(document, scene, monkeypatch):
    """The snippets of a document run from top to bottom; each trainer that they make can train."""
    if document.name in TESTED_ELSEWHERE:
        assert (ROOT / "tests" / TESTED_ELSEWHERE[document.name]).is_file()
        return
    snippets = blocks(document, "python")
    folder, names = scene
    monkeypatch.chdir(folder)
    namespace = fix_lengths(names())
    if document.name in ("objective.md", "prompts-without-labels.md", "qlora.md"):
        from peft import PeftModel

        from muscle_hf import MuscleConfig, MuscleTrainer

        model = PeftModel.from_pretrained(namespace["base_v2"], "adapters/task-v2", is_trainable=True)
        args = MuscleConfig("out", max_steps=1, report_to="none", use_cpu=True)
        namespace |= {"MuscleConfig": MuscleConfig, "MuscleTrainer": MuscleTrainer, "model": model, "args": args}
        namespace["prompts"] = ["Ticket: the parcel is late.", "Ticket: I want my money back."]
    if document.name == "answers-alone.md":
        from peft import PeftModel

        from muscle_hf import demo

        items = [
            demo.TASKS["routing"].to_item(row, i) for i, row in enumerate(demo.rows("routing", "train", count=16))
        ]
        for name, part in (("train", items[:8]), ("transfer", items[8:])):
            scores = ({"prompt": i.prompt, "choices": i.choices, "log_likelihoods": [-1.0] * 6} for i in part)
            Path(f"old-{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in scores))
        model = PeftModel.from_pretrained(namespace["base_v2"], "adapters/task-v2", is_trainable=True)
        namespace |= {"items": items, "task": demo.TASKS["routing"], "model": model}
    for snippet in snippets:
        if "load_in_4bit" in snippet:
            pytest.importorskip("bitsandbytes", reason="QLoRA needs the extra muscle-hf[qlora]")
        exec(compile(snippet, document.name, "exec"), namespace)
        if "trainer" in namespace:
            trainer = namespace.pop("trainer")
            trainer.args.max_steps = 1
            assert trainer.train().global_step == 1
            namespace["base_v2"] = names()["base_v2"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.name)
def test_commands_exist(document):
    """`make` targets are in the Makefile; `muscle-hf` commands parse, and the files of the project they name exist."""
    import argparse

    from muscle_hf.cli.main import TAKE_SETTINGS, module_of

    makefile = (ROOT / "Makefile").read_text()
    for line in "\n".join(blocks(document, "sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["make"]:
            assert re.search(rf"^{words[1]}:", makefile, re.MULTILINE), line
        elif words[:1] == ["muscle-hf"]:
            parser = argparse.ArgumentParser()
            module_of(words[1]).add_arguments(parser)
            _, more = parser.parse_known_args(words[2:])
            assert not more or words[1] in TAKE_SETTINGS, line
            for word in words[2:]:
                if word.startswith(("recipes/", "benchmarks/")):
                    assert (ROOT / word).exists(), line
        elif words[:1] == ["python"] and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), line
        elif words[:2] == ["pip", "install"] and words[-1].startswith(".["):
            extra = words[-1].removeprefix(".[").removesuffix("]")
            assert f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text(), line


def test_links_between_documents_lead_somewhere():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", document.read_text()):
            if not re.match(r"\w+:", target):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"


@pytest.mark.parametrize("page", ["howto/another-tokenizer.md", "howto/answers-alone.md"])
def test_settings_on_a_page_can_be_read(page, tmp_path):
    from muscle_hf.pipeline.config import load_settings

    text = (ROOT / "docs" / page).read_text()
    files = re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert len(files) == text.count("```yaml")
    for name, body in files:
        (tmp_path / name).write_text(body)
        assert load_settings(tmp_path / name).new.base == "ORGANISATION/NEW-BASE"


def test_the_files_of_the_first_update_can_be_read(tmp_path):
    from muscle_hf.evaluation import load_task
    from muscle_hf.pipeline.config import load_settings

    page = (ROOT / "docs" / "tutorials" / "first-update.md").read_text()
    for name, body in re.findall(r"<!-- file: (\S+) -->\n```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(body)
    row = {"text": "the parcel is late", "team": "delivery", "language": "en"}
    assert load_task(str(tmp_path / "tickets.yaml")).to_item(row, 0).answers == (1,)
    settings = load_settings(tmp_path / "update.yaml")
    assert (settings.task, settings.data.source) == ("tickets.yaml", "tickets")


def test_the_reference_has_every_public_name():
    import muscle_hf

    pages = "".join((ROOT / "docs" / "reference" / f"{page}.md").read_text() for page in ("api", "config"))
    for name in muscle_hf.__all__:
        if not name.startswith("_"):
            assert re.search(rf"\b{name}\b", pages), name


def test_the_list_for_language_models_has_every_page_once():
    listed = re.findall(r"\]\(([^)]+)\)", (ROOT / "llms.txt").read_text())
    pages = {path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")} - {"docs/index.md"}
    assert pages <= set(listed) and len(set(listed)) == len(listed)
    assert all((ROOT / target).is_file() for target in listed)


def test_the_skill_has_what_an_assistant_finds_it_by():
    import yaml

    _, head, body = SKILL.read_text().split("---\n", 2)
    assert set(yaml.safe_load(head)) == {"name", "description"} and body.strip()
    assert yaml.safe_load(head)["name"] == SKILL.parent.name
    assert len(yaml.safe_load(head)["description"]) <= 1024


@pytest.mark.slow
def test_the_script_for_jobs_runs(tmp_path, monkeypatch):
    """The Hub's own client reads its header; on this machine it does what it says."""
    import runpy
    import sys

    from huggingface_hub import JobHardware
    from huggingface_hub.cli._uv_script_header import parse_uv_script_header

    from muscle_hf import demo

    script = ROOT / "examples" / "train_update.py"
    header = parse_uv_script_header(script.read_text())
    assert header.flavor in {flavor.value for flavor in JobHardware} and header.secrets == ["HF_TOKEN"]
    monkeypatch.chdir(tmp_path)
    words = ["--old", demo.base("v1"), "--new", demo.base("v2"), "--task", "piqa", "--smoke", "--lora.r", "4"]
    monkeypatch.setattr(sys, "argv", [str(script), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code == 0
    assert list(tmp_path.rglob("muscle/adapter_model.safetensors"))


def test_readme_tells_the_measured_accuracy_of_the_demo():
    table = (ROOT / "benchmarks" / "results" / "demo.md").read_text()
    v2, ours = (re.search(rf"^\| {name} \| ([\d.]+)", table, re.MULTILINE)[1] for name in ("v2", "recommended.*?"))
    assert f"from {v2} to {ours} %" in (ROOT / "README.md").read_text()
