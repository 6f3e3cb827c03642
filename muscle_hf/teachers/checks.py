"""Do two models belong together? Checks made before anything is trained."""

from __future__ import annotations

import os
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import PeftType
from torch import nn
from transformers import PreTrainedConfig
from transformers.utils import logging

from muscle_hf.compat.peft import BaseTunerLayer
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.origin import local_model_folder
from muscle_hf.teachers.weights import (
    base_of,
    base_weights,
    folder_hash,
    is_quantized,
    own_modules,
    same_as_files,
)

logger = logging.get_logger(__name__)

# Entries of a configuration that do not change what a model computes.
_INERT_CONFIG = frozenset(
    {"_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "use_cache", "id2label"}
    | {"label2id", "problem_type", "output_hidden_states", "output_attentions", "return_dict", "model_type_name"}
    | {"bos_token_id", "eos_token_id", "pad_token_id"}
)


def same_architecture(one: nn.Module, other: nn.Module) -> bool:
    """Whether two base models of the same weights would compute the same: one class, one configuration."""
    bases = base_of(one), base_of(other)
    return type(bases[0]) is type(bases[1]) and same_config(bases[0].config, bases[1].config)


def same_config(one: PreTrainedConfig, other: PreTrainedConfig) -> bool:
    """Whether two configurations agree in everything that changes what a model computes."""
    return type(one) is type(other) and computing_config(one) == computing_config(other)


def computing_config(config: PreTrainedConfig) -> dict[str, Any]:
    """The entries of a configuration that change what a model computes."""
    own = {key: value for key, value in config.to_dict().items() if key not in _INERT_CONFIG}
    return own | {name: computing_config(part) for name, part in parts_of(config).items()}


def parts_of(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The configurations of a model's parts (text, vision, ...) by name; none in a model that has but one part."""
    found = {name: getattr(config, name, None) for name in config.sub_configs}
    return {name: part for name, part in found.items() if isinstance(part, PreTrainedConfig)}


def text_tokenizer(processing: Any, collator: Any = None) -> Any:
    """The tokenizer in what prepares rows: a tokenizer, a processor of texts with images or sound, or, where there is
    none, a collator; None if there is none."""
    found = processing or getattr(collator, "tokenizer", None) or getattr(collator, "processor", None)
    return found if hasattr(found, "get_vocab") else getattr(found, "tokenizer", found)


def check_label_sets(kind: ModelKind, old: nn.Module, new: nn.Module) -> None:
    """v1 and v2 must choose among the same classes, in the same order."""
    if not kind.names_classes:
        return
    names = [base_of(model).config.id2label or {} for model in (old, new)]
    unnamed = [all(label == f"LABEL_{index}" for index, label in labels.items()) for labels in names]
    if len(names[0]) != len(names[1]) or (not any(unnamed) and names[0] != names[1]):
        raise MuscleError(
            f"the old and the new model have different label sets: old {names[0]}, new {names[1]}. Train both task "
            "adapters with the same id2label"
        )


def is_recorded_base(
    recorded: str | None, present: str, revision: str | None = None, *, on: PeftModel | None = None, adapter: str = ""
) -> bool | None:
    """Whether a base, by its files or, with the adapter ``on`` it, by its weights, is the one that an adapter records;
    None where that is not here to be compared."""
    if not recorded or not present or same_name(recorded, present):
        return True
    theirs, own = (
        folder if folder is not None and any(folder.glob("*.safetensors")) else None
        for folder in (local_model_folder(recorded), local_model_folder(present, revision))
    )
    if theirs is not None and own is not None and folder_hash(theirs) == folder_hash(own):
        return True
    if on is None:
        return None if theirs is None or own is None else False
    if theirs is None or is_quantized(on):
        return None
    return same_as_files(base_weights(on, adapter), theirs, base_of(on))


def check_recorded_base(model: PeftModel, adapter: str) -> None:
    """An adapter must sit on the base it was trained on; PEFT itself accepts any base of the right shapes."""
    recorded = model.peft_config[adapter].base_model_name_or_path or ""
    present = getattr(base_of(model).config, "name_or_path", None) or ""
    same = is_recorded_base(recorded, present, on=model, adapter=adapter)
    # A folder may have moved, or be a copy of any base.
    if same is False or (same is None and not os.path.isabs(recorded) and not os.path.isdir(present)):
        raise MuscleError(
            f"the adapter {adapter!r} was trained for the base {recorded}, but it sits on {present}. Load the base "
            "that it records; if it is the same model under another name, set check_base=False"
        )
    if same is None:
        logger.warning(
            f"The adapter {adapter!r} records the base {recorded}, which is not here to be compared with {present}."
        )


def check_moved_base(name: str, recorded: str | None, present: str, revision: str | None) -> None:
    """As :func:`check_recorded_base` of an adapter for which the user names a base, by their files, if both are
    here."""
    same = is_recorded_base(recorded, present, revision)
    if same is None:
        logger.warning(f"{name} records the base {recorded}, which cannot be compared with {present} here.")
    elif not same:
        raise MuscleError(
            f"{name} was trained for the base {recorded}, but is to be put on {present}, which has other weights. "
            "Name the base that it records; if it is the same model in another form, set check_base=False"
        )


def same_name(one: str, other: str) -> bool:
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    return one == other


def only_active_adapter(model: PeftModel, owner: str) -> str:
    """The name of a model's one active adapter; several, one that is merged into the base, or a prompt are refused."""
    active: list[Any] = list(model.active_adapters)
    if len(active) != 1:
        raise MuscleError(f"{owner} has {len(active)} active adapters ({', '.join(active)}); activate exactly one")
    config = model.peft_config[active[0]]
    refuse_prompts(config, owner)
    if config.is_adaption_prompt:
        raise MuscleError(
            f"{owner} has an adapter of type {PeftType(config.peft_type).value}, which is not added to the base's own "
            "layers; use LoRA or another adapter that can be merged"
        )
    if config.peft_type is PeftType.POLY:
        raise MuscleError(
            f"{owner} has an adapter of type POLY, which asks for the task of each row (task_ids); use LoRA instead"
        )
    if any(isinstance(layer, BaseTunerLayer) and layer.merged for _, layer in own_modules(model)):
        raise MuscleError(f"{owner} has an adapter merged into its base; call unmerge_adapter() first")
    return active[0]


def refuse_prompts(config: PeftConfig, owner: str) -> None:
    """Refuse adapters that put virtual tokens before the text: their logits and the labels do not line up."""
    if config.is_prompt_learning:
        raise MuscleError(
            f"{owner} has an adapter of type {PeftType(config.peft_type).value}, which puts virtual tokens before the "
            "text instead of changing the base's layers; use LoRA or another adapter that can be merged"
        )
