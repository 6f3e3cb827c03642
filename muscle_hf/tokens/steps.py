"""What one of v1's distributions says of the student's next token: equation (X1) at one boundary of v1's tokens.

Most tokens of v1 do the same thing at a boundary, so a :class:`Part` lists those that do not: at a common boundary the
table without residue and carry holds but for tokens that would have changed what the student has read; behind the
student's place the student's token is known but for tokens of v1 that a longer one joins.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from muscle_hf.tokens.align import Step
from muscle_hf.tokens.cells import CellTable, load_table
from muscle_hf.tokens.vocabulary import ByteVocabulary

_KEPT = 16_384
# Tokens of v1 that are tried behind a carry, beside those that v1 itself would say there; and the student's that may
# go on where a token of v1 ends: what begins more of them is a blank, mostly (benchmarks/continuations.py).
_JOINED, _EXTENDING = 64, 4096
_NONE = np.zeros(0, dtype=np.int64)
_NO_PAIRS = np.zeros((3, 0), dtype=np.int64)
# Tokens of v1, and for each the student's tokens from the beginning of the carry on.
_Joined = tuple[NDArray[np.int64], list[list[int]]]


class Part(NamedTuple):
    """What one step does with v1's tokens, the one on the path apart.

    Attributes:
        dense: The table without residue and carry holds for all tokens but those in ``listed``.
        listed: v1's tokens that do not do what the others do.
        pairs: (3, m): listed tokens, the student's for each, and whether it has several; one without is impossible.
        other: The student's token for all tokens of v1 that are not listed; -1: they are impossible.
    """

    dense: bool = False
    listed: NDArray[np.int64] = _NONE
    pairs: NDArray[np.int64] = _NO_PAIRS
    other: int = -1


class Parts:
    """The parts of steps: ``of(step)`` makes one when it is first asked for, and keeps those that were asked last.
    Tables are kept in ``folder``, by default one in the Hugging Face cache."""

    def __init__(self, old: ByteVocabulary, new: ByteVocabulary, folder: str | os.PathLike | None = None) -> None:
        self.old, self.new = old, new
        self.table = load_table(self.old, self.new, folder)
        self.of = lru_cache(maxsize=_KEPT)(self._build)
        # A place looks ahead to where the next one is: what one has found is asked once more, soon.
        self._join = lru_cache(maxsize=64)(self._found_joined)

    def _build(self, step: Step) -> Part:
        """What a step does."""
        read, done = list(step.read), self.new.text(step.read)
        if step.kind == 0:
            return Part(dense=True, listed=self._contradicting(step, read) if read else _NONE)
        ws, pieces = self._jumping(step) if step.kind < 0 else self._joined(step)
        alone = np.array([_behind(read, one) for one in pieces], dtype=np.int64)
        # Longer texts that begin with one of these tokens: by a token of the student where it stands.
        begun = [step.carry + self.old.string(w)[len(step.residue) :] for w in ws[alone >= 0]]
        us = _fewest((self.new.extending(rest) for rest in {text[len(done) :] for text in begun}), _EXTENDING)
        us = us[self.new.canonical[us]]
        texts = [done + self.new.string(u) for u in us]
        tokens = self._next(step, [text[len(step.carry) :] for text in texts])
        further = us
        if read:
            further = np.array([_behind(read, one) for one in self.new.pieces(texts)], dtype=np.int64)
        known = np.isin(tokens, ws[alone >= 0])
        table = CellTable.of(
            np.concatenate([ws, tokens[known]]), np.concatenate([alone, further[known]]), self.old.size, self.new.size
        )
        old, new, is_open = pairs = np.stack([table.old.numpy(), table.new.numpy(), table.open.numpy()])
        if step.kind < 0:
            return Part(pairs=pairs)
        other = int(self.new.first_pieces([step.carry[len(done) :]])[0])
        listed = self._spelt(step, np.unique(np.concatenate([ws[alone < 0], old[(is_open != 0) | (new != other)]])))
        return Part(listed=listed, pairs=pairs[:, np.isin(old, listed)], other=other)

    def _contradicting(self, step: Step, read: list[int]) -> NDArray[np.int64]:
        """Tokens of v1 with which the student would have read others."""
        ws, pieces = self._joined(step)
        return self._spelt(step, ws[[one[: len(read)] != read for one in pieces]])

    def _jumping(self, step: Step) -> _Joined:
        """Tokens of v1 that say what the student has read since the boundary, and more."""
        ws = self.old.extending(step.residue or step.within)
        return ws, self.new.pieces([step.carry + self.old.string(w)[len(step.residue) :] for w in ws])

    def _joined(self, step: Step) -> _Joined:
        """Tokens of v1 that a token of the student may join with the carry, wherever in it one begins."""
        offsets = np.cumsum([0, *(len(self.new.string(u)) for u in step.read)])
        heads = tuple(sorted({step.carry[offset:] for offset in offsets if offset < len(step.carry)}))
        return self._join(Step(1, carry=step.carry, last=step.last), heads)

    def _found_joined(self, step: Step, heads: tuple[bytes, ...]) -> _Joined:
        found = [_NONE]
        for head in heads:
            ends = [self.new.string(u)[len(head) :] for u in self.new.extending(head)]
            found.append(self._next(step, ends))
            # Those that go on behind the student's token as well.
            found.append(_fewest(map(self.old.beginning, ends), _JOINED))
        ws = np.unique(np.concatenate(found))
        ws = ws[[w >= 0 and bool(self.old.string(w)) for w in ws]]
        return ws, self.new.pieces([step.carry + self.old.string(w) for w in ws])

    def _next(self, step: Step, texts: list[bytes]) -> NDArray[np.int64]:
        """v1's token for the beginning of each text behind its boundary, -1 where it would have no boundary there."""
        if step.last < 0:
            return self.old.first_pieces([step.residue + text for text in texts])
        pieces = self.old.pieces([self.old.string(step.last) + text for text in texts])
        return np.array([_behind([step.last], one) for one in pieces], dtype=np.int64)

    def _spelt(self, step: Step, ws: NDArray[np.int64]) -> NDArray[np.int64]:
        """Those of some tokens with which v1's tokenizer would go on behind its last token.

        With the others v1 writes what it never reads, and so would a student with its tokens: they stay what they are.
        """
        return ws[self._next(step, [self.old.string(w) for w in ws]) >= 0] if step.last >= 0 else ws


# What was cached is trained on in the same process, mostly.
parts_of = lru_cache(maxsize=1)(Parts)


def _fewest(ranges: Iterable[NDArray[np.int64]], most: int) -> NDArray[np.int64]:
    """The tokens of the smallest ranges, as many as are tried."""
    ordered = sorted(ranges, key=len)
    sizes = np.cumsum([len(one) for one in ordered])
    return np.unique(np.concatenate([_NONE, *ordered[: int(np.searchsorted(sizes, most, side="right"))]]))


def _behind(read: list[int], pieces: list[int]) -> int:
    """The token behind those that were read; -1 where other ones are, or none follows."""
    return pieces[len(read)] if pieces[: len(read)] == read and len(pieces) > len(read) else -1
