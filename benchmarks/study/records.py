"""What of the study is kept in the repository: what every model of a seed answered to the test items, and what it was
made of and with. The report reads nothing else, so that it can be made anew, or gone on with, without the runs.

A record is one JSON file for each seed of a cell, in benchmarks/study/records:

- ``items``: how many test items there are, a hash of what was asked, and the right choices, one digit an item;
- ``models``: of each model its answers (choices or 1 for right, one digit an item, or similarities), the SHA-256 of
  its adapter's file, and how it was trained;
- ``bases`` and ``packages``: as the provenance file of a compatibility adapter has them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from answers import BOTH, V1, V2, Answers, both_at_inference
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from study import Cell

from muscle_hf.evaluation import Prediction, read_predictions
from muscle_hf.training.provenance import PROVENANCE_FILE

RECORDS = Path(__file__).with_name("records")


def record_file(cell: str, seed: int) -> Path:
    """The record of a seed of a cell."""
    return RECORDS / f"{cell}-seed{seed}.json"


def missing_methods(cell: Cell, names: Sequence[str]) -> list[str]:
    """The methods that a cell's record lacks, or has with other settings than tuning chose."""
    file = record_file(cell.name, cell.seed)
    models = json.loads(file.read_text(encoding="utf-8"))["models"] if file.is_file() else {}
    return [name for name in names if name not in models or not _is_as_tuned(cell, name, models[name])]


def goes_on(cell: Cell) -> bool:
    """Whether today's v1 and v2 are those of the cell's record, if there is one: methods are compared only with the
    two that they started from, and on another processor the same seed gives others."""
    file = record_file(cell.name, cell.seed)
    if not file.is_file():
        return True
    before = json.loads(file.read_text(encoding="utf-8"))
    sides = {V1: "old", V2: "new"}
    rows = {name: read_predictions(_answers(cell.version_folder(side))) for name, side in sides.items()}
    return before["items"] == _items(rows[V1]) and all(
        before["models"][name]["answers"] == _encoded(rows[name]) for name in sides
    )


def write_record(cell: Cell) -> Path:
    """Record the finished models of a cell beside those that its record has with the settings that tuning chose; a
    record of other task adapters is replaced."""
    folders = {V1: cell.version_folder("old"), V2: cell.version_folder("new")}
    folders |= {name: cell.method_folder(name) for name in cell.chosen}
    predictions = {
        name: read_predictions(file) for name, folder in folders.items() if (file := _answers(folder)).is_file()
    }
    models = {
        name: {
            "answers": _encoded(rows),
            "adapter_sha256": _file_hash(folders[name]),
            "training": _training(cell, name),
        }
        for name, rows in predictions.items()
    }
    items = _items(predictions[V1])
    if items["right"] is not None:
        models[BOTH] = {"answers": _digits(both_at_inference([predictions[V1], predictions[V2]]))}
    elif (together := _answers(cell.both_folder)).is_file():
        models[BOTH] = {"answers": _encoded(read_predictions(together))}
    file, made_of = record_file(cell.name, cell.seed), _made_of(folders)
    if file.is_file() and goes_on(cell):
        before = json.loads(file.read_text(encoding="utf-8"))
        kept = {name: model for name, model in before["models"].items() if _is_as_tuned(cell, name, model)}
        # Most methods started from the two that were recorded first; today's answer every item alike.
        models = kept | models | {name: before["models"][name] for name in (V1, V2)}
        made_of = {key: before[key] for key in ("bases", "packages") if key in before} | made_of
    record = {"cell": cell.name, "seed": cell.seed, "items": items, **made_of, "models": models}
    RECORDS.mkdir(exist_ok=True)
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return file


def read_record(cell: str, seed: int) -> Answers | None:
    """The answers of all models of a seed of a cell; None where there is no record."""
    file = record_file(cell, seed)
    if not file.is_file():
        return None
    record = json.loads(file.read_text(encoding="utf-8"))
    right = record["items"]["right"]
    found = Answers(items=record["items"]["sha256"], right=None if right is None else _numbers(right))
    for name, model in record["models"].items():
        answers = model["answers"]
        found.training[name] = model.get("training", {})
        if right is not None:
            found.choose(name, _numbers(answers))
        else:
            found.scored = " " in answers
            values = [float(score) for score in answers.split()] if found.scored else _numbers(answers)
            found.quality[name] = np.array(values, dtype=float)
    return found


def _answers(adapter: Path) -> Path:
    return Cell.answers_file(adapter, "test")


def _items(rows: Sequence[Prediction]) -> dict[str, Any]:
    asked = hashlib.sha256("".join(row.hash for row in rows).encode()).hexdigest()
    chosen = rows[0].log_likelihoods is not None
    return {"count": len(rows), "sha256": asked, "right": _digits([row.target for row in rows]) if chosen else None}


def _encoded(rows: Sequence[Prediction]) -> str:
    if rows[0].log_likelihoods is not None:
        return _digits([row.prediction for row in rows])
    if rows[0].correct is not None:
        return _digits([row.correct for row in rows])
    return " ".join(f"{row.score:.4f}" for row in rows)


def _digits(numbers: Sequence[int]) -> str:
    digits = [str(int(number)) for number in numbers]
    if any(len(digit) > 1 for digit in digits):
        raise ValueError("more than ten choices do not fit into one digit")
    return "".join(digits)


def _numbers(digits: str) -> np.ndarray:
    return np.array([int(digit) for digit in digits])


def _file_hash(adapter: Path) -> str:
    return hashlib.sha256((adapter / SAFETENSORS_WEIGHTS_NAME).read_bytes()).hexdigest()


def _training(cell: Cell, name: str) -> dict[str, Any]:
    if name in (V1, V2):
        version = cell.plan["versions"][cell.versions["old" if name == V1 else "new"]]
        return {**cell.plan["task_training"], **({"labelled": version["labelled"]} if "labelled" in version else {})}
    method = cell.plan["methods"][name]
    told = ("rows", "steps", "share", "transfer", "from", "start_from", "dropout", "answers", "experiment", "weights")
    known = {key: method[key] for key in told if key in method} | cell.chosen[name]
    if (share := cell.method_folder(name) / "share.txt").is_file():
        known["share_of_v1"] = float(share.read_text(encoding="utf-8"))
    file = cell.method_folder(name) / PROVENANCE_FILE
    if not file.is_file():
        return known
    provenance = json.loads(file.read_text(encoding="utf-8"))
    fitted = {key: value for key, value in provenance["metrics"].items() if key.endswith("teacher_temperature")}
    return known | provenance["objective"] | fitted


def _is_as_tuned(cell: Cell, name: str, model: dict[str, Any]) -> bool:
    chosen = cell.chosen.get(name)
    return chosen is not None and chosen.items() <= model["training"].items()


def _made_of(folders: dict[str, Path]) -> dict[str, Any]:
    """Bases and packages, from the provenance of the first compatibility adapter that is there."""
    for folder in folders.values():
        if (folder / PROVENANCE_FILE).is_file():
            found = json.loads((folder / PROVENANCE_FILE).read_text(encoding="utf-8"))
            bases = {side: found[side]["base"]["sha256"] for side in ("old", "new")}
            return {"bases": bases, "packages": found["packages"]}
    return {}
