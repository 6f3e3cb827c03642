"""What is used of transformers."""

from __future__ import annotations

# What weights are called in files and what in models, which is not the same for many architectures.
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming, rename_source_key

# Which classes there are by a configuration's type.
from transformers.models.auto import modeling_auto

# Uploads of checkpoints that are under way, in the attribute of Trainer that its own code waits for.
from transformers.utils import PushInProgress

# How a model says by what it is quantized.
from transformers.utils.quantization_config import QuantizationMethod

__all__ = [
    "PRIVATE",
    "PushInProgress",
    "QuantizationMethod",
    "WeightRenaming",
    "get_model_conversion_mapping",
    "modeling_auto",
    "rename_source_key",
]

# By owner: name -> why.
PRIVATE = {
    "Trainer": {
        "_finish_current_push": "overridden: uploads that failed are said",
        "_get_collator_with_removed_columns": "rows are looked at before training as its loaders show them",
        "_get_num_items_in_batch": "overridden: the tokens that are trained on are counted",
        "_get_output_dir": "where a checkpoint will be, to write it there whole or not at all",
        "_hp_search_setup": "overridden: each trial has teachers and an objective of its own",
        "_inner_training_loop": "overridden: what holds only while training runs",
        "_load_best_model": "overridden: the student's adapter alone is read",
        "_load_from_checkpoint": "overridden: the student's adapter alone is read",
        "_prepare_inputs": "teachers are calibrated on batches as training sees them",
        "_push_from_checkpoint": "overridden: the adapter is published without optimizer states",
        "_remove_unused_columns": "rows are looked at before training as its loaders show them",
        "_save": "overridden: the student's adapter alone is written",
        "_save_checkpoint": "overridden: a checkpoint is whole or not there",
        "_set_signature_columns_if_needed": "overridden: masks and marks of rows reach the batch",
    },
    "PreTrainedConfig": {"_attn_implementation": "a cache of hidden states belongs to one attention"},
    "PreTrainedModel": {
        "_hf_peft_config_loaded": "an adapter of transformers' own integration is refused",
        "_is_stateful": "recurrent layers carry their state across packed sequences",
        "_keep_in_fp32_modules": "a base that half precision leaves parts of has no fingerprint from files alone",
        "_keep_in_fp32_modules_strict": "as _keep_in_fp32_modules",
    },
    # Set where a configuration is read from the Hub, so that no class has it.
    "a configuration from the Hub": {"_commit_hash": "which commit a base was loaded at"},
}
