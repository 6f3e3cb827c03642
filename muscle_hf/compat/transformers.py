"""What is used of transformers."""

# What weights are called in files and what in models, which is not the same for many architectures.
from transformers.conversion_mapping import get_model_conversion_mapping as get_model_conversion_mapping

# What byte-level vocabularies write for each byte.
from transformers.convert_slow_tokenizer import bytes_to_unicode as bytes_to_unicode

# The fast form of a tokenizer that is written in Python, whose tokens are then read as those of others.
from transformers.convert_slow_tokenizer import convert_slow_tokenizer as convert_slow_tokenizer
from transformers.core_model_loading import WeightRenaming as WeightRenaming
from transformers.core_model_loading import rename_source_key as rename_source_key
from transformers.modeling_outputs import CausalLMOutputWithPast

# Which classes there are by a configuration's type.
from transformers.models.auto import modeling_auto as modeling_auto

# How a model says by what it is quantized.
from transformers.utils.quantization_config import QuantizationMethod as QuantizationMethod

# What models call their cache, taken and returned: another name up to transformers 5.23.
CACHE = "cache" if "cache" in CausalLMOutputWithPast.__dataclass_fields__ else "past_key_values"
