"""The objective without N x V: logits, mask, KL and gradient of a few tokens at a time.

The twin of :class:`muscle_hf.objective.Objective` applied to whole logits: the same figures, from hidden states.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
        """Logits of some tokens; ``student``, of which the rows ``chosen`` are of these tokens (by default all), is
        for streams that lean on another's."""
        found = self.hidden[rows]
        return found.to(_exact(found)) if self.head is None else self.head(found)

    def distance(
        self, rows: slice | Tensor, student: Tensor, divergence: Divergence, logits: Callable[[], Tensor]
    ) -> Tensor:
        """How far the student is from this model at some tokens (a_1 or a_2 of equation 1): (n,), with gradient, of
        its logits (n, V) with gradient; ``logits`` gives this model's, as :meth:`logits`."""
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


@dataclass(frozen=True)
class Chunks:
    """Equations (1) and (5) of the N trained tokens of a batch, a few of them at a time.

    Args:
        objective: The settings.
        labels: (N,), int64; none ignored. N may be 0.
        sequence_ids: (N,), int64, the sequence of each token; tokens of one sequence lie together.
        size: Tokens at a time; None for all of them, with gradients by autograd, of ``compatibility`` too.
        labelled: (N,), boolean; by default every token has a label.
        silent: (N, 2), boolean: where v1, and where v2, says nothing, so that the token follows the other; by default
            both speak everywhere.
        inspect: Sees a teacher's logits where they may not be finite; raises if they are not.
        fast: As :meth:`Objective.terms` takes it.
    """

    objective: Objective
    labels: Tensor
    sequence_ids: Tensor
    size: int | None
    labelled: Tensor | None = None
    silent: Tensor | None = None
    inspect: Inspect | None = None
    fast: bool = True

    @torch.no_grad()
    def weights(self, streams: Mapping[str, Stream]) -> Tensor:
        """What each token follows, (N, 3), as :meth:`Objective.weights`, of the streams that ``objective.reads`` names
        and the student's; the dtype of the logits, no gradient."""
        of_labelled, of_transfer = self.objective.mask, self.objective.transfer_mask
        weights = self._weights_of(of_labelled, streams)
        weights = self.objective.joined(weights, self.labelled, lambda: self._weights_of(of_transfer, streams))
        return _spoken(weights, self.silent)

    def terms(self, streams: Mapping[str, Stream], weights: Tensor | None = None) -> TokenTerms:
        """The loss of each token; the gradient is made with the value, chunk by chunk: ``loss`` has one in
        ``student.hidden``, ``compatibility`` has none. ``streams`` are ``student``, with gradient in ``hidden``,
        ``old`` and ``new``: where the masks do not read one, only the tokens that follow it are looked at. ``weights``
        from :meth:`weights` are found on the way by default."""
        student = streams["student"]
        streams = {**streams, "student": Stream(student.hidden.detach(), student.head)}
        over_sequences = self.objective.mask.over_sequences or self.objective.transfer_mask.over_sequences
        of_answers = streams["old"].whole_answers or streams["new"].whole_answers
        if weights is None and (of_answers or (over_sequences and self.size is not None)):
            weights = self.weights(streams)
        if of_answers and weights is not None:
            said = _Said(streams["student"], self._size)
            streams |= {name: streams[name].beside(said) for name in ("old", "new")}
            follows_old, follows_new, of_label = weights.unbind(-1)
            shared = streams["old"].shared(follows_old), streams["new"].shared(follows_new)
            weights = torch.stack([*shared, of_label], dim=-1)

        def of_chunk(rows: slice, logits: Tensor) -> TokenTerms:
            return self._terms_of(rows, logits, streams, weights)

        if self.size is None:
            terms = of_chunk(slice(0, len(self.labels)), student.logits(slice(None)))
        else:
            terms = TokenTerms(*_ChunkedTerms.apply(student.hidden, student.head, self._slices(), of_chunk))
        self._show_infinite(streams, terms)
        return terms

    @property
    def _size(self) -> int:
        return self.size or max(1, len(self.labels))

    def _slices(self, *, whole_sequences: bool = False) -> list[slice]:
        count, size = self.labels.numel(), self._size
        if not whole_sequences or count <= size:
            return [slice(start, min(start + size, count)) for start in range(0, count, size)]
        _, lengths = torch.unique_consecutive(self.sequence_ids, return_counts=True)
        ends, start, chunks = lengths.cumsum(0).tolist(), 0, []
        for end, after in zip(ends, [*ends[1:], None], strict=True):
            if after is None or after - start > size:
                chunks.append(slice(start, end))
                start = end
        return chunks

    def _weights_of(self, mask: Mask, streams: Mapping[str, Stream]) -> Tensor:
        per_token, per_sequence = mask.parts or (None, None)
        nothing = _nothing(streams["student"].hidden)
        found = [nothing if per_token else nothing.new_zeros(0, 3)]
        for rows in self._slices(whole_sequences=mask.over_sequences and not mask.parts):
            read = {name: streams[name] for name in mask.reads}
            beside = {name: streams[name].logits(rows) for one in read.values() if (name := one.leans)}
            logits = {name: one.logits(rows, beside.get(one.leans or "")) for name, one in read.items()}
            self._show_broken(logits, rows)
            student, old, new = (logits.get(name) for name in ("student", "old", "new"))
            if per_token is None:
                found.append(mask(student, old, new, self.labels[rows], self.sequence_ids[rows]).to(nothing))
            else:
                found.append(per_token(student, old, new, self.labels[rows]))
        joined = torch.cat(found)
        if per_sequence is None:
            return joined
        return mask.checked(per_sequence(joined, self.sequence_ids), self.labels, joined.dtype)

    def _terms_of(
        self, rows: slice, student: Tensor, streams: Mapping[str, Stream], weights: Tensor | None
    ) -> TokenTerms:
        """The objective on a chunk of the tokens, from the student's logits."""
        frozen, labels = student.detach(), self.labels[rows]
        labelled = None if self.labelled is None else self.labelled[rows]
        read: dict[str, Tensor] = {}

        @torch.no_grad()
        def of_teacher(name: str, chosen: Tensor | None) -> Tensor:
            if name in read:
                return read[name] if chosen is None else read[name].index_select(0, chosen)
            return _teacher_logits(streams, name, rows if chosen is None else chosen + rows.start, frozen, chosen)

        def distance(name: str, chosen: Tensor | None, own: Tensor, divergence: Divergence) -> Tensor:
            which = rows if chosen is None else chosen + rows.start
            return streams[name].distance(which, own, divergence, lambda: of_teacher(name, chosen))

        if weights is None:
            read.update({name: of_teacher(name, None) for name in self.objective.reads - {"student"}})
            self._show_broken(read, rows)
            of_all = frozen, read.get("old"), read.get("new")
            weight = self.objective.weights(*of_all, labels, self.sequence_ids[rows], labelled)
        else:
            weight = weights[rows]
        weight = _spoken(weight.to(student), None if self.silent is None else self.silent[rows])
        fast = self.fast and self.size is not None
        return self.objective.terms(student, of_teacher, weight, labels, labelled, distance=distance, fast=fast)

    def _show_broken(self, logits: Mapping[str, Tensor], rows: slice) -> None:
        # A mask would make some weight of nan, too.
        for name in logits.keys() - {"student"}:
            if self.inspect is not None and not bool(torch.isfinite(logits[name].sum(dim=-1)).all()):
                self.inspect(name, logits[name], torch.arange(rows.start, rows.stop, device=self.labels.device))

    @torch.no_grad()
    def _show_infinite(self, streams: Mapping[str, Stream], terms: TokenTerms) -> None:
        # At the end of the batch: each look waits for the device.
        if self.inspect is None or bool(torch.stack([terms.kl_old, terms.kl_new]).isfinite().all()):
            return
        for name, values in (("old", terms.kl_old), ("new", terms.kl_new)):
            for tokens in (~values.isfinite()).nonzero().squeeze(-1).split(self._size):
                self.inspect(name, streams[name].logits(tokens, streams["student"].logits(tokens)), tokens)


def _spoken(weights: Tensor, silent: Tensor | None) -> Tensor:
    """Weights (n, 3) of tokens that follow the other teacher where one says nothing, and none where both do."""
    if silent is None:
        return weights
    of_teachers, said = weights[:, :2], (~silent).to(weights)
    passed_on = (of_teachers * silent).flip(-1)
    return torch.cat([(of_teachers + passed_on) * said, weights[:, 2:]], dim=-1)


class _Said:
    """Log-probabilities that the student gives tokens, ``size`` at a time, each place asked once, whoever asks."""

    def __init__(self, student: Stream, size: int):
        self.student, self.size = student, size
        self._known = _nothing(student.hidden).new_full((len(student.hidden),), torch.nan)

    @torch.no_grad()
    def __call__(self, rows: Tensor, tokens: Tensor) -> Tensor:
        new = self._known[rows].isnan().nonzero().squeeze(-1)
        for few in new.split(self.size) if len(new) else ():
            self._known[rows[few]] = label_log_likelihood(self.student.logits(rows[few]), tokens[few])
        return self._known[rows]


def _nothing(hidden: Tensor) -> Tensor:
    return hidden.new_zeros(0, dtype=_exact(hidden))


def _exact(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


class _ChunkedTerms(torch.autograd.Function):
    """Values and gradient in one pass; a token's loss depends on its own hidden state alone."""

    @staticmethod
    def forward(
        ctx, hidden: Tensor, head: Head, slices: list[slice], of_chunk: Callable[[slice, Tensor], TokenTerms]
    ) -> tuple[Tensor, ...]:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden, dtype=_exact(hidden)) if wanted else None
        parts = []
        for rows in slices:
            own = hidden[rows].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                terms = of_chunk(rows, head(own))
            if gradient is not None:
                # What float16 would round to zero is not lost; a token's slopes are at most 1 each.
                dtypes = hidden.dtype, getattr(head, "dtype", None)
                scale = 2.0**10 if torch.float16 in dtypes else 1.0
                (slope,) = torch.autograd.grad(terms.loss, own, torch.full_like(terms.loss, scale))
                gradient[rows] = slope.to(gradient.dtype) / scale
            parts.append([getattr(terms, column.name).detach() for column in fields(terms)])
        ctx.save_for_backward(gradient)
        ctx.dtype = hidden.dtype
        nothing = [[_nothing(hidden)] * len(fields(TokenTerms))]
        columns = tuple(torch.cat(column) for column in zip(*(parts or nothing), strict=True))
        ctx.mark_non_differentiable(*columns[1:])
        return columns

    @staticmethod
    def backward(ctx, of_loss: Tensor, *others: Tensor) -> tuple[Tensor | None, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (of_loss.unsqueeze(-1).to(gradient.dtype) * gradient).to(ctx.dtype), None, None, None


def _teacher_logits(
    streams: Mapping[str, Stream], name: str, which: slice | Tensor, own: Tensor, chosen: Tensor | None
) -> Tensor:
    teacher, student = streams[name], streams["student"]
    if teacher.leans == "new":
        return teacher.logits(which, streams["new"].logits(which)).to(own)
    if teacher.leans or teacher.head is None or teacher.head is not student.head:
        return teacher.logits(which, own, chosen).to(own)
    # The same hidden state behind the same head gives the same logits: to the bit, whatever the rows beside it.
    same = (teacher.hidden[which] == student.hidden[which]).all(dim=-1)
    own = own if chosen is None else own.index_select(0, chosen)
    equal = int(same.sum())
    if equal == len(same):
        return own
    logits = teacher.logits(which).to(own)
    return torch.where(same.unsqueeze(-1), own, logits) if equal else logits
