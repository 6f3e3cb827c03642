"""One cell of the study: a task and an update, with one seed; every model of it is trained and asked once.

Models that cells share are trained once: v1, v2 and what is trained on with plain cross-entropy belong to a task, a
version and a seed, methods with teachers to an update too. The folders tell: `TASK/seedN/VERSION/...` and
`TASK/seedN/UPDATE/...` in the folder of the runs.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import yaml
from bases import study_base
from experiments import drawn_by_excess, tried
from untrained import UNTRAINED

from muscle_hf.demo import TASKS as DEMO_TASKS
from muscle_hf.demo import base as demo_base
from muscle_hf.demo import rows as demo_rows
from muscle_hf.evaluation import Item, Prediction, Task, load_items, load_task
from muscle_hf.evaluation.yaml_task import task_from_dict
from muscle_hf.pipeline.config import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    RunSettings,
    TransferSettings,
)
from muscle_hf.pipeline.data import Splits
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).with_name("plan.yaml")
TUNED = Path(__file__).with_name("tuned.yaml")


def load_plan() -> dict[str, Any]:
    """The plan; cells have their `methods`, the cell these are `tuned_on`, and in `chosen` what tuning gave there;
    methods have in `called` the readable name, which the first of its row has to itself."""
    plan = yaml.safe_load(PLAN.read_text(encoding="utf-8"))
    for name, row in plan["names"].items():
        for method in row["methods"]:
            if method in plan["methods"]:
                first = method == row["methods"][0]
                plan["methods"][method]["called"] = name if first else f"{name} (`{method}`)"
    tuned = yaml.safe_load(TUNED.read_text(encoding="utf-8")) if TUNED.is_file() else {}
    for cell in plan["cells"].values():
        cell["methods"] = [name for group in cell["groups"] for name in plan["groups"][group]]
        found = tuned.get(cell.setdefault("tuned_on", plan["tuning"]["cell"]), {})
        named = {name: found.get(method.get("settings_of", name)) for name, method in plan["methods"].items()}
        named |= {name: {} for name, method in plan["methods"].items() if method["kind"] in UNTRAINED}
        cell["chosen"] = {name: settings for name, settings in named.items() if settings is not None}
    return plan


def trial_name(trial: dict[str, float], between: str = "-") -> str:
    """What a trial is called: the folder of a method that is trained with its settings."""
    if not trial:
        return "untrained"
    return f"learning_rate={trial['learning_rate']:g}{between}epochs={trial['epochs']:g}"


def load_task_rows(rows: dict[str, Any], seed: int) -> tuple[Task, DataSettings, Splits]:
    """A task of the plan with its rows; those of the embedded world are of the seed."""
    if rows["source"] == "demo":
        tasks, drawn = DEMO_TASKS, partial(demo_rows, rows["task"], seed=seed)
        if rows.get("draw") == "second":
            from urgency import TASKS as tasks
            from urgency import drawn_rows

            drawn = partial(drawn_rows, seed=seed)
        task = tasks[rows["task"]]
        train = drawn(split="train", count=rows["train"] + rows["transfer"])
        parts = {
            "train": train[: rows["train"]],
            "transfer": train[rows["train"] :],
            "validation": drawn(split="validation", count=rows["validation"]),
            "test": drawn(split="test", count=rows["test"]),
        }
        items = {
            part: [dataclasses.replace(task.to_item(row, i), id=f"{part}-{i}") for i, row in enumerate(found)]
            for part, found in parts.items()
        }
        data = DataSettings(transfer=TransferSettings("train", answers="both"), end_answers=True)
        return task, data, Splits(**items)
    described = rows["task"]
    task = load_task(described) if isinstance(described, str) else task_from_dict(described)
    splits = {name: rows[name]["split"] for name in ("train", "validation", "test", "transfer")}
    shortest, longest, read = rows.get("shortest", 0), rows.get("longest", math.inf), {}
    for split in set(splits.values()):
        items = load_items(task, str(ROOT / rows["source"]), split)
        read[split] = [i for i in items if shortest <= len(i.prompt) + max(map(len, i.choices)) <= longest]

    def part(name: str) -> list[Item]:
        start = rows[name]["start"]
        return read[splits[name]][start : start + rows[name]["limit"]]

    # These bases have never seen their EOS.
    data = DataSettings(transfer=TransferSettings(splits["transfer"], answers="both"), end_answers=False)
    return task, data, Splits(**{name: part(name) for name in splits})


@dataclass
class Cell:
    """One update, task and seed of the plan.

    Args:
        name: Of the cell.
        seed: Of everything: task adapters, order, fresh weights, rows of the embedded world.
        plan: Of :func:`load_plan`.
        runs: Folder of all runs.
    """

    name: str
    seed: int
    plan: dict[str, Any]
    runs: Path

    def __post_init__(self) -> None:
        cell = self.plan["cells"][self.name]
        self.update, self.task_name = cell["update"], cell["task"]
        self.versions: dict[str, str] = self.plan["updates"][self.update]
        self.chosen: dict[str, dict[str, float]] = cell["chosen"]
        self.folder = self.runs / self.task_name / f"seed{self.seed}"
        self._models: dict[str, ModelSettings] = {}

    # ---- Where things are; nothing is loaded ----

    def version_folder(self, side: str) -> Path:
        """Of a task adapter: ``old`` or ``new``."""
        return self.folder / self.versions[side] / NEW

    def method_folder(self, name: str, trial: dict[str, float] | None = None) -> Path:
        """Of a method's adapter."""
        method = self.plan["methods"][name]
        plain = method["kind"] == "ce"
        owner = self.update if self._knows_old(name) else self.versions["new"]
        settings = trial_name(trial or self.chosen[name])
        if "from" in method:
            settings += f"-after-{trial_name(self.chosen[method['from']])}"
        return self.folder / owner / name / settings / (CONTROL if plain else COMPAT)

    def _knows_old(self, name: str) -> bool:
        """Whether v1 has a part in a method, by itself or in what it goes on from."""
        method = self.plan["methods"][name]
        before = method.get("from")
        return method["kind"] != "ce" or "start_from" in method or (before is not None and self._knows_old(before))

    @property
    def both_folder(self) -> Path:
        """Of what v1 and v2 answer together; there is no adapter in it."""
        return self.folder / self.update / "both"

    @staticmethod
    def answers_file(adapter: Path, part: str) -> Path:
        """The predictions of an adapter on a part of the rows."""
        return adapter.parent / f"{adapter.name}-{part}" / "predictions" / f"{NEW}.jsonl"

    # ---- Doing them ----

    @cached_property
    def rows(self) -> tuple[Task, DataSettings, Splits]:
        """The task, where its rows are, and the rows."""
        return load_task_rows(self.plan["tasks"][self.task_name], self.seed)

    def _transfer(self, method: dict[str, Any]) -> Sequence[Item]:
        """The prompts without labels of a method: so many as it says, else as the cell says, else all."""
        return self.rows[2].transfer[: method.get("transfer", self.plan["cells"][self.name].get("transfer"))]

    def base(self, side: str) -> str:
        """The base model of a side; one of the study's own is trained if it is missing."""
        base = self.plan["versions"][self.versions[side]]["base"]
        if base.startswith("demo:"):
            return str(demo_base(base.removeprefix("demo:")))
        if base.startswith("made:"):
            name = base.removeprefix("made:")
            return os.path.relpath(study_base(name, self.plan, self.runs, ROOT, self.seed))
        return os.path.relpath(ROOT / base)

    @property
    def same_tokens(self) -> bool:
        """Whether both bases have one tokenizer."""
        files = [Path(self.base(side), "tokenizer.json").read_bytes() for side in ("old", "new")]
        return files[0] == files[1]

    def _run(
        self,
        folder: Path,
        old: ModelSettings,
        new: ModelSettings,
        splits: Splits,
        target: str | None = None,
        dropout: float | None = None,
        **training: Any,
    ) -> Run:
        task, data, _ = self.rows
        data = dataclasses.replace(data, transfer=dataclasses.replace(data.transfer, target=target))
        settings = RunSettings(
            old=old,
            new=new,
            output_dir=str(folder),
            task=task.name,
            data=data,
            lora=LoraSettings(**self.plan["lora"]),
            training={**self.plan["training"], "seed": self.seed, **training},
            student_dropout=dropout,
            eval_batch_size=256,
            attention=self.plan["attention"],
        )
        return Run(settings, task, splits)

    def _labelled(self, count: int | None = None) -> Splits:
        splits = self.rows[2]
        return dataclasses.replace(splits, train=splits.train[:count], transfer=())

    def version(self, side: str) -> ModelSettings:
        """v1 (``old``) or v2 (``new``) with its task adapter, which is trained if it is missing."""
        if side in self._models:
            return self._models[side]
        adapter, base = self.version_folder(side), ModelSettings(self.base(side))
        rows = self._labelled(self.plan["versions"][self.versions[side]].get("labelled"))
        run = self._run(adapter.parent, base, base, rows, **_arguments(self.plan["task_training"]))
        run.adapter(NEW)
        self._models[side] = dataclasses.replace(base, adapter=str(adapter))
        return self._models[side]

    def method(self, name: str, trial: dict[str, float] | None = None) -> ModelSettings:
        """v2 with the adapter of a method, which is trained if it is missing.

        Args:
            name: Of the method.
            trial: Learning rate and epochs; those that tuning chose by default.
        """
        method, splits = self.plan["methods"][name], self.rows[2]
        adapter, old, new = self.method_folder(name, trial), self.version("old"), self.version("new")
        if method["kind"] in UNTRAINED:
            if not adapter.is_dir():
                UNTRAINED[method["kind"]](self, adapter)
            return dataclasses.replace(new, adapter=str(adapter))
        arguments = _arguments(trial or self.chosen[name])
        start = self.method(method["from"]) if "from" in method else new
        transfer = self._transfer(method)
        if "start_from" in method:
            arguments["start_from"] = method["start_from"]
        if method.get("steps") == "transfer":
            arguments["num_train_epochs"] *= method.get("share", 1) * (1 + len(transfer) / len(splits.train))
        rows = self._labelled()
        if method["rows"] == "transfer":
            drawn = drawn_by_excess(self, transfer) if method.get("weights") == "excess" else transfer
            rows = dataclasses.replace(splits, transfer=drawn)
        elif method["rows"] == "pseudo":
            rows = dataclasses.replace(rows, train=[*splits.train, *self._pseudo_labelled(new, transfer)])
        elif method["rows"] == "pseudo_old":
            right = [row.correct for row in self.answers(old, "train")]
            known = [item for item, is_right in zip(splits.train, right, strict=True) if is_right]
            rows = dataclasses.replace(rows, train=[*known, *self._pseudo_labelled(old, transfer)])
        if method["kind"] == "ce":
            other = old if "start_from" in method else start
            run = self._run(adapter.parent, other, start, rows, dropout=method.get("dropout"), **arguments)
        else:
            arguments |= {"teacher_cache": str(self.folder / "cache"), **method.get("training", {})}
            run = self._run(adapter.parent, old, start, rows, method.get("target"), method.get("dropout"), **arguments)
        if "answers" in method:
            run.settings.data.transfer = dataclasses.replace(run.settings.data.transfer, answers=method["answers"])
        with tried(method.get("experiment")):
            run.adapter(adapter.name)
        return dataclasses.replace(new, adapter=str(adapter))

    def answers(self, model: ModelSettings, part: str, items: Sequence[Item] | None = None) -> list[Prediction]:
        """A model's answers to the rows of a part, or to those of it that are given, asked once."""
        # Nothing is trained: one row spares tokenizing the others.
        splits = dataclasses.replace(self._labelled(1), test=getattr(self.rows[2], part) if items is None else items)
        folder = self.answers_file(Path(model.adapter), part).parents[1]
        return self._run(folder, model, model, splits).answers(NEW)

    def _pseudo_labelled(self, model: ModelSettings, items: Sequence[Item]) -> Sequence[Item]:
        """Prompts with a model's answers in place of the right ones."""
        answers = {prediction.id: prediction.prediction for prediction in self.answers(model, "transfer", items)}
        if items[0].choices:
            return [dataclasses.replace(item, answers=(answers[item.id],)) for item in items]
        return [dataclasses.replace(item, references=(f" {answers[item.id].strip()}",)) for item in items]


def _arguments(trial: dict[str, float]) -> dict[str, float]:
    return {"learning_rate": trial["learning_rate"], "num_train_epochs": trial["epochs"]}
