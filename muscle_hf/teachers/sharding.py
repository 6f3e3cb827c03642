"""Where a teacher with a base of its own lives: whole on each process's device, unless the student is sharded."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from accelerate import Accelerator


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether models are sharded over the processes (FSDP, ZeRO-3), rather than whole on each."""
    return fsdp_plugin(accelerator) is not None or zero3_plugin(accelerator) is not None


def fsdp_plugin(accelerator: Accelerator) -> Any:
    return getattr(accelerator.state, "fsdp_plugin", None)


def zero3_plugin(accelerator: Accelerator) -> Any:
    plugin = getattr(accelerator.state, "deepspeed_plugin", None)
    return plugin if plugin is not None and plugin.zero_stage == 3 else None
