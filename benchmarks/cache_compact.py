"""What the compact teacher cache leaves out: the KL and its gradient as a function of k.

    python benchmarks/cache_compact.py --shared ../shared --output benchmarks/results/cache_compact.md

Two cases. Real text under two small real models (teacher stories260k, student stories800k, 512 tokens). And a
vocabulary of 32,768 with random logits whose probabilities fall off by rank as those of language models do, the
student's being the teacher's with noise. Both at the paper's temperature of 2, where tails weigh more than at 1.
"""

from __future__ import annotations

import argparse
import gzip
import platform
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf.losses.divergence import kl_divergence
from muscle_hf.teachers.cache import CompactLogits, compact_kl_and_slope

SEED = 0


def real_logits(shared: Path, text: str, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher's and student's logits on the first tokens of a text, and the tokens that follow."""
    with gzip.open(shared / "data" / "text" / text, "rt", encoding="utf-8") as file:
        content = file.read(20 * tokens)
    logits = []
    for name in ("stories260k", "stories800k"):
        folder = shared / "models" / name
        ids = AutoTokenizer.from_pretrained(folder)(content, return_tensors="pt").input_ids[0, : tokens + 1]
        length = 256
        rows = ids[: length * (len(ids) // length)].view(-1, length)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        with torch.no_grad():
            logits.append(model(rows).logits[:, :-1].flatten(0, 1).double())
    return logits[0], logits[1], rows[:, 1:].flatten()


def random_logits(vocabulary: int, tokens: int, slope: float, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Teacher: log probability falls by ``slope`` per log rank, from a random head; student: with noise."""
    generator = torch.Generator().manual_seed(SEED)
    ranks = torch.arange(1, vocabulary + 1, dtype=torch.float64)
    falling = -slope * ranks.log()
    sharper = 1 + torch.rand(tokens, 1, generator=generator, dtype=torch.float64)
    order = torch.rand(tokens, vocabulary, generator=generator).argsort(-1)
    teacher = (falling * sharper).gather(-1, order)
    student = teacher + noise * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    return teacher, student, teacher.argmax(-1)


def table(teacher: Tensor, student: Tensor, labels: Tensor, temperature: float, sizes: list[int]) -> list[str]:
    """A Markdown table: one row per k."""
    full = kl_divergence(teacher, student, temperature)
    slope = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    lines = [
        "| k | bytes a token | teacher's probability kept | mean KL | KL left out | largest of a token | "
        "error of the gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for k in sizes:
        kept = CompactLogits.of(teacher, labels, k, temperature)
        values, own = compact_kl_and_slope(kept, student, temperature)
        covered = kept.log_probabilities.exp().sum(-1).mean()
        missing = full - values
        error = (own - slope).norm() / slope.norm()
        lines.append(
            f"| {k} | {8 * k + 8:,} | {covered:.1%} | {values.mean():.4f} | {missing.sum() / full.sum():.2%} | "
            f"{missing.max():.3f} | {error:.2%} |"
        )
    chance = teacher.softmax(-1).amax(-1).mean()
    lines += [
        "",
        f"{len(full):,} tokens; mean KL in full {full.mean():.4f} nats; the teacher's likeliest token has probability "
        f"{chance:.2f} at temperature 1 on average.",
    ]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--tokens", type=int, default=8192, help="of real text, per data set")
    parser.add_argument("--random-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lines = [
        "# The compact teacher cache against the full KL",
        "",
        "    python benchmarks/cache_compact.py --shared ../shared",
        "",
        f"Temperature {args.temperature:g}, float64, seed {SEED}; {platform.machine()}, torch {torch.__version__},",
        f"transformers {transformers.__version__}. Beyond rounding the figures do not depend on the machine.",
        'The compact KL never exceeds the full one; "left out" is the share that is missing. The error of the',
        "gradient is the norm of the difference over the norm of the full gradient, over all tokens. In the exact",
        "mode a token takes its hidden state: 8,192 bytes at a width of 4,096 in half precision.",
    ]
    for name in ("tinystories_lower.txt.gz", "wikitext2_valid.txt.gz"):
        lines += ["", f"## {name.split('.')[0]}: teacher stories260k, student stories800k, 512 tokens", ""]
        case = real_logits(args.shared, name, args.tokens)
        lines += table(*case, args.temperature, [1, 4, 16, 32, 64, 128, 256, 512])
    for slope, noise in ((2.0, 1.0), (1.2, 1.0)):
        lines += ["", f"## Random, 32,768 tokens: rank^-{slope:g} to rank^-{2 * slope:g}, student noise {noise:g}", ""]
        case = random_logits(32768, args.random_tokens, slope, noise)
        lines += table(*case, args.temperature, [1, 16, 64, 256, 1024, 4096, 32768])
    text = "\n".join(lines) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
