"""Which tokens of v2 a text may begin with, if v1 says a token: the cells of equation (X1), and the tables of them.

(X1), at a place of a text: v1's token w stands for the set C(w) of the student's tokens u that a text may begin with
if v1 says w there. With p v1's distribution and s a reference over the student's tokens,

    q(u) = sum_w p(w) [u in C(w)] s(u) / sum_{u' in C(w)} s(u')

C(w) has one element nearly always; then q is exact, whatever s is.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from huggingface_hub import constants
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from muscle_hf.tokens.vocabulary import ByteVocabulary, special_pairs

_VERSION = 2  # of what a table holds; another one is never read
_LEAST = -69.0  # of what the reference says within a cell, relative to the most that it says: no exponential is 0
_LAYERS = 8  # of cells, that are added up as a whole: indexed sums are slower


@dataclass(frozen=True)
class CellTable:
    """The pairs (w, u), u in C(w), for one residue and one carry.

    Attributes:
        old: (m,) int64, w of each pair; in ascending order.
        new: (m,) int64, u.
        open: (m,) bool, whether C(w) has more elements than this.
        old_size: V1.
        new_size: V2.
    """

    old: Tensor
    new: Tensor
    open: Tensor
    old_size: int
    new_size: int

    @classmethod
    def build(cls, old: ByteVocabulary, new: ByteVocabulary, residue: bytes = b"", carry: bytes = b"") -> CellTable:
        """Look at every token of both vocabularies (``new`` is the student's) that may follow: v1's next token must
        begin with the bytes ``residue``, since the student has read them already; the student's with ``carry``, or
        begin it, since v1 has said them already."""
        ws = old.extending(residue)
        first = new.first_pieces([carry + old.string(w)[len(residue) :] for w in ws])
        us = new.extending(carry)
        us = us[new.canonical[us]]
        texts = [residue + new.string(u)[len(carry) :] for u in us]
        begun = old.first_pieces(texts)
        # v1's token must say more than the student has read already.
        longer = np.array([w >= 0 and len(old.string(w)) > len(residue) for w in begun], dtype=bool)
        pairs = [(ws, first), (begun[longer], us[longer])]
        if not residue and not carry:
            ends = special_pairs(old.specials, new.specials)
            pairs.append((np.array(list(ends.values()), dtype=np.int64), np.array(list(ends), dtype=np.int64)))
        return cls.of(np.concatenate([w for w, _ in pairs]), np.concatenate([u for _, u in pairs]), old.size, new.size)

    @classmethod
    def of(cls, ws: NDArray[np.int64], us: NDArray[np.int64], old_size: int, new_size: int) -> CellTable:
        """The table of some pairs; those that occur twice count once, those with -1 not at all."""
        found = np.unique((ws * new_size + us)[(ws >= 0) & (us >= 0)])
        ws, us = found // new_size, found % new_size
        counts = np.bincount(ws, minlength=old_size)
        return cls(torch.from_numpy(ws), torch.from_numpy(us), torch.from_numpy(counts[ws] > 1), old_size, new_size)

    @cached_property
    def layout(self) -> _Layout:
        """The same, as :func:`spread` goes through it."""
        order = (2 * self.new + ~self.open).argsort(stable=True)
        begins = torch.ones_like(self.open)
        begins[1:] = self.new[order[1:]] != self.new[order[:-1]]
        first, further = order[begins], order[~begins]
        further = further[(~self.open[further]).long().argsort(stable=True)]
        several, at = self.new[further].unique(return_inverse=True)
        cell_of, cell, sizes = torch.unique_consecutive(self.old[self.open], return_inverse=True, return_counts=True)
        member = torch.arange(len(cell), device=cell.device) - (sizes.cumsum(0) - sizes)[cell]
        largest = sizes.argsort(descending=True)
        cell = largest.argsort()[cell]
        by_member = (member.clamp(max=_LAYERS) * len(sizes) + cell).argsort()
        old = torch.zeros(self.new_size, dtype=torch.int64, device=self.old.device)
        is_open = old.float()
        old[self.new[first]], is_open[self.new[first]] = self.old[first], self.open[first].float()
        return _Layout(
            old=old,
            is_open=is_open,
            unsaid=(torch.bincount(self.new, minlength=self.new_size) == 0).nonzero()[:, 0],
            several=several,
            at=at,
            further_old=self.old[further],
            further_open=self.new[further[self.open[further]]],
            cell_of=cell_of[largest],
            layers=[int((sizes > number).sum()) for number in range(_LAYERS)],
            members=self.new[self.open][by_member],
            cell=cell[by_member][int((member < _LAYERS).sum()) :],
        )

    @cached_property
    def sizes(self) -> Tensor:
        """(V1,) int64, how many elements each cell has."""
        return torch.bincount(self.old, minlength=self.old_size)

    def to(self, device: torch.device | str) -> CellTable:
        """The same on a device."""
        return CellTable(self.old.to(device), self.new.to(device), self.open.to(device), self.old_size, self.new_size)


class _Layout(NamedTuple):
    """The pairs of a table: of each of the student's tokens the first one, an open one if it has any; and the others.

    ``old``, ``is_open`` (float32): of the first pairs, (V2,); ``unsaid``: the student's tokens without a pair.
    ``several``: those with further pairs; of these pairs ``at``: which of them, and ``further_old``; the open ones lie
    in front, ``further_open``: the student's tokens of these. ``cell_of``: v1's tokens with open cells, the largest
    first; ``members``: the student's tokens in these, first the first of each cell, then the second, ... of the cells
    that have so many, which ``layers`` counts; those behind are of the cells ``cell``.
    """

    old: Tensor
    is_open: Tensor
    unsaid: Tensor
    several: Tensor
    at: Tensor
    further_old: Tensor
    further_open: Tensor
    cell_of: Tensor
    layers: list[int]
    members: Tensor
    cell: Tensor


def spread(log_p: Tensor, table: CellTable, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (X1).

    Args:
        log_p: (n, at least V1) logs of the masses of v1's tokens, float32; a row need not sum to 1. It is overwritten.
        table: Of the place, on the same device.
        reference: (n, V2) logits of the reference within cells, float32, finite.

    Returns:
        (n, V2) float32, logs of the masses of the student's tokens, together those of the tokens of v1 that the table
        knows; and (n,) what of it lies in cells of several tokens.
    """
    layout = table.layout
    highest = reference.amax(-1, keepdim=True)
    own = reference.index_select(1, layout.members).sub_(highest)
    if own.numel() and own.min() < _LEAST:
        reference = reference.maximum(highest + _LEAST)
        own.clamp_min_(_LEAST)
    own.exp_()
    of_cells = log_p.index_select(1, layout.cell_of)
    undecided = of_cells.exp().sum(-1)
    whole, start = own.new_zeros(len(own), len(layout.cell_of)), 0
    for width in layout.layers:
        whole[:, :width] += own[:, start : start + width]
        start += width
    whole.index_add_(1, layout.cell, own[:, start:])
    log_p.index_copy_(1, layout.cell_of, of_cells.sub_(whole.log_().add_(highest)))
    # Most of the student's tokens have one pair, whose mass needs no exponential.
    out = log_p.index_select(1, layout.old).addcmul_(reference, layout.is_open)
    further = log_p.index_select(1, layout.further_old)
    further[:, : len(layout.further_open)] += reference.index_select(1, layout.further_open)
    found = out.index_select(1, layout.several).exp_().index_add_(1, layout.at, further.exp_())
    out.index_copy_(1, layout.several, found.log_()).index_fill_(1, layout.unsaid, -torch.inf)
    return out, undecided


def load_table(old: ByteVocabulary, new: ByteVocabulary, folder: str | os.PathLike | None = None) -> CellTable:
    """The table without residue and carry: from a folder of kept ones, by default in the Hugging Face cache, or built
    and kept there."""
    place = Path(folder or Path(constants.HF_HOME, "muscle-hf", "token-tables"))
    name = hashlib.sha256(f"{_VERSION} {old.sha256} {new.sha256}".encode()).hexdigest()[:32]
    file = place / f"{name}.safetensors"
    with contextlib.suppress(Exception):  # not there yet, or damaged: then it is built anew
        kept = load_file(file)
        new.canonical = kept["canonical"].numpy().copy()  # no view of the file, which may be written anew
        return CellTable(kept["old"].long(), kept["new"].long(), kept["open"].clone(), old.size, new.size)
    table = CellTable.build(old, new)
    unfinished = place / f".{secrets.token_hex(8)}.tmp"
    with contextlib.suppress(OSError, SafetensorError):  # a cache that cannot be written costs time, not the run
        place.mkdir(parents=True, exist_ok=True)
        try:
            pairs = {"old": table.old.int(), "new": table.new.int(), "open": table.open}
            save_file(pairs | {"canonical": torch.from_numpy(new.canonical)}, unfinished)
            os.replace(unfinished, file)
        finally:
            unfinished.unlink(missing_ok=True)
    return table
