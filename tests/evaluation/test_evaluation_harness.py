"""lm-evaluation-harness on several adapters of one base in memory."""

from __future__ import annotations

import json

import peft
import pytest
import torch
from evaluation_models import make_choice_task, make_model, make_tokenizer

from muscle_hf.cli.main import main
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation import evaluate_task, load_sides, run_harness

pytest.importorskip("lm_eval")

TASK, ITEMS = make_choice_task(6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A base, two adapters on it, a merged model, and a task of the harness that reads a local file."""
    folder = tmp_path_factory.mktemp("harness")
    make_model().save_pretrained(folder / "base")
    make_tokenizer().save_pretrained(folder / "base")
    make_model(seed=5).save_pretrained(folder / "merged")
    make_tokenizer().save_pretrained(folder / "merged")
    for seed, name in enumerate(("v2", "compat")):
        base = make_model()
        base.name_or_path = base.config._name_or_path = str(folder / "base")
        torch.manual_seed(seed + 1)
        config = peft.LoraConfig(target_modules="all-linear", r=2, lora_alpha=8, init_lora_weights=False)
        peft.get_peft_model(base, config).save_pretrained(folder / name)
    with (folder / "rows.jsonl").open("w") as file:
        for item in ITEMS:
            row = {"prompt": item.prompt, "choices": [c[1:] for c in item.choices], "answer": item.answers[0]}
            file.write(json.dumps(row) + "\n")
    (folder / "words.yaml").write_text(
        "task: own_words\ndataset_path: json\ndataset_kwargs:\n  data_files:\n    test: "
        f"{folder / 'rows.jsonl'}\ntest_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{{{prompt}}}}'\n"
        "doc_to_choice: '{{choices}}'\ndoc_to_target: '{{answer}}'\nmetric_list:\n  - metric: acc\n"
    )
    return folder


def test_every_side_answers_for_itself(folder, tmp_path):
    names = {"old": folder / "merged", "new": folder / "v2", "compat": folder / "compat"}
    sides = load_sides(names, device="cpu")
    assert sides["new"].model is sides["compat"].model is not sides["old"].model
    active = sides["new"].model.active_adapter
    results = run_harness(sides, ["own_words"], include_path=folder, output=tmp_path, bootstrap_iters=0)
    for side, asked in sides.items():
        with asked.active():
            own = evaluate_task(asked.model, asked.tokenizer, TASK, ITEMS, progress=False)
        samples = sorted(results[side]["samples"]["own_words"], key=lambda sample: sample["doc_id"])
        for sample, prediction in zip(samples, own, strict=True):
            theirs = [value for value, _ in sample["filtered_resps"]]
            assert prediction.log_likelihoods == pytest.approx(theirs, abs=2e-3)
        accuracy = results[side]["results"]["own_words"]["acc,none"]
        assert accuracy == pytest.approx(sum(p.correct for p in own) / len(own))
        assert len(list((tmp_path / side).glob("samples_own_words_*.jsonl"))) == 1
    answers = {side: str([s["filtered_resps"] for s in r["samples"]["own_words"]]) for side, r in results.items()}
    assert len(set(answers.values())) == 3
    assert sides["new"].model.active_adapter == active


@pytest.mark.slow
def test_unknown_tasks(folder):
    with pytest.raises(MuscleError, match="no task nonsense_task"):
        run_harness({}, ["nonsense_task"])


@pytest.mark.slow
def test_the_command(folder, tmp_path, capsys):
    words = ["--old", str(folder / "merged"), "--new", str(folder / "v2"), "--tasks", "own_words", "--device", "cpu"]
    assert main(["harness", *words, "--include-path", str(folder), "--output", str(tmp_path), "--limit", "3"]) == 0
    assert f"compare {tmp_path / 'old'} {tmp_path / 'new'}" in capsys.readouterr().out
    (samples,) = (tmp_path / "new").glob("samples_own_words_*.jsonl")
    assert len(samples.read_text().splitlines()) == 3
