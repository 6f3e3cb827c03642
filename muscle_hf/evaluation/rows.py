"""Rows of a data set, from the Hub or from files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from muscle_hf import row_files
from muscle_hf.errors import MissingDependencyError, MuscleError
from muscle_hf.evaluation.tasks import Source
from muscle_hf.files import StrPath, read_text

Rows = list[dict[str, Any]]
# A file, a folder with a file per split, or a dataset on the Hub (its id, or more of it).
Place = StrPath | Source

# Names that the same split goes by in file names.
_ALIASES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}


def read_rows(source: Place, split: str, *, splits: Mapping[str, str] | None = None) -> Rows:
    """All rows of a split of a file (``.jsonl``, ``.json``, ``.csv``, ``.tsv``, ``.parquet``, the text formats also
    with ``.gz``), a folder with a file per split, or a dataset on the Hub (its id or a :class:`Source`); errors say
    what is missing or damaged. ``split`` is ``train``, ``validation``, ``test``, or one of the data set itself, and
    not used where ``source`` is a file; ``splits`` names what is read in place of one that is not there (``{"test":
    "validation"}``)."""
    path = find_rows(source, split, splits=splits)
    if isinstance(path, Source):
        return _from_hub(path, split)
    rows = [dict(row) for row in row_files.read_rows(path)]
    if not rows:
        raise MuscleError(f"{path} holds no rows")
    labels = path.parent / f"{path.name.split('.')[0]}-labels.lst"
    return _with_labels(rows, labels) if labels.is_file() else rows


def find_rows(source: Place, split: str, *, splits: Mapping[str, str] | None = None) -> Path | Source:
    """The file that holds a split, or the dataset on the Hub; arguments and errors as in :func:`read_rows`."""
    if isinstance(source, Source):
        return source
    path = Path(source)
    if path.is_dir():
        return _file_of(path, split, splits or {})
    if path.is_file():
        return path
    if _is_hub_id(str(source)):
        return Source(str(source), splits=splits or {})
    raise MuscleError(f"there is no file or folder {source}")


def _is_hub_id(text: str) -> bool:
    # A path that does not exist is a mistyped path, not the name of a dataset to look up; but names of datasets may
    # have a dot (owner/data-2.5).
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or "\\" in text:
        return False
    suffix = Path(text).suffix.lower()
    return not suffix or ("/" in text and suffix not in (*row_files.SUFFIXES, ".gz"))


def _file_of(folder: Path, split: str, instead: Mapping[str, str]) -> Path:
    for name in dict.fromkeys((split, instead.get(split, split))):
        stems = next((names for names in _ALIASES.values() if name in names), (name,))
        for stem in stems:
            found = [folder / f"{stem}{suffix}{zipped}" for suffix in row_files.SUFFIXES for zipped in ("", ".gz")]
            existing = [path for path in found if path.is_file()]
            if existing:
                return existing[0]
    there = ", ".join(sorted(path.name for path in folder.iterdir())) or "nothing"
    raise MuscleError(f"{folder} has no file for the split {split!r}; it has: {there}")


def _with_labels(rows: Rows, path: Path) -> Rows:
    lines = read_text(path).split()
    try:
        labels = [int(line) for line in lines]
    except ValueError as error:
        raise MuscleError(f"{path} must hold a number a line ({error})") from error
    if len(labels) != len(rows):
        raise MuscleError(f"{path} has {len(labels)} labels, but there are {len(rows)} rows")
    return [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]


def _from_hub(source: Source, split: str) -> Rows:
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError("datasets", "data", f"loading {source.path} from the Hub") from error
    name = source.splits.get(split, split)
    try:
        loaded = datasets.load_dataset(source.path, source.name, split=name, revision=source.revision)
    except (OSError, ValueError) as error:  # no network, no such data set, configuration or split
        raise MuscleError(
            f"split {name!r} of the data set {source.path} cannot be loaded from the Hub: {error}. Rows in files are "
            "read without it: name a file or folder (--data, or data.source in the settings of a run)"
        ) from error
    return [dict(row) for row in loaded]
