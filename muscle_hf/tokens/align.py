"""v1's view of a row: the same text in v1's tokens, and which of its logits each trained token of the student needs.

At a student's token, v1 may be at several boundaries of its own tokens: before the place, where one of its tokens
jumps over it; at it; and behind it, on a *known path* into the student's token, along which v1's probabilities are
known since v1 reads the row anyway (equation (X2)). A :class:`Place` names these rows of v1's logits, and how v1's
tokens in each carry over.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from muscle_hf.errors import MuscleError
from muscle_hf.tokens.vocabulary import ByteVocabulary, Section, special_pairs

_DEPTH = 6  # tokens of v1 behind a place that are looked at
_BEFORE = 3  # and before it
_READ = 2  # student's tokens, already read, that a token of v1 may still contradict
_THOUGHT = re.compile(rb"\A<think>.*</think>\s*", re.DOTALL)


class Step(NamedTuple):
    """How v1's next token carries over to the student's, after one boundary of v1's tokens.

    Attributes:
        kind: -1: the boundary lies before the student's place, 0: at it, 1: behind it.
        residue: Bytes that v1's next token must begin with, and that ``carry`` does not hold.
        carry: Bytes from the beginning of the first token in ``read``, or of the student's next one, to the boundary.
        read: Tokens of the student that it has read, and that v1's next token must leave as they are.
        within: Bytes behind the boundary that the student has read.
        last: v1's token before the boundary, -1 for none.
    """

    kind: int
    residue: bytes = b""
    carry: bytes = b""
    read: tuple[int, ...] = ()
    within: bytes = b""
    last: int = -1


class Place(NamedTuple):
    """A trained token of the student, as v1 sees it.

    Attributes:
        first: Position in v1's row whose logits come first; those of ``len(steps)`` positions are needed, in a row.
        path: v1's own next token after each of them, -1 where its row ends.
        steps: What each of v1's distributions says of the student's token.
        label: The student's token.
        settled: For each step whether its boundary lies at the label's end or behind it.
        ended: After each of them, v1's token for just what the student has read since; v1 may have said it, off its
            path, and what it says then is not known. -1 for none.
    """

    first: int
    path: tuple[int, ...]
    steps: tuple[Step, ...]
    label: int
    settled: tuple[bool, ...]
    ended: tuple[int, ...]

    @property
    def begun(self) -> int:
        """Position of the first of v1's tokens that spell the student's token, or a part of it."""
        before = [index for index, step in enumerate(self.steps) if step.kind <= 0]
        return self.first + max(before, default=0) + 1

    @property
    def done(self) -> int:
        """Position behind the last of v1's tokens that spell it."""
        last = self.settled.index(True) if any(self.settled) else len(self.steps) - (self.path[-1] < 0)
        own = self.path[self.begun - self.first - 1] >= 0
        return max(self.begun + own, self.first + last + 1)


@dataclass(frozen=True)
class View:
    """A row as v1 reads it.

    Attributes:
        old_ids: v1's tokens, with what its tokenizer adds to a text.
        places: One per trained token, in order; None where v1 has no say.
        aligned: Whether v1's tokens spell the trained text; else there is no place.
    """

    old_ids: list[int]
    places: list[Place | None]
    aligned: bool


class Aligner:
    """Finds v1's view of rows; tokens that are no byte strings are refused."""

    def __init__(self, old_tokenizer: Any, new_tokenizer: Any) -> None:
        self.old_tokenizer, self.new_tokenizer = old_tokenizer, new_tokenizer
        self.old, self.new = ByteVocabulary.of(old_tokenizer), ByteVocabulary.of(new_tokenizer)
        self.pairs = special_pairs(self.old.specials, self.new.specials)

    def view(self, new_ids: Sequence[int], trained: Sequence[int], old_ids: Sequence[int] | None = None) -> View:
        """v1's view of a row: ``trained`` are the positions of labels among the student's tokens, without padding,
        ascending. Where v1's prompt is another one, ``old_ids`` are its own tokens of the row, prompt and answer."""
        if trained and not 0 <= trained[0] <= trained[-1] < len(new_ids):
            raise MuscleError(f"positions {trained[0]} to {trained[-1]} are not all in a row of {len(new_ids)} tokens")
        new_ids = list(new_ids)
        # A row that was cut off may end within a character, which v1 cannot be given.
        while new_ids and _ends_within(self.new.text(new_ids[-4:])):
            new_ids.pop()
        own = old_ids is not None
        sections = self.new.sections(new_ids, self.new.special if own else self.pairs)
        ids = list(old_ids) if old_ids is not None else self._read(sections)
        others = self.old.sections(ids, self.old.special)
        places: dict[int, Place | None] = dict.fromkeys(trained)
        for section in reversed(sections):
            mine = [index - section.start for index in places if 0 <= index - section.start <= len(section.ids)]
            trained_text = section.cut(section.bounds[min(mine)], 0).lstrip() if mine else b""
            # What one template has the model think before its answer, the other may not have.
            needed = _THOUGHT.sub(b"", trained_text) if own else trained_text
            if own and mine and not needed and section.closed_by < 0:
                continue  # what a template puts behind the last end is no answer, and need not be in the other one
            # A text of v1's own has other sections: the last one that ends in the same text is meant.
            while others and own and mine and not others[-1].text.endswith(needed):
                others.pop()
            if mine and not (others and others[-1].text.endswith(needed)):
                return View(ids, [None] * len(places), False)
            if mine:
                zone = -_common_end(section.text, others[-1].text) if needed == trained_text else -len(needed)
                places |= {index + section.start: self._place(section, index, others[-1], zone) for index in mine}
            if others and (mine or not own):
                others.pop()
        return View(ids, list(places.values()), True)

    def _read(self, sections: list[Section]) -> list[int]:
        """v1's tokens: its tokenizer begins a text as it does, and ends it where the student's tokens do."""
        end, begin = (self.new.roles.get(name, -2) for name in ("eos_token", "bos_token"))
        ended = sections[-1].closed_by == end
        marks = [self.old.special.get(self.pairs.get(section.closed_by, -1), "") for section in sections]
        if sections[0].closed_by == begin and not sections[0].ids:
            marks[0] = ""
        if ended:
            marks[-1] = ""
        texts = [self._as_given(section.text, number) for number, section in enumerate(sections)]
        text = b"".join(text + mark.encode() for text, mark in zip(texts, marks, strict=True)).decode(errors="ignore")
        bos = self.old.special.get(self.old.roles.get("bos_token", -1))
        begun = bool(bos) and text.startswith(bos)
        ids = list(self.old_tokenizer(text, add_special_tokens=not begun, verbose=False)["input_ids"])
        old_end = self.pairs.get(end, self.old.roles.get("eos_token", -1))
        return ids if not ended or old_end < 0 or ids[-1:] == [old_end] else [*ids, old_end]

    def _as_given(self, text: bytes, number: int) -> bytes:
        """A section's text without the blank that the student's tokenizer puts before it."""
        return text[1:] if self._prepends[number > 0] and text.startswith(b" ") else text

    @cached_property
    def _prepends(self) -> tuple[bool, bool]:
        """Whether the student's tokenizer puts a blank before a text, and behind a special token."""
        special = next((text for id, text in self.new.special.items() if id in self.pairs), "")
        rows = [self.new_tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("x", special + "x")]
        first, behind = (self.new.sections(row, self.new.special)[-1].text == b" x" for row in rows)
        return first, behind

    # ---- Places ----

    def _place(self, section: Section, index: int, old: Section, zone: int) -> Place | None:
        """The place of a section's token, or of the special one that closes it; from ``zone`` on both texts agree."""
        is_special = index == len(section.ids)
        label = section.closed_by if is_special else section.ids[index]
        start, end = section.bounds[index], 0 if is_special else section.bounds[index + 1]
        if old.closed_by < 0 if is_special else (end == start or end <= zone):
            return None
        at = bisect_right(old.bounds, max(start, zone)) - 1
        first = at
        if start >= zone:
            # Where v1 has no boundary itself, it may still have said just what the student has read.
            reaches = self.old.extends if old.bounds[at] == start else self.old.begins
            while at - first < _BEFORE and first and reaches(old.cut(old.bounds[first - 1], start)):
                first -= 1
        first = max(first, 1 - old.start)
        if first > at:
            return None  # v1's row begins here, without a token before
        last = at
        while last < len(old.ids) and last - at < _DEPTH and not is_special:
            behind = old.bounds[last + 1]
            if behind >= end and not self.new.extends(section.cut(start, behind)):
                break
            last += 1
        steps = tuple(self._step(section, index, old, bound, zone) for bound in range(first, last + 1))
        ended = [-1] * len(steps)
        if zone <= start and old.bounds[at] < start:
            ended[: at - first + 1] = [self._token(old.cut(bound, start)) for bound in old.bounds[first : at + 1]]
        return Place(
            first=old.start + first - 1,
            path=tuple([*old.ids, old.closed_by][first : last + 1]),
            steps=steps,
            label=label,
            settled=tuple(old.bounds[bound] >= end for bound in range(first, last + 1)),
            ended=tuple(ended),
        )

    def _step(self, section: Section, index: int, old: Section, bound: int, zone: int) -> Step:
        here, start = old.bounds[bound], section.bounds[index]
        last = old.ids[bound - 1] if bound else -1
        if start < zone:  # texts differ up to within the token
            kept = max(here, zone)
            residue = old.cut(here, kept)
            return Step(-1 if residue else 1, residue, section.cut(start, kept), last=last)
        if here < start:
            read = bisect_right(section.bounds, here, hi=index + 1) - 1
            if here < zone or section.bounds[read] < zone:
                return Step(-1, old.cut(here, start))
            within, last = old.cut(here, start), -1
        else:
            read, within = index, b""
            for before in range(index - 1, max(index - _READ, 0) - 1, -1):
                begun = section.bounds[before]
                if begun == section.bounds[read] or begun < zone or not self.new.extends(section.cut(begun, here)):
                    break
                read = before
        kind = (here > start) - (here < start)
        carry = section.cut(section.bounds[read], here)
        return Step(kind, b"", carry, tuple(section.ids[read:index]), within, last)

    def _token(self, string: bytes) -> int:
        """v1's token for some bytes, -1 where they are several tokens."""
        pieces = self.old.pieces([string])[0]
        return pieces[0] if len(pieces) == 1 and self.old.string(pieces[0]) == string else -1


def _ends_within(text: bytes) -> bool:
    """Whether the last character of a text is incomplete."""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(text)
    return bool(decoder.getstate()[0])


def _common_end(one: bytes, other: bytes) -> int:
    """How many bytes two texts have in common at their ends."""
    size = min(len(one), len(other))
    if one[len(one) - size :] == other[len(other) - size :]:
        return size
    return next(count for count in range(size) if one[-1 - count] != other[-1 - count])
