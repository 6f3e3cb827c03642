"""What a run would do and take, before anything is trained: models, adapters, tokens, steps, memory, time, disk.

The estimates are of a stated model, written out in recipes/README.md; none of it looks at a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedConfig

from muscle_hf.cache.room import human_bytes
from muscle_hf.objective.chunked import chunk_rows
from muscle_hf.pipeline.config import LoraSettings, RunSettings
from muscle_hf.pipeline.data import token_lengths
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import config_of
from muscle_hf.pipeline.table import COMPAT, CONTROL, NEW, OLD
from muscle_hf.pipeline.teaching import transfer_rows

GIB = 2**30
# Dense bf16 of a present data-centre GPU (989 at the most), and the share of it that training of this kind reaches.
FLOPS = 989e12
UTILIZATION = 0.35
ESTIMATES = f"Memory and time are estimates for GPUs of {FLOPS * UTILIZATION / 1e12:.0f} effective TFLOP/s."
# Numbers that a layer keeps of each token for its backward pass, with fused attention, measured by
# benchmarks/memory_estimate.py: multiples of d, by its norms (RMSNorm computes in float32) ...
_KEPT_WIDTH = {"layer_norm": 10, "rms_norm": 8, "rms_norm_half": 14}
# ... and of the MLP's width, without and with a gate.
_KEPT_MLP = {False: 2, True: 4}
# Logits, in float32, that are held at the peak: of a chunk, of all tokens, and of plain cross-entropy.
_CHUNK_LOGITS, _WHOLE_LOGITS, _PLAIN_LOGITS = 5.5, 11, 3
# CUDA context, workspaces of the libraries and what fragmentation leaves.
OVERHEAD = 1.5 * GIB
_WEIGHT_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "nf4": 0.53, "int8": 1.05}


@dataclass(frozen=True)
class ModelSize:
    """A base and the LoRA on it, counted: parameters in ``linear`` layers other than the output layer, which
    quantization compresses; of the adapter (``lora``; ``ranks`` added up over its layers); ``width`` d of the hidden
    states, and ``mlp`` inside the MLP, which may be ``gated``."""

    parameters: int
    linear: int
    lora: int
    width: int
    mlp: int
    layers: int
    vocabulary: int
    ranks: int
    gated: bool
    rms_norm: bool

    def weight_bytes(self, dtype: str, quantization: str | None) -> float:
        """Bytes of the base's weights in memory."""
        others = self.parameters - self.linear
        return self.linear * _WEIGHT_BYTES[quantization or dtype] + others * _WEIGHT_BYTES[dtype]

    def kept_numbers(self, half: bool) -> int:
        """What a layer keeps of each token for its backward pass, in numbers; ``half``: 16-bit activations."""
        norm = "rms_norm_half" if half and self.rms_norm else "rms_norm" if self.rms_norm else "layer_norm"
        own = _KEPT_WIDTH[norm] * self.width + _KEPT_MLP[self.gated] * self.mlp
        return own + self.ranks // self.layers


@dataclass(frozen=True)
class Spread:
    """How an accelerate configuration spreads a run over GPUs: FSDP and ZeRO-3 shard weights, ZeRO-2 the optimizer."""

    processes: int = 1
    shards_weights: bool = False
    shards_optimizer: bool = False

    def __str__(self) -> str:
        what = "weights" if self.shards_weights else "optimizer states" if self.shards_optimizer else ""
        sharded = f", {what} sharded over them" if what else ""
        return f"{self.processes} process{'es' * (self.processes > 1)}{sharded}"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Spread:
        """Read the content of an accelerate configuration."""
        kind = config.get("distributed_type", "NO")
        stage = config.get("deepspeed_config", {}).get("zero_stage", 0) if kind == "DEEPSPEED" else 0
        weights = kind == "FSDP" or stage == 3
        return cls(int(config.get("num_processes", 1)), weights, weights or stage == 2)


@dataclass(frozen=True)
class StepPlan:
    """One training of a run, and in words: its optimizer steps (None for rows whose number is not known), bytes at the
    peak on each GPU, and seconds on GPUs that reach :data:`FLOPS` times :data:`UTILIZATION`.
    """

    name: str
    what: str
    steps: int | None
    memory: float
    seconds: float | None


def size_of_config(config: PreTrainedConfig, lora: LoraSettings) -> ModelSize:
    """Count a model from its configuration; no weights are made or read."""
    from muscle_hf.teachers.blueprint import blueprint, linear_layers, target_layers

    model = blueprint(config)
    layers = linear_layers(model)
    chosen = target_layers(model, lora.target_modules).values()
    text = config.get_text_config()
    mlp = max((max(m.in_features, m.out_features) for m in layers.values()), default=text.hidden_size)
    return ModelSize(
        parameters=sum(p.numel() for p in model.parameters()),
        linear=sum(m.weight.numel() for m in layers.values()),
        lora=sum(lora.r * (m.in_features + m.out_features) for m in chosen),
        width=text.hidden_size,
        mlp=mlp,
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        ranks=lora.r * len(chosen),
        gated=sum(m.out_features == mlp for m in layers.values()) >= 2 * text.num_hidden_layers,
        rms_norm=any("RMSNorm" in type(m).__name__ for m in model.modules()),
    )


def sizes_of(settings: RunSettings) -> dict[str, ModelSize]:
    """:func:`size_of_config` of both bases."""
    sides = {OLD: settings.old, NEW: settings.new}
    return {name: size_of_config(config_of(side), settings.lora) for name, side in sides.items()}


def training_of(name: str, settings: RunSettings) -> dict[str, Any]:
    """The training arguments that are set for a model of the run."""
    return {**settings.training, **(settings.task_training if name in (OLD, NEW) else {})}


# ---- The model of memory and time ----


def memory_of(
    name: str, old: ModelSize, new: ModelSize, settings: RunSettings, spread: Spread, length: int, *, same_base: bool
) -> float:
    """Bytes at the peak on one GPU while ``old``, ``new``, ``control`` or ``muscle`` is trained on rows of up to
    ``length`` tokens: weights of the bases, adapters with gradients and optimizer states, activations, logits, and a
    constant. ``old`` and ``new`` are the bases, which may be one.
    """
    training = training_of(name, settings)
    size = old if name == OLD else new
    dtype = "bfloat16" if settings.dtype == "auto" else settings.dtype
    held = size.weight_bytes(dtype, settings.quantization)
    if name == COMPAT:
        held += 4 * (new.lora + old.lora) + (0 if same_base else old.weight_bytes(dtype, settings.quantization))
    state = 2 if "8bit" in training.get("optim", "") else 8
    trained = 4 * size.lora + (4 + state) * size.lora / (spread.processes if spread.shards_optimizer else 1)
    if spread.shards_weights:
        # A layer at a time is whole, and the embeddings.
        whole = held / size.layers + 2 * size.width * size.vocabulary * _WEIGHT_BYTES[dtype]
        held, trained = held / spread.processes + whole, trained / spread.processes
    tokens = training.get("per_device_train_batch_size", 8) * length
    width = 2 if training.get("bf16") or training.get("fp16") else _WEIGHT_BYTES[dtype]
    layer = tokens * width * size.kept_numbers(half=width == 2)
    logits = _logits_bytes(name, size.vocabulary, tokens, training, settings, spread)
    if _recomputes(training, settings):
        # One layer is recomputed at a time, when the logits are gone.
        return held + trained + size.layers * tokens * width * size.width + max(layer, logits) + OVERHEAD
    return held + trained + size.layers * layer + logits + OVERHEAD


def _logits_bytes(
    name: str, vocabulary: int, tokens: int, training: Mapping[str, Any], settings: RunSettings, spread: Spread
) -> float:
    whole = 4 * tokens * vocabulary
    if name != COMPAT:
        # TRL's loss is in tiles.
        return GIB / 2 if settings.trainer == "trl" else _PLAIN_LOGITS * whole
    chunk = training.get("loss_chunk_size")
    if spread.shards_weights or chunk == 0:
        return _WHOLE_LOGITS * whole
    return _CHUNK_LOGITS * 4 * vocabulary * min(tokens, chunk or chunk_rows(vocabulary, "cuda"))


def _recomputes(training: Mapping[str, Any], settings: RunSettings) -> bool:
    by_default = settings.trainer == "trl"
    return bool(training.get("activation_checkpointing") or training.get("gradient_checkpointing", by_default))


def flops_of(name: str, old: ModelSize, new: ModelSize, tokens: float, settings: RunSettings) -> float:
    """Floating-point operations of a training: two per weight and token for a forward pass, as many for the backward
    pass through frozen weights, and once more a forward pass where activations are recomputed; both teachers' forward
    passes for the compatibility adapter.
    """
    training = training_of(name, settings)
    size = old if name == OLD else new
    passes = 2 + (1 if _recomputes(training, settings) else 0)
    teachers = new.parameters + old.parameters if name == COMPAT else 0
    return 2 * tokens * (passes * size.parameters + 3 * size.lora + teachers)


# ---- The plan of a run ----


def optimizer_steps(rows: int | None, training: Mapping[str, Any], processes: int) -> int | None:
    """Optimizer steps of a training of so many rows; None if their number is not known."""
    if training.get("max_steps", -1) > 0:
        return training["max_steps"]
    if rows is None:
        return None
    batches = math.ceil(rows / (training.get("per_device_train_batch_size", 8) * processes))
    updates = math.ceil(batches / training.get("gradient_accumulation_steps", 1))
    return math.ceil(training.get("num_train_epochs", 3) * updates)


def plan_of(run: Run, spread: Spread, sizes: Mapping[str, ModelSize]) -> list[StepPlan]:
    """The trainings of a run that are still to be done or may be, in order; ``sizes`` of both bases by side."""
    settings = run.settings
    lengths = token_lengths(run.data)
    limit = run.training.get("max_length") or (1024 if settings.trainer == "trl" else None)
    lengths = None if lengths is None else [min(length, limit or length) for length in lengths]
    # A v1 of which no weights are here takes no memory.
    bases = [(side.base, side.revision) for side in (settings.old, settings.new) if side.is_here]
    same_base = len(set(bases)) == 1
    words = {OLD: "task adapter on v1", NEW: "task adapter on v2", CONTROL: "control", COMPAT: "compatibility adapter"}
    plans = []
    for name in run.models:
        if {OLD: settings.old.adapter or not settings.old.is_here, NEW: settings.new.adapter}.get(name):
            continue
        training = {**run.training, **training_of(name, settings)}
        # The control trains for as long.
        rows = None if lengths is None else len(lengths) + (transfer_rows(run) if name in (CONTROL, COMPAT) else 0)
        steps = optimizer_steps(rows, training, spread.processes)
        longest = max(lengths) if lengths else limit or 1024
        sides = sizes[OLD], sizes[NEW]
        memory = memory_of(name, *sides, settings, spread, longest, same_base=same_base)
        seconds = None
        if lengths and steps is not None:
            per_step = training.get("per_device_train_batch_size", 8) * training.get("gradient_accumulation_steps", 1)
            tokens = steps * per_step * sum(lengths) / len(lengths)
            seconds = flops_of(name, *sides, tokens, settings) / (FLOPS * UTILIZATION)
        plans.append(StepPlan(name, words[name], steps, memory, seconds))
    return plans


def disk_of(run: Run, sizes: Mapping[str, ModelSize], plans: Sequence[StepPlan]) -> float:
    """Bytes of the adapters that are trained and of their checkpoints, at the most that lie there at a time."""
    total = 0.0
    for plan in plans:
        training = {**run.training, **training_of(plan.name, run.settings)}
        weights = 4 * sizes[OLD if plan.name == OLD else NEW].lora
        kept = checkpoints_of(training, plan.steps)
        # A checkpoint holds the optimizer's two moments besides.
        moments = weights // 2 if "8bit" in training.get("optim", "") else 2 * weights
        total += weights + kept * (weights + moments)
    return total


def checkpoints_of(training: Mapping[str, Any], steps: int | None) -> int:
    """How many checkpoints of a training lie on the disk at a time: the best one may be kept beside the last ones."""
    every = {"epoch": None, "best": None, "steps": training.get("save_steps", 500)}
    strategy = training.get("save_strategy", "steps")
    if strategy not in every:
        return 0
    saved = math.ceil(training.get("num_train_epochs", 3))
    if every[strategy] is not None and steps is not None:
        step = every[strategy]
        saved = max(1, int(1 / step) if step < 1 else steps // int(step))
    limit = training.get("save_total_limit")
    return saved if limit is None else min(saved, limit + 1)


def describe(run: Run, spread: Spread) -> str:
    """The plan of a run as text."""
    settings = run.settings
    sizes, lines = sizes_of(settings), []
    for name, side in ((OLD, settings.old), (NEW, settings.new)):
        size = sizes[name]
        adapter = f"task adapter {side.adapter}" if side.adapter else f"LoRA of {_count(size.lora)}, to be trained"
        adapter = adapter if side.server is None else f"{side.server.model} on a server"
        if side.answers:
            lines.append(f"{name:8} known by its answers in {', '.join(side.answers)}")
            continue
        revision = f" at {side.revision}" if side.revision else ""
        lines.append(f"{name:8} {side.base}{revision}: {_count(size.parameters)} parameters; {adapter}")
    lines += ["", *_rows_text(run), "", f"{spread}:"]
    plans = plan_of(run, spread, sizes)
    for plan in plans:
        steps = "an unknown number of" if plan.steps is None else f"{plan.steps}"
        time = "" if plan.seconds is None else f", {duration(plan.seconds)}"
        lines.append(f"  {plan.what:22} {steps} steps, {plan.memory / GIB:.1f} GiB on each GPU{time}")
    disk = human_bytes(disk_of(run, sizes, plans))
    lines.append(f"Disk: {disk} for adapters and checkpoints in {settings.output_dir}")
    if COMPAT in run.models:
        lines.append(f"Teachers: {run.teaching(spread.processes).why}")
    lines.append(ESTIMATES)
    return "\n".join(lines)


def _rows_text(run: Run) -> Sequence[str]:
    lengths = token_lengths(run.data)
    test = "" if run.task is None else f"; {len(run.splits.test)} test items of {run.task.name}"
    if lengths is None:
        return [f"rows     a stream{test}"]
    mean = sum(lengths) / len(lengths)
    transfer = transfer_rows(run)
    without = f"{transfer} without labels in an epoch; " if transfer else ""
    validation = len(run.splits.validation) if isinstance(run.splits.validation, Sized) else "?"
    return [
        f"rows     {len(lengths)} to train on, {sum(lengths)} tokens (mean {mean:.0f}, longest {max(lengths)}); "
        f"{without}{validation} to select by{test}"
    ]


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e8 else f"{number / 1e6:.2f} M"


def duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
