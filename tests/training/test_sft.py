"""MuscleSFTTrainer: TRL's data and settings, MuscleTrainer's objective."""

from __future__ import annotations

import builders
import pytest
import torch
from builders import VOCABULARY, with_lora
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, HfArgumentParser, TrainingArguments

pytest.importorskip("trl")
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from muscle_hf import MuscleConfig, MuscleError, MuscleSFTConfig, MuscleSFTTrainer, MuscleTrainer
from muscle_hf.teachers.adapters import adapter_parameters
from muscle_hf.training.provenance import changed_settings

WORDS = ["<pad>", "<bos>", "<eos>", "USER", "BOT", "?", *(f"w{i}" for i in range(6, VOCABULARY))]
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER {{ m['content'] }} {% else %}BOT {% generation %}"
    "{{ m['content'] }} <eos> {% endgeneration %}{% endif %}{% endfor %}{% if add_generation_prompt %}BOT {% endif %}"
)
PAIRS = [("w7 w8 ?", "w9 w10"), ("w11 ?", "w12"), ("w13 w14 w15 ?", "w7 w16 w17"), ("w9 w30 ?", "w31 w32 w33 w34")]


@pytest.fixture
def tokenizer():
    made = builders.tokenizer(WORDS)
    made.add_special_tokens({"bos_token": "<bos>", "eos_token": "<eos>"})
    made.chat_template = TEMPLATE
    return made


def models():
    return with_lora(builders.llama(2), 20), with_lora(builders.llama(1), 10)


def config(folder, **settings):
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
        "bf16": False, "gradient_checkpointing": False,
    }  # fmt: skip
    return MuscleSFTConfig(str(folder), **{**defaults, **settings})


def sft(folder, tokenizer, rows, model=None, old=None, args=None, **settings):
    names = ("eval_dataset", "peft_config", "formatting_func")
    given = {name: settings.pop(name) for name in names if name in settings}
    if callable(settings.get("mask")):
        given["mask"] = settings.pop("mask")
    task, old_task = models()
    rows = Dataset.from_list(rows) if isinstance(rows, list) else rows
    return MuscleSFTTrainer(
        task if model is None else model,
        args or config(folder, **settings),
        old_model=old_task if old is None else old,
        train_dataset=rows,
        processing_class=tokenizer,
        **given,
    )


def prompts():
    return [{"prompt": prompt, "completion": f" {answer}"} for prompt, answer in PAIRS]


def texts():
    return [{"text": f"{prompt} {answer}"} for prompt, answer in PAIRS]


def chats():
    return [
        {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}
        for prompt, answer in PAIRS
    ]


def tokenized():
    rows = builders.half_right(builders.without(builders.rows(), "completion_mask"), models()[0])
    return [{key: list(value) for key, value in row.items()} for row in rows]


def trained_words(trainer, tokenizer):
    """What is trained on, row by row, as the trainer's batches have it."""
    labels = [trainer.trained_labels(batch) for batch in trainer.get_eval_dataloader(trainer.train_dataset)]
    return [tokenizer.decode([label for label in row if label != -100]) for part in labels for row in part.tolist()]


# ---- One objective ----


def test_the_same_losses_and_adapter_as_muscle_trainer(tmp_path, tokenizer):
    settings = {"mask": "always_old", "compatibility_weight": 0.6, "gradient_accumulation_steps": 2}
    settings |= {"per_device_train_batch_size": 2, "lr_scheduler_type": "linear", "calibrate_teachers": True}
    held_out = Dataset.from_list(tokenized())
    ours = builders.trainer(
        tmp_path / "plain", *models(), train_dataset=tokenized(), eval_dataset=held_out, **settings
    )
    theirs = sft(tmp_path / "sft", tokenizer, tokenized(), eval_dataset=held_out, **settings)
    histories = []
    for trainer in (ours, theirs):
        trainer.train()
        histories.append([{k: e[k] for k in ("loss", "kl_old", "ce", "token_accuracy", "grad_norm")} for e in
                          trainer.state.log_history if "loss" in e])  # fmt: skip
    assert histories[0] == [pytest.approx(entry, rel=1e-5) for entry in histories[1]]
    assert ours.teacher_temperatures == theirs.teacher_temperatures != {"old": 1, "new": 1}
    one, other = (adapter_parameters(trainer.model, "default") for trainer in (ours, theirs))
    assert all(torch.allclose(one[name], other[name], atol=1e-7) for name in one)


def test_there_is_one_implementation():
    own = {name for name in vars(MuscleSFTTrainer) if callable(getattr(MuscleSFTTrainer, name))} - {"config_class"}
    assert own == {"__init__", "_cast"}
    assert MuscleSFTTrainer.compute_loss is MuscleTrainer.compute_loss
    assert issubclass(MuscleSFTTrainer, SFTTrainer)


def test_evaluation_and_prediction_give_the_figures_and_logits(tmp_path, tokenizer):
    trainer = sft(tmp_path, tokenizer, prompts(), eval_dataset=Dataset.from_list(prompts()), mask=follow_v2)
    trainer.compute_metrics = lambda prediction: {"width": prediction.predictions.shape[-1]}
    metrics = trainer.evaluate()
    assert metrics["eval_width"] == VOCABULARY
    assert metrics["eval_kl_new"] == 0, "nothing is trained yet"
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["mean_token_accuracy"] == entry["token_accuracy"]


# ---- TRL's data formats ----


def test_what_is_trained_on_in_each_format(tmp_path, tokenizer):
    # The first token of a row is nobody's prediction.
    expected = {
        "text": [f"{p} {a} <eos>".split(maxsplit=1)[1] for p, a in PAIRS],
        "completion": [f"{a} <eos>" for _, a in PAIRS],
        "both": [f"{p} {a} <eos>".split(maxsplit=1)[1] for p, a in PAIRS],
        "assistant": [f"{a} <eos>" for _, a in PAIRS],
        "chat": [f"{p} BOT {a} <eos>" for p, a in PAIRS],
    }
    got = {
        "text": sft(tmp_path, tokenizer, texts()),
        "completion": sft(tmp_path, tokenizer, prompts()),
        "both": sft(tmp_path, tokenizer, prompts(), completion_only_loss=False),
        "assistant": sft(tmp_path, tokenizer, chats(), assistant_only_loss=True),
        "chat": sft(tmp_path, tokenizer, chats()),
    }
    for name, trainer in got.items():
        assert trained_words(trainer, tokenizer) == expected[name], name


@pytest.mark.parametrize("make", [texts, prompts, chats, tokenized])
def test_each_format_trains(make, tmp_path, tokenizer):
    trainer = sft(tmp_path, tokenizer, make())
    before = {name: weight.clone() for name, weight in adapter_parameters(trainer.model, "default").items()}
    trainer.train()
    after = adapter_parameters(trainer.model, "default")
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_a_formatting_function(tmp_path, tokenizer):
    rows = [{"q": prompt, "a": answer} for prompt, answer in PAIRS]
    trainer = sft(tmp_path, tokenizer, rows, formatting_func=lambda row: f"{row['q']} {row['a']}")
    assert trained_words(trainer, tokenizer)[1] == "? w12 <eos>"


def test_packed_rows_give_the_loss_of_rows_apart(tmp_path, tokenizer):
    figures = {}
    for packing in (False, True):
        trainer = sft(tmp_path, tokenizer, prompts(), packing=packing, max_length=24)
        metrics = trainer.evaluate(Dataset.from_list(prompts()))
        figures[packing] = {k: v for k, v in metrics.items() if builders.is_figure(k)}
        assert len(trainer.train_dataset) == (2 if packing else 4)
        trainer.train()
    assert figures[True] == pytest.approx(figures[False], rel=1e-4, nan_ok=True)


def test_batches_without_padding_give_the_loss_of_padded_ones(tmp_path, tokenizer):
    figures = []
    for free in (False, True):
        trainer = sft(tmp_path, tokenizer, prompts(), padding_free=free, max_length=None)
        metrics = trainer.evaluate(trainer.train_dataset)
        figures.append({k: v for k, v in metrics.items() if builders.is_figure(k)})
    assert figures[1] == pytest.approx(figures[0], rel=1e-4, nan_ok=True)


def test_a_stream(tmp_path, tokenizer):
    stream = Dataset.from_list(prompts()).to_iterable_dataset()
    whole = sft(tmp_path / "rows", tokenizer, prompts())
    streamed = sft(tmp_path / "stream", tokenizer, stream)
    for trainer in (whole, streamed):
        trainer.train()
    losses = [[entry["loss"] for entry in t.state.log_history if "loss" in entry] for t in (whole, streamed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# ---- Models ----


def test_models_by_name(tmp_path, tokenizer):
    for name, seed in (("v1", 1), ("v2", 2)):
        builders.llama(seed).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    for name, base, seed in (("task-v1", "v1", 10), ("task-v2", "v2", 20)):
        with_lora(AutoModelForCausalLM.from_pretrained(tmp_path / base), seed).save_pretrained(tmp_path / name)
    out = tmp_path / "out"
    trainer = MuscleSFTTrainer(
        str(tmp_path / "task-v2"),
        config(out, model_init_kwargs={"dtype": "float32"}),
        old_model=tmp_path / "task-v1",
        train_dataset=Dataset.from_list(prompts()),
    )
    trainer.train()
    trainer.save_model()
    assert not list(out.glob("*.bin"))
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(), "no teacher is saved"
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "v2"), out)
    saved = adapter_parameters(loaded, "default")
    assert all(torch.equal(saved[k], v) for k, v in adapter_parameters(trainer.model, "default").items())
    assert "muscle" in (out / "README.md").read_text()


def test_a_merged_model_with_a_fresh_adapter(tmp_path, tokenizer):
    merged = models()[0].merge_and_unload()
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = sft(
        tmp_path, tokenizer, prompts(), model=merged, peft_config=lora, mask=follow_v2, compatibility_weight=0.5
    )
    trainer.train()
    assert [entry["kl_new"] > 0 for entry in trainer.state.log_history[:2]] == [False, True]


def test_checkpoints_hold_the_adapter_and_can_be_resumed(tmp_path, tokenizer):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    settings |= {"eval_dataset": Dataset.from_list(prompts()), "load_best_model_at_end": True}
    whole = sft(tmp_path / "run", tokenizer, prompts(), **settings)
    whole.train()
    checkpoint = tmp_path / "run" / "checkpoint-1"
    assert not (checkpoint / "README.md").exists()
    assert not (tmp_path / "run" / "README.md").exists(), "TRL's card"
    assert not (checkpoint / "training_args.bin").exists()
    resumed = sft(tmp_path / "run", tokenizer, prompts(), **settings)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    one, other = (adapter_parameters(trainer.model, "default") for trainer in (whole, resumed))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_gradient_checkpointing_and_bf16_which_are_trls_defaults(tmp_path, tokenizer):
    trainer = sft(tmp_path, tokenizer, prompts(), bf16=None, gradient_checkpointing=True)
    assert trainer.args.bf16
    trainer.train()
    assert trainer.state.log_history[0]["loss"] >= 0
    assert trainer.state.log_history[0]["grad_norm"] > 0


def test_the_adapter_on_a_quantized_base_keeps_its_precision(tmp_path, tokenizer):
    pytest.importorskip("bitsandbytes")
    from transformers import BitsAndBytesConfig

    shape = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    builders.llama(2, **shape).save_pretrained(tmp_path / "v2")
    with_lora(AutoModelForCausalLM.from_pretrained(tmp_path / "v2"), 20).save_pretrained(tmp_path / "task-v2")
    four_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    trainer = MuscleSFTTrainer(
        str(tmp_path / "task-v2"),
        config(tmp_path / "out", compatibility_weight=0.5),
        quantization_config=four_bits,
        old_model=with_lora(builders.llama(1), 10),
        train_dataset=Dataset.from_list(prompts()),
        processing_class=tokenizer,
        mask=follow_v2,
    )
    assert {weight.dtype for weight in adapter_parameters(trainer.model, "default").values()} == {torch.float32}
    trainer.train()
    assert [entry["kl_new"] > 0 for entry in trainer.state.log_history[:2]] == [False, True]


def follow_v2(student, old, new, labels):
    return torch.zeros_like(labels, dtype=torch.bool)


# ---- Settings ----


def test_settings_are_those_of_both_and_defined_once():
    assert set(vars(MuscleSFTConfig).get("__annotations__", ())) == set()
    fields = MuscleSFTConfig.__dataclass_fields__
    assert fields.keys() == SFTConfig.__dataclass_fields__.keys() | MuscleConfig.__dataclass_fields__.keys()
    ours = MuscleConfig.__dataclass_fields__.keys() - TrainingArguments.__dataclass_fields__.keys()
    for name, field in fields.items():
        origin = MuscleConfig if name in ours else SFTConfig
        assert field.default == origin.__dataclass_fields__[name].default, name


def test_a_provenance_names_no_places_and_tokens_of_trls_settings(tmp_path):
    given = {"chat_template_path": str(tmp_path / "chat.jinja"), "model_init_kwargs": {"token": "hf_secret"}}
    told = changed_settings(MuscleSFTConfig(str(tmp_path), use_cpu=True, max_length=7, **given))
    assert told["max_length"] == 7 and not given.keys() & told.keys()


def test_settings_hide_tokens_and_parse_from_a_command_line(tmp_path):
    args = config(tmp_path, hub_token="hf_secretsecret", temperature=3.0)
    assert "hf_secretsecret" not in repr(args) + str(args)
    words = ["--output_dir", str(tmp_path), "--mask", "old_right", "--packing", "--max_length", "64", "--use_cpu"]
    (parsed,) = HfArgumentParser(MuscleSFTConfig).parse_args_into_dataclasses([*words, "--bf16", "False"])
    assert (parsed.mask, parsed.packing, parsed.max_length) == ("old_right", True, 64)


def test_trls_own_settings_get_the_methods_defaults(tmp_path, tokenizer):
    args = SFTConfig(str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none", disable_tqdm=True)
    trainer = sft(tmp_path, tokenizer, prompts(), args=args)
    assert trainer.muscle_objective.temperature == 2.0
    trainer.train()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"trained_tokens": "completion"}, "completion_only_loss=True here"),
        ({"trained_tokens": "assistant"}, "assistant_only_loss=True here"),
        ({"temperature": 0.0}, "temperature"),
        ({"loss_type": "dft"}, "has no place"),
        ({"chat_template_path": "some/tokenizer"}, "frozen teachers do not have"),
    ],
)
def test_settings_without_a_place_are_refused(settings, message, tmp_path, tokenizer):
    with pytest.raises(MuscleError, match=message):
        sft(tmp_path, tokenizer, prompts(), **settings)


def test_other_configs_are_refused(tmp_path, tokenizer):
    with pytest.raises(MuscleError, match="takes a MuscleSFTConfig"):
        sft(tmp_path, tokenizer, prompts(), args=builders.config(tmp_path))
    task = models()[0]
    with pytest.raises(MuscleError, match="no old_model"):
        MuscleSFTTrainer(task, config(tmp_path), train_dataset=Dataset.from_list(prompts()))
