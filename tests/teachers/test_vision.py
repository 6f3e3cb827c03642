"""Models that read texts with images are trained and loaded like any other, on rows with images and without."""

from __future__ import annotations

import builders
import pytest
import torch
import transformers
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from vision_models import FAMILIES, rows

from muscle_hf import MuscleError
from muscle_hf.cache import KeyRules
from muscle_hf.evaluation import Item, Task, encode_pair, evaluate_task
from muscle_hf.teachers import ModelTeacher, kind_of, make_student, make_teacher
from muscle_hf.teachers.kinds import CAUSAL_LM, SEQ2SEQ_LM
from muscle_hf.teachers.loading import auto_class_of, load_model, load_task_model
from muscle_hf.teachers.sharing import can_share

ROWS = {"text": (), "one image a row": (1,), "none or two": (2, 0, 0)}
CHOICES = (" w5 w6", " w7")
CASES = [
    pytest.param(name, images, same, marks=[] if images == "none or two" and not same else [pytest.mark.slow])
    for name in FAMILIES
    for images in ROWS
    for same in ((False, True) if images == "none or two" else (False,))
]


def with_lora(model, seed):
    torch.manual_seed(seed)
    layers = r".*language_model.*\.(q_proj|v_proj|in_proj_qkv|down_proj)"
    return get_peft_model(model, LoraConfig(r=4, target_modules=layers, init_lora_weights=False))


def half_right(table, family, model):
    """Every second answer as a model gives it, so that it is wrong here and right there."""
    says = builders.logits_without_trainer(model, family.collate(table)).argmax(-1).tolist()
    for row, answers in zip(table, says, strict=True):
        row["labels"] = [answers[i - 1] if i % 2 and label != -100 else label for i, label in enumerate(row["labels"])]
    return table


def figures(metrics):
    return {name: value for name, value in metrics.items() if builders.is_figure(name)}


def run(folder, name, images, same, **settings):
    """A trainer, its figures before and after three steps, and the adapter."""
    family = FAMILIES[name]
    model, old = with_lora(family.build(2), 20), with_lora(family.build(2 if same else 1), 10)
    table = half_right(rows(ROWS[images]), family, model)
    batch = family.collate(table)
    alone = builders.logits_without_trainer(old, batch)[:, :-1][batch["labels"][:, 1:] != -100]
    trainer = builders.trainer(
        folder, model, old, train_dataset=table, eval_dataset=table, data_collator=family.collate, max_steps=3,
        remove_unused_columns=False, compatibility_weight=0.6, per_device_train_batch_size=3, **settings,
    )  # fmt: skip
    assert (trainer.teachers["old"].model is trainer.student) is same
    found = torch.cat(list(trainer._step.teacher_logits("old", trainer.batch_of(batch))))
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-4)
    first = figures(trainer.evaluate())
    assert first["eval_kl_new"] == 0 < first["eval_share_old"] < 1
    trainer.train()
    weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    return trainer, first, figures(trainer.evaluate()), weights


def assert_same_run(one, other):
    assert other[1] == pytest.approx(one[1], rel=1e-4)
    assert other[2] == pytest.approx(one[2], rel=1e-3)
    for name, weight in one[3].items():
        torch.testing.assert_close(other[3][name], weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(("name", "images", "same"), CASES)
def test_a_run_in_chunks_is_the_run_on_whole_logits(name, images, same, tmp_path):
    plain = run(tmp_path / "1", name, images, same, loss_chunk_size=0)
    chunked = run(tmp_path / "2", name, images, same, loss_chunk_size=3)
    assert chunked[0]._step.head is not None, "the head was not taken apart"
    assert_same_run(plain, chunked)


@pytest.mark.parametrize(
    ("name", "images", "same"), [case for case in CASES if case.values[1] != "text" and not case.values[-1]]
)
@pytest.mark.slow
def test_a_teacher_cache_changes_nothing(name, images, same, tmp_path):
    plain = run(tmp_path / "1", name, images, same)
    for again in (False, True):
        cached = run(tmp_path / "2", name, images, same, teacher_cache=str(tmp_path / "cache"))
        assert_same_run(plain, cached)
        held = len(cached[0]._step.sources["old"].store)
        # Patches of all images in one row of numbers are not told apart in a batch.
        expected = {"one image a row": {0} if "qwen" in name else {6}, "none or two": range(1, 6)}
        assert held in expected[images], again


def test_only_adapters_that_are_on_attention_modules_need_a_base_of_their_own():
    plain, attention = (
        LoraConfig(r=2, target_modules=layers) for layers in (["q_proj"], r".*vision_tower.*\.attention")
    )
    for first, second in ((plain, plain), (plain, attention), (attention, plain)):
        model = get_peft_model(FAMILIES["gemma3"].build(1), first)
        assert can_share(model, second) is (first is second)


@pytest.mark.parametrize("name", FAMILIES)
def test_texts_are_scored_as_one_by_one(name):
    model, tokenizer = FAMILIES[name].build(1), builders.tokenizer()
    tokenizer.eos_token = "w1"
    items = [
        Item(
            str(index),
            " ".join(f"w{3 + (7 * index * place) % 37}" for place in range(2 + index)),
            choices=CHOICES,
            answers=(0,),
        )
        for index in range(3)
    ]
    task = Task("words", "choice", lambda row, index: items[index])
    for item, found in zip(items, evaluate_task(model, tokenizer, task, items, progress=False), strict=True):
        for choice, likelihood in zip(CHOICES, found.log_likelihoods, strict=True):
            prompt, answer = encode_pair(tokenizer, item.prompt, choice)
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
            alone = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
            assert likelihood == pytest.approx(alone, abs=1e-4)


def test_positions_of_three_dimensions_are_not_taken_for_rows(tmp_path):
    family = FAMILIES["qwen2_5_vl"]

    def collate(table):
        batch = family.collate(table)
        length = batch["input_ids"].size(1)
        # In a batch of three rows both first dimensions are three.
        return {**batch, "position_ids": torch.arange(length).expand(3, len(table), length).clone()}

    runs = []
    for skip in (False, True):
        model, old = with_lora(family.build(2), 20), with_lora(family.build(1), 10)
        table = half_right(rows(), family, model)
        for row in table:  # one trained token each: most bodies could be skipped
            row["labels"] = [-100] * (len(row["labels"]) - 1) + row["labels"][-1:]
        trainer = builders.trainer(
            tmp_path, model, old, train_dataset=table, eval_dataset=table, data_collator=collate, max_steps=3,
            remove_unused_columns=False, per_device_train_batch_size=3, skip_unneeded_teachers=skip,
        )  # fmt: skip
        trainer.train()
        runs.append(figures(trainer.evaluate()))
    assert runs[0] == pytest.approx(runs[1], rel=1e-3)


def test_a_model_of_text_alone_is_not_shown_images(tmp_path):
    family = FAMILIES["qwen3_5"]
    family.build(1).save_pretrained(tmp_path / "base")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    torch.manual_seed(3)
    old = get_peft_model(alone, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    trainer = builders.trainer(
        tmp_path, with_lora(family.build(2), 20), old, train_dataset=rows(), data_collator=family.collate,
        remove_unused_columns=False,
    )  # fmt: skip
    text, images = (family.collate(rows(how)) for how in ((), (1,)))
    assert torch.isfinite(trainer.compute_loss(trainer.model, text))
    with pytest.raises(MuscleError, match="pixel_values"):
        trainer.compute_loss(trainer.model, images)


# ---- From folders ----


@pytest.mark.parametrize("name", ["llava", "qwen3_5"])
@pytest.mark.parametrize("whole", [False, True])
def test_v1_from_a_folder_sees_images_too(name, whole, tmp_path):
    family = FAMILIES[name]
    family.build(1).save_pretrained(tmp_path / "base")
    old = with_lora(type(family.build(1)).from_pretrained(tmp_path / "base"), 10)
    if whole:
        old = old.merge_and_unload()
    old.save_pretrained(tmp_path / "old")
    batch = family.collate(rows((1,)))
    alone = builders.logits_without_trainer(old, batch)
    for teacher in (
        load_task_model(tmp_path / "old", CAUSAL_LM),
        make_teacher(
            "old", str(tmp_path / "old"), make_student(with_lora(family.build(2), 20), None)[0], CAUSAL_LM
        ).model,
    ):
        torch.testing.assert_close(builders.logits_without_trainer(teacher, batch), alone)


def test_an_adapter_decides_which_part_of_its_base_is_loaded(tmp_path):
    whole = FAMILIES["qwen3_5"].build(1)
    whole.save_pretrained(tmp_path / "base")
    alone = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert type(alone) is not type(whole)
    for model in (alone, type(whole).from_pretrained(tmp_path / "base")):
        torch.manual_seed(3)
        layers = ["q_proj", "down_proj"]
        adapter = get_peft_model(model, LoraConfig(r=2, target_modules=layers, init_lora_weights=False))
        adapter.save_pretrained(tmp_path / "adapter")
        loaded = load_task_model(tmp_path / "adapter", CAUSAL_LM)
        assert type(loaded.get_base_model()) is type(model)
    assert type(load_model(tmp_path / "base", CAUSAL_LM, {})) is type(alone)


# These write no text a token at a time, or are listed without an Auto class that knows them.
_OTHERS = {"diffusion_gemma", "evolla", "nemotron_h_omni", "pi0"}


@pytest.mark.slow
def test_every_configuration_of_texts_and_images_is_taken(tmp_path):
    taken = []
    for name in sorted({*transformers.models.auto.modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - _OTHERS):
        try:
            config = transformers.AutoConfig.for_model(name)
            auto = auto_class_of(config, SEQ2SEQ_LM if config.is_encoder_decoder else CAUSAL_LM)
            with torch.device("meta"):
                model = auto.from_config(config)
        except (AttributeError, ImportError, KeyError, TypeError, ValueError):
            continue  # no model has the default configuration, or a library is missing
        kind = kind_of(model)
        ModelTeacher("old", model).place(Accelerator(cpu=True), builders.tokenizer())
        assert model.config.get_text_config().pad_token_id is not None, name
        rules = KeyRules.of(model, kind)
        assert rules.media_tokens or rules.media_tokens is None or model.config.get_text_config() is model.config
        taken.append(name)
    assert len(taken) > 75, taken
