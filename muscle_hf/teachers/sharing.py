"""Which adapters may share a base with others: those that provably do nothing but add to what its layers say.

PEFT has dozens of kinds of adapters and options. Some change the base when they are put on it (PiSSA, OLoRA, KaSA),
train parts of it (``bias``), or rebuild it (``layer_replication``): on a base that others use, they change these too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeGuard

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn

from muscle_hf.compat.peft import check_target_module_exists
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.weights import base_weights, own_modules, whole

# Settings of a LoRA that say where it is and how large, or nothing of what it computes. Any other setting, also one
# that a later version of PEFT knows, has to be at its default.
_PLAIN_SETTINGS = frozenset(
    {
        "r",
        "lora_alpha",
        "lora_dropout",
        "target_modules",
        "exclude_modules",
        "fan_in_fan_out",
        "use_rslora",
        "use_dora",
    }
    | {"lora_bias", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern", "modules_to_save"}
    | {"init_lora_weights", "eva_config", "runtime_config", "task_type", "peft_type", "auto_mapping", "peft_version"}
    | {"base_model_name_or_path", "revision", "inference_mode"}
)
# Initialisations that leave the base alone, and those that change it in the same way at every loading.
NEUTRAL_STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
_REPEATABLE_STARTS = ("pissa", "olora", "loftq")
_LORA_WEIGHT = re.compile(r"\.lora_([AB]|magnitude_vector)(\.(weight|bias))?$|\.lora_embedding_[AB]$")
# Task types whose heads PEFT adds to ``modules_to_save`` by itself.
_WITH_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
_CONVERT = (
    "Save it as a plain LoRA (save_pretrained(..., path_initial_model_for_weight_conversion=...)) and load that, or "
    "merge it into the base and pass a peft_config"
)


def adds_only(config: PeftConfig) -> TypeGuard[LoraConfig]:
    """Whether an adapter of this configuration is a plain LoRA, which leaves the base alone that it is put on."""
    if type(config) is not LoraConfig or not starts_neutral(config) or config.init_lora_weights == "mica":
        return False
    plain = LoraConfig()
    changed = (f.name for f in dataclasses.fields(config) if getattr(config, f.name) != getattr(plain, f.name))
    return _PLAIN_SETTINGS.issuperset(changed)


def starts_neutral(config: PeftConfig) -> bool:
    """Whether the initialisation of an adapter leaves the base's weights alone."""
    return getattr(config, "init_lora_weights", None) in NEUTRAL_STARTS


def can_share(model: PeftModel, config: PeftConfig | None) -> bool:
    """Whether a further adapter on a model's base, or none (all adapters off), computes there what it computes on a
    base of its own."""
    if config is None:
        return not any(changes_base(other) for other in model.peft_config.values())
    configs = (config, *model.peft_config.values())
    plain = [each for each in configs if adds_only(each)]
    return len(plain) == len(configs) and not _merge_at_each_forward(model, plain) and _replace_apart(model, plain)


def file_adds_only(folder: Path, config: LoraConfig, model: PeftModel) -> bool:
    """Whether the file of an adapter, whose configuration :func:`adds_only`, holds nothing for the base that a model
    does not have already."""
    replaced = tuple(f"{module}." for module in config.modules_to_save or ())
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        # PEFT saves the embeddings of the base with adapters that are put on them.
        others = [name for name in file.keys() if not _LORA_WEIGHT.search(name)]  # noqa: SIM118 - is not iterable
        base = base_weights(model) if others else {}
        for name in others:
            match = base.get(name.removeprefix("base_model.model.").replace(".base_layer", ""))
            if match is None or list(match.shape) != file.get_slice(name).get_shape():
                return False
            if not any(part in name for part in replaced) and not torch.equal(match, file.get_tensor(name).to(match)):
                return False
    return True


def _merge_at_each_forward(model: PeftModel, configs: Sequence[LoraConfig]) -> bool:
    """Whether an adapter is on an attention module, where PEFT adds it to the base for each forward, which rounds."""
    return any(
        isinstance(module, nn.MultiheadAttention)
        and any(check_target_module_exists(config, name.removesuffix(".base_layer")) for config in configs)
        for name, module in own_modules(model.get_base_model())
    )


def _replace_apart(model: PeftModel, configs: Sequence[LoraConfig]) -> bool:
    """Whether what only some adapters replace as a whole (``modules_to_save``) is none of the others' business."""
    if len({config.task_type for config in configs} & {None, *_WITH_HEADS}) > 1:
        return False  # PEFT makes the first adapter's head a part of all
    replaced = [set(config.modules_to_save or ()) for config in configs]
    uncommon = tuple(set.union(*replaced) - set.intersection(*replaced))
    for name, module in own_modules(model.get_base_model()) if uncommon else ():
        if name.endswith(uncommon):
            inner = getattr(module, "original_module", module)
            inner = getattr(inner, "base_layer", inner)
            if any(inner.children()) or any(check_target_module_exists(config, name) for config in configs):
                return False
    return True


def changes_base(config: PeftConfig) -> bool:
    """Whether an adapter is known to change what its base computes with all adapters off."""
    return (
        getattr(config, "bias", "none") != "none"
        or bool(getattr(config, "layer_replication", None))
        or getattr(config, "kasa_config", None) is not None
        or (hasattr(config, "init_lora_weights") and not starts_neutral(config))
    )


def check_student(config: PeftConfig, owner: str) -> None:
    """Refuse an adapter that cannot be trained beside a copy of itself, or would be another one once it was saved;
    ``owner`` is what the user passed it as."""
    if (bias := getattr(config, "bias", "none")) != "none":
        raise MuscleError(
            f"the adapter of {owner} trains the base's biases (bias={bias!r}), which the teacher on the same "
            "base shares; train it with bias='none', or merge it into the base and pass a peft_config"
        )
    if getattr(config, "kasa_config", None) is not None:
        raise MuscleError(
            f"the adapter of {owner} is of KaSA (kasa_config), which cuts the base's weights again for each adapter "
            "that is put on it. Merge it into the base and pass a peft_config"
        )
    start = getattr(config, "init_lora_weights", None)
    if not starts_neutral(config) and start not in _REPEATABLE_STARTS:
        raise MuscleError(
            f"the adapter of {owner} was initialised with init_lora_weights={start!r}, which changed the base's "
            f"weights in a way that loading it again does not repeat. {_CONVERT}"
        )


@contextlib.contextmanager
def same_base_after(model: nn.Module, config: PeftConfig, owner: str) -> Iterator[None]:
    """Make sure that putting an adapter on a model within the block leaves the weights and layers of its base alone.

    Nothing is read for an adapter that is known to.
    """
    before = None if adds_only(config) else _checksums(model)
    yield
    if before is not None and _checksums(model) != before:
        raise MuscleError(
            f"the adapter of {owner} changes the weights or layers of the base when it is put on it, which the "
            "teacher on the same base shares. Load the base again, and put a plain LoRA on it "
            "(init_lora_weights=True, no layer_replication)"
        )


def _checksums(model: nn.Module) -> dict[str, int]:
    """A number for each tensor of a base that changes with its content; far quicker than a hash."""
    found = {}
    for name, tensor in base_weights(model).items():
        with whole(tensor) as together:
            found[name] = int(together.contiguous().view(-1).view(torch.uint8).sum(dtype=torch.int64))
    return found
