"""The models, rows and trainers whose steps are measured: random weights of a shape, on a CPU or a GPU."""

from __future__ import annotations

import contextlib
import copy
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from allocated import SecondStep, alive
from datasets import Dataset
from loss_cost import naive_loss
from peft import LoraConfig, get_peft_model
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaModel, Trainer, TrainerCallback

import muscle_hf
from muscle_hf import MuscleConfig, MuscleTrainer
from muscle_hf.pipeline.caching import cache_teachers
from muscle_hf.training.data import PaddingCollator

DEMO_BASE = Path(muscle_hf.__file__).parent / "demo" / "bases" / "v2"
SFT, NAIVE, GKD = (
    "TRL SFTTrainer (LoRA, cross-entropy)",
    "naive: three models, whole logits",
    "TRL GKDTrainer, fixed data, one teacher",
)
WHOLE, ONLINE, OLD_CACHED, CACHED = (
    "MUSCLE, whole logits",
    "MUSCLE, both teachers online",
    "MUSCLE, v1 cached",
    "MUSCLE, both cached",
)
# By arithmetic, from the frozen weights' products alone: of each way, as a multiple of SFT's.
FLOORS = {SFT: 1.0, NAIVE: 2.0, GKD: 1.5, WHOLE: 2.0, ONLINE: 2.0, OLD_CACHED: 1.5, CACHED: 1.0}
TO_REACH = {ONLINE: 1.95, OLD_CACHED: 1.5, CACHED: 1.08}
WARM_UP = 2


@dataclass(frozen=True)
class Shape:
    """What is trained on what.

    Args:
        body: Sizes, as of ``LlamaConfig``.
        vocabulary: Tokens.
        length: Tokens of a row.
        batch: Rows of a step.
        rows: Rows there are.
        steps: Of a measurement, the first of which warm up.
    """

    body: dict[str, int]
    vocabulary: int
    length: int
    batch: int
    rows: int
    steps: int = 5


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
    """Seconds of each optimizer step.

    Args:
        clock: Processor seconds by default, which depend less on what else the machine does.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time):
        self.clock, self.seconds = clock, []

    def on_step_begin(self, args, state, control, **kwargs):
        self._start = self.clock()

    def on_step_end(self, args, state, control, **kwargs):
        self.seconds.append(self.clock() - self._start)


def base(seed: int, shape: Shape, device: str = "cpu", dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A base with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=shape.vocabulary, max_position_embeddings=shape.length, tie_word_embeddings=False, **shape.body
    )
    with torch.device(device):
        return LlamaForCausalLM._from_config(config, dtype=dtype)


def base_bytes(model: torch.nn.Module) -> int:
    """What the weights of a base take, without its adapters'."""
    return sum(p.nbytes for name, p in model.named_parameters() if "lora_" not in name)


def adapted(model: LlamaForCausalLM, seed: int):
    torch.manual_seed(seed)
    return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False))


def rows_half_right(model, shape: Shape, trained: int | None = None) -> list[dict[str, list[int]]]:
    """Random rows: every other token is right; or the last ``trained`` alone count, right in every other row."""
    random = torch.Generator().manual_seed(0)
    ids = torch.randint(0, shape.vocabulary, (shape.rows, shape.length), generator=random)
    labels = ids.clone()
    with torch.no_grad():
        for start in range(0, shape.rows, shape.batch):
            batch = slice(start, start + shape.batch)
            predicted = model(input_ids=ids[batch].to(model.device)).logits.argmax(dim=-1).cpu()
            if trained is None:
                labels[batch, 1::2] = predicted[:, 0:-1:2]
            else:
                labels[batch][::2, 1:] = predicted[::2, :-1]
    if trained is not None:
        labels[:, :-trained] = -100
    pairs = zip(ids.tolist(), labels.tolist(), strict=True)
    return [{"input_ids": row, "labels": answers} for row, answers in pairs]


class World:
    """The models, rows and trainers of the steps.

    Args:
        shape: Of the models and rows.
        trained: Tokens at the end of each row that are trained on; all by default.
        device: ``cpu``, in float32, or ``cuda``, in bfloat16.
    """

    def __init__(self, shape: Shape, trained: int | None = None, device: str = "cpu") -> None:
        self.shape, self.device = shape, device
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        self.old, self.new = (adapted(base(seed, shape, device, dtype), 10 + seed).eval() for seed in (1, 2))
        self.rows = rows_half_right(self.new, shape, trained)
        self.folder = Path(tempfile.mkdtemp())
        self.tokenizer = AutoTokenizer.from_pretrained(DEMO_BASE, trust_remote_code=False)

    def settings(self, **changed) -> dict:
        return {
            "max_steps": self.shape.steps,
            "per_device_train_batch_size": self.shape.batch,
            "learning_rate": 1e-7,
            "report_to": "none",
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": self.device == "cpu",
            "gradient_checkpointing": False,
            "bf16": self.device != "cpu",
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

        config = SFTConfig(**self.settings(**changed), max_length=self.shape.length, completion_only_loss=True)
        masks = [[int(label != -100) for label in row["labels"]] for row in self.rows]
        pairs = zip(self.rows, masks, strict=True)
        table = Dataset.from_list([{"input_ids": row["input_ids"], "completion_mask": mask} for row, mask in pairs])
        return SFTTrainer(self.student(), config, train_dataset=table, processing_class=self.tokenizer)

    def gkd(self) -> Trainer:
        from trl.experimental.gkd import GKDConfig, GKDTrainer

        return GKDTrainer(
            self.student(),
            self.new,
            GKDConfig(**self.settings(), max_length=self.shape.length, lmbda=0.0),
            train_dataset=Dataset.from_list(self.rows),
            data_collator=PaddingCollator(),
            processing_class=self.tokenizer,
        )

    def cached(self) -> str:
        """A folder with the hidden states of both teachers."""
        folder = str(self.folder / "cache")
        trainer = self.muscle(teacher_cache=folder)
        cache_teachers(trainer, folder, batch_size=self.shape.batch)
        return folder

    def ways(self) -> dict[str, Callable[[], Trainer]]:
        """All that is compared, by name; the caches are filled first."""
        cache = self.cached()
        return {
            SFT: self.sft,
            NAIVE: self.naive,
            GKD: self.gkd,
            WHOLE: lambda: self.muscle(loss_chunk_size=0),
            ONLINE: self.muscle,
            OLD_CACHED: lambda: without_cache(self.muscle(teacher_cache=cache), "new"),
            CACHED: lambda: self.muscle(teacher_cache=cache),
        }

    def naive(self) -> Trainer:
        return NaiveTrainer(
            self.student(),
            transformers.TrainingArguments(**self.settings()),
            old=self.old,
            new=self.new,
            train_dataset=self.rows,
            data_collator=PaddingCollator(),
        )


class Pieces:
    """Where the seconds of a step go: the bodies' forwards with and without a gradient, and the backward pass.

    Hooks on every body there is; the heads, the loss and the optimizer are what remains of a step.
    """

    def __init__(self, clock: Callable[[], float] = time.process_time):
        self.clock, self.seconds = clock, {"student": 0.0, "teachers": 0.0, "backward": 0.0}
        self._start = 0.0

    @contextlib.contextmanager
    def watching(self, trainer: Trainer):
        before = register_module_forward_pre_hook(self._enter)
        after = register_module_forward_hook(self._leave)
        backward = trainer.accelerator.backward

        def timed_backward(*args, **kwargs):
            start = self.clock()
            backward(*args, **kwargs)
            self.seconds["backward"] += self.clock() - start

        trainer.accelerator.backward = timed_backward
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _enter(self, module, args):
        if isinstance(module, LlamaModel):
            self._start = self.clock()

    def _leave(self, module, args, output):
        if isinstance(module, LlamaModel):
            self.seconds["student" if torch.is_grad_enabled() else "teachers"] += self.clock() - self._start


def without_cache(trainer: MuscleTrainer, role: str) -> MuscleTrainer:
    """The trainer with one teacher online."""
    trainer._step.sources[role] = trainer.teachers[role]
    return trainer


def peaks(ways: dict[str, Callable[[], Trainer]]) -> dict[str, int]:
    """Bytes that each way's second step holds at its peak, beyond all bases; on a CPU."""
    found = {}
    for name, make in ways.items():
        with contextlib.redirect_stdout(io.StringIO()):
            others, watch = alive(), SecondStep()
            trainer = make()
            bases = base_bytes(trainer.model)
            trainer.args.max_steps = 2
            trainer.add_callback(watch)
            trainer.train()
        found[name] = watch.peak - others - bases
        del trainer
        print(f"{name}: {found[name] / 2**20:.0f} MiB", flush=True)
    return found


def best_steps(
    ways: dict[str, Callable[[], Trainer]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    watch: Callable[[str], contextlib.AbstractContextManager] = contextlib.nullcontext,
) -> dict[str, float]:
    """Seconds of the shortest step of each way, which take turns.

    Args:
        ways: Make the trainers, by name.
        rounds: Turns.
        clock: See :class:`StepTimes`.
        watch: Makes a context, by the way's name, around each training.
    """
    best: dict[str, float] = {}
    for _ in range(rounds):
        for name, make in ways.items():
            times = StepTimes(clock)
            with watch(name), contextlib.redirect_stdout(io.StringIO()):
                trainer = make()
                trainer.add_callback(times)
                trainer.train()
            del trainer  # not to be in memory beside the next one
            seconds = min(times.seconds[WARM_UP:])
            best[name] = min(best.get(name, seconds), seconds)
            print(f"{name}: {seconds:.2f} s", flush=True)
    return best
