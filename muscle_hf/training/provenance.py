"""Where a compatibility adapter comes from: a JSON file beside its weights that says what it was trained against."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import Tensor

import muscle_hf
from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json, write_json
from muscle_hf.record import FORMAT, PROVENANCE_FILE, file_sha256
from muscle_hf.record import read_provenance as read_provenance
from muscle_hf.teachers.origin import local_model_folder
from muscle_hf.teachers.tokenizers import vocabulary_hash
from muscle_hf.teachers.weights import base_of, content_hash

if TYPE_CHECKING:
    from transformers import TrainingArguments

_PACKAGES = ("torch", "transformers", "peft", "accelerate", "safetensors", "datasets", "trl", "bitsandbytes")
# Settings that name a place or a secret rather than how the adapter was trained.
_PRIVATE_SETTINGS = frozenset(
    {"output_dir", "logging_dir", "run_name", "hub_token", "hub_model_id", "resume_from_checkpoint", "deepspeed"}
    | {"teacher_cache", "generation_config", "chat_template_path", "model_init_kwargs"}
    | {"jit_checkpoint_dir", "trackio_space_id", "project", "_n_gpu", "local_rank"}
)


@dataclass
class Provenance:
    """What an adapter was trained from, on and with; ``to_dict()`` is the file's content.

    Args:
        old: Base and adapter of v1: names, revisions, content hashes.
        new: Base and adapter of v2.
        tokenizer: Hash of v2's vocabulary; None if the trainer has no tokenizer.
        objective: Settings of the objective.
        training: Training arguments that are not at their defaults.
        data: Identity of the training and evaluation data.
        packages: Versions.
        metrics: The last figures of training and evaluation.
        adapter_sha256: Content hash of the trained adapter.
        adapter_file_sha256: Hash of the safetensors file that holds it, as ``sha256sum`` gives it.
        labels: Of a classifier: the name of each class, in order; None for models that write text.
        created: Time of saving, UTC, ISO 8601.
        ancestors: The versions before v1, the first one first, each as ``old``; of a v1 that was trained to be
            compatible itself, whose own provenance names them.
    """

    old: dict[str, Any]
    new: dict[str, Any]
    tokenizer: dict[str, Any] | None
    objective: dict[str, Any]
    training: dict[str, Any]
    data: dict[str, Any]
    packages: dict[str, str]
    metrics: dict[str, float | None] = field(default_factory=dict)
    adapter_sha256: str | None = None
    adapter_file_sha256: str | None = None
    labels: list[str] | None = None
    created: str | None = None
    ancestors: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._last_saved: Provenance | None = None

    @classmethod
    def of(cls, trainer: Any) -> Provenance:
        """What a trainer trains, before it does; reads every weight of the bases once, to hash them."""
        old, new, hashes = trainer.teachers["old"], trainer.teachers["new"], {}
        # Whatever v2 is known by, the adapter sits on its base.
        task_model = new if new.models else trainer._task_model
        labels: Any = base_of(task_model.model).config.id2label if trainer.kind.names_classes else None
        answers = {} if new.models else {"answers": new.describe({}).get("answers")}
        return cls(
            old=old.describe(hashes),
            new=task_model.describe(hashes) | answers,
            tokenizer=describe_tokenizer(trainer.tokenizer),
            objective=describe_objective(trainer),
            training=changed_settings(trainer.args),
            data={
                name: describe_dataset(dataset) for name, dataset in trainer.datasets().items() if dataset is not None
            },
            packages=dict(_package_versions()),
            labels=None if labels is None else [str(labels[index]) for index in range(len(labels))],
            ancestors=ancestors_of(old.source, old.revision),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    def save(self, folder: Path, weights: Mapping[str, Tensor], trainer: Any) -> None:
        """Write the file beside the weights of the trained adapter; a hyper-parameter search sets the trainer's
        arguments for each trial."""
        current = dataclasses.replace(
            self,
            objective=describe_objective(trainer),
            training=changed_settings(trainer.args),
            # JSON has no nan: a mean over no tokens is null.
            metrics={name: None if value != value else value for name, value in trainer.final_metrics().items()},
            adapter_sha256=content_hash(weights.items()),
            adapter_file_sha256=file_sha256(folder / SAFETENSORS_WEIGHTS_NAME),
        )
        if self._last_saved is None or dataclasses.replace(self._last_saved, created=None) != current:
            # Saving the same once more changes nothing, so that publishing it again sends nothing.
            now = datetime.datetime.now(datetime.timezone.utc)
            self._last_saved = dataclasses.replace(current, created=now.isoformat(timespec="seconds"))
        current = self._last_saved
        write_json(folder / PROVENANCE_FILE, current.to_dict())

    def check_same_models(self, checkpoint: Path) -> None:
        """Refuse to resume against other teachers than those the checkpoint was trained against."""
        file = checkpoint / PROVENANCE_FILE
        if not file.is_file():
            return
        saved = read_json(file)
        for role, ours in (("old", self.old), ("new", self.new)):
            for part in ("base", "adapter", "answers"):
                theirs, mine = ((description.get(part) or {}).get("sha256") for description in (saved[role], ours))
                if theirs != mine:
                    raise MuscleError(
                        f"{checkpoint.name} was trained with another {role} model: its {part} has the content hash "
                        f"{theirs}, the one given now {mine}. Resume with the same models, or start anew"
                    )


def ancestors_of(adapter: str | None, revision: str | None = None) -> list[dict[str, Any]]:
    """The versions before an adapter that was fetched, the first one first; none where it has no provenance."""
    folder = local_model_folder(adapter, revision)
    if folder is None or not (folder / PROVENANCE_FILE).is_file():
        return []
    theirs = read_provenance(folder)
    return [*(theirs.get("ancestors") or []), theirs["old"]]


def describe_tokenizer(tokenizer: Any) -> dict[str, Any] | None:
    if tokenizer is None or not hasattr(tokenizer, "get_vocab"):
        return None
    return {
        "class": type(tokenizer).__name__,
        "tokens": len(tokenizer.get_vocab()),
        "sha256": vocabulary_hash(tokenizer),
    }


def describe_objective(trainer: Any) -> dict[str, Any]:
    """The settings of a trainer's objective as plain data."""
    objective, settings = trainer.muscle_objective, trainer.settings
    of_old = {"old_targets": (trainer.old_targets, "tokens"), "old_reference": (settings.old_reference, "student")}
    return {
        "mask": objective.mask.name,
        "temperature": objective.temperature,
        "compatibility_weight": objective.compatibility_weight,
        "scale_by_temperature_squared": objective.scale_by_temperature_squared,
        "trained_tokens": settings.trained_tokens,
        "transfer_mask": objective.transfer_mask.name,
        "divergence": objective.divergence,
        "blend": objective.blend,
        **{name: value for name, (value, usual) in of_old.items() if value != usual},
    }


def changed_settings(args: TrainingArguments) -> dict[str, Any]:
    """The training arguments that were set to something else than their defaults; no tokens, no local paths."""
    from muscle_hf.training.config import PRESETS

    changed = {}
    without_preset, preset = PRESETS["paper"], PRESETS.get(getattr(args, "preset", ""), {})
    for name, value in args.to_dict().items():
        # The defaults are read off the class: constructing a second set of arguments would reset the accelerator.
        setting = type(args).__dataclass_fields__[name]
        default = setting.default_factory() if callable(setting.default_factory) else setting.default
        default = without_preset.get(name, getattr(default, "value", default))
        private = name in _PRIVATE_SETTINGS or name.endswith("_token")
        differs = value != default or value != preset.get(name, value)
        if not private and differs and (value or default is not None):
            changed[name] = value
    return changed


def describe_dataset(dataset: Any) -> Any:
    """The identity of a dataset, or of several by name: rows, and a hash over up to 1000 evenly spaced ones."""
    if isinstance(dataset, dict):
        return {name: describe_dataset(part) for name, part in dataset.items()}
    if hasattr(dataset, "describe"):
        return dataset.describe()
    description: dict[str, Any] = {"class": type(dataset).__name__}
    if fingerprint := getattr(dataset, "_fingerprint", None):
        description["fingerprint"] = fingerprint
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__getitem__"):
        return description
    rows = len(dataset)
    sample = sorted({round(index * (rows - 1) / 999) for index in range(1000)}) if rows > 1000 else range(rows)
    digest = hashlib.sha256()
    for index in sample:
        digest.update(json.dumps(_plain(dataset[index]), sort_keys=True, default=str).encode())
    return {**description, "rows": rows, "rows_hashed": len(sample), "sha256": digest.hexdigest()}


def _plain(row: Any) -> Any:
    if isinstance(row, Mapping):
        return {str(key): _plain(value) for key, value in row.items()}
    return row.tolist() if hasattr(row, "tolist") else row


@functools.cache
def _package_versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "muscle-hf": muscle_hf.__version__}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
