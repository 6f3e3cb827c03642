"""A recipe tried out in a minute: the same settings on tiny random models and a few rows of the same form."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from muscle_hf.bundled import base, bundled
from muscle_hf.errors import MuscleError
from muscle_hf.pipeline.config import DataSettings, RunSettings, SplitSettings, TransferServers
from muscle_hf.pipeline.steps import process_state

TRAIN_ROWS, TEST_ROWS = 8, 4
# What belongs to the base that a tiny one stands in for.
_NOT_OF_IT = dict.fromkeys(("revision", "adapter", "adapter_revision", "tokenizer", "answers", "server"))
_CHAT_TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'assistant' %}Answer: {% generation %}"
    "{{ message['content'] }}{{ eos_token }}{% endgeneration %}\n{% else %}{{ message['content'] }}\n{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
)
# Settings that need a GPU, and what stands in for them without one.
_NEEDS_CUDA = {"optim": "adamw_torch", "tf32": None, "bf16": False, "fp16": False}


def smoke_settings(settings: RunSettings) -> RunSettings:
    """Settings with tiny models and few rows put in; all others stay, so that they are tried out too.

    They write into ``smoke`` under the run's output folder. Rows come from ``recipes/samples`` (our own, in the form
    of the real data set) if there are some for the task, otherwise from the run's own data.
    """
    folder = Path(settings.output_dir, "smoke")
    given = settings.training
    small: dict[str, Any] = {"per_device_train_batch_size": 2, "push_to_hub": False}
    small["gradient_accumulation_steps"] = min(2, given.get("gradient_accumulation_steps", 1))
    # Two steps, or as many as the rows last once.
    small |= {"max_steps": 2} if given.get("max_steps", -1) > 0 else {"num_train_epochs": 1}
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        small |= {key: value for key, value in _NEEDS_CUDA.items() if key in given or key in settings.task_training}
    training = {**given, **small}
    task_training = {**settings.task_training, **{key: small[key] for key in small if key in settings.task_training}}
    if task_training.get("max_steps", -1) > 0:
        task_training["max_steps"] = 2
    if not on_gpu:
        training["use_cpu"] = True
    with process_state(training).main_process_first():  # several at once would read each other's half-written files
        old, new = (
            dataclasses.replace(side, base=str(tiny_model(folder / "models" / f"v{n}", seed=n)), **_NOT_OF_IT)
            for n, side in ((1, settings.old), (2, settings.new))
        )
    return dataclasses.replace(
        settings,
        old=old,
        new=new,
        output_dir=str(folder),
        data=_few_rows(settings),
        training=training,
        task_training=task_training,
        max_new_tokens=16,
        attention=settings.attention if on_gpu else None,
        dtype=settings.dtype if on_gpu else "float32",
    )


def _few_rows(settings: RunSettings) -> DataSettings:
    data = settings.data
    if data.transfer is not None:
        data = dataclasses.replace(data, transfer=dataclasses.replace(data.transfer, servers=TransferServers()))
    sample = bundled("recipes") / "samples" / f"{settings.task}.jsonl"
    if data.format == "task" and sample.is_file():
        rows = {"source": str(sample), "name": None, "revision": None, "test_source": None, "validation": None}
        train, test = SplitSettings("sample", 0, TRAIN_ROWS), SplitSettings("sample", TRAIN_ROWS, TEST_ROWS)
        if data.transfer is not None:
            labelled = TRAIN_ROWS - 2
            train = SplitSettings("sample", 0, labelled)
            where = {"split": "sample", "start": labelled, "limit": TRAIN_ROWS - labelled, "source": None}
            rows["transfer"] = dataclasses.replace(data.transfer, **where)
        return dataclasses.replace(data, **rows, train=train, test=test)
    if data.source is None:
        raise MuscleError(f"there is no sample of {settings.task}; name rows with --data.source")

    def few(split: Any, limit: int) -> Any:
        return dataclasses.replace(split, limit=min(limit, split.limit or limit))

    parts = {"train": TRAIN_ROWS, "validation": TEST_ROWS, "test": TEST_ROWS, "transfer": TRAIN_ROWS}
    rows = {name: few(part, n) for name, n in parts.items() if (part := getattr(data, name)) is not None}
    return dataclasses.replace(data, **rows)


def tiny_model(folder: Path, seed: int) -> Path:
    """Make a random Llama of some thousand parameters, with the demo's tokenizer, in ``folder``, which is returned."""
    tokenizer = AutoTokenizer.from_pretrained(base("v2"), trust_remote_code=False)
    tokenizer.chat_template = _CHAT_TEMPLATE
    tokenizer.model_max_length = 4096
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
