"""What stands in front of a trainer's teachers: caches of what they have said, checked against the disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from muscle_hf.cache.build import human_bytes, predicted_bytes, require_space
from muscle_hf.cache.compact import TopTokens, require_kl_alone
from muscle_hf.cache.fingerprint import Fingerprint, TeacherFiles, file_fingerprint, teacher_fingerprint
from muscle_hf.cache.head_files import load_head
from muscle_hf.cache.keys import KeyRules, why_excluded
from muscle_hf.cache.likelihoods import FOLDER, VARIANT, AnswerLikelihoods
from muscle_hf.cache.shards import Column
from muscle_hf.cache.source import CachedTargets
from muscle_hf.cache.store import MANIFEST, HiddenStore, RowStore, folder_name
from muscle_hf.cache.teacher import CachedTeacher
from muscle_hf.errors import MuscleError
from muscle_hf.teachers import Teacher
from muscle_hf.teachers.labels import IGNORED
from muscle_hf.teachers.loading import FETCH_KEYS
from muscle_hf.teachers.roles import is_base_of
from muscle_hf.teachers.tokenizers import own_tokenizer
from muscle_hf.teachers.weights import base_of

logger = logging.get_logger(__name__)


def caches_in_front(trainer: Any, roles: Collection[str]) -> dict[str, CachedTargets]:
    """A cache in front of each of some teachers that run here.

    Raises:
        MuscleError: A model's rows cannot be cached, or the disk is too small for what is missing.
    """
    sources, needed, (rows, tokens) = {}, 0, training_size(trainer)
    for role in roles:
        if not (teacher := trainer.teachers[role]).models:
            continue
        rules = KeyRules.of(teacher.model, trainer.kind)
        if rules.excluded:
            raise MuscleError(f"the {role} model's hidden states cannot be cached: {rules.excluded}")
        store = open_cache(trainer, teacher)
        sources[role] = CachedTargets(teacher, store, rules)
        share = max(0, rows - len(store)) / rows if rows else 0.0
        columns = store.columns or {"hidden": _expected(teacher.model, trainer.accelerator.mixed_precision)}
        needed += predicted_bytes(round(rows * share), round(tokens * share), columns)
    require_space(trainer.settings.teacher_cache, needed)
    return sources


def answers_in_front(trainer: Any, folder: str | os.PathLike | None = None) -> AnswerLikelihoods:
    """v1 by its log-likelihoods of answers, which are kept beside hidden states, else in the run's folder."""
    old = trainer.teachers["old"]
    place = folder or trainer.settings.teacher_cache or os.path.join(trainer.run_folder, FOLDER)
    return AnswerLikelihoods(old, lambda: RowStore(place, _fingerprint(trainer, old), variant=VARIANT))


def open_cache(trainer: Any, teacher: Teacher, folder: str | os.PathLike | None = None) -> HiddenStore:
    """The store of a teacher in ``teacher_cache`` or another folder, exact or as ``teacher_cache_top_k`` says.

    Raises:
        MuscleError: The objective needs more than the compact form keeps, or k is out of range.
    """
    settings, objective, form = trainer.settings, trainer.muscle_objective, None
    if (k := settings.teacher_cache_top_k) is not None:
        what = f"teacher_cache_top_k={k} keeps probabilities at the run's temperature"
        require_kl_alone(objective, objective.reads, what, "use the exact cache (teacher_cache alone)")
        sizes = (base_of(model).config.get_text_config().vocab_size for model in (teacher.model, trainer.student))
        form = TopTokens(k, objective.temperature, min(sizes))
    return HiddenStore(folder or settings.teacher_cache, _fingerprint(trainer, teacher), form=form)


def cached_teacher(
    trainer: Any, role: str, source: Any, arguments: Mapping[str, Any] | None, load: Callable[[], Teacher]
) -> CachedTeacher | None:
    """A teacher on the hidden states that a trainer's cache holds of it, which ``load`` loads as a whole.

    Returns:
        None where the cache holds nothing of this teacher, or where it takes the loaded model to know that; and where
        it sits on the student's own base: that needs no second body, cached or not.
    """
    folder, base = Path(trainer.settings.teacher_cache), base_of(trainer.student)
    how = {"dtype": getattr(base, "dtype", None), **(arguments or {})}
    known = {"base_model", "base_revision", "revision", "dtype", "attn_implementation", *FETCH_KEYS}
    if how.keys() - known:
        return None  # quantization and the like decide what the model computes, and are not in its files
    attention, dtype = how.pop("attn_implementation", None), how.pop("dtype", None)
    if not any(folder.glob(f"*/{MANIFEST}")):
        return None
    # The accelerator is made later, of this.
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION")
    try:
        files = TeacherFiles.find(source, **how)
        if is_base_of(trainer.student, files.base, files.adapter and files.adapter.config):
            return None
        folders = [files.base] if files.adapter is None else [files.adapter.folder, files.base]
        tokenizer = own_tokenizer(trainer.tokenizers[role], folders) or trainer.tokenizers["new"]
        fingerprint = file_fingerprint(
            files, trainer.kind, tokenizer, role=role, dtype=dtype, autocast=precision, attn_implementation=attention
        )
        if not any(folder.glob(f"{folder_name(fingerprint)}*/{MANIFEST}")):
            return None
        head = load_head(files, trainer.kind, dtype=dtype)
    except MuscleError as error:
        logger.info(f"The {role} model is loaded as a whole: {error}")
        return None
    teacher = CachedTeacher(role, head, fingerprint, load)
    teacher.source, teacher.revision = os.fspath(source), how.get("revision")
    return teacher


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
