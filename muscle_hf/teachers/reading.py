"""How a teacher reads rows in another tokenizer's ids or in other words, and what it says of the student's tokens."""

from __future__ import annotations

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from muscle_hf.errors import MuscleError
from muscle_hf.objective.chunked import Head, Stream
from muscle_hf.objective.divergence import Divergence
from muscle_hf.objective.whole_answers import FLOOR
from muscle_hf.teachers.batch import IGNORED, LABEL_KEYS, PER_TOKEN, Batch, sequences_of
from muscle_hf.teachers.kinds import CAUSAL_LM, SEQUENCE_CLASSIFICATION, ModelKind
from muscle_hf.tokens.align import Aligner, View
from muscle_hf.tokens.foreign import ForeignTargets, Steps
from muscle_hf.tokens.levels import Vocabularies, compare_vocabularies

# Rows of which it is remembered whether they are read: epochs come back to them.
_KEPT_ROWS = 2**16
# Of what is remembered of rows that the teacher reads in its own tokens.
_KEPT_BYTES = 2**30
# Inputs of token ids.
_IDS = ("input_ids", "decoder_input_ids")


class Reader(ABC):
    """Reads rows of the student's ids for a teacher with another tokenizer; ``foreign`` where that cuts texts into
    other tokens, so that the places of a row and of its reading differ.

    ``share``: how much of the training rows it reads, as the provenance says it (None where nobody has looked);
    ``words``: where the words come from that it is given in the place of the rows' (``chat template``, ...), None for
    these; ``window``: how many of its tokens it can read, None where that is not known.
    """

    foreign = True

    def __init__(self, vocabularies: Vocabularies):
        self.vocabularies = vocabularies
        self.share: dict[str, Any] | None = None
        self.words: str | None = None
        self.window: int | None = None
        # Whose probabilities stand where the teacher's tokens do not say which of the student's is meant.
        self.reference = "student"
        # What ends no row of a text, as far as there is such a token.
        known = (getattr(vocabularies.old, f"{role}_token_id", None) for role in ("pad", "bos", "eos"))
        self._filler: int = next((token for token in known if token is not None), 0)

    @property
    def level(self) -> str:
        """``renumbered``, ``foreign``, or ``same`` where only the words differ."""
        return self.vocabularies.level

    def general(self) -> Reader | None:
        """Another reader, for rows that this one cannot read; None if there is none."""
        return None

    def figures(self) -> dict[str, float]:
        """What is logged of it since the last call."""
        return {}

    def padding(self, own: int | None) -> int | None:
        """The teacher's id that its rows are padded with, where the student's are with ``own``."""
        return self._filler

    @abstractmethod
    def reading(self, batch: Batch) -> Batch:
        """As :meth:`~muscle_hf.teachers.Teacher.reading`."""

    @abstractmethod
    def spelling(self, batch: Batch) -> Batch:
        """As :meth:`~muscle_hf.teachers.Teacher.spelling`."""

    @abstractmethod
    def silent(self, batch: Batch) -> Tensor | None:
        """As :meth:`~muscle_hf.teachers.Teacher.silent`."""

    @abstractmethod
    def stream(self, batch: Batch, states: Tensor, head: Head | None) -> Stream:
        """As :meth:`~muscle_hf.teachers.Teacher.stream`."""


class RenumberingReader(Reader):
    """For a teacher that has the student's tokens under other ids: it reads the same row of tokens.

    A row, or a part of a row that packs several, is not read where the teacher has no such token, or would have
    segmented its text otherwise.
    """

    foreign = False

    def __init__(self, vocabularies: Vocabularies):
        super().__init__(vocabularies)
        self._agreed: dict[bytes, bool] = {}
        # Its id of each of the student's, and behind them -1 for ids of none; moved once, to where the batches are.
        self._to_old = functional.pad(vocabularies.to_old, (0, 1), value=-1)
        self._known = vocabularies.known
        self._looked: tuple[Batch, Tensor | None] | None = None

    def general(self) -> Reader:
        found = ForeignReader(replace(self.vocabularies, level="foreign"))
        found.window = self.window
        return found

    def reading(self, batch: Batch) -> Batch:
        inputs = dict(batch.inputs)
        for name in (name for name in _IDS if isinstance(inputs.get(name), Tensor)):
            inputs[name] = self._numbered(inputs[name], self._filler)
        if batch.kind.generates_text and isinstance(inputs.get("labels"), Tensor):
            # Of which encoder-decoders make what the decoder reads.
            inputs["labels"] = self._numbered(inputs["labels"])
        return replace(batch, inputs=inputs, whole=None if batch.whole is None else self.reading(batch.whole))

    def padding(self, own: int | None) -> int | None:
        return None if own is None else int(self._numbered(torch.tensor(own), self._filler))

    def spelling(self, batch: Batch) -> Batch:
        return replace(self.reading(batch), labels=self._numbered(batch.labels))

    def _numbered(self, ids: Tensor, missing: int = IGNORED) -> Tensor:
        """The teacher's ids of the student's, ``missing`` where there is none."""
        size = len(self._to_old) - 1
        self._to_old = self._to_old.to(ids.device)
        found = self._to_old[torch.where((ids >= 0) & (ids < size), ids, size)]
        return found.masked_fill(found < 0, missing)

    def silent(self, batch: Batch) -> Tensor | None:
        if self._looked is None or self._looked[0] is not batch:
            self._looked = batch, self._unread(batch)
        return self._looked[1]

    def _unread(self, batch: Batch) -> Tensor | None:
        ids, positions = batch.inputs["input_ids"], batch.inputs.get("position_ids")
        parts = sequences_of(ids, positions, predicts_next=False)
        mask = batch.inputs.get("attention_mask")
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None or mask.dim() != 2 else mask != 0
        unread = torch.zeros(int(parts.max()) + 1, dtype=torch.bool)
        own, numbers = (tensor[real].cpu().numpy() for tensor in (ids, parts))
        starts = np.flatnonzero(np.diff(numbers, prepend=-1))
        for start, row in zip(starts, np.split(own, starts[1:]), strict=True):
            unread[numbers[start]] = not self._agrees(row)
        if batch.kind.generates_text and not batch.kind.shifts_labels:
            # What the decoder reads.
            for part, row in zip(parts[:, 0].tolist(), batch.inputs["labels"].cpu(), strict=True):
                unread[part] |= not self._agrees(row[row != IGNORED].numpy())
        if not bool(unread.any()):
            return None
        rows, columns = batch.places
        return unread.to(ids.device)[parts[rows, columns if batch.kind.shifts_labels else 0]]

    def _agrees(self, ids: np.ndarray) -> bool:
        key = _key(ids)
        if key not in self._agreed:
            if len(self._agreed) >= _KEPT_ROWS:
                self._agreed.clear()
            self._agreed[key] = self.vocabularies.agree(ids.tolist())
        return self._agreed[key]

    def stream(self, batch: Batch, states: Tensor, head: Head | None) -> Stream:
        if not batch.kind.generates_text:
            return Stream(states, head)
        self._known, self._to_old = self._known.to(states.device), self._to_old.to(states.device)
        return RenumberedStream(states, head, self._to_old[self._known], self._known, self.silent(batch))


@dataclass(frozen=True)
class RenumberedStream(Stream):
    """What a teacher says that has the student's tokens under other ids: ``columns`` are its ids of the shared tokens
    and ``known`` the student's, ascending, both (S,) int64; ``unread`` (N,) marks tokens of rows that it cannot read.

    Tokens that it does not have get no target: both distributions are those over what both vocabularies have.
    """

    columns: Tensor
    known: Tensor
    unread: Tensor | None

    @property
    def leans(self) -> str | None:
        """Masks are shown what the student says itself where the teacher says nothing."""
        return None if self.unread is None else "student"

    def _shared(self, rows: slice | Tensor) -> Tensor:
        return super().logits(rows).index_select(-1, self.columns)

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        shared = self._shared(rows).log_softmax(dim=-1)
        width = int(self.known[-1]) + 1 if student is None else student.size(-1)
        found = shared.new_full((len(shared), width), FLOOR).index_copy_(-1, self.known, shared)
        if self.unread is None or student is None:
            return found
        own = student if chosen is None else student[chosen]
        return torch.where(self.unread[rows].unsqueeze(-1), own.to(found), found)

    def distance(
        self, rows: slice | Tensor, student: Tensor, divergence: Divergence, logits: Callable[[], Tensor]
    ) -> Tensor:
        return divergence(self._shared(rows).to(student), student.index_select(-1, self.known))


@dataclass(frozen=True)
class _Row:
    """A row in v1's ids, the (M,) positions of it whose logits are needed, ascending, and what each of its N trained
    tokens asks of them."""

    ids: list[int]
    needed: np.ndarray
    steps: Steps


@dataclass(frozen=True)
class _Rows:
    """The batch ``whole``, of the student's ids; the ``batch`` in v1's ids, whose labels mark the M places of which
    logits are needed; and what each of the N trained tokens asks of them."""

    whole: Batch
    batch: Batch
    steps: Steps


class ForeignReader(Reader):
    """For a teacher with other tokens, or other words around the answer: it reads the same text in its own.
    ``undecided`` (2,) is the share of the teacher's mass that it leaves to the reference, summed over the places that
    were looked at, and how many these were."""

    def __init__(self, vocabularies: Vocabularies):
        super().__init__(vocabularies)
        self.aligner = Aligner(vocabularies.old, vocabularies.new)
        self.targets = ForeignTargets(self.aligner)
        self._told: dict[bytes, np.ndarray] = {}
        self._view, self._row = lru_cache(maxsize=None)(self._made_view), lru_cache(maxsize=None)(self._made_row)
        self._held = 0
        self._last: _Rows | None = None
        self.undecided = torch.zeros(2)

    def reading(self, batch: Batch) -> Batch:
        return self._read(batch).batch

    def silent(self, batch: Batch) -> Tensor | None:
        missing = self._read(batch).steps.places["count"] == 0
        return torch.from_numpy(missing).to(batch.labels.device) if missing.any() else None

    def stream(self, batch: Batch, states: Tensor, head: Head | None, top: bool = False) -> Stream:
        """As :meth:`~muscle_hf.teachers.Teacher.stream`; with ``top`` the head's last column is the log-probability of
        all tokens together that have none of their own."""
        if not batch.kind.generates_text:
            return Stream(states, head)
        rows = self._read(batch)
        return ForeignStream(states, head, rows.steps, self.targets, self._note, self.reference, top)

    def figures(self) -> dict[str, float]:
        """``old_undecided``: the share of the teacher's mass that it leaves to the reference."""
        share, places = self.undecided.tolist()
        self.undecided = torch.zeros(2)
        return {"old_undecided": share / places} if places else {}

    def _note(self, undecided: Tensor, count: Tensor) -> None:
        self.undecided = self.undecided.to(undecided) + torch.stack([undecided, count.to(undecided)])

    def tell(self, ids: Sequence[int], old_ids: Sequence[int]) -> None:
        """Say what the teacher reads, ``old_ids``, in the place of a row of the student's ids, without padding, where
        that is not the row's text; another row of the same ids that was told something else is refused."""
        told = np.asarray(old_ids, dtype=np.int32)
        if not np.array_equal(self._told.setdefault(_key(ids), told), told):
            raise MuscleError(
                "two rows that are equal in v2's tokens have different words for v1, by which they cannot be told "
                f"apart; leave one out. v1's: {self.vocabularies.old.decode(told)[-200:]!r}"
            )
        self._forget()

    def _forget(self) -> None:
        self._view.cache_clear()
        self._row.cache_clear()
        self._held = 0

    def _keep(self, size: int) -> None:
        if self._held + size > _KEPT_BYTES:
            self._forget()
        self._held += size

    def _made_view(self, ids: tuple[int, ...], trained: tuple[int, ...]) -> View:
        self._keep(1000 * len(trained) + 100 * len(ids))
        return self._seen(ids, trained)

    def _seen(self, ids: tuple[int, ...], trained: tuple[int, ...]) -> View:
        told = self._told.get(_key(ids))
        view = self.aligner.view(ids, trained, old_ids=None if told is None else told.tolist())
        if self.window is None or len(view.old_ids) <= self.window:
            return view
        return replace(view, places=[p if p and p.first + len(p.steps) <= self.window else None for p in view.places])

    def _made_row(self, ids: tuple[int, ...], trained: tuple[int, ...]) -> _Row:
        view = self._seen(ids, trained)
        steps = self.targets.steps(view.places)
        self._keep(sum(array.nbytes for array in steps) + 100 * len(ids))
        return _Row(view.old_ids, *steps.needed())

    def _read(self, batch: Batch) -> _Rows:
        whole = batch.whole or batch
        if self._last is None or self._last.whole is not whole:
            self._last = self._made(whole)
        return self._last

    def _each(self, batch: Batch) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Each row's ids, and which of them are trained."""
        rows, columns = (index.cpu().numpy() for index in batch.places)
        for row, (ids, numbers) in enumerate(_real_rows(batch)):
            # What the logits of a place predict is behind it; a classifier predicts of the whole row.
            trained = (numbers[columns[rows == row]] + 1).tolist() if batch.kind.generates_text else ()
            yield tuple(ids.tolist()), tuple(trained)

    def _made(self, batch: Batch) -> _Rows:
        rows = list(itertools.starmap(self._row, self._each(batch)))
        ids, steps = [row.ids for row in rows], Steps.joined([row.steps for row in rows])
        if not batch.kind.generates_text:
            return _Rows(batch, self._batch(batch, ids, batch.labels.cpu().numpy()), steps)
        labels = np.full((len(rows), max(int(row.needed.max(initial=0)) + 1 for row in rows)), IGNORED)
        for number, row in enumerate(rows):
            # What v1's row goes on with there.
            labels[number, row.needed] = np.array([*row.ids, 0])[row.needed + 1]
        before = np.cumsum([0, *(len(row.needed) for row in rows)])[:-1]
        steps.places["first"] += np.repeat(before, [len(row.steps.places) for row in rows])
        return _Rows(batch, self._batch(batch, ids, labels), steps)

    def _batch(self, batch: Batch, old_ids: Sequence[list[int]], labels: np.ndarray) -> Batch:
        """Rows of the teacher's ids, as far as there are labels to predict."""
        width = labels.shape[1] if batch.kind.generates_text else max(len(ids[: self.window]) for ids in old_ids)
        ids = np.full((len(old_ids), width), self._filler, dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, given in enumerate(old_ids):
            own = given[:width] or [0]
            ids[row, : len(own)], mask[row, : len(own)] = own, 1
        moved = [torch.from_numpy(array).to(batch.labels.device) for array in (ids, mask, labels)]
        return Batch({"input_ids": moved[0], "attention_mask": moved[1]}, moved[2], batch.kind)

    def spelling(self, batch: Batch) -> Batch:
        views, spelt = list(itertools.starmap(self._view, self._each(batch))), []
        for view in views:
            known = [place for place in view.places if place is not None]
            # Between the turns of a conversation stands what nobody is trained on.
            own = {at for place in known for at in range(place.begun, place.done)}
            spelt.append(sorted(own) if len(known) == len(view.places) else [])
        labels = np.full((len(views), max((own[-1] + 1 for own in spelt if own), default=1)), IGNORED)
        for row, (view, own) in enumerate(zip(views, spelt, strict=True)):
            labels[row, np.array(own, dtype=int) - 1] = [view.old_ids[at] for at in own]
        return self._batch(batch, [view.old_ids for view in views], labels)


def _key(ids: Sequence[int] | np.ndarray) -> bytes:
    return hashlib.sha256(np.asarray(ids, dtype=np.int64).tobytes()).digest()


def _real_rows(batch: Batch) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of each row its ids without padding, and the number among these of each column; rows that pack several
    sequences, or hold more than text, are refused."""
    more = [name for name in batch.inputs if name not in PER_TOKEN | LABEL_KEYS]
    if more:
        raise MuscleError(f"the rows have {', '.join(more)}, but with another tokenizer v1 is given their text alone")
    ids, mask, positions = (batch.inputs.get(name) for name in ("input_ids", "attention_mask", "position_ids"))
    ids = cast("Tensor", ids).cpu().numpy()
    given = np.ones(ids.shape, dtype=bool) if mask is None else mask.cpu().numpy() != 0
    found = [(row[own], np.cumsum(own) - 1) for row, own in zip(ids, given, strict=True)]
    if positions is not None:
        own = [row[real] for row, real in zip(positions.cpu().numpy(), given, strict=True)]
        if len(own) != len(ids) or any((np.diff(row) <= 0).any() for row in own):
            raise MuscleError(
                "the data collator packs several rows into one, which v1 cannot be given in its own tokens; use a "
                "collator that pads (no packing, no padding_free)"
            )
    return found


@dataclass(frozen=True)
class ForeignStream(Stream):
    """What a teacher with other tokens says of the student's (equations (X1) and (X2)); ``hidden`` is (M, d),
    ``steps`` are as :class:`_Rows` has them, ``targets`` those of both tokenizers, ``top`` as of
    :meth:`ForeignReader.stream`; ``seen`` gets the share of v1's mass that is decided by the reference, and over how
    many places.

    Within a cell, and where its tokens do not reach, the probabilities of ``reference`` stand: ``student``, where the
    teacher asks for nothing, or ``new``, where v2 decides.
    """

    steps: Steps
    targets: ForeignTargets
    seen: Callable[[Tensor, Tensor], None]
    reference: str
    top: bool = False

    @property
    def leans(self) -> str:
        return self.reference

    def logits(self, rows: slice | Tensor, student: Tensor | None = None, chosen: Tensor | None = None) -> Tensor:
        if student is None:
            raise MuscleError("what v1 says in other tokens is made with another model's probabilities beside it")
        own = student if chosen is None else student[chosen]
        numbers = np.arange(len(self.steps.places))[rows if isinstance(rows, slice) else rows.cpu().numpy()]
        # Places share v1's rows: one looks ahead to where the next one is.
        needed, steps = self.steps.only(numbers).needed()
        said = super().logits(torch.from_numpy(needed).to(self.hidden.device))
        found = self.targets.target(said, steps, own, top=self.top)
        self.seen(found.undecided[found.valid].sum(), found.valid.sum())
        return found.log_q.to(own)


def reader_of(old_tokenizer: Any, tokenizer: Any, kind: ModelKind, *, own_words: bool = False) -> Reader | None:
    """How a model reads rows of another tokenizer's ids; None where it reads them as they are. With ``own_words`` it
    is given its own words around the rows' answers.

    Refused are tokens that are no byte strings, which cannot be compared, and models that are not trained across
    tokenizers.
    """
    vocabularies = compare_vocabularies(old_tokenizer, tokenizer)
    if not own_words and vocabularies.level != "foreign":
        return None if vocabularies.level == "same" else RenumberingReader(vocabularies)
    if kind not in (CAUSAL_LM, SEQUENCE_CLASSIFICATION):
        raise MuscleError(
            f"the old and the new model are given different tokens, and for a {kind.name} model every token has a "
            "label, or two texts are read. Causal LMs and sequence classifiers are trained across tokenizers; for "
            "others use a v1 with v2's tokens"
        )
    return ForeignReader(vocabularies)
