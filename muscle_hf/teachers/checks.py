"""Do two models belong together? Checks made before anything is trained."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from peft.utils import PeftType
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedConfig
from transformers.utils import logging

from muscle_hf.compat.peft import BaseTunerLayer
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.kinds import ModelKind, kind_of
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


def own_tokenizer(given: Any, folders: Sequence[Path | None]) -> Any:
    """A model's tokenizer.

    Args:
        given: The tokenizer, a processor that has it, its folder or Hub id; or None.
        folders: Where it may be saved otherwise: of the model's adapter, which may add tokens, and of its base.

    Returns:
        None if there is none, or none that can be read.
    """
    given = load_tokenizer(given) if isinstance(given, (str, os.PathLike)) else text_tokenizer(given)
    if hasattr(given, "get_vocab"):
        return given
    folder = next((folder for folder in folders if folder and any(folder.glob("tokenizer*"))), None)
    try:
        return None if folder is None else load_tokenizer(folder)
    except MuscleError as error:
        logger.warning(f"{error}; vocabularies are compared by size.")
        return None


def _folders_of(model: nn.Module, adapter: str | None = None) -> list[Path | None]:
    base = base_of(model)
    name = getattr(getattr(base, "config", None), "name_or_path", None)
    return [local_model_folder(adapter), local_model_folder(name, origin_of(base).revision)]


def load_tokenizer(name: str | os.PathLike) -> Any:
    """The tokenizer of a folder or Hub id.

    Raises:
        MuscleError: There is none, or it is damaged.
    """
    from muscle_hf.files import readable

    with readable(f"the tokenizer of {os.path.basename(os.fspath(name))}"):
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def set_reader(
    teacher: Teacher, given: Any, tokenizer: Any, new: nn.Module, own_words: Callable[[Any, Any], bool]
) -> None:
    """Find out how v1 reads rows of v2's ids, and leave that, and v1's tokenizer, at the teacher.

    Args:
        teacher: v1.
        given: Its tokenizer, or that's folder or Hub id; None to look beside its adapter and its base.
        tokenizer: v2's, or None to look beside its model.
        new: v2's model.
        own_words: Says whether v1 is given words of its own, from its tokenizer and v2's.

    Raises:
        MuscleError: The tokens of one are not byte strings, so that they cannot be compared, or models of this kind
            are not trained across tokenizers.
    """
    if teacher.on_students_base:
        teacher.tokenizer = own_tokenizer(given, []) or tokenizer
        mine = tokenizer
    else:
        mine, teacher.tokenizer = find_tokenizers(tokenizer, given, teacher, new) or (tokenizer, None)
    words = own_words(teacher.tokenizer, mine)
    if teacher.tokenizer is not None and (words or mine.get_vocab() != teacher.tokenizer.get_vocab()):
        from muscle_hf.teachers.reading import reader_of

        teacher.reader = reader_of(teacher.tokenizer, mine, kind_of(new), own_words=words)


def find_tokenizers(tokenizer: Any, old_tokenizer: Any, teacher: Teacher, new: nn.Module) -> tuple[Any, Any] | None:
    """v2's tokenizer and v1's.

    Args:
        tokenizer: v2's, or None to look beside the model.
        old_tokenizer: v1's, or its folder or Hub id, or None to look beside the model.
        teacher: v1.
        new: v2's model.

    Returns:
        None where one of them is not known, but both number as many tokens.

    Raises:
        MuscleError: One is not known, and they number different ones.
    """
    own = own_tokenizer(tokenizer, _folders_of(new))
    olds = [folder for model in teacher.models for folder in _folders_of(model, teacher.source)]
    others = own_tokenizer(old_tokenizer, olds)
    if own is not None and others is not None:
        return own, others
    old = teacher.models[0] if teacher.models else new
    if _same_embeddings(old, new) or (input_embeddings(old) is None and input_embeddings(new) is None):
        return None  # one base, or models of sound, say: there are no tokens to number
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
    return None


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
    if not recorded or not present or same_name(recorded, present):
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


def same_name(one: str, other: str) -> bool:
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
    if any(isinstance(layer, BaseTunerLayer) and layer.merged for layer in model.modules()):
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
