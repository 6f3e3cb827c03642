"""What is known of one adapter: all that its card shows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from muscle_hf.compare.document import with_estimates
from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object
from muscle_hf.hub.licenses import License, inherited_license
from muscle_hf.hub.origins import check_origins
from muscle_hf.hub.serving import adapter_problems
from muscle_hf.hub.state import CardState, load_metrics, worst_slices
from muscle_hf.record import read_provenance
from muscle_hf.report.text import plain
from muscle_hf.teachers.kinds import KINDS, ModelKind

ADAPTER_CONFIG = "adapter_config.json"
REPORT_FILE = "report.html"
# Of the LoRA's configuration, what a reader wants to know.
_LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "modules_to_save")
# Settings that say how a run was watched and kept rather than what was trained.
_HOUSEKEEPING = frozenset({"disable_tqdm", "do_train", "do_eval", "do_predict", "use_cpu", "report_to", "push_to_hub"})
_HOUSEKEEPING_KINDS = ("logging_", "log_", "save_", "hub_", "dataloader_", "trackio", "debug")
_SHOWN_SLICES = 5


@dataclass(frozen=True)
class Card:
    """Everything known of one adapter; what the card's template reads: contents of ``muscle_provenance.json``,
    ``adapter_config.json`` and ``muscle_card.json``, flips of exactly these weights (empty if none were measured),
    where it is published, whether an HTML report lies beside it, and why a server of LoRA folders would not serve
    it."""

    provenance: dict[str, Any]
    config: dict[str, Any]
    state: CardState
    comparison: dict[str, Any]
    repo_id: str | None
    has_report: bool
    serving_problems: list[str]

    @classmethod
    def read(cls, folder: str | os.PathLike, repo_id: str | None = None) -> Card:
        """Read a saved adapter's folder; a MuscleError where it holds no compatibility adapter."""
        provenance = read_provenance(folder)
        config_file = Path(folder, ADAPTER_CONFIG)
        if not config_file.is_file():
            raise MuscleError(f"{folder} has no {ADAPTER_CONFIG}: it is not the folder of a saved adapter")
        return cls(
            provenance=provenance,
            config=read_object(config_file),
            state=CardState.load(folder),
            comparison=load_metrics(folder, provenance.get("adapter_sha256")) or {},
            repo_id=repo_id,
            has_report=Path(folder, REPORT_FILE).is_file(),
            serving_problems=adapter_problems(folder, provenance["new"]["base"]["architecture"]),
        )

    @property
    def unverified(self) -> list[str]:
        """The models of the comparison whose answers do not say what gave them; a MismatchError where some were given
        by others than the provenance names."""
        return check_origins(self.comparison, self.provenance) if self.comparison else []

    @property
    def base_name(self) -> str:
        """The new base's public name."""
        return self.provenance["new"]["base"]["name"] or "the new base"

    @property
    def kind(self) -> ModelKind | None:
        """Of the model; None for a kind of task that is not known."""
        return next((kind for kind in KINDS if kind.task_type == self.config.get("task_type")), None)

    @property
    def title(self) -> str:
        """Headline of the card."""
        name = self.repo_id and self.repo_id.rsplit("/", 1)[-1]
        old = self.provenance["old"]["base"]["name"]
        return self.state.title or name or f"{old} → {self.base_name}: compatibility adapter"

    @cached_property
    def license(self) -> License:
        """What the bases' licences leave."""
        return inherited_license(self.state.license_old, self.state.license_new, self.state.license)

    @cached_property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks of the comparison, and beside each what the card reads it by."""
        return with_estimates([_of_adapter(task) for task in self.comparison.get("tasks", [])])

    @property
    def settings(self) -> Iterator[tuple[str, Any]]:
        """Of the LoRA and of training, where they are not at their defaults."""
        for name in _LORA_SETTINGS:
            value = self.config.get(name)
            if value not in (None, False, 0, 0.0, [], {}) or name == "r":
                yield name, ", ".join(sorted(map(str, value))) if isinstance(value, list) else value
        for name, value in self.provenance["training"].items():
            told = name not in _HOUSEKEEPING and not name.startswith(_HOUSEKEEPING_KINDS)
            if told and value not in ([], {}, None) and not isinstance(value, dict):
                yield name, number(value)

    @property
    def max_lora_rank(self) -> int:
        """What a server is told; it accepts a few sizes only, the smallest of which is 8."""
        ranks = [self.config.get("r") or 1, *(self.config.get("rank_pattern") or {}).values()]
        needed = max(rank for rank in ranks if isinstance(rank, int))
        return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= needed), needed)


def number(value: Any) -> str:
    """A setting or a logged figure."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else plain(value)


def _of_adapter(task: Mapping[str, Any]) -> dict[str, Any]:
    new, compat = (next(update for update in task["updates"] if update["role"] == role) for role in ("new", "compat"))
    before = {(entry["column"], entry["value"]): entry["nfr"] for entry in new.get("slices", [])}
    worst = [
        (entry, before.get((entry["column"], entry["value"])))
        for entry in worst_slices(compat.get("slices", []))[:_SHOWN_SLICES]
    ]
    return {
        **task,
        "new": new,
        "compat": compat,
        "against": compat.get("against_new") or {},
        "worst": [pair for pair in worst if any(rate and rate["value"] for rate in (pair[0]["nfr"], pair[1]))],
        "audit": compat.get("inheritance") or {},
    }
