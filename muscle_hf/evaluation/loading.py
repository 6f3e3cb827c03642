"""A model with its tokenizer, ready to be evaluated, from what a user calls it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from muscle_hf.errors import MismatchError, MuscleError
from muscle_hf.evaluation.tasks import Task
from muscle_hf.files import StrPath, readable
from muscle_hf.record import PROVENANCE_FILE, read_provenance, same_base
from muscle_hf.teachers.identity import describe_model
from muscle_hf.teachers.kinds import CAUSAL_LM, SEQ2SEQ_LM, SEQUENCE_CLASSIFICATION, ModelKind
from muscle_hf.teachers.loading import FETCH_KEYS, AdapterFolder, find_adapter, load_task_model


def load_for_evaluation(
    name: StrPath, task: Task, **arguments: Any
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase]:
    """A task model and its tokenizer; arguments and errors as of :func:`load_described`."""
    return load_described(name, task, **arguments)[:2]


def load_described(
    name: StrPath,
    task: Task,
    *,
    adapter: StrPath | None = None,
    revision: str | None = None,
    device: str | torch.device | None = None,
    **arguments: Any,
) -> tuple[torch.nn.Module, PreTrainedTokenizerBase, Callable[[], dict[str, Any]]]:
    """A task model, its tokenizer, and what describes the model by its hashes (:func:`describe_model`) if called. That
    also holds the base against the adapter's provenance: another one is refused, or warned of where the user names the
    base.

    ``name`` is a folder or Hub id of an adapter or a model; with ``adapter`` of the base, whatever base that records,
    and ``revision`` is the adapter's then. ``task`` decides the kind of model; ``device`` is by default the
    accelerator, if there is one (not with ``device_map``). Arguments: ``dtype``, ``device_map``,
    ``quantization_config``, ``token``, ``cache_dir``, ...
    """
    if device is not None:
        with readable(f"a tensor on the device {str(device)!r}"):
            torch.empty(0, device=device)
    arguments = {key: value for key, value in arguments.items() if value is not None}
    fetch = {key: arguments[key] for key in FETCH_KEYS if key in arguments}
    source = adapter if adapter is not None else name
    found = find_adapter(source, revision, fetch)
    if adapter is not None and found is None:
        raise MuscleError(f"{adapter} is not an adapter but a model; name it alone")
    override = name if adapter is not None else None
    base, base_revision = os.fspath(override or name), None if override is not None else revision
    if found is not None and override is None:
        base, base_revision = found.base, found.base_revision
    kind = _kind(task, base, {"revision": base_revision or "main", **fetch})
    model = load_task_model(source, kind, base_model=override, revision=revision, **arguments)
    if "device_map" not in arguments:
        model.to(device or torch.accelerator.current_accelerator() or "cpu")
    tokenizer = tokenizer_of(found.folder if found else None, base, base_revision, fetch)
    return model, tokenizer, lambda: _describe(model, found, override is not None)


def _describe(model: torch.nn.Module, found: AdapterFolder | None, on_another_base: bool) -> dict[str, Any]:
    if found is None:
        return describe_model(model)
    description = describe_model(model, found.folder, found.name, found.commit)
    if (found.folder / PROVENANCE_FILE).is_file():
        recorded = read_provenance(found.folder)["new"]["base"]
        if same_base(recorded, description["base"]) is False:
            text = (
                f"{found.name} was trained for another base than it is put on: recorded {recorded['name']} with "
                f"content hash {recorded['sha256']}, found {description['base']['name']} with "
                f"{description['base']['sha256']}"
            )
            if not on_another_base:
                raise MismatchError(f"{text}. Name the base and the adapter apart (--adapter) if that is meant")
            warnings.warn(text, UserWarning, stacklevel=3)
    return description


def _kind(task: Task, base: str, fetch: dict[str, Any]) -> ModelKind:
    from transformers import AutoConfig

    if task.kind == "classification":
        return SEQUENCE_CLASSIFICATION
    hint = "; if an adapter records this base and it lies elsewhere, name it as the model and the adapter by --adapter"
    with readable(f"the configuration of {base}", hint):
        config = AutoConfig.from_pretrained(base, trust_remote_code=False, **fetch)
    return SEQ2SEQ_LM if config.is_encoder_decoder else CAUSAL_LM


def tokenizer_of(
    adapter_folder: Path | None, base: str, revision: str | None, fetch: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """The adapter's own tokenizer if it was saved with one, else that of the base at a revision of its own."""
    if adapter_folder is not None and (adapter_folder / "tokenizer_config.json").is_file():
        base, revision, fetch = os.fspath(adapter_folder), None, {}
    with readable(f"the tokenizer of {base}"):
        return AutoTokenizer.from_pretrained(base, revision=revision or "main", trust_remote_code=False, **fetch)
