"""Further adapters on a base, which leave it alone: untrained, or bit-equal copies of others."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from torch import nn

from muscle_hf.compat.peft import AuxiliaryTrainingWrapper, BaseTuner, BaseTunerLayer
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.adapters import adapter_parameters, holds
from muscle_hf.teachers.sharing import adds_only, same_base_after, starts_neutral
from muscle_hf.teachers.weights import base_of, own_modules


def adapter_state(model: nn.Module, adapter: str) -> dict[str, Any]:
    """What PEFT keeps of one adapter beside its parameters: buffers, scalings, indices, by a name as in
    :func:`adapter_parameters`.
    """
    found: dict[str, Any] = {}
    for module_name, module in model.named_modules():
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper, BaseTuner)):
            continue
        module = cast("nn.Module", module)
        held = {**module._modules, **module._buffers}
        if not isinstance(module, BaseTuner):  # which keeps schedules of the training by the adapter's name
            held |= vars(module)
        for name, container in held.items():
            if name == "peft_config" or not hasattr(container, "keys") or adapter not in container:
                continue
            value = container[adapter]
            if isinstance(value, nn.Module):
                found.update({f"{module_name}.{name}.{key}": buffer for key, buffer in value.named_buffers()})
            elif not isinstance(value, nn.Parameter):
                found[f"{module_name}.{name}"] = value
    return found


def differing_state(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """The names under which two adapters have other tensors, numbers or words (:func:`adapter_state`)."""
    return [key for key in {**one, **other} if not same_state(one.get(key), other.get(key))]


def same_state(one: Any, other: Any) -> bool:
    """Whether two tensors, numbers or words that adapters hold are the same, also within lists."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return one.shape == other.shape and torch.equal(one, other.to(one))
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(same_state, one, other))
    plain = (bool, int, float, str, type(None))
    # Other objects are PEFT's own, made of the configuration.
    return one == other if isinstance(one, plain) and isinstance(other, plain) else type(one) is type(other)


def add_adapter(model: PeftModel, name: str, config: PeftConfig, *, autocast_dtype: bool = False) -> None:
    """Add an untrained adapter of a configuration, leaving the base's weights alone; it is not activated.
    ``autocast_dtype`` keeps half-precision adapters in float32, as PEFT does when it loads one."""
    config = copy.deepcopy(config)
    # AdaLoRA knows one adapter in training, and what is added here is not yet trained, if ever.
    config.inference_mode = True
    # Data-driven initialisations (PiSSA, OLoRA, ...) rewrite the base's weights; the weights come from a copy anyway.
    # Layers that are replicated already would be replicated once more.
    passing: dict[str, Any] = {} if starts_neutral(config) else {"init_lora_weights": True}
    if getattr(config, "layer_replication", None):
        passing["layer_replication"] = None
    said = {setting: getattr(config, setting) for setting in passing}
    for setting, value in passing.items():
        setattr(config, setting, value)
    try:
        model.add_adapter(name, config, autocast_adapter_dtype=autocast_dtype)
    except (ValueError, NotImplementedError, TypeError) as error:
        raise MuscleError(
            f"a second adapter cannot be put beside the trained one ({error}). Merge the adapter into the base and "
            "pass a peft_config, so that the student is a fresh LoRA"
        ) from error
    for setting, value in said.items():
        setattr(config, setting, value)


def copy_adapter(source: PeftModel, adapter: str, target: PeftModel, name: str) -> bool:
    """Add a bit-equal copy of an adapter to a model with the same base (or the same model); it is not activated. Gives
    whether PEFT was asked to add it, which turns over what is trainable."""
    if _copy_layers(source, adapter, target, name):
        return False
    with same_base_after(target, source.peft_config[adapter], "model"):
        add_adapter(target, name, source.peft_config[adapter])
    originals, copies = adapter_parameters(source, adapter), adapter_parameters(target, name)
    if originals.keys() != copies.keys():
        target.delete_adapter(name)
        raise MuscleError(f"the adapter {adapter!r} cannot be copied: its layers are not those of its configuration")
    for key, parameter in copies.items():
        # `.data` also takes over the dtype: a copy in another precision would not give the same logits.
        parameter.data = originals[key].data.to(device=parameter.device, copy=True)
    if differ := differing_state(adapter_state(source, adapter), adapter_state(target, name)):
        raise MuscleError(
            f"the adapter {adapter!r} cannot be copied: {differ[0]} is drawn or computed anew for each adapter. Merge "
            "it into the base and pass a peft_config"
        )
    return True


def _copy_layers(source: PeftModel, adapter: str, target: PeftModel, name: str) -> bool:
    """:func:`copy_adapter` of a plain LoRA, layer by layer: PEFT would match and initialise anew what is known.
    Whether it was copied: not where layers would have to be made, are on several devices, or are split (ZeRO-3)."""
    config = source.peft_config[adapter]
    if not adds_only(config) or config.modules_to_save or name in target.peft_config:
        return False
    layers = {key: m for key, m in own_modules(source) if isinstance(m, BaseTunerLayer) and holds(m, adapter)}
    there: dict[str, Any] = layers if source is target else dict(own_modules(target))
    pairs: list[tuple[Any, Any]] = [(layer, there.get(key)) for key, layer in layers.items()]
    if any(hasattr(base_of(model), "hf_device_map") for model in (source, target)):
        return False
    for layer, twin in pairs:
        weight = getattr(layer.get_base_layer(), "weight", None)
        if type(twin) is not type(layer) or not isinstance(weight, torch.Tensor) or hasattr(weight, "ds_id"):
            return False
    for layer, twin in pairs:
        device = twin.get_base_layer().weight.device
        for attribute, container in {**vars(layer), **layer._modules}.items():
            if hasattr(container, "keys") and adapter in container:
                getattr(twin, attribute)[name] = _copied(container[adapter], device)
    config = target.peft_config[name] = copy.deepcopy(config)
    config.inference_mode = True
    return True


def _copied(held: Any, device: torch.device) -> Any:
    """A frozen copy of what PEFT holds of an adapter, on a device."""
    if isinstance(held, torch.Tensor):
        copied = held.detach().to(device, copy=True)
        return nn.Parameter(copied, requires_grad=False) if isinstance(held, nn.Parameter) else copied
    if not isinstance(held, nn.Module):
        return copy.deepcopy(held)
    if isinstance(held, nn.Identity):
        return held  # has nothing of its own
    # `copy.deepcopy` of a module spends nearly all of its time in empty dictionaries of hooks.
    twin = type(held).__new__(type(held))
    own = vars(twin)
    own.update((k, v.copy() if isinstance(v, (dict, list, set)) else v) for k, v in vars(held).items())
    for name in ("_parameters", "_buffers", "_modules"):
        own[name] = {key: _copied(inner, device) for key, inner in own[name].items()}
    return twin
