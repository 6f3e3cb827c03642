"""What a model in memory is: names, revisions and hashes of its base and its adapter."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel
from torch import Tensor, nn

from muscle_hf.errors import MuscleError
from muscle_hf.record import WEIGHTS_FILE, file_sha256, public_name
from muscle_hf.teachers.adapters import adapter_parameters
from muscle_hf.teachers.origin import origin_of
from muscle_hf.teachers.weights import base_of, base_weights, content_hash, describe_quantization


def describe_model(
    model: nn.Module, folder: str | os.PathLike | None = None, name: str | None = None, revision: str | None = None
) -> dict[str, Any]:
    """A model in memory as a provenance describes ``old`` and ``new``: its predictions say so what gave them.

    Every weight is read once, to hash it; ``folder`` is where the adapter's file is, which is hashed too, and ``name``
    and ``revision`` are the adapter's. Of ``base`` and ``adapter``, None is what cannot be hashed (weights that were
    left on the disk, several active adapters), and an adapter that there is not.
    """
    active = model.active_adapters if isinstance(model, PeftModel) else []
    adapter = None
    if active:
        file = None if folder is None else Path(folder, WEIGHTS_FILE)
        adapter = {
            "name": public_name(name),
            "revision": revision,
            "sha256": _hash_or_none(adapter_parameters(model, active[0])) if len(active) == 1 else None,
            "file_sha256": file_sha256(file) if file is not None and file.is_file() else None,
        }
    return {"base": describe_base(base_of(model), _hash_or_none(base_weights(model, *active[:1]))), "adapter": adapter}


def describe_base(base: nn.Module, sha256: str | None) -> dict[str, Any]:
    """A base, with adapters or without, as a provenance describes it."""
    origin = origin_of(base)
    return {
        "name": origin.name,
        "revision": origin.revision,
        "on_hub": origin.on_hub,
        "architecture": type(base).__name__,
        "dtype": str(getattr(base, "dtype", None)).removeprefix("torch."),
        "quantization": describe_quantization(base.config),
        "sha256": sha256,
    }


def _hash_or_none(tensors: Mapping[str, Tensor]) -> str | None:
    try:
        return content_hash(tensors.items()) if tensors else None
    except MuscleError:  # on the meta device, where offloaded weights are
        return None
