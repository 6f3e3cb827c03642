"""Sharding a frozen teacher over the processes, as the student is (FSDP 2, ZeRO-3)."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

from torch import nn

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.sharding import fsdp_plugin, zero3_plugin
from muscle_hf.teachers.weights import base_of

if TYPE_CHECKING:
    from accelerate import Accelerator


def shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Shard a frozen teacher over the processes as the student's engine shards the student, in place; all processes
    have to call this, with the model whole. Gives the model to call: itself."""
    if fsdp_plugin(accelerator) is not None:
        return _shard_fsdp(model, accelerator)
    return _shard_zero3(model, accelerator)


def _shard_fsdp(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    from muscle_hf.compat.accelerate import fsdp2_prepare_model

    plugin = fsdp_plugin(accelerator)
    if plugin.fsdp_version != 2:
        raise MuscleError(
            "FSDP 1 cannot switch the adapters of a model that it has flattened; set fsdp_version: 2 in the "
            "accelerate configuration (recipes/accelerate/fsdp2.yaml)"
        )
    # The policy is made for one model's layers, and the student's may be of another class.
    policy = plugin.auto_wrap_policy
    try:
        return fsdp2_prepare_model(accelerator, model)
    finally:
        plugin.auto_wrap_policy = policy


def _shard_zero3(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    import deepspeed

    config = deepcopy(zero3_plugin(accelerator).deepspeed_config)
    zero = config["zero_optimization"]
    # No optimizer is passed, and DeepSpeed would make one of these.
    for name in ("optimizer", "scheduler"):
        config.pop(name, None)
    zero.pop("offload_optimizer", None)
    if (width := getattr(base_of(model).config.get_text_config(), "hidden_size", None)) is not None:
        zero["reduce_bucket_size"] = width * width
        zero["stage3_param_persistence_threshold"] = 10 * width
        zero["stage3_prefetch_bucket_size"] = int(0.9 * width * width)
    # What "auto" stands for comes with the optimizer; none of it matters here.
    config["train_micro_batch_size_per_gpu"] = 1
    for name in ("train_batch_size", "gradient_accumulation_steps", "gradient_clipping"):
        config.pop(name, None)
    engine: Any = deepspeed.initialize(model=model, config=config)[0]
    engine.eval()
    # Its modules gather their own weights, so the model can be called as before.
    return engine.module
