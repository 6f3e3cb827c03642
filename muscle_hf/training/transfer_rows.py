"""Rows with and without labels in one dataset and one batch."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import TrainerCallback

from muscle_hf.errors import MuscleError
from muscle_hf.teachers import Teacher
from muscle_hf.teachers.batch import TRAINED_COUNT, UNLABELLED
from muscle_hf.teachers.labels import IGNORED, LABEL_COLUMNS
from muscle_hf.teachers.sharding import is_sharded

# Columns that a transfer row need not have.
_FILLED = (*LABEL_COLUMNS, "attention_mask")


@dataclass(frozen=True)
class Models:
    """Who can be asked for answers while a trainer is set up, and where answers are kept: in the run's ``folder``, or
    in that of the teacher cache, ``shared`` by several runs."""

    student: nn.Module
    teachers: Mapping[str, Teacher]
    tokenizer: Any
    folder: str | os.PathLike
    shared: str | os.PathLike | None = None
    seed: int = 0
    progress: bool = True

    def tokenizer_of(self, role: str) -> Any:
        """The tokenizer of a teacher (``old``, ``new``) or of the student."""
        return (self.teachers[role].tokenizer if role in self.teachers else None) or self.tokenizer


class AnsweredRows(ABC):
    """Transfer rows that are made of the models' own answers when training starts.

    Attributes:
        renewed: Whether the answers change from epoch to epoch.
    """

    renewed: bool

    @abstractmethod
    def __len__(self) -> int:
        """How many prompts there are."""

    @abstractmethod
    def rows(self, models: Models, epoch: int = 0) -> list[dict[str, list[int]]]:
        """Tokenized rows with ``labels`` where something is trained."""

    @abstractmethod
    def forget(self, folder: str | os.PathLike) -> None:
        """Remove what an earlier run in a folder has left that no longer holds."""


class MixedRows(Dataset):
    """Labelled rows, and after them the transfer rows of an epoch: ``ratio`` of them for each labelled row, all by
    default; of more rows than that, each epoch takes the next, in an order by ``seed``.

    Labels of transfer rows only say where something is trained, by any value but -100 (for a classifier any value
    does).
    """

    def __init__(self, labelled: Sequence[Any], transfer: Sequence[Any], ratio: float | None = None, seed: int = 0):
        self.labelled = labelled
        self.ratio = ratio
        self.seed = seed
        self.epoch = 0
        # One batch holds both, so both have the same columns.
        first = labelled[0]
        self._columns = tuple(first)
        self._classes = {name for name in LABEL_COLUMNS if name in first and not _is_sequence(first[name])}
        self._count: int | None = None
        self.replace_transfer(transfer)

    def replace_transfer(self, transfer: Sequence[Any], count: int | None = None) -> None:
        """Take other transfer rows from now on, ``count`` of which make an epoch, where that must not change with
        them."""
        self.transfer = transfer
        self._count = count
        self._order = torch.randperm(len(transfer), generator=torch.Generator().manual_seed(self.seed)).tolist()

    @property
    def transfer_count(self) -> int:
        """Transfer rows in an epoch."""
        if self.ratio is not None:
            return max(1, round(self.ratio * len(self.labelled)))
        return len(self.transfer) if self._count is None else self._count

    def start_epoch(self, epoch: int) -> None:
        """Take the transfer rows of an epoch, counted from 0; called before its data loader starts.

        Not ``set_epoch``, by which loaders tell a dataset the epoch: those of one process do, those of several and
        those that go on in mid-epoch do not, and an evaluation's count epochs of their own.
        """
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.labelled) + self.transfer_count

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        if index < len(self.labelled):
            return {**self.labelled[index], UNLABELLED: False}
        place = self.epoch * self.transfer_count + index - len(self.labelled)
        given = dict(self.transfer[self._order[place % len(self._order)]])
        # A classifier has one place to predict at, whatever a row says is right there.
        row: dict[str, Any] = given | dict.fromkeys(self._classes, 0)
        if "attention_mask" in self._columns and "attention_mask" not in row:
            row["attention_mask"] = [1] * len(row["input_ids"])
        row = {name: row[name] for name in self._columns if name in row} | {UNLABELLED: True}
        labels = next((given[name] for name in LABEL_COLUMNS if name in given), None)
        return row | {TRAINED_COUNT: int((torch.as_tensor(labels) != IGNORED).sum())} if _is_sequence(labels) else row


class MarkingCollator:
    """A collator that knows nothing of transfer rows, and the mark of each row beside its batch."""

    def __init__(self, collate: Callable[[list], Any]):
        self.collate = collate

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "collate":
            raise AttributeError(name)
        return getattr(self.collate, name)

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows; the mark ``unlabelled``, (B,) boolean, is there if a row has one. A collator that flattens
        rows into one, or makes labels where a transfer row has none, is refused."""
        marks = [bool(row.get(UNLABELLED, False)) for row in rows]
        own = (UNLABELLED, TRAINED_COUNT)
        batch = self.collate([{key: value for key, value in row.items() if key not in own} for row in rows])
        if not any(UNLABELLED in row for row in rows):
            return batch
        if len(batch["input_ids"] if "input_ids" in batch else next(iter(batch.values()))) != len(rows):
            raise MuscleError(
                "the data collator packs several rows into one, so transfer rows cannot be told from labelled ones; "
                "use a collator that pads (length grouping saves most of the padding)"
            )
        self._require_own_labels(batch.get("labels"), rows)
        return {**batch, UNLABELLED: torch.tensor(marks)}

    def _require_own_labels(self, labels: Any, rows: Sequence[Mapping[str, Any]]) -> None:
        if not isinstance(labels, torch.Tensor) or labels.dim() != 2:
            return
        for found, row in zip((labels != IGNORED).sum(dim=1).tolist(), rows, strict=True):
            if found > row.get(TRAINED_COUNT, found):
                name = getattr(self.collate, "__name__", type(self.collate).__name__)
                raise MuscleError(
                    f"the data collator ({name}) makes labels itself: it would train on {found} tokens of a transfer "
                    f"row, not on the {row[TRAINED_COUNT]} that the row's own labels name, such as the answer. Use a "
                    "collator that keeps the rows' labels, such as DataCollatorForSeq2Seq, and training rows that "
                    "have them (for MuscleSFTTrainer: prompts and completions)"
                )


def _is_sequence(value: Any) -> bool:
    return hasattr(value, "__len__") and getattr(value, "ndim", 1) > 0


def check_columns(labelled: Any, transfer: Any, read: Sequence[str]) -> None:
    """Refuse transfer rows that cannot be in one batch with the labelled rows, of which ``read`` are read."""
    if not len(transfer):
        raise MuscleError("transfer_dataset is empty")
    first, row = labelled[0], transfer[0]
    missing = (first.keys() & set(read)) - row.keys() - set(_FILLED)
    sequence = next((name for name in LABEL_COLUMNS if _is_sequence(first.get(name))), None)
    if sequence is not None and sequence not in row:
        raise MuscleError(
            f"the transfer rows have no column {sequence!r}, which says by any id but {IGNORED} where something is "
            "trained. To let the models answer prompts, pass muscle_hf.TransferPrompts(prompts) as transfer_dataset"
        )
    if missing:
        raise MuscleError(
            f"the transfer rows lack {', '.join(sorted(missing))}, which the training rows have; one batch holds both"
        )


def refuse_unmixable(trainer: Any, *, answered: bool) -> None:
    """Refuse transfer rows, or prompts that models answer, beside what they cannot be mixed with."""
    if not isinstance(trainer.train_dataset, Sized) or isinstance(trainer.train_dataset, IterableDataset):
        raise MuscleError("transfer_dataset needs a train_dataset with a length: it is mixed with its rows")
    if trainer.compute_loss_func is not None:
        raise MuscleError("compute_loss_func looks at labels, which the rows of transfer_dataset do not have")
    if trainer.args.dataloader_persistent_workers:
        raise MuscleError(
            "with dataloader_persistent_workers=True the workers keep the rows of the first epoch, but those of "
            "transfer_dataset change from epoch to epoch; leave it out (dataloader_num_workers may stay)"
        )
    if not answered:
        return
    if not trainer.kind.shifts_labels:
        raise MuscleError(
            f"answers to transfer prompts are made for causal LMs; for a {trainer.kind.name} model pass rows as "
            "transfer_dataset, whose labels say where something is trained"
        )
    if trainer.tokenizer is None:
        raise MuscleError("transfer prompts are texts; pass the tokenizer as processing_class")
    if is_sharded(trainer.accelerator):
        raise MuscleError(
            "models that are sharded over processes (FSDP, ZeRO-3) are not asked for answers; have the "
            "prompts answered first, and pass rows with labels on the answers as transfer_dataset"
        )


class TransferEpochs(TrainerCallback):
    """Takes the transfer rows of each epoch; where the student answers prompts, it answers them anew before it."""

    def __init__(self, trainer: Any):
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch = int((state.epoch or 0) + 1e-6)
        self._trainer.train_dataset.start_epoch(epoch)
        if getattr(self._trainer._transfer, "renewed", False):
            self._trainer.answer_transfer_prompts(epoch, resumes=True)
