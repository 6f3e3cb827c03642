"""v1's next-token distributions as targets over v2's tokens, where the two have different tokenizers.

The probability of a student's token is that of the texts of v1 that begin with it, behind what the student has read
(equations (X1), along known paths (X2)). Along a row the product of the targets of its tokens is v1's own likelihood
of the text, up to what v1 gives to other segmentations of it, and to masses that only tokens ahead would decide.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from muscle_hf.tokens.align import Aligner, Place, Step
from muscle_hf.tokens.cells import CellTable, load_table, shares, spread

FLOOR = -1e4  # of log q; a floor of 1e-9 would be four times the whole mass at 128k tokens and temperature 2
LEAST = 0.01
_KEPT = 4096
_NONE = np.zeros(0, dtype=np.int64)
_NOT_OPEN = np.zeros(0, dtype=bool)


@dataclass(frozen=True)
class Target:
    """v1's targets at n places of the student.

    Attributes:
        log_q: (n, width of the student's logits) float32, log-probabilities, never below ``FLOOR``; where there is no
            target, the student's own.
        valid: (n,) bool, whether there is one: v1 is at the place at all, with enough mass.
        compatible: (n,) v1's mass on texts that go on as the student has read, from v1's first row of the place on.
        undecided: (n,) share of it that lies in cells of several tokens, where the student's own probabilities decide.
    """

    log_q: Tensor
    valid: Tensor
    compatible: Tensor
    undecided: Tensor


class _Part(NamedTuple):
    """What one step does with v1's tokens, those on the path apart.

    Attributes:
        dense: The table without residue and carry holds for all tokens but those in ``listed``.
        listed: v1's tokens that are not what the others are.
        old, new: Pairs of listed tokens; a token of none is impossible.
        open: Whether the pair's token of v1 has several.
        other: The student's token for all tokens of v1 that are not listed; -1: they are impossible.
    """

    dense: bool = False
    listed: NDArray[np.int64] = _NONE
    old: NDArray[np.int64] = _NONE
    new: NDArray[np.int64] = _NONE
    open: NDArray[np.bool_] = _NOT_OPEN
    other: int = -1


class ForeignTargets:
    """Turns v1's logits into targets over the student's vocabulary.

    Args:
        aligner: Of the two tokenizers.
        folder: Of kept tables; by default one in the Hugging Face cache.
    """

    def __init__(self, aligner: Aligner, folder: str | os.PathLike | None = None) -> None:
        self.old, self.new = aligner.old, aligner.new
        self.table = load_table(self.old, self.new, folder)
        self._parts: OrderedDict[Step, _Part] = OrderedDict()

    @torch.no_grad()
    def target(
        self,
        old_logits: Tensor,
        first: Sequence[int],
        places: Sequence[Place | None],
        student: Tensor,
        least: float = LEAST,
    ) -> Target:
        """Equations (X1) and (X2) at n places.

        Args:
            old_logits: (m, at least V1) v1's logits at positions of its rows, any float dtype.
            first: (n,) for each place the row of ``old_logits`` for v1's position ``place.first``; the rows for the
                positions that follow in ``place.steps`` are behind it.
            places: Of the student; None: v1 has no say.
            student: (n, at least V2) the reference within cells: the student's probabilities, or v2's.
            least: Places with less compatible mass have no target.
        """
        given = [index for index, place in enumerate(places) if place is not None]
        asked = [place for place in places if place is not None]
        size = self.new.size
        s = student.float()
        q = torch.zeros_like(s)
        compatible, undecided = s.new_zeros(len(s)), s.new_zeros(len(s))
        if asked:
            flat = self._flat([first[index] for index in given], asked, old_logits.device)
            p = old_logits[:, : self.old.size].float().softmax(-1)
            p = torch.nn.functional.pad(p, (0, self.old.size - p.size(1)))
            found, compatible[given], undecided[given] = _masses(flat, p, s[given, :size], self.table)
            q[torch.tensor(given)[:, None], torch.arange(size)] = found
        valid = compatible >= max(least, torch.finfo(torch.float32).tiny)
        q = torch.where(valid[:, None], q / compatible.clamp_min(1e-38)[:, None], s)
        return Target(q.log().clamp_min(FLOOR), valid, compatible, undecided / compatible.clamp_min(1e-38))

    # ---- Steps ----

    def _part(self, step: Step) -> _Part:
        part = self._parts.pop(step, None)
        if part is None:
            part = self._build(step)
            if len(self._parts) >= _KEPT:
                self._parts.popitem(last=False)
        self._parts[step] = part
        return part

    def _build(self, step: Step) -> _Part:
        if step.kind == 0 and not step.read:
            return _Part(dense=True)
        read, skip = list(step.read), len(step.residue)
        done = self.new.text(read)
        ws = self.old.extending(step.residue or step.within) if step.kind < 0 else self._touching(step, len(done))
        texts = [step.carry + self.old.string(w)[skip:] for w in ws]
        pieces = self.new.pieces(texts)
        first = np.array([_behind(read, one) for one in pieces], dtype=np.int64)
        if step.kind == 0:
            return _Part(dense=True, listed=self._spelt(step, ws[first < 0]))
        last = [one[-1:] == [piece] and len(one) == len(read) + 1 for one, piece in zip(pieces, first, strict=True)]
        rests = {text[len(done) :] for text, is_last in zip(texts, last, strict=True) if is_last}
        us = [self.new.extending(rest) for rest in rests]
        us = np.unique(np.concatenate([_NONE, *us]))
        us = us[self.new.canonical[us]]
        begun = self.old.first_pieces([step.residue + (done + self.new.string(u))[len(step.carry) :] for u in us])
        known = np.isin(begun, ws[first >= 0])
        table = CellTable.of(
            np.concatenate([ws, begun[known]]), np.concatenate([first, us[known]]), self.old.size, self.new.size
        )
        old, new, is_open = table.old.numpy(), table.new.numpy(), table.open.numpy()
        if step.kind < 0:
            return _Part(listed=ws, old=old, new=new, open=is_open)
        other = int(self.new.first_pieces([step.carry[len(done) :]])[0])
        listed = self._spelt(step, np.unique(np.concatenate([ws[first < 0], old[is_open | (new != other)]])))
        kept = np.isin(old, listed)
        return _Part(listed=listed, old=old[kept], new=new[kept], open=is_open[kept], other=other)

    def _touching(self, step: Step, done: int) -> NDArray[np.int64]:
        """Tokens of v1 that a token of the student joins with the carry, wherever in it one begins."""
        offsets = np.cumsum([0, *(len(self.new.string(u)) for u in step.read)])
        found = [_NONE]
        for head in {step.carry[offset:] for offset in offsets if offset < len(step.carry)}:
            ends = [self.new.string(u)[len(head) :] for u in self.new.extending(head)]
            found.append(self.old.first_pieces(ends))
            found += self.old.beginning(ends)
        ws = np.unique(np.concatenate(found))
        return ws[[bool(self.old.string(w)) for w in ws]]

    def _spelt(self, step: Step, ws: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some tokens with which v1's tokenizer would go on behind its last token.

        With the others v1 writes what it never reads, and so would a student with its tokens: they stay what they are.
        """
        if step.last < 0 or not len(ws):
            return ws
        first = self.old.first_pieces([self.old.string(step.last) + self.old.string(w) for w in ws])
        return ws[first == step.last]

    def _flat(self, first: Sequence[int], places: Sequence[Place], device: torch.device) -> _Flat:
        parts = [[self._part(step) for step in place.steps] for place in places]
        rows = [(index, step) for index, place in enumerate(places) for step in range(len(place.steps))]
        flat = [parts[index][step] for index, step in rows]

        def spread_over(name: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            arrays = [getattr(part, name) for part in flat]
            return np.repeat(np.arange(len(flat)), [len(one) for one in arrays]), np.concatenate([_NONE, *arrays])

        listed, pairs, new = spread_over("listed"), spread_over("old"), spread_over("new")[1]
        other = [places[i].label if places[i].settled[k] else parts[i][k].other for i, k in rows]
        arrays = {
            "place": [index for index, _ in rows],
            "row": [first[index] + step for index, step in rows],
            "step": [step for _, step in rows],
            "path": [places[index].path[step] for index, step in rows],
            "dense": [part.dense for part in flat],
            "other": [-1 if part.dense else u for part, u in zip(flat, other, strict=True)],
            "listed_row": listed[0],
            "listed": listed[1],
            "pair_row": pairs[0],
            "old": pairs[1],
            "new": new,
            "open": spread_over("open")[1].astype(bool),
            "label": [place.label for place in places],
            "ended": [place.ended for place in places],
            "start": np.cumsum([0, *(len(place.steps) for place in places[:-1])]),
            "steps": [len(place.steps) for place in places],
            "before": [sum(step.kind < 0 for step in place.steps) - 1 for place in places],
        }
        return _Flat(**{name: torch.as_tensor(np.asarray(array)).to(device) for name, array in arrays.items()})


def _behind(read: list[int], pieces: list[int]) -> int:
    """The token behind those that were read; -1 where other ones are, or none follows."""
    return pieces[len(read)] if pieces[: len(read)] == read and len(pieces) > len(read) else -1


@dataclass(frozen=True)
class _Flat:
    """The steps of n places, one behind the other, and the pairs of their parts likewise.

    Of steps: ``place``, ``row`` of v1's logits, ``step`` within the place, ``path``, ``dense``, ``other``. Of listed
    tokens and of pairs: ``listed_row`` and ``pair_row``, their steps. Of places: ``label``, ``ended``, ``start`` (the
    first step), ``steps`` (how many), ``before`` (the last one before the place).
    """

    place: Tensor
    row: Tensor
    step: Tensor
    path: Tensor
    dense: Tensor
    other: Tensor
    listed_row: Tensor
    listed: Tensor
    pair_row: Tensor
    old: Tensor
    new: Tensor
    open: Tensor
    label: Tensor
    ended: Tensor
    before: Tensor
    start: Tensor
    steps: Tensor


def _masses(flat: _Flat, p: Tensor, s: Tensor, table: CellTable) -> tuple[Tensor, Tensor, Tensor]:
    """(n, V2) masses of the student's tokens, (n,) their sums, (n,) what of them lies in open cells."""
    n, steps = len(s), int(flat.steps.max())
    on_path = torch.where(flat.path >= 0, p[flat.row, flat.path.clamp_min(0)], 0.0)
    # The mass with which v1 is at each step: that of its own tokens of the text before it.
    reached = p.new_ones(n, steps + 1)
    reached[flat.place, flat.step + 1] = on_path
    reached = reached.cumprod(-1)
    weight = reached[flat.place, flat.step]

    q, undecided = torch.zeros_like(s), p.new_zeros(n)
    _add_dense(flat, p, s, table, weight, q, undecided)

    # Pairs of listed tokens; the path's own goes on in the next step.
    place = flat.place[flat.pair_row]
    mass = weight[flat.pair_row] * p[flat.row[flat.pair_row], flat.old] * (flat.old != flat.path[flat.pair_row])
    cell = torch.unique_consecutive(flat.pair_row * table.old_size + flat.old, return_inverse=True)[1]
    share = torch.where(flat.open, shares(s[place, flat.new], cell), 1.0)
    q.index_put_((place, flat.new), mass * share, accumulate=True)
    undecided.index_add_(0, place, mass * share * flat.open)

    # All other tokens say the same.
    rest = weight * (1 - on_path)
    listed = p[flat.row[flat.listed_row], flat.listed] * (flat.listed != flat.path[flat.listed_row])
    rest.index_add_(0, flat.listed_row, -weight[flat.listed_row] * listed)
    said = flat.other >= 0
    q.index_put_((flat.place[said], flat.other[said]), rest[said].clamp_min(0), accumulate=True)

    # The end of the path is the label.
    q[torch.arange(n, device=q.device), flat.label] += reached.gather(1, flat.steps[:, None])[:, 0]
    _add_ended(flat, p, s, weight, q, undecided)
    return q, q.sum(-1), undecided


def _add_dense(
    flat: _Flat, p: Tensor, s: Tensor, table: CellTable, weight: Tensor, q: Tensor, undecided: Tensor
) -> None:
    """Steps where both have a boundary: all of v1's tokens but the path's and those that contradict what was read."""
    rows = flat.dense.nonzero()[:, 0]
    mass = p[flat.row[rows]] * weight[rows, None]
    number = torch.full_like(flat.row, -1)
    number[rows] = torch.arange(len(rows), device=p.device)
    listed = number[flat.listed_row]
    mass[listed[listed >= 0], flat.listed[listed >= 0]] = 0.0
    path = flat.path[rows]
    mass[number[rows[path >= 0]], path[path >= 0]] = 0.0
    place = flat.place[rows]
    q[place] += spread(mass, table, s[place])
    undecided[place] += mass[:, table.old[table.open].unique()].sum(-1)


def _add_ended(flat: _Flat, p: Tensor, s: Tensor, weight: Tensor, q: Tensor, undecided: Tensor) -> None:
    """v1 may have ended a token where the student stands, off the path: what it says then is not known.

    The student's own probabilities stand in, of those tokens that v1 would not have joined to what was read.
    """
    place = (flat.ended >= 0).nonzero()[:, 0]
    row = flat.start[place] + flat.before[place]
    mass = weight[row] * p[flat.row[row], flat.ended[place]]
    own = s[place] * (q[place] == 0)
    own[torch.arange(len(place), device=q.device), flat.label[place]] = 0.0
    whole = own.sum(-1)
    mass = mass * (whole > 0)
    q[place] += mass[:, None] * own / whole.clamp_min(1e-30)[:, None]
    undecided[place] += mass
