"""How the compatibility adapter of a run gets what its teachers say: the cheapest way that changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from muscle_hf.cache.build import human_bytes
from muscle_hf.pipeline.plan import cache_of, size_of, transfer_rows
from muscle_hf.pipeline.table import NEW, OLD

if TYPE_CHECKING:
    from muscle_hf.pipeline.run import Run

FOLDER = "teacher_cache"


@dataclass(frozen=True)
class Teaching:
    """The way that was chosen: in words, with the reason, and what it changes of the training arguments."""

    why: str
    training: Mapping[str, Any] = field(default_factory=dict)


def choose_teaching(run: Run, processes: int) -> Teaching:
    """The cheapest way for a run: what ``training.teacher_cache`` says; else, where rows are seen several times, a
    cache in the run's folder, if that takes at most half of what is free on the disk."""
    given, folder = run.training.get("teacher_cache"), run.folder / FOLDER
    if given is not None:
        return Teaching(f"cached in {given}, {_size(run)}")
    cached = {"teacher_cache": os.fspath(folder)}
    both, epochs, transfer = "both models compute in each step", epochs_of(run, processes), run.settings.data.transfer
    if "teacher_cache" in run.training:
        return Teaching(f"{both}, as training.teacher_cache says")
    if folder.exists():
        return Teaching(f"cached in {folder}, which is there already", cached)
    if epochs is None or epochs <= 1:
        return Teaching(f"{both}, since {'the rows are a stream' if epochs is None else 'each row is seen once'}")
    if transfer is not None and transfer.answers == "student":
        return Teaching(f"{both}, since the student's answers are others in each epoch")
    free = shutil.disk_usage(next(place for place in folder.absolute().parents if place.exists())).free
    if _bytes(run) > free / 2:
        room = f"a cache takes {_size(run)}, and {human_bytes(free)} are free in {run.settings.output_dir}"
        return Teaching(f"{both}, since {room}; training.teacher_cache names a folder on another disk")
    why = f"since each row is seen {epochs:.3g} times; training.teacher_cache: null turns it off"
    return Teaching(f"cached in {folder}, {_size(run)}, {why}", cached)


def epochs_of(run: Run, processes: int) -> float | None:
    """How often the compatibility adapter sees each row; None for a stream."""
    training, rows = run.training, run.data.train
    if not hasattr(rows, "__len__"):
        return None
    if training.get("max_steps", -1) < 1:
        return training.get("num_train_epochs", 3)
    per_step = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    return training["max_steps"] * per_step * processes / (len(rows) + transfer_rows(run))


def _bytes(run: Run) -> int:
    settings = run.settings
    sides = {OLD: settings.old, NEW: settings.new}
    return round(cache_of(run, {name: size_of(side, settings.lora) for name, side in sides.items()}))


def _size(run: Run) -> str:
    return f"about {human_bytes(_bytes(run))}"
