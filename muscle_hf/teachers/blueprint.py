"""A causal language model from its configuration alone: its layers and their shapes; no weights are made or read."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from peft import LoraConfig
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from muscle_hf.compat.peft import INCLUDE_LINEAR_LAYERS_SHORTHAND, check_target_module_exists
from muscle_hf.teachers.kinds import CAUSAL_LM
from muscle_hf.teachers.loading import auto_class_of


def blueprint(config: PreTrainedConfig) -> PreTrainedModel:
    """The model of a configuration, on the meta device."""
    with torch.device("meta"):
        return auto_class_of(config, CAUSAL_LM).from_config(config, trust_remote_code=False)


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Linear]:
    """The linear layers of a model by name, without its output layer: those that PEFT means by ``all-linear``."""
    head = model.get_output_embeddings()
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}


def target_layers(model: PreTrainedModel, target_modules: str | Sequence[str]) -> dict[str, nn.Linear]:
    """The :func:`linear_layers` of a model that a LoRA with PEFT's ``target_modules`` is put on."""
    layers = linear_layers(model)
    if target_modules == INCLUDE_LINEAR_LAYERS_SHORTHAND:
        return layers
    config = LoraConfig(target_modules=target_modules if isinstance(target_modules, str) else list(target_modules))
    return {name: layer for name, layer in layers.items() if check_target_module_exists(config, name)}
