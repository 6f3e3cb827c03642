"""Two LoRA adapters of one base become a third whose delta is exactly a mixture of theirs.

A layer's delta is ``scaling * B @ A``. A mixture of two of them has the rank of both together: ``A`` holds the rows of
one above those of the other, ``B`` their columns side by side, each times its weight and its scaling. Interpolating
``A`` and ``B`` themselves would be another model, and so is PEFT's ``linear``.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model_state_dict
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor

from muscle_hf.compat.peft import get_pattern_key
from muscle_hf.errors import MuscleError
from muscle_hf.files import readable
from muscle_hf.teachers.sharing import starts_neutral
from muscle_hf.teachers.weights import content_hash

_KEY = re.compile(r"(?P<module>.+)\.(?P<part>lora_[AB]\.weight|lora_embedding_[AB]|lora_B\.bias)")
_PREFIX = "base_model.model."
# Settings after which the adapter is more than a sum of `scaling * B @ A`, and what each is called.
_NOT_LINEAR = {
    "use_dora": "DoRA rescales each column by a learned magnitude",
    "use_qalora": "QA-LoRA pools its inputs",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "alora_invocation_tokens": "aLoRA is switched on by tokens in the text",
    "arrow_config": "Arrow routes between adapters",
    "monteclora_config": "MonteCLoRA samples its weights",
    "target_parameters": "it adapts parameters (target_parameters) rather than layers",
}
# Settings that decide where an adapter acts: those of both must be the same.
_SAME = ("task_type", "bias", "modules_to_save", "trainable_token_indices", "layer_replication")
_SELECTION = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")


class _Layer(NamedTuple):
    a: Tensor
    b: Tensor
    bias: Tensor | None
    scaling: float
    names: tuple[str, str]


@dataclass(frozen=True)
class LoraAdapter:
    """A LoRA as it lies in a folder: what ``adapter_config.json`` says, and tensors by the names that
    ``adapter_model.safetensors`` gives them; whole modules (``modules_to_save``, a classifier's head) among them."""

    config: LoraConfig
    weights: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        config = self.config
        if not isinstance(config, LoraConfig):
            raise MuscleError(f"an adapter of type {config.peft_type} cannot be interpolated; only LoRA can")
        if config.kasa_config is not None or not starts_neutral(config):
            raise MuscleError(
                f"the adapter changed its base when it was made (init_lora_weights={config.init_lora_weights!r}), so "
                "that it says nothing without that base. Save it as a plain LoRA where it was trained: "
                "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
            )

    @classmethod
    def read(cls, folder: str | os.PathLike) -> LoraAdapter:
        """Read a saved adapter; safetensors only."""
        file = Path(folder, SAFETENSORS_WEIGHTS_NAME)
        if not file.is_file():
            raise MuscleError(f"{folder} holds no {SAFETENSORS_WEIGHTS_NAME}: it is not the folder of a saved adapter")
        with readable(f"the adapter in {folder}"):
            config, weights = PeftConfig.from_pretrained(str(folder)), load_file(file)
        return cls(cast("LoraConfig", config), weights)

    @classmethod
    def of(cls, model: PeftModel, adapter: str) -> LoraAdapter:
        """An adapter of a model in memory; the tensors are the model's own, not copies."""
        if adapter not in model.peft_config:
            raise MuscleError(f"the model has no adapter {adapter!r}; it has {', '.join(model.peft_config)}")
        # The base's embeddings are no part of an adapter, and looking whether they were resized needs the Hub.
        weights = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
        return cls(cast("LoraConfig", model.peft_config[adapter]), weights)

    @property
    def rank(self) -> int:
        """The largest rank of a layer."""
        return max((layer.a.shape[0] for layer in self._layers().values()), default=self.config.r)

    @property
    def content_hash(self) -> str:
        """Of the tensors and of how each layer is scaled."""
        scalings = sorted((name, layer.scaling) for name, layer in self._layers().items())
        return f"{content_hash(self.weights.items())} {hashlib.sha256(repr(scalings).encode()).hexdigest()}"

    def delta(self, module: str) -> Tensor:
        """What the adapter adds to a layer's weight (``model.layers.0.self_attn.q_proj``): ``scaling * B @ A``,
        float64, (out, in) for linear layers, (dimensions, tokens) for embeddings, (out, in * kernel) for convolutions;
        a KeyError where it does not adapt the layer."""
        layer = self._layers()[_PREFIX + module]
        return layer.scaling * layer.b.double().flatten(1) @ layer.a.double().flatten(1)

    def _layers(self) -> dict[str, _Layer]:
        """The adapted layers by their names in the file."""
        parts: dict[str, dict[str, Tensor]] = {}
        for key, tensor in self.weights.items():
            if match := _KEY.fullmatch(key):
                parts.setdefault(match["module"], {})[match["part"]] = tensor
        layers, config = {}, self.config
        for module, found in parts.items():
            kind = "lora_embedding_{}" if "lora_embedding_A" in found else "lora_{}.weight"
            names = kind.format("A"), kind.format("B")
            if not set(names) <= found.keys():
                raise MuscleError(f"the adapter's file is incomplete: {module} lacks one of its two factors")
            a, b = (found[name] for name in names)
            if a.shape[0] != b.shape[1]:
                raise MuscleError(f"{module} is a layer in groups, whose factors cannot be put side by side")
            patterns = config.alpha_pattern or {}
            alpha = patterns.get(get_pattern_key(list(patterns), module.removeprefix(_PREFIX)), config.lora_alpha)
            scaling = alpha / (math.sqrt(a.shape[0]) if config.use_rslora else a.shape[0])
            layers[module] = _Layer(a, b, found.get("lora_B.bias"), scaling, names)
        return layers

    def _others(self) -> dict[str, Tensor]:
        """Tensors that replace the base's as a whole: heads, biases, embeddings."""
        return {key: tensor for key, tensor in self.weights.items() if not _KEY.fullmatch(key)}


def interpolate(new: LoraAdapter | None, compat: LoraAdapter, t: float) -> LoraAdapter:
    """The point at ``t`` between two adapters of one base, itself an ordinary LoRA.

    Every layer's delta is ``(1 - t) * delta_new + t * delta_compat``; a layer that only one of them adapts has delta 0
    in the other. What an adapter replaces as a whole (a classifier's head, ``modules_to_save``, biases, single
    tokens' embeddings) is interpolated itself. All layers get one rank, the sum of both (shorter ones are filled up
    with zeros), and the scaling 1, so that neither ``rank_pattern`` nor ``alpha_pattern`` is needed.

    Args:
        new: v2's task adapter; None where v2 is a whole model, on which the compatibility adapter is the only delta.
        compat: The compatibility adapter.
        t: 0 is ``new`` and 1 is ``compat``: these are returned as they are, bit for bit, in their own rank. Values
            outside of [0, 1] extrapolate.

    Returns:
        Half-precision adapters give a float32 one, since their products would be rounded otherwise.

    Raises:
        MuscleError: One of them is not linear in its weights (DoRA, ...), its base was changed along with it (PiSSA,
            ...), or they do not belong to one base.

    Examples:
        >>> from muscle_hf.dial import LoraAdapter, interpolate
        >>> # interpolate(LoraAdapter.read("adapters/task-v2"), LoraAdapter.read("runs/out/muscle"), 0.5)
    """
    if not math.isfinite(t):
        raise MuscleError(
            f"t must be a finite number, 0 for v2's adapter and 1 for the compatibility adapter; got {t}"
        )
    check_linear(compat, "the compatibility adapter")
    if new is None:
        _check_alone(compat, t)
    else:
        check_linear(new, "v2's adapter")
        _check_together(new, compat)
    if t in (0, 1):
        return compat if t or new is None else new
    sides = [] if new is None else [(new._layers(), 1 - t)]
    present: dict[str, list[tuple[_Layer, float]]] = {}
    for layers, weight in [*sides, (compat._layers(), t)]:
        for module, layer in layers.items():
            present.setdefault(module, []).append((layer, weight))
    rank = max(sum(layer.a.shape[0] for layer, _ in parts) for parts in present.values())
    has_bias = any(layer.bias is not None for parts in present.values() for layer, _ in parts)
    weights: dict[str, Tensor] = {}
    for module, parts in present.items():
        weights |= {f"{module}.{name}": tensor for name, tensor in _joined(parts, rank, has_bias).items()}
    whole = {} if new is None else new._others()
    weights |= {key: _between(tensor, compat.weights[key], t) for key, tensor in whole.items()}
    return LoraAdapter(_joined_config(new or compat, compat, rank, has_bias), weights)


def check_linear(adapter: LoraAdapter, owner: str) -> None:
    """Refuse an adapter that is no sum of deltas that can be weighted; says which setting is why."""
    reason = next((words for name, words in _NOT_LINEAR.items() if getattr(adapter.config, name, None)), None)
    stray = next((key for key in adapter._others() if ".lora_" in key), None)
    if reason is None and stray is not None:
        reason = f"it holds {stray.rpartition('.lora_')[1].strip('.')}{stray.rpartition('.lora_')[2]}"
    if reason is not None:
        raise MuscleError(f"{owner} cannot be interpolated: {reason}")


def _check_alone(compat: LoraAdapter, t: float) -> None:
    """Where v2 is a whole model: it is no adapter itself, and holds no head that could be mixed."""
    if t == 0:
        raise MuscleError("v2 is a whole model: at t = 0 there is no adapter, v2 itself is that point")
    if whole := next(iter(compat._others()), None):
        raise MuscleError(
            f"v2 is a whole model and the compatibility adapter replaces {whole} as a whole; between the two there is "
            "no LoRA"
        )


def _check_together(new: LoraAdapter, compat: LoraAdapter) -> None:
    for name in _SAME:
        ours, theirs = (_plain(getattr(side.config, name, None)) for side in (new, compat))
        if ours != theirs:
            raise MuscleError(
                f"the adapters differ in {name} ({ours} and {theirs}), so that there is nothing between them; train "
                "the compatibility adapter from v2's task adapter"
            )
    ours, theirs = new._others(), compat._others()
    if ours.keys() != theirs.keys():
        alone = sorted(ours.keys() ^ theirs.keys())[0]
        raise MuscleError(f"only one of the adapters holds {alone}, so that there is nothing between them")
    shapes: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    shapes = [(key, ours[key].shape, theirs[key].shape) for key in ours]
    layers = new._layers(), compat._layers()
    for module in layers[0].keys() & layers[1].keys():
        a, b = (tuple(side[module].a.shape[1:] + side[module].b.shape[:1]) for side in layers)
        shapes.append((module, a, b))
    wrong = next(((key, a, b) for key, a, b in shapes if a != b), None)
    if wrong is not None:
        raise MuscleError(
            f"the adapters are of different bases: {wrong[0]} has the sizes {tuple(wrong[1])} and {tuple(wrong[2])}"
        )


def _plain(value: Any) -> Any:
    """A setting to be compared: lists of names have no order, and PEFT repeats names in some."""
    names = isinstance(value, (list, set, tuple)) and all(isinstance(entry, str) for entry in value)
    return sorted(set(value)) if names else value


def _joined(parts: list[tuple[_Layer, float]], rank: int, has_bias: bool) -> dict[str, Tensor]:
    """The factors of a layer: those of the parts side by side, each times its weight, filled up to a rank."""
    dtype = torch.float32
    for layer, _ in parts:
        dtype = torch.promote_types(dtype, torch.promote_types(layer.a.dtype, layer.b.dtype))
    # Rounded once, from float64.
    above = torch.cat([layer.a.to(dtype) for layer, _ in parts])
    beside = torch.cat([(layer.b.double() * (weight * layer.scaling)).to(dtype) for layer, weight in parts], dim=1)
    missing = rank - above.shape[0]
    above = torch.cat([above, above.new_zeros(missing, *above.shape[1:])])
    beside = torch.cat([beside, beside.new_zeros(beside.shape[0], missing, *beside.shape[2:])], dim=1)
    found = dict(zip(parts[0][0].names, (above.contiguous(), beside.contiguous()), strict=True))
    if has_bias:
        zero = torch.zeros(beside.shape[0], dtype=torch.float64, device=beside.device)
        biases = [zero if layer.bias is None else layer.bias.double() * (w * layer.scaling) for layer, w in parts]
        found["lora_B.bias"] = torch.stack(biases).sum(0).to(dtype)
    return found


def _between(new: Tensor, compat: Tensor, t: float) -> Tensor:
    if not new.is_floating_point():
        if not torch.equal(new, compat):
            raise MuscleError("the adapters hold whole numbers that differ; there is nothing between them")
        return new
    dtype = torch.promote_types(torch.float32, torch.promote_types(new.dtype, compat.dtype))
    # In this form equal tensors stay as they are.
    return (new.double() + t * (compat.double() - new.double())).to(dtype)


def _joined_config(new: LoraAdapter, compat: LoraAdapter, rank: int, has_bias: bool) -> LoraConfig:
    settings: dict[str, Any] = {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
    settings |= {"use_rslora": False, "init_lora_weights": True, "lora_bias": has_bias, "inference_mode": True}
    selections = [[_plain(getattr(side.config, name, None)) for name in _SELECTION] for side in (new, compat)]
    if selections[0] != selections[1]:
        # By their full names: patterns of two adapters together could match more than either.
        modules = {name.removeprefix(_PREFIX) for side in (new, compat) for name in side._layers()}
        settings |= {**dict.fromkeys(_SELECTION), "target_modules": modules}
    config = copy.deepcopy(compat.config)
    for name, value in settings.items():
        setattr(config, name, value)
    return config
