"""A teacher that is known by what it has said alone: its answers, or how likely it found each of several."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.errors import MuscleError
from muscle_hf.objective.chunked import Stream
from muscle_hf.objective.masks import widest_float
from muscle_hf.objective.whole_answers import FLOOR, AnswerStream, ChoiceStream, along_choices
from muscle_hf.teachers.batch import Batch
from muscle_hf.teachers.teacher import Teacher

if TYPE_CHECKING:
    from accelerate import Accelerator

# Of the rows, so many may be unknown.
MOST_UNKNOWN = 0.05


@dataclass(frozen=True, eq=False)
class Record:
    """What is known of one prompt: its tokens, those of each answer without an end, and each answer's log-likelihood,
    or the log of its share in several samples; nats."""

    prompt: Sequence[int]
    answers: Sequence[Sequence[int]]
    scores: Sequence[float]


@dataclass(frozen=True)
class _Match:
    """A row of a batch that is a prompt with one of its answers; ``first``: the place that predicts its first."""

    record: Record
    answer: int
    first: int
    ended: bool


class RecordedTeacher(Teacher):
    """A teacher without a model. A row is found by its ids: those of a prompt and of one of the answers to it.

    Args:
        role: ``old`` or ``new``.

    Attributes:
        form: What is made of the records: ``answer``, the log-likelihood of the row's answer (X4), or ``choices``, the
            distribution over all of them (X3).
        has_likelihoods: Whether the scores are log-likelihoods.
    """

    where = "is known by its answers alone: it can be asked nothing else"
    form = "choices"
    has_likelihoods = True

    def __init__(self, role: str = "old"):
        super().__init__(role)
        self.recorded = self
        self._rows: dict[bytes, tuple[Record, int]] = {}
        self._prompts: dict[int, set[bytes]] = {}
        self._end: int | None = None
        self._matched: tuple[Batch, list[_Match | None]] | None = None
        self._options = lru_cache(1 << 16)(_options)

    @abstractmethod
    def records(self, tokenizer: Any) -> Iterable[Record]:
        """What is known, in a tokenizer's tokens."""

    @abstractmethod
    def said(self, prompt: str) -> str | None:
        """Its answer to a prompt, as a continuation of it; None if the prompt is not known."""

    @property
    @abstractmethod
    def examples(self) -> list[str]:
        """The ends of some prompts that it knows, for messages."""

    # ---- Rows ----

    def place(self, accelerator: Accelerator, tokenizer: Any) -> None:
        if tokenizer is None:
            raise MuscleError(
                f"the {self.role} model is known by its answers, which are texts; pass processing_class="
            )
        self._rows, self._prompts, self._end = {}, {}, tokenizer.eos_token_id
        for record in self.records(tokenizer):
            self._prompts.setdefault(len(record.prompt), set()).add(_digest(record.prompt))
            for index, answer in enumerate(record.answers):
                self._rows.setdefault(_digest([*record.prompt, *answer]), (record, index))

    @property
    def longest(self) -> int:
        """Tokens of its longest answer."""
        return max((len(answer) for record, _ in self._rows.values() for answer in record.answers), default=0)

    def unknown(self, batch: Batch) -> list[int]:
        """The rows of a batch whose prompts are not known."""
        matches = zip(self._matches(batch), _texts(batch), strict=True)
        return [row for row, (match, (ids, _)) in enumerate(matches) if match is None and not self._knows_prompt(ids)]

    def _knows_prompt(self, ids: Sequence[int]) -> bool:
        return any(_digest(ids[:length]) in known for length, known in self._prompts.items() if length < len(ids))

    def _matches(self, batch: Batch) -> list[_Match | None]:
        if self._matched is None or self._matched[0] is not batch:
            batch.require_apart("answers that were recorded")
            self._matched = batch, [self._match(*text) for text in _texts(batch)]
        return self._matched[1]

    def _match(self, ids: list[int], start: int) -> _Match | None:
        for ended in (False, True):
            text = ids[:-1] if ended else ids
            if (found := self._rows.get(_digest(text))) and (not ended or ids[-1] == self._end):
                return _Match(*found, start + len(found[0].prompt) - 1, ended)
        return None

    # ---- Targets ----

    def targets(self, batch: Batch, needed: Tensor | None = None) -> Stream:
        return self._answers(batch) if self.form == "answer" else self._choices(batch)

    def silent(self, batch: Batch) -> Tensor | None:
        spoken = self._spoken(batch)
        return None if bool(spoken.all()) else ~spoken

    def _spoken(self, batch: Batch) -> Tensor:
        """Trained tokens of answers that are known, and trained as a whole, (N,), boolean."""
        rows, columns = batch.places
        spans = torch.zeros(len(batch), 2, dtype=torch.int64)
        for row, match in enumerate(self._matches(batch)):
            if match is not None:
                # The scores are of texts, which have no end.
                ended = match.ended and self.form == "choices"
                spans[row] = torch.tensor([match.first, len(match.record.answers[match.answer]) + ended])
        firsts, lengths = spans.to(rows.device).unbind(-1)
        inside = (columns >= firsts[rows]) & (columns < (firsts + lengths)[rows])
        trained = torch.zeros_like(lengths).index_add_(0, rows, inside.long())
        return inside & (trained == lengths)[rows]

    def _answers(self, batch: Batch) -> AnswerStream:
        numbers = [0.0 if match is None else match.record.scores[match.answer] for match in self._matches(batch)]
        device = batch.rows.device
        known = torch.tensor(numbers, dtype=widest_float(device), device=device)[batch.rows]
        return AnswerStream(known, None, batch.next_tokens, batch.rows, self._spoken(batch))

    def _choices(self, batch: Batch) -> ChoiceStream:
        spoken, matches = self._spoken(batch), self._matches(batch)
        places: list[Mapping[int, float]] = []
        for row, column, known in zip(*(found.tolist() for found in (*batch.places, spoken)), strict=True):
            match = matches[row] if known else None
            places.append(
                {}
                if match is None
                else self._options(match.record, match.answer, self._end if match.ended else None)[
                    column - match.first
                ]
            )
        width = max(map(len, places), default=0) or 1
        device = batch.rows.device
        tokens = torch.zeros(len(places), width, dtype=torch.int64)
        scores = torch.full((len(places), width), FLOOR, dtype=widest_float(device))
        for place, options in enumerate(places):
            tokens[place, : len(options)] = torch.tensor(list(options), dtype=torch.int64)
            scores[place, : len(options)] = torch.tensor(list(options.values()), dtype=scores.dtype)
        return ChoiceStream(scores.clamp(min=FLOOR).to(device), None, tokens.to(device), spoken)


def _texts(batch: Batch) -> list[tuple[list[int], int]]:
    """Each row's tokens without padding, and where the first one stands."""
    whole = batch.whole or batch
    ids, mask = whole.inputs["input_ids"].cpu(), whole.inputs.get("attention_mask")
    if mask is None:
        # Behind the last token that is trained there may be padding.
        mask = functional.pad(whole.chosen, (2, 0))[:, 1 : ids.size(1) + 1].flip(1).cumsum(1).flip(1) > 0
    real = mask.cpu()
    starts = real.ne(0).int().argmax(dim=1).tolist()
    return [(own[here != 0].tolist(), start) for own, here, start in zip(ids, real, starts, strict=True)]


def _options(record: Record, answer: int, end: int | None) -> list[dict[int, float]]:
    ended = [[*choice, *([] if end is None else [end])] for choice in record.answers]
    path = ended[answer]
    if end is None and any(
        len(choice) < len(other) and other[: len(choice)] == choice for choice in ended for other in ended
    ):
        raise MuscleError(
            f"one of the choices {[list(choice) for choice in ended]} (token ids) goes on where another one stops, so "
            "that rows without an end do not tell them apart; end each answer with EOS (end_answers)"
        )
    return along_choices(ended, record.scores, path)


def require_known(unknown: Sequence[str], asked: int, teacher: RecordedTeacher, what: str) -> None:
    """Refuse rows of which a log, ``teacher``, knows too few: of so many that were ``asked``, more than one in twenty
    or all of the prompts, whose texts are ``unknown``. ``what`` they are is for the message."""
    if len(unknown) > MOST_UNKNOWN * asked or (asked and len(unknown) == asked):
        raise MuscleError(
            f"the answers of the {teacher.role} model ({teacher.source}) are not to {len(unknown)} of {asked} {what}, "
            f"for example {unknown[0][-200:]!r}; they are to prompts that end, for example, in {teacher.examples}. "
            "Ask it about these rows (muscle-hf evaluate with their --split, --start and --limit), and pass the items "
            "as ChoiceLog(..., items=) where v2 is asked in other words"
        )


def _digest(ids: Sequence[int]) -> bytes:
    return hashlib.blake2b(array("q", ids).tobytes(), digest_size=16).digest()
