"""Tiny task models of every kind, rows for them and trainers around them."""

from __future__ import annotations

import gc
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn

from muscle_hf import MuscleConfig, MuscleTrainer
from muscle_hf.objective.sums import FIGURES
from muscle_hf.teachers.weights import base_of
from muscle_hf.training.data import PaddingCollator

torch.set_num_threads(1)
# Trainer collects garbage before each run, which takes longer than the run with all of these imports to look at.
gc.collect()
gc.freeze()

VOCABULARY = 48
CLASSES = 3
LABELS = {"id2label": {0: "refund", 1: "repair", 2: "other"}, "label2id": {"refund": 0, "repair": 1, "other": 2}}
_BODY: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    # Far from uniform outputs, so that argmaxes differ and losses are not all alike.
    "initializer_range": 0.4,
}
_DECODER = {**_BODY, "num_key_value_heads": 1, "head_dim": 8, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def llama(seed: int, **changes: Any) -> nn.Module:
    return _built(transformers.LlamaForCausalLM, transformers.LlamaConfig(**{**_DECODER, **changes}), seed)


def llama_of_tokens(seed: int, vocab_size: int) -> PeftModel:
    """With a LoRA, a BOS and an EOS, none for padding, and places for as many tokens as rows of its own have."""
    ids = {"pad_token_id": None, "bos_token_id": 0, "eos_token_id": 1}
    base = llama(seed, vocab_size=vocab_size, max_position_embeddings=96, **ids)
    return with_lora(base, 10 * seed)


def gemma2(seed: int) -> nn.Module:
    """Caps attention and output logits by tanh, tightly enough to matter."""
    config = transformers.Gemma2Config(**_DECODER, final_logit_softcapping=2.0, attn_logit_softcapping=3.0)
    return _built(transformers.Gemma2ForCausalLM, config, seed)


def granite(seed: int) -> nn.Module:
    """Divides its output logits."""
    changes = {key: value for key, value in _DECODER.items() if key != "head_dim"}
    return _built(transformers.GraniteForCausalLM, transformers.GraniteConfig(**changes, logits_scaling=4.0), seed)


def cohere(seed: int) -> nn.Module:
    """Multiplies its output logits."""
    changes = {key: value for key, value in _DECODER.items() if key != "head_dim"}
    return _built(transformers.CohereForCausalLM, transformers.CohereConfig(**changes, logit_scale=0.25), seed)


def t5(seed: int, vocab_size: int = VOCABULARY) -> nn.Module:
    config = transformers.T5Config(
        vocab_size=vocab_size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, decoder_start_token_id=0,
        initializer_factor=2.0, dropout_rate=0.0,
    )  # fmt: skip
    return _built(transformers.T5ForConditionalGeneration, config, seed)


def bert_sequences(seed: int, **changes: Any) -> nn.Module:
    config = transformers.BertConfig(**{**_BODY, **_NO_DROPOUT, **LABELS, **changes})
    return _built(transformers.BertForSequenceClassification, config, seed)


def bert_tokens(seed: int, **changes: Any) -> nn.Module:
    config = transformers.BertConfig(**{**_BODY, **_NO_DROPOUT, **LABELS, **changes})
    return _built(transformers.BertForTokenClassification, config, seed)


_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def _built(model_class: type[nn.Module], config: Any, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return model_class(config).eval()


def with_lora(model: nn.Module, seed: int, adapter_name: str = "default", **settings: Any) -> PeftModel:
    """A task model: random, non-zero LoRA weights stand for a trained adapter."""
    task_types = {"CausalLM": "CAUSAL_LM", "Generation": "SEQ_2_SEQ_LM", "Token": "TOKEN_CLS", "Sequence": "SEQ_CLS"}
    task_type = next(value for key, value in task_types.items() if key in type(model).__name__)
    torch.manual_seed(seed)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": task_type}
    config = LoraConfig(**{**defaults, "init_lora_weights": False, **settings})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*|.*tied.*")
        return get_peft_model(model, config, adapter_name)


def tokenizer(words: list[str] | None = None) -> transformers.PreTrainedTokenizerFast:
    """One token a word; the first stands for padding and for what is unknown."""
    words = words or [f"w{index}" for index in range(VOCABULARY)]
    fast = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token=words[0]))
    fast.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, unk_token=words[0], pad_token=words[0])


def rows(
    count: int = 8, seed: int = 0, *, low: int = 4, high: int = 12, ignore: int = 2
) -> list[dict[str, list[int]]]:
    """Rows of unequal lengths for language models; the first ``ignore`` labels are not trained on."""
    random = np.random.default_rng(seed)
    made = []
    for length in random.integers(low, high, count):
        ids = random.integers(3, VOCABULARY, length).tolist()
        labels = [-100] * ignore + ids[ignore:]
        mask = [int(index >= length // 2) for index in range(length)]
        made.append({"input_ids": ids, "labels": labels, "completion_mask": mask})
    return made


def choice_files(folder: Path, **splits: int) -> None:
    """A task with choices, ``task.yaml``, and so many rows of each split beside it, in the tokenizer's words."""
    for split, count in splits.items():
        table = [{"text": f"w{3 + i % 9} w{4 + i % 7} w{5 + i}", "urgent": i % 2} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table))
    task = "kind: choice\nprompt: '{text} w40'\nchoices: [' w41', ' w42']\nanswer: urgent\n"
    (folder / "task.yaml").write_text(task)


def sequence_rows(count: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [{**row, "labels": int(random.integers(CLASSES))} for row in without(rows(count, seed), "completion_mask")]


def token_rows(count: int = 8, seed: int = 0) -> list[dict[str, Any]]:
    random = np.random.default_rng(seed)
    return [
        {
            "input_ids": row["input_ids"],
            "labels": [-100, *random.integers(0, CLASSES, len(row["labels"]) - 1).tolist()],
        }
        for row in rows(count, seed)
    ]


def half_right(table: list[dict[str, Any]], model: nn.Module) -> list[dict[str, Any]]:
    """The rows with every second answer changed to what a model says, so that it is wrong here and right there."""
    says = logits_without_trainer(model, collate(table)).argmax(-1).tolist()
    changed = []
    for index, (row, answers) in enumerate(zip(table, says, strict=True)):
        if isinstance(answers, int):
            labels = answers if index % 2 else row["labels"]
        else:
            # The logits of a causal LM at one position answer the next.
            answers = [0, *answers] if "CausalLM" in type(base_of(model)).__name__ else answers
            labels = [answers[i] if i % 2 and y != -100 else y for i, y in enumerate(row["labels"])]
        changed.append({**row, "labels": labels})
    return changed


def without(table: list[dict[str, Any]], column: str) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key != column} for row in table]


def collate(table: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Pads; a label that is a number stays one."""
    if not isinstance(table[0]["labels"], int):
        return PaddingCollator()(table)
    batch = PaddingCollator()(without(table, "labels"))
    return {**batch, "labels": torch.tensor([row["labels"] for row in table])}


def config(folder: Path, **settings: Any) -> MuscleConfig:
    """Quiet settings for a short run on the CPU."""
    defaults = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_steps": 2, "learning_rate": 1e-2,
        "report_to": "none", "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "save_strategy": "no",
    }  # fmt: skip
    return MuscleConfig(str(folder), **{**defaults, **settings})


def trainer(folder: Path, model: Any = None, old_model: Any = None, **settings: Any) -> MuscleTrainer:
    """A trainer of two tiny Llamas, unless told otherwise; unknown keywords go to the config."""
    names = ("data_collator", "train_dataset", "eval_dataset", "processing_class", "compute_metrics", "callbacks")
    names += (
        "peft_config",
        "old_model_kwargs",
        "old_processing_class",
        "old_formatting_func",
        "mask",
        "new_model",
        "new_model_kwargs",
    )
    names += ("transfer_dataset", "compute_loss_func", "model_init", "optimizers", "args")
    names += ("preprocess_logits_for_metrics",)
    given = {name: settings.pop(name) for name in names if name in settings}
    given.setdefault("train_dataset", rows())
    given.setdefault("data_collator", collate)
    args = given.pop("args", None) or config(folder, **settings)
    if model is None and "model_init" not in given:
        model = with_lora(llama(2), 20)
    old_model = with_lora(llama(1), 10) if old_model is None else old_model
    return MuscleTrainer(model, args, old_model=old_model, **given)


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy of every tensor of a model."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def logits_without_trainer(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What the task model itself says, before any trainer touches it; eval mode."""
    training = model.training
    model.eval()
    with torch.no_grad():
        logits = model(**{key: value for key, value in batch.items() if key != "completion_mask"}).logits
    model.train(training)
    return logits


def is_figure(name: str) -> bool:
    """Whether a logged name is one of the objective's figures, rather than a time or a speed."""
    return name.removeprefix("eval_").removeprefix("test_") in ("loss", *FIGURES)
