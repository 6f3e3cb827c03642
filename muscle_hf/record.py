"""An adapter's provenance as a file: reading it, and holding weights and models against it. No torch."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from muscle_hf.errors import MismatchError, MuscleError

PROVENANCE_FILE = "muscle_provenance.json"
WEIGHTS_FILE = "adapter_model.safetensors"
FORMAT = 1
_PARTS = ("objective", "training", "data", "packages", "metrics")
_BASE_FIELDS = ("name", "revision", "on_hub", "architecture", "dtype", "quantization", "sha256")


def read_provenance(folder: str | os.PathLike) -> dict[str, Any]:
    """The provenance of a saved compatibility adapter, which may come from anybody, whole; else a MuscleError."""
    file = Path(folder, PROVENANCE_FILE)
    if not file.is_file():
        raise MuscleError(f"{folder} has no {PROVENANCE_FILE}: it was not saved by MuscleTrainer")
    from muscle_hf.files import read_object

    content = read_object(file)
    if content.get("format") != FORMAT:
        raise MuscleError(f"{file} has format {content.get('format')}; this version reads format {FORMAT}: upgrade")
    missing = [name for name in _PARTS if not isinstance(content.get(name), Mapping)]
    for role in ("old", "new"):
        side = _mapping(content.get(role))
        base = _mapping(side.get("base"))
        missing += [f"{role}.base.{name}" for name in _BASE_FIELDS if name not in base]
        missing += [] if "adapter" in side else [f"{role}.adapter"]
    if missing:
        raise MuscleError(f"{file} is damaged: it lacks {', '.join(missing)}")
    return content


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def check_weights(folder: str | os.PathLike, provenance: Mapping[str, Any]) -> bool:
    """Hold the weights in a folder against the hash in their provenance, and give whether there is one; without it
    nothing was checked. Other weights than those recorded are a MismatchError, which names both hashes."""
    recorded = provenance.get("adapter_file_sha256")
    if recorded is None:
        return False
    found = file_sha256(Path(folder, WEIGHTS_FILE))
    if found != recorded:
        raise MismatchError(
            f"{WEIGHTS_FILE} is not the file that {PROVENANCE_FILE} describes: recorded SHA-256 "
            f"{recorded}, found {found}. One of the two was replaced after training"
        )
    return True


def same_base(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> bool | None:
    """Whether two descriptions are of one base; None if that cannot be told, as in two precisions without commits."""
    if recorded.get("sha256") and recorded["sha256"] == found.get("sha256"):
        return True
    commits = [(base.get("name"), base.get("revision")) for base in (recorded, found)]
    if commits[0] == commits[1] and is_commit(recorded.get("revision")):
        return True
    kinds = {base.get("architecture") for base in (recorded, found)} - {None}
    if len(kinds) > 1:
        return False
    # Quantized weights are packed by library and machine.
    quantized = recorded.get("quantization") or found.get("quantization")
    alike = not quantized and recorded.get("dtype") == found.get("dtype")
    return False if alike and recorded.get("sha256") and found.get("sha256") else None


def same_adapter(recorded: Mapping[str, Any] | None, found: Mapping[str, Any] | None) -> bool | None:
    """Whether two descriptions are of one adapter; None if no hash is known of both."""
    if not recorded or not found:
        return not recorded and not found
    pairs = [(recorded.get(name), found.get(name)) for name in ("file_sha256", "sha256")]
    known = [one == other for one, other in pairs if one and other]
    return any(known) if known else None


def unrecorded(provenance: Mapping[str, Any]) -> list[str]:
    """What a provenance has no hash of, so that nobody can check it: of ``weights``, ``base`` and ``tokenizer``."""
    base = provenance["new"]["base"]
    known = {
        "weights": provenance.get("adapter_file_sha256"),
        "base": base["sha256"] or is_commit(base["revision"]),
        "tokenizer": provenance.get("tokenizer"),
    }
    return [name for name, hashed in known.items() if not hashed]


def is_commit(revision: str | None) -> bool:
    """Whether a revision on the Hub names one content for good, rather than a branch or tag that may move."""
    return isinstance(revision, str) and re.fullmatch("[0-9a-f]{40}", revision) is not None


def valid_repo_id(name: str) -> bool:
    """Whether a name can be a repository's on the Hub."""
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except ValueError:
        return False
    return True


def file_sha256(file: str | os.PathLike) -> str:
    """SHA-256 of a file's bytes, as ``sha256sum`` gives it."""
    digest = hashlib.sha256()
    with open(file, "rb") as handle:
        while block := handle.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def json_sha256(value: Any, default: Callable[[Any], Any] | None = None) -> str:
    """SHA-256 of a value, of plain data and what ``default`` makes plain, as JSON with sorted keys: 64 hex digits."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=default).encode()).hexdigest()


def public_name(name: str | None) -> str | None:
    """A model's name without its place on this machine: a Hub id as it is, a folder by its last part."""
    if not name:
        return None
    return Path(name).resolve().name if os.path.isdir(name) or os.path.isabs(name) else name
