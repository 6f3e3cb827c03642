"""Teachers never change, and the student is as it was whenever a teacher has spoken."""

from __future__ import annotations

import contextlib

import builders
import pytest
import torch
from builders import with_lora
from peft import LoraConfig, PeftModel

from muscle_hf import MuscleError
from muscle_hf.objective import resolve_mask
from muscle_hf.teachers import AdapterTeacher, ModelTeacher
from muscle_hf.teachers.adapters import adapter_parameters, frozen_view
from muscle_hf.teachers.copies import copy_adapter
from muscle_hf.teachers.weights import base_weights, content_hash, folder_hash

SETUPS = {
    "one base for all": lambda: {"old_model": with_lora(builders.llama(2), 10, lora_dropout=0.3)},
    "old on its own base": lambda: {"old_model": with_lora(builders.llama(1), 10, lora_dropout=0.3)},
    "old merged": lambda: {"old_model": builders.llama(1)},
    "new merged": lambda: {
        "model": builders.llama(2),
        "old_model": with_lora(builders.llama(1), 10),
        "peft_config": LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM", lora_dropout=0.3),
    },
}


@pytest.fixture(params=SETUPS)
def trainer(request, tmp_path):
    given = SETUPS[request.param]()
    model = given.pop("model", None)
    model = with_lora(builders.llama(2), 20, lora_dropout=0.3) if model is None else model
    return builders.trainer(tmp_path, model, given.pop("old_model"), eval_dataset=builders.rows(), **given)


def teacher_weights(trainer):
    found = {}
    for role, teacher in trainer.teachers.items():
        for name, tensor in {**teacher.base_weights(), **teacher.adapter_weights()}.items():
            found[f"{role} {name}"] = tensor.detach().clone()
    return found


def test_weights_of_teachers_are_bit_identical_after_training(trainer):
    before = teacher_weights(trainer)
    student = {name: p.detach().clone() for name, p in adapter_parameters(trainer.model, "default").items()}
    trainer.train()
    after = teacher_weights(trainer)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    now = adapter_parameters(trainer.model, "default")
    assert any(not torch.equal(student[name], now[name]) for name in student), "the student did change"


def test_only_the_student_is_in_the_optimizer(trainer):
    optimizer = trainer.create_optimizer()
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert optimized == {id(parameter) for parameter in adapter_parameters(trainer.model, "default").values()}


def test_teachers_are_deterministic_without_gradients_and_do_not_touch_the_random_state(trainer):
    trainer.model.train()
    batch = builders.collate(builders.rows())
    for teacher in trainer.teachers.values():
        state = torch.get_rng_state()
        one, other = teacher.logits(batch), teacher.logits(batch)
        assert torch.equal(one, other), "dropout is off"
        assert not one.requires_grad
        assert torch.equal(state, torch.get_rng_state())
        if isinstance(teacher, ModelTeacher):
            assert not teacher.model.training
            assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def state_of(model):
    return (
        model.active_adapter,
        [(name, module.training) for name, module in model.named_modules()],
        [(name, parameter.requires_grad) for name, parameter in model.named_parameters()],
        [
            (name, module.active_adapters, module.disable_adapters)
            for name, module in model.named_modules()
            if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters")
        ],
    )


class Broken(Exception):
    pass


@pytest.mark.parametrize("training", [True, False])
def test_student_is_as_it_was_whenever_compute_loss_returns_or_raises(trainer, training):
    trainer.model.train(training)
    batch = builders.collate(builders.rows())
    before = state_of(trainer.model)
    assert before[0] == "default"
    trainer.compute_loss(trainer.model, batch)
    assert state_of(trainer.model) == before

    def broken(student, old, new, labels):
        raise Broken

    trainer.muscle_objective = type(trainer.muscle_objective)(mask=resolve_mask(broken))
    with pytest.raises(Broken):
        trainer.compute_loss(trainer.model, batch)
    assert state_of(trainer.model) == before

    def raising(module, inputs):
        if not module.training or trainer.model.active_adapter != "default":
            raise Broken  # in the middle of a teacher's forward

    hook = trainer.teachers["new"].model.get_base_model().model.norm.register_forward_pre_hook(raising)
    with pytest.raises(Broken):
        trainer.compute_loss(trainer.model, batch)
    hook.remove()
    assert state_of(trainer.model) == before


def test_mixed_modes_of_the_modules_are_restored():
    model = with_lora(builders.llama(2), 20)
    copy_adapter(model, "default", model, "teacher")
    model.train()
    model.get_base_model().model.layers[0].eval()
    next(iter(adapter_parameters(model, "default").values())).requires_grad = False
    before = state_of(model)
    for adapter in ("teacher", None):
        with frozen_view(model, adapter):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
        assert state_of(model) == before
        with pytest.raises(Broken), frozen_view(model, adapter):
            raise Broken
        assert state_of(model) == before
    assert torch.is_grad_enabled()


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}, {"trainable_token_indices": [3, 5]}, {"merged": True}],
)
def test_a_frozen_view_is_what_peft_makes_by_switching(settings):
    merged = "merged" in settings
    model = with_lora(builders.llama(2), 20, **({} if merged else settings))
    copy_adapter(model, "default", model, "teacher")
    with torch.no_grad():
        for parameter in adapter_parameters(model, "teacher").values():
            parameter.add_(0.1)
    model.set_adapter("default")
    batch = builders.collate(builders.rows())
    for adapter in ("teacher", None):
        if merged:
            model.merge_adapter()
        with frozen_view(model, adapter):
            found = builders.logits_without_trainer(model, batch)
            assert model.active_adapter == (adapter or "default")
            assert model.base_model.active_adapter == (adapter or "default")
        if merged:
            model.unmerge_adapter()
        if adapter is None:
            with model.disable_adapter():
                expected = builders.logits_without_trainer(model, batch)
        else:
            model.set_adapter(adapter)
            expected = builders.logits_without_trainer(model, batch)
            model.set_adapter("default")
        assert torch.allclose(found, expected, atol=1e-5) if merged else torch.equal(found, expected)
        assert not torch.equal(found, builders.logits_without_trainer(model, batch))


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_a_copied_adapter_gives_bit_equal_logits(settings):
    model = with_lora(builders.llama(2), 20, **settings)
    batch = builders.collate(builders.rows())
    expected = builders.logits_without_trainer(model, batch)
    copy_adapter(model, "default", model, "copy")
    assert torch.equal(builders.logits_without_trainer(model, batch), expected), "adding the copy changes nothing"
    model.set_adapter("copy")
    assert torch.equal(builders.logits_without_trainer(model, batch), expected)
    pairs = zip(adapter_parameters(model, "default").values(), adapter_parameters(model, "copy").values(), strict=True)
    assert all(one.data_ptr() != other.data_ptr() for one, other in pairs), "and shares no memory"


def test_one_base_in_memory_serves_all_three(tmp_path):
    trainer = builders.trainer(tmp_path, with_lora(builders.llama(2), 20), with_lora(builders.llama(2), 10))
    assert all(isinstance(teacher, AdapterTeacher) for teacher in trainer.teachers.values())
    assert all(teacher.model is trainer.model for teacher in trainer.teachers.values())


def test_a_base_that_differs_in_one_bit_is_not_shared(tmp_path):
    other = builders.llama(2)
    with torch.no_grad():
        other.model.norm.weight[0] += 1e-6
    trainer = builders.trainer(tmp_path, with_lora(builders.llama(2), 20), with_lora(other, 10))
    assert isinstance(trainer.teachers["old"], ModelTeacher)


def test_vocabularies_that_cannot_differ_are_not_warned_of(tmp_path, caplog):
    copy = builders.llama(2)
    with torch.no_grad():
        copy.model.norm.weight[0] += 1e-6
    # A base of its own, with something around its embeddings.
    wrapped = with_lora(builders.llama(2), 10, trainable_token_indices=[3, 5])
    with torch.no_grad():
        wrapped.get_input_embeddings().token_adapter.trainable_tokens_delta["default"] += 1
    for old, unknown in ((with_lora(copy, 10), False), (wrapped, False), (with_lora(builders.llama(7), 10), True)):
        # Said once of a pair of models.
        old.get_base_model().config._name_or_path = "old-base"
        builders.trainer(tmp_path, with_lora(builders.llama(2), 20), old)
        assert any("old-" in text for text in caplog.messages) is unknown


@pytest.mark.parametrize("same", [True, False])
def test_the_tokenizer_beside_an_adapter_is_compared(same, tmp_path, caplog):
    builders.llama(5).save_pretrained(tmp_path / "base")
    base = type(builders.llama(5)).from_pretrained(tmp_path / "base")
    with_lora(base, 10).save_pretrained(tmp_path / "old")
    words = [f"w{index}" for index in range(builders.VOCABULARY)]
    # Which may know more tokens than its base's.
    for folder, its in (("old", same), ("base", not same)):
        builders.tokenizer(words if its else words[::-1]).save_pretrained(tmp_path / folder)
    given = {"old_model": str(tmp_path / "old"), "processing_class": builders.tokenizer(words)}
    with contextlib.nullcontext() if same else pytest.raises(MuscleError):
        builders.trainer(tmp_path / "run", with_lora(builders.llama(2), 20), **given)
        assert not any("old" in text for text in caplog.messages)


def test_same_weights_under_another_configuration_are_not_shared(tmp_path):
    other = builders.llama(2)
    other.config.rms_norm_eps *= 100
    trainer = builders.trainer(tmp_path, with_lora(builders.llama(2), 20), with_lora(other, 10))
    assert isinstance(trainer.teachers["old"], ModelTeacher)


@pytest.mark.parametrize("name", ["default", "v2"])
def test_a_second_trainer_on_the_same_model_goes_on_against_the_same_teachers(name, tmp_path):
    model, old = with_lora(builders.llama(2), 20, name), with_lora(builders.llama(2), 10)
    first = builders.trainer(tmp_path / "1", model, old)
    first.train()
    weights = teacher_weights(first)
    second = builders.trainer(tmp_path / "2", model, old)
    again = teacher_weights(second)
    assert all(torch.equal(weights[name], again[name]) for name in weights)


# ---- Content hashes ----


@pytest.mark.parametrize("tied", [False, True])
def test_content_hash_of_a_model_is_that_of_its_files(tied, tmp_path):
    model = builders.llama(2, tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    expected = folder_hash(tmp_path)
    assert content_hash(base_weights(model).items()) == expected
    assert content_hash(base_weights(with_lora(model, 20, use_dora=True)).items()) == expected


def test_content_hash_tells_names_shapes_dtypes_and_values_apart():
    tensor = torch.arange(6.0)
    hashes = {
        content_hash(pairs)
        for pairs in (
            [("a", tensor)],
            [("b", tensor)],
            [("a", tensor.reshape(2, 3))],
            [("a", tensor.double())],
            [("a", tensor + 1)],
            [("a", tensor), ("b", tensor)],
        )
    }
    assert len(hashes) == 6
    assert content_hash([("a", tensor), ("b", -tensor)]) == content_hash([("b", -tensor), ("a", tensor)])


def test_the_base_read_back_with_its_adapter_is_the_same_content(tmp_path):
    from transformers import AutoModelForCausalLM

    builders.llama(2).save_pretrained(tmp_path / "base")
    with_lora(builders.llama(2), 20).save_pretrained(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    model = PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert content_hash(base_weights(model).items()) == folder_hash(tmp_path / "base")


def test_content_hash_of_a_classifiers_base_leaves_out_the_head_drawn_at_random(tmp_path):
    from transformers import AutoModelForSequenceClassification, BertModel

    BertModel(builders.bert_sequences(3).config).save_pretrained(tmp_path / "bert")
    told = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "bert", **builders.LABELS)
        model, old = (with_lora(base, 20, "v2"), with_lora(builders.bert_sequences(4), 10))
        trainer = builders.trainer(tmp_path / "run", model, old, train_dataset=builders.sequence_rows())
        told.append((base.classifier.original_module.weight.clone(), trainer.provenance.new["base"]["sha256"]))
    assert not torch.equal(told[0][0], told[1][0])
    assert told[0][1] == told[1][1], "resuming in another process must find the same base"
