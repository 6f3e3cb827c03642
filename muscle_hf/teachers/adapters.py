"""Adapters on a shared base: their parameters, and switching between them without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
from peft import PeftModel
from peft.utils import PeftType
from torch import nn

from muscle_hf.compat.peft import AuxiliaryTrainingWrapper, BaseTuner, BaseTunerLayer, active_adapter
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.weights import own_modules

# What the compatibility adapter is called in the model: `Trainer` saves and reloads only this name at the root of a
# folder.
STUDENT_ADAPTER = "default"
# Adapters that the trainer adds to the student's model to serve as frozen teachers.
NEW_ADAPTER = "muscle_new"
OLD_ADAPTER = "muscle_old"


def adapter_parameters(model: nn.Module, adapter: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, by a name that does not hold the adapter's own
    (``base_model.model.layers.0.q_proj.lora_A.weight``): the same keys for any two of the same configuration.
    ``model`` is a ``PeftModel`` or the module inside it."""
    found: dict[str, nn.Parameter] = {}
    seen = set()
    for module_name, module in own_modules(model):
        if module in seen:
            continue
        seen.add(module)
        if isinstance(module, BaseTuner):  # some kinds have parts beside the layers
            names: Iterable[str] = module._modules
        elif isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            names = module.adapter_layer_names
        else:
            continue
        for layer_name in names:
            container: Any = getattr(module, layer_name, None)
            if not hasattr(container, "keys") or adapter not in container:
                continue
            held = container[adapter]
            prefix = f"{module_name}.{layer_name}"
            if isinstance(held, nn.Module):
                found.update({f"{prefix}.{name}": parameter for name, parameter in held.named_parameters()})
            elif isinstance(held, nn.Parameter):
                found[prefix] = held
    return found


@contextlib.contextmanager
def frozen_view(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """Within the block the model is a frozen teacher: one adapter active (none if None), eval mode, no gradients.

    On exit, also by an exception, the active adapter, each module's train/eval mode and each parameter's
    ``requires_grad`` are as before. The random state is not touched.
    """
    modules = list(model.modules())
    training = [module for module in modules if module.training]
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        try:
            for module in training:
                module.training = False
            layers: list[Any] = [m for m in modules if isinstance(m, (BaseTunerLayer, AuxiliaryTrainingWrapper))]
            stack.enter_context(_switched(model, adapter, layers))
            yield
        finally:
            stack.close()
            for module in training:
                module.training = True


@contextlib.contextmanager
def _switched(model: PeftModel, adapter: str | None, layers: list[Any]) -> Iterator[None]:
    lora = all(config.peft_type is PeftType.LORA for config in model.peft_config.values())
    if not lora or any(getattr(layer, "merged", False) for layer in layers):
        with _switched_by_peft(model, adapter):
            yield
        return
    if adapter is not None and adapter not in model.peft_config:
        raise MuscleError(f"the model has no adapter {adapter!r}; it has {', '.join(model.peft_config)}")
    # PEFT walks the model several times to switch, and turns over what `requires_grad` says of every adapter: in a
    # large model that takes as long as starting a forward pass on a GPU.
    owners: tuple[Any, ...] = (model, model.base_model)
    before = [(layer, layer._active_adapter, layer._disable_adapters) for layer in layers]
    active, disabled = [owner.active_adapter for owner in owners], model._adapters_disabled
    try:
        if adapter is None:
            model._adapters_disabled = True
        for owner in owners if adapter is not None else ():
            owner.active_adapter = adapter
        for layer in layers:
            if adapter is None:
                layer._disable_adapters = True
            else:
                layer._active_adapter = [adapter] if holds(layer, adapter) else []
        yield
    finally:
        model._adapters_disabled = disabled
        for owner, was_active in zip(owners, active, strict=True):
            owner.active_adapter = was_active
        for layer, was_active, was_disabled in before:
            layer._active_adapter, layer._disable_adapters = was_active, was_disabled


def holds(layer: BaseTunerLayer | AuxiliaryTrainingWrapper, adapter: str) -> bool:
    """Whether a layer has a part of an adapter."""
    if isinstance(layer, AuxiliaryTrainingWrapper):
        return adapter in layer._adapters
    return any(adapter in getattr(layer, name) for name in layer.adapter_layer_names)


@contextlib.contextmanager
def _switched_by_peft(model: PeftModel, adapter: str | None) -> Iterator[None]:
    """The same for adapters of any kind."""
    active = active_adapter(model)
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with contextlib.ExitStack() as stack:
        try:
            if adapter is None:
                stack.enter_context(model.disable_adapter())
            else:
                model.set_adapter(adapter, inference_mode=True)
            yield
        finally:
            stack.close()
            if adapter is not None:
                model.set_adapter(active)
            for parameter, flag in trainable:
                parameter.requires_grad = flag


def keep_quantized_trainable(model: nn.Module) -> None:
    """Stop bitsandbytes' 4-bit layers from repacking themselves on CPUs with AVX512-BF16, and undo it where they did.

    They do so at their first eval-mode forward, after which training silently yields no gradients.
    """
    for _, module in cast("Iterator[tuple[str, Any]]", own_modules(model)):
        if "support_avx512bf16_for_cpu" in vars(module):
            module.support_avx512bf16_for_cpu = False
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks a layer that is to be saved
