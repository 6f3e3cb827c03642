"""The rows of a run: loaded, split, and in the form that the trainers take."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, cast

from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.evaluation.registry import load_items, place_of_rows, to_item
from muscle_hf.evaluation.rows import find_rows, read_rows
from muscle_hf.evaluation.tasks import Item, Source, Task
from muscle_hf.pipeline.config import DataSettings, SplitSettings
from muscle_hf.training.data import PaddingCollator, encode_items

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset
    from transformers import PreTrainedTokenizerBase, TrainingArguments

# What a stream is read with, and how, by file name ending.
_STREAM_BUILDERS: dict[str, tuple[str, dict[str, Any]]] = {
    **dict.fromkeys(("jsonl", "ndjson", "json"), ("json", {})),
    "csv": ("csv", {}),
    "tsv": ("csv", {"sep": "\t"}),
    "parquet": ("parquet", {}),
}


@dataclass(frozen=True)
class Splits:
    """The rows of a run: items of a task; to train on and to select by (which may be none) also rows for TRL.

    ``transfer`` are trained on without their right answers; ``test`` is empty where nothing is evaluated.
    """

    train: Sequence[Item] | Dataset | IterableDataset
    validation: Sequence[Item] | Dataset | IterableDataset
    test: Sequence[Item]
    transfer: Sequence[Item] = ()


def load_splits(task: Task | None, data: DataSettings) -> Splits:
    """The rows that the settings choose; what is held out for validation are evenly spaced training rows. Test rows
    that would be trained on or selected by are refused."""
    source = _source(data, task)
    test: Sequence[Item] = []
    if task is not None:
        place = source_of_tests(data, task)
        test = load_items(task, place, data.test.split, start=data.test.start, limit=data.test.limit)
        _refuse_overlap(data, task, source, place, len(test))

    def items(rows: SplitSettings) -> list[Item]:
        place = getattr(rows, "source", None) or source
        return load_items(cast("Task", task), place, rows.split, start=rows.start, limit=rows.limit)

    is_items = data.format == "task" and not data.streaming
    rows_of = items if is_items else partial(_dataset, source, task, data)
    train = rows_of(data.train)
    if data.validation is None:
        train, validation = _hold_out(train, data.validation_share)
    else:
        validation = rows_of(data.validation)
    return Splits(train, validation, test, [] if data.transfer is None else items(data.transfer))


def _source(data: DataSettings, task: Task | None) -> str | Source | None:
    own = None if task is None else task.source
    if data.source is not None and (data.name or data.revision):
        return Source(data.source, data.name, data.revision, {} if own is None else own.splits)
    if data.source is None and data.revision is not None and own is not None:
        return replace(own, revision=data.revision)
    return data.source


def source_of_tests(data: DataSettings, task: Task | None) -> str | Source | None:
    """Where the test items are; None: where the task says."""
    return _source(data, task) if data.test_source is None and data.format == "task" else data.test_source


def _refuse_overlap(
    data: DataSettings, task: Task, source: str | Source | None, test_source: str | Source | None, tested: int
) -> None:
    """Test rows are for the table alone: none is trained on, or selected by."""
    there = place_of_rows(task, test_source, data.test.split)
    parts = {"train": data.train, "validation": data.validation, "transfer": data.transfer}
    for name, part in parts.items():
        if part is None or place_of_rows(task, getattr(part, "source", None) or source, part.split) != there:
            continue
        stop = math.inf if part.limit is None else part.start + part.limit
        shared = int(max(0, min(stop, data.test.start + tested) - max(part.start, data.test.start)))
        if shared:
            rows = "training" if name == "train" else name
            raise MuscleError(
                f"{shared} test rows are {rows} rows: data.{name} and data.test take the same rows of "
                f"{there[0]}; set their start and limit apart"
            )


def _hold_out(train: Any, share: float) -> tuple[Any, Any]:
    held = Fraction(share).limit_denominator(1000)

    def is_held(index: int) -> bool:
        return int((index + 1) * held) > int(index * held)

    def part(side: bool) -> Any:
        if not hasattr(train, "__len__"):  # a stream
            return train.filter(lambda row, index: is_held(index) is side, with_indices=True)
        indices = [index for index in range(len(train)) if is_held(index) is side]
        return train.select(indices) if hasattr(train, "select") else [train[index] for index in indices]

    return part(False), part(True)


# ---- Rows as TRL takes them ----


def _dataset(
    source: str | Source | None, task: Task | None, data: DataSettings, split: SplitSettings
) -> Dataset | IterableDataset:
    """Rows of one split as a dataset; streamed ones of a task become prompts and completions."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "data", "data.format: trl or data.streaming") from error
    own = None if task is None else task.source
    given = cast("str | Source", own if source is None else source)
    place = find_rows(given, split.split, splits={} if own is None else own.splits)
    if isinstance(place, Source):
        name = place.splits.get(split.split, split.split)
        rows = datasets.load_dataset(
            place.path, place.name, split=name, revision=place.revision, streaming=data.streaming
        )
    elif data.streaming:
        ending = place.name.removesuffix(".gz").rpartition(".")[2].lower()
        if ending not in _STREAM_BUILDERS:
            raise MuscleError(f"{place} cannot be streamed; files that can end in {', '.join(_STREAM_BUILDERS)}")
        builder, how = _STREAM_BUILDERS[ending]
        rows = datasets.load_dataset(builder, data_files=str(place), split="train", streaming=True, **how)
    else:
        found = read_rows(place, split.split)
        names = dict.fromkeys(name for row in found for name in row)  # from_list takes those of the first row
        rows = datasets.Dataset.from_list([{**names, **row} for row in found])
    rows = _part(rows, split)
    if data.format == "task":

        def as_prompt(row: dict[str, Any], index: int) -> dict[str, str]:
            item = to_item(cast("Task", task), row, index)
            return {"prompt": item.prompt, "completion": item.target}

        rows = rows.map(as_prompt, with_indices=True).select_columns(["prompt", "completion"])
    return rows


def _part(rows: Any, split: SplitSettings) -> Any:
    if not hasattr(rows, "select"):
        rows = rows.skip(split.start) if split.start else rows
        return rows if split.limit is None else rows.take(split.limit)
    stop = len(rows) if split.limit is None else min(len(rows), split.start + split.limit)
    if not 0 <= split.start < stop:
        raise MuscleError(f"rows {split.start} to {stop} of {len(rows)} are nothing; check start and limit")
    return rows.select(range(split.start, stop))


# ---- What trainers take ----


@dataclass(frozen=True)
class TrainingData:
    """Rows for training, the same for task and compatibility adapters: tokenized, or ones that TRL tokenizes."""

    tokenizer: PreTrainedTokenizerBase
    train: Any
    validation: Any

    @classmethod
    def of(
        cls,
        tokenizer: PreTrainedTokenizerBase,
        train: Sequence[Item] | Dataset | IterableDataset,
        validation: Sequence[Item] | Dataset | IterableDataset,
        **how: bool,
    ) -> TrainingData:
        """Tokenize items as :func:`muscle_hf.training.data.encode_items` does; rows for TRL stay as they are."""

        def prepared(rows: Any) -> Any:
            is_items = isinstance(rows, Sequence)
            return encode_items(tokenizer, rows, **how) if is_items else rows

        return cls(tokenizer, prepared(train), prepared(validation))

    @cached_property
    def identity(self) -> str:
        """A hash that changes with the rows; of a stream only with what they are read from."""
        parts = [
            rows if isinstance(rows, list) else getattr(rows, "_fingerprint", None) or repr(rows)
            for rows in (self.train, self.validation)
        ]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def validates(self) -> bool:
        """Whether there are rows to select by."""
        return not hasattr(self.validation, "__len__") or len(self.validation) > 0

    def for_trainer(self, arguments: TrainingArguments) -> dict[str, Any]:
        """The arguments of a trainer that hold data; TRL's gets datasets, which it tokenizes and collates."""
        data = {"train_dataset": self.train, "eval_dataset": self.validation if self.validates else None}
        if is_trl(arguments):
            from datasets import Dataset

            data = {name: Dataset.from_list(rows) if isinstance(rows, list) else rows for name, rows in data.items()}
        else:
            pad = cast("int | None", self.tokenizer.pad_token_id)
            data["data_collator"] = PaddingCollator(pad_id=0 if pad is None else pad)
        return {**data, "processing_class": self.tokenizer}


def token_lengths(data: TrainingData) -> list[int] | None:
    """Tokens of each training row; None for a stream."""
    rows = data.train
    if not hasattr(rows, "__len__"):
        return None
    if isinstance(rows, list) or "input_ids" in rows.column_names:
        return [len(row["input_ids"]) for row in rows]
    texts = ["\n".join(_strings(row)) for row in rows]
    return [len(ids) for ids in data.tokenizer(texts)["input_ids"]]


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else []
    return [text for part in parts for text in _strings(part)]


def is_trl(arguments: TrainingArguments) -> bool:
    """Whether training arguments are those of TRL's ``SFTTrainer``."""
    return any(cls.__name__ == "SFTConfig" for cls in type(arguments).__mro__)
