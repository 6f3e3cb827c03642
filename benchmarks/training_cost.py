"""What a step of MUSCLE costs, against plain fine-tuning, the naive method, and one-teacher distillation.

    python benchmarks/training_cost.py [--parts step answers run] [--threads 1] [--rounds 3]

Whole steps of the real trainers on a model whose body dominates (25M parameters, head a twelfth of that), and ten
epochs with a cache that is empty at first. All variants of a part run in one process, in turns; ratios of processor
time (all threads), best round of each. Half of the student's tokens are right, so that both teachers are followed.
Random weights, seed 0. The loss alone: loss_cost.py; the way to the first step: startup.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from loss_cost import naive_loss
from peft import LoraConfig, get_peft_model
from reporting import publish, timed, where
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback

import muscle_hf
from muscle_hf import MuscleConfig, MuscleTrainer
from muscle_hf.data import PaddingCollator

DEMO_BASE = Path(muscle_hf.__file__).parent / "demo" / "bases" / "v2"
BODY = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 4}
VOCABULARY, LENGTH, BATCH, ROWS = 8192, 256, 4, 32
STEPS, WARM_UP, EPOCHS, ANSWER = 5, 2, 10, 2
# By arithmetic, from the frozen weights' products alone: of each way, as a multiple of SFT's.
FLOORS = {
    "TRL SFTTrainer (LoRA, cross-entropy)": 1.0,
    "naive: three models, whole logits": 2.0,
    "TRL GKDTrainer, fixed data, one teacher": 1.5,
    "MUSCLE, whole logits": 2.0,
    "MUSCLE, both teachers online": 2.0,
    "MUSCLE, v1 cached": 1.5,
    "MUSCLE, both cached": 1.0,
}
TO_REACH = {"MUSCLE, both teachers online": 1.95, "MUSCLE, v1 cached": 1.5, "MUSCLE, both cached": 1.08}


class NaiveTrainer(Trainer):
    """The naive method: three models beside each other, whole logits."""

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


def rows_half_right(model, trained: int | None = None) -> list[dict[str, list[int]]]:
    """Random rows: every other token is right; or the last ``trained`` alone count, right in every other row."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (ROWS, LENGTH), generator=random)
    labels = ids.clone()
    with torch.no_grad():
        for start in range(0, ROWS, BATCH):
            predicted = model(input_ids=ids[start : start + BATCH]).logits.argmax(dim=-1)
            if trained is None:
                labels[start : start + BATCH, 1::2] = predicted[:, 0:-1:2]
            else:
                labels[start : start + BATCH : 2, 1:] = predicted[::2, :-1]
    if trained is not None:
        labels[:, :-trained] = -100
    pairs = zip(ids.tolist(), labels.tolist(), strict=True)
    return [{"input_ids": row, "labels": answers} for row, answers in pairs]


class World:
    """The models, rows and trainers of the steps.

    Args:
        trained: Tokens at the end of each row that are trained on; all by default.
    """

    def __init__(self, trained: int | None = None) -> None:
        self.old, self.new = adapted(base(1), 11).eval(), adapted(base(2), 12).eval()
        self.rows = rows_half_right(self.new, trained)
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

        config = SFTConfig(**self.settings(**changed), max_length=LENGTH, completion_only_loss=True)
        masks = [[int(label != -100) for label in row["labels"]] for row in self.rows]
        pairs = zip(self.rows, masks, strict=True)
        table = Dataset.from_list([{"input_ids": row["input_ids"], "completion_mask": mask} for row, mask in pairs])
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


def best_steps(ways: dict[str, Callable[[], Trainer]], rounds: int) -> dict[str, float]:
    """Processor seconds of the shortest step of each way."""
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
    return best


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
    best = best_steps(ways, rounds)
    body = sum(p.numel() for p in base(1).model.layers.parameters())
    head = VOCABULARY * BODY["hidden_size"]
    plain = best["TRL SFTTrainer (LoRA, cross-entropy)"]
    return [
        f"## A step: body {body / 1e6:.1f}M, head {head / 1e6:.1f}M parameters, {BATCH} x {LENGTH} tokens, float32",
        "",
        "| way | time / SFT's step | floor | to reach |",
        "| --- | ---: | ---: | ---: |",
        *(
            f"| {name} | {seconds / plain:.2f} | {FLOORS[name]:.2f} | {TO_REACH.get(name, '')} |"
            for name, seconds in best.items()
        ),
        "",
        "Floor by arithmetic, from the frozen weights' products alone (a forward is 1, the gradient through it 1): "
        "SFT 2, two teachers' forwards 2 more, so 2.0 x for both online; 1.5 x with v1 cached; 1.0 x and half a "
        "head's product with both. A step stays below its floor where what SFT does beside these products (attention, "
        "norms, adapters, the optimizer) has no counterpart in a teacher's forward. Here every row follows both "
        "teachers; where whole rows follow one, bodies are skipped and the step is shorter. With both teachers online "
        "it cannot be below GKD's: two bodies run instead of one.",
        "",
    ]


def short_answers(rounds: int) -> list[str]:
    """Steps on rows of which a few tokens are trained on, so that most rows follow one teacher."""
    world = World(trained=ANSWER)
    ways = {
        "TRL SFTTrainer (LoRA, cross-entropy)": world.sft,
        "TRL GKDTrainer, fixed data, one teacher": world.gkd,
        "MUSCLE, both teachers online": world.muscle,
        "the same without skipping": lambda: world.muscle(skip_unneeded_teachers=False),
    }
    best = best_steps(ways, rounds)
    plain = next(iter(best.values()))
    return [
        f"## A step where rows follow one teacher: {ANSWER} trained tokens of {LENGTH}, half of the rows right",
        "",
        "| way | time / SFT's step |",
        "| --- | ---: |",
        *(f"| {name} | {seconds / plain:.2f} |" for name, seconds in best.items()),
        "",
        "Each row needs one teacher's body: together as much work as GKD's one teacher has. Floor 1.5.",
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
        f"**{ratio:.2f} x** SFT's processor time, building the cache of both teachers included (to reach: 1.2; floor: "
        f"{1 + 1 / EPOCHS:.1f}, the forwards of both teachers in the first epoch).",
        "",
    ]


def fill(trainer: MuscleTrainer) -> None:
    from muscle_hf.pipeline.caching import cache_teachers

    cache_teachers(trainer, trainer.args.teacher_cache, batch_size=BATCH)


PARTS = {"step": steps, "answers": short_answers, "run": whole_run}


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
