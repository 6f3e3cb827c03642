"""Where a teacher with a base of its own lives: whole on each process's device, unless the student is sharded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from muscle_hf.teachers.weights import base_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether models are sharded over the processes (FSDP, ZeRO-3), rather than whole on each."""
    return fsdp_plugin(accelerator) is not None or zero3_plugin(accelerator) is not None


def give_padding_token(model: nn.Module, tokenizer: Any) -> None:
    """Name the padding token where a model has none, as Trainer does for the student.

    Decoders with a classifier find the last token by it.
    """
    config = base_of(model).config.get_text_config()
    if getattr(config, "pad_token_id", None) is None:
        config.pad_token_id = getattr(tokenizer, "pad_token_id", None)


def fsdp_plugin(accelerator: Accelerator) -> Any:
    return getattr(accelerator.state, "fsdp_plugin", None)


def zero3_plugin(accelerator: Accelerator) -> Any:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin if plugin is not None and plugin.zero_stage == 3 else None
