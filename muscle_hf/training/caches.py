"""What stands in front of a trainer's teachers: caches of what they have said, checked against the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sized
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from muscle_hf.cache.compact import TopTokens, require_kl_alone
from muscle_hf.cache.fingerprint import Fingerprint, teacher_fingerprint
from muscle_hf.cache.keys import KeyRules, why_excluded
from muscle_hf.cache.likelihoods import FOLDER, VARIANT, AnswerLikelihoods
from muscle_hf.cache.room import human_bytes, predicted_bytes, require_space
from muscle_hf.cache.shards import Column
from muscle_hf.cache.source import CachedTargets
from muscle_hf.cache.store import HiddenStore, RowStore
from muscle_hf.errors import MuscleError
from muscle_hf.teachers import Teacher
from muscle_hf.teachers.head import Head
from muscle_hf.teachers.labels import IGNORED
from muscle_hf.teachers.weights import base_of

logger = logging.get_logger(__name__)


def caches_in_front(
    trainer: Any,
    roles: Collection[str],
    folder: str | os.PathLike | None = None,
    say: Callable[[str], object] = logger.info,
) -> dict[str, CachedTargets]:
    """A cache, in ``teacher_cache`` or another folder, in front of each of some teachers that run here; ``say`` is
    told its size before anything is written.

    Raises:
        MuscleError: A model's rows cannot be cached, or the disk is too small for what is missing.
    """
    sources, needed, (rows, tokens) = {}, 0, training_size(trainer)
    folder, autocast = os.fspath(folder or trainer.settings.teacher_cache), trainer.accelerator.autocast
    for role in roles:
        if not (teacher := trainer.teachers[role]).models:
            continue
        rules = KeyRules.of(teacher.model, trainer.kind)
        if rules.excluded:
            raise MuscleError(f"the {role} model's hidden states cannot be cached: {rules.excluded}")
        if teacher.head is None:
            teacher.open_head(Head(trainer.student, autocast), autocast)
        store = _open_cache(trainer, teacher, folder)
        sources[role] = CachedTargets(teacher, store, rules)
        share = max(0, rows - len(store)) / rows if rows else 0.0
        columns = store.columns or {"hidden": _expected(teacher.model, trainer.accelerator.mixed_precision)}
        needed += predicted_bytes(round(rows * share), round(tokens * share), columns)
    require_space(folder, needed)
    if needed:
        say(f"Cache of {' and '.join(sources)}: about {human_bytes(needed)} for the training rows, in {folder}")
    return sources


def answers_in_front(trainer: Any, folder: str | os.PathLike | None = None) -> AnswerLikelihoods:
    """v1 by its log-likelihoods of answers, which are kept beside hidden states, else in the run's folder."""
    old = trainer.teachers["old"]
    place = folder or trainer.settings.teacher_cache or os.path.join(trainer.run_folder, FOLDER)
    return AnswerLikelihoods(old, lambda: RowStore(place, _fingerprint(trainer, old), variant=VARIANT))


def _open_cache(trainer: Any, teacher: Teacher, folder: str | os.PathLike) -> HiddenStore:
    """The store of a teacher, exact or as ``teacher_cache_top_k`` says."""
    settings, objective, form = trainer.settings, trainer.muscle_objective, None
    if (k := settings.teacher_cache_top_k) is not None:
        if teacher.reader is not None:
            raise MuscleError(
                f"teacher_cache_top_k={k} keeps tokens of the {teacher.role} model under its own ids, but it reads "
                "other tokens or words than v2; use the exact cache (teacher_cache alone)"
            )
        what = f"teacher_cache_top_k={k} keeps probabilities at the run's temperature"
        require_kl_alone(objective, objective.reads, what, "use the exact cache (teacher_cache alone)")
        sizes = (base_of(model).config.get_text_config().vocab_size for model in (teacher.model, trainer.student))
        form = TopTokens(k, objective.temperature, min(sizes))
    return HiddenStore(folder, _fingerprint(trainer, teacher), form=form)


def _fingerprint(trainer: Any, teacher: Teacher) -> Fingerprint:
    described = None if trainer.provenance is None else getattr(trainer.provenance, teacher.role)
    tokenizer, precision = teacher.tokenizer or trainer.tokenizer, trainer.accelerator.mixed_precision
    return teacher.fingerprint or teacher_fingerprint(teacher, tokenizer, autocast=precision, provenance=described)


def advise(trainer: Any) -> None:
    """Say once what a cache would save a training without one; nothing where rows are seen once or are not cached."""
    args, (rows, tokens) = trainer.args, training_size(trainer)
    epochs = args.num_train_epochs
    if args.max_steps > 0:
        per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        epochs = args.max_steps * per_step / max(1, rows)
    asked = [teacher for role, teacher in trainer.teachers.items() if trainer._step.sources[role] is teacher]
    models = [model for teacher in asked for model in teacher.models]
    if not rows or epochs <= 1 or not models or any(why_excluded(base_of(model).config) for model in models):
        return
    columns = [{"hidden": _expected(model, trainer.accelerator.mixed_precision)} for model in models]
    needed = sum(predicted_bytes(rows, tokens, column) for column in columns)
    logger.warning_once(
        f"The teachers see each row in each of {epochs:.3g} epochs. teacher_cache='FOLDER' keeps what they say: "
        f"{1 - 1 / epochs:.0%} of their passes saved, with the same result, for {human_bytes(needed)} on the disk."
    )


def training_size(trainer: Any) -> tuple[int, int]:
    """Rows of the training set and about how many trained tokens they have; 0 and 0 for a stream."""
    labelled = trainer.datasets()["train"]
    if not isinstance(labelled, Sized) or not len(labelled):
        return 0, 0
    rows = len(trainer.train_dataset)
    found = [int((trainer.trained_labels(batch) != IGNORED).sum()) for batch in trainer.sample(labelled)]
    tokens = round(sum(found) * len(labelled) / len(found))
    # Transfer rows may have no answers yet; they are taken to be as long as the others.
    return rows, round(tokens * rows / len(labelled))


def _expected(model: nn.Module, precision: str | None) -> Column:
    base = base_of(model)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision or "", getattr(base, "dtype", torch.float32))
    return Column(dtype, (base.config.get_text_config().hidden_size,))
