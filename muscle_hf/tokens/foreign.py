"""v1's next-token distributions as targets over v2's tokens, where the two have different tokenizers.

The probability of a student's token is that of the texts of v1 that begin with it, behind what the student has read
(equations (X1), along known paths (X2)). Along a row the product of the targets of its tokens is v1's own likelihood
of the text, up to what v1 gives to other segmentations of it, and to masses that only tokens ahead would decide.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from muscle_hf.tokens.align import Aligner, Place
from muscle_hf.tokens.cells import CellTable, spread
from muscle_hf.tokens.steps import parts_of

FLOOR = -1e4  # of log q; a floor of log 1e-9 would be four times the whole mass at 128k tokens and temperature 2
LEAST = 0.01
_TINY = torch.finfo(torch.float32).tiny
# Of one buffer: on a CPU the passes over a few places stay in its cache.
_BLOCK_BYTES = {"cpu": 2 * 2**20}
_BLOCK_BYTES_ELSEWHERE = 512 * 2**20


@dataclass(frozen=True)
class Target:
    """v1's targets at n places of the student.

    Attributes:
        log_q: (n, width of the student's logits) float32, log-probabilities, never below ``FLOOR``; where there is no
            target, the student's own.
        valid: (n,) bool, whether there is one: v1 is at the place at all, with enough mass.
        compatible: (n,) v1's mass, from its last boundary not behind the place, on texts that begin as the student has
            read; about 1 at a common boundary.
        undecided: (n,) share of it in cells of several tokens, where the student's own probabilities decide.
    """

    log_q: Tensor
    valid: Tensor
    compatible: Tensor
    undecided: Tensor


_PLACE = np.dtype([(name, np.int64) for name in ("first", "count", "label", "here")])
_STEP = np.dtype(
    [*((name, np.int64) for name in ("path", "ended", "other", "listed", "pairs")), ("dense", np.bool_)], align=True
)


class Steps(NamedTuple):
    """What n places ask of v1's logits, as arrays: the steps of all places, one place behind the other.

    Attributes:
        places: (n,) ``first``, the row of v1's logits for the first step, behind which those for the others lie;
            ``count`` of steps, 0 where v1 has no say; ``label``; ``here``, which of the steps is the last whose
            boundary is not behind the place.
        steps: (m,) ``path`` and ``ended`` as of :class:`~muscle_hf.tokens.Place`; ``dense`` and ``other`` as of
            :class:`~muscle_hf.tokens.steps.Part`, and the label where it is settled; how many are ``listed``, and how
            many ``pairs`` there are.
        listed: (k,) int32, the listed tokens of all steps.
        pairs: (l, 3) int32, the pairs of all steps.
    """

    places: NDArray[Any]
    steps: NDArray[Any]
    listed: NDArray[np.int32]
    pairs: NDArray[np.int32]

    @classmethod
    def joined(cls, parts: Sequence[Steps]) -> Steps:
        """The places of all, in order."""
        return cls(*map(np.concatenate, zip(*parts, strict=True)))

    def only(self, numbers: NDArray[np.int64]) -> Steps:
        """Of some places."""
        at = _chosen(self.places["count"], numbers)
        listed, pairs = _chosen(self.steps["listed"], at), _chosen(self.steps["pairs"], at)
        return Steps(self.places[numbers], self.steps[at], self.listed[listed], self.pairs[pairs])

    def needed(self) -> tuple[NDArray[np.int64], Steps]:
        """The rows of v1's logits that are asked for, ascending, and the same of these rows alone."""
        rows, places = np.unique(ranges(self.places["first"], self.places["count"])), self.places.copy()
        places["first"] = np.searchsorted(rows, places["first"])
        return rows, self._replace(places=places)


def _chosen(counts: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where the elements of some of several ranges lie, of which one lies behind the other."""
    return ranges((np.cumsum(counts) - counts)[numbers], counts[numbers])


def ranges(starts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers from each start on, so many as are counted, one range behind the other."""
    return np.repeat(starts - np.cumsum(counts) + counts, counts) + np.arange(counts.sum())


class ForeignTargets:
    """Turns v1's logits into targets over the student's vocabulary; tables are kept in ``folder``, by default one in
    the Hugging Face cache."""

    def __init__(self, aligner: Aligner, folder: str | os.PathLike | None = None) -> None:
        self.aligner = aligner
        self._parts = parts_of(aligner.old, aligner.new, folder)
        self._table = self._parts.table

    def steps(self, places: Sequence[Place | None]) -> Steps:
        """What places ask of v1's logits; may be kept for as often as these are asked about."""
        of_places, of_steps, listed, pairs = [], [], [np.zeros(0, np.int64)], [np.zeros((0, 3), np.int64)]
        for place in places:
            if place is None:
                of_places.append((0, 0, -1, 0))
                continue
            here = max(sum(step.kind <= 0 for step in place.steps) - 1, 0)
            of_places.append((place.first, len(place.steps), place.label, here))
            for step, *own, settled in zip(place.steps, place.path, place.ended, place.settled, strict=True):
                part = self._parts.of(step)
                other = -1 if part.dense else place.label if settled else part.other
                sizes = len(part.listed), part.pairs.shape[1]
                of_steps.append((*own, other, *sizes, part.dense))
                listed.append(part.listed)
                pairs.append(part.pairs.T)
        arrays = np.array(of_places, dtype=_PLACE), np.array(of_steps, dtype=_STEP)
        return Steps(*arrays, *(np.concatenate(each).astype(np.int32) for each in (listed, pairs)))

    @torch.no_grad()
    def target(
        self,
        old_logits: Tensor,
        places: Sequence[Place | None] | Steps,
        student: Tensor,
        least: float = LEAST,
        *,
        top: bool = False,
    ) -> Target:
        """Equations (X1) and (X2) at n places.

        Args:
            old_logits: (m, about V1) v1's logits at the positions of its row, any float dtype; with ``top``
                (m, V1 + 1).
            places: Of the student; None: v1 has no say. Or what :meth:`steps` gives for them, whose ``first`` may
                count other rows of logits than those of one row's positions.
            student: (n, at least V2) the reference within cells: the student's logits, or v2's; all finite.
            least: Places with less compatible mass have no target.
            top: The last column of ``old_logits`` is of all tokens together that have no probability of their own; at
                a common boundary it follows the student's, elsewhere it says nothing. v1's own next token has one.
        """
        steps = places if isinstance(places, Steps) else self.steps(places)
        student = student.float()
        if self._table.old.device != student.device:
            self._table = self._table.to(student.device)
        size = self._table.old_size + top
        log_p = old_logits[:, :size].float().log_softmax(-1)
        if log_p.size(1) < size:
            log_p = pad(log_p, (0, size - log_p.size(1)), value=-torch.inf)
        return _target(steps, log_p, student, self._table, least, top=top)


@dataclass(frozen=True)
class _Asked:
    """:class:`Steps` on a device: of each place (n,), of each step (m,), of each listed token (k,) and pair (l,).

    A step k stands where v1's tokens w_1 ... w_k of the text have been read; p_k is what v1 says there.
    """

    most: int  # steps of a place
    count: Tensor
    label: Tensor
    here: Tensor
    numbers: NDArray[np.int64]  # of each step its place
    place: Tensor
    offset: Tensor
    row: Tensor
    path: Tensor
    ended: Tensor
    dense: Tensor
    other: Tensor
    listed_at: Tensor
    listed: Tensor
    pair_at: Tensor
    old: Tensor
    new: Tensor
    is_open: Tensor

    @classmethod
    def of(cls, steps: Steps, device: torch.device) -> _Asked:
        def moved(array: NDArray[Any]) -> Tensor:
            return torch.from_numpy(array).to(device)

        counts, of_steps = steps.places["count"], np.arange(len(steps.steps))
        numbers, offsets = np.repeat(np.arange(len(counts)), counts), ranges(np.zeros_like(counts), counts)
        old, new, is_open = moved(steps.pairs).long().unbind(-1)
        return cls(
            most=int(counts.max(initial=0)),
            **{name: moved(steps.places[name]) for name in ("count", "label", "here")},
            numbers=numbers,
            place=moved(numbers),
            offset=moved(offsets),
            row=moved(steps.places["first"][numbers] + offsets),
            **{name: moved(steps.steps[name]) for name in ("path", "ended", "dense", "other")},
            listed_at=moved(np.repeat(of_steps, steps.steps["listed"])),
            listed=moved(steps.listed).long(),
            pair_at=moved(np.repeat(of_steps, steps.steps["pairs"])),
            old=old,
            new=new,
            is_open=is_open,
        )

    def reached(self, on_path: Tensor) -> Tensor:
        """(n, most steps + 1): the mass with which v1 is at each step, that of its own tokens of the text before it,
        r_k = prod_{j < k} p_j(w_{j+1}), relative to its last boundary that is not behind the place."""
        found = on_path.new_ones(len(self.count), self.most + 1)
        found[self.place, self.offset + 1] = on_path
        found = found.cumprod(-1)
        return found / found.gather(1, self.here[:, None]).clamp_min(_TINY)

    def of_pairs(self, log_p: Tensor, z: Tensor, weight: Tensor, table: CellTable) -> Tensor:
        """(l,) equation (X1) for the listed tokens, r_k p_k(w) s(u) / sum_{u' in C(w)} s(u'); the path's own goes on
        in the next step."""
        masses = weight[self.pair_at] * _mass(log_p, self.row[self.pair_at], self.old)
        masses = masses * (self.old != self.path[self.pair_at])
        cell = torch.unique_consecutive(self.pair_at * table.old_size + self.old, return_inverse=True)[1]
        own = z[self.place[self.pair_at], self.new].clamp_min(FLOOR)
        own = (own - torch.full_like(own, -torch.inf).scatter_reduce_(0, cell, own, "amax")[cell]).exp_()
        shared = masses * own / torch.zeros_like(own).index_add_(0, cell, own)[cell]
        return torch.where(self.is_open > 0, shared, masses)

    def of_rest(self, log_p: Tensor, on_path: Tensor, weight: Tensor, table: CellTable) -> Tensor:
        """(m,) r_k (1 - p_k(w_{k+1}) - sum_listed p_k(w)): all other tokens say the same, or what the table says."""
        masses = _mass(log_p, self.row[self.listed_at], self.listed) * (self.listed != self.path[self.listed_at])
        rest = (1 - on_path).index_add_(0, self.listed_at, -masses)
        common, unsaid = self.dense.nonzero()[:, 0], (table.sizes == 0).nonzero()[:, 0]
        rest[common] -= _mass(log_p, self.row[common, None], unsaid).sum(-1)
        return weight * rest.clamp_min_(0) * (self.dense | (self.other >= 0))

    def of_tokens(self, of_pairs: Tensor, rest: Tensor, end: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """What is said of single tokens: their places in the (n, width) result, flat and ascending, and the masses."""
        said = self.other >= 0
        at = torch.cat([self.place[self.pair_at], self.place[said], torch.arange(len(end), device=end.device)])
        tokens = torch.cat([self.new, self.other[said], self.label])
        masses = torch.cat([of_pairs, rest[said], end])
        kept = masses > 0
        keys, back = (at * width + tokens)[kept].unique(return_inverse=True)
        return keys, masses.new_zeros(len(keys)).index_add_(0, back, masses[kept])

    def stood_in(
        self, log_p: Tensor, z: Tensor, weight: Tensor, keys: Tensor, table: CellTable
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Off its path v1 may have ended a token where the student stands, and what it says then is not known: the
        reference stands in, with those of its tokens that v1 would not have joined to what was read.

        Gives these b places, the logs of the masses of their tokens, (b, V2), and of these the sums, (b,).
        """
        width = z.size(1)
        at = (self.ended >= 0).nonzero()[:, 0]
        between, back = self.place[at].unique(return_inverse=True)
        # Of a token that may go on in several ways the student has read one; what the reference said there is not
        # known.
        each = weight[at] * _mass(log_p, self.row[at], self.ended[at])
        each = each / table.sizes[self.ended[at]].clamp_min(1)
        numbered = torch.arange(len(between), device=z.device)
        number = torch.full_like(self.label, -1).index_copy_(0, between, numbered)
        others = z[between, : table.new_size]
        others[numbered, self.label[between]] = -torch.inf
        inside = number[keys // width] >= 0
        others[number[(keys // width)[inside]], keys[inside] % width] = -torch.inf
        left = others.logsumexp(-1)
        each = z.new_zeros(len(between)).index_add_(0, back, each) * (left > -torch.inf)
        others += (each.log() - left.clamp_min(FLOOR))[:, None]
        return between, others, each


def _mass(log_p: Tensor, rows: Tensor, tokens: Tensor) -> Tensor:
    return log_p[rows, tokens].exp()


def _target(steps: Steps, log_p: Tensor, z: Tensor, table: CellTable, least: float, *, top: bool) -> Target:
    """The target from the logs of v1's probabilities, which are overwritten, and the reference's logits."""
    (n, width), asked = z.shape, _Asked.of(steps, z.device)
    place, of_pair = asked.place, asked.place[asked.pair_at]
    on_path = torch.where(asked.path >= 0, _mass(log_p, asked.row, asked.path.clamp_min(0)), 0.0)
    reached = asked.reached(on_path)
    weight = reached[place, asked.offset]
    of_pairs, rest = asked.of_pairs(log_p, z, weight, table), asked.of_rest(log_p, on_path, weight, table)
    # The end of the path says the label too.
    end = reached.gather(1, asked.count[:, None])[:, 0] * (asked.count > 0)
    compatible = end.index_add(0, place, rest).index_add_(0, of_pair, of_pairs)
    undecided = z.new_zeros(n).index_add_(0, of_pair, of_pairs * asked.is_open)
    keys, masses = asked.of_tokens(of_pairs, rest, end, width)
    between, others, each = asked.stood_in(log_p, z, weight, keys, table)
    compatible.index_add_(0, between, each)
    undecided.index_add_(0, between, each)
    valid = compatible >= max(least, _TINY)
    scale = torch.where(valid, compatible, 1.0).log_()
    log_q = torch.empty_like(z)
    log_q[:, table.new_size :] = FLOOR
    log_q[torch.ones_like(valid).index_fill_(0, place[asked.dense], False)] = FLOOR
    log_q[between, : table.new_size] = others.sub_(scale[between, None]).clamp_min_(FLOOR)
    _spread_common(asked, steps, log_p, z, scale, table, log_q, undecided, top=top)
    flat = log_q.view(-1)
    flat[keys] = torch.logaddexp(flat[keys], masses.log() - scale[keys // width])
    log_q[~valid] = z[~valid].log_softmax(-1).clamp_min_(FLOOR)
    return Target(log_q, valid, compatible, undecided / compatible.clamp_min(_TINY))


def _spread_common(
    asked: _Asked,
    steps: Steps,
    log_p: Tensor,
    z: Tensor,
    scale: Tensor,
    table: CellTable,
    log_q: Tensor,
    undecided: Tensor,
    *,
    top: bool,
) -> None:
    """Equation (X1) with the table, at common boundaries, for the tokens that are not listed, less ``scale``: into
    ``log_q`` and ``undecided``, a few places at a time."""
    row, size, common = asked.row, table.new_size, asked.dense.nonzero()[:, 0]
    if len(row[common].unique()) < len(common):  # what is taken from a row is of one place
        log_p, row[common] = log_p[row[common]], torch.arange(len(common), device=z.device)
    listed_here = asked.dense[asked.listed_at]
    log_p[row[asked.listed_at[listed_here]], asked.listed[listed_here]] = -torch.inf
    ahead = common[asked.path[common] >= 0]
    log_p[row[ahead], asked.path[ahead]] = -torch.inf
    block = max(1, _BLOCK_BYTES.get(z.device.type, _BLOCK_BYTES_ELSEWHERE) // (4 * max(size, table.old_size)))
    where = asked.numbers[steps.steps["dense"]]
    for start in range(0, len(where), block):
        few, own = common[start : start + block], where[start : start + block]
        # Mostly these places lie together, and need not be gathered.
        together = own[-1] + 1 - own[0] == len(own)
        at = slice(own[0], own[-1] + 1) if together else torch.from_numpy(own).to(z.device)
        reference = z[at, :size]
        found, of_cells = spread(log_p.index_select(0, row[few]), table, reference)
        undecided[at] += of_cells
        if top:
            unknown = log_p[row[few], -1]
            undecided[at] += unknown.exp()
            found = torch.logaddexp(found, reference.log_softmax(-1) + unknown[:, None])
        log_q[at, :size] = found.sub_(scale[at, None]).clamp_min_(FLOOR)
