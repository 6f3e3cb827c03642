"""The demo: an update of the embedded world, what it breaks, and three ways to train v2's adapter on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from muscle_hf.compare import compare, source_of
from muscle_hf.compare.targets import probabilities_of, target_choices
from muscle_hf.demo import SETTINGS, TASKS, base, rows
from muscle_hf.demo.progress import Stages
from muscle_hf.demo.tasks import TASK_FILES
from muscle_hf.evaluation.predictions import Prediction, write_predictions
from muscle_hf.files import read_yaml, write_text
from muscle_hf.pipeline.config import RunSettings, SplitSettings
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.reading import build
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, PREDICTIONS, Result, load_result_predictions
from muscle_hf.report import html

# What the demo has beside the models of a run.
PAPER, BOTH = "paper", "both"
LABELS = {OLD: "v1", NEW: "v2", CONTROL: "plain training", PAPER: "paper", COMPAT: "recommended", BOTH: "both models"}

_OWN_HEAD = """\
# For `muscle-hf train --config`: put your own in place of the demo's bases (or `adapter`: the task adapters that you
# have), rows (a file per split) and task. `transfer` are rows whose labels are not looked at.
"""


@dataclass(frozen=True)
class Demo:
    """A demo that is done: its folder, what came out for all models, and its settings in a file to change."""

    folder: Path
    result: Result
    predictions: Mapping[str, Sequence[Prediction]]
    own: Path


def demo_settings(task_name: str, seed: int, folder: Path) -> RunSettings:
    """The settings of a demo run, in the form that ``muscle-hf train`` takes."""
    chosen, content = SETTINGS[task_name], read_yaml(Path(__file__).with_name("run.yaml"))
    content |= {"task": task_name, "old": {"base": str(base("v1"))}, "new": {"base": str(base("v2"))}}
    content["output_dir"] = str(folder)
    content["data"] = {
        "train": {"split": "train", "limit": chosen.train},
        "transfer": {"split": "train", "start": chosen.train, "limit": chosen.transfer},
    }
    content["training"] |= {
        "max_steps": chosen.steps,
        "per_device_train_batch_size": chosen.batch_size,
        "per_device_eval_batch_size": 4 * chosen.batch_size,
        "teacher_cache": str(folder / "cache"),
        "seed": seed,
    }
    content["task_training"] = {"max_steps": -1, "num_train_epochs": chosen.epochs}
    content["card"] |= {
        "title": f"Help-desk {task_name}, v1 to v2 of the embedded world",
        "task": f"the help desk's {task_name} task",
        "made_by": f"muscle-hf demo --task {task_name} --seed {seed}",
    }
    return build(RunSettings, content)


def paper_settings(settings: RunSettings) -> RunSettings:
    """The paper's objective, on the labelled rows alone, from the same two task adapters."""
    folder = Path(settings.output_dir)
    old, new = (dataclasses.replace(getattr(settings, name), adapter=str(folder / name)) for name in (OLD, NEW))
    training, place = {**settings.training, "preset": "paper"}, str(folder / PAPER)
    return dataclasses.replace(settings, old=old, new=new, output_dir=place, training=training, control=False)


def demo_splits(task_name: str, seed: int) -> Splits:
    """The items of a demo run."""
    chosen, task = SETTINGS[task_name], TASKS[task_name]
    parts = (("train", chosen.train + chosen.transfer), ("test", chosen.test))
    found = (rows(task_name, split, seed=seed, count=count) for split, count in parts)
    train, test = ([task.to_item(row, index) for index, row in enumerate(part)] for part in found)
    # Nothing is selected by the validation loss, so no time is spent on it.
    return Splits(train[: chosen.train], [], test, train[chosen.train :])


def write_own(task_name: str, seed: int, settings: RunSettings) -> Path:
    """The demo's rows, task and settings as files, to put one's own in their places; gives that of the settings."""
    folder, chosen = Path(settings.output_dir) / "own", SETTINGS[task_name]
    (folder / "rows").mkdir(parents=True, exist_ok=True)
    for split, count in (("train", chosen.train + chosen.transfer), ("validation", None), ("test", None)):
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows(task_name, split, seed=seed, count=count))
        write_text(folder / "rows" / f"{split}.jsonl", lines)
    write_text(folder / "task.yaml", TASK_FILES[task_name].read_text(encoding="utf-8"))
    here = folder.resolve()  # so that the file can be used from any folder
    data = dataclasses.replace(settings.data, source=str(here / "rows"), validation=SplitSettings("validation"))
    training = {**settings.training, "teacher_cache": str(here / "cache"), "eval_strategy": "no"}
    places = {"task": str(here / "task.yaml"), "output_dir": str(here / "run")}
    own = dataclasses.replace(settings, data=data, training=training, card={}, **places)
    write_text(folder / "update.yaml", _OWN_HEAD + yaml.safe_dump(_given(own.to_dict()), sort_keys=False))
    return folder / "update.yaml"


def _given(content: dict[str, Any]) -> dict[str, Any]:
    found = {key: _given(value) if isinstance(value, dict) else value for key, value in content.items()}
    return {key: value for key, value in found.items() if value not in (None, {})}


def both_at_inference(old: Sequence[Prediction], new: Sequence[Prediction]) -> list[Prediction]:
    """What the mean of both models' probabilities of the choices answers, which needs both models at inference."""
    of_old, of_new = (probabilities_of([row.log_likelihoods or [] for row in side]) for side in (old, new))
    chosen = target_choices(of_old, of_new, [0.5])["mean(0.5)"].tolist()
    # Of the mean no base and no adapter can be named.
    return [
        dataclasses.replace(row, prediction=choice, correct=choice == row.target, log_likelihoods=None, origin=None)
        for row, choice in zip(new, chosen, strict=True)
    ]


def run_demo(task_name: str, seed: int, output: str | Path, stages: Stages | None = None) -> Demo:
    """Train, evaluate and save on one task of the embedded world, in a folder per task and seed; writes the report."""
    folder = Path(output) / f"{task_name}-seed{seed}"
    task, splits, settings = TASKS[task_name], demo_splits(task_name, seed), demo_settings(task_name, seed, folder)
    quiet = dataclasses.replace(settings, training={**settings.training, "disable_tqdm": True})
    stages = stages or Stages()
    run = Run(quiet, task, splits, stages.next)
    run.callbacks = [stages]
    run.whole()
    answers = dict(load_result_predictions(folder))
    paper = Run(paper_settings(quiet), task, dataclasses.replace(splits, transfer=()), stages.next)
    paper.callbacks = [stages]
    answers[PAPER] = paper.answers(COMPAT)
    if task.kind == "choice":
        answers[BOTH] = both_at_inference(answers[OLD], answers[NEW])
    stages.next()
    answers = {name: answers[name] for name in LABELS if name in answers}
    for name in (PAPER, BOTH):
        if name in answers:
            write_predictions(folder / PREDICTIONS / f"{name}.jsonl", answers[name])
    sources = [source_of(found, LABELS[name]) for name, found in answers.items()]
    controls = [LABELS[name] for name in answers if name not in (OLD, NEW, COMPAT)]
    document = compare(*sources, labels=[LABELS[name] for name in answers], controls=controls)
    write_text(folder / "report.html", html.render(document))
    return Demo(folder, Result.of(answers), answers, write_own(task_name, seed, settings))
