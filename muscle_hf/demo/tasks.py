"""The three tasks of the embedded world, one of each kind of the paper: their rows, prompts and settings.

Epochs and learning rate of the task adapters are the study's: they fit their training rows almost entirely.
What is trained on from them has as many steps as fit a demo.
"""

from __future__ import annotations

import json
import lzma
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.tasks import Task
from muscle_hf.evaluation.yaml_task import read_task


@dataclass(frozen=True)
class TaskSettings:
    """Settings of one task.

    Args:
        train: Rows that the adapters are trained on.
        transfer: The rows after these, whose labels are not looked at.
        validation: Rows to choose settings by.
        test: Rows of the final table.
        epochs: Passes over the training rows, for a task adapter.
        steps: Of what is trained on from v2's task adapter, the control and each objective.
        batch_size: Rows per step.
    """

    train: int
    transfer: int
    validation: int
    test: int
    epochs: int = 10
    steps: int = 250
    batch_size: int = 32


SETTINGS: dict[str, TaskSettings] = {
    "routing": TaskSettings(train=400, transfer=1200, validation=600, test=1200),
    "refund": TaskSettings(train=600, transfer=600, validation=200, test=400),
    "summary": TaskSettings(train=600, transfer=900, validation=200, test=300),
}
_DATA = Path(__file__).parent / "data"
_KINDS = {"routing": "tickets", "refund": "returns", "summary": "tickets"}


def rows(task_name: str, split: str, *, seed: int = 0, count: int | None = None) -> list[dict[str, Any]]:
    """Rows of a split: the same arguments always give the same rows.

    A smaller ``count`` gives the first rows of a larger one. Splits share no text, whatever their seeds. The rows are
    those that ``examples/embedded_world/rows.py`` generates.

    Args:
        task_name: A key of :data:`TASKS`.
        split: ``train``, ``validation`` or ``test``.
        seed: Which rows: 0 to 9.
        count: How many; the task's :data:`SETTINGS` by default.

    Returns:
        One dictionary a row: ``text``, what the answer is made of, and columns for slices (``product``, ``line``,
        and for tickets ``issue``, ``wording``, ``tone``, ``ambiguous``, ``settled``).

    Raises:
        KeyError: An unknown task or split.
        MuscleError: A seed or more rows than the package carries.
    """
    wanted: int = getattr(SETTINGS[task_name], split) if count is None else count
    found = _carried(_KINDS[task_name], seed)[split]
    if not 0 <= wanted <= len(found):
        raise MuscleError(f"there are {len(found)} rows of {task_name}, {split}, a seed; {wanted} were asked for")
    return [dict(row) for row in found[:wanted]]


@cache
def _carried(kind: str, seed: int) -> dict[str, list[dict[str, Any]]]:
    file = _DATA / f"{kind}-{seed}.jsonl.xz"
    if not file.is_file():
        raise MuscleError(
            f"the package carries the rows of the seeds 0 to 9, not of {seed}; in a clone, "
            f"`python examples/embedded_world/rows.py --output {_DATA} --seeds {seed}` adds them"
        )
    found: dict[str, list[dict[str, Any]]] = {split: [] for split in ("train", "validation", "test")}
    with lzma.open(file, "rt", encoding="utf-8") as lines:
        for row in map(json.loads, lines):
            found[row.pop("split")].append(row)
    return found


TASK_FILES = {name: Path(__file__).parent / "task_files" / f"{name}.yaml" for name in SETTINGS}
TASKS: dict[str, Task] = {name: read_task(file) for name, file in TASK_FILES.items()}
"""The demo's tasks by name."""
