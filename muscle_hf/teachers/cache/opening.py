"""The caches of a trainer's teachers, checked against the disk before training."""

from __future__ import annotations

import os
from collections.abc import Sized
from typing import TYPE_CHECKING

import torch

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.cache.build import predicted_bytes, require_space
from muscle_hf.teachers.cache.compact import TopTokens
from muscle_hf.teachers.cache.fingerprint import Fingerprint, teacher_fingerprint
from muscle_hf.teachers.cache.keys import KeyRules
from muscle_hf.teachers.cache.shards import Column
from muscle_hf.teachers.cache.store import HiddenStore
from muscle_hf.teachers.kinds import IGNORED
from muscle_hf.teachers.weights import base_of

if TYPE_CHECKING:
    from muscle_hf.trainer import MuscleTrainer

# Rows looked at to predict how many tokens all of them have.
_SAMPLE = 256


def open_caches(trainer: MuscleTrainer, folder: str | os.PathLike) -> dict[str, HiddenStore]:
    """Open the stores of both teachers, and refuse what cannot be cached or does not fit on the disk.

    Args:
        trainer: Its teachers are on their devices.
        folder: Of the cache.

    Returns:
        Of ``old`` and ``new``.

    Raises:
        MuscleError: A model's rows cannot be cached, or the disk is too small for what is missing.
    """
    stores, needed = {}, 0
    rows, tokens = _size_of(trainer)
    for role, teacher in trainer.teachers.items():
        rules = KeyRules.of(teacher.model, trainer.kind)
        if rules.excluded:
            raise MuscleError(f"the {role} model's hidden states cannot be cached: {rules.excluded}")
        stores[role] = store = open_cache(trainer, role, folder)
        share = max(0, rows - len(store)) / rows if rows else 0.0
        columns = store.columns or {"hidden": _expected(teacher.model, trainer.accelerator.mixed_precision)}
        needed += predicted_bytes(round(rows * share), round(tokens * share), columns)
    require_space(folder, needed)
    return stores


def open_cache(trainer: MuscleTrainer, role: str, folder: str | os.PathLike) -> HiddenStore:
    """The store of one teacher, exact or as ``teacher_cache_top_k`` says.

    Args:
        trainer: Has the teacher.
        role: ``old`` or ``new``.
        folder: Of the cache.

    Raises:
        MuscleError: The objective needs more than the compact form keeps, or k is out of range.
    """
    k, objective, form = getattr(trainer.args, "teacher_cache_top_k", None), trainer.muscle_objective, None
    if k is not None:
        if objective.reads - {"student"} or objective.divergence != "kl" or objective.blend == "logits":
            raise MuscleError(
                f"teacher_cache_top_k={k} keeps probabilities at the run's temperature, which are enough for the KL, "
                "but not for masks that read a teacher's logits, logit_difference, or blended logits; use the exact "
                "cache (teacher_cache alone)"
            )
        bases = (base_of(model) for model in (trainer.teachers[role].model, trainer.student))
        form = TopTokens(k, objective.temperature, min(base.config.get_text_config().vocab_size for base in bases))
    return HiddenStore(folder, fingerprint_in(trainer, role), form=form)


def fingerprint_in(trainer: MuscleTrainer, role: str) -> Fingerprint:
    """The fingerprint of a trainer's teacher; hashes that are known already are not taken again.

    Args:
        trainer: Has the teacher, its rows' tokenizer and the precision.
        role: ``old`` or ``new``.
    """
    teacher = trainer.teachers[role]
    known = getattr(teacher, "fingerprint", None)  # of a teacher that the cache stands in for
    if known is not None:
        return known
    described = None if trainer.provenance is None else getattr(trainer.provenance, role)
    precision = trainer.accelerator.mixed_precision
    return teacher_fingerprint(teacher, trainer.tokenizer, autocast=precision, provenance=described)


def _expected(model: torch.nn.Module, precision: str | None) -> Column:
    base = base_of(model)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, getattr(base, "dtype", torch.float32))
    return Column(dtype, (base.config.get_text_config().hidden_size,))


def _size_of(trainer: MuscleTrainer) -> tuple[int, int]:
    """Rows of the training set and about how many trained tokens they have; 0 and 0 for a stream."""
    data, rows = trainer.datasets()["train"], trainer.train_dataset
    if not isinstance(data, Sized) or not hasattr(data, "__getitem__") or not len(data):
        return 0, 0
    data, collate = trainer.rows_and_collator(data, "training")
    sample = range(0, len(data), max(1, len(data) // _SAMPLE))
    with torch.random.fork_rng(devices=[]):
        found = sum(int((trainer.trained_labels(collate([data[i]])) != IGNORED).sum()) for i in sample)
    # Transfer rows may have no answers yet; they are taken to be as long as the others.
    return len(rows), round(found * len(rows) / len(sample))
