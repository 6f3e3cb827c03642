"""Two tiny bases with a tokenizer, and a trainer on them, for the tests of the Hub."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from hub_server import HubServer
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from muscle_hf import MuscleConfig, MuscleTrainer

torch.set_num_threads(1)

OLD, NEW = "acme/base-v1", "acme/base-v2"
WORDS = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{index}" for index in range(44))]


def make_tokenizer(words: list[str] | None = None) -> PreTrainedTokenizerFast:
    words = words or WORDS
    model = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    model.pre_tokenizer = Whitespace()
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=model, **special)


def save_base(folder: Path, seed: int, license_: str = "apache-2.0", **changes: Any) -> Path:
    sizes = {"vocab_size": len(WORDS), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(
        **{**sizes, **changes}, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    (folder / "README.md").write_text(f"---\nlicense: {license_}\n---\n# A base\n")
    return folder


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def task_model(base: str | Path, seed: int) -> PeftModel:
    """A base with a random task adapter; :func:`make_trainer` has seed 0 for the old model and 1 for the new one."""
    torch.manual_seed(seed)
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False)
    return get_peft_model(AutoModelForCausalLM.from_pretrained(str(base)), lora)


def make_trainer(output: Path, old: str | Path = OLD, new: str | Path = NEW, **settings: Any) -> MuscleTrainer:
    """A trainer on bases from the Hub (or folders), with random task adapters."""
    models = [task_model(name, seed) for seed, name in enumerate((old, new))]
    tokenizer = make_tokenizer()
    rows = [tokenizer(" ".join(f"w{(start + step) % 44}" for step in range(6))) for start in range(8)]
    rows = [{"input_ids": row["input_ids"], "labels": list(row["input_ids"])} for row in rows]
    defaults = {
        "per_device_train_batch_size": 4, "num_train_epochs": 2, "learning_rate": 1e-2, "logging_steps": 1,
        "eval_strategy": "epoch", "save_strategy": "epoch", "report_to": "none", "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MuscleTrainer(
            models[1],
            MuscleConfig(str(output), **{**defaults, **settings}),
            old_model=models[0],
            train_dataset=rows,
            eval_dataset=rows[:4],
            processing_class=tokenizer,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )


def add_bases(hub: HubServer, base_files: dict[str, dict[str, bytes]]) -> None:
    for name, files in base_files.items():
        hub.add(name, files)
