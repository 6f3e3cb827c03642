"""Filling a run's teacher cache ahead of its training."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import IterableDataset
from tqdm.auto import tqdm

from muscle_hf.cache import CachePlan, KeyRules, build_cache
from muscle_hf.errors import MuscleError
from muscle_hf.pipeline.config import RunSettings
from muscle_hf.pipeline.run import VERSIONS, Run
from muscle_hf.pipeline.table import COMPAT
from muscle_hf.pipeline.teaching import scores_because
from muscle_hf.served.teacher import ServedTeacher
from muscle_hf.teachers.batch import Batch
from muscle_hf.trainer import MuscleTrainer
from muscle_hf.training.caches import answers_in_front, open_cache


@dataclass(frozen=True)
class Cached:
    """What is in the cache of one teacher: what was missing, per data set; the folder; how many sequences it holds."""

    plans: list[CachePlan]
    folder: str
    sequences: int


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
    # Teachers that would read the cache themselves are of no use to fill it.
    changed = {"teacher_cache": None} if "teacher_cache" in whole.training else {}
    trainer = whole.compatibility_trainer(whole.folder / COMPAT, **changed)
    return cache_teachers(trainer, folder, batch_size=batch_size, say=say)


def cache_teachers(
    trainer: MuscleTrainer,
    folder: str | os.PathLike,
    *,
    batch_size: int | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Cached]:
    """Compute what the cache keeps of both teachers on a trainer's training and evaluation rows.

    Those are hidden states, or of a v1 that is followed in whole answers one number each.

    What is there already is not computed again, so an interrupted call goes on where it stopped. Started by
    ``accelerate launch``, the processes share the rows.

    Args:
        trainer: Has the teachers, the rows, the collator, the precision.
        folder: Of the cache.
        batch_size: Rows per forward pass; the trainer's for evaluation by default.
        say: Told the sizes before anything is written.

    Returns:
        Of each teacher, ``old`` and ``new``.

    Raises:
        MuscleError: The rows are a stream, the model cannot be cached, the disk is too small, or the objective needs
            more than ``teacher_cache_top_k`` keeps.
    """
    accelerator = trainer.accelerator
    found = {}
    for role, teacher in trainer.teachers.items():
        if teacher.served is not None:
            teacher.served.keep_in(folder)
            found[role] = _fill_from_server(trainer, teacher.served)
        if not teacher.models:
            continue
        if role == "old" and trainer.old_targets == "answer":
            found[role] = _fill_numbers(trainer, folder, batch_size or trainer.args.eval_batch_size)
            continue
        with open_cache(trainer, teacher, folder) as store:
            plans = [
                build_cache(
                    teacher,
                    rows,
                    collate,
                    store,
                    batch_size or trainer.args.eval_batch_size,
                    autocast=accelerator.autocast,
                    rules=KeyRules.of(teacher.model, trainer.kind),
                    trained_labels=trainer.trained_labels,
                    share=(accelerator.process_index, accelerator.num_processes),
                    progress=not trainer.args.disable_tqdm and accelerator.is_local_main_process,
                    name=f"{role} model, {name} rows",
                    say=say if accelerator.is_main_process else None,
                )
                for name, rows, collate in _datasets(trainer)
            ]
            accelerator.wait_for_everyone()
            store.refresh()
            found[role] = Cached(plans, str(store.folder), len(store))
    return found


def _fill_from_server(trainer: MuscleTrainer, teacher: ServedTeacher) -> Cached:
    accelerator = trainer.accelerator

    def read(inputs: Any) -> Batch:
        batch = trainer.batch_of(inputs)
        whole_answers = teacher.role == "old" and trainer.old_targets == "answer"
        return teacher.spelling(batch.answers()) if whole_answers else teacher.reading(batch)

    plans = [
        teacher.fill(
            rows,
            collate,
            read,
            share=(accelerator.process_index, accelerator.num_processes),
            progress=not trainer.args.disable_tqdm and accelerator.is_local_main_process,
            name=f"{teacher.role} model, {name} rows",
        )
        for name, rows, collate in _datasets(trainer)
    ]
    accelerator.wait_for_everyone()
    return Cached(plans, str(teacher.store.folder), sum(plan.sequences for plan in plans))


def _fill_numbers(trainer: MuscleTrainer, folder: str | os.PathLike, batch_size: int) -> Cached:
    """Of each row's answer v1's log-likelihood alone, where no more of it is followed."""
    accelerator, plans = trainer.accelerator, []
    numbers = answers_in_front(trainer, folder)
    rank, processes = accelerator.process_index, accelerator.num_processes
    for name, rows, collate in _datasets(trainer):
        before = len(numbers.store)
        starts = range(rank * batch_size, len(rows), processes * batch_size)
        hidden = trainer.args.disable_tqdm or not accelerator.is_local_main_process
        for start in tqdm(starts, desc=f"old model, {name} rows", unit="batch", disable=hidden):
            inputs = collate([rows[index] for index in range(start, min(start + batch_size, len(rows)))])
            with torch.no_grad(), accelerator.autocast():
                numbers.targets(trainer.batch_of(trainer._prepare_inputs(inputs)))
        numbers.flush()
        new = len(numbers.store) - before
        plans.append(CachePlan([], len(rows), new, new, 0))
    accelerator.wait_for_everyone()
    numbers.store.refresh()
    return Cached(plans, str(numbers.store.folder), len(numbers.store))


def _datasets(trainer: MuscleTrainer) -> list[tuple[str, Any, Callable]]:
    """Rows and collators as the trainer's own loaders use them."""
    evaluated = trainer.eval_dataset
    trainer.answer_transfer_prompts(resumes=True)
    parts = {"training": trainer.train_dataset}
    parts |= evaluated if isinstance(evaluated, dict) else {"evaluation": evaluated}
    made = []
    for name, rows in parts.items():
        if rows is None:
            continue
        if isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__"):
            raise MuscleError(
                f"the {name} rows are a stream, whose end is not known; they are cached while the run trains"
            )
        made.append((name, *trainer.rows_and_collator(rows, name)))
    return made
