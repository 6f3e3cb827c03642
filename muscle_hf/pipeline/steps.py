"""The steps of a run, each a function: train a task adapter, train it on, train the compatibility adapter, answer."""

from __future__ import annotations

import dataclasses
import gc
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from muscle_hf.config import MuscleConfig
from muscle_hf.data import PaddingCollator, encode_items
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.engine import evaluate_task
from muscle_hf.evaluation.predictions import Prediction
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.hub.publishing import publish
from muscle_hf.pipeline.config import LoraSettings, ModelSettings
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import load_model, load_task_model
from muscle_hf.teachers.origin import origin_of
from muscle_hf.trainer import MuscleTrainer


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Tokenized rows, the same for task and compatibility adapters.

    Args:
        tokenizer: v2's, which is also v1's.
        train: Rows to train on.
        validation: Rows to select by; may be empty.
    """

    tokenizer: PreTrainedTokenizerBase
    train: list[dict[str, list[int]]]
    validation: list[dict[str, list[int]]]

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        train: Sequence[Item],
        validation: Sequence[Item],
        **how: bool,
    ) -> TrainingData:
        """Tokenize items, for every adapter alike; ``how`` is what :func:`muscle_hf.data.encode_items` takes."""
        parts = (encode_items(tokenizer, items, **how) for items in (train, validation))
        return cls(tokenizer, *parts)

    def for_trainer(self) -> dict[str, Any]:
        """The arguments of a ``Trainer`` that hold data."""
        pad = self.tokenizer.pad_token_id
        return {
            "train_dataset": self.train,
            "eval_dataset": self.validation or None,
            "data_collator": PaddingCollator(pad_id=0 if pad is None else pad),
            "processing_class": self.tokenizer,
        }


class QuietProgress(ProgressCallback):
    """Trainer's progress bar with the step's name on it, without a line for every log."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        super().on_train_begin(args, state, control, **kwargs)
        if self.training_bar is not None:
            self.training_bar.set_description(self.name)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if self.training_bar is not None and logs and "loss" in logs:
            self.training_bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        """No bar of its own for the few batches of a validation set."""


def load_tokenizer(side: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer saved with a base.

    Raises:
        MuscleError: There is none.
    """
    try:
        return AutoTokenizer.from_pretrained(side.base, revision=side.revision or "main", trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise MuscleError(f"no tokenizer can be loaded from {side.base}: {error}") from error


def train_task_adapter(
    side: ModelSettings,
    data: TrainingData,
    lora: LoraSettings,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    dtype: str = "auto",
) -> Path:
    """Train a task adapter with plain cross-entropy and save it.

    Args:
        side: The base.
        data: Tokenized rows.
        lora: Of the adapter.
        settings: Training arguments; those of MuscleConfig alone are left out.
        folder: Where the adapter goes; checkpoints go below it.
        name: On the progress bar.
        dtype: Of the base's weights.

    Returns:
        ``folder``.
    """
    arguments = _training_arguments(TrainingArguments, unpublished(settings), folder)
    set_seed(arguments.seed)
    base = load_model(side.base, CAUSAL_LM, {"revision": side.revision or "main", "dtype": dtype})
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=CAUSAL_LM.task_type,
        revision=origin_of(base).revision,
    )
    return _train_plainly(get_peft_model(base, config), arguments, data, folder, name)


def train_control(
    side: ModelSettings,
    data: TrainingData,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    dtype: str = "auto",
) -> Path:
    """Train v2's task adapter on with plain cross-entropy, as long as the compatibility adapter is trained.

    The paper's tables lack this control: a fair comparison needs it.
    """
    arguments = _training_arguments(TrainingArguments, unpublished(settings), folder)
    model = load_task_adapter(side, dtype, trainable=True)
    return _train_plainly(model, arguments, data, folder, name)


def train_compatibility(
    old: ModelSettings,
    new: ModelSettings,
    data: TrainingData,
    settings: Mapping[str, Any],
    folder: Path,
    *,
    name: str,
    dtype: str = "auto",
) -> Path:
    """Train the compatibility adapter on v2, from v2's task adapter, and save it."""
    trainer = MuscleTrainer(
        load_task_adapter(new, dtype, trainable=True),
        _training_arguments(MuscleConfig, settings, folder),
        old_model=old.adapter,
        old_model_kwargs={"revision": old.adapter_revision, "base_model": old.base, "base_revision": old.revision},
        **data.for_trainer(),
    )
    _quiet(trainer, name)
    trainer.train()
    # As an internal call: it is published at the end of the run, with its flips on the card.
    trainer.save_model(_internal_call=True)
    if trainer.args.should_save:
        trainer.write_card(str(folder))
    return folder


def answer(
    side: ModelSettings, adapter: str | Path, task: Task, items: Sequence[Item], *, dtype: str, batch_size: int | None
) -> list[Prediction]:
    """What a base with an adapter answers to the items of a task."""
    model = load_task_adapter(dataclasses.replace(side, adapter=str(adapter)), dtype, trainable=False)
    model.to(PartialState().device)
    tokenizer = load_tokenizer(side)
    return evaluate_task(model.eval(), tokenizer, task, items, batch_size=batch_size)


def unpublished(settings: Mapping[str, Any], cls: type[TrainingArguments] = TrainingArguments) -> dict[str, Any]:
    """The settings that ``cls`` knows but for those that upload: task adapters and the control stay here."""
    return {
        key: value
        for key, value in _known(cls, settings).items()
        if key != "push_to_hub" and not key.startswith("hub_")
    }


def publish_compatibility(folder: Path, settings: Mapping[str, Any]) -> None:
    """Publish the compatibility adapter with its finished card, if the training arguments say ``push_to_hub``."""
    arguments = _training_arguments(MuscleConfig, settings, folder)
    if arguments.push_to_hub:
        publish(
            folder,
            arguments.hub_model_id or folder.absolute().name,
            token=arguments.hub_token,
            private=arguments.hub_private_repo,
            revision=arguments.hub_revision,
        )


def load_task_adapter(side: ModelSettings, dtype: str, *, trainable: bool) -> PeftModel:
    """A side's base with its adapter on it."""
    return load_task_model(
        side.adapter,
        CAUSAL_LM,
        base_model=side.base,
        base_revision=side.revision,
        revision=side.adapter_revision,
        trainable=trainable,
        dtype=dtype,
    )


def _training_arguments(cls: type[TrainingArguments], settings: Mapping[str, Any], folder: Path) -> TrainingArguments:
    return cls(output_dir=str(folder), **_known(cls, settings))


def _known(cls: type[TrainingArguments], settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {setting.name for setting in dataclasses.fields(cls)}
    return {key: value for key, value in settings.items() if key in known}


def _train_plainly(
    model: PeftModel, arguments: TrainingArguments, data: TrainingData, folder: Path, name: str
) -> Path:
    trainer = Trainer(model, arguments, **data.for_trainer())
    _quiet(trainer, name)
    trainer.train()
    if trainer.args.should_save:
        # Not Trainer's own saving, which adds a pickle of the arguments with the Hub token in it.
        model.save_pretrained(folder)
        data.tokenizer.save_pretrained(folder)
    return folder


def _quiet(trainer: Trainer, name: str) -> None:
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(QuietProgress(name))


def free_memory() -> None:
    """Give back what finished steps held: trainers are full of reference cycles."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hush() -> None:
    """Silence what libraries say to developers while a command with its own output runs."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true.*", category=UserWarning)
    logging.set_verbosity_error()
