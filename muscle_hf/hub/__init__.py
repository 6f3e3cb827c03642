"""The Hub: publish, describe, find and fetch compatibility adapters.

``publish(folder, repo_id)``, ``load_compatible(repo)``, ``fetch(repo)``, ``list_compatible()``,
``publish_metric(name, repo_id)``; ``render_card(folder)``, ``write_card(folder)``, ``complete_card(folder, ...)``,
``export_card(folder, target)``; :class:`CardState` and ``MuscleCardCallback`` are what a card is made from.
``MuscleTrainer`` publishes through :mod:`muscle_hf.hub.trainer`, so this package lies below the trainer and knows
nothing of it.
"""

from __future__ import annotations

from muscle_hf.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "CardState": "state",
        "Fetched": "fetching",
        "HubError": "errors",
        "Listing": "search",
        "MismatchError": "load",
        "MuscleCardCallback": "callback",
        "Published": "publishing",
        "complete_card": "completing",
        "export_card": "completing",
        "fetch": "fetching",
        "list_compatible": "search",
        "load_compatible": "load",
        "publish": "publishing",
        "publish_metric": "metric_spaces",
        "render_card": "card",
        "write_card": "card",
    },
)
