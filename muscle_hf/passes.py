"""One pass of student and teachers over a batch, to the objective's terms: with whole logits, or without them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import NoneType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.utils import logging

from muscle_hf.errors import MuscleError
from muscle_hf.losses import Objective, TokenTerms
from muscle_hf.losses.chunked import Stream, chunk_rows, chunked_terms, chunked_weights
from muscle_hf.teachers import ModelKind, Teacher
from muscle_hf.teachers.body import Head, HeadNotApart
from muscle_hf.teachers.cache import CompactStream, HiddenStore, KeyRules, SequenceKey, TopTokens, row_keys
from muscle_hf.teachers.cache.opening import open_caches
from muscle_hf.teachers.cached import CachedTeacher
from muscle_hf.teachers.kinds import IGNORED, UNLABELLED, aligned, labelled_tokens, sequences_of, trained_rows
from muscle_hf.teachers.placing import is_sharded
from muscle_hf.teachers.teacher import LABEL_KEYS, require_finite, without_labels
from muscle_hf.teachers.weights import base_of

if TYPE_CHECKING:
    from muscle_hf.trainer import MuscleTrainer

logger = logging.get_logger(__name__)

NO_TEMPERATURES: Mapping[str, float] = {"old": 1.0, "new": 1.0}
# Inputs with one entry per token, which end where the last trained token is predicted.
_TOKEN_TYPES = frozenset({"token_type_ids", "mm_token_type_ids"})
_PER_TOKEN = LABEL_KEYS | _TOKEN_TYPES | {"input_ids", "attention_mask", "position_ids"}
# Inputs with one entry per row of the batch. Images and sound are none: a row may have several of them.
_PER_ROW = _PER_TOKEN | {"inputs_embeds", "global_attention_mask", "decoder_input_ids", "decoder_attention_mask"}
# Lengths are cut to multiples of this, which tensor cores like.
_ALIGNMENT = 8


@dataclass(frozen=True)
class Outcome:
    """What a pass found.

    Args:
        outputs: Of the student's forward; without whole logits after a :class:`ChunkedPass`.
        terms: Of the N trained tokens.
        rows: The batch row of each, (N,), int64.
    """

    outputs: Any
    terms: TokenTerms
    rows: Tensor


class PlainPass:
    """Whole logits of all three models: the readable twin, and the one that works with every kind of head.

    Args:
        student: The model that is trained.
        teachers: ``old`` and ``new``.
        kind: Of all three.
        temperatures: What each teacher's logits are divided by; looked up at each pass.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, Teacher],
        kind: ModelKind,
        temperatures: Mapping[str, float] = NO_TEMPERATURES,
    ):
        self.student = student
        self.teachers = teachers
        self.kind = kind
        self.temperatures = temperatures

    def __call__(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, objective: Objective, where: str
    ) -> Outcome:
        """Evaluate the objective on a batch.

        Args:
            model: The student as it was prepared for training (compiled, distributed).
            inputs: As the collator makes them.
            labels: Aligned with the logits, -100 where nothing is trained.
            objective: What to evaluate.
            where: Names the batch in errors.
        """
        outputs = model(**without_labels(base_of(self.student), inputs))
        chosen, rows = trained_rows(labels)
        logits = aligned(self.kind.logits_of(outputs), labels)[chosen]
        student = logits.to(torch.promote_types(logits.dtype, torch.float32))
        of_teachers = {}
        for role in self.teachers:
            found = torch.cat(list(self.teacher_logits(role, inputs, labels)))
            require_finite(role, found, rows, where)
            of_teachers[role] = self._tempered(role, found.to(student))
        sequences = self.sequences(inputs, labels)[chosen]
        terms = objective(
            student, of_teachers["old"], of_teachers["new"], labels[chosen], sequences, labelled_tokens(inputs, rows)
        )
        return Outcome(outputs, terms, rows)

    def teacher_logits(self, role: str, inputs: Mapping[str, Any], labels: Tensor) -> Iterator[Tensor]:
        """A teacher's own logits of the trained tokens, (n, V), a few tokens at a time; arguments as in a pass."""
        yield aligned(self.teachers[role].logits(inputs), labels)[trained_rows(labels)[0]]

    def _tempered(self, role: str, logits: Tensor) -> Tensor:
        temperature = self.temperatures[role]
        return logits if temperature == 1 else logits / temperature

    def sequences(self, inputs: Mapping[str, Any], labels: Tensor) -> Tensor:
        return sequences_of(labels, inputs.get("position_ids"), predicts_next=self.kind.shifts_labels)


@dataclass(frozen=True)
class _Batch:
    inputs: Mapping[str, Any]
    labels: Tensor
    chosen: Tensor
    rows: Tensor

    @property
    def has_rows(self) -> bool:
        """Whether some of the rows can be computed without the others."""
        return all(_is_per_row(name, value) for name, value in self.inputs.items())


@dataclass(frozen=True)
class _Kept:
    """What a cache holds of a batch.

    Args:
        parts: Its sequences with trained tokens, in the order of these.
        hidden: Of each, on the batch's device; None where it is not there.
        missing: (B,), boolean, on the CPU: rows with a sequence that is not there.
    """

    parts: list[SequenceKey]
    hidden: list[Tensor | None]
    missing: Tensor


class ChunkedPass(PlainPass):
    """Last hidden states of all three models, and logits for a few tokens at a time.

    A teacher's body sees only the rows of the batch that have a token which follows it, where finding these first
    (one more pass of the student's head) costs less than it saves.

    Args:
        student: The model that is trained.
        teachers: ``old`` and ``new``.
        kind: Of all three.
        autocast: Makes the context in which the models' forwards run.
        chunk_size: Tokens at a time; by default what :func:`~muscle_hf.losses.chunked.chunk_rows` says.
        skip: Whether bodies may be skipped.
        caches: Of teachers whose hidden states are kept: what is there is read, what is missing is put.
        temperatures: What each teacher's logits are divided by; looked up at each pass.

    Raises:
        MuscleError: A model's output layer cannot be called apart.
    """

    def __init__(
        self,
        student: nn.Module,
        teachers: Mapping[str, Teacher],
        kind: ModelKind,
        autocast: Any,
        chunk_size: int | None = None,
        skip: bool = True,
        caches: Mapping[str, HiddenStore] | None = None,
        temperatures: Mapping[str, float] = NO_TEMPERATURES,
    ):
        super().__init__(student, teachers, kind, temperatures)
        self.chunk_size = chunk_size
        self.head = Head(student, autocast)
        # Of teachers whose body may not be loaded, the head is there already.
        loaded = {role: teacher.head for role, teacher in teachers.items() if isinstance(teacher, CachedTeacher)}
        for head in loaded.values():
            head.autocast = autocast
        bases = {role: base_of(teacher.model) for role, teacher in teachers.items()}
        self.heads = {
            role: self.head if base is base_of(student) else loaded.get(role) or Head(base, autocast)
            for role, base in bases.items()
        }
        self.caches = dict(caches or {})
        self._rules = {role: KeyRules.of(teachers[role].model, kind) for role in self.caches}
        self._skip = skip
        self._body_cost = {
            role: _parameters(base) - _parameters(self.heads[role].module) for role, base in bases.items()
        }

    def __call__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        labels: Tensor,
        objective: Objective,
        where: str,
        skip: bool = True,
    ) -> Outcome:
        """As :meth:`PlainPass.__call__`; without ``skip`` every teacher sees whole batches, as the student does.

        Raises:
            HeadNotApart: Before anything is counted; use the plain pass instead.
        """
        keys = {role: row_keys(inputs, labels, rules) for role, rules in self._rules.items()}
        inputs, labels = self._trimmed(inputs, labels)
        chosen, rows = trained_rows(labels)
        places = chosen.nonzero(as_tuple=True)
        sequences = self.sequences(inputs, labels)[places]
        trained, labelled = labels[places], labelled_tokens(inputs, rows)
        with self.head.captured() as found:
            outputs = model(**without_labels(base_of(self.student), inputs))
        # Nothing has waited for the device since then, so the files are read while it computes.
        kept = {role: self._look_up(role, parts, labels) for role, parts in keys.items()}
        if not self.head.explains(found, self.kind.logits_of(outputs)):
            raise HeadNotApart(type(base_of(self.student)).__name__)
        streams = {"student": Stream(aligned(found[0], labels)[places], self.head)}
        size = self.chunk_size or chunk_rows(self.head.vocabulary, labels.device)
        batch = _Batch(inputs, labels, chosen, rows)

        def add(role: str, needed: Tensor | None) -> None:
            hidden, form = self._hidden(role, batch, needed, kept.get(role)), self._form(role)
            streams[role] = CompactStream(hidden, None, form) if form else Stream(hidden, self._tempered_head(role))

        def inspect(role: str, logits: Tensor, which: Tensor) -> None:
            require_finite(role, logits, rows[which], where)

        for role in objective.reads - {"student"}:
            add(role, None)
        weight = None
        if skip and self._looks_first(objective, batch, kept):
            weight = chunked_weights(objective, streams, trained, sequences, size, inspect, labelled)
        for role in self.teachers.keys() - streams.keys():
            add(role, None if weight is None else _rows_that_need(role, weight, rows, len(labels)))
        terms = chunked_terms(
            objective,
            **streams,
            labels=trained,
            sequence_ids=sequences,
            chunk_size=size,
            weights=weight,
            labelled=labelled,
            inspect=inspect,
        )
        return Outcome(outputs, terms, rows)

    @property
    def gives_whole_logits(self) -> bool:
        """Whether :meth:`whole` spares a teacher's body: hidden states are kept, which give its logits."""
        return bool(self.caches) and all(store.form is None for store in self.caches.values())

    def whole(
        self, model: nn.Module, inputs: Mapping[str, Any], labels: Tensor, objective: Objective, where: str
    ) -> Outcome:
        """A :class:`PlainPass` with the teachers' logits from their caches.

        Raises:
            HeadNotApart: As in a chunked pass.
        """
        return super().__call__(model, inputs, labels, objective, where)

    def teacher_logits(self, role: str, inputs: Mapping[str, Any], labels: Tensor) -> Iterator[Tensor]:
        parts = row_keys(inputs, labels, self._rules[role]) if role in self._rules else None
        inputs, labels = self._trimmed(inputs, labels)
        kept = None if parts is None else self._look_up(role, parts, labels)
        hidden = self._hidden(role, _Batch(inputs, labels, *trained_rows(labels)), None, kept)
        with torch.no_grad():
            for part in hidden.split(self.chunk_size or chunk_rows(self.head.vocabulary, labels.device)):
                yield self.heads[role](part)

    def _tempered_head(self, role: str) -> Callable[[Tensor], Tensor]:
        # The head itself where nothing is changed: what has the student's head may have its logits.
        head = self.heads[role]
        return head if self.temperatures[role] == 1 else lambda hidden: self._tempered(role, head(hidden))

    def _hidden(self, role: str, batch: _Batch, needed: Tensor | None, kept: _Kept | None) -> Tensor:
        """A teacher's hidden states of the trained tokens, (N, d), or what a compact cache keeps in their place; zeros
        in rows that are not needed."""
        if kept is None:
            return self._computed(role, batch, needed)
        missing = kept.missing if needed is None else kept.missing & needed.cpu()
        computed = self._computed(role, batch, missing)
        if bool(missing.any()):
            computed = self.caches[role].kept(computed, self.heads[role])
        computed = computed.split([part.count for part in kept.parts])
        fresh = [(part.key, piece) for part, piece in zip(kept.parts, computed, strict=True) if missing[part.row]]
        self.caches[role].put([key for key, _ in fresh], [piece for _, piece in fresh])
        pieces = [own if known is None else known for own, known in zip(computed, kept.hidden, strict=True)]
        width = max((piece.size(-1) for piece in pieces), default=1)
        # Where nothing was computed, what is neither known nor needed is one column of zeros.
        return torch.cat([p if p.size(-1) == width else p.new_zeros(len(p), width) for p in pieces] or [computed[0]])

    def _computed(self, role: str, batch: _Batch, needed: Tensor | None) -> Tensor:
        inputs, labels, chosen, rows = batch.inputs, batch.labels, batch.chosen, batch.rows
        if needed is not None and not bool(needed.any()):
            return chosen.new_zeros(len(rows), 1, dtype=torch.float32)
        if needed is None or not batch.has_rows or bool(needed.all()):
            return aligned(self._run(role, inputs), labels)[chosen]
        few = {name: _rows_of(value, needed) for name, value in inputs.items()}
        hidden = aligned(self._run(role, few), labels[needed])[chosen[needed]]
        here = needed.to(rows.device)[rows].nonzero().squeeze(-1)
        return hidden.new_zeros(len(rows), hidden.size(-1)).index_put_((here,), hidden)

    # ---- The cache ----

    def _look_up(self, role: str, parts: list[SequenceKey], labels: Tensor) -> _Kept:
        if any(part.key is None for part in parts):
            logger.warning_once(
                "The teacher cache does not hold some rows, of which it is not known what all of their content is "
                "(which images of the batch, say); teachers compute them at every step, unless batches are one row."
            )
        hidden = self.caches[role].get([part.key for part in parts])
        missing = torch.zeros(len(labels), dtype=torch.bool)
        missing[[part.row for part, piece in zip(parts, hidden, strict=True) if piece is None]] = True
        return _Kept(parts, [None if piece is None else _moved(piece, labels.device) for piece in hidden], missing)

    def _form(self, role: str) -> TopTokens | None:
        return self.caches[role].form if role in self.caches else None

    def flush(self) -> None:
        """Write to the disk what the caches hold in memory."""
        for store in self.caches.values():
            store.flush()

    def _run(self, role: str, inputs: Mapping[str, Any]) -> Tensor:
        return self.heads[role].hidden_of(lambda: self.teachers[role].logits(inputs))

    def _trimmed(self, inputs: Mapping[str, Any], labels: Tensor) -> tuple[dict[str, Any], Tensor]:
        """The batch without the positions behind which nothing is trained: a causal model does not look at them."""
        inputs = dict(inputs)
        tensors = {
            key: value
            for key, value in inputs.items()
            if isinstance(value, Tensor) and value.dim() > 0 and key != UNLABELLED
        }
        plain = tensors.keys() <= _PER_TOKEN and all(value.dim() == 2 for value in tensors.values())
        # Tokens of an image, or of a prefix, see those of their type that follow.
        plain = plain and not any(bool(tensors[name].any()) for name in _TOKEN_TYPES & tensors.keys())
        if not self.kind.shifts_labels or not plain or "input_ids" not in inputs or not labels.numel():
            return inputs, labels
        positions = (labels != IGNORED).any(dim=0).nonzero()
        end = int(positions[-1]) + 1 if len(positions) else 1
        end = -(-end // _ALIGNMENT) * _ALIGNMENT
        inputs.update({key: value[:, :end] for key, value in tensors.items()})
        return inputs, labels[:, :end]

    # ---- Which rows a teacher need not see ----

    def _looks_first(self, objective: Objective, batch: _Batch, kept: Mapping[str, _Kept]) -> bool:
        """By the batch alone, so that a run that goes on from a checkpoint decides as it would have before."""
        if not self._skip or not len(batch.rows) or not batch.has_rows:
            return False
        # The more trained tokens a row has, the fewer rows follow one teacher with all of them.
        skipped = 1 / (1 + len(batch.rows) / len(batch.labels))
        saved = 0.0
        for role in self.teachers.keys() - objective.reads:
            rows = int(kept[role].missing.sum()) if role in kept else len(batch.labels)
            saved += skipped * self._body_cost[role] * rows * batch.labels.size(1)
        heads = [self.head if name == "student" else self.heads[name] for name in objective.reads]
        return saved > sum(_parameters(head.module) for head in heads) * len(batch.rows)


def _rows_that_need(role: str, weight: Tensor, rows: Tensor, count: int) -> Tensor:
    """(B,), boolean: the rows of the batch with a token that follows a teacher."""
    follows = weight[:, 0 if role == "old" else 1] > 0
    return torch.zeros(count, dtype=torch.bool, device=rows.device).index_fill_(0, rows[follows], True)


def _moved(kept: Tensor, device: torch.device) -> Tensor:
    # From memory that is pinned a GPU fetches by itself, while the files of the next row are read.
    return kept.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else kept.to(device)


def _is_per_row(name: str, value: Any) -> bool:
    """Whether a batch of some of its rows has those rows of this input, or all of what has no rows."""
    if isinstance(value, Tensor) and value.dim():
        # Of three dimensions the rows come first in some models, second in others.
        return name in _PER_ROW and (name != "position_ids" or value.dim() == 2)
    return isinstance(value, (Tensor, NoneType, str, bool, int, float))


def _rows_of(value: Any, needed: Tensor) -> Any:
    return value[needed] if isinstance(value, Tensor) and value.dim() and value.size(0) != 1 else value


def _parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


class Passes:
    """The passes of a trainer: chunked where that works and suffices, else plain.

    Args:
        plain: Works always.
        chunked: None where it does not apply.
    """

    def __init__(self, plain: PlainPass, chunked: ChunkedPass | None):
        self.plain = plain
        self.chunked = chunked

    def over(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        labels: Tensor,
        objective: Objective,
        where: str,
        *,
        whole: bool,
        skip: bool,
    ) -> Outcome:
        """A pass over a batch, with whole logits if these are asked for; arguments as :class:`ChunkedPass` takes."""
        if self.chunked is not None and (not whole or self.chunked.gives_whole_logits):
            try:
                if whole:
                    return self.chunked.whole(model, inputs, labels, objective, where)
                return self.chunked(model, inputs, labels, objective, where, skip)
            except HeadNotApart as error:
                self._give_up_chunks(error)
        return self.plain(model, inputs, labels, objective, where)

    def teacher_logits(self, role: str, inputs: Mapping[str, Any], labels: Tensor) -> Iterator[Tensor]:
        """As :meth:`PlainPass.teacher_logits`."""
        if self.chunked is not None:
            try:
                yield from self.chunked.teacher_logits(role, inputs, labels)
                return
            except HeadNotApart as error:  # before anything was yielded
                self._give_up_chunks(error)
        yield from self.plain.teacher_logits(role, inputs, labels)

    def _give_up_chunks(self, error: HeadNotApart) -> None:
        logger.warning(
            f"{error} does more behind its output layer than is known here, so whole logits are held "
            "(the result is the same; it takes more time and memory)."
        )
        self.chunked = None

    def flush(self) -> None:
        """Write to the disk what caches hold in memory."""
        if self.chunked is not None:
            self.chunked.flush()


def make_passes(trainer: MuscleTrainer) -> Passes:
    """The passes of a trainer whose models are in place.

    Raises:
        MuscleError: Chunks do not apply, but ``loss_chunk_size`` or ``teacher_cache`` asks for them; or the cache does
            not fit.
    """
    plain = PlainPass(trainer.student, trainer.teachers, trainer.kind, trainer.teacher_temperatures)
    asked = {name: getattr(trainer.args, name, None) for name in ("loss_chunk_size", "teacher_cache")}
    size, folder = asked.values()
    wishes = [f"{name}={value!r}" for name, value in asked.items() if value]
    try:
        if reason := _why_whole_logits(trainer):
            raise MuscleError(reason)
        chunked = ChunkedPass(
            trainer.student,
            trainer.teachers,
            trainer.kind,
            trainer.accelerator.autocast,
            chunk_size=size,
            skip=getattr(trainer.args, "skip_unneeded_teachers", True),
            caches=open_caches(trainer, folder) if folder else None,
            temperatures=trainer.teacher_temperatures,
        )
    except MuscleError as error:
        if wishes:
            raise MuscleError(f"{' and '.join(wishes)} cannot be used: {error}") from error
        return Passes(plain, None)
    return Passes(plain, chunked)


def _why_whole_logits(trainer: MuscleTrainer) -> str | None:
    if getattr(trainer.args, "loss_chunk_size", None) == 0:
        return "loss_chunk_size=0 asks for whole logits"
    if not trainer.kind.generates_text:
        return f"a {trainer.kind.name} model has few classes, so there is nothing to cut into chunks"
    if trainer.compute_loss_func is not None:
        return "compute_loss_func gets whole logits"
    if trainer.args.torch_compile:
        return "a compiled model does not show its hidden states"
    if is_sharded(trainer.accelerator):
        return "the output layer is sharded over the processes (FSDP, ZeRO-3)"
    if any(_is_split(model) for model in (trainer.student, *(teacher.model for teacher in trainer.teachers.values()))):
        return "a model is split over several GPUs (device_map), so its output layer is not where the labels are"
    return None


def _is_split(model: nn.Module) -> bool:
    places = getattr(base_of(model), "hf_device_map", None) or {}
    return len({place for place in map(str, places.values()) if place not in ("cpu", "disk")}) > 1
