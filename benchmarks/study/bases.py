"""The study's own base: an early, weak v1, trained from nothing on a little text."""

from __future__ import annotations

import gzip
from pathlib import Path

READY = "model.safetensors"


def made_base(folder: Path, root: Path, like: str, text: str, steps: int, seed: int, learning_rate: float) -> Path:
    """The folder of a base with fresh weights, which is trained if it is not there yet.

    Args:
        folder: Where it is saved.
        root: What ``like`` and ``text`` are below.
        like: Base whose architecture and tokenizer it has.
        text: Gzipped text file, read from its beginning.
        steps: Of 16 rows of 256 tokens.
        seed: Of the weights and the order.
        learning_rate: Peak, cosine to zero.
    """
    if (folder / READY).is_file():
        return folder
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    rows, length, like = 16, 256, str(root / like)
    tokenizer = AutoTokenizer.from_pretrained(like, trust_remote_code=False)
    with gzip.open(root / text, "rt", encoding="utf-8") as file:
        # About three characters a token; what is over is not used.
        ids = tokenizer(file.read(steps * rows * length * 5))["input_ids"]
    if len(ids) < steps * rows * length:
        raise ValueError(f"{text} has too little text for {steps} steps")
    blocks = torch.tensor(ids[: steps * rows * length]).view(-1, length)
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(like, trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=rows, learning_rate=learning_rate, seed=seed,
        lr_scheduler_type="cosine", warmup_steps=20, save_strategy="no", report_to="none", use_cpu=True,
    )  # fmt: skip
    Trainer(model, arguments, train_dataset=[{"input_ids": block, "labels": block} for block in blocks]).train()
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
