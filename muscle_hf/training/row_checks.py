"""Whether a dataset can be trained on, and what a few of its rows say of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.labels import IGNORED, LABEL_COLUMNS, no_class, unknown_class

# Rows looked at to tell how many tokens all of them have.
_SAMPLE = 256


def check_train_dataset(trainer: Any) -> bool:
    """Stop before training where a trainer's rows cannot be trained on; whether that could be seen: a stream is
    checked at its first step, since looking ahead could use it up."""
    if trainer.classes is not None and type(trainer.data_collator).__module__.startswith("transformers."):
        for name, rows in (("training set", trainer.train_dataset), ("evaluation set", trainer.eval_dataset)):
            require_class_column(rows, trainer.classes, name)
    if isinstance(trainer.train_dataset, IterableDataset) or not hasattr(trainer.train_dataset, "__getitem__"):
        return False
    require_trained(trainer, trainer.train_dataset, "training set")
    return True


def require_trained(trainer: Any, rows: Any, name: str) -> None:
    """Refuse a dataset, called ``name``, without rows or labels, or of which every label is ignored; reads up to the
    first trained label."""
    dataset, collate = trainer.rows_and_collator(rows, "training")
    seen = 0
    with torch.random.fork_rng(devices=[]):
        for batch in DataLoader(dataset, batch_size=trainer.args.train_batch_size, collate_fn=collate):
            labels = trainer.trained_labels(batch)
            if bool((labels != IGNORED).any()):
                return
            seen += len(labels)
    raise nothing_to_train_on(f"the {name} ({seen} rows)") if seen else MuscleError(f"the {name} is empty")


def nothing_to_train_on(what: str) -> MuscleError:
    """The error for data of which every label is ignored."""
    return MuscleError(
        f"every label of {what} is ignored (-100), so there is nothing to train on. Check that prompts are not longer "
        "than the truncation length, and that masks mark the answers"
    )


def require_class_column(rows: Any, classes: int, name: str) -> None:
    """Refuse labels that are no classes in a whole dataset, or several by name, whose labels are collated as they
    stand; of datasets whose rows are made one by one nothing is read."""
    if isinstance(rows, dict):
        for part, its_rows in rows.items():
            require_class_column(its_rows, classes, f"{name} {part!r}")
        return
    if hasattr(rows, "with_format") and hasattr(rows, "__len__") and rows.format["type"] != "custom":
        names, table = rows.column_names, rows.with_format(None)
    elif isinstance(rows, list) and rows and isinstance(rows[0], Mapping):
        names, table = rows[0], None
    else:
        return
    column = next((column for column in LABEL_COLUMNS if column in names), None)
    if column is None:
        return
    for index, label in enumerate(table[column] if table is not None else (row.get(column) for row in rows)):
        values = label.tolist() if hasattr(label, "tolist") else label
        for value in values if isinstance(values, Sequence) and not isinstance(values, str) else [values]:
            if not isinstance(value, Integral) or no_class(value, classes):
                raise unknown_class(f"the column {column!r} of the {name}, row {index}", value, classes)


def has_messages(rows: Any) -> bool:
    """Whether the rows of a dataset are conversations."""
    if isinstance(rows, IterableDataset) or not hasattr(rows, "__getitem__") or not len(rows):
        return False
    first = rows[0]
    return isinstance(first, Mapping) and bool(first.get("messages") or isinstance(first.get("prompt"), list))


def sample_of(rows: Any) -> list[Any]:
    """Up to 256 rows from all over a dataset; none of a stream."""
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__") or not len(rows):
        return []
    return [rows[index] for index in range(0, len(rows), max(1, len(rows) // _SAMPLE))][:_SAMPLE]
