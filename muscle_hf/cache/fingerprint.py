"""Who a teacher is: a hash over everything that decides its hidden states, from the model or from its files alone."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from muscle_hf.errors import MuscleError
from muscle_hf.record import json_sha256
from muscle_hf.teachers.checks import computing_config, parts_of
from muscle_hf.teachers.kinds import ModelKind, kind_of
from muscle_hf.teachers.loading import FETCH_KEYS, AdapterFolder, adapter_or_model, auto_class_of
from muscle_hf.teachers.origin import origin_of
from muscle_hf.teachers.sharing import adds_only
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.tokenizers import vocabulary_hash
from muscle_hf.teachers.weights import base_of, base_weights, content_hash, describe_quantization, hash_as_loaded

# Entries of an adapter's configuration that do not change what it computes in eval mode. Which layers it has is in
# the names of its weights.
_INERT_ADAPTER_CONFIG = frozenset(
    {"auto_mapping", "base_model_name_or_path", "corda_config", "eva_config", "exclude_modules", "inference_mode"}
    | {"init_lora_weights", "init_weights", "layers_pattern", "layers_to_transform", "loftq_config", "lora_dropout"}
    | {"lora_ga_config", "module_dropout", "peft_version", "rank_dropout", "revision", "runtime_config"}
    | {"target_modules", "target_parameters", "task_type", "ensure_weight_tying", "modules_to_save"}
)
_ALWAYS_SAID = ("peft_type", "r", "lora_alpha")
# Of a teacher that is described without being built: its weights, configuration and tokenizer.
_FILES = ["*.safetensors", "*.json", "tokenizer*"]
_LORA_WEIGHT = re.compile(r"\.lora_[AB]\.weight$|\.lora_embedding_[AB]$")


@dataclass(frozen=True)
class Fingerprint:
    """A teacher's identity.

    Args:
        content: What the digest is taken over: plain data.
        names: What people call its parts; not in the digest.
    """

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
    """The fingerprint of a teacher that is loaded, whose weights are read once, to hash them.

    Args:
        tokenizer: What the rows are tokenized with.
        autocast: The dtype of the autocast context it runs in: ``torch.bfloat16``, or Accelerate's
            ``mixed_precision``.
        provenance: The teacher's part of the run's provenance, whose hashes then need not be taken again.
    """
    if provenance is None:
        base_hash, of_adapter = teacher.hashes({})
    else:
        base_hash, of_adapter = provenance["base"]["sha256"], (provenance["adapter"] or {}).get("sha256")
    base, adapter = base_of(teacher.model), None
    if of_adapter is not None:
        config = cast("PeftModel", teacher.model).peft_config[cast("str", teacher.adapter)]
        adapter = _describe_adapter(of_adapter, config)
    return Fingerprint(_content(base, base_hash, adapter, tokenizer, autocast), _names(base, teacher.role))


def file_fingerprint(
    source: TeacherFiles,
    kind: ModelKind,
    tokenizer: Any = None,
    *,
    role: str = "old",
    dtype: torch.dtype | str | None = "auto",
    autocast: torch.dtype | str | None = None,
    attn_implementation: str | None = None,
) -> Fingerprint:
    """The same fingerprint from the files of a teacher, without building it: one tensor in memory at a time.

    Arguments as of :func:`teacher_fingerprint`; ``dtype`` and ``attn_implementation`` are what it would be loaded
    with.

    Raises:
        MuscleError: It cannot be told from files how it would be loaded (quantization, weights that are converted when
            loaded, an adapter that is not LoRA on linear layers): load the teacher instead.
    """
    base = source.build_on_meta(kind, dtype, attn_implementation)
    adapter = None
    if source.adapter is not None:
        weights = _adapter_as_loaded(source.adapter, base.dtype)
        adapter = _describe_adapter(content_hash(weights.items()), source.adapter.config)
    base_hash = hash_as_loaded(base_weights(base), source.base, base)
    content = _content(base, base_hash, adapter, tokenizer, autocast)
    return Fingerprint(content, _names(base, role))


def _names(base: PreTrainedModel, role: str) -> dict[str, Any]:
    origin = origin_of(base)
    return {"role": role, "base_name": origin.name, "base_revision": origin.revision}


@dataclass(frozen=True)
class TeacherFiles:
    """The files of a task model.

    Args:
        base: Folder of the base (or of the model itself) with its configuration and safetensors files.
        name: What the base is called: a folder or a Hub id.
        adapter: The adapter on it, if any.
    """

    base: Path
    name: str
    adapter: AdapterFolder | None

    @classmethod
    def find(cls, name: str | os.PathLike, **arguments: Any) -> TeacherFiles:
        """Find the files, and fetch from the Hub what is not on this disk; arguments as of
        :func:`~muscle_hf.teachers.loading.adapter_or_model`."""
        adapter, arguments = adapter_or_model(name, arguments)
        if adapter is None:
            return cls(_fetch(os.fspath(name), arguments["revision"], arguments), os.fspath(name), None)
        return cls(_fetch(adapter.base, adapter.base_revision, arguments), adapter.base, adapter)

    def build_on_meta(
        self, kind: ModelKind, dtype: torch.dtype | str | None, attn_implementation: str | None = None
    ) -> PreTrainedModel:
        """The base's modules without weights, as ``from_pretrained`` would make them; refused where files alone do not
        tell."""
        config = AutoConfig.from_pretrained(self.base, trust_remote_code=False)
        if getattr(config, "quantization_config", None) is not None:
            raise MuscleError(f"{self.name} is quantized: its fingerprint needs the loaded model")
        dtype = _loaded_dtype(dtype, config)
        arguments = {"attn_implementation": attn_implementation} if attn_implementation else {}
        with torch.device("meta"):
            folder = None if self.adapter is None else self.adapter.folder
            auto = auto_class_of(config, kind, adapter=folder, whole=folder is None)
            model = auto.from_config(config, dtype=dtype, trust_remote_code=False, **arguments)
        kept = getattr(model, "_keep_in_fp32_modules", None) if dtype == torch.float16 else None
        if (kept or getattr(model, "_keep_in_fp32_modules_strict", None)) and dtype in (torch.float16, torch.bfloat16):
            raise MuscleError(f"{type(model).__name__} keeps some weights in float32: its fingerprint needs the model")
        model.config.name_or_path = self.name
        return model


def _adapter_as_loaded(adapter: AdapterFolder, dtype: torch.dtype) -> dict[str, Tensor]:
    if not adds_only(adapter.config):
        raise MuscleError(f"the adapter {adapter.name} is no plain LoRA: its fingerprint needs the model")
    weights = load_file(adapter.folder / SAFETENSORS_WEIGHTS_NAME)
    foreign = [name for name in weights if not _LORA_WEIGHT.search(name)]
    if foreign:
        raise MuscleError(
            f"the adapter {adapter.name} holds more than LoRA matrices ({foreign[0]}): its fingerprint needs the model"
        )
    # PEFT keeps adapters in float32 on a base in half precision.
    return {name: tensor.to(torch.promote_types(dtype, torch.float32)) for name, tensor in weights.items()}


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


def _loaded_dtype(dtype: torch.dtype | str | None, config: PreTrainedConfig) -> torch.dtype:
    if dtype is None or dtype == "auto":
        dtype = cast("torch.dtype", getattr(config, "dtype", None) or torch.float32)
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype


def _fetch(name: str, revision: str | None, fetch: Mapping[str, Any]) -> Path:
    if os.path.isdir(name):
        return Path(name)
    known = {key: value for key, value in fetch.items() if key in FETCH_KEYS and key != "subfolder"}
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES, **known))
    except (EntryNotFoundError, HFValidationError, RepositoryNotFoundError, OSError) as error:
        raise MuscleError(f"the files of {name} can neither be found here nor fetched: {error}") from error
