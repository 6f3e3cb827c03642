"""The embedded world of ``muscle-hf demo``: tickets of a help desk, three tasks, and two small pretrained bases."""

from __future__ import annotations

from pathlib import Path

from muscle_hf.demo.tasks import SETTINGS, TASKS, TaskSettings, rows

VERSIONS = ("v1", "v2")

__all__ = ["SETTINGS", "TASKS", "VERSIONS", "TaskSettings", "base", "rows"]


def base(version: str) -> Path:
    """The folder of an embedded base: a Llama-type model in safetensors with its tokenizer.

    Raises:
        ValueError: ``version`` is neither ``v1`` nor ``v2``.
    """
    if version not in VERSIONS:
        raise ValueError(f"unknown base {version!r}; choose one of {', '.join(VERSIONS)}")
    return Path(__file__).parent / "bases" / version
