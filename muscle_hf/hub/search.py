"""Find compatibility adapters on the Hub."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult
from huggingface_hub.hf_api import ModelInfo

from muscle_hf.hub.card import TAGS
from muscle_hf.hub.errors import hub_errors
from muscle_hf.hub.publishing import hub_api
from muscle_hf.report.text import plain

_AFTERWARDS = "Run the same again later."


@dataclass(frozen=True)
class TaskRates:
    """What an adapter's card states of one task: NFR of the plain update and with the adapter, fractions (for
    similarity tasks the share of answers that got worse); nan if the card does not say."""

    task: str
    nfr_new: float
    nfr: float

    @property
    def change_percent(self) -> float:
        """Change of the NFR by the adapter, in percent of that of the plain update; negative is better."""
        return 100 * (self.nfr - self.nfr_new) / self.nfr_new if self.nfr_new else math.nan


@dataclass(frozen=True)
class Listing:
    """One adapter on the Hub, as its card describes it; all of it is the publisher's word.

    Args:
        repo_id: Its id.
        commit: Its present commit.
        old: Name of the old base.
        new: Id of the new base; its name, where the publisher had it in a local folder.
        tasks: Rates by task.
        license: Identifier.
        private: Whether only its owners see it.
    """

    repo_id: str
    commit: str | None
    old: str | None
    new: str | None
    tasks: list[TaskRates] = field(default_factory=list)
    license: str | None = None
    private: bool = False


def list_compatible(
    search: str | None = None,
    *,
    author: str | None = None,
    base_model: str | None = None,
    limit: int | None = 50,
    token: str | bool | None = None,
) -> Iterator[Listing]:
    """Compatibility adapters on the Hub, found by their tag.

    Args:
        search: Part of the name.
        author: User or organisation.
        base_model: Id of the new base.
        limit: At most so many.
        token: Of the Hub, to see private ones; by default the stored one.

    Raises:
        HubError: The Hub cannot be reached, or refuses.
    """
    tags = [TAGS[0], *([f"base_model:{base_model}"] if base_model else [])]
    with hub_errors("listing compatibility adapters", _AFTERWARDS, token):
        found = hub_api(token).list_models(
            filter=tags, search=search, author=author, limit=limit, full=True, cardData=True
        )
        for info in found:
            yield _listing(info)


def _listing(info: ModelInfo) -> Listing:
    data = info.card_data.to_dict() if info.card_data is not None else {}
    base = data.get("base_model")
    base = base[0] if isinstance(base, list) and base else base
    return Listing(
        repo_id=plain(info.id),
        commit=info.sha,
        old=_text(data.get("old_model")),
        new=_text(base) or _text(data.get("new_model")),
        tasks=list(_rates(getattr(info.card_data, "eval_results", None))),
        license=_text(data.get("license")),
        private=bool(info.private),
    )


def _rates(results: list[EvalResult] | None) -> Iterator[TaskRates]:
    # Anybody can tag anything: what is not shaped like one of our cards is passed over.
    by_task: dict[str | None, dict[str, Any]] = {}
    for result in results or []:
        by_task.setdefault(_text(result.dataset_name), {})[str(result.metric_type)] = result.metric_value
    for task, values in by_task.items():
        name = "nfr" if "nfr" in values else "nfr_smooth"
        after, before = values.get(name), values.get(f"{name}_v2")
        if isinstance(after, (int, float)):
            known = isinstance(before, (int, float))
            yield TaskRates(task or "?", float(before) if known else math.nan, float(after))


def _text(value: Any) -> str | None:
    return plain(value, 100) if isinstance(value, str) else None
