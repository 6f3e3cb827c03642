"""What is used of PEFT."""

from typing import cast

from peft import PeftModel

# Which modules a configuration adapts, to read it off without building the adapter.
from peft.tuners.tuners_utils import BaseTuner as BaseTuner
from peft.tuners.tuners_utils import BaseTunerLayer as BaseTunerLayer
from peft.tuners.tuners_utils import check_target_module_exists as check_target_module_exists
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND as INCLUDE_LINEAR_LAYERS_SHORTHAND

# Modules that an adapter trains whole or in rows (modules_to_save, trainable tokens), and what a pattern of a
# configuration (rank_pattern, alpha_pattern) says of one.
from peft.utils.other import AuxiliaryTrainingWrapper as AuxiliaryTrainingWrapper
from peft.utils.other import ModulesToSaveWrapper as ModulesToSaveWrapper
from peft.utils.other import get_pattern_key as get_pattern_key
from torch import nn

from muscle_hf.compat.transformers import CACHE
from muscle_hf.errors import MuscleError


def active_adapter(model: PeftModel) -> str:
    """The name of a model's active adapter; the annotation allows several, which its own setters do not make."""
    return cast("str", model.active_adapter)


def check_generates(model: nn.Module) -> None:
    """Refuse to generate with virtual tokens where PEFT 0.21 does not find the cache, and puts them in again at every
    new token: from transformers 5.24 on."""
    config = getattr(model, "active_peft_config", None)
    if CACHE != "past_key_values" and config is not None and config.is_prompt_learning:
        raise MuscleError(
            f"PEFT 0.21 generates wrong answers with {config.peft_type.value} adapters and transformers 5.24; "
            'pip install "transformers<5.24"'
        )
