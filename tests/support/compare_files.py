"""Prediction files for the tests of comparisons."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

from muscle_hf.compare import Source, source_of
from muscle_hf.evaluation.predictions import Prediction, write_predictions

CHOICES = ["north", "east", "south", "west"]


def choice_predictions(items: int, accuracy: float, seed: int, task: str = "ways", **changes: Any) -> list[Prediction]:
    """Answers of a made-up model to a multiple-choice task; the same items whatever accuracy and seed."""
    rng = random.Random(seed)
    rows = []
    for i in range(items):
        target = i % 4
        answer = target if rng.random() < accuracy else rng.choice([c for c in range(4) if c != target])
        row = {
            "task": task,
            "id": f"item-{i}",
            "prediction": answer,
            "target": target,
            "correct": answer == target,
            "score": None,
            "metric": "acc",
            "hash": hashlib.sha256(f"{task} {i}".encode()).hexdigest()[:16],
            "prompt": f"Question {i} of {task}: where to?",
            "choices": CHOICES,
            "log_likelihoods": [-1.0 if c == answer else -3.0 for c in range(4)],
            "columns": {"tone": ["calm", "angry"][i % 2], "source": f"s{i // 5}", "length": i % 37},
        }
        rows.append(Prediction.from_dict(row | changes))
    return rows


def score_predictions(items: int, level: float, seed: int, task: str = "summaries") -> list[Prediction]:
    """Answers with a similarity to a reference."""
    rng = random.Random(seed)
    return [
        Prediction(
            task=task,
            id=str(i),
            prediction=f"summary {i} by {seed}",
            target=f"reference {i}",
            correct=None,
            score=min(1.0, max(0.0, rng.gauss(level, 0.2))),
            metric="rouge1",
            hash=hashlib.sha256(f"{task} {i}".encode()).hexdigest()[:16],
            columns={"tone": ["calm", "angry"][i % 2]},
        )
        for i in range(items)
    ]


def write(path: Path, *groups: list[Prediction]) -> str:
    """Writes predictions of one or more tasks into one file; its path as text."""
    return str(write_predictions(path, [row for group in groups for row in group]))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> str:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def sources(*predictions: list[Prediction]) -> list[Source]:
    """The sides of a comparison, in memory."""
    return [source_of(rows) for rows in predictions]


def three(items: int = 400) -> tuple[list[Prediction], list[Prediction], list[Prediction]]:
    """Old, new, and a compatibility model that mostly keeps what the old one has right."""
    old, new = choice_predictions(items, 0.7, 1), choice_predictions(items, 0.72, 2)
    rng = random.Random(3)
    compat = [a if a.correct and rng.random() < 0.8 else b for a, b in zip(old, new, strict=True)]
    return old, new, compat


def flipping(items: int, flips: int) -> tuple[list[Prediction], list[Prediction]]:
    """An update that breaks exactly this many right answers."""
    old = choice_predictions(items, 1.0, 1)
    wrong = [dataclasses.replace(p, prediction=(p.target + 1) % 4, correct=False) for p in old[:flips]]
    return old, wrong + old[flips:]


def write_parquet(path: Path, rows: list[dict]) -> str:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def lighteval_rows(predictions) -> list[dict]:
    return [
        {
            "doc": {"query": p.prompt, "choices": p.choices, "gold_index": [p.target], "id": p.id, "specific": None},
            "metric": {"acc": int(p.correct)},
            "model_response": {"logprobs": p.log_likelihoods, "text": [], "input": p.prompt},
        }
        for p in predictions
    ]


def write_lighteval(folder: Path, rows: list[dict]) -> str:
    """The details of one task below a folder, as lighteval lays them out."""
    home = folder / "model" / "2026-01-01T00-00-00.5"
    home.mkdir(parents=True)
    write_parquet(home / "details_ways|0_2026-01-01T00-00-00.5.parquet", rows)
    return str(folder)
