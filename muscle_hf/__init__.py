"""Model updates that keep right answers right: MUSCLE compatibility adapters for the Hugging Face stack."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# Public name -> module that defines it, imported at first use so that `import muscle_hf` stays light.
_HOMES: dict[str, str] = {
    "MuscleConfig": "muscle_hf.config",
    "MuscleTrainer": "muscle_hf.trainer",
    "MuscleSFTConfig": "muscle_hf.sft",
    "MuscleSFTTrainer": "muscle_hf.sft",
    "MuscleError": "muscle_hf.errors",
    "FlipMetricsCallback": "muscle_hf.callbacks",
    "load_compatible": "muscle_hf.hub.load",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
