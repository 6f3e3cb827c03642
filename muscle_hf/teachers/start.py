"""Where the student starts from: v2's task adapter, or v1's on v2's base.

Two adapters that are trained on the same rows from different draws disagree on many answers, also on one and the same
base; starting from v1's keeps what the draw decided (docs/explanation/study.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from peft import PeftModel
from peft.utils import PeftType
from transformers import PreTrainedConfig

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.adapter_files import saved_tensors
from muscle_hf.teachers.adapters import STUDENT_ADAPTER, adapter_parameters
from muscle_hf.teachers.blueprint import blueprint, target_layers
from muscle_hf.teachers.checks import only_active_adapter
from muscle_hf.teachers.copies import adapter_state, differing_state
from muscle_hf.teachers.sharing import changes_base
from muscle_hf.teachers.teacher import Teacher

# What a LoRA's matrices are multiplied with, beyond their shapes.
_SCALING = ("lora_alpha", "alpha_pattern", "use_rslora", "use_dora")
_INSTEAD = "Train both adapters with one configuration on bases of one size, or leave start_from at 'new'"


def start_from_teacher(student: PeftModel, teacher: Teacher, *, fresh: bool = False) -> None:
    """Give the student the weights of v1's adapter; dropout and the like stay as they are. ``fresh``: the student's
    adapter is new, on a v2 whose task training is in its weights. One that does not fit is refused."""
    if fresh:
        raise MuscleError(
            "start_from is 'old', but v2's task training is merged into model: v1's adapter would come on top of it. "
            "Pass v2's task model as a PeftModel, or leave start_from at 'new'"
        )
    if teacher.adapter is None or not isinstance(teacher.model, PeftModel):
        raise MuscleError(f"start_from is 'old', but old_model has no adapter that v2's base could get. {_INSTEAD}")
    start_from(student, teacher.model, teacher.adapter, STUDENT_ADAPTER)


def start_from(model: PeftModel, old: PeftModel, old_adapter: str | None = None, adapter: str | None = None) -> None:
    """Give an adapter the weights of another model's, whichever base that was trained on; by default the active ones.
    Adapters that differ in kind, layers, shapes or scaling are refused, and nothing is changed."""
    old_adapter = old_adapter or only_active_adapter(old, "old_model")
    adapter = adapter or only_active_adapter(model, "model")
    theirs, own = old.peft_config[old_adapter], model.peft_config[adapter]
    if theirs.peft_type != own.peft_type:
        raise MuscleError(
            f"start_from is 'old', but v1's adapter is of type {PeftType(theirs.peft_type).value}, v2's of type "
            f"{PeftType(own.peft_type).value}. {_INSTEAD}"
        )
    for owner, config in (("v1", theirs), ("v2", own)):
        if changes_base(config):
            raise MuscleError(
                f"start_from is 'old', but {owner}'s adapter changed the base that it was put on (init_lora_weights, "
                f"bias, layer_replication, ...), so that its weights say nothing on another. {_INSTEAD}"
            )
    weights, parameters = adapter_parameters(old, old_adapter), adapter_parameters(model, adapter)
    _compare({key: w.shape for key, w in weights.items()}, {key: p.shape for key, p in parameters.items()}, "adapters")
    for key in _SCALING:
        if getattr(theirs, key, None) != getattr(own, key, None):
            raise MuscleError(
                f"start_from is 'old', but v1's adapter has {key}={getattr(theirs, key, None)}, v2's "
                f"{key}={getattr(own, key, None)}, with which the same weights say something else. {_INSTEAD}"
            )
    # What is drawn or computed from the base is not in the adapter's file, and would be v2's again once it is loaded.
    saved = saved_tensors(model, adapter)
    differ = differing_state(adapter_state(old, old_adapter), adapter_state(model, adapter))
    differ = [key for key in differ if "dropout" not in key]
    differ += [key for key, p in parameters.items() if id(p) not in saved and not torch.equal(p, weights[key].to(p))]
    if differ:
        raise MuscleError(f"start_from is 'old', but {differ[0]} differs in v1's adapter and v2's. {_INSTEAD}")
    with torch.no_grad():
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])


def check_bases(old: PreTrainedConfig, new: PreTrainedConfig, target_modules: str | Sequence[str]) -> None:
    """Refuse to put an adapter on one causal language model that was on another, where the layers that
    ``target_modules`` names differ in name or shape by their configurations; no weights are made or read."""
    theirs, own = (target_layers(blueprint(config), target_modules) for config in (old, new))
    sizes = {name: layer.weight.shape for name, layer in theirs.items()}
    _compare(sizes, {name: layer.weight.shape for name, layer in own.items()}, "bases")


def require_own_tokens(level: str | None) -> None:
    """Refuse to put v1's adapter on a base with other tokens, by how far the tokenizers agree (None: not known)."""
    if level == "foreign":
        raise MuscleError(
            "start_from is 'old', but v1 and v2 have different tokenizers, and v1's adapter knows its own tokens "
            "alone; leave start_from out: the adapter then starts from v2's and follows v1"
        )


def _compare(old: Mapping[str, torch.Size], new: Mapping[str, torch.Size], what: str) -> None:
    only = sorted(old.keys() ^ new.keys())
    if only:
        raise MuscleError(
            f"start_from is 'old', but {len(only)} layers are in one of the {what} of v1 and v2 alone ({only[0]}, "
            f"...). {_INSTEAD}"
        )
    differ = [key for key in new if old[key] != new[key]]
    if differ:
        shapes = " and ".join(str(list(of[differ[0]])) for of in (old, new))
        raise MuscleError(
            f"start_from is 'old', but {len(differ)} of {len(new)} layers have other shapes in the {what} of v1 and "
            f"v2 ({differ[0]}: {shapes}). {_INSTEAD}"
        )
