"""Filling a run's teacher cache ahead of its training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from muscle_hf.cache.likelihoods import AnswerLikelihoods
from muscle_hf.cache.source import CachedTargets
from muscle_hf.errors import MuscleError
from muscle_hf.pipeline.config import RunSettings
from muscle_hf.pipeline.run import VERSIONS, Run
from muscle_hf.pipeline.table import COMPAT
from muscle_hf.pipeline.teaching import scores_because
from muscle_hf.served.teacher import ServedTeacher
from muscle_hf.teachers.batch import Batch
from muscle_hf.trainer import MuscleTrainer
from muscle_hf.training.caches import answers_in_front, caches_in_front


@dataclass(frozen=True)
class Cached:
    """What is in the cache of one teacher: its folder, how many rows were looked at, and how many of these were
    missing and are computed now."""

    folder: str
    rows: int
    computed: int


def cache_run(
    settings: RunSettings, folder: str | os.PathLike, batch_size: int | None = None, say: Callable[[str], None] = print
) -> dict[str, Cached]:
    """:func:`cache_teachers` for the compatibility adapter of a run; missing task adapters are trained first.

    Where training takes both models' scores of the choices, these are asked for instead, and nothing is cached.
    """
    whole = Run.of(settings, say)
    if reason := scores_because(whole):
        say(f"Training needs no cache but both models' scores of the choices, kept in {whole.folder}, since {reason}")
        for name in VERSIONS:
            whole.choice_log(name)
        return {}
    return cache_teachers(whole.compatibility_trainer(whole.folder / COMPAT), folder, batch_size=batch_size, say=say)


def cache_teachers(
    trainer: MuscleTrainer,
    folder: str | os.PathLike,
    *,
    batch_size: int | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Cached]:
    """Compute what the cache keeps of both teachers, ``old`` and ``new``, on a trainer's training and evaluation rows:
    hidden states, or of a v1 that is followed in whole answers one number each. ``batch_size``: rows per forward pass,
    the trainer's for evaluation by default; ``say`` is told the sizes before anything is written.

    What is there already is not computed again, so an interrupted call goes on where it stopped. Started by
    ``accelerate launch``, the processes share the rows. Refused: rows that are a stream, a model that cannot be
    cached, a disk too small, an objective that needs more than ``teacher_cache_top_k`` keeps.
    """
    found: dict[str, Cached] = {}
    size = batch_size or trainer.args.eval_batch_size
    for role, teacher in trainer.teachers.items():
        whole_answers = role == "old" and trainer.old_targets == "answer"
        if (served := teacher.served) is not None:
            served.keep_in(folder)
            if not len(served.store):
                _ = served.model_there  # which keeps a text of its own, not to be counted

            def ask(batch: Batch, served: ServedTeacher = served, whole_answers: bool = whole_answers) -> None:
                served.states(served.spelling(batch.answers()) if whole_answers else served.reading(batch))

            found[role] = _ask_each(trainer, role, served, ask, 4 * max(1, served.server.concurrency))
        if not teacher.models:
            continue
        if whole_answers:
            source: AnswerLikelihoods | CachedTargets = answers_in_front(trainer, folder)
        else:
            heard = say if say is not None and trainer.accelerator.is_main_process else lambda text: None
            source = caches_in_front(trainer, [role], folder, heard)[role]
        found[role] = _ask_each(trainer, role, source, source.targets, size)
    return found


def _ask_each(
    trainer: MuscleTrainer,
    role: str,
    source: ServedTeacher | AnswerLikelihoods | CachedTargets,
    ask: Callable[[Batch], Any],
    size: int,
) -> Cached:
    """Ask a source about all rows, of which it keeps what it says; ``size`` of them at a time, and the longest first,
    so that a batch that does not fit fails at once."""
    accelerator, asked, before = trainer.accelerator, 0, len(source.store)
    hidden = trainer.args.disable_tqdm or not accelerator.is_local_main_process
    for name, rows, collate in _datasets(trainer, role):
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index].get("input_ids") or ()))
        starts = range(accelerator.process_index * size, len(rows), accelerator.num_processes * size)
        for start in tqdm(starts, desc=name, unit="batch", disable=hidden):
            inputs = collate([rows[index] for index in order[start : start + size]])
            with torch.no_grad(), accelerator.autocast():
                ask(trainer.batch_of(trainer._prepare_inputs(inputs)))
        asked += len(rows)
    source.flush()
    computed = len(source.store) - before
    accelerator.wait_for_everyone()
    return Cached(str(source.store.folder), asked, computed)


def _datasets(trainer: MuscleTrainer, role: str) -> list[tuple[str, Any, Callable]]:
    """What they are, rows and collators as the trainer's own loaders use them."""
    evaluated = trainer.eval_dataset
    trainer.answer_transfer_prompts(resumes=True)
    parts = {"training": trainer.train_dataset}
    parts |= evaluated if isinstance(evaluated, dict) else {"evaluation": evaluated}
    parts = {name: rows for name, rows in parts.items() if rows is not None}
    for name, rows in parts.items():
        if isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__"):
            raise MuscleError(
                f"the {name} rows are a stream, whose end is not known; they are cached while the run trains"
            )
    return [(f"{role} model, {name} rows", *trainer.rows_and_collator(rows, name)) for name, rows in parts.items()]
