"""What a model's weights are, independent of wrappers, file layout and sharding: the same content has the same hash.

Under ZeRO-3 ``from_pretrained`` leaves a model whose weights are split over the processes. They are put together again
one at a time, for which all processes have to call what reads weights here.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor, nn

from muscle_hf.compat.peft import AuxiliaryTrainingWrapper, BaseTunerLayer, ModulesToSaveWrapper
from muscle_hf.compat.transformers import WeightRenaming, get_model_conversion_mapping, rename_source_key
from muscle_hf.errors import MuscleError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_of(model: nn.Module) -> PreTrainedModel:
    """The base model inside a ``PeftModel``, or the model itself."""
    return cast("PreTrainedModel", model.get_base_model() if isinstance(model, PeftModel) else model)


def input_embeddings(model: nn.Module) -> nn.Embedding | None:
    """The base's own layer that looks tokens up; None in a model that reads none (sound, images)."""
    try:
        layer = base_of(model).get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    around = ("original_module", "token_adapter", "base_layer")
    while layer is not None and (inner := next((name for name in around if name in layer._modules), None)):
        layer = layer.get_submodule(inner)
    return cast("nn.Embedding | None", layer)


def base_weights(model: nn.Module, adapter: str | None = None) -> dict[str, Tensor]:
    """The base's own tensors by the names they have without adapters, as the plain model's ``state_dict`` gives them
    (a quantized base: packed data and statistics); what ZeRO-3 has split is read by :func:`whole`.

    What ``adapter`` replaces as a whole (``modules_to_save``) is left out: a classifier's head is drawn at random each
    time its base is loaded, and then plays no part.
    """
    base = base_of(model)
    # An output layer tied to the embedding is one tensor under two names; files hold it once.
    tied = set(getattr(base, "all_tied_weights_keys", None) or ())
    weights, left_out = {}, set()
    for name, module in own_modules(base):
        of_adapters = _adapter_names(module)
        if isinstance(module, AuxiliaryTrainingWrapper):
            left_out.update(f"{name}.{key}" for key in of_adapters)
        if isinstance(module, ModulesToSaveWrapper) and adapter is not None and adapter in module.modules_to_save:
            left_out.add(f"{name}.original_module")
        if left_out and not left_out.isdisjoint(itertools.accumulate(name.split("."), "{}.{}".format)):
            continue
        held: dict[str, Any] = {}
        if module._modules or type(module).state_dict is nn.Module.state_dict:
            module._save_to_state_dict(held, "", keep_vars=True)
        else:  # some quantized layers have their own way
            module.state_dict(destination=held, keep_vars=True)
        for wrapper in (".token_adapter", ".base_layer", ".original_module"):
            name = name.replace(wrapper, "")
        for key, tensor in held.items():
            plain = f"{name}.{key}" if name else key
            if isinstance(tensor, Tensor) and key not in of_adapters and plain not in tied:
                # A detached tensor would have lost what ZeRO-3 knows of it.
                weights[plain] = tensor if _is_split(tensor) else tensor.detach()
    return weights


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules of a model, under each of their names, without the many in which layers of PEFT keep adapters."""
    waiting = [("", model)]
    while waiting:
        name, module = waiting.pop()
        yield name, module
        if parts := module._modules:
            left_out = _adapter_names(module) if isinstance(module, BaseTunerLayer) else ()
            prefix = f"{name}." if name else ""
            named = ((prefix + key, part) for key, part in reversed(parts.items()) if key not in left_out)
            waiting += [(key, part) for key, part in named if part is not None]


def _adapter_names(module: nn.Module) -> Collection[str]:
    """What holds adapters in a layer of PEFT."""
    if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
        return ()
    return {*module.adapter_layer_names, *module.other_param_names}


def _is_split(tensor: Tensor) -> bool:
    return hasattr(tensor, "ds_id")


def _shape_of(tensor: Tensor) -> torch.Size:
    return getattr(tensor, "ds_shape", tensor.shape)


@contextlib.contextmanager
def whole(tensor: Tensor) -> Iterator[Tensor]:
    """Within the block a tensor is whole, also one that ZeRO-3 has split; then all processes have to call this."""
    if not _is_split(tensor):
        yield tensor
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([tensor]):
        yield tensor.detach()


def same_weights(some: Mapping[str, Tensor], those: Mapping[str, Tensor]) -> bool:
    """Whether some tensors are, bit by bit, those of the same names in a model; stops at the first difference."""
    if not some.keys() <= those.keys():
        return False
    for name, tensor in some.items():
        match = those[name]
        if _shape_of(tensor) != _shape_of(match) or tensor.dtype != match.dtype:
            return False
        with whole(tensor) as mine, whole(match) as theirs:
            if not _same_bits(mine, theirs.to(mine.device)):
                return False
    return True


def _same_bits(one: Tensor, other: Tensor) -> bool:
    pair = one, other
    if all(type(t) is Tensor and t.is_contiguous() and t.nbytes % 8 == t.storage_offset() == 0 for t in pair):
        # `torch.equal` takes as long for each element, whatever its size.
        pair = one.view(-1).view(torch.int64), other.view(-1).view(torch.int64)
    return torch.equal(*pair)


def same_as_files(weights: Mapping[str, Tensor], folder: Path, base: nn.Module) -> bool:
    """Whether a model's weights are those of the safetensors files in a folder, cast to the model's dtypes; what the
    files hold beyond them (a head of another kind) does not count."""
    places = _places_of(weights, folder, base)
    if not weights or len(places) < len(weights):
        return False
    with contextlib.ExitStack() as stack:
        handles = {file: stack.enter_context(safe_open(file, "pt")) for file in {file for file, _ in places.values()}}
        for name, match in weights.items():
            file, written = places[name]
            tensor = handles[file].get_tensor(written)
            if _shape_of(match) != tensor.shape:
                return False
            with whole(match) as mine:
                if not torch.equal(mine, tensor.to(mine)):
                    return False
    return True


def content_hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of tensors, in the order of their names: 64 hex digits. On the meta
    device they have no content (MuscleError)."""
    return _hash(sorted(tensors, key=lambda pair: pair[0]))


def _places_of(names: Iterable[str], folder: Path, base: nn.Module) -> dict[str, tuple[Path, str]]:
    """Where a model's weights are in the safetensors files of a folder, name -> file and the name in it; not those
    that are there under none of their names, since they are made or converted while a model is loaded."""
    wanted, loaded = set(names), _names_when_loaded(base)
    places: dict[str, tuple[Path, str]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            written = list(handle.keys())
        for name in written:
            if (match := next((known for known in loaded(name) if known in wanted), None)) is not None:
                places[match] = file, name
    return places


def _names_when_loaded(base: nn.Module) -> Callable[[str], list[str]]:
    """What a weight of a file may be called in a model: a body saved on its own has names without the model's prefix,
    and transformers renames what some architectures were published with."""
    prefix = getattr(base, "base_model_prefix", "")
    found = get_model_conversion_mapping(cast("PreTrainedModel", base))
    renamings = [change for change in found if isinstance(change, WeightRenaming)]

    def names(written: str) -> list[str]:
        renamed, _ = rename_source_key(written, renamings, [])
        return [n for name in (written, renamed) for n in (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}."))]

    return names


def describe_quantization(config: Any) -> dict[str, Any] | None:
    """How a base is quantized, as plain data; None if it is not."""
    quantization = getattr(config, "quantization_config", None)
    if quantization is None:
        return None
    plain = quantization if isinstance(quantization, dict) else quantization.to_dict()
    return {key: value for key, value in plain.items() if isinstance(value, (str, bool, int, float)) and value}


def folder_hash(folder: Path, dtype: torch.dtype | None = None) -> str:
    """The content hash of the safetensors files in a folder, as one model; a snapshot's are read once. Floating point
    tensors are cast to ``dtype`` first, to compare with a model that was loaded so."""
    from muscle_hf.teachers.snapshots import remembered

    def tensors() -> Iterator[tuple[str, Tensor]]:
        if not (files := sorted(Path(folder).glob("*.safetensors"))):
            raise MuscleError(f"{folder} holds no .safetensors file; other formats are not read")
        for file in files:
            with safe_open(file, framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118 - a safetensors handle is not iterable
                    tensor = handle.get_tensor(name)
                    yield name, tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor

    return remembered(folder, f"as one model, {dtype}", lambda: content_hash(tensors()))


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in tensors:
        if tensor.is_meta:
            raise MuscleError(f"the weight {name!r} is on the meta device: load the model's weights first")
        with whole(tensor) as together:
            plain = together.detach().to("cpu").contiguous()
            digest.update(json.dumps([name, str(plain.dtype).removeprefix("torch."), list(plain.shape)]).encode())
            digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_quantized(model: nn.Module) -> bool:
    """Whether the base's weights are stored quantized (bitsandbytes, GPTQ, ...)."""
    return getattr(base_of(model), "quantization_method", None) is not None or getattr(
        base_of(model), "is_quantized", False
    )
