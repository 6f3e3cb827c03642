"""Settings that cannot be trained with."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.integrations import is_fsdp_enabled

from muscle_hf.compat.accelerate import IterableDatasetShard
from muscle_hf.errors import MuscleError
from muscle_hf.objective import Objective
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters
from muscle_hf.teachers.weights import is_quantized


def refuse_missing_weights(model: nn.Module) -> None:
    """Refuse a model whose weights are in the first process alone: bases are compared and adapters copied in each."""
    if is_fsdp_enabled() and not is_quantized(model):
        raise MuscleError(
            "with fsdp_cpu_ram_efficient_loading only the first process reads the weights, but each of them compares "
            "v1's base with v2's; set fsdp_cpu_ram_efficient_loading: false (as recipes/accelerate/fsdp2.yaml does)"
        )


def refuse_unsupported(trainer: Trainer, objective: Objective) -> None:
    """Refuse what would train something else than the objective, before anything is computed."""
    args = trainer.args
    if trainer.compute_loss_func is not None and objective.compatibility_weight == 1:
        raise MuscleError(
            "compute_loss_func replaces the cross-entropy, but with compatibility_weight=1 there is none; lower "
            "compatibility_weight or drop compute_loss_func"
        )
    if trainer.compute_loss_func is not None and args.label_smoothing_factor:
        raise MuscleError(
            "compute_loss_func replaces the cross-entropy that label_smoothing_factor would smooth; use one of them"
        )
    if getattr(args, "predict_with_generate", False) and type(trainer).prediction_step is Trainer.prediction_step:
        raise MuscleError(
            "predict_with_generate is set, but this trainer does not generate; use MuscleSeq2SeqTrainer with a "
            "MuscleSeq2SeqConfig"
        )
    if args.n_gpu > 1:
        raise MuscleError(
            f"this process sees {args.n_gpu} GPUs and would replicate the model by nn.DataParallel, which "
            "the teachers cannot follow. Start one process per GPU with `accelerate launch`, or choose one GPU "
            "with CUDA_VISIBLE_DEVICES"
        )
    processes = trainer.accelerator.num_processes
    if processes > 1 and trainer.accelerator.dispatch_batches is False and trainer.eval_dataset is not None:
        several: Any = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"": trainer.eval_dataset}
        for dataset in several.values():
            refuse_filler_rows(trainer.get_eval_dataloader(dataset), processes)
    if max(trainer.get_sp_size(), trainer.get_cp_size()) > 1:
        raise MuscleError(
            "sequence and context parallelism split the sequences that teachers and student are compared on; "
            "use data parallelism (DDP, FSDP, ZeRO)"
        )


def refuse_filler_rows(dataloader: DataLoader, processes: int) -> None:
    """Refuse to evaluate on a stream that accelerate fills up with rows from its start, which would count twice."""
    shard = dataloader.dataset
    if processes > 1 and isinstance(shard, IterableDatasetShard) and not shard.drop_last:
        raise MuscleError(
            "with dispatch_batches=False each process reads the evaluation stream itself, and where its rows do not "
            "fill the last batches, rows from its beginning would be counted again. Leave dispatch_batches out of "
            "accelerator_config, or evaluate on a dataset with a length"
        )


def refuse_foreign_parameters(student: PeftModel, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse to train anything but the compatibility adapter, or, by an optimizer that the user has passed, not all of
    it."""
    trainable = {id(parameter) for parameter in adapter_parameters(student, STUDENT_ADAPTER).values()}
    foreign = [name for name, p in student.named_parameters() if p.requires_grad and id(p) not in trainable]
    if foreign:
        raise MuscleError(
            f"{len(foreign)} parameters outside the compatibility adapter are trainable (first: {foreign[0]}); "
            "only the adapter may be trained, since the teachers share the rest"
        )
    if optimizer is not None:
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if missing := trainable - optimized:
            raise MuscleError(
                f"the optimizer that was passed lacks {len(missing)} of the {len(trainable)} parameters of the "
                "compatibility adapter, which the trainer makes; pass optimizer_cls_and_kwargs= instead"
            )
