"""Small fleets on the embedded world: files of rows, a task, and settings that train a step or two."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from muscle_hf import demo
from muscle_hf.demo.tasks import TASK_FILES


def rows_in(folder: Path, test: int = 40) -> Path:
    """Rows of the routing task, a file a split, with its task beside them."""
    folder.mkdir(parents=True)
    for split, count in (("train", 60), ("validation", 16), ("test", test)):
        found = demo.rows("routing", split, count=count)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    shutil.copy(TASK_FILES["routing"], folder / "routing.yaml")
    return folder


def entry(rows: Path, name: str, start: int = 0, **more: Any) -> dict[str, Any]:
    """A task of a fleet on some of the rows."""
    data = {"source": str(rows), "train": {"split": "train", "start": start, "limit": 12}}
    data["validation"] = {"split": "validation"}
    return {"name": name, "task": str(rows / "routing.yaml"), "data": data, **more}


def content(output: Path, *tasks: dict[str, Any], old: object = demo.base("v1"), **more: Any) -> dict[str, Any]:
    """The settings of a fleet."""
    training = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 4e-3, "eval_strategy": "no"}
    training |= {"trained_tokens": "completion", "use_cpu": True}
    defaults = {"lora": {"r": 4, "alpha": 8}, "attention": "eager", "eval_batch_size": 32, "training": training}
    defaults |= {"budget": {"max_nfr": 0.3}}
    update = {"old": str(old), "new": str(demo.base("v2"))}
    return {"update": update, "output_dir": str(output), "defaults": defaults, "tasks": list(tasks), **more}


def written(file: Path, settings: dict[str, Any]) -> Path:
    """Settings in a file."""
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    return file
