"""QLoRA on the CPU: a quantized base is shared, the adapter gets its gradients, the teachers stay."""

from __future__ import annotations

import builders
import pytest
import torch
from builders import with_lora
from peft import LoraConfig, PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from muscle_hf.cache import CachedTargets, HiddenStore, KeyRules, row_keys, teacher_fingerprint
from muscle_hf.teachers import AdapterTeacher, ModelTeacher
from muscle_hf.teachers.adapters import adapter_parameters, keep_quantized_trainable
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import load_model
from muscle_hf.teachers.pool import BasePool, keeping
from muscle_hf.teachers.weights import base_weights, content_hash
from muscle_hf.training.data import PaddingCollator

pytest.importorskip("bitsandbytes")

SCHEMES = {
    "NF4": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.float32},
    "NF4 twice": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    "8-bit": {"load_in_8bit": True},
}
# Widths that the block-wise kernels like.
SHAPE = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    for name, seed in (("v1", 1), ("v2", 2)):
        builders.llama(seed, **SHAPE).save_pretrained(root / name)
    for name, base, seed in (("v2-task", "v2", 20), ("old-on-v2", "v2", 10), ("v1-task", "v1", 10)):
        with_lora(AutoModelForCausalLM.from_pretrained(root / base), seed).save_pretrained(root / name)
    return root


def quantized(root, base, scheme):
    return AutoModelForCausalLM.from_pretrained(root / base, quantization_config=BitsAndBytesConfig(**SCHEMES[scheme]))


def task_model(root, scheme, adapter="v2-task", base="v2"):
    model = prepare_model_for_kbit_training(quantized(root, base, scheme), use_gradient_checkpointing=False)
    return PeftModel.from_pretrained(model, root / adapter, is_trainable=True)


def rows(root):
    """Half of the answers are what v2's task model says."""
    base = AutoModelForCausalLM.from_pretrained(root / "v2")
    return builders.half_right(builders.rows(), PeftModel.from_pretrained(base, root / "v2-task"))


def snapshot(tensors):
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def check_training(trainer):
    """Every part of the adapter gets a gradient and moves; base and teachers do not."""
    student = snapshot(adapter_parameters(trainer.model, "default"))
    frozen = {role: snapshot({**t.base_weights(), **t.adapter_weights()}) for role, t in trainer.teachers.items()}
    # Evaluation first: it is what repacks 4-bit layers for good on some CPUs.
    assert trainer.evaluate()["eval_kl_new"] == 0
    trainer.train()
    after = adapter_parameters(trainer.model, "default")
    unmoved = [name for name in student if torch.equal(student[name], after[name])]
    assert not unmoved, unmoved
    for role, teacher in trainer.teachers.items():
        now = {**teacher.base_weights(), **teacher.adapter_weights()}
        assert now.keys() == frozen[role].keys()
        assert all(torch.equal(now[name], frozen[role][name]) for name in now), role
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_one_quantized_base_serves_all_three(scheme, checkpointing, folders, tmp_path):
    trainer = builders.trainer(
        tmp_path,
        task_model(folders, scheme),
        task_model(folders, scheme, "old-on-v2"),
        train_dataset=rows(folders),
        eval_dataset=rows(folders),
        activation_checkpointing=checkpointing,
        max_steps=4,
    )
    assert isinstance(trainer.teachers["old"], AdapterTeacher)
    check_training(trainer)


@pytest.mark.parametrize("given", ["with its own quantization", "as the student is quantized"])
@pytest.mark.parametrize("adapter", ["old-on-v2", "v1-task"])
def test_old_model_by_path(adapter, given, folders, tmp_path):
    config = {"quantization_config": BitsAndBytesConfig(**SCHEMES["NF4"])}
    trainer = builders.trainer(
        tmp_path,
        task_model(folders, "NF4"),
        folders / adapter,
        old_model_kwargs=config if "own" in given else None,
        train_dataset=rows(folders),
        eval_dataset=rows(folders),
        max_steps=4,
    )
    old = trainer.teachers["old"]
    assert isinstance(old, AdapterTeacher if adapter == "old-on-v2" else ModelTeacher)
    assert old.model.get_base_model().is_quantized
    check_training(trainer)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_student_on_a_quantized_base_starts_from_v1s_adapter(scheme, folders, tmp_path):
    old = task_model(folders, scheme, "v1-task", "v1")
    start = snapshot(adapter_parameters(old, "default"))
    trainer = builders.trainer(
        tmp_path, task_model(folders, scheme), old, train_dataset=rows(folders), start_from="old", learning_rate=0.02
    )
    student = adapter_parameters(trainer.model, "default")
    assert all(torch.equal(student[name], start[name]) for name in start)
    assert trainer.evaluate(rows(folders))["eval_kl_new"] > 0
    trainer.train()
    assert all(not torch.equal(student[name], start[name]) for name in start)


def test_old_model_may_be_loaded_unquantized(folders, tmp_path):
    trainer = builders.trainer(
        tmp_path, task_model(folders, "NF4"), folders / "v1-task", old_model_kwargs={"quantization_config": None}
    )
    assert not getattr(trainer.teachers["old"].model.get_base_model(), "is_quantized", False)


@pytest.mark.parametrize("scheme", ["NF4", "8-bit"])
def test_fresh_adapter_on_a_quantized_model(scheme, folders, tmp_path):
    # The labels are what the base alone says: a fresh adapter starts there.
    table = builders.half_right(builders.rows(), AutoModelForCausalLM.from_pretrained(folders / "v2"))
    peft_config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = builders.trainer(
        tmp_path,
        quantized(folders, "v2", scheme),
        folders / "old-on-v2",
        peft_config=peft_config,
        train_dataset=table,
        eval_dataset=table,
        activation_checkpointing=True,
        max_steps=4,
    )
    check_training(trainer)
    trainer.save_model()
    model = PeftModel.from_pretrained(quantized(folders, "v2", scheme), tmp_path)
    # On a CPU with AVX512-BF16 an evaluation would repack the layers and compute in bfloat16, which training does not.
    keep_quantized_trainable(model)
    batch = builders.collate(builders.rows())
    expected = builders.logits_without_trainer(trainer.model, batch)
    assert torch.allclose(builders.logits_without_trainer(model, batch), expected, atol=1e-4)


def test_layers_repacked_by_an_earlier_evaluation_are_unpacked(folders, tmp_path):
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    model = task_model(folders, "NF4")
    packed = 0
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # What a forward in eval mode does on a CPU with AVX512-BF16.
            module.weight.data, _ = _convert_weight_packed_for_cpu(module.weight.data, module.weight.quant_state)
            packed += 1
    assert packed == 7
    settings = {"train_dataset": rows(folders), "eval_dataset": rows(folders), "max_steps": 4}
    check_training(builders.trainer(tmp_path, model, task_model(folders, "NF4", "old-on-v2"), **settings))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_base_of_a_pool_is_each_time_as_loaded(scheme, folders):
    from bitsandbytes.functional import _convert_weight_packed_for_cpu

    how = {"revision": "main", "quantization_config": BitsAndBytesConfig(**SCHEMES[scheme])}
    ids = builders.collate(builders.rows())["input_ids"]

    def used():
        base = load_model(folders / "v1", CAUSAL_LM, how)
        before, place = content_hash(base_weights(base).items()), base.model.layers[0].mlp.up_proj.weight.data_ptr()
        model = with_lora(prepare_model_for_kbit_training(base, use_gradient_checkpointing=False), 3)
        logits = [model.train()(ids).logits.detach(), model.eval()(ids).logits.detach()]
        for layer in model.modules():
            if hasattr(layer, "support_avx512bf16_for_cpu") and hasattr(layer.weight.quant_state, "state2"):
                _convert_weight_packed_for_cpu(layer.weight.data, layer.weight.quant_state)
        return before, logits, place

    before, logits, _ = used()
    places, pool = set(), BasePool()
    with keeping(pool):
        for _ in range(3):
            again, same, place = used()
            places.add(place)
            assert again == before and all(map(torch.equal, same, logits))
    assert pool.loaded == len(places) == 1


@pytest.mark.parametrize("scheme", SCHEMES)
def test_quantized_teachers_are_cached(folders, tmp_path, scheme):
    def teacher(base="v1", scheme=scheme):
        return ModelTeacher("old", PeftModel.from_pretrained(quantized(folders, base, scheme), folders / "v1-task"))

    first = teacher()
    known = teacher_fingerprint(first)
    table = builders.rows(5)
    first.head, rules = Head(first.model), KeyRules.of(first.model, CAUSAL_LM)
    batch = PaddingCollator()(sorted(table, key=lambda row: -len(row["input_ids"])))
    labels = CAUSAL_LM.trained_labels(batch["labels"])
    with HiddenStore(tmp_path, known) as store, torch.no_grad():
        CachedTargets(first, store, rules).targets(Batch(batch, labels, CAUSAL_LM))
    # A forward pass may repack the weights; who the teacher is does not change.
    assert teacher_fingerprint(first).digest == teacher_fingerprint(teacher()).digest == known.digest
    others = [teacher(scheme=other) for other in SCHEMES if other != scheme] + [teacher("v2")]
    assert known.digest not in [teacher_fingerprint(other).digest for other in others]
    parts = row_keys(batch, labels, rules)
    kept = torch.cat(HiddenStore(tmp_path, known).get([part.key for part in parts]))
    logits = Batch({}, labels, CAUSAL_LM).of_trained(first.logits(batch))
    torch.testing.assert_close(Head(first.model)(kept), logits.float())
