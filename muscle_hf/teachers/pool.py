"""Bases that stay in memory between models: each model gets modules of its own over the same frozen weights."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from torch import Tensor, nn

from muscle_hf.teachers.weights import is_quantized

# Arguments of `from_pretrained` after which weights are spread or anybody's.
_UNSHARED = ("device_map", "config")


class BasePool:
    """The last models that were loaded from files, by what they were loaded from and how.

    What is kept is never handed out: adapters, hooks, modes and settings that are put on a model are gone with it, and
    whoever comes later gets what loading anew would give, bit for bit. It is kept where it is loaded: in the memory of
    the machine, and what a GPU gets is a copy; what bitsandbytes quantizes, on the GPU. Models that are quantized
    otherwise are loaded anew each time: nobody knows what their layers do to the weights.

    Args:
        size: How many are kept: by default an old and a new base.
    """

    def __init__(self, size: int = 2):
        self.size = size
        self.loaded = 0
        self._kept: dict[tuple[str, str], tuple[nn.Module, int]] = {}
        self._dtypes: dict[str, str] = {}

    def get(self, name: str, auto: Any, arguments: Mapping[str, Any], load: Callable[[], Any]) -> Any:
        """A model of ``name`` as ``load``, which ``auto`` and the arguments of ``from_pretrained`` describe, gives
        it."""
        if any(arguments.get(setting) is not None for setting in _UNSHARED):
            return load()
        place = os.path.realpath(name) if os.path.isdir(name) else name
        how = sorted((setting, repr(value)) for setting, value in arguments.items() if setting != "dtype")
        key, dtype = repr((place, auto.__name__, how)), str(arguments.get("dtype"))
        # What `auto` turns out to be is what others ask for by its name.
        dtype = self._dtypes.get(key, dtype) if dtype == "auto" else dtype
        model, version = self._kept.pop((key, dtype), (None, 0))
        if model is None or _version(model) != version:
            model = load()
            self.loaded += 1
            otherwise = is_quantized(model) and getattr(model, "quantization_method", None) != "bitsandbytes"
            if otherwise or any(isinstance(module, nn.MultiheadAttention) for module in model.modules()):
                return model  # an adapter on the latter is added to the weights at each forward, and taken off again
            if dtype == "auto":
                dtype = self._dtypes[key] = str(model.dtype)
        self._kept[key, dtype] = model, _version(model)
        for oldest in list(self._kept)[: -self.size]:
            del self._kept[oldest]
        return _over_same_weights(model)


def _version(model: nn.Module) -> int:
    """Grows whenever a weight is written to."""
    return sum(parameter._version for parameter in model.parameters())


def _over_same_weights(model: nn.Module) -> Any:
    memo: dict[int, Any] = {}
    for weight in model.parameters():
        memo[id(weight)] = Tensor._make_subclass(type(weight), weight.detach(), weight.requires_grad)
        memo |= {id(part): part.detach() for part in vars(weight).values() if isinstance(part, Tensor)}
    for weight in model.parameters():
        # Of a quantized one its statistics, which bitsandbytes writes to where it packs the weight for a processor.
        vars(memo[id(weight)]).update(copy.deepcopy(vars(weight), memo))
    return copy.deepcopy(model, memo)


current: ContextVar[BasePool | None] = ContextVar("current", default=None)


@contextlib.contextmanager
def keeping(pool: BasePool) -> Iterator[None]:
    """Within the block models come from a pool."""
    token = current.set(pool)
    try:
        yield
    finally:
        current.reset(token)
