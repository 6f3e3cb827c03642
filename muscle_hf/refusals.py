"""Settings that cannot be trained with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from peft import PeftConfig
from torch import nn
from transformers.integrations import is_fsdp_enabled

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.checks import is_quantized

if TYPE_CHECKING:
    from muscle_hf.trainer import MuscleTrainer


def refuse_missing_weights(model: nn.Module) -> None:
    """Refuse a model whose weights are in the first process alone: bases are compared and adapters copied in each.

    Raises:
        MuscleError: FSDP is to hand out the weights later.
    """
    if is_fsdp_enabled() and not is_quantized(model):
        raise MuscleError(
            "with fsdp_cpu_ram_efficient_loading only the first process reads the weights, but each of them compares "
            "v1's base with v2's; set fsdp_cpu_ram_efficient_loading: false (as recipes/accelerate/fsdp2.yaml does)"
        )


def refuse_start(start_from: str, peft_config: PeftConfig | None) -> None:
    """Refuse v1's adapter as the start of a student that is fresh, on a v2 whose task training is in its weights.

    Raises:
        MuscleError: Both are asked for.
    """
    if start_from == "old" and peft_config is not None:
        raise MuscleError(
            "start_from is 'old', but v2's task training is merged into model: v1's adapter would come on top of it. "
            "Pass v2's task model as a PeftModel, or leave start_from at 'new'"
        )


def refuse_unsupported(trainer: MuscleTrainer) -> None:
    """Refuse what would train something else than the objective, before anything is computed.

    Raises:
        MuscleError: What does not go together, and what to do.
    """
    args = trainer.args
    if trainer.compute_loss_func is not None and trainer.muscle_objective.compatibility_weight == 1:
        raise MuscleError(
            "compute_loss_func replaces the cross-entropy, but with compatibility_weight=1 there is none; lower "
            "compatibility_weight or drop compute_loss_func"
        )
    if trainer.compute_loss_func is not None and args.label_smoothing_factor:
        raise MuscleError(
            "compute_loss_func replaces the cross-entropy that label_smoothing_factor would smooth; use one of them"
        )
    if args.n_gpu > 1:
        raise MuscleError(
            f"this process sees {args.n_gpu} GPUs and would replicate the model by nn.DataParallel, which "
            "the teachers cannot follow. Start one process per GPU with `accelerate launch`, or choose one GPU "
            "with CUDA_VISIBLE_DEVICES"
        )
    if max(trainer.get_sp_size(), trainer.get_cp_size()) > 1:
        raise MuscleError(
            "sequence and context parallelism split the sequences that teachers and student are compared on; "
            "use data parallelism (DDP, FSDP, ZeRO)"
        )
