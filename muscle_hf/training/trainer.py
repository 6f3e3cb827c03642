"""The MUSCLE objective for ``transformers.Trainer`` and trainers derived from it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.trainer_utils import BestRun, TrainOutput, default_compute_objective

from muscle_hf.errors import MuscleError
from muscle_hf.objective.masks import MaskFunction
from muscle_hf.objective.sums import FIGURES, sum_terms
from muscle_hf.teachers import Teacher, kind_of, make_student
from muscle_hf.teachers.adapters import keep_quantized_trainable
from muscle_hf.teachers.batch import (
    MASK_COLUMNS,
    TRAINED_COUNT,
    UNLABELLED,
    Batch,
    keep_trained_labels,
    trained_labels,
)
from muscle_hf.teachers.checks import check_label_sets, text_tokenizer
from muscle_hf.teachers.sharding import is_sharded
from muscle_hf.teachers.weights import base_of
from muscle_hf.training import refusals
from muscle_hf.training.config import MuscleConfig
from muscle_hf.training.figures import LogsFigures
from muscle_hf.training.row_checks import check_train_dataset, nothing_to_train_on, sample_of
from muscle_hf.training.saving import SavesAdapter
from muscle_hf.training.step import make_step
from muscle_hf.training.transfer import MixesTransferRows

if TYPE_CHECKING:
    from muscle_hf.training.provenance import Provenance


# Of which more is made with a trainer than is made again for a trial.
_SETTLED = ("preset", "calibrate_teachers", "old_targets", "old_reference")


class ObjectiveMixin(SavesAdapter, LogsFigures, MixesTransferRows):
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
        self._data_checked = check_train_dataset(self)
        from muscle_hf.training.sides import settle_targets

        settle_targets(self, old_formatting_func, transfer_dataset, trainer_arguments)
        self._place_teachers()
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
        if not getattr(self, "is_in_train", False):  # there a trial's settings are not known yet
            self._start()
        return self.student

    def _start(self) -> None:
        if self.settings.start_from == "old":
            from muscle_hf.teachers.start import require_own_tokens, start_from_teacher

            old = self.teachers["old"]
            require_own_tokens(old.reader and old.reader.level)
            start_from_teacher(self.student, old, fresh=self._peft_config is not None)

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

    # ---- Data ----

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
                old.place(self.accelerator, self.tokenizer)
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
        before = {name: getattr(self.settings, name) for name in _SETTLED}
        super()._hp_search_setup(trial)
        if self.model_init is None:
            return
        # The models are new, and a trial's values are in the arguments now: what was made of either is made again.
        self.settings, searched = MuscleConfig.of(self.args), getattr(trial, "params", trial) or ()
        for name, value in before.items():
            if name in searched or getattr(self.settings, name) != value:
                raise MuscleError(f"a hyper-parameter search does not vary {name}; make a trainer for each value")
        self.muscle_objective = self.settings.objective(self._mask)
        refusals.refuse_unsupported(self, self.muscle_objective)
        self._start()
        if self._transfer is not None:
            self.train_dataset.ratio = self.settings.transfer_ratio
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
