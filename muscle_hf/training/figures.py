"""What is logged and evaluated: the objective's figures as means over all trained tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput

from muscle_hf.objective.sums import mean_terms
from muscle_hf.teachers.batch import Batch, sequences_of
from muscle_hf.training import refusals
from muscle_hf.training.base import TrainerParts


class LogsFigures(TrainerParts):
    """The figures of a trainer of the objective."""

    _train_sums: Tensor | None = None
    _eval_sums: Tensor | None = None
    # While an evaluation asks for the loss alone.
    _loss_alone = False
    # Of the present model.
    _operations_per_token: int | None = None

    def data_rows(self, batch: Batch) -> tuple[Tensor, int]:
        """The row of the data that each trained token of an evaluation's batch is of, (N,), int64, and how many rows
        the batch has, the same in every process.

        Several processes fill the last batch with rows that were there before. Gathering drops these by their place,
        so sequences that a collator has put into one row have to be rows again.
        """
        positions, processes = batch.inputs.get("position_ids"), self.accelerator.num_processes
        loader = self.accelerator.gradient_state.active_dataloader
        if processes == 1 or loader is None or positions is None or len(batch) != 1:
            return batch.rows, len(batch)
        count = max(1, loader.total_batch_size // processes)
        sequences = sequences_of(batch.labels, positions, predicts_next=self.kind.shifts_labels)
        # Rows that hold several sequences themselves cannot be told apart any more.
        apart = sequences.numel() > 0 and int(sequences.max()) + 1 == count
        return batch.sequences if apart else batch.rows, count

    def _note(self, sums: Tensor, training: bool) -> None:
        if training:
            total = sums.sum(dim=0)
            self._train_sums = total if self._train_sums is None else self._train_sums + total
        else:
            # The same gathering that the losses get, which drops rows repeated to fill the last batch.
            total = cast("Tensor", self.accelerator.gather_for_metrics(sums)).sum(dim=0)
            self._eval_sums = total if self._eval_sums is None else self._eval_sums + total

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._train_sums is not None:
            means = mean_terms(cast("Tensor", self.accelerator.reduce(self._train_sums, reduction="sum")))
            means.pop("loss", None)  # Trainer's own is the mean over steps
            reader = self.teachers["old"].reader
            logs.update(means if reader is None else means | reader.figures())
            self._train_sums = None
        super().log(logs, start_time)

    def _prediction_step(
        self,
        step: Callable[..., tuple[Tensor | None, Any, Any]],
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Tensor | None, Any, Any]:
        """What ``step``, that of the trainer under or over this mixin, gives, with the objective as the loss."""
        self._loss_alone, noted = prediction_loss_only, self._eval_sums
        try:
            loss, logits, labels = step(model, inputs, prediction_loss_only, *args, **kwargs)
            if loss is not None and self._eval_sums is noted:
                # A trainer that asks the model itself for its loss, as Seq2SeqTrainer does where it generates.
                self._loss_alone = True
                loss, _, _ = Trainer.prediction_step(self, model, inputs, prediction_loss_only=True)
            return loss, logits, labels
        finally:
            self._loss_alone = False

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Trainer's, with the objective's figures among the metrics, as means over all trained tokens."""
        refusals.refuse_filler_rows(dataloader, self.accelerator.num_processes)
        self._eval_sums = None
        # Here, not by an override, which a class of the user's own that is derived from this one would pass by.
        self.prediction_step = partial(self._prediction_step, self.prediction_step)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
        finally:
            del self.prediction_step
            self._step.flush()
        if self._eval_sums is not None:
            means, metrics = mean_terms(self._eval_sums), cast("dict[str, float]", output.metrics)
            if self.compute_loss_func is not None:
                means.pop("loss", None)
            else:
                # Trainer's mean of batch means depends on the batch size; this is the mean over tokens, or nothing.
                metrics.pop(f"{metric_key_prefix}_loss", None)
            metrics.update({f"{metric_key_prefix}_{name}": value for name, value in means.items()})
        return output

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> TrainOutput:
        # It begins anew: after a batch that was too large (auto_find_batch_size), or in a second training.
        self._train_sums, self._best_loaded_at = None, 0
        return super()._inner_training_loop(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's, which walks through the model for each batch to count its parameters; here once."""
        tokens = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        if not isinstance(tokens, Tensor) or not tokens.numel():
            return super().floating_point_ops(inputs)
        if self._operations_per_token is None:
            self._operations_per_token = super().floating_point_ops(inputs) // tokens.numel()
        return self._operations_per_token * tokens.numel()
