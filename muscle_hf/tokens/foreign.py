"""v1's next-token distributions as targets over v2's tokens, where the two have different tokenizers.

The probability of a student's token is that of the texts of v1 that begin with it, behind what the student has read
(equations (X1), along known paths (X2)). Along a row the product of the targets of its tokens is v1's own likelihood
of the text, up to what v1 gives to other segmentations of it, and to masses that only tokens ahead would decide.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from muscle_hf.tokens.align import Aligner, Place
from muscle_hf.tokens.cells import SMALLEST, CellTable, spread
from muscle_hf.tokens.steps import Parts

FLOOR = -1e4  # of log q; a floor of log 1e-9 would be four times the whole mass at 128k tokens and temperature 2
LEAST = 0.01
_TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Target:
    """v1's targets at n places of the student.

    Attributes:
        log_q: (n, width of the student's probabilities) float32, log-probabilities, never below ``FLOOR``; where there
            is no target, the student's own.
        valid: (n,) bool, whether there is one: v1 is at the place at all, with enough mass.
        compatible: (n,) v1's mass, from its last boundary not behind the place, on texts that begin as the student has
            read; about 1 at a common boundary.
        undecided: (n,) share of it in cells of several tokens, where the student's own probabilities decide.
    """

    log_q: Tensor
    valid: Tensor
    compatible: Tensor
    undecided: Tensor


class ForeignTargets:
    """Turns v1's logits into targets over the student's vocabulary.

    Args:
        aligner: Of the two tokenizers.
        folder: Of kept tables; by default one in the Hugging Face cache.
    """

    def __init__(self, aligner: Aligner, folder: str | os.PathLike | None = None) -> None:
        self.aligner = aligner
        self._parts = Parts(aligner, folder)
        self._table = self._parts.table

    @torch.no_grad()
    def target(
        self,
        old_logits: Tensor,
        first: Sequence[int],
        places: Sequence[Place | None],
        student: Tensor,
        least: float = LEAST,
        *,
        top: bool = False,
    ) -> Target:
        """Equations (X1) and (X2) at n places.

        Args:
            old_logits: (m, about V1) v1's logits at positions of its rows, any float dtype; with ``top`` (m, V1 + 1).
            first: (n,) for each place the row of ``old_logits`` for v1's position ``place.first``; the rows for the
                positions behind it that ``place.steps`` needs follow. Any number where there is no place.
            places: Of the student; None: v1 has no say.
            student: (n, at least V2) the reference within cells: the student's probabilities, or v2's.
            least: Places with less compatible mass have no target.
            top: The last column of ``old_logits`` is of all tokens together that have no probability of their own; at
                a common boundary it follows the student's, elsewhere it says nothing. v1's own next token has one.
        """
        student = student.float()
        if self._table.old.device != student.device:
            self._table = self._table.to(student.device)
        n, width = student.shape
        compatible, undecided = student.new_zeros(n), student.new_zeros(n)
        q = student.clone()
        if asked := [index for index, place in enumerate(places) if place is not None]:
            # One column more, of nothing, for what the table does not know.
            p = old_logits[:, : self._table.old_size + top].float()
            p = pad(p, (0, self._table.old_size + 1 - p.size(1)), value=-torch.inf).softmax(-1)
            others = p[:, -1].clone() if top else None
            p[:, -1] = 0
            flat = _Steps(*(part.to(student.device) for part in self._flat(first, places, asked)))
            given = torch.tensor(asked, device=student.device)
            s = student[:, : self._table.new_size]
            found, compatible[given], undecided[given] = _masses(
                flat, p, others, s if len(asked) == n else s[given], self._table
            )
            found = pad(found, (0, width - found.size(1))) if width > found.size(1) else found
            q = found if len(asked) == n else student.new_zeros(n, width).index_copy_(0, given, found)
        valid = compatible >= max(least, _TINY)
        q.div_(torch.where(valid, compatible, 1.0)[:, None])
        q[~valid] = student[~valid]
        return Target(q.log_().clamp_(min=FLOOR), valid, compatible, undecided / compatible.clamp_min(_TINY))

    def _flat(self, first: Sequence[int], places: Sequence[Place | None], asked: Sequence[int]) -> _Steps:
        given = [place for index in asked if (place := places[index]) is not None]

        def of_steps(name: str) -> NDArray[Any]:
            return np.array(list(chain.from_iterable(map(attrgetter(name), given))))

        count = np.array([len(place.steps) for place in given])
        number = np.repeat(np.arange(len(given)), count)
        offset = np.arange(len(number)) - np.repeat(np.cumsum(count) - count, count)
        row = np.asarray(first)[np.asarray(asked)][number] + offset
        parts = list(map(self._parts.of, chain.from_iterable(place.steps for place in given)))

        def joined(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            """The arrays of all parts, and which step each element is from."""
            arrays = list(map(attrgetter(name), parts))
            return np.repeat(np.arange(len(parts)), [one.shape[-1] for one in arrays]), np.concatenate(arrays, axis=-1)

        dense, other = (np.array(list(map(attrgetter(name), parts))) for name in ("dense", "other"))
        labels = np.array([place.label for place in given])
        other = np.where(dense, -1, np.where(of_steps("settled"), labels[number], other))
        (listed_at, listed), (pair_at, pairs) = joined("listed"), joined("pairs")
        here = [max(sum(step.kind <= 0 for step in place.steps) - 1, 0) for place in given]
        arrays = (number, row, offset, of_steps("path"), of_steps("ended"), dense, other, listed_at, listed, pair_at)
        arrays += (pairs[0], pairs[1], pairs[2] != 0, labels, np.array(here), count)
        return _Steps(*map(torch.from_numpy, arrays))


class _Steps(NamedTuple):
    """The steps of n places, one behind the other.

    Of steps: ``place``, ``row`` of v1's logits, ``offset`` within the place; the others as of places and parts. Of
    listed tokens and of pairs, ``listed_at`` and ``pair_at``: their steps. Of places: ``label``; ``here``, the offset
    of the last boundary that is not behind the place; ``count`` of steps.
    """

    place: Tensor
    row: Tensor
    offset: Tensor
    path: Tensor
    ended: Tensor
    dense: Tensor
    other: Tensor
    listed_at: Tensor
    listed: Tensor
    pair_at: Tensor
    old: Tensor
    new: Tensor
    open: Tensor
    label: Tensor
    here: Tensor
    count: Tensor


def _masses(
    steps: _Steps, p: Tensor, others: Tensor | None, s: Tensor, table: CellTable
) -> tuple[Tensor, Tensor, Tensor]:
    """(n, V2) masses of the student's tokens, (n,) their sums, (n,) what of these lies in open cells.

    All are relative to v1's mass at its last boundary that is not behind the place.
    """
    n, most = len(s), int(steps.count.max())
    on_path = torch.where(steps.path >= 0, p[steps.row, steps.path.clamp_min(0)], 0.0)
    # The mass with which v1 is at each step: that of its own tokens of the text before it.
    reached = p.new_ones(n, most + 1)
    reached[steps.place, steps.offset + 1] = on_path
    reached = reached.cumprod(-1)
    reached = reached / reached.gather(1, steps.here[:, None]).clamp_min(_TINY)
    weight = reached[steps.place, steps.offset]
    q, undecided = _dense(steps, p, s, table, weight)
    if others is not None:
        common = steps.dense.nonzero()[:, 0]
        unknown = weight[common] * others[steps.row[common]]
        unknown = torch.zeros_like(undecided).index_add_(0, steps.place[common], unknown)
        q.addcmul_(s, unknown[:, None])
        undecided += unknown

    # Pairs of listed tokens; the path's own goes on in the next step.
    place = steps.place[steps.pair_at]
    off_path = steps.old != steps.path[steps.pair_at]
    mass = weight[steps.pair_at] * p[steps.row[steps.pair_at], steps.old] * off_path * ~steps.dense[steps.pair_at]
    cell = torch.unique_consecutive(steps.pair_at * table.old_size + steps.old, return_inverse=True)[1]
    own = s[place, steps.new].clamp_min(SMALLEST)
    mass = torch.where(steps.open, mass * own / torch.zeros_like(own).index_add_(0, cell, own)[cell], mass)
    q.index_put_((place, steps.new), mass, accumulate=True)
    undecided.index_add_(0, place, mass * steps.open)

    # All other tokens say the same, and so does the end of the path.
    listed = p[steps.row[steps.listed_at], steps.listed] * (steps.listed != steps.path[steps.listed_at])
    rest = weight * (1 - on_path).index_add_(0, steps.listed_at, -listed).clamp_min(0)
    said = steps.other >= 0
    q.index_put_((steps.place[said], steps.other[said]), rest[said], accumulate=True)
    whole = torch.arange(n, device=q.device)
    q.index_put_((whole, steps.label), reached.gather(1, steps.count[:, None])[:, 0], accumulate=True)
    _add_ended(steps, p, s, table, weight, q, undecided)
    return q, q.sum(-1), undecided


def _dense(steps: _Steps, p: Tensor, s: Tensor, table: CellTable, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Steps where both have a boundary: v1's tokens but the path's and those that contradict what was read."""
    rows = steps.dense.nonzero()[:, 0]
    mass = p.index_select(0, steps.row[rows]).mul_(weight[rows, None])
    number = torch.full_like(steps.row, -1)
    number[rows] = torch.arange(len(rows), device=p.device)
    listed = number[steps.listed_at]
    mass[listed[listed >= 0], steps.listed[listed >= 0]] = 0.0
    path = steps.path[rows]
    mass[number[rows[path >= 0]], path[path >= 0]] = 0.0
    place = steps.place[rows]
    every = len(place) == len(s)  # one such step at each place, in order
    found, undecided = spread(mass, table, s if every else s[place])
    if not every:
        found = torch.zeros_like(s).index_copy_(0, place, found)
        undecided = s.new_zeros(len(s)).index_copy_(0, place, undecided)
    return found, undecided


def _add_ended(
    steps: _Steps, p: Tensor, s: Tensor, table: CellTable, weight: Tensor, q: Tensor, undecided: Tensor
) -> None:
    """v1 may have ended a token where the student stands, off the path: what it says then is not known.

    The student's own probabilities stand in, of those tokens that v1 would not have joined to what was read.
    """
    at = (steps.ended >= 0).nonzero()[:, 0]
    place, back = steps.place[at].unique(return_inverse=True)
    # Of a token that may go on in several ways the student has read one.
    said = weight[at] * p[steps.row[at], steps.ended[at]] / table.sizes[steps.ended[at]].clamp_min(1)
    mass = p.new_zeros(len(place)).index_add_(0, back, said)
    own = s[place].masked_fill_(q[place] > 0, 0.0)
    own[torch.arange(len(place), device=q.device), steps.label[place]] = 0.0
    whole = own.sum(-1)
    mass *= whole > 0
    q.index_add_(0, place, own * (mass / whole.clamp_min(_TINY))[:, None])
    undecided.index_add_(0, place, mass)
