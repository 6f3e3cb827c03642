"""The demo: a whole run of the pipeline on the embedded world."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from muscle_hf.demo import SETTINGS, TASKS, base, rows
from muscle_hf.evaluation.tasks import Item
from muscle_hf.pipeline.config import LoraSettings, ModelSettings, RunSettings
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.run import run_task
from muscle_hf.pipeline.table import Result

_CARD_TASKS = {
    "routing": "routing of help-desk tickets",
    "refund": "refunds computed in steps",
    "summary": "one-line summaries of help-desk tickets",
}


def demo_settings(task_name: str, seed: int, folder: Path) -> RunSettings:
    """The settings of a demo run, in the form that ``muscle-hf train`` takes."""
    chosen = SETTINGS[task_name]
    training = {
        "num_train_epochs": chosen.epochs,
        "learning_rate": chosen.learning_rate,
        "per_device_train_batch_size": chosen.batch_size,
        "per_device_eval_batch_size": 4 * chosen.batch_size,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 10,
        "seed": seed,
    }
    return RunSettings(
        task=task_name,
        old=ModelSettings(str(base("v1"))),
        new=ModelSettings(str(base("v2"))),
        output_dir=str(folder),
        lora=LoraSettings(r=chosen.lora_rank, alpha=chosen.lora_alpha),
        training=training,
        card={
            "title": f"Help-desk {task_name}, v1 to v2 of the embedded world",
            "task": _CARD_TASKS[task_name],
            "language": ["en"],
            "license_old": "apache-2.0",
            "license_new": "apache-2.0",
            "base_note": 'It travels with muscle-hf: muscle_hf.demo.base("v2") is its folder.',
            "made_by": f"muscle-hf demo --task {task_name} --seed {seed}",
        },
    )


def demo_splits(task_name: str, seed: int) -> Splits:
    """The items of a demo run."""

    def items(split: str) -> list[Item]:
        return [TASKS[task_name].to_item(row, index) for index, row in enumerate(rows(task_name, split, seed=seed))]

    # Nothing is selected by the validation loss, so no time is spent on it.
    return Splits(items("train"), [], items("test"))


def run_demo(
    task_name: str, seed: int, output: str | Path, say: Callable[[str], None] = print
) -> tuple[Path, Result, float]:
    """Train, evaluate and save on one task of the embedded world.

    Args:
        task_name: ``routing``, ``refund`` or ``summary``.
        seed: Of the rows, their order and the adapters' initialisation.
        output: Gets a folder per task and seed.
        say: Told the steps.

    Returns:
        The run's folder, its figures, and the seconds it took.
    """
    start = time.perf_counter()
    folder = Path(output) / f"{task_name}-seed{seed}"
    splits = demo_splits(task_name, seed)
    result = run_task(demo_settings(task_name, seed, folder), TASKS[task_name], splits, say)
    return folder, result, time.perf_counter() - start
