"""What is used of PEFT."""

from __future__ import annotations

from typing import cast

from peft import PeftModel

# Which modules a configuration adapts, to read it off without building the adapter.
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_target_module_exists
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND

# Modules that an adapter trains whole or in rows (modules_to_save, trainable tokens), and what a pattern of a
# configuration (rank_pattern, alpha_pattern) says of one.
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper, get_pattern_key

__all__ = [
    "INCLUDE_LINEAR_LAYERS_SHORTHAND",
    "PRIVATE",
    "AuxiliaryTrainingWrapper",
    "BaseTuner",
    "BaseTunerLayer",
    "ModulesToSaveWrapper",
    "active_adapter",
    "check_target_module_exists",
    "get_pattern_key",
]

_SWITCH = "adapters are switched without walking the model: PEFT's own way costs as much as starting a forward pass"
# By owner: name -> why.
PRIVATE = {
    "PeftModel": {"_adapters_disabled": _SWITCH},
    "BaseTunerLayer": {"_active_adapter": _SWITCH, "_disable_adapters": _SWITCH},
    "AuxiliaryTrainingWrapper": {"_active_adapter": _SWITCH, "_adapters": _SWITCH, "_disable_adapters": _SWITCH},
}


def active_adapter(model: PeftModel) -> str:
    """The name of a model's active adapter; the annotation allows several, which its own setters do not make."""
    return cast("str", model.active_adapter)
