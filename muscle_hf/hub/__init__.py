"""The Hub: publish, describe, find and fetch compatibility adapters.

``publish(folder, repo_id)``, ``load_compatible(repo)``, ``fetch(repo)``, ``list_compatible()``,
``publish_metric(name, repo_id)``; ``render_card(folder)``, ``write_card(folder)``, ``complete_card(folder, ...)``,
``export_card(folder, target)``; :class:`CardState` and ``MuscleCardCallback`` are what a card is made from.
``MuscleTrainer`` publishes through :mod:`muscle_hf.hub.trainer`, so this package lies below the trainer and knows
nothing of it.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "CardState": "muscle_hf.hub.state",
    "Fetched": "muscle_hf.hub.fetching",
    "HubError": "muscle_hf.hub.errors",
    "Listing": "muscle_hf.hub.search",
    "MismatchError": "muscle_hf.hub.errors",
    "MuscleCardCallback": "muscle_hf.hub.callback",
    "Published": "muscle_hf.hub.publishing",
    "complete_card": "muscle_hf.hub.completing",
    "export_card": "muscle_hf.hub.completing",
    "fetch": "muscle_hf.hub.fetching",
    "list_compatible": "muscle_hf.hub.search",
    "load_compatible": "muscle_hf.hub.load",
    "publish": "muscle_hf.hub.publishing",
    "publish_metric": "muscle_hf.hub.metric_spaces",
    "render_card": "muscle_hf.hub.card",
    "write_card": "muscle_hf.hub.card",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
