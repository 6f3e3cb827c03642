"""Run a model on a task, and keep what it answered as predictions."""

from __future__ import annotations

import importlib
from typing import Any

# Public name -> module that defines it; resolved at first use, so that reading predictions needs no torch.
_HOMES = {
    "Item": "tasks",
    "Source": "tasks",
    "Task": "tasks",
    "Prediction": "predictions",
    "item_hash": "predictions",
    "iter_predictions": "predictions",
    "read_predictions": "predictions",
    "write_predictions": "predictions",
    "encode_pair": "encoding",
    "encode_pairs": "encoding",
    "evaluate_task": "engine",
    "choice_log_likelihoods": "engine",
    "Server": "server",
    "evaluate_task_on_server": "server",
    "HarnessModel": "harness",
    "load_sides": "harness",
    "run_harness": "harness",
    "builtin_tasks": "registry",
    "load_rows": "registry",
    "load_items": "registry",
    "load_task": "registry",
}

__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
