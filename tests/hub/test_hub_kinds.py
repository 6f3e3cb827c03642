"""Publishing and loading beyond the plain case: classifiers, quantized bases, flips logged by the callback."""

from __future__ import annotations

from pathlib import Path

import builders
import pytest
import torch
from hub_server import TOKEN, HubServer, front_matter
from hub_world import NEW, make_tokenizer, make_trainer
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSequenceClassification

from muscle_hf import MuscleConfig, MuscleTrainer, load_compatible
from muscle_hf.callbacks import FlipMetricsCallback
from muscle_hf.evaluation import Item, Task
from muscle_hf.hub import MismatchError, fetch, publish

REPO = "tester/compat"


def test_a_classifier_keeps_its_head_and_labels(hub: HubServer, tmp_path: Path):
    for seed, name in enumerate(("old", "new")):
        builders.bert_sequences(seed).base_model.save_pretrained(tmp_path / name)
        make_tokenizer().save_pretrained(tmp_path / name)
    models = []
    for seed, name in enumerate(("old", "new")):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / name, **builders.LABELS)
        lora = LoraConfig(task_type="SEQ_CLS", target_modules=["query"], r=2, init_lora_weights=False)
        models.append(get_peft_model(base, lora))
    args = MuscleConfig(str(tmp_path / "run"), max_steps=2, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = MuscleTrainer(
        models[1], args, old_model=models[0], train_dataset=builders.sequence_rows(), processing_class=make_tokenizer()
    )
    trainer.train()
    trainer.save_model()
    publish(tmp_path / "run", REPO, token=TOKEN)
    card = hub.repo(REPO).files()["README.md"].decode()
    assert front_matter(card)["pipeline_tag"] == "text-classification"
    assert "whose head is not part of a LoRA" in card
    # The base's own head is drawn anew at each loading, and must not count as another base.
    model, _ = load_compatible(REPO, base_model=tmp_path / "new")
    assert model.config.id2label == builders.LABELS["id2label"]
    ids = torch.tensor([[5, 6, 7]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, trainer.student.eval()(ids).logits)
    with pytest.raises(MismatchError, match="content hash"):
        load_compatible(REPO, base_model=tmp_path / "old")


def test_a_pinned_base_can_be_loaded_quantized(bases: HubServer, adapter: Path):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    publish(adapter, REPO, token=TOKEN)
    quantized = BitsAndBytesConfig(load_in_8bit=True)
    model, tokenizer = load_compatible(REPO, quantization_config=quantized)
    assert isinstance(model, PeftModel) and model.get_base_model().is_loaded_in_8bit
    assert model.generate(**tokenizer("w1 w2", return_tensors="pt"), max_new_tokens=2).shape[1] <= 4


def test_flips_that_the_callback_logs_reach_the_card(bases: HubServer, tmp_path: Path):
    task = Task(name="routing", kind="choice", metric="acc", to_item=lambda row, index: row)
    items = [Item(id=str(i), prompt=f"w{i} w{i + 1}", choices=(" w5", " w6"), answers=(i % 2,)) for i in range(6)]
    trainer = make_trainer(tmp_path / "run", max_steps=2, eval_strategy="steps", eval_steps=1)
    trainer.add_callback(FlipMetricsCallback(task, items, trainer=trainer))
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "run" / "README.md").read_text()
    logged = fetch(tmp_path / "run").provenance["metrics"]
    assert f"| `eval_nfr` | `{logged['eval_nfr']:.6g}` |" in text and "nothing is known" in text
    assert "model-index" not in front_matter(text)


def test_a_base_whose_commit_is_not_the_newest_is_pinned_by_content(bases: HubServer, tmp_path: Path):
    from hub_world import files_in, save_base
    from transformers import AutoModelForCausalLM

    from muscle_hf.teachers.origin import origin_of

    first = bases.repo(NEW).branches["main"]
    old = AutoModelForCausalLM.from_pretrained(NEW)
    bases.add(NEW, files_in(save_base(tmp_path / "moved", seed=11)))
    second = bases.repo(NEW).branches["main"]
    new = AutoModelForCausalLM.from_pretrained(NEW)
    again = AutoModelForCausalLM.from_pretrained(NEW, revision=first)
    assert [origin_of(model).revision for model in (old, new, again)] == [first, second, first]
    assert origin_of(old).on_hub and origin_of(old).name == NEW
    local = AutoModelForCausalLM.from_pretrained(tmp_path / "moved")
    assert (origin_of(local).name, origin_of(local).on_hub) == ("moved", False)
