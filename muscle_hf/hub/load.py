"""A compatibility adapter on its base, ready to use, after checking that the two belong together."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from peft import PeftConfig, PeftModel
from torch import nn
from transformers import PreTrainedTokenizerBase

from muscle_hf.errors import MismatchError, MuscleError
from muscle_hf.evaluation.loading import tokenizer_of
from muscle_hf.hub.body import ADAPTER_CONFIG
from muscle_hf.hub.errors import hub_errors
from muscle_hf.hub.fetching import Fetched, fetch
from muscle_hf.record import PROVENANCE_FILE, is_commit, unrecorded, valid_repo_id
from muscle_hf.teachers.adapters import STUDENT_ADAPTER
from muscle_hf.teachers.kinds import KINDS, ModelKind
from muscle_hf.teachers.loading import load_model, read_adapter_config
from muscle_hf.teachers.origin import local_model_folder
from muscle_hf.teachers.snapshots import written_to
from muscle_hf.teachers.weights import base_of, base_weights, content_hash, folder_hash, is_quantized
from muscle_hf.training.provenance import describe_tokenizer

_AFTERWARDS = "Nothing was loaded; run the same again, or pass a local copy of the base as base_model=."


def load_compatible(
    repo: str | os.PathLike,
    *,
    revision: str | None = None,
    base_model: str | os.PathLike | None = None,
    base_revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    allow_mismatch: bool = False,
    **model_arguments: Any,
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """Load a published compatibility adapter on the base that it was trained on.

    Everything is pinned: the adapter's commit is resolved once, the base comes from the recorded commit. Only
    safetensors are read, and no code of a repository is run. Base, architecture, tokenizer and weights are checked
    against the adapter's provenance; what it has no hash of is warned of.

    Args:
        repo: Hub id, or a folder.
        revision: Branch, tag or commit of the adapter.
        base_model: A local copy of the base, or its id where it has moved; its content is checked.
        base_revision: Commit of ``base_model``, if that is on the Hub.
        token: Of the Hub; by default the stored one.
        cache_dir: By default the Hub's cache.
        allow_mismatch: Warn of what does not fit, instead of refusing.
        model_arguments: Of the base's ``from_pretrained``: ``dtype`` (by default the one trained in),
            ``device_map``, ``quantization_config``, ...

    Returns:
        The model, in eval mode with the adapter active, and the tokenizer.

    Raises:
        MismatchError: The base, its architecture, the tokenizer or the weights are not those recorded; names both.
        MuscleError: It is no compatibility adapter, or cannot be loaded.
        HubError: The Hub cannot be reached, or refuses.
    """
    fetched = fetch(repo, revision=revision, token=token, cache_dir=cache_dir)
    config = read_adapter_config(fetched.folder, fetched.repo_id)
    kind = _kind_of(config, fetched)
    access = {"token": token, "cache_dir": cache_dir}
    source, source_revision = _base_source(fetched, base_model, base_revision)
    arguments = {**_recorded_arguments(fetched), **model_arguments, **access}
    with hub_errors(f"loading the base {source}", _AFTERWARDS, token):
        where = {"revision": source_revision or "main"}
        base = load_model(source, kind, {**where, **arguments}, adapter=fetched.folder)
    try:
        model = PeftModel.from_pretrained(base, str(fetched.folder), adapter_name=STUDENT_ADAPTER)
    except RuntimeError as error:
        raise MismatchError(f"{fetched.repo_id} was trained for another base than {source}: {error}") from error
    tokenizer = tokenizer_of(fetched.folder, source, source_revision, access)
    pinned = base_model is None and is_commit(source_revision)
    if pinned and isinstance(kept := try_to_load_from_cache(source, "config.json", cache_dir, source_revision), str):
        # A commit names what was fetched, not what somebody has made of it here.
        pinned = not written_to(Path(kept).parent)
    problems = [
        *_config_problems(fetched, config),
        *_base_problems(fetched, model, source, pinned),
        *_tokenizer_problems(fetched, tokenizer, model),
    ]
    if problems and not allow_mismatch:
        raise MismatchError(
            f"{fetched.repo_id} does not belong to what it was put on: {'; '.join(problems)}. Load the recorded base, "
            "or pass allow_mismatch=True (--allow-mismatch) if you know that it is the same"
        )
    if missing := unrecorded(fetched.provenance):
        problems.append(f"no hash is recorded of its {' and '.join(missing)}, so that was not checked")
    for problem in problems:
        warnings.warn(f"{fetched.repo_id}: {problem}", UserWarning, stacklevel=2)
    return model.eval(), tokenizer


def _kind_of(config: PeftConfig, fetched: Fetched) -> ModelKind:
    kind = next((kind for kind in KINDS if kind.task_type == config.task_type), None)
    if kind is None:
        raise MuscleError(
            f"{fetched.repo_id} is an adapter of task type {config.task_type!r}; there are "
            + ", ".join(kind.task_type for kind in KINDS)
        )
    return kind


def _base_source(
    fetched: Fetched, base_model: str | os.PathLike | None, base_revision: str | None
) -> tuple[str, str | None]:
    """Where the base is loaded from: what the user names, or exactly what is recorded."""
    if base_model is not None:
        return os.fspath(base_model), base_revision
    recorded = fetched.provenance["new"]["base"]
    name, revision = recorded["name"], recorded["revision"]
    if not recorded["on_hub"]:
        raise MuscleError(
            f"{fetched.repo_id} was trained on a local copy of the base {name!r}, which is no repository on the Hub; "
            "pass the folder of that base as base_model= (--base-model; content hash "
            f"{recorded['sha256']})"
        )
    if not valid_repo_id(str(name)):
        raise MuscleError(f"{fetched.repo_id} records a base that is no repository's id: {name!r}")
    if os.path.isdir(name):
        raise MuscleError(
            f"a folder here is called like the recorded base {name}, and would be loaded in its place; run from "
            "another folder, or pass base_model= to say which one you mean"
        )
    return name, revision


def _recorded_arguments(fetched: Fetched) -> dict[str, Any]:
    """What the base was loaded with in training, as far as it decides what is computed."""
    recorded = fetched.provenance["new"]["base"]
    arguments: dict[str, Any] = {}
    dtype = getattr(torch, str(recorded.get("dtype")), None)
    if isinstance(dtype, torch.dtype):
        arguments["dtype"] = dtype
    labels = fetched.provenance.get("labels")
    if labels:
        arguments["id2label"] = dict(enumerate(labels))
        arguments["label2id"] = {label: index for index, label in enumerate(labels)}
    return arguments


def _config_problems(fetched: Fetched, config: PeftConfig) -> list[str]:
    """The base in the adapter's configuration, which other loaders follow, must be the one in its provenance."""
    if fetched.commit is None:
        return []  # before publishing, the configuration names the base's place on this disk
    recorded = fetched.provenance["new"]["base"]
    pairs = (
        ("base", recorded["name"], config.base_model_name_or_path),
        ("revision of the base", recorded["revision"], config.revision),
    )
    return [
        f"{what}: {PROVENANCE_FILE} records {known}, {ADAPTER_CONFIG} names {named}"
        for what, known, named in pairs
        if known != named
    ]


def _base_problems(fetched: Fetched, model: PeftModel, source: str, pinned: bool) -> list[str]:
    recorded = fetched.provenance["new"]["base"]
    base = base_of(model)
    problems = []
    if type(base).__name__ != recorded["architecture"]:
        problems.append(f"architecture: recorded {recorded['architecture']}, found {type(base).__name__}")
    # A commit names its content; any other source is compared by it.
    if recorded["sha256"] is not None and not pinned and not problems:
        found = _content_hash(model, base, source, recorded)
        if found != recorded["sha256"]:
            problems.append(
                f"weights of the base: recorded {recorded['name']} with content hash {recorded['sha256']}, found "
                f"{source} with {found}"
            )
    return problems


def _content_hash(model: PeftModel, base: nn.Module, source: str, recorded: dict[str, Any]) -> str:
    same_dtype = str(getattr(base, "dtype", None)).removeprefix("torch.") == recorded["dtype"]
    if is_quantized(base) == bool(recorded["quantization"]) and same_dtype:
        return content_hash(base_weights(model, STUDENT_ADAPTER).items())
    folder = Path(source) if os.path.isdir(source) else local_model_folder(source, None)
    if recorded["quantization"] or folder is None:
        return f"none that can be compared (recorded as {recorded['quantization'] or recorded['dtype']})"
    # Loaded in another precision than it was trained in: the files are compared, in the recorded one.
    return folder_hash(folder, getattr(torch, recorded["dtype"]))


def _tokenizer_problems(fetched: Fetched, tokenizer: PreTrainedTokenizerBase, model: PeftModel) -> list[str]:
    recorded = fetched.provenance.get("tokenizer")
    problems = []
    found = describe_tokenizer(tokenizer)
    if recorded and found and found["sha256"] != recorded["sha256"]:
        problems.append(
            f"vocabulary: recorded {recorded['tokens']} tokens with hash {recorded['sha256']}, found "
            f"{found['tokens']} with {found['sha256']}"
        )
    rows = model.get_input_embeddings().weight.shape[0]
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= rows:
        problems.append(f"embeddings: the tokenizer has ids up to {largest}, the base {rows} rows")
    return problems
