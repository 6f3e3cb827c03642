"""MuscleSFTTrainer: TRL's ``SFTTrainer`` with the MUSCLE objective."""

from __future__ import annotations

import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from peft import PeftModel
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import load_task_model
from muscle_hf.trainer import MuscleMixin
from muscle_hf.training.config import MuscleConfig

try:
    from trl import SFTConfig, SFTTrainer
except ImportError as error:
    raise MissingDependencyError("trl", "trl", "MuscleSFTTrainer") from error


# SFTConfig first: it changes defaults of TrainingArguments, MuscleConfig only adds fields.
@dataclass(repr=False)
class MuscleSFTConfig(SFTConfig, MuscleConfig):
    """Settings of :class:`MuscleSFTTrainer`: every field of ``trl.SFTConfig`` and of :class:`~muscle_hf.MuscleConfig`.

    Raises:
        MuscleError: A value is out of range, or a setting has no place beside this objective.
    """

    # The one that SFTConfig's decorator writes shows the Hub token.
    __repr__ = TrainingArguments.__repr__

    def __post_init__(self) -> None:
        if self.trained_tokens != "labels":
            choice = {"completion": "completion_only_loss", "assistant": "assistant_only_loss"}[self.trained_tokens]
            raise MuscleError(
                f"trained_tokens={self.trained_tokens!r} is called {choice}=True here: TRL prepares the labels"
            )
        super().__post_init__()


class _SFTPreparation(SFTTrainer):
    """What ``SFTTrainer`` does with data, settings and model, without what belongs to its own loss and card."""

    # TRL's own need the outputs of its loss, or write its card at each checkpoint.
    prediction_step = Trainer.prediction_step
    _save_checkpoint = Trainer._save_checkpoint

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        for name in ("token_accuracy", "eval_token_accuracy"):
            if name in logs:
                # The name by which TRL's users know it.
                logs[name.replace("token", "mean_token")] = logs[name]
        super().log(logs, start_time)


class MuscleSFTTrainer(MuscleMixin, _SFTPreparation):
    """Trains a compatibility adapter where a script uses TRL's ``SFTTrainer``: the objective of ``MuscleTrainer``.

    Every argument of ``SFTTrainer`` works as there (data formats, chat templates, packing, ``formatting_func``), and
    ``old_model`` with the further arguments of :class:`~muscle_hf.MuscleTrainer`. Differences: ``model`` may also
    name an adapter (v2's task adapter), and the loss is the objective, so ``loss_type`` has no place and ``entropy``
    is not logged.

    Args:
        model: v2's task model, or the folder or Hub id of its adapter or of a merged model, loaded with
            ``args.model_init_kwargs``.
        args: A :class:`MuscleSFTConfig`; with a plain ``SFTConfig`` or ``TrainingArguments`` the method's defaults
            hold.
        positional: The further arguments of ``SFTTrainer``.
        quantization_config: For the base under a ``model`` that is named.
        arguments: The named arguments of ``SFTTrainer`` and ``MuscleTrainer``.

    Raises:
        MuscleError: Something does not fit, before anything is trained; the message says what to do.
    """

    config_class = MuscleSFTConfig

    def __init__(
        self,
        model: nn.Module | str | os.PathLike,
        args: TrainingArguments | None = None,
        *positional: Any,
        quantization_config: Any = None,
        **arguments: Any,
    ):
        if isinstance(args, MuscleConfig) and not isinstance(args, MuscleSFTConfig):
            raise MuscleError("args is a MuscleConfig; MuscleSFTTrainer takes a MuscleSFTConfig")
        if getattr(args, "loss_type", None) == "chunked_nll":
            # Some versions' default: plain cross-entropy too, for which TRL cuts the logits off the model's outputs.
            args = cast("SFTConfig", copy.copy(args))
            args.loss_type = "nll"
        _refuse_unsupported_sft(args)
        if isinstance(model, (str, os.PathLike)):
            kept = {"quantization_config": quantization_config} if quantization_config is not None else {}
            kept = {**(getattr(args, "model_init_kwargs", None) or {}), **kept}
            model = load_task_model(model, CAUSAL_LM, trainable=True, **kept)
        super().__init__(model, args, *positional, **arguments)
        # TRL rounds the adapter on a quantized base to bfloat16; the student keeps the precision of its teacher.
        for parameter, weights in self._student_weights.items():
            parameter.data = weights.to(parameter.device)
        del self._student_weights

    def _cast(self, model: nn.Module) -> PeftModel:
        student = super()._cast(model)
        parameters = adapter_parameters(student, STUDENT_ADAPTER).values()
        self._student_weights: dict[nn.Parameter, Tensor] = {parameter: parameter.data for parameter in parameters}
        return student


def _refuse_unsupported_sft(args: TrainingArguments | None) -> None:
    if (kind := getattr(args, "loss_type", "nll")) != "nll":
        raise MuscleError(f"loss_type={kind!r} has no place: the loss is the MUSCLE objective; leave it out")
    template = getattr(args, "chat_template_path", None)
    if template is not None and not (os.path.isfile(template) and Path(template).suffix in (".jinja", ".j2")):
        raise MuscleError(
            f"chat_template_path={template!r} would copy a template together with its tokens, which the frozen "
            "teachers do not have. Name a .jinja file, or train both task adapters with that template first"
        )
