"""The MUSCLE objective for ``transformers.Trainer`` and trainers derived from it."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import BestRun, EvalLoopOutput, TrainOutput, default_compute_objective

from muscle_hf.errors import MuscleError
from muscle_hf.objective.masks import MaskFunction
from muscle_hf.objective.sums import FIGURES, mean_terms, sum_terms
from muscle_hf.teachers import Teacher, kind_of, make_student
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters, keep_quantized_trainable
from muscle_hf.teachers.batch import (
    MASK_COLUMNS,
    TRAINED_COUNT,
    UNLABELLED,
    Batch,
    keep_trained_labels,
    sequences_of,
    trained_labels,
)
from muscle_hf.teachers.checks import check_label_sets, text_tokenizer
from muscle_hf.teachers.sharding import is_sharded
from muscle_hf.teachers.weights import base_of
from muscle_hf.training import refusals
from muscle_hf.training.base import TrainerParts
from muscle_hf.training.config import MuscleConfig
from muscle_hf.training.row_checks import check_train_dataset, nothing_to_train_on, require_trained, sample_of
from muscle_hf.training.step import make_step

if TYPE_CHECKING:
    from muscle_hf.training.provenance import Provenance

_TIMING = re.compile(r"runtime|per_second|total_flos|preparation_time|memory|mem_")


class ObjectiveMixin(TrainerParts):
    """The MUSCLE objective for ``transformers.Trainer`` and trainers derived from it.

    What it takes is documented at :class:`~muscle_hf.MuscleTrainer`.

    Attributes:
        config_class: Made where no arguments are given.
        old_targets: What of v1 is followed: ``tokens``, ``answer`` or ``choices``.
        tokenizers: Of v1 and v2 (``old``, ``new``), as far as they were passed.
        muscle_objective: What is trained; ``objective`` is Trainer's, the figure of a hyper-parameter search.
        teacher_temperatures: What each teacher's logits are divided by (``old``, ``new``): 1, or what
            ``calibrate_teachers`` found at the start of :meth:`train`.
    """

    config_class: type[MuscleConfig] = MuscleConfig
    old_targets = "tokens"
    _train_sums: Tensor | None = None
    _eval_sums: Tensor | None = None
    # While an evaluation asks for the loss alone.
    _loss_alone = False
    # Of the present model.
    _operations_per_token: int | None = None
    _best_loaded_at = 0

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *positional: Any,
        old_model: nn.Module | str | os.PathLike | Teacher | None = None,
        new_model: nn.Module | str | os.PathLike | Teacher | None = None,
        peft_config: PeftConfig | None = None,
        old_model_kwargs: Mapping[str, Any] | None = None,
        new_model_kwargs: Mapping[str, Any] | None = None,
        old_processing_class: Any = None,
        old_formatting_func: Callable[[Any], Any] | None = None,
        mask: MaskFunction | None = None,
        transfer_dataset: Any = None,
        **trainer_arguments: Any,
    ):
        if old_model is None:
            raise MuscleError(
                "no old_model: MUSCLE keeps what the old (v1) task model gets right, so it needs that model; pass it "
                "as old_model= (a PeftModel, a model, or a folder or Hub id of an adapter or model)"
            )
        args = self.config_class("tmp_trainer") if args is None else args
        self.settings = MuscleConfig.of(args)
        self._mask = mask
        self.muscle_objective = self.settings.objective(mask)
        self._models = {"old": (old_model, old_model_kwargs), "new": (new_model, new_model_kwargs)}
        self._peft_config = peft_config
        self.teachers: dict[str, Teacher] = {}
        rows = trainer_arguments.get("processing_class"), trainer_arguments.get("data_collator")
        self.tokenizers = {"old": old_processing_class, "new": text_tokenizer(*rows)}
        if model is not None:
            # A fresh adapter is drawn from the run's seed, like everything after it.
            set_seed(args.seed)
            model = self._cast(model)
        super().__init__(model, args, *positional, **trainer_arguments)
        if self.model_init is None:
            # A base that turned out to be v2's would stay in memory beside it.
            self._models = {}
        refusals.refuse_unsupported(self, self.muscle_objective)
        self._introduce()
        # The loss is normalised here, by the tokens of the whole batch, whatever the model's own loss does.
        self.model_accepts_loss_kwargs = True
        self._place_teachers()
        self._data_checked = check_train_dataset(self)
        from muscle_hf.training.sides import settle_targets

        settle_targets(self, old_formatting_func, transfer_dataset, trainer_arguments)
        self._require_known(self.train_dataset, "training set")
        self.mix_in_transfer_rows(transfer_dataset)
        self.teacher_temperatures = dict.fromkeys(self.teachers, 1.0)
        if self.settings.calibrate_teachers:
            from muscle_hf.training.calibration import CalibrateTeachers

            self.add_callback(CalibrateTeachers(self))
        self._step = make_step(self)
        for teacher in self.teachers.values():
            teacher.begin(answers_alone=teacher.role == "old" and self.old_targets == "answer")
        if is_sharded(self.accelerator):
            # From here on no process has whole weights any more to hash.
            _ = self.provenance
            for teacher in self.teachers.values():
                teacher.shard(self.accelerator)

    # ---- Parts ----

    def _cast(self, model: nn.Module) -> PeftModel:
        """Make ``model`` the student and find its teachers."""
        refusals.refuse_missing_weights(model)
        self._operations_per_token = None
        keep_quantized_trainable(model)
        self.student, new = make_student(model, self._peft_config, check_base=self.settings.check_base)
        self.kind, self._task_model = kind_of(self.student), new
        old_model, old_arguments = self._models["old"]
        new_model, new_arguments = self._models["new"]
        kept = self.teachers.get("old")
        self.teachers = {
            # A teacher with a base of its own serves every trial of a hyper-parameter search.
            "old": self._teacher("old", old_model, old_arguments) if kept is None or kept.on_students_base else kept,
            "new": new if new_model is None else self._teacher("new", new_model, new_arguments),
        }
        if kept is not None:
            self.teachers["old"].reader, self.teachers["old"].tokenizer = kept.reader, kept.tokenizer
        for loaded in (model for teacher in self.teachers.values() for model in teacher.models):
            if loaded is not self.student:
                keep_quantized_trainable(loaded)
            check_label_sets(self.kind, loaded, self.student)
        if self.settings.start_from == "old":
            from muscle_hf.teachers.start import start_from_teacher

            start_from_teacher(self.student, self.teachers["old"], fresh=self._peft_config is not None)
        return self.student

    def _teacher(self, role: str, source: Any, arguments: Mapping[str, Any] | None) -> Teacher:
        from muscle_hf.training.sides import teacher_of

        return teacher_of(self, role, source, arguments)

    def _place_teachers(self) -> None:
        for teacher in self.teachers.values():
            teacher.place(self.accelerator, self.tokenizer)

    @cached_property
    def provenance(self) -> Provenance | None:
        """What is trained, from what and on what; made where it is needed first, since it takes a hash of all weights.

        None in processes that save nothing, but under ZeRO-3, whose weights are hashed by all together.
        """
        from muscle_hf.training.provenance import Provenance

        if not self.args.should_save and not is_deepspeed_zero3_enabled():
            return None
        return Provenance.of(self)

    def add_callback(self, callback: type[TrainerCallback] | TrainerCallback) -> None:
        super().add_callback(callback)
        self._introduce()

    def _introduce(self) -> None:
        """Make this trainer known to the callbacks that ask for it (``FlipMetricsCallback``)."""
        for callback in self.callback_handler.callbacks:
            if hasattr(callback, "bind_trainer"):
                callback.bind_trainer(self)

    @property
    def classes(self) -> int | None:
        """How many a classifier chooses among."""
        return base_of(self.student).config.num_labels if self.kind.names_classes else None

    @property
    def tokenizer(self) -> Any:
        """v2's tokenizer: the processing class, its part for text, or the collator's."""
        return text_tokenizer(self.processing_class, self.data_collator)

    # ---- Data ----

    def _require_known(self, rows: Any, name: str) -> None:
        """Refuse a data set, or a batch, that the logs of recorded teachers do not know."""
        if any(teacher.recorded is not None for teacher in self.teachers.values()):
            from muscle_hf.training.answer_targets import batches_of, require_known_rows

            require_known_rows(self, [rows] if isinstance(rows, Batch) else batches_of(self, rows), name)

    def sample(self, rows: Any = None) -> Iterator[dict[str, Any]]:
        """Batches of one row each, from all over a dataset, by default the training set."""
        rows, collate = self.rows_and_collator(self.train_dataset if rows is None else rows, "training")
        with torch.random.fork_rng(devices=[]):
            yield from (collate([row]) for row in sample_of(rows))

    def rows_and_collator(self, dataset: Any, description: str) -> tuple[Any, Callable]:
        """A dataset and the collator for its rows, without the columns that nobody reads, as Trainer's loaders do."""
        if hasattr(dataset, "remove_columns"):
            return self._remove_unused_columns(dataset, description), self.data_collator
        return dataset, self._get_collator_with_removed_columns(self.data_collator, description)

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        read = [MASK_COLUMNS.get(self.settings.trained_tokens), UNLABELLED, TRAINED_COUNT]
        if self.old_targets == "answer":
            from muscle_hf.training.answer_targets import needs_completion_mask

            read += ["completion_mask"] * needs_completion_mask(self)
        known = self._signature_columns or []
        self._signature_columns = known + [name for name in read if name and name not in known]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Trainer's, after making sure that nothing but the compatibility adapter is in it."""
        refusals.refuse_foreign_parameters(self.student, None if self.is_fsdp_enabled else cast("Any", self.optimizer))
        return super().create_optimizer(model)

    # ---- Rows without labels beside the training rows ----

    def mix_in_transfer_rows(self, transfer: Any) -> None:
        """Train on transfer rows beside ``train_dataset``; called by the constructor."""
        self._transfer, self._answered = transfer, False
        if transfer is None:
            return
        from muscle_hf.training.transfer_rows import (
            AnsweredRows,
            MarkingCollator,
            MixedRows,
            TransferEpochs,
            check_columns,
            refuse_unmixable,
        )

        self._answered = isinstance(transfer, AnsweredRows)
        refuse_unmixable(self, answered=self._answered)
        if self._answered:
            # The rows themselves are made when training starts.
            transfer = range(len(self._transfer))
        else:
            self._set_signature_columns_if_needed()
            check_columns(self.train_dataset, self._transfer, self._signature_columns or ())
        labelled: Any = self.train_dataset
        seed = self.args.data_seed or self.args.seed
        self.train_dataset = MixedRows(labelled, transfer, self.settings.transfer_ratio, seed)
        self.data_collator = MarkingCollator(self.data_collator)
        self._signature_columns = None
        self.add_callback(TransferEpochs(self))
        if not self._answered:
            self._check_transfer_rows()

    def _check_transfer_rows(self) -> None:
        rows = Subset(self.train_dataset, range(len(self.train_dataset.labelled), len(self.train_dataset)))
        require_trained(self, rows, "transfer rows")
        self._require_known(rows, "transfer rows")

    def answer_transfer_prompts(self, epoch: int = 0, *, resumes: bool = False) -> None:
        """Have the models answer the transfer prompts, if there are any, for an epoch, from 0; where training resumes,
        answers that were made before are taken again."""
        if not self._answered:
            return
        from muscle_hf.training.transfer_rows import Models

        if not resumes:
            if self.args.should_save:
                self._transfer.forget(self.args.output_dir)
            self.accelerator.wait_for_everyone()
        models = Models(
            self.student,
            self.teachers,
            self.tokenizer,
            self.run_folder,
            self.settings.teacher_cache,
            self.args.seed,
            not self.args.disable_tqdm,
        )
        rows = self._transfer.rows(models, epoch)
        # A student's answers may be empty, but epochs are as long as they were planned.
        count = len(self._transfer) if self._transfer.renewed else None
        self.train_dataset.replace_transfer(rows, count)
        self._check_transfer_rows()

    def datasets(self) -> dict[str, Any]:
        """What is trained and evaluated on: ``train`` and ``eval``, and with transfer rows ``transfer``."""
        found = {"train": self.train_dataset, "eval": self.eval_dataset}
        if self._transfer is not None:
            found["train"] = self.train_dataset.labelled
            found["transfer"] = self._transfer
        return found

    # ---- The objective ----

    def trained_labels(self, inputs: Mapping[str, Any]) -> Tensor:
        """As :func:`~muscle_hf.teachers.batch.trained_labels`, as this trainer is set."""
        return trained_labels(inputs, self.kind, self.settings.trained_tokens, self.classes)

    def batch_of(self, inputs: Mapping[str, Any]) -> Batch:
        """A batch on the device with its trained labels."""
        return Batch(inputs, self.trained_labels(inputs), self.kind)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> Tensor | int | None:
        # `shift_labels` is what Trainer counts as it stands; its own rule knows neither masks nor every kind of head.
        counted = []
        for inputs in batch_samples:
            if self.kind.has_labels(inputs):
                labels = self.trained_labels(inputs)
                keep_trained_labels(inputs, labels)
                counted.append({"labels": labels, "shift_labels": labels})
        return super()._get_num_items_in_batch(counted, device)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Equations (1) and (5), summed over the trained tokens of the batch and divided by ``num_items_in_batch``.

        The student runs first; whatever happens, its adapter is the active one, in its former mode, on return.
        """
        batch = self.batch_of(inputs)
        if not self._data_checked and model.training and num_items_in_batch is not None:
            if num_items_in_batch == 0:
                raise nothing_to_train_on("the training data's first step")
            self._require_known(batch, "training data's first step")
            if (old := self.teachers["old"]).reader is not None:
                from muscle_hf.training.reading import look_at

                look_at(old, self, batch)
            self._data_checked = True
        # Whoever gets the outputs, or a loss function of the user's own, looks at whole logits.
        whole = (return_outputs and not self._loss_alone) or self.compute_loss_func is not None
        where = f"step {self.state.global_step + 1}"
        # Before the first step the KL to v2 is exactly 0, which rounding in batches of other shapes would hide.
        skip = self.state.global_step > 0
        outputs, terms = self._step(model, batch, self.muscle_objective, where, whole=whole, skip=skip)
        rows, count = (batch.rows, len(batch)) if model.training else self.data_rows(batch)
        sums = sum_terms(terms, rows, count)
        # Trainer divides by the accumulation steps what was not divided by the tokens of all of them.
        self.loss_is_scaled_for_ga = num_items_in_batch is not None
        items = sums[:, 0].sum() if num_items_in_batch is None else num_items_in_batch
        items = torch.as_tensor(items).to(terms.loss).clamp(min=1)
        loss = terms.loss.sum() / items
        if self.compute_loss_func is not None:
            # A loss function of the user's own takes the place of the cross-entropy.
            weight = self.muscle_objective.compatibility_weight
            cross_entropy = self.compute_loss_func(outputs, inputs["labels"], num_items_in_batch=num_items_in_batch)
            loss = weight * terms.compatibility.sum() / items + (1 - weight) * cross_entropy
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            # Gradients are averaged over the processes, while the tokens were counted over all of them.
            loss = loss * (self.accelerator.num_processes // self.get_tp_size())
        self._note(sums, training=model.training)
        if return_outputs and not isinstance(outputs, dict):
            # Where Trainer looks for them, behind the loss.
            outputs = (loss, *(outputs if isinstance(outputs, tuple) else [self.kind.logits_of(outputs)]))
        return (loss, outputs) if return_outputs else loss

    # ---- What is logged and evaluated: the objective's figures as means over all trained tokens ----

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
        # With auto_find_batch_size it begins anew after a batch that was too large.
        self._train_sums = None
        return super()._inner_training_loop(*args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Trainer's, which walks through the model for each batch to count its parameters; here once."""
        tokens = inputs.get(getattr(self.model, "main_input_name", "input_ids"))
        if not isinstance(tokens, Tensor) or not tokens.numel():
            return super().floating_point_ops(inputs)
        if self._operations_per_token is None:
            self._operations_per_token = super().floating_point_ops(inputs) // tokens.numel()
        return self._operations_per_token * tokens.numel()

    # ---- What is saved, whole or not at all, and gone on from: the compatibility adapter alone ----

    def checkpoint_to_resume(self, wanted: str | bool | None) -> str | None:
        """The folder of the checkpoint that training goes on from, if it does; ``wanted`` is
        ``resume_from_checkpoint``.

        Raises:
            MuscleError: There is no such checkpoint, it was cut off, or its teachers were others.
        """
        from muscle_hf.training.checkpoints import is_whole, last_whole_checkpoint

        found = last_whole_checkpoint(self.run_folder) if wanted is True else wanted
        if wanted and found is None:
            raise MuscleError(f"there is no checkpoint to resume from in {self.run_folder}")
        if not found:
            return None
        if not is_whole(Path(found)):
            raise MuscleError(
                f"{os.fspath(found)} is not a checkpoint that was written to its end; resume_from_checkpoint=True "
                "takes the last whole one"
            )
        if self.provenance is not None:
            self.provenance.check_same_models(Path(found))
        return os.fspath(found)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        from muscle_hf.training.checkpoints import saving_checkpoint

        with saving_checkpoint(self, trial):
            self._step.flush()  # a run that goes on has what was known until here
            self.accelerator.wait_for_everyone()  # the others write their random states into the same folder
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """Save the compatibility adapter alone, with the tokenizer and its provenance; no teachers, no pickles."""
        if not self.args.should_save:
            return
        from muscle_hf.training.checkpoints import staged

        with staged(output_dir or self.run_folder) as folder:
            self.student.save_pretrained(str(folder), selected_adapters=[STUDENT_ADAPTER], state_dict=state_dict)
            # PEFT's card names a base by its place on this disk.
            (folder / "README.md").unlink(missing_ok=True)
            if (processing := self.processing_class or self.tokenizer) is not None:
                processing.save_pretrained(folder)
            weights = adapter_parameters(self.student, STUDENT_ADAPTER)
            if is_sharded(self.accelerator):
                # A process has no more than its own shards, but what was saved is whole.
                weights = load_file(folder / SAFETENSORS_WEIGHTS_NAME)
            assert self.provenance is not None  # in processes that save
            self.provenance.save(folder, weights, self)

    def final_metrics(self) -> dict[str, float]:
        """The last value of every figure that was logged for the present weights, but for those of time and speed."""
        metrics: dict[str, float] = {}
        for index, entry in enumerate(self.state.log_history):
            overtaken = index < self._best_loaded_at and entry["step"] > (self.state.best_global_step or 0)
            if not overtaken:
                metrics.update({key: value for key, value in entry.items() if not _TIMING.search(key)})
        return metrics

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            self._read_student(resume_from_checkpoint)

    def _read_student(self, folder: str) -> None:
        from muscle_hf.teachers.adapter_files import read_adapter

        read_adapter(self.student, STUDENT_ADAPTER, Path(folder))

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
        else:
            self._read_student(cast("str", self.state.best_model_checkpoint))
        # What was logged after the best step is not about the weights that are now in the model.
        self._best_loaded_at = len(self.state.log_history)

    # ---- Training ----

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trainer's; resumes from whole checkpoints only, and only against the models they were trained against.

        Raises:
            MuscleError: There is no such checkpoint, it was cut off, or its teachers were others.
        """
        resume_from_checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self.answer_transfer_prompts(resumes=bool(resume_from_checkpoint))
        if self._step.head is not None and not self.settings.teacher_cache and self.is_world_process_zero():
            from muscle_hf.training.caches import advise

            advise(self)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._step.flush()

    # ---- Hyper-parameter searches: each trial has models, teachers and an objective of its own ----

    def call_model_init(self, trial: Any = None) -> nn.Module:
        return self._cast(super().call_model_init(trial))

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        if self.model_init is None:
            return
        # The models are new, and a trial's values are in the arguments now: what was made of either is made again.
        self.settings = MuscleConfig.of(self.args)
        self.muscle_objective = self.settings.objective(self._mask)
        refusals.refuse_unsupported(self, self.muscle_objective)
        self._place_teachers()
        self._step = make_step(self)

    def hyperparameter_search(
        self,
        hp_space: Callable[[Any], dict[str, float]] | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args: Any,
        **kwargs: Any,
    ) -> BestRun | list[BestRun]:
        """As Trainer's: minimises the loss unless ``compute_metrics`` or ``compute_objective`` says otherwise."""
        return super().hyperparameter_search(hp_space, compute_objective or search_objective, *args, **kwargs)


def search_objective(metrics: dict[str, float]) -> float:
    """What a hyper-parameter search minimises where the user does not say."""
    # Trainer's default adds up whatever is there beside the loss: the user's metrics, but not the objective's parts.
    return default_compute_objective({k: v for k, v in metrics.items() if k.removeprefix("eval_") not in FIGURES})
