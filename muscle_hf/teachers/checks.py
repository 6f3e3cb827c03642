"""Do two models belong together? Checks made before anything is trained."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.origin import local_model_folder, origin_of
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.weights import (
    base_of,
    base_weights,
    folder_hash,
    input_embeddings,
    is_quantized,
    same_as_files,
    same_weights,
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


def vocabulary_hash(tokenizer: Any) -> str:
    """SHA-256 over a tokenizer's tokens and their ids, 64 hex digits."""
    return hashlib.sha256(json.dumps(tokenizer.get_vocab(), sort_keys=True).encode()).hexdigest()


def check_vocabularies(new_vocabulary: Mapping[str, int] | None, old_vocabulary: Mapping[str, int] | None) -> bool:
    """Compare two vocabularies token by token.

    Args:
        new_vocabulary: v2's tokens and their ids; None if unknown.
        old_vocabulary: v1's.

    Returns:
        Whether both were known.

    Raises:
        MuscleError: They differ; says how many tokens do and names some.
    """
    if new_vocabulary is None or old_vocabulary is None:
        return False
    if new_vocabulary != old_vocabulary:
        tokens = sorted(new_vocabulary.keys() | old_vocabulary.keys())
        differ = [token for token in tokens if new_vocabulary.get(token) != old_vocabulary.get(token)]
        examples = ", ".join(
            f"{token!r} (old id {old_vocabulary.get(token)}, new id {new_vocabulary.get(token)})"
            for token in differ[:3]
        )
        raise MuscleError(
            f"the old and the new model have different vocabularies: {len(differ)} of {len(tokens)} tokens differ, "
            f"first {examples}. Both read the same token ids, so both need the same tokenizer; if tokens were only "
            "added to one (a padding token, say), add them to the other and pass it as old_processing_class="
        )
    return True


def text_tokenizer(processing: Any, collator: Any = None) -> Any:
    """The tokenizer in what prepares rows: a tokenizer, a processor of texts with images or sound, or a collator.

    Args:
        processing: A tokenizer or a processor.
        collator: Looked into where there is none.

    Returns:
        None if there is none.
    """
    found = processing or getattr(collator, "tokenizer", None) or getattr(collator, "processor", None)
    return found if hasattr(found, "get_vocab") else getattr(found, "tokenizer", found)


def find_vocabulary(model: nn.Module, adapter: str | None = None) -> dict[str, int] | None:
    """The vocabulary of the tokenizer saved with a model's adapter, which may add tokens, or else with its base.

    Args:
        model: Of the vocabulary.
        adapter: What its adapter was loaded from, if that is known.

    Returns:
        None if there is none on disk.
    """
    base = base_of(model)
    name = getattr(getattr(base, "config", None), "name_or_path", None)
    folders = local_model_folder(adapter), local_model_folder(name, origin_of(base).revision)
    folder = next((folder for folder in folders if folder and any(folder.glob("tokenizer*"))), None)
    if folder is None:
        return None
    from muscle_hf.files import readable

    try:
        with readable(f"the tokenizer in {folder.name}"):
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False).get_vocab()
    except MuscleError as error:
        logger.warning(f"{error}; vocabularies are compared by size.")
        return None


def check_tokenizers(tokenizer: Any, old_tokenizer: Any, teacher: Teacher, new: nn.Module) -> None:
    """v1 and v2 must number the same tokens the same way; where a tokenizer is unknown, sizes must agree.

    Args:
        tokenizer: v2's, or None to look beside the model.
        old_tokenizer: v1's, or None to look beside the model.
        teacher: v1.
        new: v2's model.

    Raises:
        MuscleError: The vocabularies differ, or may differ and cannot be compared.
    """
    old = teacher.model
    vocabularies = [
        known.get_vocab() if hasattr(known, "get_vocab") else find_vocabulary(model, adapter)
        for known, model, adapter in (
            (text_tokenizer(tokenizer), new, None),
            (text_tokenizer(old_tokenizer), old, teacher.source),
        )
    ]
    if check_vocabularies(*vocabularies) or _same_embeddings(old, new):
        return
    if input_embeddings(old) is None and input_embeddings(new) is None:
        return  # of sound, say: there are no tokens to number
    sizes = [getattr(base_of(model).config.get_text_config(), "vocab_size", None) for model in (old, new)]
    if sizes[0] != sizes[1]:
        raise MuscleError(
            f"the old model has {sizes[0]} embeddings, the new one {sizes[1]}, and a tokenizer was not found to "
            "compare their tokens; pass processing_class= and old_processing_class="
        )
    names = " and ".join(origin_of(model).name or type(base_of(model)).__name__ for model in (old, new))
    logger.warning_once(
        f"A tokenizer was not found, so only the sizes of the vocabularies of {names} were compared. Pass "
        "processing_class= and old_processing_class= to compare the tokens."
    )


def _same_embeddings(old: nn.Module, new: nn.Module) -> bool:
    """Whether both number the tokens in one way for certain: two copies of a base, or of one that was trained."""
    found = [input_embeddings(model) for model in (old, new)]
    weights = [getattr(layer, "weight", None) for layer in found]
    known = [{"embeddings": weight} for weight in weights if isinstance(weight, Tensor) and not weight.is_meta]
    return len(known) == 2 and same_weights(*known)


def check_label_sets(kind: ModelKind, old: nn.Module, new: nn.Module) -> None:
    """v1 and v2 must choose among the same classes, in the same order.

    Raises:
        MuscleError: Their label sets differ; names both.
    """
    if not kind.names_classes:
        return
    names = [base_of(model).config.id2label or {} for model in (old, new)]
    unnamed = [all(label == f"LABEL_{index}" for index, label in labels.items()) for labels in names]
    if len(names[0]) != len(names[1]) or (not any(unnamed) and names[0] != names[1]):
        raise MuscleError(
            f"the old and the new model have different label sets: old {names[0]}, new {names[1]}. Train both task "
            "adapters with the same id2label"
        )


def check_recorded_base(model: PeftModel, adapter: str) -> None:
    """An adapter must sit on the base it was trained on; PEFT itself accepts any base of the right shapes.

    Raises:
        MuscleError: The adapter records another base than the one under it.
    """
    base = base_of(model)
    recorded = model.peft_config[adapter].base_model_name_or_path
    present = getattr(base.config, "name_or_path", None)
    if not recorded or not present or _same_name(recorded, present):
        return
    refusal = MuscleError(
        f"the adapter {adapter!r} was trained for the base {recorded}, but it sits on {present}. Load the base that "
        "it records; if it is the same model under another name, set check_base=False"
    )
    folder, moved = local_model_folder(recorded), local_model_folder(present)
    if folder is not None and _has_weights(folder) and not is_quantized(base):
        same_files = moved is not None and _has_weights(moved) and folder_hash(moved) == folder_hash(folder)
        if not same_files and not same_as_files(base_weights(model, adapter), folder, base.base_model_prefix):
            raise refusal
    elif not os.path.isdir(present) and not os.path.isabs(recorded):
        raise refusal
    else:
        logger.warning(
            f"The adapter {adapter!r} records the base {recorded}, which is not here to be compared with {present}."
        )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors"))


def _same_name(one: str, other: str) -> bool:
    if os.path.isdir(one) and os.path.isdir(other):
        return os.path.samefile(one, other)
    return one == other


def only_active_adapter(model: PeftModel, owner: str) -> str:
    """The name of a model's one active adapter.

    Raises:
        MuscleError: Several or none are active, one is merged into the base, or it is a prompt.
    """
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
    if model.get_model_status().merged_adapters:
        raise MuscleError(f"{owner} has an adapter merged into its base; call unmerge_adapter() first")
    return active[0]


def refuse_prompts(config: PeftConfig, owner: str) -> None:
    """Refuse adapters that put virtual tokens before the text: their logits and the labels do not line up.

    Raises:
        MuscleError: It is one.
    """
    if config.is_prompt_learning:
        raise MuscleError(
            f"{owner} has an adapter of type {PeftType(config.peft_type).value}, which puts virtual tokens before the "
            "text instead of changing the base's layers; use LoRA or another adapter that can be merged"
        )
