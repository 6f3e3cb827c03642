"""What a card is rendered from: the state that training collects and the flips that an evaluation measured.

Three files beside the weights hold everything that a card says, so that it can be rendered again at any time:
``muscle_provenance.json`` (:mod:`muscle_hf.training.provenance`), ``muscle_card.json`` (:class:`CardState`) and
``muscle_metrics.json`` (a comparison, :mod:`muscle_hf.compare.document`, without the items).
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object, write_json

CARD_STATE_FILE = "muscle_card.json"
METRICS_FILE = "muscle_metrics.json"
FORMAT = 1
_SLICES_KEPT = 12
_CURVE_POINTS = 200
# Model columns of a comparison file that say where it lay rather than what it holds.
_MODEL_FIELDS = ("label", "role", "format", "origins")
# The fields that only a publisher can fill; training collects the others.
PUBLISHER_FIELDS = (
    *("title", "summary", "task", "language", "datasets", "tags", "license", "license_old", "license_new"),
    *("base_note", "notes", "made_by"),
)


@dataclass
class CardState:
    """What a card says beyond provenance and flips. Everything is optional.

    Args:
        title: Headline of the card; by default made from the repository's name.
        summary: One sentence on what the adapter is for, in the publisher's words.
        task: Short name of the task: "routing of help-desk tickets".
        language: Codes such as ``en``.
        datasets: Hub ids of the data sets trained on.
        tags: Further tags.
        license: The publisher's choice; by default inherited from the bases.
        license_old: Licence of the old base, where known.
        license_new: Licence of the new base, where known.
        base_note: Where to get the base, if it is not on the Hub.
        notes: A paragraph of the publisher's own.
        made_by: The command that made it, where one did.
        history: Logged figures: one dictionary per log, with ``step`` and ``epoch``.
        hardware: What it was trained on.
        train_seconds: Wall-clock time of training.
        emissions_kg: kg CO2eq, if a tracker measured them.
        examples: Flips that may be shown with their texts; empty unless the publisher asks for them.
    """

    title: str | None = None
    summary: str | None = None
    task: str | None = None
    language: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    license: str | None = None
    license_old: str | None = None
    license_new: str | None = None
    base_note: str | None = None
    notes: str | None = None
    made_by: str | None = None
    history: list[dict[str, float]] = field(default_factory=list)
    hardware: str | None = None
    train_seconds: float | None = None
    emissions_kg: float | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: str | os.PathLike) -> None:
        """Write ``muscle_card.json``."""
        write_json(Path(folder, CARD_STATE_FILE), self.to_dict(), indent=1, default=str)

    def to_dict(self) -> dict[str, Any]:
        """Content of the file."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def load(cls, folder: str | os.PathLike) -> CardState:
        """Read ``muscle_card.json``; an empty state if there is none."""
        content = _read(Path(folder, CARD_STATE_FILE))
        if content is None:
            return cls()
        known = {entry.name for entry in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in content.items() if name in known})


def curve_points(log_history: list[dict[str, float]]) -> list[dict[str, float]]:
    """A training log thinned out to what a card draws; numbers only."""
    kept: list[dict[str, float]] = [
        {name: value for name, value in entry.items() if isinstance(value, (int, float)) and math.isfinite(value)}
        for entry in log_history
    ]
    if len(kept) <= _CURVE_POINTS:
        return kept
    # Evaluations are rare and all kept; of the training steps, evenly spaced ones.
    training = [index for index, entry in enumerate(kept) if "loss" in entry]
    stride = -(-len(training) // _CURVE_POINTS)
    chosen = set(training[::stride]) | {index for index, entry in enumerate(kept) if "loss" not in entry}
    return [kept[index] for index in sorted(chosen)]


def trimmed_comparison(content: Any, label: str | None = None) -> dict[str, Any]:
    """A comparison (what ``Document.to_dict()`` gives, or ``--json`` wrote) as it is published: one compatibility
    model, ``label`` where there are several; rates and a few slices, no items and no file names.

    Of other compatibility models (a control) it keeps the audit of inherited errors, as a baseline.
    """
    if not isinstance(content, Mapping) or not {"schema_version", "models", "tasks"} <= content.keys():
        raise MuscleError("this is no comparison: pass what `muscle-hf compare ... --json` wrote")
    compats = [model["label"] for model in content["models"] if model["role"] == "compat"]
    if label is None:
        if len(compats) != 1:
            found = f"{len(compats)}: {', '.join(compats)}" if compats else "none: compare OLD, NEW and this adapter"
            raise MuscleError(f"the comparison must hold one model that is this adapter; it holds {found}")
        label = compats[0]
    if label not in compats:
        raise MuscleError(f"the comparison holds no compatibility model {label!r}; it holds {', '.join(compats)}")
    models = [model for model in content["models"] if model["role"] in ("old", "new") or model["label"] == label]
    return {
        "schema_version": content["schema_version"],
        "models": [{name: model[name] for name in _MODEL_FIELDS if name in model} for model in models],
        "tasks": [_trimmed_task(task, str(label)) for task in content["tasks"]],
        "warnings": [f"{task['name']}: {text}" for task in content["tasks"] for text in _told_of(task)],
        "meta": dict(content.get("meta", {})),
    }


def _told_of(task: Mapping[str, Any]) -> Iterator[str]:
    """What a reader must know of a task, in counts: the comparison's own warnings name items and files."""
    if task.get("doubt"):
        yield task["doubt"]
    for label, kinds in task.get("missing", {}).items():
        numbers = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        done = "left out" if task.get("left_out") else "counted as wrong"
        yield f"items of {label} without a judged answer, {done}: {numbers}"
    for label, prompts in task.get("reworded", {}).items():
        yield f"{prompts} prompts of {label} differ from those of the old model"


def _trimmed_task(task: Mapping[str, Any], label: str) -> dict[str, Any]:
    updates = [update for update in task["updates"] if update["role"] == "new" or update["label"] == label]
    compat = next(update for update in updates if update["label"] == label)
    # The same slices of both, so that each can be read against the plain update.
    worst = {(entry["column"], entry["value"]) for entry in worst_slices(compat["slices"])[:_SLICES_KEPT]}
    slim = []
    for update in updates:
        slices = [part for part in update["slices"] if (part["column"], part["value"]) in worst]
        slim.append({**update, "slices": slices, "inheritance": _trimmed_audit(update.get("inheritance"))})
    # Of the other compatibility models, a control above all, only what this adapter's figures are read against.
    baselines = [
        {"label": update["label"], "inheritance": {**_trimmed_audit(audit), "slices": []}}
        for update in task["updates"]
        if update not in updates and (audit := update.get("inheritance"))
    ]
    return {**task, "updates": slim, "baselines": baselines, "flips": []}


def _trimmed_audit(content: Any) -> Any:
    return content and {**content, "slices": content["slices"][:_SLICES_KEPT], "items": []}


def worst_slices(slices: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Slices by the lower end of their NFR's interval, highest first: a few unlucky items make no slice bad."""
    return sorted(slices, key=lambda entry: -(entry["nfr"]["low"] or 0.0))


def save_metrics(folder: str | os.PathLike, comparison: Mapping[str, Any], adapter_sha256: str | None) -> None:
    """Write ``muscle_metrics.json``: a trimmed comparison and the adapter that it is about."""
    content = {"format": FORMAT, "adapter_sha256": adapter_sha256, "comparison": dict(comparison)}
    write_json(Path(folder, METRICS_FILE), content, indent=1, default=str)


def load_metrics(folder: str | os.PathLike, adapter_sha256: str | None) -> dict[str, Any] | None:
    """The comparison in ``muscle_metrics.json`` if it is about these weights; None if there is none, or of others."""
    content = _read(Path(folder, METRICS_FILE))
    if content is None or content.get("adapter_sha256") != adapter_sha256:
        return None
    return content["comparison"]


def _read(file: Path) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    try:
        content = read_object(file)
    except MuscleError as error:
        raise MuscleError(f"{error}; delete it to start anew") from error
    if content.get("format") != FORMAT:
        raise MuscleError(f"{file} is not of format {FORMAT}, which this version reads; delete it or upgrade")
    return content
