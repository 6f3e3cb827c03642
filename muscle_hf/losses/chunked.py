"""The objective without N x V: logits, mask, KL and gradient of a few tokens at a time.

The twin of :class:`muscle_hf.losses.Objective` applied to whole logits: the same figures, from the last hidden states.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.losses.divergence import Divergence, blended
from muscle_hf.losses.fused import Fused
from muscle_hf.losses.masks import Mask
from muscle_hf.losses.objective import Objective, TokenTerms

# Logits of one chunk: enough rows for full matrix products (a CPU reaches its peak with few, and gains by staying in
# its caches), and nothing beside a model. Two buffers of this size live at once, on accelerators about eight.
_CHUNK_BYTES = {"cpu": 16 * 2**20}
_CHUNK_BYTES_ELSEWHERE = 512 * 2**20
_LEAST_ROWS = 512
# Behind the matrix product a CPU works on blocks that stay in its cache.
_BLOCK_BYTES = 4 * 2**20

Head = Callable[[Tensor], Tensor]
# Called with the name of a teacher, its logits of some tokens, and which tokens of the batch these are.
Inspect = Callable[[str, Tensor, Tensor], None]


@dataclass(frozen=True)
class Stream:
    """What one model says about the N trained tokens, before its output head.

    Args:
        hidden: Last hidden states, (N, d), floating point.
        head: Makes logits (n, V) of n of them, float32 or float64; differentiable in them, its own weights frozen.
            The logits are overwritten here, also a teacher's: its own backward must not need them. One that
            computes in another dtype than that of ``hidden`` (autocast) says so in its attribute ``dtype``.
    """

    hidden: Tensor
    head: Head

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        """Logits of some tokens.

        Args:
            rows: Which.
            student: The student's logits, for streams that lean on them.
            chosen: Which rows of ``student`` are of these tokens; all by default.
        """
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
    labelled: Tensor | None = None,
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

    Returns:
        (N, 3), as :meth:`Objective.weights`; the dtype of the logits, no gradient.
    """

    def over(mask: Mask) -> Tensor:
        return _weights_of(mask, streams, labels, sequence_ids, chunk_size, inspect)

    with torch.no_grad():
        return objective.joined(over(objective.mask), labelled, lambda: over(objective.transfer_mask))


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
        logits = {name: streams[name].logits(rows) for name in mask.reads}
        _show_broken(inspect, logits, rows, labels)
        of_all = [logits.get(name) for name in ("student", "old", "new")]
        if per_token is None:
            found.append(mask(*of_all, labels[rows], sequence_ids[rows]).to(nothing))
        else:
            found.append(per_token(*of_all, labels[rows]))
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
    chunk_size: int,
    weights: Tensor | None = None,
    labelled: Tensor | None = None,
    inspect: Inspect | None = None,
) -> TokenTerms:
    """Equations (1) and (5) for each trained token; the gradient is made with the value, chunk by chunk.

    Args:
        objective: The settings.
        student: With gradient in ``hidden``.
        old: v1; where the masks do not read it, only the tokens that follow it are looked at.
        new: v2; the same.
        labels: (N,), int64; none ignored. N may be 0.
        sequence_ids: (N,), int64.
        chunk_size: Tokens at a time.
        weights: From :func:`chunked_weights`; found on the way by default.
        labelled: (N,), boolean; by default every token has a label.
        inspect: Sees a teacher's logits where they may not be finite; raises if they are not.

    Returns:
        As :class:`Objective`; ``loss`` has a gradient in ``student.hidden``, ``compatibility`` has none.
    """
    if weights is None and (objective.mask.over_sequences or objective.transfer_mask.over_sequences):
        streams = {"student": student, "old": old, "new": new}
        weights = chunked_weights(objective, streams, labels, sequence_ids, chunk_size, inspect, labelled)
    frozen = Stream(student.hidden.detach(), student.head)
    work = _Work(objective, frozen, old, new, labels, sequence_ids, chunk_size, weights, labelled, inspect)
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
    weights: Tensor | None
    labelled: Tensor | None
    inspect: Inspect | None


class _ChunkedTerms(torch.autograd.Function):
    """Values and gradient in one pass; a token's loss depends on its own hidden state alone."""

    @staticmethod
    def forward(ctx, hidden: Tensor, work: _Work) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden, dtype=_nothing(hidden).dtype) if wanted else None
        parts = []
        for rows in _chunks(work.labels, work.sequence_ids, work.chunk_size):
            own = hidden[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                logits = work.student.head(own)
            # What float16 would round to zero is not lost; a token's slopes are at most 1 each.
            dtypes = hidden.dtype, getattr(work.student.head, "dtype", None)
            scale = 2.0**10 if torch.float16 in dtypes else 1.0
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
    for name, values, teacher in (("old", terms.kl_old, work.old), ("new", terms.kl_new, work.new)):
        for tokens in (~values.isfinite()).nonzero().squeeze(-1).split(work.chunk_size):
            work.inspect(name, teacher.logits(tokens, work.student.logits(tokens)), tokens)


def _terms_of_chunk(work: _Work, rows: slice, student: Tensor, wanted: bool) -> tuple[Tensor, ...]:
    """The columns of :class:`TokenTerms`; ``student`` is overwritten by d loss / d logits if that is wanted."""
    objective, labels = work.objective, work.labels[rows]
    labelled = None if work.labelled is None else work.labelled[rows]
    read: dict[str, Tensor] = {}
    if work.weights is None:
        read = {name: _teacher_logits(work, name, rows, student, None) for name in objective.reads - {"student"}}
        _show_broken(work.inspect, read, rows, work.labels)
        weight = objective.weights(
            student, read.get("old"), read.get("new"), labels, work.sequence_ids[rows], labelled
        ).to(student)
    else:
        weight = work.weights[rows].to(student)

    def of_teacher(name: str, chosen: Tensor | None) -> Tensor:
        if name in read:
            return read[name] if chosen is None else read[name].index_select(0, chosen)
        if chosen is None:
            return _teacher_logits(work, name, rows, student, None)
        return _teacher_logits(work, name, chosen + rows.start, student, chosen)

    groups = _groups(objective, weight, of_teacher)
    size = len(labels) if student.device.type != "cpu" else max(1, _BLOCK_BYTES // (4 * student.size(-1)))
    chunk = _Chunk(objective, student, weight, groups, labels, labelled)
    blocks = [slice(start, min(start + size, len(labels))) for start in range(0, len(labels), size)]
    parts = [_terms_of_block(chunk, block, wanted) for block in blocks]
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


@dataclass(frozen=True)
class _Followers:
    """The tokens of a chunk that follow one target: all of them where ``chosen`` is None, else these, ascending.

    Args:
        logits: The target's, of these tokens.
        share: Of every token of the chunk, what it follows the target with.
        chosen: Which tokens.
        teachers: Whose divergence it is.
    """

    logits: Tensor
    share: Tensor
    chosen: Tensor | None
    teachers: tuple[str, ...]

    def within(self, block: slice) -> tuple[slice | Tensor, Tensor]:
        """Those of a block, counted from its start, and the target's logits of them."""
        if self.chosen is None:
            return slice(None), self.logits[block]
        if block.stop - block.start == len(self.share):
            return self.chosen, self.logits
        first, last = torch.searchsorted(self.chosen, self.chosen.new_tensor([block.start, block.stop])).tolist()
        return self.chosen[first:last] - block.start, self.logits[first:last]


@dataclass(frozen=True)
class _Chunk:
    """A chunk of tokens, from the logits on."""

    objective: Objective
    student: Tensor
    weight: Tensor
    groups: list[_Followers]
    labels: Tensor
    labelled: Tensor | None


def _groups(
    objective: Objective, weight: Tensor, of_teacher: Callable[[str, Tensor | None], Tensor]
) -> list[_Followers]:
    """Who follows what: the old model, the new one, or a blend of both models' logits."""
    shares = {"old": weight[:, 0], "new": weight[:, 1]}
    both = (shares["old"] > 0) & (shares["new"] > 0) & (objective.blend == "logits")
    followers = {"both": both, **{name: (share > 0) & ~both for name, share in shares.items()}}
    counts = torch.stack([follows.sum() for follows in followers.values()]).tolist()  # waits for the device once
    groups = []
    for (name, follows), count in zip(followers.items(), counts, strict=True):
        if not count:
            continue
        chosen = None if count == len(follows) else follows.nonzero().squeeze(-1)
        if name == "both":
            parts = [share if chosen is None else share[chosen] for share in shares.values()]
            logits = blended(of_teacher("old", chosen), of_teacher("new", chosen), *parts)
            groups.append(_Followers(logits, shares["old"] + shares["new"], chosen, ("old", "new")))
        else:
            groups.append(_Followers(of_teacher(name, chosen), shares[name], chosen, (name,)))
    return groups


def _terms_of_block(chunk: _Chunk, block: slice, wanted: bool) -> tuple[Tensor, ...]:
    objective = chunk.objective
    own, targets, weight = chunk.student[block], chunk.labels[block], chunk.weight[block]
    labelled = None if chunk.labelled is None else chunk.labelled[block]
    divergence = Divergence(objective.divergence, objective.temperature)
    scale = objective.temperature**2 if objective.scale_by_temperature_squared else 1.0
    factor = objective.compatibility_weight * scale * divergence.slope_factor
    kl = {name: torch.zeros_like(weight[:, 0]) for name in ("old", "new")}
    slope = torch.zeros_like(own) if wanted else None
    for group in chunk.groups:
        which, teacher = group.within(block)
        student = own.clone() if isinstance(which, slice) else own.index_select(0, which)
        values, difference = divergence.with_slope(teacher, student, wanted)
        for name in group.teachers:
            kl[name][which] = values
        if wanted:
            shares = (factor * group.share[block][which]).unsqueeze(-1)
            if isinstance(which, slice):
                slope.addcmul_(difference, shares)
            else:
                slope.index_add_(0, which, difference.mul_(shares))

    known = torch.ones_like(weight[:, 0]) if labelled is None else labelled.to(own.dtype)
    correct = (own.argmax(dim=-1) == targets).to(own.dtype) * known
    share = objective.label_share(weight, labelled)
    counts = isinstance(share, Tensor) or share > 0
    cross_entropy = _cross_entropy(own, targets, objective.label_smoothing)
    if wanted and counts:
        shares = share if isinstance(share, Tensor) else torch.full_like(cross_entropy, share)
        _add_slope_of_labels(slope, own, targets, shares, objective.label_smoothing)
    if wanted:
        own.copy_(slope)
    compatibility = (weight[:, 0] * kl["old"] + weight[:, 1] * kl["new"]) * scale
    loss = objective.compatibility_weight * compatibility
    if counts:
        loss = loss + share * cross_entropy
    compatibility = compatibility + torch.where(weight[:, 2] > 0, weight[:, 2] * cross_entropy, 0)
    of_teachers = (compatibility, weight[:, 0], weight[:, 1], kl["old"], kl["new"])
    return loss, *of_teachers, known, cross_entropy * known, correct


def _teacher_logits(work: _Work, name: str, which: slice | Tensor, student: Tensor, chosen: Tensor | None) -> Tensor:
    teacher = work.old if name == "old" else work.new
    if teacher.head is not work.student.head:
        return teacher.logits(which, student, chosen).to(student)
    # The same hidden state behind the same head gives the same logits: to the bit, whatever the rows beside it.
    same = (teacher.hidden[which] == work.student.hidden[which]).all(dim=-1)
    own = student if chosen is None else student.index_select(0, chosen)
    equal = int(same.sum())
    if equal == len(same):
        return own.clone()
    logits = teacher.logits(which).to(student)
    return torch.where(same.unsqueeze(-1), own, logits) if equal else logits


@Fused
def _cross_entropy(student: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """-log p(label), smoothed if asked for."""
    log_probability = torch.log_softmax(student, dim=-1)
    values = functional.nll_loss(log_probability, labels, reduction="none")
    return (1 - smoothing) * values - smoothing * log_probability.mean(dim=-1) if smoothing else values


@Fused
def _add_slope_of_labels(slope: Tensor, student: Tensor, labels: Tensor, shares: Tensor, smoothing: float) -> None:
    """The gradient of :func:`_cross_entropy`, of which each row has its share."""
    slope.addcmul_(torch.softmax(student, dim=-1), shares.unsqueeze(-1))
    slope.sub_((shares * smoothing / student.size(-1)).unsqueeze(-1))
    slope.scatter_add_(1, labels.unsqueeze(-1), (-(1 - smoothing) * shares).unsqueeze(-1))
