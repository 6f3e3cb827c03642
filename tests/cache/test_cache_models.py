"""The cache of a real teacher: who it is, what its head says, and that what is kept is what it computes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import builders
import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import nn
from vision_models import FAMILIES

from muscle_hf import MuscleError
from muscle_hf.cache import (
    HiddenStore,
    KeyRules,
    TeacherFiles,
    TopTokens,
    build_cache,
    file_fingerprint,
    load_head,
    plan_cache,
    row_keys,
    teacher_fingerprint,
)
from muscle_hf.objective.divergence import kl_divergence
from muscle_hf.teachers import AdapterTeacher, ModelTeacher, Teacher, kind_of, load_task_model
from muscle_hf.teachers.batch import IGNORED, Batch
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


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("tied", [False, True])
def test_files_alone_give_the_fingerprint_of_the_loaded_teacher(tmp_path, dtype, tied):
    adapter = saved(tmp_path, builders.llama(1, tie_word_embeddings=tied))
    arguments = {} if dtype is None else {"dtype": dtype}
    teacher = loaded(adapter, **arguments)
    from_files = file_fingerprint(TeacherFiles.find(adapter), CAUSAL_LM, TOKENIZER, **arguments)
    assert from_files.digest == digest(teacher)
    assert from_files.description == teacher_fingerprint(teacher, TOKENIZER).description
    merged = load_task_model(adapter, CAUSAL_LM, **arguments).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    plain = ModelTeacher("old", load_task_model(tmp_path / "merged", CAUSAL_LM))
    assert (
        file_fingerprint(TeacherFiles.find(tmp_path / "merged"), CAUSAL_LM, TOKENIZER).digest
        == digest(plain)
        != digest(teacher)
    )


def test_files_in_several_parts_and_a_moved_base_make_no_difference(tmp_path):
    adapter = saved(tmp_path)
    before = file_fingerprint(TeacherFiles.find(adapter), CAUSAL_LM).digest
    builders.llama(1).save_pretrained(tmp_path / "moved", max_shard_size="4KB")
    assert len(list((tmp_path / "moved").glob("*.safetensors"))) > 1
    shutil.rmtree(tmp_path / "base")
    assert file_fingerprint(TeacherFiles.find(adapter, base_model=tmp_path / "moved"), CAUSAL_LM).digest == before
    with pytest.raises(MuscleError, match="neither be found here nor fetched"):
        TeacherFiles.find(adapter, local_files_only=True)


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
def test_files_that_name_weights_as_they_were_published_are_known_too(tmp_path, family):
    base = FAMILIES[family].build(1)
    base.save_pretrained(tmp_path / "base")
    with safe_open(tmp_path / "base" / "model.safetensors", "pt") as file:
        assert not set(file.keys()) & base_weights(base).keys()
    kind = kind_of(base)
    loaded = load_task_model(tmp_path / "base", kind)
    known = file_fingerprint(TeacherFiles.find(tmp_path / "base"), kind, TOKENIZER).digest
    assert known == digest(ModelTeacher("old", loaded))
    assert same_as_files(base_weights(loaded), tmp_path / "base", loaded)
    head = load_head(TeacherFiles.find(tmp_path / "base"), kind)
    assert torch.equal(head.module.weight, loaded.get_output_embeddings().weight)
    loaded.get_output_embeddings().weight.data[0, 0] += 1
    assert digest(ModelTeacher("old", loaded)) != known
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


def test_what_files_cannot_tell_is_refused(tmp_path):
    adapter = saved(tmp_path, modules_to_save=["norm"])
    with pytest.raises(MuscleError, match="more than LoRA"):
        file_fingerprint(TeacherFiles.find(adapter), CAUSAL_LM)


# ---- The head alone ----


@pytest.mark.parametrize("family", ["llama", "tied", "gemma2", "granite", "cohere", "t5"])
def test_the_head_alone_gives_the_models_logits(tmp_path, family):
    base = builders.llama(1, tie_word_embeddings=True) if family == "tied" else getattr(builders, family)(1)
    adapter = saved(tmp_path, base)
    kind = kind_of(base)
    model = load_task_model(adapter, kind).eval()
    head = load_head(TeacherFiles.find(adapter), kind)
    held = {id(p) for p in head.module.parameters()}
    assert all(p.is_meta for p in head.base.parameters() if id(p) not in held)
    batch = builders.collate(builders.without(builders.rows(3), "completion_mask"))
    with torch.no_grad():
        output = model(**batch, output_hidden_states=True)
    states = output.decoder_hidden_states if family == "t5" else output.hidden_states
    scaled = (
        states[-1] * model.config.d_model**-0.5 if family == "t5" and base.config.tie_word_embeddings else states[-1]
    )
    assert torch.equal(head(scaled), output.logits)


def test_the_head_takes_the_dtype_asked_for(tmp_path):
    adapter = saved(tmp_path)
    assert load_head(TeacherFiles.find(adapter), CAUSAL_LM, dtype=torch.bfloat16).module.weight.dtype is torch.bfloat16
    assert load_head(TeacherFiles.find(adapter), CAUSAL_LM).module.weight.dtype is torch.float32


@pytest.mark.parametrize(
    ("tied", "target"), [(False, ["lm_head"]), (True, ["embed_tokens"]), (True, ["lm_head", "q_proj"])]
)
def test_an_adapter_that_changes_the_head_is_refused(tmp_path, tied, target):
    adapter = saved(tmp_path, builders.llama(1, tie_word_embeddings=tied), target_modules=target)
    with pytest.raises(MuscleError, match="changes the output layer"):
        load_head(TeacherFiles.find(adapter), CAUSAL_LM)


# ---- Building ----


def cached(store: HiddenStore, teacher: Teacher, batch: dict[str, Any]) -> list[torch.Tensor | None]:
    rules = KeyRules.of(teacher.model, CAUSAL_LM)
    parts = row_keys(batch, CAUSAL_LM.trained_labels(batch["labels"]), rules)
    return store.get([part.key for part in parts])


def test_what_is_kept_gives_the_teachers_logits_to_the_bit(tmp_path):
    teacher = loaded(saved(tmp_path))
    rows = builders.rows(11)
    with HiddenStore(tmp_path / "cache", teacher_fingerprint(teacher, TOKENIZER)) as store:
        plan = build_cache(teacher, rows, COLLATE, store, batch_size=4, progress=False)
    assert (plan.sequences, plan.missing, plan.uncacheable) == (11, 11, 0)
    head = load_head(TeacherFiles.find(tmp_path / "adapter"), CAUSAL_LM)
    key = file_fingerprint(TeacherFiles.find(tmp_path / "adapter"), CAUSAL_LM, TOKENIZER)
    store = HiddenStore(tmp_path / "cache", key)
    order = sorted(range(11), key=lambda index: -len(rows[index]["input_ids"]))
    for start in range(0, 11, 4):
        batch = COLLATE([rows[index] for index in order[start : start + 4]])
        labels = CAUSAL_LM.trained_labels(batch["labels"])
        online = Batch({}, labels, CAUSAL_LM).of_trained(teacher.logits(batch))
        assert torch.equal(head(torch.cat(cached(store, teacher, batch))), online)


@pytest.mark.parametrize("family", ["t5", "gemma2", "granite", "cohere"])
def test_other_families_are_kept_the_same_way(tmp_path, family):
    teacher = ModelTeacher("old", builders.with_lora(getattr(builders, family)(1), 10))
    kind = kind_of(teacher.model)
    rows = builders.without(builders.rows(5), "completion_mask")
    store = HiddenStore(tmp_path, teacher_fingerprint(teacher))
    build_cache(teacher, rows, builders.collate, store, batch_size=5, progress=False)
    batch = builders.collate(sorted(rows, key=lambda row: -len(row["input_ids"])))
    labels = kind.trained_labels(batch["labels"])
    parts = row_keys(batch, labels, KeyRules.of(teacher.model, kind))
    kept = torch.cat(store.get([part.key for part in parts]))
    assert torch.equal(Head(teacher.model)(kept), Batch({}, labels, CAUSAL_LM).of_trained(teacher.logits(batch)))


def test_building_goes_on_where_it_stopped(tmp_path):
    rows = builders.rows(12, seed=3)
    teacher = CountingTeacher("old", builders.with_lora(builders.llama(1), 10))
    fingerprint = teacher_fingerprint(teacher)
    with HiddenStore(tmp_path, fingerprint) as store:
        build_cache(teacher, rows[:7], COLLATE, store, batch_size=1, progress=False)
    assert teacher.seen == 7
    with HiddenStore(tmp_path, fingerprint) as store:
        said: list[str] = []
        plan = build_cache(teacher, rows, COLLATE, store, batch_size=1, progress=False, say=said.append, name="v1")
        assert (plan.missing, teacher.seen) == (5, 12)
        assert "v1: 5 of 12 sequences to compute" in said[0]
        build_cache(teacher, rows, COLLATE, store, batch_size=5, progress=False)
        assert teacher.seen == 12 and len(store) == 12


class CountingTeacher(ModelTeacher):
    """Counts the rows that went through its body."""

    seen = 0

    def logits(self, inputs: Any) -> torch.Tensor:
        self.seen += len(inputs["input_ids"])
        return super().logits(inputs)


def test_processes_share_the_work(tmp_path):
    rows = builders.rows(13)
    teacher = CountingTeacher("old", builders.with_lora(builders.llama(1), 10))
    stores = [HiddenStore(tmp_path, teacher_fingerprint(teacher)) for _ in range(2)]
    for rank, store in enumerate(stores):
        build_cache(teacher, rows, COLLATE, store, batch_size=3, share=(rank, 2), progress=False)
    assert teacher.seen == 13
    stores[0].refresh()
    assert len(stores[0]) == 13


def test_only_the_longest_batch_is_computed_where_the_disk_is_too_small(tmp_path, monkeypatch):
    teacher = CountingTeacher("old", builders.with_lora(builders.llama(1), 10))
    rows = builders.rows(12)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 2**28 + 1000))
    with HiddenStore(tmp_path / "cache", teacher_fingerprint(teacher)) as store:
        with pytest.raises(MuscleError, match="teacher cache needs"):
            build_cache(teacher, rows, COLLATE, store, batch_size=2, progress=False)
        assert teacher.seen == 2
    assert not (tmp_path / "cache").exists()


def test_trained_tokens_may_be_chosen(tmp_path):
    teacher = loaded(saved(tmp_path))
    rows = builders.rows(5)

    def completions(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return CAUSAL_LM.trained_labels(batch["labels"].masked_fill(batch["completion_mask"] == 0, IGNORED))

    store = HiddenStore(tmp_path / "cache", teacher_fingerprint(teacher))
    plan = build_cache(teacher, rows, COLLATE, store, trained_labels=completions, progress=False)
    assert plan.missing_tokens == sum(sum(row["completion_mask"]) for row in rows)
    rules = KeyRules.of(teacher.model, CAUSAL_LM)

    def whole(batch):
        return Batch(batch, CAUSAL_LM.trained_labels(batch["labels"]), CAUSAL_LM)

    everything = plan_cache(rows, COLLATE, store, 4, rules, whole)
    assert everything.missing == 5


def test_rows_that_cannot_be_cached_are_refused_when_there_are_no_others(tmp_path):
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    teacher = ModelTeacher("old", builders.with_lora(builders.llama(1, rope_parameters=rope), 10))
    with pytest.raises(MuscleError, match="no row of this dataset can be cached for LlamaForCausalLM"):
        build_cache(
            teacher, builders.rows(2), COLLATE, HiddenStore(tmp_path, teacher_fingerprint(teacher)), progress=False
        )


def test_the_compact_mode_is_built_the_same_way(tmp_path):
    teacher = loaded(saved(tmp_path))
    rows, form = builders.rows(6), TopTokens(builders.VOCABULARY, 2.0, builders.VOCABULARY)
    fingerprint = teacher_fingerprint(teacher)
    with HiddenStore(tmp_path / "cache", fingerprint, form=form) as store:
        build_cache(teacher, rows, COLLATE, store, progress=False)
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
    build_cache(
        teacher, builders.rows(3), COLLATE, HiddenStore(tmp_path, teacher_fingerprint(teacher)), progress=False
    )
    assert student.training and all(p.requires_grad for n, p in student.named_parameters() if "lora_" in n)
    assert not student.get_base_model().lm_head._forward_pre_hooks
