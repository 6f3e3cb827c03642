"""Usual scripts with the documented lines changed, and nothing else: the diffs of docs/howto applied and run."""

from __future__ import annotations

import json
import math
import re
import runpy
import sys
from pathlib import Path

import builders
import paths
import pytest
from builders import VOCABULARY

pytest.importorskip("trl")

ROOT = paths.ROOT
SCRIPTS = ROOT / "tests" / "scripts"
WORDS = ["<pad>", "<eos>", *(f"w{i}" for i in range(2, VOCABULARY))]
TEXTS = [" ".join(f"w{2 + (7 * i + 3 * j) % (VOCABULARY - 2)}" for j in range(5 + i % 4)) for i in range(16)]
# Script -> the two bases and the rows that it takes.
KINDS = {
    "causal_lm": (builders.llama, [{"text": text} for text in TEXTS]),
    "text_classification": (builders.bert_sequences, [{"text": t, "label": i % 3} for i, t in enumerate(TEXTS)]),
    "summarization": (builders.t5, [{"document": text, "summary": text[:5]} for text in TEXTS]),
    "sft": (builders.llama, [{"prompt": text, "completion": f" {text[:5]}"} for text in TEXTS]),
}


def changed(name: str) -> str:
    """A script after the diff that the document shows for it."""
    text = (SCRIPTS / f"{name}.py").read_text()
    document = "".join((ROOT / "docs" / "howto" / f"{page}.md").read_text() for page in ("drop-in", "seq2seq", "trl"))
    diff = re.search(rf"<!-- tests/scripts/{name}\.py -->\n\n```diff\n(.*?)```", document, re.DOTALL)[1]
    for hunk in diff.split("@@\n"):
        lines = hunk.splitlines()
        before = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " -")
        after = "".join(f"{line[1:]}\n" for line in lines if line[:1] in " +")
        assert text.count(before) == 1, before
        text = text.replace(before, after)
    return text


@pytest.fixture
def run_script(monkeypatch, tmp_path):
    def run(script: Path, **options):
        words = [f"--{key}={value}" for key, value in options.items()]
        fixed = ["--use_cpu=True", "--report_to=none", "--disable_tqdm=True", "--max_steps=2", "--save_steps=1"]
        fixed += ["--per_device_train_batch_size=4", "--eval_strategy=steps", "--eval_steps=1", "--bf16=False"]
        fixed += ["--load_best_model_at_end=True", "--metric_for_best_model=loss", "--learning_rate=0.01"]
        monkeypatch.setattr(sys, "argv", [str(script), *fixed, *words])
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
        runpy.run_path(str(script), run_name="__main__")

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_a_usual_script_with_the_documented_lines_changed(name, tmp_path, run_script):
    build, rows = KINDS[name]
    tokenizer = builders.tokenizer(WORDS)
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for version, seed in (("v1", 1), ("v2", 2)):
        build(seed).save_pretrained(tmp_path / version)
        tokenizer.save_pretrained(tmp_path / version)
        places = {"model_name_or_path": tmp_path / version, "output_dir": tmp_path / f"task-{version}"}
        run_script(SCRIPTS / f"{name}.py", **places, train_file=data)
    script = tmp_path / f"{name}_muscle.py"
    script.write_text(changed(name))
    out = tmp_path / "compat"
    places = {"model_name_or_path": tmp_path / "v2", "output_dir": out, "train_file": data}
    places |= {"task_adapter": tmp_path / "task-v2", "old_adapter": tmp_path / "task-v1"}
    places |= {"predict_with_generate": True, "generation_max_length": 8} if name == "summarization" else {}
    run_script(script, **places, mask="old_right")
    provenance = json.loads((out / "muscle_provenance.json").read_text())
    assert provenance["objective"]["mask"] == "old_right"
    assert provenance["old"]["base"]["name"] == "v1"
    metrics = json.loads((out / "eval_results.json").read_text())
    assert {"eval_loss", "eval_share_old"} <= metrics.keys()
    assert ("eval_shared_words" in metrics) == (name == "summarization")
    assert metrics.get("perplexity") == (math.exp(metrics["eval_ce"]) if name == "causal_lm" else None)
    assert not list(out.rglob("*.bin"))
    first = (out / "adapter_model.safetensors").read_bytes()
    run_script(script, **places, mask="old_right", resume_from_checkpoint=out / "checkpoint-1")
    assert (out / "adapter_model.safetensors").read_bytes() == first


def test_only_few_lines_change():
    for name in KINDS:
        before, after = (SCRIPTS / f"{name}.py").read_text().splitlines(), changed(name).splitlines()
        new = [line for line in after if line.strip() and line not in before]
        assert len(new) <= 9, new
