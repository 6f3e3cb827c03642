"""The cache of a real teacher: who it is, and that what is kept is what it computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from vision_models import FAMILIES

from muscle_hf.cache import CachedTargets, HiddenStore, KeyRules, TopTokens, row_keys, teacher_fingerprint
from muscle_hf.objective.divergence import kl_divergence
from muscle_hf.teachers import AdapterTeacher, ModelTeacher, Teacher, kind_of, load_task_model
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.weights import base_weights, same_as_files
from muscle_hf.training.data import PaddingCollator

TOKENIZER = builders.tokenizer()
COLLATE = PaddingCollator()


def saved(folder: Path, base: nn.Module | None = None, **lora: Any) -> Path:
    """An adapter on disk, and its base beside it."""
    base = builders.llama(1) if base is None else base
    base.save_pretrained(folder / "base")
    base.config._name_or_path = str(folder / "base")
    model = builders.with_lora(base, 10, **lora)
    model.peft_config["default"].base_model_name_or_path = str(folder / "base")
    model.save_pretrained(folder / "adapter")
    return folder / "adapter"


def loaded(adapter: Path, **arguments: Any) -> ModelTeacher:
    return ModelTeacher("old", load_task_model(adapter, CAUSAL_LM, **arguments))


def digest(teacher: Teacher, tokenizer: Any = TOKENIZER, **more: Any) -> str:
    return teacher_fingerprint(teacher, tokenizer, **more).digest


# ---- Fingerprints ----


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_files_that_name_weights_as_they_were_published_are_known_too(tmp_path, family):
    base = FAMILIES[family].build(1)
    base.save_pretrained(tmp_path / "base")
    with safe_open(tmp_path / "base" / "model.safetensors", "pt") as file:
        assert not set(file.keys()) & base_weights(base).keys()
    loaded = load_task_model(tmp_path / "base", kind_of(base))
    assert same_as_files(base_weights(loaded), tmp_path / "base", loaded)
    loaded.get_output_embeddings().weight.data[0, 0] += 1
    assert not same_as_files(base_weights(loaded), tmp_path / "base", loaded)


def test_where_an_adapter_sits_makes_no_difference(tmp_path):
    adapter = saved(tmp_path)
    apart = loaded(adapter)
    student = builders.with_lora(load_task_model(adapter, CAUSAL_LM).unload(), 20)
    student.load_adapter(adapter, "muscle_old")
    assert digest(AdapterTeacher("new", student, "muscle_old")) == digest(apart)
    assert digest(AdapterTeacher("new", student, "default")) != digest(apart)
    assert digest(AdapterTeacher("new", student, None)) == digest(ModelTeacher("old", student.unload()))


@pytest.mark.parametrize(
    "changed",
    [{"lora_alpha": 9}, {"use_rslora": True}, {"r": 2}, {"target_modules": ["q_proj"]}, {"init_lora_weights": True}],
)
def test_another_adapter_is_another_teacher(tmp_path, changed):
    one, other = saved(tmp_path / "one"), saved(tmp_path / "other", **changed)
    assert digest(loaded(one)) != digest(loaded(other))
    assert digest(loaded(one)) == digest(loaded(saved(tmp_path / "same", lora_dropout=0.5)))


def test_whatever_else_changes_the_states_is_another_teacher(tmp_path):
    adapter = saved(tmp_path)
    teacher = loaded(adapter)
    same = loaded(adapter)
    known = digest(teacher)
    assert digest(same) == known
    words = [f"w{index}" for index in range(builders.VOCABULARY)]
    others = {
        "tokenizer": digest(teacher, builders.tokenizer([*words[:-1], "another"])),
        "no tokenizer": digest(teacher, None),
        "autocast": digest(teacher, autocast="bf16"),
        "dtype": digest(loaded(adapter, dtype=torch.bfloat16)),
        "attention": digest(loaded(adapter, attn_implementation="eager")),
    }
    with torch.no_grad():
        same.model.get_base_model().model.layers[0].mlp.up_proj.base_layer.weight[0, 0] += 1
    others["weights"] = digest(same)
    same.model.get_base_model().config.rms_norm_eps = 1e-3
    others["config"] = digest(same)
    assert len({known, *others.values()}) == len(others) + 1
    assert digest(teacher, autocast=torch.bfloat16) == others["autocast"]


def test_the_provenance_spares_the_hashing(tmp_path):
    trainer = builders.trainer(tmp_path)
    for role, teacher in trainer.teachers.items():
        described = getattr(trainer.provenance, role)
        assert digest(teacher, provenance=described) == digest(teacher)
        other = {**described, "base": {**described["base"], "sha256": "0"}}
        assert digest(teacher, provenance=other) != digest(teacher)


# ---- Filling ----


def fill(teacher: Teacher, rows: Any, store: HiddenStore, batch_size: int = 8, collate: Any = COLLATE) -> None:
    """Ask a cache in front of a teacher about rows, the longest first."""
    kind = kind_of(teacher.model)
    teacher.head = teacher.head or Head(teacher.model)
    source = CachedTargets(teacher, store, KeyRules.of(teacher.model, kind))
    rows = sorted(rows, key=lambda row: -len(row["input_ids"]))
    for start in range(0, len(rows), batch_size):
        batch = collate(rows[start : start + batch_size])
        with torch.no_grad():
            source.targets(Batch(batch, kind.trained_labels(batch["labels"]), kind))
    source.flush()


def cached(store: HiddenStore, teacher: Teacher, batch: dict[str, Any]) -> list[torch.Tensor | None]:
    rules = KeyRules.of(teacher.model, CAUSAL_LM)
    parts = row_keys(batch, CAUSAL_LM.trained_labels(batch["labels"]), rules)
    return store.get([part.key for part in parts])


def test_what_is_kept_gives_the_teachers_logits_to_the_bit(tmp_path):
    teacher = loaded(saved(tmp_path))
    rows = builders.rows(11)
    with HiddenStore(tmp_path / "cache", teacher_fingerprint(teacher, TOKENIZER)) as store:
        fill(teacher, rows, store, 4)
    again = loaded(tmp_path / "adapter")
    store = HiddenStore(tmp_path / "cache", teacher_fingerprint(again, TOKENIZER))
    assert len(store) == 11
    order = sorted(range(11), key=lambda index: -len(rows[index]["input_ids"]))
    for start in range(0, 11, 4):
        batch = COLLATE([rows[index] for index in order[start : start + 4]])
        labels = CAUSAL_LM.trained_labels(batch["labels"])
        online = Batch({}, labels, CAUSAL_LM).of_trained(teacher.logits(batch))
        assert torch.equal(Head(again.model)(torch.cat(cached(store, teacher, batch))), online)


@pytest.mark.parametrize("family", ["t5", "gemma2", "granite", "cohere"])
def test_other_families_are_kept_the_same_way(tmp_path, family):
    teacher = ModelTeacher("old", builders.with_lora(getattr(builders, family)(1), 10))
    kind = kind_of(teacher.model)
    rows = builders.without(builders.rows(5), "completion_mask")
    store = HiddenStore(tmp_path, teacher_fingerprint(teacher))
    fill(teacher, rows, store, 5, builders.collate)
    batch = builders.collate(sorted(rows, key=lambda row: -len(row["input_ids"])))
    labels = kind.trained_labels(batch["labels"])
    parts = row_keys(batch, labels, KeyRules.of(teacher.model, kind))
    kept = torch.cat(store.get([part.key for part in parts]))
    assert torch.equal(Head(teacher.model)(kept), Batch({}, labels, CAUSAL_LM).of_trained(teacher.logits(batch)))


def test_filling_goes_on_where_it_stopped(tmp_path):
    rows = builders.rows(12, seed=3)
    teacher = CountingTeacher("old", builders.with_lora(builders.llama(1), 10))
    fingerprint = teacher_fingerprint(teacher)
    for known, size, seen in ((7, 1, 7), (12, 1, 12), (12, 5, 12)):
        with HiddenStore(tmp_path, fingerprint) as store:
            fill(teacher, rows[:known], store, size)
            assert teacher.seen == seen and len(store) == known


class CountingTeacher(ModelTeacher):
    """Counts the rows that went through its body."""

    seen = 0

    def logits(self, inputs: Any) -> torch.Tensor:
        self.seen += len(inputs["input_ids"])
        return super().logits(inputs)


def test_the_compact_mode_is_built_the_same_way(tmp_path):
    teacher = loaded(saved(tmp_path))
    rows, form = builders.rows(6), TopTokens(builders.VOCABULARY, 2.0, builders.VOCABULARY)
    fingerprint = teacher_fingerprint(teacher)
    with HiddenStore(tmp_path / "cache", fingerprint, form=form) as store:
        fill(teacher, rows, store)
    store = HiddenStore(tmp_path / "cache", fingerprint, form=form)
    batch = COLLATE(rows)
    labels = CAUSAL_LM.trained_labels(batch["labels"])
    parts = row_keys(batch, labels, KeyRules.of(teacher.model, CAUSAL_LM))
    online = Batch({}, labels, CAUSAL_LM).of_trained(teacher.logits(batch))
    own = online.split([part.count for part in parts])
    for kept, logits in zip(store.get([part.key for part in parts]), own, strict=True):
        found = kl_divergence(form.logits(kept, logits), logits, 2.0)
        torch.testing.assert_close(found, torch.zeros(len(logits)), atol=1e-6, rtol=0)
    assert store.folder != HiddenStore(tmp_path / "cache", fingerprint).folder
    assert len(HiddenStore(tmp_path / "cache", fingerprint, form=TopTokens(form.k, 1.0, form.vocabulary))) == 0


def test_a_peft_model_stays_as_it_was(tmp_path):
    student = builders.with_lora(builders.llama(1), 10)
    student.train()
    assert isinstance(student, PeftModel)
    teacher = AdapterTeacher("new", student, "default")
    fill(teacher, builders.rows(3), HiddenStore(tmp_path, teacher_fingerprint(teacher)))
    assert student.training and all(p.requires_grad for n, p in student.named_parameters() if "lora_" in n)
    assert not student.get_base_model().lm_head._forward_pre_hooks
