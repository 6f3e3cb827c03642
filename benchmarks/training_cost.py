"""What a step of MUSCLE costs, against plain fine-tuning, the naive method, and one-teacher distillation.

    python benchmarks/training_cost.py [--parts loss step run] [--threads 1] [--rounds 3]

The loss alone at a vocabulary of 128,256; whole steps of the real trainers on a model whose body dominates (25M
parameters, head a twelfth of that); ten epochs with a cache that is empty at first. All variants of a part run in
one process, in turns; ratios of processor time (all threads), best round of each. Half of
the student's tokens are right, so that both teachers are followed. Random weights, seed 0.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from reporting import publish, timed, where
from torch.nn import functional
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

import muscle_hf
from muscle_hf import MuscleConfig, MuscleTrainer
from muscle_hf.data import PaddingCollator
from muscle_hf.losses import Objective
from muscle_hf.losses.chunked import Stream, chunk_rows, chunked_terms

DEMO_BASE = Path(muscle_hf.__file__).parent / "demo" / "bases" / "v2"
BODY = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 4}
VOCABULARY, LENGTH, BATCH, ROWS = 8192, 256, 4, 32
STEPS, WARM_UP, EPOCHS = 6, 2, 10
LOSS_VOCABULARY, LOSS_WIDTH, LOSS_TOKENS = 128_256, 2048, 512


# ---- The naive method: three models, whole logits, F.kl_div ----


def naive_loss(student, old, new, labels, temperature=2.0):
    """Equation (1) summed over tokens, as one would write it down."""
    wrong = (student.argmax(dim=-1) != labels).float()
    own = functional.log_softmax(student / temperature, dim=-1)
    parts = [
        functional.kl_div(
            own, functional.log_softmax(teacher / temperature, dim=-1), reduction="none", log_target=True
        ).sum(dim=-1)
        for teacher in (old, new)
    ]
    return (wrong * parts[0] + (1 - wrong) * parts[1]).sum()


class NaiveTrainer(Trainer):
    """Three models beside each other."""

    def __init__(self, *args, old, new, **kwargs):
        super().__init__(*args, **kwargs)
        self.old, self.new = old.eval(), new.eval()
        self.model_accepts_loss_kwargs = True

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:]
        chosen = labels != -100
        student = model(**inputs).logits[:, :-1][chosen]
        with torch.no_grad():
            old, new = (teacher(**inputs).logits[:, :-1][chosen] for teacher in (self.old, self.new))
        return naive_loss(student, old, new, labels[chosen]) / num_items_in_batch


# ---- The loss alone ----


def loss_alone(rounds: int) -> list[str]:
    torch.manual_seed(0)
    old_head, new_head = (torch.randn(LOSS_VOCABULARY, LOSS_WIDTH) / LOSS_WIDTH**0.5 for _ in range(2))
    hidden = [torch.randn(LOSS_TOKENS, LOSS_WIDTH) for _ in range(3)]
    labels = torch.randint(0, LOSS_VOCABULARY, (LOSS_TOKENS,))
    labels[::2] = (hidden[0][::2] @ new_head.T).argmax(dim=-1)

    def naive() -> torch.Tensor:
        own = hidden[0].clone().requires_grad_()
        student = own @ new_head.T
        naive_loss(student, hidden[1] @ old_head.T, hidden[2] @ new_head.T, labels).backward()
        return own.grad

    def head(states: torch.Tensor) -> torch.Tensor:
        return states @ new_head.T

    def chunked() -> torch.Tensor:
        own = hidden[0].clone().requires_grad_()
        streams = Stream(own, head), Stream(hidden[1], lambda states: states @ old_head.T), Stream(hidden[2], head)
        rows = torch.zeros(LOSS_TOKENS, dtype=torch.int64)
        terms = chunked_terms(Objective(), *streams, labels, rows, chunk_size=chunk_rows(LOSS_VOCABULARY))
        terms.loss.sum().backward()
        return own.grad

    def products() -> torch.Tensor:
        # Student's logits, one teacher's, and the gradient back through the head: what no way can do without.
        for start in range(0, LOSS_TOKENS, 256):
            logits = hidden[0][start : start + 256] @ new_head.T
            hidden[1][start : start + 256] @ old_head.T
            logits @ new_head
        return hidden[0]

    ways = {"naive": naive, "chunked": chunked, "matrix products alone": products}
    best, results = {}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            results[name], seconds = timed(way)
            best[name] = min(best.get(name, seconds), seconds)
    error = ((results["chunked"] - results["naive"]).norm() / results["naive"].norm()).item()
    memory = {name: peak_memory(name) for name in ("naive", "chunked")}
    lines = [
        f"## The loss alone: V = {LOSS_VOCABULARY:,}, d = {LOSS_WIDTH:,}, {LOSS_TOKENS:,} tokens, float32",
        "",
        "| way | time / naive | time / matrix products | peak memory beyond weights and inputs, MiB |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, seconds in best.items():
        peak = f"{memory[name] / 2**20:,.0f}" if name in memory else ""
        ratio = seconds / best["matrix products alone"]
        lines.append(f"| {name} | {seconds / best['naive']:.2f} | {ratio:.2f} | {peak} |")
    return [
        *lines,
        "",
        f"Relative difference of the gradients: {error:.1e}. The naive way needs four products of this size (two "
        "teachers, the student there and back), the chunked way three, so that no way of its kind takes less than "
        f"{3 / 4 * 100:.0f} % of the naive way's products. Memory of the naive way grows with the tokens (at 8,192 "
        "tokens 16 times the figure above), that of the chunked way does not.",
        "",
    ]


def peak_memory(way: str) -> int:
    """Peak resident memory of a way in a process of its own, beyond what the inputs take."""
    command = [sys.executable, __file__, "--measure", way]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def measure(way: str) -> None:
    """Prints the growth of this process's peak memory while one way runs, in bytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    old_head, new_head = (torch.randn(LOSS_VOCABULARY, LOSS_WIDTH) for _ in range(2))
    own, old, new = (torch.randn(LOSS_TOKENS, LOSS_WIDTH) for _ in range(3))
    own.requires_grad_()
    labels = torch.randint(0, LOSS_VOCABULARY, (LOSS_TOKENS,))
    before = resident("VmRSS")
    if way == "naive":
        naive_loss(own @ new_head.T, old @ old_head.T, new @ new_head.T, labels).backward()
    else:

        def head(states):
            return states @ new_head.T

        streams = Stream(own, head), Stream(old, lambda states: states @ old_head.T), Stream(new, head)
        rows = torch.zeros(LOSS_TOKENS, dtype=torch.int64)
        chunked_terms(
            Objective(), *streams, labels, rows, chunk_size=chunk_rows(LOSS_VOCABULARY)
        ).loss.sum().backward()
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


# ---- Whole steps ----


class StepTimes(TrainerCallback):
    """Processor seconds of each optimizer step."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(time.process_time() - self._start)


def base(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, tie_word_embeddings=False, **BODY)
    )


def adapted(model: LlamaForCausalLM, seed: int):
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False))


def rows_half_right(model) -> list[dict[str, list[int]]]:
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=random)
    labels = ids.clone()
    with torch.no_grad():
        for start in range(0, ROWS, BATCH):
            predicted = model(input_ids=ids[start : start + BATCH]).logits.argmax(dim=-1)
            labels[start : start + BATCH, 1::2] = predicted[:, 0:-1:2]
    pairs = zip(ids.tolist(), labels.tolist(), strict=True)
    return [{"input_ids": row, "labels": answers} for row, answers in pairs]


class World:
    """The models, rows and trainers of the steps."""

    def __init__(self) -> None:
        self.old, self.new = adapted(base(1), 11).eval(), adapted(base(2), 12).eval()
        self.rows = rows_half_right(self.new)
        self.folder = Path(tempfile.mkdtemp())
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO_BASE)

    def settings(self, **changed) -> dict:
        return {
            "max_steps": STEPS,
            "per_device_train_batch_size": BATCH,
            "learning_rate": 1e-7,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
            "gradient_checkpointing": False,
            "bf16": False,
            "output_dir": str(self.folder / "out"),
            **changed,
        }

    def student(self):
        return copy.deepcopy(self.new).train()

    def muscle(self, **changed) -> MuscleTrainer:
        return MuscleTrainer(
            self.student(),
            MuscleConfig(**self.settings(**changed)),
            old_model=self.old,
            train_dataset=self.rows,
            data_collator=PaddingCollator(),
        )

    def sft(self, **changed) -> Trainer:
        from trl import SFTConfig, SFTTrainer

        config = SFTConfig(**self.settings(**changed), max_length=LENGTH)
        table = Dataset.from_list([{"input_ids": row["input_ids"]} for row in self.rows])
        return SFTTrainer(self.student(), config, train_dataset=table, processing_class=self.tokenizer)

    def gkd(self) -> Trainer:
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        return GKDTrainer(
            self.student(),
            self.new,
            GKDConfig(**self.settings(), max_length=LENGTH, lmbda=0.0),
            train_dataset=Dataset.from_list(self.rows),
            data_collator=PaddingCollator(),
            processing_class=self.tokenizer,
        )

    def naive(self) -> Trainer:
        return NaiveTrainer(
            self.student(),
            transformers.TrainingArguments(**self.settings()),
            old=self.old,
            new=self.new,
            train_dataset=self.rows,
            data_collator=PaddingCollator(),
        )


def steps(rounds: int) -> list[str]:
    world = World()
    muscle = world.muscle
    cache = str(world.folder / "cache")
    fill(muscle(teacher_cache=cache))
    ways: dict[str, Callable[[], Trainer]] = {
        "TRL SFTTrainer (LoRA, cross-entropy)": world.sft,
        "naive: three models, whole logits": world.naive,
        "TRL GKDTrainer, fixed data, one teacher": world.gkd,
        "MUSCLE, whole logits": lambda: muscle(loss_chunk_size=0),
        "MUSCLE, both teachers online": muscle,
        "MUSCLE, v1 cached": lambda: without_cache(muscle(teacher_cache=cache), "new"),
        "MUSCLE, both cached": lambda: muscle(teacher_cache=cache),
    }
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, make in ways.items():
            times = StepTimes()
            with contextlib.redirect_stdout(io.StringIO()):
                trainer = make()
                trainer.add_callback(times)
                trainer.train()
            seconds = min(times.seconds[WARM_UP:])
            best[name] = min(best.get(name, seconds), seconds)
            print(f"{name}: {seconds:.2f} s", flush=True)
    body = sum(p.numel() for p in base(1).model.layers.parameters())
    head = VOCABULARY * BODY["hidden_size"]
    plain = best["TRL SFTTrainer (LoRA, cross-entropy)"]
    return [
        f"## A step: body {body / 1e6:.1f}M, head {head / 1e6:.1f}M parameters, {BATCH} x {LENGTH} tokens, float32",
        "",
        "| way | time / SFT's step |",
        "| --- | ---: |",
        *(f"| {name} | {seconds / plain:.2f} |" for name, seconds in best.items()),
        "",
        "Floor by arithmetic, from the frozen weights' products alone (a forward is 1, the gradient through it 1): "
        "SFT 2, two teachers' forwards 2 more: 2.0 x for both online (bodies skipped: less, where whole rows follow "
        "one teacher), 1.5 x with v1 cached, 1.0 x and half a head's product with both.",
        "",
    ]


def without_cache(trainer: MuscleTrainer, role: str) -> MuscleTrainer:
    """The trainer with one teacher online."""
    trainer._passes.chunked.caches.pop(role)
    trainer._passes.chunked._rules.pop(role)
    return trainer


def whole_run(rounds: int) -> list[str]:
    """Ten epochs from train() to its end; the cache is filled on the way."""
    world = World()
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
        f"**{ratio:.2f} x** SFT's processor time, building the cache of both teachers included.",
        "",
    ]


def fill(trainer: MuscleTrainer) -> None:
    from muscle_hf.pipeline.caching import cache_teachers

    cache_teachers(trainer, trainer.args.teacher_cache, batch_size=BATCH)


PARTS = {"loss": loss_alone, "step": steps, "run": whole_run}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=("naive", "chunked"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure)
        return
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
