"""A run from settings to a table: every step that is missing is done, and a step that is done is not repeated."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers.utils import logging

from muscle_hf.checkpoints import staged
from muscle_hf.config import MuscleConfig
from muscle_hf.errors import MuscleError
from muscle_hf.evaluation.predictions import Prediction, read_predictions, write_predictions
from muscle_hf.evaluation.registry import load_items, load_task
from muscle_hf.evaluation.tasks import Item, Task
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.card import card_words, complete_run_card
from muscle_hf.pipeline.config import DataSettings, ModelSettings, RunSettings, SplitSettings
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, Result

logger = logging.get_logger(__name__)

DONE_FILE = "muscle_step.json"
RESULT_FILE = "result.json"


@dataclass(frozen=True)
class Splits:
    """The items of a run."""

    train: list[Item]
    validation: list[Item]
    test: list[Item]


def load_splits(task: Task, data: DataSettings) -> Splits:
    """The items that the settings choose; what is held out for validation are evenly spaced training rows.

    Raises:
        MuscleError: There are no such rows, or test rows would be trained on.
    """

    def items(split: SplitSettings) -> list[Item]:
        return load_items(task, data.source, split.split, start=split.start, limit=split.limit)

    train, test = items(data.train), items(data.test)
    shared = {item.id for item in train} & {item.id for item in test} if data.train.split == data.test.split else ()
    if shared:
        raise MuscleError(
            f"{len(shared)} test rows are training rows: data.train and data.test take the same rows of "
            f"{data.test.split!r}; set their start and limit apart"
        )
    if data.validation is not None:
        return Splits(train, items(data.validation), test)
    every = max(2, round(1 / data.validation_share))
    held_out = train[every - 1 :: every]
    kept = [item for index, item in enumerate(train) if index % every != every - 1]
    return Splits(kept, held_out, test)


def run(settings: RunSettings, say: Callable[[str], None] = print) -> Result:
    """Do a whole run.

    Args:
        settings: What to do.
        say: Told the steps, on the main process.

    Returns:
        The figures, also written to ``result.json`` in the output folder, beside ``old``, ``new``, ``control`` and
        ``muscle`` (the adapters that were trained) and ``predictions``.

    Raises:
        MuscleError: The settings do not fit together; before anything is trained.
    """
    task = load_task(settings.task)
    return run_task(settings, task, load_splits(task, settings.data), say)


def run_task(settings: RunSettings, task: Task, splits: Splits, say: Callable[[str], None] = print) -> Result:
    """:func:`run` on items that are loaded already."""
    if task.kind == "classification":
        raise MuscleError(
            f"the task {task.name!r} is for a classification head; this command trains causal LMs (use MuscleTrainer "
            "in a script of your own, docs/trainer.md)"
        )
    process = PartialState()
    tell = say if process.is_main_process else lambda text: None
    folder = Path(settings.output_dir)
    data = steps.TrainingData.of(
        steps.load_tokenizer(settings.new),
        splits.train,
        splits.validation,
        # Plain trainers do not know the setting, and must train on the same tokens.
        answers_only=settings.training.get("trained_tokens") == "completion",
        end_answers=settings.data.end_answers,
    )
    training = {"report_to": "none", "logging_strategy": "epoch", "disable_tqdm": False, **settings.training}
    training = {"save_strategy": "no", "eval_strategy": "epoch" if data.validation else "no", **training}
    identity = hashlib.sha256(repr((data.train, data.validation)).encode()).hexdigest()

    def done(name: str, what: str, ingredients: Any, work: Callable[[], Path]) -> Path:
        steps.free_memory()
        target = folder / name
        key = _fingerprint(identity, ingredients, settings.lora, settings.dtype)
        if _is_done(target, key):
            tell(f"{what}: done before, in {target}")
            return target
        tell(what)
        work()
        process.wait_for_everyone()
        if process.is_main_process:
            (target / DONE_FILE).write_text(json.dumps({"key": key}) + "\n")
        process.wait_for_everyone()
        return target

    def with_adapter(side: ModelSettings, name: str, version: str) -> ModelSettings:
        if side.adapter:
            return side
        task_training = steps.unpublished({**training, **settings.task_training})
        trained = done(
            name,
            f"Task adapter on {version}",
            (side, task_training),
            lambda: steps.train_task_adapter(
                side, data, settings.lora, task_training, folder / name, name=version, dtype=settings.dtype
            ),
        )
        return dataclasses.replace(side, adapter=str(trained))

    old = with_adapter(settings.old, OLD, "v1")
    new = with_adapter(settings.new, NEW, "v2")
    adapters = {OLD: old.adapter, NEW: new.adapter}
    if settings.control:
        adapters[CONTROL] = done(
            CONTROL,
            "Control: v2's adapter, trained on with plain cross-entropy",
            (new, steps.unpublished(training)),
            lambda: steps.train_control(new, data, training, folder / CONTROL, name="control", dtype=settings.dtype),
        )
    adapters[COMPAT] = done(
        COMPAT,
        "Compatibility adapter",
        (old, new, steps.unpublished(training, MuscleConfig)),
        lambda: steps.train_compatibility(
            old, new, data, training, folder / COMPAT, name="MUSCLE", dtype=settings.dtype
        ),
    )
    tell(f"Evaluation on {len(splits.test)} test items")
    predictions: dict[str, list[Prediction]] = {}
    for name, adapter in adapters.items():
        steps.free_memory()
        side = old if name == OLD else new
        predictions[name] = steps.answer(
            side, adapter, task, splits.test, dtype=settings.dtype, batch_size=settings.eval_batch_size
        )
    result = Result.of(predictions)
    if process.is_main_process:
        _write(folder, settings, predictions, result)
        complete_run_card(folder / COMPAT, card_words(settings, task), predictions)
        steps.publish_compatibility(folder / COMPAT, training)
    return result


def load_result_predictions(folder: Path) -> Mapping[str, list[Prediction]]:
    """The predictions of a finished run, by model."""
    return {file.stem: read_predictions(file) for file in sorted((folder / "predictions").glob("*.jsonl"))}


def _write(folder: Path, settings: RunSettings, predictions: Mapping[str, list[Prediction]], result: Result) -> None:
    with staged(folder) as stage:
        for name, answers in predictions.items():
            (stage / "predictions").mkdir(exist_ok=True)
            write_predictions(stage / "predictions" / f"{name}.jsonl", answers)
        content = {"settings": settings.to_dict(), "result": result.to_dict()}
        (stage / RESULT_FILE).write_text(json.dumps(content, indent=2) + "\n")


def _fingerprint(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _is_done(folder: Path, key: str) -> bool:
    file = folder / DONE_FILE
    if not file.is_file():
        return False
    if json.loads(file.read_text()).get("key") != key:
        logger.warning(f"{folder} was trained with other settings or data; it is trained again.")
        return False
    return True
