"""The objective without N x V: logits, mask, KL and gradient of a few tokens at a time.

The twin of :class:`muscle_hf.objective.Objective` applied to whole logits: the same figures, from hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from muscle_hf.objective.divergence import Divergence, label_log_likelihood
from muscle_hf.objective.masks import Mask
from muscle_hf.objective.objective import Objective, TokenTerms

# Logits of one chunk: enough rows for full matrix products (a CPU reaches its peak with few, and gains by staying in
# its caches), and nothing beside a model. About eight buffers of this size live at once.
_CHUNK_BYTES = {"cpu": 2 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
_LEAST_ROWS = 256

Head = Callable[[Tensor], Tensor]
# Called with the name of a teacher, its logits of some tokens, and which tokens of the batch these are.
Inspect = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class Stream:
    """What one model says about the N trained tokens, before its output head.

    Args:
        hidden: Last hidden states, (N, d), floating point; logits (N, V) where there is no head.
        head: Makes logits (n, V) of n of them, float32 or float64; differentiable in them, its own weights frozen.
            One that computes in another dtype than that of ``hidden`` (autocast) says so in its attribute ``dtype``.
    """

    hidden: Tensor
    head: Head | None

    @property
    def leans(self) -> str | None:
        """Whose logits :meth:`logits` looks at beside its own: ``student`` or ``new``."""
        return None

    def divided_by(self, temperature: float) -> Stream:
        """The same with its logits divided by a temperature."""
        if (head := self.head) is None:
            return replace(self, hidden=self.hidden / temperature)
        return replace(self, head=lambda hidden: head(hidden) / temperature)

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        """Logits of some tokens.

        Args:
            rows: Which.
            student: Of streams that lean on others' logits: these.
            chosen: Which rows of ``student`` are of these tokens; all by default.
        """
        found = self.hidden[rows]
        return found.to(_exact(found)) if self.head is None else self.head(found)

    def distance(
        self, rows: slice | Tensor, student: Tensor, divergence: Divergence, logits: Callable[[], Tensor]
    ) -> Tensor:
        """How far the student is from this model at some tokens (a_1 or a_2 of equation 1).

        Args:
            rows: Which.
            student: Its logits of these, (n, V), with gradient.
            divergence: Between two distributions.
            logits: Gives this model's, as :meth:`logits`; (n, V), the dtype of ``student``.

        Returns:
            (n,), with gradient.
        """
        return divergence(logits(), student)

    # ---- Of one number for a whole answer (:mod:`muscle_hf.objective.whole_answers`) ----

    @property
    def whole_answers(self) -> bool:
        """Whether it knows whole answers alone, whose tokens follow it together."""
        return False

    def shared(self, weights: Tensor) -> Tensor:
        """What tokens follow this model with, (N,), of what a mask says of each, (N,)."""
        return weights

    def beside(self, student: Callable[[Tensor, Tensor], Tensor]) -> Stream:
        """The same beside a student, which gives its log-probabilities of tokens (n,) at rows (n,), no gradient."""
        return self


def chunk_rows(vocabulary: int, device: torch.device | str = "cpu") -> int:
    """How many tokens' logits to hold at a time on a kind of device."""
    budget = _CHUNK_BYTES.get(torch.device(device).type, _CHUNK_BYTES_ELSEWHERE)
    return max(_LEAST_ROWS, budget // (4 * vocabulary))


def chunked_weights(
    objective: Objective,
    streams: dict[str, Stream],
    labels: Tensor,
    sequence_ids: Tensor,
    chunk_size: int,
    inspect: Inspect | None = None,
    labelled: Tensor | None = None,
    silent: Tensor | None = None,
) -> Tensor:
    """What each token follows, from the streams that the objective's masks read.

    Args:
        objective: Has the masks.
        streams: ``student``, and ``old`` and ``new`` as far as ``objective.reads`` names them.
        labels: (N,), int64; none ignored.
        sequence_ids: (N,), int64, the sequence of each token; tokens of one sequence lie together.
        chunk_size: Tokens at a time.
        inspect: As in :func:`chunked_terms`.
        labelled: (N,), boolean; by default every token has a label.
        silent: As in :func:`chunked_terms`.

    Returns:
        (N, 3), as :meth:`Objective.weights`; the dtype of the logits, no gradient.
    """

    def over(mask: Mask) -> Tensor:
        return _weights_of(mask, streams, labels, sequence_ids, chunk_size, inspect)

    with torch.no_grad():
        weights = objective.joined(over(objective.mask), labelled, lambda: over(objective.transfer_mask))
        return _spoken(weights, silent)


def _spoken(weights: Tensor, silent: Tensor | None) -> Tensor:
    """Weights (n, 3) of tokens that follow the other teacher where one says nothing, and none where both do."""
    if silent is None:
        return weights
    of_teachers, said = weights[:, :2], (~silent).to(weights)
    passed_on = (of_teachers * silent).flip(-1)
    return torch.cat([(of_teachers + passed_on) * said, weights[:, 2:]], dim=-1)


def _weights_of(
    mask: Mask,
    streams: dict[str, Stream],
    labels: Tensor,
    sequence_ids: Tensor,
    chunk_size: int,
    inspect: Inspect | None,
) -> Tensor:
    per_token, per_sequence = mask.parts or (None, None)
    nothing = _nothing(streams["student"].hidden)
    found = [nothing if per_token else nothing.new_zeros(0, 3)]
    for rows in _chunks(labels, sequence_ids, chunk_size, whole_sequences=mask.over_sequences and not mask.parts):
        read = {name: streams[name] for name in mask.reads}
        beside = {name: streams[name].logits(rows) for one in read.values() if (name := one.leans)}
        logits = {name: one.logits(rows, beside.get(one.leans or "")) for name, one in read.items()}
        _show_broken(inspect, logits, rows, labels)
        student, old, new = (logits.get(name) for name in ("student", "old", "new"))
        if per_token is None:
            found.append(mask(student, old, new, labels[rows], sequence_ids[rows]).to(nothing))
        else:
            found.append(per_token(student, old, new, labels[rows]))
    joined = torch.cat(found)
    return joined if per_sequence is None else mask.checked(per_sequence(joined, sequence_ids), labels, joined.dtype)


def chunked_terms(
    objective: Objective,
    student: Stream,
    old: Stream,
    new: Stream,
    labels: Tensor,
    sequence_ids: Tensor,
    *,
    chunk_size: int | None,
    weights: Tensor | None = None,
    labelled: Tensor | None = None,
    silent: Tensor | None = None,
    inspect: Inspect | None = None,
    fast: bool = True,
) -> TokenTerms:
    """Equations (1) and (5) for each trained token; the gradient is made with the value, chunk by chunk.

    Args:
        objective: The settings.
        student: With gradient in ``hidden``.
        old: v1; where the masks do not read it, only the tokens that follow it are looked at.
        new: v2; the same.
        labels: (N,), int64; none ignored. N may be 0.
        sequence_ids: (N,), int64.
        chunk_size: Tokens at a time; None for all of them, with gradients by autograd, of ``compatibility`` too.
        weights: From :func:`chunked_weights`; found on the way by default.
        labelled: (N,), boolean; by default every token has a label.
        silent: (N, 2), boolean: where v1, and where v2, says nothing, so that the token follows the other; by default
            both speak everywhere.
        inspect: Sees a teacher's logits where they may not be finite; raises if they are not.
        fast: As :meth:`Objective.terms` takes it.

    Returns:
        As :class:`Objective`; ``loss`` has a gradient in ``student.hidden``, ``compatibility`` has none.
    """
    teachers, size = {"old": old, "new": new}, chunk_size or max(1, len(labels))
    over_sequences = objective.mask.over_sequences or objective.transfer_mask.over_sequences
    frozen, fast = Stream(student.hidden.detach(), student.head), fast and chunk_size is not None
    of_answers = old.whole_answers or new.whole_answers
    if weights is None and (of_answers or (over_sequences and chunk_size is not None)):
        streams = {"student": frozen, **teachers}
        weights = chunked_weights(objective, streams, labels, sequence_ids, size, inspect, labelled, silent)
    if of_answers and weights is not None:
        said = _Said(frozen, size)
        teachers = {name: teacher.beside(said) for name, teacher in teachers.items()}
        follows_old, follows_new, of_label = weights.unbind(-1)
        weights = torch.stack([old.shared(follows_old), new.shared(follows_new), of_label], dim=-1)
    work = _Work(objective, frozen, teachers, labels, sequence_ids, size, weights, labelled, silent, inspect, fast)
    if chunk_size is not None:
        return TokenTerms(*_ChunkedTerms.apply(student.hidden, work))
    terms = _terms_of_chunk(work, slice(0, len(labels)), student.logits(slice(None)))
    _show_infinite(work, terms)
    return terms


class _Said:
    """Log-probabilities that the student gives tokens, each place asked once, whoever asks.

    Args:
        student: Without gradient.
        size: Tokens at a time.
    """

    def __init__(self, student: Stream, size: int):
        self.student, self.size = student, size
        self._known = _nothing(student.hidden).new_full((len(student.hidden),), torch.nan)

    @torch.no_grad()
    def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
        new = self._known[rows].isnan().nonzero().squeeze(-1)
        for few in new.split(self.size) if len(new) else ():
            self._known[rows[few]] = label_log_likelihood(self.student.logits(rows[few]), tokens[few])
        return self._known[rows]


def _chunks(labels: Tensor, sequence_ids: Tensor, size: int, *, whole_sequences: bool = False) -> list[slice]:
    count = labels.numel()
    if not whole_sequences or count <= size:
        return [slice(start, min(start + size, count)) for start in range(0, count, size)]
    _, lengths = torch.unique_consecutive(sequence_ids, return_counts=True)
    ends, start, chunks = lengths.cumsum(0).tolist(), 0, []
    for end, after in zip(ends, [*ends[1:], None], strict=True):
        if after is None or after - start > size:
            chunks.append(slice(start, end))
            start = end
    return chunks


def _show_broken(inspect: Inspect | None, logits: dict[str, Tensor], rows: slice, labels: Tensor) -> None:
    # A mask would make some weight of nan, too.
    for name in logits.keys() - {"student"}:
        if inspect is not None and not bool(torch.isfinite(logits[name].sum(dim=-1)).all()):
            inspect(name, logits[name], torch.arange(rows.start, rows.stop, device=labels.device))


def _nothing(hidden: Tensor) -> Tensor:
    return hidden.new_zeros(0, dtype=_exact(hidden))


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


@dataclass(frozen=True)
class _Work:
    """What :class:`_ChunkedTerms` needs beside the tensor that gets a gradient."""

    objective: Objective
    student: Stream
    teachers: dict[str, Stream]
    labels: Tensor
    sequence_ids: Tensor
    chunk_size: int
    weights: Tensor | None
    labelled: Tensor | None
    silent: Tensor | None
    inspect: Inspect | None
    fast: bool


class _ChunkedTerms(torch.autograd.Function):
    """Values and gradient in one pass; a token's loss depends on its own hidden state alone."""

    @staticmethod
    def forward(ctx, hidden: Tensor, work: _Work) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden, dtype=_nothing(hidden).dtype) if wanted else None
        parts, head = [], work.student.head
        assert head is not None, "only what is behind an output head is cut into chunks"
        for rows in _chunks(work.labels, work.sequence_ids, work.chunk_size):
            own = hidden[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                terms = _terms_of_chunk(work, rows, head(own))
            if gradient is not None:
                # What float16 would round to zero is not lost; a token's slopes are at most 1 each.
                dtypes = hidden.dtype, getattr(head, "dtype", None)
                scale = 2.0**10 if torch.float16 in dtypes else 1.0
                (slope,) = torch.autograd.grad(terms.loss, own, torch.full_like(terms.loss, scale))
                gradient[rows] = slope.to(gradient.dtype) / scale
            parts.append([getattr(terms, column.name).detach() for column in fields(terms)])
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        if parts:
            columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        else:
            columns = tuple(_nothing(hidden) for _ in fields(TokenTerms))
        _show_infinite(work, TokenTerms(*columns))
        ctx.mark_non_differentiable(*columns[1:])
        return columns

    @staticmethod
    def backward(ctx, of_loss: Tensor, *others: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_loss.unsqueeze(-1).to(gradient.dtype) * gradient).to(ctx.dtype), None


def _show_infinite(work: _Work, terms: TokenTerms) -> None:
    # At the end of the batch: each look waits for the device.
    if work.inspect is None or bool(torch.stack([terms.kl_old, terms.kl_new]).isfinite().all()):
        return
    for name, values in (("old", terms.kl_old), ("new", terms.kl_new)):
        for tokens in (~values.isfinite()).nonzero().squeeze(-1).split(work.chunk_size):
            work.inspect(name, work.teachers[name].logits(tokens, work.student.logits(tokens)), tokens)


def _terms_of_chunk(work: _Work, rows: slice, student: Tensor) -> TokenTerms:
    """The objective on a chunk of the tokens, from the student's logits."""
    frozen, labels = student.detach(), work.labels[rows]
    labelled = None if work.labelled is None else work.labelled[rows]
    read: dict[str, Tensor] = {}

    @torch.no_grad()
    def of_teacher(name: str, chosen: Tensor | None) -> Tensor:
        if name in read:
            return read[name] if chosen is None else read[name].index_select(0, chosen)
        return _teacher_logits(work, name, rows if chosen is None else chosen + rows.start, frozen, chosen)

    def distance(name: str, chosen: Tensor | None, own: Tensor, divergence: Divergence) -> Tensor:
        which = rows if chosen is None else chosen + rows.start
        return work.teachers[name].distance(which, own, divergence, lambda: of_teacher(name, chosen))

    if work.weights is None:
        read.update({name: of_teacher(name, None) for name in work.objective.reads - {"student"}})
        _show_broken(work.inspect, read, rows, work.labels)
        of_all = frozen, read.get("old"), read.get("new")
        weight = work.objective.weights(*of_all, labels, work.sequence_ids[rows], labelled)
    else:
        weight = work.weights[rows]
    weight = _spoken(weight.to(student), None if work.silent is None else work.silent[rows])
    return work.objective.terms(student, of_teacher, weight, labels, labelled, distance=distance, fast=work.fast)


def _teacher_logits(work: _Work, name: str, which: slice | Tensor, student: Tensor, chosen: Tensor | None) -> Tensor:
    teacher = work.teachers[name]
    if teacher.leans == "new":
        return teacher.logits(which, work.teachers["new"].logits(which)).to(student)
    if teacher.leans or teacher.head is None or teacher.head is not work.student.head:
        return teacher.logits(which, student, chosen).to(student)
    # The same hidden state behind the same head gives the same logits: to the bit, whatever the rows beside it.
    same = (teacher.hidden[which] == work.student.hidden[which]).all(dim=-1)
    own = student if chosen is None else student.index_select(0, chosen)
    equal = int(same.sum())
    if equal == len(same):
        return own
    logits = teacher.logits(which).to(student)
    return torch.where(same.unsqueeze(-1), own, logits) if equal else logits
