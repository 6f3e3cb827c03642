"""What training costs, and what it gives, where the teachers are known by logs of their answers alone.

    python benchmarks/answers_alone.py [--parts step flips] [--threads 1] [--rounds 3] [--seeds 0] [--steps 250]

Steps: the real trainers on a model whose body dominates (25M parameters), rows of 256 tokens of which the last two are
the answer, one of three choices; ratios of processor time, the ways in turns, best round of each. Flips: the embedded
world's routing with the demo's settings (400 labelled rows, 1,200 without labels), the same rows, answers,
order and steps for all ways; 1,200 test items. Nothing was chosen on these items. ``--steps`` makes it shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from reporting import publish, where
from step_models import SFT, World, best_steps
from training_cost import SMALL

from muscle_hf import ChoiceLog, MuscleConfig, MuscleTrainer
from muscle_hf.demo import TASKS
from muscle_hf.demo.run import both_at_inference, demo_settings, demo_splits
from muscle_hf.evaluation import Prediction, evaluate_task
from muscle_hf.evaluation.predictions import update_between
from muscle_hf.pipeline import steps
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.table import NEW, OLD
from muscle_hf.teachers.recorded import Record, RecordedTeacher
from muscle_hf.training.data import PaddingCollator

ANSWER = 2
BOTH_FILES, OLD_FILE, BOTH_CHOICES, IN_MEMORY = (
    "MUSCLE, numbers of both models in files (X4)",
    "MUSCLE, numbers of v1 in a file, v2 in memory (X4)",
    "MUSCLE, choices of both models in files (X3)",
    "MUSCLE, both models in memory",
)


class IdLog(RecordedTeacher):
    """Scores of the answers of rows that are ids: their own, and two others."""

    examples: Sequence[str] = ()

    def __init__(self, rows: Sequence[dict], score: float):
        super().__init__()
        self.rows, self.score = rows, score

    def records(self, tokenizer) -> Iterable[Record]:
        for row in self.rows:
            answer = row["input_ids"][-ANSWER:]
            others = [[(token + more) % SMALL.vocabulary for token in answer] for more in (1, 2)]
            yield Record(row["input_ids"][:-ANSWER], [answer, *others], [self.score, -1.0, -2.0])

    def said(self, prompt: str) -> None:
        return None

    def describe(self, hashes: dict) -> dict:
        return {"base": {"name": "a log", "on_hub": False, "sha256": None}, "adapter": None}


def step(rounds: int, seeds: Sequence[int], count: int) -> list[str]:
    world = World(SMALL, trained=ANSWER)

    def muscle(old=None, new=None, targets="auto"):
        return MuscleTrainer(
            world.student(),
            MuscleConfig(**world.settings(mask="mean", old_targets=targets)),
            old_model=old or world.old,
            new_model=new,
            train_dataset=world.rows,
            data_collator=PaddingCollator(),
            processing_class=world.tokenizer,
        )

    ways = {
        SFT: world.sft,
        BOTH_FILES: lambda: muscle(IdLog(world.rows, -0.5), IdLog(world.rows, -0.7)),
        BOTH_CHOICES: lambda: muscle(IdLog(world.rows, -0.5), IdLog(world.rows, -0.7), "choices"),
        OLD_FILE: lambda: muscle(IdLog(world.rows, -0.5)),
        IN_MEMORY: muscle,
    }
    best = best_steps(ways, rounds)
    return [
        f"## A step: {ANSWER} trained tokens of {SMALL.length}, {SMALL.batch} rows, float32",
        "",
        "| way | time / SFT's step |",
        "| --- | ---: |",
        *(f"| {name} | {seconds / best[SFT]:.2f} |" for name, seconds in best.items()),
        "",
        "To reach with both in files: 1.02. No body runs but the student's.",
        "",
    ]


def flips(rounds: int, seeds: Sequence[int], count: int) -> list[str]:
    lines: dict[str, list[tuple[float, float]]] = {}
    for seed in seeds:
        for name, found in _flips(seed, count).items():
            lines.setdefault(name, []).append(found)
    table = [
        f"| {name} | {statistics.mean(a for a, _ in found):.1f} | {statistics.mean(n for _, n in found):.1f} |"
        for name, found in lines.items()
    ]
    return [
        f"## Routing of the embedded world, {count} steps, seeds {', '.join(map(str, seeds))}",
        "",
        "| | accuracy, % | negative flips, % |",
        "| --- | ---: | ---: |",
        *table,
        "",
        "One standard error of a rate of flips on 1,200 items is 0.4 to 0.7 points.",
        "",
    ]


def _flips(seed: int, count: int) -> dict[str, tuple[float, float]]:
    folder, task = Path(tempfile.mkdtemp()), TASKS["routing"]
    settings, splits = demo_settings("routing", seed, folder), demo_splits("routing", seed)
    quiet = {**settings.training, "disable_tqdm": True, "teacher_cache": None, "max_steps": count}
    run = Run(dataclasses.replace(settings, training=quiet, control=False), task, splits, lambda _: None)
    tests = {name: run.answers(name) for name in (OLD, NEW)}
    asked = [*splits.train, *splits.transfer]
    teachers = run.compatibility_trainer(folder / "ask").teachers

    def log(name: str) -> ChoiceLog:
        with teachers[name].answering() as model:
            return ChoiceLog(evaluate_task(model, run.data.tokenizer, task, asked, progress=False))

    def measured(name: str, side: list[Prediction]) -> tuple[float, float]:
        numbers = update_between(tests[OLD], side).numbers()
        print(f"{name}: {100 * numbers['acc']:.1f} {100 * numbers['nfr']:.1f}", flush=True)
        return 100 * numbers["acc"], 100 * numbers["nfr"]

    def trained(name: str, old, new=None, **changed) -> tuple[float, float]:
        arguments = steps.training_arguments(MuscleConfig, {**run.training, **changed}, folder / name)
        trainer = MuscleTrainer(
            run._student(),
            arguments,
            old_model=old,
            new_model=new,
            transfer_dataset=run.transfer,
            **run.data.for_trainer(arguments),
        )
        trainer.train()
        return measured(name, evaluate_task(trainer.student, run.data.tokenizer, task, splits.test, progress=False))

    logs = [log(name) for name in (OLD, NEW)]
    ways = {
        "v1 in memory: tokens": ([str(folder / OLD)], "tokens"),
        "v1 in a log: its choices (X3)": (logs[:1], "choices"),
        "v1 in a log: its number of each answer (X4)": (logs[:1], "answer"),
        "both in logs: choices (X3)": (logs, "choices"),
        "both in logs: numbers (X4)": (logs, "answer"),
    }
    both = both_at_inference(tests[OLD], tests[NEW])
    found = {"v2": measured("v2", tests[NEW]), "both at inference": measured("both at inference", both)}
    return found | {name: trained(name, *models, old_targets=targets) for name, (models, targets) in ways.items()}


PARTS = {"step": step, "flips": flips}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=250)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [line for part in args.parts for line in PARTS[part](args.rounds, args.seeds, args.steps)]
    command = f"python benchmarks/answers_alone.py --parts {' '.join(args.parts)} --rounds {args.rounds}"
    command += f" --seeds {' '.join(map(str, args.seeds))} --steps {args.steps} --threads {args.threads}"
    head = ["# Teachers that are known by their answers alone", "", f"Command: `{command}`; {where()}.", ""]
    publish("answers_alone", [*head, *found])


if __name__ == "__main__":
    main()
