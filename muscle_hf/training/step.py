"""One step over a batch: the student's forward, the teachers' targets, the objective, and its terms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.objective import Objective, TokenTerms
from muscle_hf.objective.chunked import Chunks, Stream, chunk_rows
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.forward import require_finite, without_labels
from muscle_hf.teachers.head import Head, HeadNotApart, count_parameters
from muscle_hf.teachers.sharding import is_sharded
from muscle_hf.teachers.teacher import TargetSource
from muscle_hf.teachers.weights import base_of, own_modules

logger = logging.get_logger(__name__)


class Step:
    """Evaluates the objective on batches.

    A teacher's body sees only the rows of the batch that have a token which follows it, where finding these first
    (one more pass of the student's head) costs less than it saves.

    Args:
        student: The model that is trained.
        sources: ``old`` and ``new``.
        temperatures: What each teacher's logits are divided by; looked up at each step.
        head: The student's output head, to make logits of a few tokens at a time; None for whole logits.
        chunk_size: Tokens at a time; by default what :func:`~muscle_hf.objective.chunked.chunk_rows` says.
        skip: Whether teachers' bodies may be skipped.
        leans_on_new: Whether v2 decides where v1 leaves it open which of the student's tokens it means.
    """

    def __init__(
        self,
        student: nn.Module,
        sources: Mapping[str, TargetSource],
        temperatures: Mapping[str, float],
        head: Head | None = None,
        chunk_size: int | None = None,
        skip: bool = True,
        leans_on_new: bool = False,
    ):
        self.student, self.sources, self.temperatures = student, sources, temperatures
        self.head, self.chunk_size, self._skip, self._leans_on_new = head, chunk_size, skip, leans_on_new
        self._running = [m for _, m in own_modules(student) if isinstance(m, nn.modules.batchnorm._NormBase)]

    def __call__(
        self,
        model: nn.Module,
        batch: Batch,
        objective: Objective,
        where: str,
        *,
        whole: bool = False,
        skip: bool = True,
    ) -> tuple[Any, TokenTerms]:
        """Evaluate the objective on a batch, on the device, with the student as it was prepared for training
        (compiled, distributed). ``where`` names the batch in errors; ``whole``: somebody looks at the outputs' logits,
        or needs a gradient of ``terms.compatibility``; without ``skip`` every teacher sees whole batches, as the
        student does.

        Gives the outputs of the student's forward, of the first position alone where whole logits were not asked for;
        and the terms of the N trained tokens.
        """
        cut = batch.trimmed() if self.head is not None else batch
        outputs, student = self._student(model, batch if whole else cut, whole)
        # Of whole logits the values are made at once; a teacher's body is not worth a second look then.
        size = self._rows_at_a_time(student, cut)

        def inspect(role: str, logits: Tensor, which: Tensor) -> None:
            require_finite(role, logits, cut.rows[which], where)

        streams = {"student": student}
        read = objective.reads | ({"new"} if self._leans_on_new and "old" in objective.reads else set())
        streams |= {role: self._targets(role, cut) for role in read - {"student"}}
        tokens = cut.targets, cut.sequences, size, cut.labelled, self._silent(cut), inspect
        chunks, weights = Chunks(objective, *tokens), None
        if skip and size is not None and self._looks_first(objective, cut):
            weights = chunks.weights(streams)
        for role in self.sources.keys() - streams.keys():
            asked = ["old", "new"] if role == "new" and self._leans_on_new else [role]
            needed = None if weights is None else _rows_that_need(asked, weights, cut)
            streams[role] = self._targets(role, cut, needed)
        return outputs, chunks.terms(streams, weights)

    def teacher_logits(self, role: str, batch: Batch) -> Iterator[Tensor]:
        """A teacher's own logits of the trained tokens, (n, V), a few tokens at a time, whatever its temperature."""
        cut = batch.trimmed() if self.head is not None else batch
        stream = self.sources[role].targets(cut)
        # What it leaves to others is left to v2, which the student still is where this is asked for.
        beside = self.sources["new"].targets(cut) if stream.leans else None
        size = self._rows_at_a_time(stream, cut) or max(1, len(cut.rows))
        with torch.no_grad():
            for rows in torch.arange(len(cut.rows), device=cut.labels.device).split(size):
                yield stream.logits(rows, None if beside is None else beside.logits(rows))

    def _rows_at_a_time(self, stream: Stream, batch: Batch) -> int | None:
        """How many tokens' logits to hold at a time; None for all."""
        if stream.head is None or self.head is None:
            return None
        return self.chunk_size or chunk_rows(self.head.vocabulary, batch.labels.device)

    def flush(self) -> None:
        """Write to the disk what caches hold in memory."""
        for source in self.sources.values():
            source.flush()

    # ---- The student ----

    def _student(self, model: nn.Module, batch: Batch, whole: bool) -> tuple[Any, Stream]:
        for module in self._running:
            # Its running statistics are the base's, which the teachers share and which is not saved.
            module.eval()
        inputs = without_labels(base_of(self.student), batch.inputs)
        if self.head is not None and not whole:
            with self.head.captured() as found:
                outputs = model(**inputs)
            # Nothing has waited for the device since then, so the files are read while it computes.
            for source in self.sources.values():
                source.prepare(batch)
            if self.head.explains(found, batch.kind.logits_of(outputs)):
                return outputs, Stream(batch.of_trained(found[0]), self.head)
            logger.warning(str(HeadNotApart(type(base_of(self.student)))))
            self.head = None
        outputs = model(**inputs)
        logits = batch.of_trained(batch.kind.logits_of(outputs))
        return outputs, Stream(logits.to(torch.promote_types(logits.dtype, torch.float32)), None)

    # ---- The teachers ----

    def _targets(self, role: str, batch: Batch, needed: Tensor | None = None) -> Stream:
        stream, temperature = self.sources[role].targets(batch, needed), self.temperatures[role]
        # As it is where nothing is changed: what has the student's head may have its logits.
        return stream if temperature == 1 else stream.divided_by(temperature)

    def _silent(self, batch: Batch) -> Tensor | None:
        """Trained tokens of which v1, and of which v2, says nothing, (N, 2), boolean; None if there are none."""
        of_each = [self.sources[role].silent(batch) for role in ("old", "new")]
        if all(found is None for found in of_each):
            return None
        none = torch.zeros(len(batch.rows), dtype=torch.bool, device=batch.labels.device)
        return torch.stack([none if found is None else found for found in of_each], dim=-1)

    def _looks_first(self, objective: Objective, batch: Batch) -> bool:
        """By the batch alone, so that a run that goes on from a checkpoint decides as it would have before."""
        if not self._skip or not len(batch.rows) or not batch.has_rows:
            return False
        # The more trained tokens a row has, the fewer rows follow one teacher with all of them.
        skipped = 1 / (1 + len(batch.rows) / len(batch))
        saved = skipped * sum(self.sources[role].work(batch) for role in self.sources.keys() - objective.reads)
        heads = [self.head if name == "student" else self.sources[name].head for name in objective.reads]
        return saved > sum(count_parameters(head.module) for head in heads if head is not None) * len(batch.rows)


def _rows_that_need(roles: Sequence[str], weights: Tensor, batch: Batch) -> Tensor:
    """(B,), boolean: the rows of the batch with a token that follows one of some teachers."""
    follows = (weights[:, [("old", "new").index(role) for role in roles]] > 0).any(dim=1)
    return torch.zeros(len(batch), dtype=torch.bool, device=batch.labels.device).index_fill_(
        0, batch.rows[follows], True
    )


def make_step(trainer: Any) -> Step:
    """The step of a trainer whose models are in place. Refused: ``loss_chunk_size`` or ``teacher_cache`` where chunks
    do not apply, and a cache that does not fit."""
    settings, student, teachers = trainer.settings, trainer.student, trainer.teachers
    size, cached, autocast = settings.loss_chunk_size, bool(settings.teacher_cache), trainer.accelerator.autocast
    sources: dict[str, TargetSource] = dict(teachers)
    if trainer.old_targets == "answer" and teachers["old"].scores_answers:
        from muscle_hf.training.caches import answers_in_front

        sources["old"] = answers_in_front(trainer)
    leans = any(teacher.reader is not None and teacher.reader.reference == "new" for teacher in teachers.values())
    try:
        if reason := _why_whole_logits(trainer):
            raise MuscleError(reason)
        head = Head(student, autocast)
        for teacher in teachers.values():
            teacher.open_head(head, autocast)
        if cached:
            from muscle_hf.training.caches import caches_in_front

            sources |= caches_in_front(trainer, [role for role in teachers if sources[role] is teachers[role]])
        skip = settings.skip_unneeded_teachers
        return Step(student, sources, trainer.teacher_temperatures, head, size, skip, leans)
    except MuscleError as error:
        if size or cached:
            wishes = [f"loss_chunk_size={size}"] * bool(size) + ["teacher_cache"] * cached
            raise MuscleError(f"{' and '.join(wishes)} cannot be used: {error}") from error
    for teacher in teachers.values():
        teacher.head = None
    return Step(student, sources, trainer.teacher_temperatures, leans_on_new=leans)


def _why_whole_logits(trainer: Any) -> str | None:
    if trainer.args.torch_compile:
        return "a compiled model does not show its hidden states"
    if trainer.compute_loss_func is not None:
        return "compute_loss_func gets whole logits"
    if trainer.settings.loss_chunk_size == 0:
        return "loss_chunk_size=0 asks for whole logits"
    if not trainer.kind.generates_text:
        return f"a {trainer.kind.name} model has few classes, so there is nothing to cut into chunks"
    if is_sharded(trainer.accelerator):
        return "the output layer is sharded over the processes (FSDP, ZeRO-3)"
    if any(map(_is_split, [trainer.student, *(m for teacher in trainer.teachers.values() for m in teacher.models)])):
        return "a model is split over several GPUs (device_map), so its output layer is not where the labels are"
    return None


def _is_split(model: nn.Module) -> bool:
    places = getattr(base_of(model), "hf_device_map", None) or {}
    return len({place for place in map(str, places.values()) if place not in ("cpu", "disk")}) > 1
