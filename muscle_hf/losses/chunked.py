"""The objective without N x V: logits, mask, KL and gradient of a few tokens at a time.

The twin of :class:`muscle_hf.losses.Objective` applied to whole logits: the same figures, from the last hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.losses.objective import Objective, TokenTerms

# Logits of one chunk: enough rows for full matrix products (a CPU reaches its peak with few, and gains by staying in
# its caches), and nothing beside a model. Two buffers of this size live at once, on accelerators about eight.
_CHUNK_BYTES = {"cpu": 16 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
_LEAST_ROWS = 256
# Behind the matrix product a CPU works on blocks that stay in its cache.
_BLOCK_BYTES = 2**20

Head = Callable[[Tensor], Tensor]
# Called with the name of a teacher, its logits of some tokens, and which tokens of the batch these are.
Inspect = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class Stream:
    """What one model says about the N trained tokens, before its output head.

    Args:
        hidden: Last hidden states, (N, d), floating point.
        head: Makes logits (n, V) of n of them, float32 or float64; differentiable in them, its own weights frozen.
            The logits are overwritten here: its own backward must not need them.
    """

    hidden: Tensor
    head: Head

    def logits(self, rows: slice | Tensor) -> Tensor:
        return self.head(self.hidden[rows])


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
) -> Tensor:
    """Each token's weight on the old model, from the streams that the objective's mask reads.

    Args:
        objective: Has the mask.
        streams: ``student``, and ``old`` and ``new`` as far as ``objective.mask.reads`` names them.
        labels: (N,), int64; none ignored.
        sequence_ids: (N,), int64, the sequence of each token; tokens of one sequence lie together.
        chunk_size: Tokens at a time.
        inspect: As in :func:`chunked_terms`.

    Returns:
        (N,), the dtype of the logits, no gradient.
    """
    mask = objective.mask
    per_token, per_sequence = mask.parts or (None, None)
    found = [_nothing(streams["student"].hidden)]
    with torch.no_grad():
        for rows in _chunks(labels, sequence_ids, chunk_size, whole_sequences=mask.over_sequences and not mask.parts):
            logits = {name: streams[name].logits(rows) for name in mask.reads}
            _show_broken(inspect, logits, rows, labels)
            of_all = [logits.get(name) for name in ("student", "old", "new")]
            if per_token is None:
                found.append(mask(*of_all, labels[rows], sequence_ids[rows]))
            else:
                found.append(per_token(*of_all, labels[rows]))
        joined = torch.cat(found)
        return (
            joined if per_sequence is None else mask.checked(per_sequence(joined, sequence_ids), labels, joined.dtype)
        )


def chunked_terms(
    objective: Objective,
    student: Stream,
    old: Stream,
    new: Stream,
    labels: Tensor,
    sequence_ids: Tensor,
    *,
    chunk_size: int,
    weight_old: Tensor | None = None,
    inspect: Inspect | None = None,
) -> TokenTerms:
    """Equations (1) and (5) for each trained token; the gradient is made with the value, chunk by chunk.

    Args:
        objective: The settings.
        student: With gradient in ``hidden``.
        old: v1; where the mask does not read it, only its tokens with weight > 0 are looked at.
        new: v2; only its tokens with weight < 1 are looked at.
        labels: (N,), int64; none ignored. N may be 0.
        sequence_ids: (N,), int64.
        chunk_size: Tokens at a time.
        weight_old: From :func:`chunked_weights`; found on the way by default.
        inspect: Sees a teacher's logits where they may not be finite; raises if they are not.

    Returns:
        As :class:`Objective`; ``loss`` has a gradient in ``student.hidden``, ``compatibility`` has none.
    """
    mask = objective.mask
    if weight_old is None and mask.over_sequences:
        streams = {"student": student, "old": old, "new": new}
        weight_old = chunked_weights(objective, streams, labels, sequence_ids, chunk_size, inspect)
    work = _Work(
        objective,
        Stream(student.hidden.detach(), student.head),
        old,
        new,
        labels,
        sequence_ids,
        chunk_size,
        weight_old,
        inspect,
    )
    return TokenTerms(*_ChunkedTerms.apply(student.hidden, work))


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
    return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))


@dataclass(frozen=True)
class _Work:
    """What :class:`_ChunkedTerms` needs beside the tensor that gets a gradient."""

    objective: Objective
    student: Stream
    old: Stream
    new: Stream
    labels: Tensor
    sequence_ids: Tensor
    chunk_size: int
    weight_old: Tensor | None
    inspect: Inspect | None


class _ChunkedTerms(torch.autograd.Function):
    """Values and gradient in one pass; a token's loss depends on its own hidden state alone."""

    @staticmethod
    def forward(ctx, hidden: Tensor, work: _Work) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden, dtype=_nothing(hidden).dtype) if wanted else None
        # What float16 would round to zero is not lost; a token's slopes are at most 1 each.
        scale = 2.0**10 if hidden.dtype is torch.float16 else 1.0
        parts = []
        for rows in _chunks(work.labels, work.sequence_ids, work.chunk_size):
            own = hidden[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = work.student.head(own)
            # From here on the logits' memory holds the gradient.
            buffer = logits.detach()
            terms = _terms_of_chunk(work, rows, buffer, wanted)
            if wanted:
                (slope,) = torch.autograd.grad(logits, own, buffer if scale == 1 else buffer.mul_(scale))
                gradient[rows] = slope if scale == 1 else slope.to(gradient.dtype) / scale
            parts.append(terms)
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        if parts:
            columns = tuple(torch.cat(column) for column in zip(*parts, strict=True))
        else:
            columns = tuple(_nothing(hidden) for _ in range(7))
        ctx.mark_non_differentiable(*columns[1:])
        return columns

    @staticmethod
    def backward(ctx, of_loss: Tensor, *others: Tensor) -> tuple[Tensor | None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_loss.unsqueeze(-1).to(gradient.dtype) * gradient).to(ctx.dtype), None


def _terms_of_chunk(work: _Work, rows: slice, student: Tensor, wanted: bool) -> tuple[Tensor, ...]:
    """The columns of :class:`TokenTerms`; ``student`` is overwritten by d loss / d logits if that is wanted."""
    objective, labels = work.objective, work.labels[rows]
    tokens = torch.arange(rows.start, rows.stop, device=labels.device)
    read: dict[str, Tensor] = {}
    if work.weight_old is None:
        read = {name: _teacher_logits(work, name, rows, student, None) for name in objective.mask.reads - {"student"}}
        _show_broken(work.inspect, read, rows, work.labels)
        weight = objective.mask(student, read.get("old"), read.get("new"), labels, work.sequence_ids[rows])
    else:
        weight = work.weight_old[rows].to(student)

    followers = {}
    for name, share in (("old", weight), ("new", 1 - weight)):
        chosen = None if bool((share > 0).all()) else (share > 0).nonzero().squeeze(-1)
        if chosen is None:
            logits = read[name] if name in read else _teacher_logits(work, name, rows, student, None)
        elif name in read:
            logits = read[name][chosen]
        elif chosen.numel():
            logits = _teacher_logits(work, name, tokens[chosen], student, chosen)
        else:
            continue
        followers[name] = _Followers(name, logits, share, chosen)

    size = len(labels) if student.device.type != "cpu" else max(1, _BLOCK_BYTES // (4 * student.size(-1)))
    blocks = [slice(start, min(start + size, len(labels))) for start in range(0, len(labels), size)]
    parts = [_terms_of_block(work, block, student, weight, followers, labels, tokens, wanted) for block in blocks]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@dataclass(frozen=True)
class _Followers:
    """The tokens of a chunk that follow a teacher: all of them where ``chosen`` is None, else these, ascending."""

    name: str
    logits: Tensor
    share: Tensor
    chosen: Tensor | None

    def within(self, block: slice) -> tuple[slice | Tensor, Tensor]:
        """Those of a block, counted from its start, and the teacher's logits of them."""
        if self.chosen is None:
            return slice(None), self.logits[block]
        first, last = torch.searchsorted(self.chosen, self.chosen.new_tensor([block.start, block.stop])).tolist()
        return self.chosen[first:last] - block.start, self.logits[first:last]


def _terms_of_block(
    work: _Work,
    block: slice,
    student: Tensor,
    weight: Tensor,
    followers: dict[str, _Followers],
    labels: Tensor,
    tokens: Tensor,
    wanted: bool,
) -> tuple[Tensor, ...]:
    objective, own, targets = work.objective, student[block], labels[block]
    scale = objective.temperature**2 if objective.scale_by_temperature_squared else 1.0
    factor = objective.compatibility_weight * scale / objective.temperature
    kl = {name: torch.zeros_like(weight[block]) for name in ("old", "new")}
    slope = torch.zeros_like(own) if wanted else None
    for name, group in followers.items():
        which, teacher = group.within(block)
        values, difference = _kl_and_slope(teacher, own[which], objective.temperature, wanted)
        if work.inspect is not None and not bool(torch.isfinite(values).all()):
            work.inspect(name, teacher, tokens[block][which])
        kl[name][which] = values
        if wanted:
            difference *= factor * group.share[block][which].unsqueeze(-1)
            if isinstance(which, slice):
                slope += difference
            else:
                slope.index_add_(0, which, difference)

    correct = (own.argmax(dim=-1) == targets).to(own.dtype)
    cross_entropy = _cross_entropy(objective, own, targets, slope)
    if wanted:
        own.copy_(slope)
    share = weight[block]
    compatibility = (share * kl["old"] + (1 - share) * kl["new"]) * scale
    lam = objective.compatibility_weight
    loss = lam * compatibility + (1 - lam) * cross_entropy if lam < 1 else compatibility
    return loss, compatibility, share, kl["old"], kl["new"], cross_entropy, correct


def _teacher_logits(work: _Work, name: str, which: slice | Tensor, student: Tensor, chosen: Tensor | None) -> Tensor:
    teacher = work.old if name == "old" else work.new
    if teacher.head is not work.student.head:
        return teacher.logits(which).to(student)
    # The same hidden state behind the same head gives the same logits: to the bit, whatever the rows beside it.
    same = (teacher.hidden[which] == work.student.hidden[which]).all(dim=-1)
    own = student if chosen is None else student[chosen]
    if bool(same.all()):
        return own.clone()
    logits = teacher.logits(which).to(student)
    return torch.where(same.unsqueeze(-1), own, logits) if bool(same.any()) else logits


def _kl_and_slope(teacher: Tensor, student: Tensor, temperature: float, wanted: bool) -> tuple[Tensor, Tensor | None]:
    """KL(teacher || student) at a temperature, and softmax(student / T) - softmax(teacher / T) over all of V."""
    width = min(teacher.size(-1), student.size(-1))
    teacher_log = torch.log_softmax(teacher[:, :width] / temperature, dim=-1)
    student_log = torch.log_softmax(student[:, :width] / temperature, dim=-1)
    probability = teacher_log.exp()
    values = (probability * teacher_log.sub_(student_log)).sum(dim=-1)
    if not wanted:
        return values, None
    difference = student_log.exp_().sub_(probability)
    # Ids that only the student has were not compared.
    return values, functional.pad(difference, (0, student.size(-1) - width)) if width < student.size(
        -1
    ) else difference


def _cross_entropy(objective: Objective, student: Tensor, labels: Tensor, slope: Tensor | None) -> Tensor:
    """-log p(label), smoothed if asked for; its share of the gradient is added to ``slope``."""
    smoothing, share = objective.label_smoothing, 1 - objective.compatibility_weight
    log_probability = torch.log_softmax(student, dim=-1)
    values = functional.nll_loss(log_probability, labels, reduction="none")
    if smoothing:
        values = (1 - smoothing) * values - smoothing * log_probability.mean(dim=-1)
    if slope is not None and share > 0:
        slope.add_(log_probability.exp_(), alpha=share)
        slope.sub_(share * smoothing / student.size(-1))
        slope.scatter_add_(1, labels.unsqueeze(-1), slope.new_full((len(labels), 1), -share * (1 - smoothing)))
    return values
