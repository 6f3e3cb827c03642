"""What the loss alone costs at a vocabulary of 128,256: time and memory, from last hidden states to their gradient.

    python benchmarks/loss_cost.py [--threads 1] [--rounds 3]

Against the naive way (whole logits of three models, F.kl_div) and, where liger-kernel and triton can be imported,
Liger's chunked fused linear JSD, which has one teacher. All ways run in one process, in turns; ratios of processor
time (all threads), best round of each. Peak memory is that of a process of its own, beyond weights and inputs, at a
width of 64, of which it does not depend. Half of the student's tokens are right, so that both teachers are followed.
Random weights, seed 0.
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from reporting import publish, timed, where
from torch import Tensor
from torch.nn import functional

from muscle_hf.objective import Objective
from muscle_hf.objective.chunked import Chunks, Stream, chunk_rows

VOCABULARY, WIDTH, TOKENS = 128_256, 2048, 512
MEMORY_WIDTH, MEMORY_TOKENS = 64, {"naive": (256, 512), "chunked": (512, 8192), "liger": (512,)}
NAMES = {
    "naive": "naive: whole logits, F.kl_div",
    "chunked": "chunked",
    "liger": "Liger fused linear JSD, one teacher",
    "products": "three matrix products alone",
}


def naive_loss(student: Tensor, old: Tensor, new: Tensor, labels: Tensor, temperature: float = 2.0) -> Tensor:
    """Equation (1) summed over tokens, as one would write it down."""
    wrong = (student.argmax(dim=-1) != labels).to(student.dtype)
    own = functional.log_softmax(student / temperature, dim=-1)
    parts = [
        functional.kl_div(
            own, functional.log_softmax(teacher / temperature, dim=-1), reduction="none", log_target=True
        ).sum(dim=-1)
        for teacher in (old, new)
    ]
    return (wrong * parts[0] + (1 - wrong) * parts[1]).sum()


def logits_of(states: Tensor, head: Tensor) -> Tensor:
    """Logits in float32 at least, as every way works on them."""
    logits = states @ head.T
    return logits if logits.dtype.itemsize >= 4 else logits.float()


class Case:
    """Random heads, hidden states and labels, and the ways to the gradient."""

    def __init__(
        self,
        width: int,
        tokens: int,
        vocabulary: int = VOCABULARY,
        dtype: torch.dtype = torch.float32,
        device: str = "cpu",
    ):
        torch.manual_seed(0)
        where = {"dtype": dtype, "device": device}
        self.old_head, self.new_head = (torch.randn(vocabulary, width, **where).div_(width**0.5) for _ in range(2))
        self.hidden = [torch.randn(tokens, width, **where) for _ in range(3)]
        self.labels = torch.randint(0, vocabulary, (tokens,), device=device)
        for start in range(0, tokens, 256):
            right = (self.hidden[0][start : start + 256] @ self.new_head.T).argmax(dim=-1)
            self.labels[start : start + 256 : 2] = right[::2]

    def naive(self) -> Tensor:
        own = self.hidden[0].clone().requires_grad_()
        student, new = (logits_of(states, self.new_head) for states in (own, self.hidden[2]))
        old = logits_of(self.hidden[1], self.old_head)
        naive_loss(student, old, new, self.labels).backward()
        return own.grad

    def chunked(self, fast: bool = True) -> Tensor:
        own = self.hidden[0].clone().requires_grad_()

        def head(states: Tensor) -> Tensor:
            return logits_of(states, self.new_head)

        old = Stream(self.hidden[1], lambda states: logits_of(states, self.old_head))
        rows = torch.zeros(len(own), dtype=torch.int64, device=own.device)
        size = chunk_rows(len(self.new_head), own.device)
        streams = {"student": Stream(own, head), "old": old, "new": Stream(self.hidden[2], head)}
        terms = Chunks(Objective(), self.labels, rows, size, fast=fast).terms(streams)
        terms.loss.sum().backward()
        return own.grad

    def liger(self, compiled: bool = False) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        own = self.hidden[0].clone().requires_grad_()
        loss = LigerFusedLinearJSDLoss(0.0, 1.0, temperature=2.0, compiled=compiled, chunk_size=256)
        loss(own, self.new_head, self.hidden[1], self.old_head, self.labels).backward()
        return own.grad

    def products(self) -> Tensor:
        """Student's logits, one teacher's, and the gradient back through the head: what no way can do without."""
        for start in range(0, len(self.labels), 256):
            logits = self.hidden[0][start : start + 256] @ self.new_head.T
            self.hidden[1][start : start + 256] @ self.old_head.T
            logits @ self.new_head
        return self.hidden[0]

    def way(self, name: str) -> Callable[[], Tensor]:
        return getattr(self, name)


def ways() -> list[str]:
    found = all(importlib.util.find_spec(name) for name in ("liger_kernel", "triton"))
    return [name for name in NAMES if name != "liger" or found]


def relative_error(dtype: torch.dtype) -> float:
    """Of the chunked gradient against the naive one, 512 tokens, V = 8,192, in chunks of 256."""
    case = Case(64, 512, 8192, dtype)
    naive = case.naive()
    return ((case.chunked() - naive).norm() / naive.norm()).item()


def peak_memory(way: str, tokens: int) -> float:
    """Peak resident memory of a way in a process of its own, beyond what weights and inputs take, in MiB."""
    command = [sys.executable, __file__, "--measure", way, "--tokens", str(tokens)]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return int(out.split()[-1]) / 2**20


def measure(way: str, tokens: int) -> None:
    """Prints the growth of this process's peak memory while one way runs, in bytes."""
    torch.set_num_threads(1)
    case = Case(MEMORY_WIDTH, 1)
    case.hidden = [torch.randn(tokens, MEMORY_WIDTH) for _ in range(3)]
    case.labels = torch.randint(0, VOCABULARY, (tokens,))
    before = resident("VmRSS")
    case.way(way)()
    print(resident("VmHWM") - before)


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field} in /proc/self/status")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--measure", choices=MEMORY_TOKENS, help=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure(args.measure, args.tokens)
        return
    torch.set_num_threads(args.threads)
    errors = {name: relative_error(dtype) for name, dtype in (("32", torch.float32), ("64", torch.float64))}
    memory = {(way, tokens): peak_memory(way, tokens) for way in ways()[:-1] for tokens in MEMORY_TOKENS[way]}
    case, best = Case(WIDTH, TOKENS), {}
    for _ in range(args.rounds):
        for name in ways():
            seconds = timed(case.way(name))[1]
            best[name] = min(best.get(name, seconds), seconds)
    naive = memory["naive", 512] * 16
    publish(
        "loss_cost",
        [
            "# What the loss costs",
            "",
            f"Command: `python benchmarks/loss_cost.py --threads {args.threads} --rounds {args.rounds}`; {where()}, "
            f"seed 0. V = {VOCABULARY:,}, float32.",
            "",
            f"## Time: {TOKENS} tokens, d = {WIDTH:,}",
            "",
            "| way | time / naive | time / three products |",
            "| --- | ---: | ---: |",
            *(
                f"| {NAMES[name]} | {seconds / best['naive']:.2f} | {seconds / best['products']:.2f} |"
                for name, seconds in best.items()
            ),
            "",
            "Floor: the student there and back and one teacher are three products; the naive way makes four (two "
            "teachers). "
            + (
                "Liger's makes four for its one teacher, since it always makes the head's gradient too; it ran "
                "uncompiled, and its Triton kernel not at all, which needs a GPU."
                if "liger" in best
                else "Liger's could not be imported."
            ),
            "",
            "To reach was 0.6 of the naive time. The three products alone, 256 tokens at a time, take "
            f"{best['products'] / best['naive']:.2f} of it here; the chunked way, {chunk_rows(VOCABULARY)} at a time "
            "and with the softmaxes, the KL, its slope and the logged cross-entropy, takes "
            f"{best['chunked'] / best['naive']:.2f}; the naive way takes "
            f"{1 - 4 / 3 * best['products'] / best['naive']:.2f} beside its four products.",
            "",
            "## Peak memory beyond weights and inputs",
            "",
            "| way | tokens | MiB |",
            "| --- | ---: | ---: |",
            *(f"| {NAMES[way]} | {tokens:,} | {peak:,.0f} |" for (way, tokens), peak in memory.items()),
            "",
            f"The naive way's grows with the tokens: at 8,192 it takes 16 times its figure at 512, {naive:,.0f} MiB, "
            f"more than this machine has; the chunked way takes {memory['chunked', 8192] / naive:.1%} of that.",
            "",
            "## Relative error of the gradient against the naive way",
            "",
            f"float32: {errors['32']:.1e}; float64: {errors['64']:.1e} (512 tokens, V = 8,192).",
        ],
    )


if __name__ == "__main__":
    main()
