"""What a GPU shows: the loss against its matrix products, and steps of 1B- and 8B-shaped models with their memory.

    python benchmarks/gpu_cost.py [--parts loss steps] [--shapes 1b 8b] [--rounds 2]

Random weights, bf16, a vocabulary of 128,256, rows of 2,048 tokens, half of the student's tokens right. The loss alone
is set beside the naive way, beside itself without compiled kernels, beside Liger's chunked fused linear JSD (one
teacher), and beside the time that its three matrix products take at the rate which large products reach here. Memory
is the peak over the base weights. `--device cpu --shapes toy` tries the script out where there is no GPU, and writes
nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib.util
import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
from loss_cost import Case
from reporting import publish, where
from step_models import FLOORS, SFT, TO_REACH, Shape, World, base_bytes, best_steps
from torch import Tensor

LLAMA_1B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
            "num_key_value_heads": 8}  # fmt: skip
LLAMA_8B = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8}  # fmt: skip
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPES = {
    "1b": Shape(LLAMA_1B, vocabulary=128_256, length=2048, batch=4, rows=16),
    "8b": Shape(LLAMA_8B, vocabulary=128_256, length=2048, batch=2, rows=8),
    "toy": Shape(TOY, vocabulary=512, length=16, batch=2, rows=4, steps=3),
}
LOSS_TOKENS = {"1b": 8192, "8b": 8192, "toy": 64}


class Device:
    """Clock and memory of a kind of device."""

    def __init__(self, name: str):
        self.name, self.cuda = name, name != "cpu"

    def clock(self) -> float:
        """Seconds, once all that was asked for is done."""
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()

    def timed(self, compute: Callable[[], Tensor], rounds: int) -> float:
        """The shortest of some runs, after one that warms up."""
        compute()
        seconds = []
        for _ in range(rounds):
            start = self.clock()
            compute()
            seconds.append(self.clock() - start)
        return min(seconds)

    def allocated(self) -> int:
        """Bytes of tensors; 0 on a CPU, where nobody counts them."""
        gc.collect()
        return torch.cuda.memory_allocated() if self.cuda else 0

    @contextlib.contextmanager
    def peak(self, found: dict[str, float], name: str, beside: int = 0) -> Iterator[None]:
        """Notes the most that the block allocates, in GiB, but for ``beside`` bytes."""
        over = self.allocated() + beside
        if self.cuda:
            torch.cuda.reset_peak_memory_stats()
        yield
        highest = torch.cuda.max_memory_allocated() if self.cuda else over
        found[name] = max(found.get(name, 0.0), (highest - over) / 2**30)


def peak_rate(device: Device) -> float:
    """Operations a second that a large bf16 product reaches."""
    size = 8192 if device.cuda else 256
    one = torch.randn(size, size, dtype=torch.bfloat16, device=device.name)
    return 2 * size**3 / device.timed(lambda: one @ one, 10)


def loss_alone(device: Device, shapes: list[str], rounds: int) -> list[str]:
    """Time and memory from last hidden states to their gradient."""
    lines = [
        "## The loss alone",
        "",
        "| shape | tokens | way | time / naive | time / three products at peak | peak memory, GiB |",
        "| --- | ---: | --- | ---: | ---: | ---: |",
    ]
    rate = peak_rate(device)
    for name in shapes:
        shape, tokens = SHAPES[name], LOSS_TOKENS[name]
        width = shape.body["hidden_size"]
        case = Case(width, tokens, shape.vocabulary, torch.bfloat16, device.name)
        floor = 3 * 2 * tokens * width * shape.vocabulary / rate

        def plain(case: Case = case) -> Tensor:
            with torch.compiler.set_stance("force_eager"):
                return case.chunked()

        ways: dict[str, Callable[[], Tensor]] = {
            "naive: whole logits, F.kl_div": case.naive,
            "chunked": case.chunked,
            "chunked, without compiled kernels": plain,
            "chunked, all gradients by autograd": lambda case=case: case.chunked(fast=False),
        }
        if importlib.util.find_spec("liger_kernel"):
            ways["Liger fused linear JSD, one teacher"] = lambda case=case: case.liger(compiled=device.cuda)
        seconds, memory = {}, {}
        for way, compute in ways.items():
            with device.peak(memory, way):
                seconds[way] = device.timed(compute, rounds)
        first = next(iter(seconds.values()))
        lines += [
            f"| {name} | {tokens:,} | {way} | {spent / first:.2f} | {spent / floor:.2f} | {memory[way]:.2f} |"
            for way, spent in seconds.items()
        ]
        del case, ways, plain
    reached = f"Products of 8,192 x 8,192 reach {rate / 1e12:.0f} TFLOP/s here."
    return [*lines, "", f"{reached} To reach: 0.6 of naive, 1.5 of the products.", ""]


def whole_steps(device: Device, shapes: list[str], rounds: int) -> list[str]:
    """Time and memory of steps of the real trainers."""
    lines = [
        "## A step",
        "",
        "| shape | way | time / SFT's step | floor | to reach | peak memory over the bases, GiB | / SFT's |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name in shapes:
        world = World(SHAPES[name], device=device.name)
        ways = world.ways()
        memory: dict[str, float] = {}
        # The student's base is a copy beside those of the teachers.
        watch = partial(device.peak, memory, beside=base_bytes(world.new))
        seconds = best_steps(ways, rounds, device.clock, watch)
        lines += [
            f"| {name} | {way} | {spent / seconds[SFT]:.2f} | {FLOORS[way]:.2f} | {TO_REACH.get(way, '')} | "
            f"{memory[way]:.1f} | {memory[way] / memory[SFT] if memory[SFT] else float('nan'):.2f} |"
            for way, spent in seconds.items()
        ]
        del world, ways
    return [*lines, ""]


PARTS = {"loss": loss_alone, "steps": whole_steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=tuple(PARTS))
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=("1b", "8b"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here; --device cpu --shapes toy tries the script out")
    device = Device(args.device)
    found = [line for part in args.parts for line in PARTS[part](device, args.shapes, args.rounds)]
    command = (
        f"python benchmarks/gpu_cost.py --parts {' '.join(args.parts)} --shapes {' '.join(args.shapes)} "
        f"--rounds {args.rounds}"
    )
    machine = torch.cuda.get_device_name() if device.cuda else where()
    lines = [
        "# What a GPU shows",
        "",
        f"Command: `{command}`; {machine}, torch {torch.__version__}, seed 0, bf16. Best of the rounds, all in one "
        "process.",
        "",
        *found,
    ]
    if device.cuda:
        publish("gpu_cost", lines)
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()
