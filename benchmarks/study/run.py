"""Train and evaluate every method of the study; what is done is not repeated.

    python benchmarks/study/run.py [--runs runs/study] [--cells level-trec ...] [--seeds 0 1 ...] [--methods ce ...]

The plan is benchmarks/study/plan.yaml. Each cell and seed has a folder: `old` and `new` (the task adapters) with their
predictions, and a folder for each method with its adapter, provenance and predictions. `report.py` reads them.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from pathlib import Path
from typing import Any

import yaml

from muscle_hf.evaluation import load_task
from muscle_hf.pipeline.config import (
    DataSettings,
    LoraSettings,
    ModelSettings,
    RunSettings,
    SplitSettings,
    TransferSettings,
)
from muscle_hf.pipeline.data import Splits, load_splits
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import hush
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD

ROOT = Path(__file__).parents[2]
PLAN = Path(__file__).with_name("plan.yaml")


@dataclasses.dataclass
class Cell:
    """One update, task and seed of the plan.

    Args:
        name: Of the cell.
        seed: Of everything: task adapters, order, fresh weights.
        plan: The whole plan.
        folder: Of its results.
    """

    name: str
    seed: int
    plan: dict[str, Any]
    folder: Path

    def __post_init__(self) -> None:
        cell = self.plan["cells"][self.name]
        self.update = {
            side: os.path.relpath(ROOT / base) for side, base in self.plan["updates"][cell["update"]].items()
        }
        rows = self.plan["tasks"][cell["task"]]
        splits = {part: SplitSettings(**rows[part]) for part in ("train", "test")}
        self.data = DataSettings(
            source=os.path.relpath(ROOT / rows["source"]),
            **splits,
            transfer=TransferSettings(**rows["transfer"], answers="both"),
            end_answers=False,
        )
        self.task = load_task(cell["task"])
        self.splits = load_splits(self.task, self.data)
        self.versions = self._run(self.folder, self.plan["task_epochs"], compatibility=False)
        self.versions.whole()

    def _run(self, folder: Path, epochs: float, splits: Splits | None = None, **changed: Any) -> Run:
        training = {**self.plan["training"], "num_train_epochs": epochs, "seed": self.seed}
        training |= changed.pop("training", {})
        trained = {side: str(self.folder / side) for side in (OLD, NEW) if folder != self.folder}
        settings = RunSettings(
            old=ModelSettings(self.update[OLD], adapter=trained.get(OLD)),
            new=ModelSettings(self.update[NEW], adapter=trained.get(NEW)),
            output_dir=str(folder),
            task=self.task.name,
            data=self.data,
            lora=LoraSettings(**self.plan["lora"]),
            training=training,
            eval_batch_size=256,
            **changed,
        )
        labelled = dataclasses.replace(self.splits, transfer=())
        return Run(settings, self.task, labelled if splits is None else splits)

    @property
    def longer(self) -> float:
        """How many times the labelled rows an epoch with transfer rows has, one answer to each prompt."""
        return 1 + len(self.splits.transfer) / len(self.splits.train)

    def method(self, name: str) -> None:
        """Train and evaluate a method."""
        method = self.plan["methods"][name]
        epochs = method.get("epochs", self.plan["method_epochs"])
        if method.get("steps") == "transfer":
            epochs *= self.longer
        splits = None
        if method["rows"] == "transfer":
            splits = self.splits
        elif method["rows"] == "pseudo":
            splits = dataclasses.replace(self.splits, train=[*self.splits.train, *self._answered()], transfer=())
        training = dict(method.get("training", {}))
        if method["kind"] == "muscle":
            training["teacher_cache"] = str(self.folder / "cache")
        run = self._run(self.folder / "methods" / name, epochs, splits, training=training)
        run.answers(CONTROL if method["kind"] == "ce" else COMPAT)

    def _answered(self) -> list:
        """The transfer prompts with v2's answers in place of the right ones."""
        asked = dataclasses.replace(self.splits, test=self.splits.transfer, transfer=())
        run = self._run(self.folder / "transfer", 1, asked, compatibility=False)
        answers = {prediction.id: prediction.prediction for prediction in run.answers(NEW)}
        return [dataclasses.replace(item, answers=(answers[item.id],)) for item in self.splits.transfer]


def main() -> None:
    plan = yaml.safe_load(PLAN.read_text())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--cells", nargs="+", choices=plan["cells"], default=list(plan["cells"]))
    parser.add_argument("--seeds", nargs="+", type=int, default=plan["seeds"])
    parser.add_argument("--methods", nargs="+", choices=plan["methods"], default=list(plan["methods"]))
    args = parser.parse_args()
    hush()
    for seed in args.seeds:
        for name in args.cells:
            cell = Cell(name, seed, plan, args.runs / name / f"seed{seed}")
            for method in args.methods:
                start = time.perf_counter()
                cell.method(method)
                print(f"{name} seed {seed} {method}: {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
