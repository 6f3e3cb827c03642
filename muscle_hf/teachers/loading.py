"""Task models from folders and Hub ids: safetensors only, no code of a repository is run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from peft import LoraConfig, PeftConfig, PeftModel
from peft.utils import CONFIG_NAME as ADAPTER_CONFIG
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from muscle_hf.compat.peft import active_adapter
from muscle_hf.errors import MuscleError
from muscle_hf.files import readable
from muscle_hf.record import PROVENANCE_FILE, check_weights, is_commit, read_provenance
from muscle_hf.teachers import pool
from muscle_hf.teachers.adapter_files import read_adapter
from muscle_hf.teachers.checks import refuse_prompts
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.sharing import adds_only
from muscle_hf.teachers.weights import input_embeddings

logger = logging.get_logger(__name__)

_CONVERT = (
    "save it as a plain LoRA where it was trained: save_pretrained(..., path_initial_model_for_weight_conversion=...)"
)
# Loading arguments that say where to fetch from, as opposed to how to build the model.
FETCH_KEYS = ("token", "cache_dir", "local_files_only", "force_download", "subfolder")
# Which classes the Auto classes of models that write text make.
_MODELS = {
    "AutoModelForCausalLM": transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
    "AutoModelForSeq2SeqLM": transformers.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
    "AutoModelForSpeechSeq2Seq": transformers.MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING,
    "AutoModelForImageTextToText": transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    "AutoModelForMultimodalLM": transformers.MODEL_FOR_MULTIMODAL_LM_MAPPING,
}


@dataclass(frozen=True)
class AdapterFolder:
    """An adapter on disk, by what the user called it; ``commit`` is the Hub's that was fetched, None for a folder, and
    ``moved_base`` where its base is now, instead of where it records it."""

    folder: Path
    name: str
    config: PeftConfig
    commit: str | None = None
    moved_base: str | None = None
    moved_base_revision: str | None = None

    @property
    def base(self) -> str:
        """The folder or Hub id of its base."""
        name = self.moved_base or self.config.base_model_name_or_path
        if not name:
            raise MuscleError(f"the adapter {self.name} does not record its base model; name it with base_model=")
        return name

    @property
    def base_revision(self) -> str | None:
        """The revision of its base on the Hub."""
        return self.moved_base_revision if self.moved_base else self.config.revision


def find_adapter(name: str | os.PathLike, revision: str | None, fetch: Mapping[str, Any]) -> AdapterFolder | None:
    """Find out whether a path or Hub id is an adapter, and fetch it if so (``token``, ``cache_dir``, ...); None if it
    is a model.

    Refused are what is neither, an adapter without safetensors, one that asks for code to be imported, and weights
    that are not those of the provenance beside them (MismatchError).
    """
    name = os.fspath(name)
    if os.path.isdir(name):
        folder = Path(name, fetch.get("subfolder") or "")
        if not (folder / ADAPTER_CONFIG).is_file():
            if not (folder / "config.json").is_file():
                raise MuscleError(f"{name} is neither an adapter (no {ADAPTER_CONFIG}) nor a model (no config.json)")
            return None
        if not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            raise MuscleError(_no_safetensors(name))
    else:
        try:
            folder = Path(hf_hub_download(name, ADAPTER_CONFIG, revision=revision, **fetch)).parent
        except LocalEntryNotFoundError as error:
            config = "/".join(filter(None, (fetch.get("subfolder"), "config.json")))
            if isinstance(try_to_load_from_cache(name, config, fetch.get("cache_dir"), revision), str):
                return None
            raise MuscleError(
                f"{name} is not a folder, and the Hub cannot be reached to look for it: {error}"
            ) from error
        except EntryNotFoundError:
            return None
        except (HFValidationError, RepositoryNotFoundError) as error:
            raise MuscleError(f"{name} is neither a folder nor a repository on the Hub: {error}") from error
        try:
            hf_hub_download(name, SAFETENSORS_WEIGHTS_NAME, revision=revision, **fetch)
        except EntryNotFoundError as error:
            raise MuscleError(_no_safetensors(name)) from error
    # The Hub's cache keeps each commit in a folder of its name.
    commit = (
        None
        if os.path.isdir(name)
        else next((part.name for part in (folder, *folder.parents) if is_commit(part.name)), None)
    )
    config = read_adapter_config(folder, name)
    with readable(f"the file of weights of the adapter {name}"), safe_open(folder / SAFETENSORS_WEIGHTS_NAME, "pt"):
        pass  # one that is cut off is shorter than its header says
    _check_provenance(name, folder, commit, fetch)
    return AdapterFolder(folder, name, config, commit)


def read_adapter_config(folder: str | os.PathLike, name: str) -> PeftConfig:
    """The PEFT configuration in an adapter's folder, which messages call ``name``; one that asks for code to be
    imported is refused."""
    with readable(f"the configuration of the adapter {name}"):
        config = PeftConfig.from_pretrained(os.fspath(folder))
    # PEFT imports the module that `megatron_core` names, whatever that is, as soon as `megatron_config` is set.
    if not isinstance(config.base_model_name_or_path, (str, type(None))):
        raise MuscleError(f"the adapter {name} names its base by {config.base_model_name_or_path!r}, which is no name")
    if getattr(config, "megatron_config", None):
        raise MuscleError(f"{name} asks for a module to be imported (megatron_config); it is not loaded")
    return config


def _check_provenance(name: str, folder: Path, commit: str | None, fetch: Mapping[str, Any]) -> None:
    """Refuse weights that are not those of the provenance beside them; an adapter of another tool has none."""
    if commit is not None:
        with contextlib.suppress(EntryNotFoundError):
            hf_hub_download(name, PROVENANCE_FILE, **{**fetch, "revision": commit})
    if (folder / PROVENANCE_FILE).is_file() and not check_weights(folder, read_provenance(folder)):
        logger.warning(f"{PROVENANCE_FILE} of {name} records no hash of its weights, which were not checked.")


def _no_safetensors(name: str) -> str:
    return (
        f"the adapter {name} has no {SAFETENSORS_WEIGHTS_NAME}. Pickled weights are never loaded: load it where you "
        "trust it and save it again with save_pretrained()"
    )


def load_model(
    name: str | os.PathLike,
    kind: ModelKind,
    arguments: Mapping[str, Any],
    *,
    adapter: Path | None = None,
    whole: bool = False,
) -> PreTrainedModel:
    """Load a plain model with the Auto class that :func:`auto_class_of` says, from safetensors; ``arguments`` are
    those of ``from_pretrained`` (revision, dtype, quantization_config, ...)."""
    refused = {key for key in ("trust_remote_code", "use_safetensors") if key in arguments}
    if refused:
        raise MuscleError(
            f"{', '.join(sorted(refused))} cannot be chosen here: only safetensors are read and no code of a "
            "repository is run; load the model yourself and pass it"
        )
    name = os.fspath(name)
    fetch = {key: arguments[key] for key in ("revision", *FETCH_KEYS) if key in arguments}
    with readable(f"{name} (as a model for {kind.auto_class})"):
        config = arguments.get("config") or AutoConfig.from_pretrained(name, trust_remote_code=False, **fetch)
        auto = auto_class_of(config, kind, adapter=adapter, whole=whole)
        load = partial(auto.from_pretrained, name, use_safetensors=True, trust_remote_code=False, **arguments)
        kept = pool.current.get()
        # Others than a plain LoRA may write to the weights, which a pool shares.
        if kept is None or not (adapter is None or adds_only(read_adapter_config(adapter, str(adapter)))):
            return load()
        return kept.get(name, auto, arguments, load)


def auto_class_of(
    config: PreTrainedConfig, kind: ModelKind, *, adapter: Path | None = None, whole: bool = False
) -> Any:
    """The Auto class that makes a model of a kind from a configuration: that of models with images or sound where the
    kind's own does not know it. Some are known to both, as a language model alone and with all of its parts: then the
    kind's own, unless ``adapter``, a folder, names layers of the other, or the configuration of a task model without
    an adapter (``whole``) its class."""
    if not kind.generates_text:
        return getattr(transformers, kind.auto_class)
    others = ("AutoModelForSpeechSeq2Seq", "AutoModelForImageTextToText", "AutoModelForMultimodalLM")
    tried = (kind.auto_class, *others)
    classes: dict[str, Any] = {auto: _MODELS[auto][type(config)] for auto in tried if type(config) in _MODELS[auto]}
    found = [getattr(transformers, auto) for auto in classes or tried]
    if len(set(classes.values())) < 2:
        return found[0]
    if adapter is not None:
        return max(found, key=lambda auto: _places(auto, config, adapter))
    named = [whole and known.__name__ in (config.architectures or ()) for known in classes.values()]
    return found[named.index(max(named))]


def _places(auto: Any, config: PreTrainedConfig, adapter: Path) -> int:
    """How many of an adapter's weights are of layers that an Auto class would make."""
    with torch.device("meta"):
        layers = {name for name, _ in auto.from_config(config, trust_remote_code=False).named_modules()}
    with safe_open(adapter / SAFETENSORS_WEIGHTS_NAME, "pt") as file:
        names = [name.removeprefix("base_model.model.") for name in file.keys()]  # noqa: SIM118
    # After a layer's name come the weight's own and, in LoRA, its matrix's.
    return sum(bool({name.rsplit(".", 1)[0], name.rsplit(".", 2)[0]} & layers) for name in names)


def adapter_or_model(
    name: str | os.PathLike, arguments: Mapping[str, Any]
) -> tuple[AdapterFolder | None, dict[str, Any]]:
    """The adapter that a path or Hub id names, with where its base is (None if it is a model), and what
    ``from_pretrained`` of its base, or of the model, is given.

    ``arguments`` have ``revision`` (of ``name``), ``base_model`` and ``base_revision`` (if the recorded base has
    moved), and those for fetching and of ``from_pretrained``.
    """
    arguments = dict(arguments)
    revision, moved, commit = (arguments.pop(key, None) for key in ("revision", "base_model", "base_revision"))
    fetch = {key: arguments.pop(key) for key in FETCH_KEYS if key in arguments}
    adapter = find_adapter(name, revision, fetch)
    if adapter is None:
        return None, {"revision": revision or "main", **fetch, **arguments}
    fetch.pop("subfolder", None)
    moved = None if moved is None else os.fspath(moved)
    return replace(adapter, moved_base=moved, moved_base_revision=commit), {**fetch, **arguments}


def load_task_model(
    name: str | os.PathLike,
    kind: ModelKind,
    *,
    trainable: bool = False,
    dropout: float | None = None,
    **arguments: Any,
) -> nn.Module:
    """Load a task model: an adapter (with ``trainable`` for training; ``dropout`` of a LoRA that is trained on, in [0,
    1), its own by default) on its recorded base, or a merged or fully fine-tuned model. Arguments are those of
    :func:`adapter_or_model`: ``revision``, ``token``, ``dtype``, ``quantization_config``, ``device_map``, ..."""
    adapter, arguments = adapter_or_model(name, arguments)
    if adapter is None:
        if dropout is not None:
            raise MuscleError(f"{name} is a whole model: it has no LoRA, whose dropout could be {dropout}")
        return load_model(name, kind, arguments, whole=True)
    base = load_adapter_base(adapter, kind, arguments)
    return put_adapter(adapter, base, trainable, dropout)


def load_adapter_base(
    adapter: AdapterFolder, kind: ModelKind, arguments: Mapping[str, Any], labels: PreTrainedConfig | None = None
) -> PreTrainedModel:
    """Load the base of an adapter at its revision.

    A classifier's ``labels`` say where the label set comes from if the base has no head of this kind: the adapter
    holds the head's weights, but nothing in its folder says how many labels it has.
    """
    arguments = {"revision": adapter.base_revision or "main", **arguments}
    if labels is not None and not {"num_labels", "id2label", "config"} & arguments.keys():
        fetch = {key: arguments[key] for key in ("revision", *FETCH_KEYS) if key in arguments}
        architectures = AutoConfig.from_pretrained(adapter.base, trust_remote_code=False, **fetch).architectures or ()
        if not any(kind.has_class(name) for name in architectures):
            arguments.update(id2label=labels.id2label, label2id=labels.label2id)
    return load_model(adapter.base, kind, arguments, adapter=adapter.folder)


def put_adapter(
    adapter: AdapterFolder, base: PreTrainedModel, trainable: bool = False, dropout: float | None = None
) -> PeftModel:
    """Put an adapter on a base that is loaded, or refuse one that was trained for another; arguments as of
    :func:`load_task_model`."""
    refuse_prompts(adapter.config, adapter.name)
    start = str(getattr(adapter.config, "init_lora_weights", ""))
    if "_niter_" in start or (start == "lora_ga" and adapter.moved_base is None):
        raise MuscleError(
            f"the adapter {adapter.name} was initialised with {start!r}, whose changes to the base no loading of it "
            f"repeats: {_CONVERT}"
        )
    changed: dict[str, Any] = {}
    if dropout is not None:
        if not hasattr(adapter.config, "lora_dropout"):
            raise MuscleError(
                f"the adapter {adapter.name} is no LoRA but {adapter.config.peft_type}: it has no dropout"
            )
        changed["config"] = config = cast("LoraConfig", copy(adapter.config))
        config.lora_dropout = dropout
    _fit_embeddings(base, adapter)
    try:
        model = PeftModel.from_pretrained(base, str(adapter.folder), is_trainable=trainable, **changed)
    except RuntimeError as error:
        raise MuscleError(f"the adapter {adapter.name} was trained for another base: {error}") from error
    except Exception as error:  # each kind has its own; LoftQ's is an AssertionError where there is no GPU
        raise MuscleError(
            f"PEFT cannot load the adapter {adapter.name}: {error}. If it was initialised from data (CorDA, ...), "
            f"{_CONVERT}"
        ) from error
    # Once more, strictly: PEFT only warns of weights that are missing or have no place.
    read_adapter(model, active_adapter(model), adapter.folder)
    return model


def _fit_embeddings(base: PreTrainedModel, adapter: AdapterFolder) -> None:
    """Give a base the vocabulary that an adapter was saved with, where tokens were added before it was trained; one
    that does not hold their rows, which would be drawn at random, is refused."""
    embeddings = input_embeddings(base)
    if embeddings is None:
        return
    found = (embeddings, base.get_output_embeddings())
    layers: dict[str, Any] = {
        name: layer for name, layer in base.named_modules() if any(layer is each for each in found)
    }
    file_name = adapter.folder / SAFETENSORS_WEIGHTS_NAME
    with safe_open(file_name, framework="pt") as file:
        keys = {name: _embedding_key(file.keys(), name) for name in layers}
        held = {name: file.get_slice(key).get_shape()[0] if key else None for name, key in keys.items()}
    rows = {count for count in held.values() if count is not None}
    size = embeddings.weight.size(0)
    if len(rows) != 1 or rows == {size}:
        return
    tied = len({id(layer.weight) for layer in layers.values()}) == 1
    if None in held.values() and not tied:
        missing = next(name for name, count in held.items() if count is None)
        raise MuscleError(
            f"the adapter {adapter.name} was trained on {rows.pop()} embeddings, its base has {size}, and it does not "
            f"hold those of {missing}. Save it with save_embedding_layers=True where it was trained"
        )
    base.resize_token_embeddings(rows.pop(), mean_resizing=False)
    with safe_open(file_name, framework="pt") as file, torch.no_grad():
        for name, key in keys.items():
            if key is not None:
                base.get_parameter(f"{name}.weight").copy_(file.get_tensor(key))


def _embedding_key(keys: Iterable[str], layer: str) -> str | None:
    """What the base's own weight of a layer is called in an adapter's file, if it is in there."""
    for inner in ("", ".base_layer", ".token_adapter.base_layer", ".original_module"):
        if (key := f"base_model.model.{layer}{inner}.weight") in set(keys):
            return key
    return None
