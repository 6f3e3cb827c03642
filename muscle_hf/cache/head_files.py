"""The output head of a task model alone, read from its files: with its hidden states cached, no more is needed."""

from __future__ import annotations

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn

from muscle_hf.cache.fingerprint import TeacherFiles
from muscle_hf.errors import MuscleError
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.weights import find_weights


def load_head(files: TeacherFiles, kind: ModelKind, *, dtype: torch.dtype | str | None = "auto") -> Head:
    """Load a task model's output head from its files; its body stays without weights.

    Raises:
        MuscleError: The model has no head that can be called apart, the adapter changes it, or the files do not hold
            it as it is once loaded.
    """
    base = files.build_on_meta(kind, dtype)
    head = Head(base)
    tied = getattr(base, "all_tied_weights_keys", None) or {}
    # The layer's own weights, and what the model itself keeps beside its layers (a scale, a bias of the logits).
    inner = {name: module for name, module in base.named_modules() if module is head.module}
    path = next(iter(inner))
    owners = {f"{path}.{key}": (head.module, key) for key, _ in _own_tensors(head.module, recurse=True)}
    owners |= {key: (base, key) for key, _ in _own_tensors(base, recurse=False)}
    sources = {key: tied.get(key, key) for key in owners}
    _refuse_changed_head(files, {path, *(source.rpartition(".")[0] for source in sources.values())} - {""})
    places = find_weights(sources.values(), files.base, base)
    for key, (module, inside) in owners.items():
        file, written = places[sources[key]]
        with safe_open(file, framework="pt") as handle:
            _replace(module, inside, handle.get_tensor(written))
    return head


def _own_tensors(module: nn.Module, recurse: bool) -> list[tuple[str, torch.Tensor]]:
    kept = [*module.named_parameters(recurse=recurse), *module.named_buffers(recurse=recurse)]
    if recurse and any(module.children()):
        raise MuscleError(f"the output layer is a {type(module).__name__}, whose weights cannot be read apart")
    return [(name, tensor) for name, tensor in kept if tensor.is_meta]


def _replace(module: nn.Module, name: str, loaded: torch.Tensor) -> None:
    expected = getattr(module, name)
    if loaded.shape != expected.shape:
        raise MuscleError(
            f"the head's {name} is {list(loaded.shape)} in the file, {list(expected.shape)} in the model"
        )
    tensor = loaded.to(expected.dtype)
    setattr(module, name, nn.Parameter(tensor, requires_grad=False) if isinstance(expected, nn.Parameter) else tensor)


def _refuse_changed_head(files: TeacherFiles, modules: set[str]) -> None:
    if files.adapter is None:
        return
    with safe_open(files.adapter.folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as handle:
        names = list(handle.keys())
    for name in names:
        inside = name.removeprefix("base_model.model.")
        if any(inside.startswith(f"{module}.") for module in modules):
            raise MuscleError(
                f"the adapter {files.adapter.name} changes the output layer ({name}), so that the base's head alone "
                "does not give its logits; its body has to be loaded too"
            )
