"""Fixtures that every test module may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Two cores run the whole suite; oversubscribed OpenMP threads make it crawl. Set before torch is imported anywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real data sets and small real models: ``MUSCLE_HF_SHARED``, or ``shared`` beside the checkout."""
    root = Path(os.environ.get("MUSCLE_HF_SHARED", Path(__file__).parents[2] / "shared"))
    if not (root / "models").is_dir():
        pytest.skip(f"real data and models are not at {root}; set MUSCLE_HF_SHARED to their folder")
    return root
