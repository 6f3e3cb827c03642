"""How the compatibility adapter of a run gets what its teachers say: the cheapest way that changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sized
from dataclasses import dataclass, field
from typing import Any, cast

from muscle_hf.cache.keys import why_excluded
from muscle_hf.cache.room import human_bytes
from muscle_hf.pipeline.config import ModelSettings
from muscle_hf.pipeline.data import token_lengths
from muscle_hf.pipeline.steps import config_of

FOLDER = "teacher_cache"


@dataclass(frozen=True)
class Teaching:
    """The way that was chosen: why, and what it changes of the training arguments.

    ``scores``: both models are known by their scores of all choices, which each is asked for once, and no teacher is
    needed while training.
    """

    why: str
    training: Mapping[str, Any] = field(default_factory=dict)
    scores: bool = False


def choose_teaching(run: Any, processes: int) -> Teaching:
    """The cheapest way for a run.

    Scores of the choices, where these are what is followed: ``training.old_targets`` says so, or v1 has other tokens
    or words than v2. Else what ``training.teacher_cache`` says; else, where rows are seen several times, a cache in
    the run's folder, if that takes at most half of what is free on the disk.
    """
    if reason := scores_because(run):
        return Teaching(
            f"their scores of the choices, asked for once and kept in {run.folder}, since {reason}", scores=True
        )
    given, folder = run.training.get("teacher_cache"), run.cache_folder
    if given is not None:
        return Teaching(f"cached in {given}, {_size(run)}")
    cached = {"teacher_cache": os.fspath(folder)}
    epochs, transfer = epochs_of(run, processes), run.settings.data.transfer
    both = f"{'both models compute' if run.settings.old.is_here else 'v2 computes'} in each step"
    if "teacher_cache" in run.training:
        return Teaching(f"{both}, as training.teacher_cache says")
    if folder.exists():
        return Teaching(f"cached in {folder}, which is there already", cached)
    if epochs is None or epochs <= 1:
        return Teaching(f"{both}, since {'the rows are a stream' if epochs is None else 'each row is seen once'}")
    if transfer is not None and transfer.answers == "student":
        return Teaching(f"{both}, since the student's answers are others in each epoch")
    if reason := next(filter(None, (why_excluded(config_of(side)) for side in _sides(run))), None):
        return Teaching(f"{both}, since a model cannot be cached: {reason}")
    free = shutil.disk_usage(next(place for place in folder.absolute().parents if place.exists())).free
    if cache_bytes(run) > free / 2:
        room = f"a cache takes {_size(run)}, and {human_bytes(free)} are free in {run.settings.output_dir}"
        return Teaching(f"{both}, since {room}; training.teacher_cache names a folder on another disk")
    why = f"since each row is seen {epochs:.3g} times; training.teacher_cache: null turns it off"
    return Teaching(f"cached in {folder}, {_size(run)}, {why}", cached)


def scores_because(run: Any) -> str | None:
    """Why both models' scores of the choices are followed; None if they are not."""
    wanted, task = run.training.get("old_targets", "auto"), run.task
    asked = task is not None and task.kind == "choice" and run.settings.old.is_here
    if not asked or not run.answers_only or run.settings.data.streaming or run.settings.data.format != "task":
        return None
    if wanted != "auto":
        return None if wanted == "tokens" else f"training.old_targets is {wanted}"
    other = ["words"] * run.in_other_words + ["tokens"] * (run.level == "foreign")
    if not other:
        return None
    return f"v1 has other {' and '.join(other)} than v2 (training.old_targets: tokens follows its tokens instead)"


def epochs_of(run: Any, processes: int) -> float | None:
    """How often the compatibility adapter sees each row; None for a stream."""
    training, rows = run.training, run.data.train
    if not hasattr(rows, "__len__"):
        return None
    if training.get("max_steps", -1) < 1:
        return training.get("num_train_epochs", 3)
    per_step = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
    return training["max_steps"] * per_step * processes / (len(rows) + transfer_rows(run))


def transfer_rows(run: Any) -> int:
    """Rows without labels in an epoch; with the answers of both models there are more where these differ."""
    ratio = run.training.get("transfer_ratio")
    if not run.splits.transfer or ratio is not None:
        return round((ratio or 0) * len(cast("Sized", run.splits.train))) if run.splits.transfer else 0
    transfer = run.settings.data.transfer
    if transfer is not None and transfer.answers == "choices":
        return sum(len(item.choices) for item in run.splits.transfer)
    return len(run.splits.transfer)


def cache_bytes(run: Any) -> int:
    """What the teachers' hidden states take on the disk, where they are kept there: d numbers a trained token each.

    Transfer rows have no answers yet; they are taken to be as long as the others. Of rows that TRL tokenizes every
    token counts.
    """
    parts = [part for part in (run.data.train, run.data.validation) if hasattr(part, "__len__")]
    if not parts or not len(parts[0]):
        return 0
    if "labels" in parts[0][0]:
        # The first token of a row is nobody's next one.
        trained = [sum(label != -100 for row in part for label in row["labels"][1:]) for part in parts]
    else:
        lengths = token_lengths(run.data) or [0]
        trained = [sum(lengths) / len(lengths) * len(part) for part in parts]
    tokens = sum(trained) + trained[0] / len(parts[0]) * transfer_rows(run)
    return round(tokens * sum(_token_bytes(config_of(side), run) for side in _sides(run)))


def _sides(run: Any) -> list[ModelSettings]:
    return [side for side in (run.settings.old, run.settings.new) if not side.answers]


def _token_bytes(config: Any, run: Any) -> int:
    dtype = str(config.dtype) if run.settings.dtype == "auto" else run.settings.dtype
    half = run.training.get("bf16") or run.training.get("fp16") or dtype.endswith("16")
    return config.get_text_config().hidden_size * (2 if half else 4)


def _size(run: Any) -> str:
    return f"about {human_bytes(cache_bytes(run))}"
