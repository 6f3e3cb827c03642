"""Add what only people and evaluations know to a saved adapter's card."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_json
from muscle_hf.hub.body import ADAPTER_CONFIG, REPORT_FILE
from muscle_hf.hub.card import CARD_FILE, write_card
from muscle_hf.hub.files import is_card, pack
from muscle_hf.hub.origins import check_origins
from muscle_hf.hub.state import CardState, save_metrics, trimmed_comparison
from muscle_hf.record import PROVENANCE_FILE, read_provenance
from muscle_hf.training.checkpoints import staged


def complete_card(
    folder: str | os.PathLike,
    changes: Mapping[str, Any] | None = None,
    *,
    comparison: Any = None,
    label: str | None = None,
    examples: int = 0,
) -> Path:
    """Change fields of the card's state, record a comparison of old, new and this adapter (a ``Document``, or the file
    that ``muscle-hf compare --json`` wrote; ``label``: which of several this adapter is) and render the card again,
    with up to ``examples`` flips shown with their texts, which come from the data. Gives the card's path.

    :class:`MismatchError` where the answers were given by other models than this adapter and those before it.
    """
    provenance = read_provenance(folder)
    state = replace(CardState.load(folder), **dict(changes or {}))
    if comparison is None and examples:
        raise MuscleError("examples come from a comparison: name one")
    if comparison is not None:
        content = _read(comparison)
        trimmed = trimmed_comparison(content, label)
        check_origins(trimmed, provenance)
        state.examples = example_flips(content, trimmed["models"][-1]["label"], examples)
        save_metrics(folder, trimmed, provenance.get("adapter_sha256"))
    state.save(folder)
    return write_card(folder)


def export_card(folder: str | os.PathLike, target: str | os.PathLike) -> Path:
    """Copy a card and the files it is made from, as they would be published, without weights and tokenizer, into a
    folder, where files of an earlier export are replaced; gives the path of the copied card.

    The copy renders to the same card at any time (``muscle-hf card TARGET``), and is small enough for a repository.
    """
    parcel = pack(folder)
    with staged(target) as stage:
        for name, content in parcel.contents.items():
            if name in (ADAPTER_CONFIG, PROVENANCE_FILE) or (is_card(name) and name != REPORT_FILE):
                raw = content.read_bytes() if isinstance(content, Path) else content
                (stage / name).write_bytes(raw)
    return Path(target, CARD_FILE)


def example_flips(content: Mapping[str, Any], label: str, count: int) -> list[dict[str, Any]]:
    """The first flips of a comparison with their texts, as a card shows them."""
    names = {model["role"]: model["label"] for model in reversed(content["models"])} | {"compat": label}
    flips = [flip for task in content["tasks"] for flip in task["flips"]]
    return [
        {"prompt": flip["prompt"] or flip["id"], "target": flip["target"]}
        | {role: flip["answers"].get(names[role]) for role in ("old", "new", "compat")}
        for flip in flips[:count]
    ]


def _read(comparison: Any) -> Mapping[str, Any]:
    if hasattr(comparison, "to_dict"):
        return comparison.to_dict()
    if isinstance(comparison, Mapping):
        return comparison
    return read_json(comparison, "comparison")
