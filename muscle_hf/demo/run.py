"""The demo: an update of the embedded world, what it breaks, and three ways to train v2's adapter on."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from muscle_hf.compare import compare, source_of
from muscle_hf.compare.targets import probabilities_of, target_choices
from muscle_hf.demo import SETTINGS, TASKS, base, rows
from muscle_hf.demo.progress import Progress
from muscle_hf.demo.tasks import TASK_FILES, TASK_SPLITS
from muscle_hf.evaluation.predictions import Prediction, write_predictions
from muscle_hf.evaluation.tasks import Item
from muscle_hf.files import write_text
from muscle_hf.pipeline.config import DataSettings, LoraSettings, ModelSettings, RunSettings, TransferSettings
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.run import PREDICTIONS, Run, load_result_predictions
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, Result
from muscle_hf.report import html

# What the demo has beside the models of a run.
PAPER, BOTH = "paper", "both"
LABELS = {OLD: "v1", NEW: "v2", COMPAT: "recommended", PAPER: "paper", CONTROL: "plain training", BOTH: "both"}
REPORT_FILE = "report.html"
# The study chose it for each of the three by itself, on validation rows of another task: benchmarks/study/tuned.yaml.
LEARNING_RATE = 4e-3

_OWN_HEAD = """\
# An update for `muscle-hf train --config`, with what the demo has; put your own in its place: the bases (and as
# `adapter` the task adapters that you have), the rows (a file per split) and the task. `transfer` are rows whose
# labels are not looked at.
"""
_CARD_TASKS = {
    "routing": "routing of help-desk tickets",
    "refund": "refunds computed in steps",
    "summary": "one-line summaries of help-desk tickets",
}


@dataclass(frozen=True)
class Demo:
    """A demo that is done.

    Args:
        folder: Of the run: adapters, predictions, report.
        result: The figures of all models.
        predictions: Their answers to the test items.
        own: The demo's settings in a file, for ``muscle-hf train``.
        seconds: It took so long; what was done before took none.
    """

    folder: Path
    result: Result
    predictions: Mapping[str, Sequence[Prediction]]
    own: Path
    seconds: float


def demo_settings(task_name: str, seed: int, folder: Path) -> RunSettings:
    """The settings of a demo run, in the form that ``muscle-hf train`` takes."""
    chosen = SETTINGS[task_name]
    training = {
        "preset": "consensus",
        "max_steps": chosen.steps,
        "learning_rate": LEARNING_RATE,
        "trained_tokens": "completion",
        "per_device_train_batch_size": chosen.batch_size,
        "per_device_eval_batch_size": 4 * chosen.batch_size,
        "train_sampling_strategy": "group_by_length",
        "lr_scheduler_type": "cosine",
        "warmup_steps": 20,
        "teacher_cache": str(folder / "cache"),
        "seed": seed,
    }
    return RunSettings(
        task=task_name,
        old=ModelSettings(str(base("v1"))),
        new=ModelSettings(str(base("v2"))),
        output_dir=str(folder),
        data=DataSettings(transfer=TransferSettings("train", start=chosen.train, limit=chosen.transfer)),
        lora=LoraSettings(r=chosen.lora_rank, alpha=chosen.lora_alpha),
        training=training,
        task_training={
            "max_steps": -1,
            "num_train_epochs": chosen.epochs,
            "learning_rate": chosen.learning_rate,
        },
        eval_batch_size=256,
        # Heads this small are fastest the plain way.
        attention="eager",
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


def paper_settings(settings: RunSettings) -> RunSettings:
    """The paper's objective, on the labelled rows alone, from the same two task adapters."""
    folder = Path(settings.output_dir)
    sides = {
        name: dataclasses.replace(side, adapter=str(folder / name))
        for name, side in ((OLD, settings.old), (NEW, settings.new))
    }
    training = {**settings.training, "preset": "paper"}
    return dataclasses.replace(settings, **sides, output_dir=str(folder / PAPER), training=training, control=False)


def demo_splits(task_name: str, seed: int) -> Splits:
    """The items of a demo run."""
    chosen, task = SETTINGS[task_name], TASKS[task_name]

    def items(split: str, count: int) -> list[Item]:
        return [task.to_item(row, i) for i, row in enumerate(rows(task_name, split, seed=seed, count=count))]

    train = items("train", chosen.train + chosen.transfer)
    # Nothing is selected by the validation loss, so no time is spent on it.
    return Splits(train[: chosen.train], [], items("test", chosen.test), train[chosen.train :])


def write_own(task_name: str, seed: int, settings: RunSettings) -> Path:
    """The demo's rows, task and settings as files beside its results, to put one's own in their places.

    Returns:
        The file for ``muscle-hf train``.
    """
    folder = Path(settings.output_dir) / "own"
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    chosen = SETTINGS[task_name]
    for split in TASK_SPLITS:
        count = chosen.train + chosen.transfer if split == "train" else None
        found = rows(task_name, split, seed=seed, count=count)
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in found)
        write_text(folder / "rows" / f"{split}.jsonl", lines)
    write_text(folder / "task.yaml", yaml.safe_dump(TASK_FILES[task_name], sort_keys=False))
    training = {**settings.training, "teacher_cache": str(folder / "cache"), "eval_strategy": "no"}
    shown = dataclasses.replace(settings, training=training).to_dict()
    kept = ("training", "task_training", "eval_batch_size", "attention")
    content = {
        "old": {"base": settings.old.base},
        "new": {"base": settings.new.base},
        "output_dir": str(folder / "run"),
        "task": str(folder / "task.yaml"),
        "data": {
            "source": str(folder / "rows"),
            "train": {"split": "train", "limit": chosen.train},
            "transfer": {"split": "train", "start": chosen.train, "limit": chosen.transfer},
            "validation": {"split": "validation"},
        },
        "lora": {"r": chosen.lora_rank, "alpha": chosen.lora_alpha},
        **{name: shown[name] for name in kept},
    }
    write_text(folder / "update.yaml", _OWN_HEAD + yaml.safe_dump(content, sort_keys=False))
    return folder / "update.yaml"


def both_at_inference(old: Sequence[Prediction], new: Sequence[Prediction]) -> list[Prediction]:
    """What the mean of both models' probabilities of the choices answers, which needs both models at inference."""
    of_old, of_new = (probabilities_of([row.log_likelihoods or [] for row in side]) for side in (old, new))
    chosen = target_choices(of_old, of_new, [0.5])["mean(0.5)"].tolist()
    # Of the mean no base and no adapter can be named.
    return [
        dataclasses.replace(row, prediction=choice, correct=choice == row.target, log_likelihoods=None, origin=None)
        for row, choice in zip(new, chosen, strict=True)
    ]


def run_demo(task_name: str, seed: int, output: str | Path, progress: Progress | None = None) -> Demo:
    """Train, evaluate and save on one task of the embedded world; writes the report.

    Args:
        task_name: ``routing``, ``refund`` or ``summary``.
        seed: Of the rows, their order and the adapters' initialisation.
        output: Gets a folder per task and seed.
        progress: Told the steps.
    """
    start = time.perf_counter()
    folder = Path(output) / f"{task_name}-seed{seed}"
    task, splits, settings = TASKS[task_name], demo_splits(task_name, seed), demo_settings(task_name, seed, folder)
    quiet = dataclasses.replace(settings, training={**settings.training, "disable_tqdm": True})
    progress = progress or Progress()
    told = {"say": progress.next, "callbacks": [progress]}
    Run(quiet, task, splits, **told).whole()
    answers = dict(load_result_predictions(folder))
    labelled = dataclasses.replace(splits, transfer=())
    answers[PAPER] = Run(paper_settings(quiet), task, labelled, **told).answers(COMPAT)
    if task.kind == "choice":
        answers[BOTH] = both_at_inference(answers[OLD], answers[NEW])
    progress.next()
    for name in (PAPER, BOTH):
        if name in answers:
            write_predictions(folder / PREDICTIONS / f"{name}.jsonl", answers[name])
    ordered = [name for name in LABELS if name in answers]
    sources = [source_of(answers[name], LABELS[name]) for name in ordered]
    own = write_own(task_name, seed, settings)
    controls = [LABELS[name] for name in (PAPER, CONTROL, BOTH) if name in answers]
    document = compare(*sources, labels=[LABELS[name] for name in ordered], controls=controls)
    write_text(folder / REPORT_FILE, html.render(document))
    shown = {name: answers[name] for name in (OLD, NEW, CONTROL, PAPER, COMPAT, BOTH) if name in answers}
    return Demo(folder, Result.of(shown), shown, own, time.perf_counter() - start)
