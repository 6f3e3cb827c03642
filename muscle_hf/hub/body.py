"""What is known of one adapter, and what of it the card's template shows."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.files import read_object
from muscle_hf.hub.licenses import License, inherited_license
from muscle_hf.hub.origins import check_origins
from muscle_hf.hub.serving import adapter_problems
from muscle_hf.hub.state import CardState, load_metrics, worst_slices
from muscle_hf.metrics.intervals import Estimate
from muscle_hf.record import read_provenance
from muscle_hf.report.inheritance import ENOUGH
from muscle_hf.report.text import plain
from muscle_hf.teachers.kinds import KINDS, ModelKind

ADAPTER_CONFIG = "adapter_config.json"
REPORT_FILE = "report.html"
# Of the LoRA's configuration, what a reader wants to know.
_LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "modules_to_save")
# Settings that say how a run was watched and kept rather than what was trained.
_HOUSEKEEPING = frozenset({"disable_tqdm", "do_train", "do_eval", "do_predict", "use_cpu", "report_to", "push_to_hub"})
_HOUSEKEEPING_KINDS = ("logging_", "log_", "save_", "hub_", "dataloader_", "trackio", "debug")
_LOGGED = ("acc", "score", "nfr", "nfr_mc", "pfr")
_SHOWN_SLICES = 5


@dataclass(frozen=True)
class Card:
    """Everything known of one adapter.

    Args:
        provenance: Content of ``muscle_provenance.json``.
        config: Content of ``adapter_config.json``.
        state: Content of ``muscle_card.json``.
        comparison: Flips of exactly these weights, if measured.
        repo_id: Where it is published.
        has_report: Whether an HTML report lies beside it.
        serving_problems: Why a server of LoRA folders would not serve it.
    """

    provenance: dict[str, Any]
    config: dict[str, Any]
    state: CardState
    comparison: dict[str, Any] | None
    repo_id: str | None
    has_report: bool
    serving_problems: list[str]

    @classmethod
    def read(cls, folder: str | os.PathLike, repo_id: str | None = None) -> Card:
        """Read a saved adapter's folder.

        Raises:
            MuscleError: It holds no compatibility adapter.
        """
        provenance = read_provenance(folder)
        config_file = Path(folder, ADAPTER_CONFIG)
        if not config_file.is_file():
            raise MuscleError(f"{folder} has no {ADAPTER_CONFIG}: it is not the folder of a saved adapter")
        return cls(
            provenance=provenance,
            config=read_object(config_file),
            state=CardState.load(folder),
            comparison=load_metrics(folder, provenance.get("adapter_sha256")),
            repo_id=repo_id,
            has_report=Path(folder, REPORT_FILE).is_file(),
            serving_problems=adapter_problems(folder, provenance["new"]["base"]["architecture"]),
        )

    @property
    def unverified(self) -> list[str]:
        """The models of the comparison whose answers do not say what gave them.

        Raises:
            MismatchError: Some were given by others than the provenance names.
        """
        return [] if self.comparison is None else check_origins(self.comparison, self.provenance)

    @property
    def base_name(self) -> str:
        """The new base's public name."""
        return self.provenance["new"]["base"]["name"] or "the new base"

    @property
    def base_is_local(self) -> bool:
        """Whether the new base was loaded from a folder: then its name is no repository's."""
        return not self.provenance["new"]["base"]["on_hub"]

    @property
    def task_type(self) -> str:
        """PEFT's name of the kind of task."""
        return str(self.config.get("task_type"))

    @property
    def kind(self) -> ModelKind | None:
        """Of the model; None for a kind of task that is not known."""
        return next((kind for kind in KINDS if kind.task_type == self.task_type), None)

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        return self.kind is not None and self.kind.generates_text

    @property
    def title(self) -> str:
        """Headline of the card."""
        if self.state.title:
            return self.state.title
        if self.repo_id:
            return self.repo_id.rsplit("/", 1)[-1]
        return f"{self.provenance['old']['base']['name']} → {self.base_name}: compatibility adapter"

    @property
    def license(self) -> License:
        """What the bases' licences leave."""
        return inherited_license(self.state.license_old, self.state.license_new, self.state.license)


def card_context(card: Card, pictures: Iterable[str]) -> dict[str, Any]:
    """The template's variables: facts, which it puts into words and escapes.

    Args:
        card: The adapter.
        pictures: Names of the pictures that exist.
    """
    provenance, state, comparison = card.provenance, card.state, card.comparison or {}
    tasks = [_of_adapter(task) for task in comparison.get("tasks", [])]
    logged = {key for entry in state.history for key in entry}
    return {
        "card": card,
        "provenance": provenance,
        "state": state,
        "old": provenance["old"],
        "new": provenance["new"],
        "base": f"path/to/{card.base_name}" if card.base_is_local else card.base_name,
        "repo": card.repo_id or "USER/REPO",
        "auto_class": card.kind.auto_class if card.kind else "AutoModelForCausalLM",
        "serving_problems": card.serving_problems,
        "max_lora_rank": _next_rank(card.config),
        "tasks": tasks,
        "logged": [] if tasks else logged_flips(provenance["metrics"]),
        "unverified": card.unverified,
        "audited": any(update.get("inheritance") for task in tasks for update in task["updates"]),
        "warnings": comparison.get("warnings", []),
        "settings": list(_settings(card)),
        "pictures": set(pictures),
        "curves": ", ".join(sorted(logged & {"loss", "eval_loss", "eval_kl_old", "eval_kl_new"})),
        "packages": ", ".join(f"{name} {version}" for name, version in provenance["packages"].items()),
    }


def estimate(value: Mapping[str, Any]) -> Estimate:
    """An estimate read back from JSON, in which nan is null."""
    ends = {key: math.nan if value[key] is None else value[key] for key in ("value", "low", "high")}
    return Estimate(**{**value, **ends})


def number(value: Any) -> str:
    """A setting or a logged figure."""
    if value is None:
        return "–"
    return f"{value:.6g}" if isinstance(value, float) else plain(value)


def logged_flips(metrics: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The last flips that ``FlipMetricsCallback`` logged, for cards of adapters without a comparison.

    Args:
        metrics: ``metrics`` of a provenance.

    Returns:
        For each callback or evaluation set its ``name``, empty for an only one, and the rates of ``old``, ``new`` (the
        plain update) and ``compat``.
    """
    known = {key: float(v) for key, v in metrics.items() if isinstance(v, (int, float)) and math.isfinite(v)}
    found = []
    for prefix in [key.removesuffix("nfr") for key in known if key.startswith("eval_") and key.endswith("nfr")]:
        rates = {
            role: {rate: known[key] for rate in _LOGGED if (key := f"{prefix}{rate}{suffix}") in known}
            for role, suffix in (("old", "_old"), ("new", "_new"), ("compat", ""))
        }
        if rates["compat"].keys() & {"acc", "score"}:  # else another rate that ends in nfr
            found.append({"name": prefix.removeprefix("eval_").strip("_"), **rates})
    return found


def _of_adapter(task: Mapping[str, Any]) -> dict[str, Any]:
    """A task of a trimmed comparison, and beside it what the card reads it by."""
    new, compat = (next(update for update in task["updates"] if update["role"] == role) for role in ("new", "compat"))
    before = {(entry["column"], entry["value"]): entry["nfr"] for entry in new.get("slices", [])}
    worst = [
        (entry, before.get((entry["column"], entry["value"])))
        for entry in worst_slices(compat.get("slices", []))[:_SHOWN_SLICES]
    ]
    audit = compat.get("inheritance") or {}
    baselines = [(entry["label"], entry["inheritance"]) for entry in task.get("baselines", [])]
    inheriting = [
        piece
        for piece in audit.get("slices", [])
        if piece["returned"]["count"] and piece["returned"]["total"] >= ENOUGH
    ]
    return {
        **task,
        "new": new,
        "compat": compat,
        "against": compat.get("against_new") or {},
        "worst": [pair for pair in worst if any(rate and rate["value"] for rate in (pair[0]["nfr"], pair[1]))],
        "audit": audit,
        "audits": [("this adapter", audit), *baselines],
        "inheriting": inheriting[:_SHOWN_SLICES],
    }


def _settings(card: Card) -> Iterable[tuple[str, Any]]:
    for name in _LORA_SETTINGS:
        value = card.config.get(name)
        if value not in (None, False, 0, 0.0, [], {}) or name == "r":
            yield name, ", ".join(sorted(map(str, value))) if isinstance(value, list) else value
    for name, value in card.provenance["training"].items():
        told = name not in _HOUSEKEEPING and not name.startswith(_HOUSEKEEPING_KINDS)
        if told and value not in ([], {}, None) and not isinstance(value, dict):
            yield name, number(value)


def _next_rank(config: Mapping[str, Any]) -> int:
    ranks = [config.get("r") or 1, *(config.get("rank_pattern") or {}).values()]
    needed = max(rank for rank in ranks if isinstance(rank, int))
    # Servers accept a few sizes only, the smallest of which is 8.
    return next((size for size in (8, 16, 32, 64, 128, 256, 320, 512) if size >= needed), needed)
