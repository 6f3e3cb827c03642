"""What a step of MUSCLE costs, against plain fine-tuning, the naive method, and one-teacher distillation.

    python benchmarks/training_cost.py [--parts step pieces answers run] [--threads 1] [--rounds 3]

Whole steps of the real trainers on a model whose body dominates (25M parameters, head a twelfth of that), and ten
epochs with a cache that is empty at first. All variants of a part run in one process, in turns; ratios of processor
time (all threads), best round of each. Half of the student's tokens are right, so that both teachers are followed.
Random weights, seed 0. The loss alone: loss_cost.py; the way to the first step: startup.py.
"""

from __future__ import annotations

import argparse
import contextlib
import io

import torch
from reporting import publish, timed, where
from step_models import FLOORS, GKD, ONLINE, SFT, TO_REACH, Pieces, Shape, StepTimes, World, base, best_steps, peaks

SMALL = Shape(
    {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 4},
    vocabulary=8192,
    length=256,
    batch=4,
    rows=32,
)
EPOCHS, ANSWER = 10, 2


def steps(rounds: int) -> list[str]:
    ways = World(SMALL).ways()
    best, memory = best_steps(ways, rounds), peaks(ways)
    body = sum(p.numel() for p in base(1, SMALL).model.layers.parameters())
    head = SMALL.vocabulary * SMALL.body["hidden_size"]
    size = f"body {body / 1e6:.1f}M, head {head / 1e6:.1f}M parameters, {SMALL.batch} x {SMALL.length} tokens"
    return [
        f"## A step: {size}, float32",
        "",
        "| way | time / SFT's step | floor | to reach | peak memory over the bases, MiB | / SFT's |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {seconds / best[SFT]:.2f} | {FLOORS[name]:.2f} | {TO_REACH.get(name, '')} | "
            f"{memory[name] / 2**20:.0f} | {memory[name] / memory[SFT]:.2f} |"
            for name, seconds in best.items()
        ),
        "",
        "Memory is that of the tensors, as PyTorch's allocator counts them: what a GPU would hold but for its own "
        "overhead. To reach with both cached: 1.05.",
        "",
        "Floor by arithmetic, from the frozen weights' products alone (a forward is 1, the gradient through it 1): "
        "SFT 2, two teachers' forwards 2 more, so 2.0 x for both online; 1.5 x with v1 cached; 1.0 x and half a "
        "head's product with both. A step stays below its floor where what SFT does beside these products (attention, "
        "norms, adapters, the optimizer) has no counterpart in a teacher's forward. Here every row follows both "
        "teachers; where whole rows follow one, bodies are skipped and the step is shorter. With both teachers online "
        "two bodies run instead of GKD's one.",
        "",
    ]


def short_answers(rounds: int) -> list[str]:
    """Steps on rows of which a few tokens are trained on, so that most rows follow one teacher."""
    world = World(SMALL, trained=ANSWER)
    ways = {
        SFT: world.sft,
        GKD: world.gkd,
        ONLINE: world.muscle,
        "the same without skipping": lambda: world.muscle(skip_unneeded_teachers=False),
    }
    best = best_steps(ways, rounds)
    return [
        f"## A step where rows follow one teacher: {ANSWER} trained tokens of {SMALL.length}, half of the rows right",
        "",
        "| way | time / SFT's step |",
        "| --- | ---: |",
        *(f"| {name} | {seconds / best[SFT]:.2f} |" for name, seconds in best.items()),
        "",
        "Each row needs one teacher's body: together as much work as GKD's one teacher has. Floor 1.5.",
        "",
    ]


def pieces(rounds: int) -> list[str]:
    """What the bodies' forwards and the backward pass take of a step's time."""
    world, found = World(SMALL), {}
    for _ in range(rounds):
        for name, make in {SFT: world.sft, GKD: world.gkd, ONLINE: world.muscle}.items():
            with contextlib.redirect_stdout(io.StringIO()):
                trainer, times, parts = make(), StepTimes(), Pieces()
                trainer.add_callback(times)
                with parts.watching(trainer):
                    trainer.train()
            whole = sum(times.seconds)
            if name not in found or whole < found[name]["whole"]:
                found[name] = {**parts.seconds, "whole": whole, "rest": whole - sum(parts.seconds.values())}
    unit = found[SFT]["whole"]
    columns = ("student", "backward", "teachers", "rest", "whole")
    return [
        "## Where a step's time goes, as a multiple of SFT's whole step",
        "",
        "| way | student's body | backward | teachers' bodies | heads, loss, optimizer | together |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        *(
            f"| {name} | {' | '.join(f'{seconds[column] / unit:.2f}' for column in columns)} |"
            for name, seconds in found.items()
        ),
        "",
        "All steps of a run, the first ones too. GKD's one teacher runs one body, MUSCLE's two run two: with both "
        "online and every row following both, the second body is what MUSCLE takes more, and the heads and the loss "
        "in chunks, whose backward is made with the value, are what it takes less.",
        "",
    ]


def whole_run(rounds: int) -> list[str]:
    """Ten epochs from train() to its end; the cache is filled on the way."""
    world = World(SMALL)
    epochs = {"max_steps": -1, "num_train_epochs": EPOCHS}
    seconds: dict[str, list[float]] = {"SFT": [], "MUSCLE": []}
    for turn in range((rounds + 1) // 2):
        with contextlib.redirect_stdout(io.StringIO()):
            seconds["SFT"].append(timed(world.sft(**epochs).train)[1])
            muscle = world.muscle(teacher_cache=str(world.folder / f"cache-{turn}"), **epochs)
            seconds["MUSCLE"].append(timed(muscle.train)[1])
    ratio = min(seconds["MUSCLE"]) / min(seconds["SFT"])
    return [
        f"## A run of {EPOCHS} epochs, the same model and rows",
        "",
        f"**{ratio:.2f} x** SFT's processor time, building the cache of both teachers included (to reach: 1.2; floor: "
        f"{1 + 1 / EPOCHS:.1f}, the forwards of both teachers in the first epoch).",
        "",
    ]


PARTS = {"step": steps, "pieces": pieces, "answers": short_answers, "run": whole_run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = {part: PARTS[part](args.rounds) for part in args.parts}
    command = f"python benchmarks/training_cost.py --parts {' '.join(args.parts)} --rounds {args.rounds}"
    head = [
        "# What training costs",
        "",
        f"Command: `{command} --threads {args.threads}`; {where()}, seed 0. Ratios of processor time within "
        "one process, best of the rounds.",
        "",
    ]
    publish("training_cost", [*head, *(line for lines in found.values() for line in lines)])


if __name__ == "__main__":
    main()
