"""The steps of a run, each a function: train a task adapter, train it on, train the compatibility adapter, answer."""

from __future__ import annotations

import dataclasses
import gc
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging

from muscle_hf.console import hush_deprecations
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.engine import evaluate_task
from muscle_hf.evaluation.loading import tokenizer_of
from muscle_hf.evaluation.predictions import Prediction, signed
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.files import read_text, readable
from muscle_hf.pipeline.config import LoraSettings, ModelSettings, RunSettings
from muscle_hf.pipeline.data import TrainingData, is_trl
from muscle_hf.pipeline.interrupt import stop_on_interrupt
from muscle_hf.teachers.identity import describe_model
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import find_adapter, load_model, load_task_model
from muscle_hf.teachers.origin import origin_of
from muscle_hf.teachers.start import check_bases
from muscle_hf.teachers.tokenizers import require_embeddings
from muscle_hf.teachers.weights import is_quantized
from muscle_hf.trainer import MuscleTrainer
from muscle_hf.training.checkpoints import last_whole_checkpoint, saving_checkpoint, staged
from muscle_hf.training.config import MuscleConfig

A = TypeVar("A", bound=TrainingArguments)


def process_state(training: Mapping[str, Any]) -> PartialState:
    """This process among those of a run; without being told, several on the CPU would each take themselves for all."""
    cpu = bool(training.get("use_cpu")) or parse_flag_from_env("ACCELERATE_USE_CPU")
    # One process alone has no group, whose backend it could be.
    backend = {"backend": training.get("ddp_backend")} if "LOCAL_RANK" in os.environ else {}
    return PartialState(cpu=cpu, **backend)


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


def loading(settings: RunSettings) -> dict[str, Any]:
    """The arguments of ``from_pretrained`` that say how the bases are loaded."""
    arguments: dict[str, Any] = {"dtype": settings.dtype}
    if settings.attention is not None:
        arguments["attn_implementation"] = settings.attention
    if settings.quantization == "nf4":
        half = torch.float16 if settings.dtype == "float16" else torch.bfloat16
        arguments["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=half,
        )
    elif settings.quantization == "int8":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return arguments


def load_tokenizer(side: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer of a side, with the chat template that its settings name."""
    own = (side.tokenizer, None) if side.tokenizer else (side.base, side.revision)
    tokenizer, name = tokenizer_of(None, *own, {}), side.chat_template
    if side.tokenizer and side.base:
        require_embeddings(tokenizer, config_of(side), f"the base {side.base}", "as tokenizer")
    if name is not None:
        saved = tokenizer.chat_template or {}
        known = saved if isinstance(saved, dict) else {"default": saved}
        if name not in known and not Path(name).is_file():
            there = ", ".join(known) or "no template"
            raise MuscleError(f"chat_template: {name} is no file, and the tokenizer of {own[0]} has {there}")
        tokenizer.chat_template = known[name] if name in known else read_text(Path(name))
    return tokenizer


def config_of(side: ModelSettings) -> PreTrainedConfig:
    """The configuration of a side's base."""
    with readable(f"the configuration of {side.base}"):
        return AutoConfig.from_pretrained(side.base, revision=side.revision or "main", trust_remote_code=False)


def task_adapter_model(side: ModelSettings, lora: LoraSettings, how: Mapping[str, Any], seed: int) -> PeftModel:
    """A base, loaded as :func:`loading` says, with a fresh LoRA drawn from a seed."""
    set_seed(seed)
    base = load_model(side.base, CAUSAL_LM, {"revision": side.revision or "main", **how})
    if is_quantized(base):
        # Trainer itself enables the recomputation of activations, as its arguments say.
        base = prepare_model_for_kbit_training(base, use_gradient_checkpointing=False)
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        task_type=CAUSAL_LM.task_type,
        revision=origin_of(base).revision,
    )
    try:
        return get_peft_model(base, config)
    except ValueError as error:
        raise MuscleError(f"lora: {error}") from error


def load_task_adapter(
    side: ModelSettings, how: Mapping[str, Any], *, trainable: bool, dropout: float | None = None
) -> PeftModel:
    """A side's base with its adapter on it; ``dropout`` is that of an adapter that is trained on."""
    model = load_task_model(
        cast("str", side.adapter),
        CAUSAL_LM,
        base_model=side.base,
        base_revision=side.revision,
        revision=side.adapter_revision,
        trainable=trainable,
        dropout=dropout,
        **how,
    )
    return cast("PeftModel", model)


def check_start(old: ModelSettings, new: ModelSettings, lora: LoraSettings) -> None:
    """Refuse bases of other layers, of v1's adapter or of the LoRA that it would get, from their configurations."""
    adapter = find_adapter(old.adapter, old.adapter_revision, {}) if old.adapter else None
    target = getattr(adapter.config, "target_modules", None) if adapter else lora.target_modules
    check_bases(config_of(old), config_of(new), target or "all-linear")


# ---- Training ----


def train_plainly(model: PeftModel, data: TrainingData, arguments: TrainingArguments, **shown: Any) -> None:
    """:func:`fit` an adapter with plain cross-entropy and save it in ``output_dir``."""
    with readable("the training rows", "; do they go with data.format, the settings of training, and the tokenizer?"):
        trainer = adapter_saving(trainer_class(arguments))(model, arguments, **data.for_trainer(arguments))
    fit(trainer, **shown)
    trainer.save_model()


def trainer_class(arguments: TrainingArguments) -> type[Trainer]:
    """The trainer that goes with training arguments."""
    own = isinstance(arguments, MuscleConfig)
    if not is_trl(arguments):
        return MuscleTrainer if own else Trainer
    if own:
        from muscle_hf.sft import MuscleSFTTrainer

        return MuscleSFTTrainer
    from trl import SFTTrainer

    return SFTTrainer


def fit(trainer: Trainer, name: str, callbacks: Sequence[TrainerCallback] = ()) -> None:
    """Train, going on from the last whole checkpoint; ``name`` is on the progress bar."""
    for callback in (ProgressCallback, PrinterCallback):
        trainer.remove_callback(callback)
    if not trainer.args.disable_tqdm:
        trainer.add_callback(QuietProgress(name))
    for callback in callbacks:
        trainer.add_callback(callback)
    with stop_on_interrupt(trainer, name):
        checkpoint = last_whole_checkpoint(cast("str", trainer.args.output_dir))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))


def adapter_saving(cls: type[Trainer]) -> type[Trainer]:
    """A trainer that saves its adapter and nothing else.

    Trainer's own saving adds a pickle of the arguments with the Hub token in it, and TRL's a card.
    """

    class AdapterSaving(cls):
        def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
            with saving_checkpoint(self, trial):
                Trainer._save_checkpoint(self, model, trial)

        def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
            if not self.args.should_save:
                return
            with staged(cast("str", output_dir or self.args.output_dir)) as folder:
                cast("Any", self.accelerator.unwrap_model(self.model)).save_pretrained(folder, state_dict=state_dict)
                (folder / "README.md").unlink(missing_ok=True)  # names the base by its place on this disk
                cast("PreTrainedTokenizerBase", self.processing_class).save_pretrained(folder)

    return AdapterSaving


# ---- Evaluation ----


def answer(
    side: ModelSettings,
    task: Task,
    items: Sequence[Item],
    *,
    how: Mapping[str, Any],
    batch_size: int | None,
    data: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[Prediction]:
    """What a base, loaded as :func:`loading` says, answers with its adapter; ``data`` is where the items come from."""
    model = load_task_adapter(side, how, trainable=False)
    if not is_quantized(model):
        model.to(PartialState().device)
    # Before the first answer: bitsandbytes repacks weights in it.
    who = describe_model(model, side.adapter, side.adapter, side.adapter_revision)
    answers = evaluate_task(model.eval(), load_tokenizer(side), task, items, batch_size=batch_size, progress=progress)
    return signed(answers, {**who, "data": data})


# ---- Settings ----


def unpublished(settings: Mapping[str, Any], cls: type[TrainingArguments] = TrainingArguments) -> dict[str, Any]:
    """The settings that ``cls`` knows but for those that upload: task adapters and the control stay here."""
    return {key: value for key, value in _known(cls, settings).items() if not key.startswith(("hub_", "push_to_hub"))}


def training_arguments(cls: type[A], settings: Mapping[str, Any], folder: Path) -> A:
    """Training arguments of a class, of the settings that it knows."""
    try:
        return cls(output_dir=str(folder), **_known(cls, settings))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise error if isinstance(error, MuscleError) else MuscleError(f"training: {error}") from error


def _known(cls: type[TrainingArguments], settings: Mapping[str, Any]) -> dict[str, Any]:
    known = {setting.name for setting in dataclasses.fields(cls)}
    return {key: value for key, value in settings.items() if key in known}


def free_memory() -> None:
    """Give back what finished steps held: trainers are full of reference cycles."""
    # Models would go on being loaded in shards after a training with ZeRO-3, which alone puts them together.
    unset_hf_deepspeed_config()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def hush() -> None:
    """Silence what libraries say to developers while a command with its own output runs."""
    logging.disable_progress_bar()
    hush_deprecations()
    warnings.filterwarnings("ignore", message=".*'pin_memory' argument is set as true.*", category=UserWarning)
    logging.set_verbosity_error()
