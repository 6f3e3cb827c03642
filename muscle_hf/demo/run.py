"""The demo: an update of the embedded world, what it breaks, and three ways to train v2's adapter on."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from muscle_hf.compare import compare, source_of
from muscle_hf.compare.targets import probabilities_of, target_choices
from muscle_hf.demo import SETTINGS, TASKS, base, rows
from muscle_hf.demo.progress import Line, Stages
from muscle_hf.demo.tasks import TASK_FILES
from muscle_hf.evaluation.predictions import Prediction, write_predictions
from muscle_hf.files import alone, read_yaml, write_text
from muscle_hf.pipeline.config import RunSettings, SplitSettings
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.reading import build
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import hush
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD, PREDICTIONS, Result, load_result_predictions
from muscle_hf.report import html

# What the demo has beside the models of a run.
PAPER, BOTH = "paper", "both"
REPORT = "report.html"
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


def stages(task: str) -> tuple[list[tuple[str, int]], list[tuple[str, int]]]:
    """What each of a demo's two processes does, in order, with the time it takes in training steps."""
    chosen = SETTINGS[task]
    task_adapter = chosen.epochs * -(-chosen.train // chosen.batch_size)
    answers = chosen.test // (70 if TASKS[task].kind == "choice" else 5)
    asked = [(f"{chosen.test} test items: {name}", answers) for name in ("v1", "v2", "recommended", "control")]
    recommended = ("the recommended adapter", chosen.steps + 80)
    paper = [("the paper's objective", chosen.steps + 15), (f"{chosen.test} test items: the paper's", answers)]
    return (
        [("a task adapter on v1", task_adapter), recommended, *asked],
        [("a task adapter on v2", task_adapter), ("the control", chosen.steps), *paper],
    )


def run_demo(task_name: str, seed: int, output: str | Path, line: Line | None = None) -> Demo:
    """Train, evaluate and save on one task of the embedded world, in a folder per task and seed; writes the report.

    A second process trains beside this one, with as many threads.
    """
    folder = Path(output) / f"{task_name}-seed{seed}"
    folder.mkdir(parents=True, exist_ok=True)
    with alone(folder / REPORT):
        settings = demo_settings(task_name, seed, folder)
        answers = _answers(settings, demo_splits(task_name, seed), line or Line())
        if TASKS[task_name].kind == "choice":
            answers[BOTH] = both_at_inference(answers[OLD], answers[NEW])
        answers = {name: answers[name] for name in LABELS if name in answers}
        for name in (PAPER, BOTH):
            if name in answers:
                write_predictions(folder / PREDICTIONS / f"{name}.jsonl", answers[name])
        sources = [source_of(found, LABELS[name]) for name, found in answers.items()]
        controls = [LABELS[name] for name in answers if name not in (OLD, NEW, COMPAT)]
        document = compare(*sources, labels=[LABELS[name] for name in answers], controls=controls)
        write_text(folder / REPORT, html.render(document))
        return Demo(folder, Result.of(answers), answers, write_own(task_name, seed, settings))


def _answers(settings: RunSettings, splits: Splits, line: Line) -> dict[str, Sequence[Prediction]]:
    here, beside = stages(str(settings.task))
    stage = Stages(here, line.move)
    run, paper_splits = _run(settings, splits, stage), dataclasses.replace(splits, transfer=())
    with _second_process(beside, line.move) as second:
        new = second.submit(_beside, settings, splits, NEW)
        stage.next()
        run.adapter(OLD)
        control = second.submit(_beside, settings, splits, CONTROL)
        paper = second.submit(_beside, paper_settings(settings), paper_splits, COMPAT)
        new.result()
        stage.next()
        run.adapter(COMPAT)
        for name in (OLD, NEW, COMPAT, CONTROL):
            if name == CONTROL:
                control.result()
            stage.next()
            run.answers(name)
        of_paper = paper.result()
    run.whole()
    return {**load_result_predictions(run.folder), PAPER: of_paper}


def _run(settings: RunSettings, splits: Splits, stage: Stages) -> Run:
    quiet = dataclasses.replace(settings, training={**settings.training, "disable_tqdm": True})
    run = Run(quiet, TASKS[str(settings.task)], splits, say=lambda text: None)
    run.callbacks = [stage]
    return run


# ---- The second process ----


@contextlib.contextmanager
def _second_process(beside: Sequence[tuple[str, int]], move: Callable[..., None]) -> Iterator[Executor]:
    """Where :func:`_beside` runs, whose stages move the line of this process."""
    spawn, others = multiprocessing.get_context("spawn"), set(multiprocessing.active_children())
    moves = spawn.SimpleQueue()
    mover = threading.Thread(target=lambda: [move(*moved) for moved in iter(moves.get, None)], daemon=True)
    mover.start()
    with ProcessPoolExecutor(1, spawn, _begin, (beside, moves.put, torch.get_num_threads())) as second:
        try:
            yield second
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # else it would be waited for
            raise
    moves.put(None)
    mover.join()


def _begin(beside: Sequence[tuple[str, int]], tell: Callable[[tuple[int, str | None]], None], threads: int) -> None:
    global _stage
    hush()
    torch.set_num_threads(threads)
    _stage = Stages(beside, lambda *moved: tell(moved))


_stage: Stages


def _beside(settings: RunSettings, splits: Splits, name: str) -> list[Prediction]:
    """Train an adapter of a run; gives the answers of a compatibility adapter to the test items."""
    run = _run(settings, splits, _stage)
    _stage.next()
    run.adapter(name)
    if name != COMPAT:
        return []
    _stage.next()
    return run.answers(name)
