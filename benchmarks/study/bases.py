"""The study's own base: an early, weak v1, trained from nothing on a little text."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path
from typing import Any

from study import ROOT

READY = "model.safetensors"


def make_bases(plan: dict[str, Any], runs: Path) -> None:
    """Train the bases of the plan that are not there yet, below `runs/bases`."""
    for name, how in plan["bases"].items():
        folder = runs / "bases" / name
        if not (folder / READY).is_file():
            pretrain(folder, **how)


def pretrain(folder: Path, like: str, text: str, steps: int, seed: int, learning_rate: float) -> None:
    """Train a base with fresh weights.

    Args:
        folder: Where it is saved.
        like: Base whose architecture and tokenizer it has.
        text: Gzipped text file, read from its beginning.
        steps: Of 16 rows of 256 tokens.
        seed: Of the weights and the order.
        learning_rate: Peak, cosine to zero.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    rows, length, like = 16, 256, str(ROOT / like)
    tokenizer = AutoTokenizer.from_pretrained(like)
    with gzip.open(ROOT / text, "rt", encoding="utf-8") as file:
        # About three characters a token; what is over is not used.
        ids = tokenizer(file.read(steps * rows * length * 5))["input_ids"]
    if len(ids) < steps * rows * length:
        raise ValueError(f"{text} has too little text for {steps} steps")
    blocks = torch.tensor(ids[: steps * rows * length]).view(-1, length)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(like), dtype=torch.float32)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=rows, learning_rate=learning_rate, seed=seed,
        lr_scheduler_type="cosine", warmup_steps=20, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    logging.getLogger(__name__).info("training the base %s", folder.name)
    Trainer(model, arguments, train_dataset=[{"input_ids": block, "labels": block} for block in blocks]).train()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
