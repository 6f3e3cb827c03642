"""Adapters' files: read strictly into a model that has the adapter, or put beside its others."""

from __future__ import annotations

from pathlib import Path

from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file

from muscle_hf.errors import MuscleError
from muscle_hf.files import readable
from muscle_hf.teachers.copies import add_adapter, same_state
from muscle_hf.teachers.sharing import adds_only, can_share, file_adds_only


def read_adapter(model: PeftModel, name: str, folder: Path) -> None:
    """Read the weights of an adapter that the model already has from ``adapter_model.safetensors`` in a folder, or
    refuse those that are not of this adapter on this base. Modes, gradients and the active adapter stay as they
    are."""
    file = Path(folder) / SAFETENSORS_WEIGHTS_NAME
    if not file.is_file():
        raise MuscleError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}; pickled adapters are not read")
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with readable(f"the weights in {folder}"):
        weights = load_file(file)
    if not weights:  # so PEFT saves X-LoRA, whose classifier would be drawn at random
        raise MuscleError(f"the adapter in {folder} has no weights in its file; save it again where it was trained")
    try:
        result = set_peft_model_state_dict(model, weights, adapter_name=name)
    except (RuntimeError, KeyError) as error:
        raise MuscleError(f"the adapter in {folder} was trained for another base: {error}") from error
    missing = _missing(model, name, result.missing_keys)
    # Of tied and of resized embeddings PEFT saves some tensors twice, and reads them once.
    read = [tensor for key, tensor in weights.items() if key not in result.unexpected_keys]
    unexpected = [k for k in result.unexpected_keys if not any(same_state(weights[k], tensor) for tensor in read)]
    if missing or unexpected:
        raise MuscleError(
            f"the adapter in {folder} was trained for another base, or its file is incomplete: "
            f"{len(missing)} weights are missing, {len(unexpected)} have no place; first: {(missing + unexpected)[0]}"
        )
    for parameter, flag in flags:
        parameter.requires_grad = flag


def saved_tensors(model: PeftModel, name: str) -> set[int]:
    """The ``id()`` of the parameters and buffers that PEFT writes into an adapter's file."""
    # The base's embeddings are no part of an adapter, and looking whether they were resized needs the Hub.
    saved = get_peft_model_state_dict(model, model.state_dict(keep_vars=True), name, save_embedding_layers=False)
    return {id(tensor) for tensor in saved.values()}


def _missing(model: PeftModel, name: str, keys: list[str]) -> list[str]:
    """Those of the names left empty whose tensors belong into an adapter's file, and which no other name filled."""
    # All of the base is among them, and of an adapter only what has its name.
    if not any(name in key.split(".") for key in keys):
        return []
    tensors, empty = model.state_dict(keep_vars=True), set(keys)
    # Tied layers and banks that layers share are one tensor under many names, and in the file under one of them.
    filled = {id(tensor) for key, tensor in tensors.items() if key not in empty}
    wanted = saved_tensors(model, name) - filled
    return [key for key in keys if id(tensors.get(key)) in wanted]


def put_beside(model: PeftModel, folder: Path, config: PeftConfig, name: str) -> bool:
    """Load an adapter beside those of a model on its base, if it computes there what it computes on a base of its own;
    whether it was loaded. It is not activated."""
    if not (can_share(model, config) and adds_only(config) and file_adds_only(folder, config, model)):
        return False
    add_adapter(model, name, config, autocast_dtype=True)
    read_adapter(model, name, folder)
    return True
