"""Whether a dataset can be trained on, and what a few of its rows say of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from muscle_hf.errors import MuscleError
from muscle_hf.teachers.batch import IGNORED, LABEL_COLUMNS, no_class, unknown_class

# Rows looked at to tell how many tokens all of them have.
_SAMPLE = 256


def require_trained_labels(
    batches: Iterable[Mapping[str, Any]], trained_labels: Callable[[Mapping[str, Any]], Tensor], name: str
) -> None:
    """Stop before training where a dataset has nothing to train on; reads up to the first trained label.

    Args:
        batches: As the collator makes them.
        trained_labels: The aligned labels of a batch, -100 where nothing is trained.
        name: Of the dataset, for the message.

    Raises:
        MuscleError: There are no rows, no labels, or every label is ignored.
    """
    rows = 0
    for batch in batches:
        labels = trained_labels(batch)
        if bool((labels != IGNORED).any()):
            return
        rows += len(labels)
    if not rows:
        raise MuscleError(f"the {name} is empty")
    raise nothing_to_train_on(f"the {name} ({rows} rows)")


def nothing_to_train_on(what: str) -> MuscleError:
    """The error for data of which every label is ignored."""
    return MuscleError(
        f"every label of {what} is ignored (-100), so there is nothing to train on. Check that prompts are not longer "
        "than the truncation length, and that masks mark the answers"
    )


def require_class_column(rows: Any, classes: int, name: str) -> None:
    """:func:`require_class_numbers` for a whole dataset whose labels are collated as they stand.

    Args:
        rows: A ``datasets.Dataset`` or a list of dictionaries, or several of them by name; of anything else, whose
            rows are made one by one, nothing is read.
        classes: How many the model knows.
        name: Of the dataset, for the message.

    Raises:
        MuscleError: Names the column, the row and what is there.
    """
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


def count_trained(rows: Any, collate: Callable[[list], Any], trained_labels: Callable[[Any], Tensor]) -> int:
    """About how many trained tokens a dataset has, from some of its rows; 0 for a stream.

    Args:
        rows: Of the training set.
        collate: Makes a batch of rows.
        trained_labels: The aligned labels of a batch, -100 where nothing is trained.
    """
    if not (sample := sample_of(rows)):
        return 0
    with torch.random.fork_rng(devices=[]):
        found = sum(int((trained_labels(collate([row])) != IGNORED).sum()) for row in sample)
    return round(found * len(rows) / len(sample))
