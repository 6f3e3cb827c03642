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


def active_adapter(model: PeftModel) -> str:
    """The name of a model's active adapter; the annotation allows several, which its own setters do not make."""
    return cast("str", model.active_adapter)
