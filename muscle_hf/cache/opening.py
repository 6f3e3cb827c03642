"""The caches of two teachers, checked against the disk before training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments
from transformers.utils import logging

from muscle_hf.cache.build import human_bytes, predicted_bytes, require_space
from muscle_hf.cache.compact import TopTokens
from muscle_hf.cache.fingerprint import Fingerprint
from muscle_hf.cache.keys import KeyRules, why_excluded
from muscle_hf.cache.shards import Column
from muscle_hf.cache.source import CachedTargets
from muscle_hf.cache.store import HiddenStore
from muscle_hf.errors import MuscleError
from muscle_hf.objective import Objective
from muscle_hf.teachers.kinds import ModelKind
from muscle_hf.teachers.teacher import Teacher
from muscle_hf.teachers.weights import base_of

logger = logging.get_logger(__name__)


def open_caches(
    folder: str | os.PathLike,
    teachers: Mapping[str, Teacher],
    kind: ModelKind,
    opened: Callable[[Teacher], HiddenStore],
    size: tuple[int, int],
    precision: str | None = None,
) -> dict[str, Any]:
    """Put a cache in front of each teacher, and refuse what cannot be cached or does not fit on the disk.

    Args:
        folder: Of the cache.
        teachers: ``old`` and ``new``, on their devices.
        kind: Of their models.
        opened: Opens a teacher's store, as :func:`open_cache` does.
        size: Rows of the training set and how many trained tokens they have; 0 and 0 where that is not known.
        precision: Accelerate's ``mixed_precision``.

    Raises:
        MuscleError: A model's rows cannot be cached, or the disk is too small for what is missing.
    """
    sources: dict[str, Any] = dict(teachers)
    rows, tokens = size
    needed = 0
    for role, teacher in ((role, teacher) for role, teacher in teachers.items() if teacher.models):
        rules = KeyRules.of(teacher.model, kind)
        if rules.excluded:
            raise MuscleError(f"the {role} model's hidden states cannot be cached: {rules.excluded}")
        store = opened(teacher)
        sources[role] = CachedTargets(teacher, store, rules)
        share = max(0, rows - len(store)) / rows if rows else 0.0
        columns = store.columns or {"hidden": _expected(teacher.model, precision)}
        needed += predicted_bytes(round(rows * share), round(tokens * share), columns)
    require_space(folder, needed)
    return sources


def open_cache(
    folder: str | os.PathLike,
    teacher: Teacher,
    student: nn.Module,
    objective: Objective,
    fingerprint: Fingerprint,
    top_k: int | None = None,
) -> HiddenStore:
    """The store of one teacher.

    Args:
        folder: Of the cache.
        teacher: Whose hidden states it holds.
        student: With whose vocabulary they are compared.
        objective: What is made of them.
        fingerprint: The teacher's.
        top_k: Keep so many of its likeliest tokens in the place of hidden states.

    Raises:
        MuscleError: The objective needs more than the compact form keeps, or k is out of range.
    """
    form = None
    if top_k is not None:
        what = f"teacher_cache_top_k={top_k} keeps probabilities at the run's temperature"
        require_kl_alone(objective, objective.reads, what, "use the exact cache (teacher_cache alone)")
        sizes = (base_of(model).config.get_text_config().vocab_size for model in (teacher.model, student))
        form = TopTokens(top_k, objective.temperature, min(sizes))
    return HiddenStore(folder, fingerprint, form=form)


def advise(
    teachers: Mapping[str, Teacher], size: tuple[int, int], args: TrainingArguments, precision: str | None = None
) -> None:
    """Say once what a cache would save a training without one; nothing where rows are seen once or are not cached.

    Args:
        teachers: As :func:`open_caches` takes them, as it does ``size`` and ``precision``.
        args: Of the training.
    """
    rows, tokens = size
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        epochs = args.max_steps * per_step / max(1, rows)
    models = [model for teacher in teachers.values() for model in teacher.models]
    if not rows or epochs <= 1 or not models or any(why_excluded(base_of(model).config) for model in models):
        return
    needed = sum(predicted_bytes(rows, tokens, {"hidden": _expected(model, precision)}) for model in models)
    logger.warning_once(
        f"The teachers see each row in each of {epochs:.3g} epochs. teacher_cache='FOLDER' keeps what they say: "
        f"{1 - 1 / epochs:.0%} of their passes saved, with the same result, for {human_bytes(needed)} on the disk."
    )


def require_kl_alone(objective: Objective, reads: Iterable[str], what: str, remedy: str) -> None:
    """Refuse an objective that needs more of a teacher than its likeliest tokens and the rest as one.

    Args:
        objective: What is trained.
        reads: Whose logits its masks read, of those that are known so.
        what: Is kept, and by what.
        remedy: What to do instead.

    Raises:
        MuscleError: It does.
    """
    if set(reads) - {"student"} or objective.divergence != "kl" or objective.blend == "logits":
        raise MuscleError(
            f"{what}, which are enough for the KL, but not for masks that read a teacher's logits, logit_difference, "
            f"or blended logits; {remedy}"
        )


def _expected(model: nn.Module, precision: str | None) -> Column:
    base = base_of(model)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision or "", getattr(base, "dtype", torch.float32))
    return Column(dtype, (base.config.get_text_config().hidden_size,))
