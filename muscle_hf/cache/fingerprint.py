"""Who a teacher is: a hash over everything that decides its hidden states."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from peft import PeftConfig, PeftModel
from transformers import PreTrainedConfig, PreTrainedModel

from muscle_hf.record import json_sha256
from muscle_hf.teachers.checks import computing_config, parts_of
from muscle_hf.teachers.kinds import kind_of
from muscle_hf.teachers.origin import origin_of
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.tokenizers import vocabulary_hash
from muscle_hf.teachers.weights import base_of, describe_quantization

# Entries of an adapter's configuration that do not change what it computes in eval mode. Which layers it has is in
# the names of its weights.
_INERT_ADAPTER_CONFIG = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode"}
    | {"init_lora_weights", "init_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout"}
    | {"lora_ga_config", "module_dropout", "peft_version", "rank_dropout", "revision", "runtime_config"}
    | {"target_modules", "target_parameters", "task_type", "ensure_weight_tying", "modules_to_save"}
)
_ALWAYS_SAID = ("peft_type", "r", "lora_alpha")


@dataclass(frozen=True)
class Fingerprint:
    """A teacher's identity: ``content``, plain data over which the digest is taken, and ``names``, what people call
    its parts, which are not in the digest."""

    content: Mapping[str, Any]
    names: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """64 hex digits."""
        return json_sha256(self.content)

    @property
    def description(self) -> dict[str, Any]:
        """Plain data for people to read."""
        return {**self.names, **self.content}


def teacher_fingerprint(
    teacher: Teacher,
    tokenizer: Any = None,
    *,
    autocast: torch.dtype | str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Fingerprint:
    """The fingerprint of a teacher that is loaded, whose rows are tokenized with ``tokenizer``.

    ``autocast`` is the dtype of the context that it runs in, ``torch.bfloat16`` or Accelerate's ``mixed_precision``;
    with ``provenance``, the teacher's part of the run's, its weights are not read again to hash them.
    """
    if provenance is None:
        base_hash, of_adapter = teacher.hashes({})
    else:
        base_hash, of_adapter = provenance["base"]["sha256"], (provenance["adapter"] or {}).get("sha256")
    base, adapter = base_of(teacher.model), None
    if of_adapter is not None:
        config = cast("PeftModel", teacher.model).peft_config[cast("str", teacher.adapter)]
        adapter = _describe_adapter(of_adapter, config)
    origin = origin_of(base)
    names = {"role": teacher.role, "base_name": origin.name, "base_revision": origin.revision}
    return Fingerprint(_content(base, base_hash, adapter, tokenizer, autocast), names)


def _content(
    base: PreTrainedModel,
    base_hash: str,
    adapter: dict[str, Any] | None,
    tokenizer: Any,
    autocast: torch.dtype | str | None,
) -> dict[str, Any]:
    config = base.config
    content: dict[str, Any] = {
        "format": 1,
        "architecture": type(base).__name__,
        "kind": kind_of(base).name,
        "base_sha256": base_hash,
        "dtype": str(getattr(base, "dtype", None)).removeprefix("torch."),
        "quantization": describe_quantization(config),
        "config_sha256": json_sha256(computing_config(config), default=_plain),
        "attention": _attention_of(config),
        "autocast": _autocast_name(autocast),
        "adapter": adapter,
        "vocabulary_sha256": None if tokenizer is None else vocabulary_hash(tokenizer),
    }
    text = config.get_text_config()
    if not kind_of(base).generates_text or text is not config:
        # Decoders with a classifier find the last token by it, and some models put it in an image's place.
        content["pad_token_id"] = getattr(text, "pad_token_id", None)
    return content


def _attention_of(config: PreTrainedConfig) -> Any:
    own = getattr(config, "_attn_implementation", None)
    return (
        own if not (parts := parts_of(config)) else [own, {name: _attention_of(part) for name, part in parts.items()}]
    )


def _describe_adapter(content: str, config: PeftConfig) -> dict[str, Any]:
    # Twice through JSON: sets, enumerations and tuples become what a saved configuration gives back.
    plain = json.loads(json.dumps(config.to_dict(), default=_plain))
    # A later version of PEFT may know more settings: what is not set makes no difference.
    unset = {field.name: field.default for field in dataclasses.fields(config)} | dict.fromkeys(_ALWAYS_SAID, None)
    kept = {
        key: value
        for key, value in plain.items()
        if value and key not in _INERT_ADAPTER_CONFIG and value != unset.get(key)
    }
    return {"sha256": content, "config": kept}


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, (set, frozenset)) else str(getattr(value, "value", value))


def _autocast_name(autocast: torch.dtype | str | None) -> str | None:
    if isinstance(autocast, torch.dtype):
        return str(autocast).removeprefix("torch.")
    return {None: None, "no": None, "bf16": "bfloat16", "fp16": "float16"}.get(autocast, autocast)
