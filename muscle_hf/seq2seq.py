"""MuscleSeq2SeqTrainer: ``transformers.Seq2SeqTrainer`` with the MUSCLE objective."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from torch import nn
from transformers import PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments, TrainingArguments

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.weights import base_of
from muscle_hf.trainer import MuscleMixin
from muscle_hf.training.config import MuscleConfig


@dataclass(repr=False)
class MuscleSeq2SeqConfig(Seq2SeqTrainingArguments, MuscleConfig):
    """Settings of :class:`MuscleSeq2SeqTrainer`: every field of ``transformers.Seq2SeqTrainingArguments``
    (``predict_with_generate``, ``generation_max_length``, ...) and of :class:`~muscle_hf.MuscleConfig`.

    Raises:
        MuscleError: A value is out of range.
    """

    # The one that the decorator of Seq2SeqTrainingArguments writes shows the Hub token.
    __repr__ = TrainingArguments.__repr__


class MuscleSeq2SeqTrainer(MuscleMixin, Seq2SeqTrainer):
    """Trains a compatibility adapter where a script uses ``Seq2SeqTrainer``: the objective of ``MuscleTrainer``.

    With ``predict_with_generate`` evaluations generate, and ``compute_metrics`` gets what was generated, as in
    ``Seq2SeqTrainer``; ``eval_loss`` and the objective's other figures are the same as without it.

    Args:
        model: As :class:`~muscle_hf.MuscleTrainer` takes it.
        args: A :class:`MuscleSeq2SeqConfig`; with plain ``Seq2SeqTrainingArguments`` the method's defaults hold.
        positional: The further arguments of ``Seq2SeqTrainer``.
        arguments: The named arguments of ``Seq2SeqTrainer`` and ``MuscleTrainer``.

    Raises:
        MuscleError: Something does not fit, before anything is trained; the message says what to do.
    """

    config_class = MuscleSeq2SeqConfig
    args: Seq2SeqTrainingArguments

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        **arguments: Any,
    ):
        if args is not None and not isinstance(args, Seq2SeqTrainingArguments):
            raise MuscleError(f"args is a {type(args).__name__}; MuscleSeq2SeqTrainer takes a MuscleSeq2SeqConfig")
        super().__init__(model, args, *positional, **arguments)
        if self.args.generation_config is not None:
            # It was set on PEFT's wrapper, which leaves generating to the model within.
            base_of(self.student).generation_config = cast("PreTrainedModel", self.model).generation_config
