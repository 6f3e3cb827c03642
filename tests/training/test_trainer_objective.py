"""MuscleTrainer's loss is the paper's for every kind of model, head, mask and way to hand over the old model."""

from __future__ import annotations

import copy
import gc
import weakref

import builders
import numpy as np
import pytest
import reference
import torch
from builders import with_lora

from muscle_hf.objective import MASKS
from muscle_hf.teachers import AdapterTeacher, ModelTeacher

KINDS = {
    "causal LM": (builders.llama, builders.rows, True),
    "causal LM, capped logits": (builders.gemma2, builders.rows, True),
    "causal LM, divided logits": (builders.granite, builders.rows, True),
    "causal LM, multiplied logits": (builders.cohere, builders.rows, True),
    "seq2seq LM": (builders.t5, builders.rows, False),
    "sequence classification": (builders.bert_sequences, builders.sequence_rows, False),
    "token classification": (builders.bert_tokens, builders.token_rows, False),
}


def head_of(build):
    return {"modules_to_save": ["classifier"]} if "bert" in build.__name__ else {}


def expected_loss(batch, student, old, new, *, shift, mask="student_wrong", lam=1.0):
    """The reference's mean over the trained tokens, from logits computed before any trainer existed."""
    labels = batch["labels"].numpy()
    parts = [reference.trained(z.double().numpy(), labels, shift=shift) for z in (student, old, new)]
    (z_c, y, sequences), (z_1, _, _), (z_2, _, _) = parts
    m = reference.mask_of(mask, z_c, z_1, y, sequences)
    return reference.loss(z_c, z_1, z_2, y, m, lam=lam) / len(y)


def task_models(build, **settings):
    settings = {**head_of(build), **settings}
    return with_lora(build(2), 20, **settings), with_lora(build(1), 10, **settings)


@pytest.mark.parametrize("lam", [1.0, 0.3])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_first_steps_of_every_kind(kind, lam, tmp_path):
    build, make_rows, shift = KINDS[kind]
    model, old = task_models(build)
    rows = builders.half_right(make_rows(), model)
    batch = builders.collate(rows)
    new_logits, old_logits = (builders.logits_without_trainer(part, batch) for part in (model, old))
    settings = {"compatibility_weight": lam, "train_dataset": rows, "eval_dataset": rows}
    trainer = builders.trainer(tmp_path, model, old, **settings)
    loss = trainer.compute_loss(trainer.model, batch).item()
    expected = expected_loss(batch, new_logits, old_logits, new_logits, shift=shift, lam=lam)
    assert loss == pytest.approx(expected, rel=2e-5), "the student starts as a copy of v2's task model"
    before = builders.weights_of(trainer.model)
    share = trainer.evaluate()["eval_share_old"]
    assert 0 < share < 1, "the example must exercise both teachers"
    result = trainer.train()
    changed = {
        name for name, tensor in builders.weights_of(trainer.model).items() if not torch.equal(tensor, before[name])
    }
    assert result.global_step == 2
    assert changed, "nothing was trained"
    assert all(".default." in name for name in changed), "only the compatibility adapter is trained"
    after = trainer.compute_loss(trainer.model, batch).item()
    trained_logits = builders.logits_without_trainer(trainer.model, batch)
    expected = expected_loss(batch, trained_logits, old_logits, new_logits, shift=shift, lam=lam)
    assert after == pytest.approx(expected, rel=2e-5), "the teachers are what they were before training"


@pytest.mark.parametrize("kind", KINDS)
def test_cross_entropy_is_the_models_own_loss(kind, tmp_path):
    build, make_rows, _ = KINDS[kind]
    model, old = task_models(build)
    batch = builders.collate(make_rows())
    inputs = {key: value for key, value in batch.items() if key != "completion_mask"}
    with torch.no_grad():
        own = model(**inputs).loss.item()
    trainer = builders.trainer(tmp_path, model, old, eval_dataset=make_rows(), train_dataset=make_rows())
    assert trainer.evaluate()["eval_ce"] == pytest.approx(own, rel=1e-5)


@pytest.mark.parametrize("mask", reference.MASK_NAMES)
def test_every_mask_through_the_trainer(mask, tmp_path):
    model, old = task_models(builders.llama)
    batch = builders.collate(builders.half_right(builders.half_right(builders.rows(), model)[:6], old))
    new_logits, old_logits = (builders.logits_without_trainer(part, batch) for part in (model, old))
    trainer = builders.trainer(tmp_path, model, old, mask=MASKS[mask], compatibility_weight=0.5)
    with torch.no_grad():  # a student that differs from its teacher
        for parameter in trainer.model.parameters():
            if parameter.requires_grad:
                parameter.mul_(1.7)
    student_logits = builders.logits_without_trainer(trainer.model, batch)
    expected = expected_loss(batch, student_logits, old_logits, new_logits, shift=True, mask=mask, lam=0.5)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)


def test_sequences_packed_into_one_row_are_decided_one_by_one(tmp_path):
    from transformers import DataCollatorWithFlattening

    settings = {"mask": MASKS["old_likelier_sequence"], "compatibility_weight": 0.5}
    model, old = task_models(builders.llama)
    rows = builders.rows(ignore=0)
    rows = builders.half_right(rows[:4], model) + builders.half_right(rows[4:], old)
    apart = builders.trainer(tmp_path / "1", model, old, eval_dataset=rows, **settings).evaluate()
    table = builders.without(rows, "completion_mask")
    trainer = builders.trainer(
        tmp_path / "2", *task_models(builders.llama), train_dataset=table, eval_dataset=table,
        data_collator=DataCollatorWithFlattening(), **settings,
    )  # fmt: skip
    packed = trainer.evaluate()
    assert 0 < apart["eval_share_old"] < 1
    for name in filter(builders.is_figure, apart):
        assert packed[name] == pytest.approx(apart[name], rel=1e-4)


def test_all_labels_of_a_batch_ignored_gives_zero_and_zero_gradients(tmp_path):
    trainer = builders.trainer(tmp_path)
    batch = builders.collate(builders.rows())
    batch["labels"] = torch.full_like(batch["labels"], -100)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(0))
    loss.backward()
    assert loss.item() == 0
    assert all(torch.count_nonzero(p.grad) == 0 for p in trainer.model.parameters() if p.grad is not None)


@pytest.mark.parametrize("trained", ["labels", "completion", "assistant"])
def test_trained_tokens_are_those_asked_for(trained, tmp_path):
    table = builders.rows(ignore=0)
    column = {"completion": "completion_mask", "assistant": "assistant_masks"}.get(trained)
    if trained == "assistant":
        table = [{**builders.without([row], "completion_mask")[0], column: row["completion_mask"]} for row in table]
    trainer = builders.trainer(tmp_path, trained_tokens=trained, train_dataset=table)
    labels = trainer.trained_labels(builders.collate(table))
    expected = [
        row["labels"][i] for row in table for i in range(1, len(row["labels"])) if not column or row[column][i]
    ]
    assert labels[labels != -100].tolist() == expected


# ---- Ways to hand over the models ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base on disk, two adapters trained on it, another base with an adapter, and a merged model."""
    root = tmp_path_factory.mktemp("models")
    builders.llama(2).save_pretrained(root / "base")
    builders.llama(1).save_pretrained(root / "other_base")
    for name, base, seed in (("new", "base", 20), ("old", "base", 10), ("old_elsewhere", "other_base", 10)):
        with_lora(on_disk(root / base), seed).save_pretrained(root / name)
    with_lora(on_disk(root / "other_base"), 10).merge_and_unload().save_pretrained(root / "merged")
    return root


def on_disk(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder)


def loaded(root, adapter, base="base", **arguments):
    from peft import PeftModel

    return PeftModel.from_pretrained(on_disk(root / base), root / adapter, **arguments)


def check_against(folders, trainer, old_logits, batch):
    new_logits = builders.logits_without_trainer(loaded(folders, "new"), batch)
    expected = expected_loss(batch, new_logits, old_logits, new_logits, shift=True)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)


OLD_MODELS = {
    "same base, in memory": (lambda root: loaded(root, "old"), "old", "base", True),
    "same base, by path": (lambda root: str(root / "old"), "old", "base", True),
    "own base, in memory": (
        lambda root: loaded(root, "old_elsewhere", "other_base"),
        "old_elsewhere",
        "other_base",
        False,
    ),
    "own base, by path": (lambda root: root / "old_elsewhere", "old_elsewhere", "other_base", False),
    "merged, in memory": (lambda root: on_disk(root / "merged"), "old_elsewhere", "other_base", False),
    "merged, by path": (lambda root: root / "merged", "old_elsewhere", "other_base", False),
}


@pytest.mark.parametrize("form", OLD_MODELS)
def test_old_model_in_every_form_shares_a_base_where_it_can(form, folders, tmp_path):
    make, adapter, base, shared = OLD_MODELS[form]
    batch = builders.collate(builders.rows())
    old_logits = builders.logits_without_trainer(loaded(folders, adapter, base), batch)
    trainer = builders.trainer(tmp_path, loaded(folders, "new"), make(folders))
    assert isinstance(trainer.teachers["old"], AdapterTeacher if shared else ModelTeacher)
    check_against(folders, trainer, old_logits, batch)


def test_a_second_copy_of_a_shared_base_is_let_go(folders, tmp_path):
    old = loaded(folders, "old")
    gone = weakref.ref(old)
    trainer = builders.trainer(tmp_path, loaded(folders, "new"), old)
    assert isinstance(trainer.teachers["old"], AdapterTeacher)
    del old
    gc.collect()
    assert gone() is None


def test_the_plain_base_itself_may_be_the_old_model(folders, tmp_path):
    batch = builders.collate(builders.rows())
    old_logits = builders.logits_without_trainer(on_disk(folders / "base"), batch)
    trainer = builders.trainer(tmp_path, loaded(folders, "new"), str(folders / "base"))
    assert isinstance(trainer.teachers["old"], AdapterTeacher)
    check_against(folders, trainer, old_logits, batch)


def test_old_adapter_beside_the_new_one_in_the_same_model(folders, tmp_path):
    batch = builders.collate(builders.rows())
    old_logits = builders.logits_without_trainer(loaded(folders, "old"), batch)
    model = loaded(folders, "new")
    model.load_adapter(str(folders / "old"), "v1")
    trainer = builders.trainer(tmp_path, model, model, old_model_kwargs={"adapter": "v1"})
    check_against(folders, trainer, old_logits, batch)


def test_two_peft_models_around_one_base_object(folders, tmp_path):
    from peft import PeftModel

    batch = builders.collate(builders.rows())
    old_logits = builders.logits_without_trainer(loaded(folders, "old"), batch)
    base = on_disk(folders / "base")
    old = PeftModel.from_pretrained(base, folders / "old", adapter_name="v1")
    with pytest.warns(UserWarning):
        model = PeftModel.from_pretrained(base, folders / "new", adapter_name="v2")
    trainer = builders.trainer(tmp_path, model, old)
    assert isinstance(trainer.teachers["old"], AdapterTeacher)
    check_against(folders, trainer, old_logits, batch)


@pytest.mark.parametrize("name", ["default", "v2"])
def test_active_adapter_of_any_name_becomes_the_student(name, folders, tmp_path):
    batch = builders.collate(builders.rows())
    old_logits = builders.logits_without_trainer(loaded(folders, "old"), batch)
    trainer = builders.trainer(tmp_path, loaded(folders, "new", adapter_name=name), loaded(folders, "old"))
    assert trainer.model.active_adapters == ["default"]
    check_against(folders, trainer, old_logits, batch)


def test_merged_v2_with_a_fresh_adapter_starts_at_v2(folders, tmp_path):
    from peft import LoraConfig

    batch = builders.collate(builders.rows())
    merged = on_disk(folders / "merged")
    new_logits = builders.logits_without_trainer(merged, batch)
    old_logits = builders.logits_without_trainer(loaded(folders, "old"), batch)
    peft_config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = builders.trainer(tmp_path, merged, loaded(folders, "old"), peft_config=peft_config)
    expected = expected_loss(batch, new_logits, old_logits, new_logits, shift=True)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)
    trainer.train()
    assert trainer.evaluate(builders.half_right(builders.rows(), merged))["eval_kl_new"] > 0


def test_another_new_model_replaces_v2s_teacher(folders, tmp_path):
    batch = builders.collate(builders.rows())
    logits = {name: builders.logits_without_trainer(loaded(folders, name), batch) for name in ("new", "old")}
    trainer = builders.trainer(tmp_path, loaded(folders, "new"), folders / "old_elsewhere", new_model=folders / "old")
    other = builders.logits_without_trainer(loaded(folders, "old_elsewhere", "other_base"), batch)
    expected = expected_loss(batch, logits["new"], other, logits["old"], shift=True)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)


# ---- Kinds of adapter ----

ADAPTERS = {
    "DoRA": {"use_dora": True},
    "rank-stabilised": {"use_rslora": True},
    "LoRA on the output head": {"target_modules": ["q_proj", "lm_head"]},
    "LoRA on the embedding": {"target_modules": ["embed_tokens", "v_proj"]},
    "trained head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "trained new tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [3, 5]},
    "ranks by pattern": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 16}},
    "dropout": {"lora_dropout": 0.3},
}


@pytest.mark.parametrize("same_base", [True, False])
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_of_many_kinds(adapter, same_base, tmp_path):
    settings = ADAPTERS[adapter]
    model = with_lora(builders.llama(2), 20, **settings)
    # v1's adapter is another kind: what one of them trains, the other leaves to the base.
    old = with_lora(builders.llama(2 if same_base else 1), 10)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name or "trainable_tokens_delta" in name:
                parameter.add_(torch.randn_like(parameter) * 0.3)
    batch = builders.collate(builders.half_right(builders.rows(), model))
    new_logits, old_logits = (builders.logits_without_trainer(part, batch) for part in (model, old))
    trainer = builders.trainer(tmp_path, model, old)
    # New tokens are trained in the base's own embedding, which another adapter would see.
    shared = same_base and adapter != "trained new tokens"
    assert isinstance(trainer.teachers["old"], AdapterTeacher if shared else ModelTeacher)
    expected = expected_loss(batch, new_logits, old_logits, new_logits, shift=True)
    trainer.model.eval()
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)
    trainer.train()
    student = builders.logits_without_trainer(trainer.model, batch)
    trainer.model.eval()
    expected = expected_loss(batch, student, old_logits, new_logits, shift=True)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)
    assert not np.allclose(student.numpy(), new_logits.numpy())


@pytest.mark.parametrize("same_base", [True, False])
def test_decoder_with_a_classifier_by_path(same_base, tmp_path):
    """Neither the label set nor the padding token are in an adapter's folder."""
    from transformers import AutoModelForSequenceClassification as Classifier

    for name, seed in (("v1", 1), ("v2", 2)):
        builders.llama(seed, pad_token_id=None).save_pretrained(tmp_path / name)

    def task_model(base, seed):
        return with_lora(Classifier.from_pretrained(tmp_path / base, pad_token_id=0, **builders.LABELS), seed)

    old, model = task_model("v2" if same_base else "v1", 10), task_model("v2", 20)
    rows = builders.half_right(builders.sequence_rows(), model)
    batch = builders.collate(rows)
    new_logits, old_logits = (builders.logits_without_trainer(part, batch) for part in (model, old))
    words = {"processing_class": builders.tokenizer(), "old_processing_class": builders.tokenizer()}
    expected = expected_loss(batch, new_logits, old_logits, new_logits, shift=False)
    old.save_pretrained(tmp_path / "old")
    old.get_base_model().config.pad_token_id = 5  # which pads no row here
    for given in (tmp_path / "old", old):
        trainer = builders.trainer(tmp_path / "run", copy.deepcopy(model), given, train_dataset=rows, **words)
        assert isinstance(trainer.teachers["old"], AdapterTeacher if same_base else ModelTeacher)
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)


def test_classifiers_loaded_apart_share_a_base_although_their_heads_are_drawn_at_random(tmp_path):
    from transformers import AutoModelForSequenceClassification, BertModel

    BertModel(builders.bert_sequences(3).config).save_pretrained(tmp_path / "bert")
    model, old = (
        with_lora(
            AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", **builders.LABELS),
            seed,
            modules_to_save=["classifier"],
        )
        for seed in (20, 10)
    )
    batch = builders.collate(builders.sequence_rows())
    new_logits, old_logits = (builders.logits_without_trainer(part, batch) for part in (model, old))
    old.save_pretrained(tmp_path / "old")
    expected = expected_loss(batch, new_logits, old_logits, new_logits, shift=False)
    for given in (tmp_path / "old", old):
        trainer = builders.trainer(tmp_path / "run", model, given, train_dataset=builders.sequence_rows())
        assert isinstance(trainer.teachers["old"], AdapterTeacher)
        assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(expected, rel=2e-5)
