"""The embedded world of ``muscle-hf demo``: tickets of a help desk, three tasks, and two small pretrained bases."""

from __future__ import annotations

from muscle_hf.bundled import VERSIONS, base
from muscle_hf.demo.tasks import SETTINGS, TASKS, TaskSettings, rows

__all__ = ["SETTINGS", "TASKS", "VERSIONS", "TaskSettings", "base", "rows"]
