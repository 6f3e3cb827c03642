"""Two adapters on tiny bases, and a task, for the tests of the dial."""

from __future__ import annotations

import builders
import torch
from peft import LoraConfig, PeftModel
from torch import nn

from muscle_hf.dial import LoraAdapter
from muscle_hf.evaluation import Item, Task

WORDS = [f"w{index}" for index in range(builders.VOCABULARY)]


def task_item(row: dict, index: int) -> Item:
    return Item(str(index), row["text"], choices=(" w3", " w4", " w5"), answers=(row["answer"],))


TASK = Task("tiny", "choice", task_item)
ITEMS = [task_item({"text": f"w{6 + i % 40} w{9 + 3 * i % 31}", "answer": i % 3}, i) for i in range(40)]


def two_adapters(base: nn.Module, compat: dict | None = None, **new: object) -> PeftModel:
    """A base with the random adapters ``new`` and ``compat`` on it."""
    model = builders.with_lora(base, 20, "new", **new)
    torch.manual_seed(21)
    config = {**model.peft_config["new"].to_dict(), **(compat or {})}
    config = {name: config[name] for name in LoraConfig.__dataclass_fields__ if name in config}
    config.pop("runtime_config", None)
    model.add_adapter("compat", LoraConfig(**config))
    if model.peft_config["new"].modules_to_save:
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "modules_to_save.compat" in name:
                    parameter.add_(torch.randn_like(parameter))
    return model


def ends(model: PeftModel) -> tuple[LoraAdapter, LoraAdapter]:
    return LoraAdapter.of(model, "new"), LoraAdapter.of(model, "compat")


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")]


def batch() -> torch.Tensor:
    return torch.arange(24).reshape(2, 12) % builders.VOCABULARY
