"""What the compact teacher cache leaves out: the KL and its gradient as a function of k, and runs that train on it.

    python benchmarks/cache_compact.py --shared ../shared [--runs runs]

The KL: real text under two small real models (teacher stories260k, student stories800k, 512 tokens), and a vocabulary
of 32,768 with random logits whose probabilities fall off by rank as those of language models do, the student's being
the teacher's with noise. Both at the paper's temperature of 2, where tails weigh more than at 1. With ``--runs``: the
compatibility adapter of recipe stories260k/trec trained on exact and on compact caches, from the same task adapters,
and what the objective in full says of it on the rows held out.
"""

from __future__ import annotations

import argparse
import gzip
from pathlib import Path

import torch
import transformers
from reporting import publish, where
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from muscle_hf import MuscleTrainer
from muscle_hf.cache import TopTokens
from muscle_hf.objective.divergence import kl_divergence
from muscle_hf.objective.fused import kl_and_slope
from muscle_hf.pipeline.config import load_settings
from muscle_hf.pipeline.run import Run
from muscle_hf.pipeline.steps import hush
from muscle_hf.training.step import make_step

SEED = 0
ROOT = Path(__file__).parents[1]


def real_logits(shared: Path, text: str, tokens: int) -> tuple[Tensor, Tensor]:
    """Teacher's and student's logits on the first tokens of a text."""
    with gzip.open(shared / "data" / "text" / text, "rt", encoding="utf-8") as file:
        content = file.read(20 * tokens)
    logits = []
    for name in ("stories260k", "stories800k"):
        folder = shared / "models" / name
        ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)(content, return_tensors="pt").input_ids[
            0, : tokens + 1
        ]
        length = 256
        rows = ids[: length * (len(ids) // length)].view(-1, length)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False).eval()
        with torch.no_grad():
            logits.append(model(rows).logits[:, :-1].flatten(0, 1).double())
    return logits[0], logits[1]


def random_logits(vocabulary: int, tokens: int, slope: float, noise: float) -> tuple[Tensor, Tensor]:
    """Teacher: log probability falls by ``slope`` per log rank, from a random head; student: with noise."""
    generator = torch.Generator().manual_seed(SEED)
    ranks = torch.arange(1, vocabulary + 1, dtype=torch.float64)
    falling = -slope * ranks.log()
    sharper = 1 + torch.rand(tokens, 1, generator=generator, dtype=torch.float64)
    order = torch.rand(tokens, vocabulary, generator=generator).argsort(-1)
    teacher = (falling * sharper).gather(-1, order)
    student = teacher + noise * torch.randn(tokens, vocabulary, generator=generator, dtype=torch.float64)
    return teacher, student


def table(teacher: Tensor, student: Tensor, temperature: float, sizes: list[int]) -> list[str]:
    """A Markdown table: one row per k."""
    full = kl_divergence(teacher, student, temperature)
    slope = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    lines = [
        "| k | bytes a token | teacher's probability kept | mean KL | KL left out | largest of a token | "
        "error of the gradient |",
        "|---|---|---|---|---|---|---|",
    ]
    for k in sizes:
        form = TopTokens(k, temperature, teacher.size(-1))
        kept = form.of(teacher)
        values, own = kl_and_slope(form.logits(kept, student), student, temperature, True)
        covered = kept[:, :k].exp().sum(-1).mean()
        missing = full - values
        error = (own - slope).norm() / slope.norm()
        lines.append(
            f"| {k} | {4 * form.width:,} | {covered:.1%} | {values.mean():.4f} | {missing.sum() / full.sum():.2%} | "
            f"{missing.max():.3f} | {error:.2%} |"
        )
    chance = teacher.softmax(-1).amax(-1).mean()
    lines += [
        "",
        f"{len(full):,} tokens; mean KL in full {full.mean():.4f} nats; the teacher's likeliest token has probability "
        f"{chance:.2f} at temperature 1 on average.",
    ]
    return lines


def trained(runs: Path, epochs: int) -> list[str]:
    """What training on each cache does to the full objective, on the recipe's held-out rows."""
    folder = runs / "compact-trec"
    changed = ["--seed", str(SEED), "--output_dir", str(folder), "--control", "false"]
    recipe = Run.of(load_settings(ROOT / "recipes" / "stories260k" / "trec.yaml", changed), print)
    lines = [
        "| kept of a teacher | MB on disk | L_comp in full, nats | KL to v1 | KL to v2 | right tokens |",
        "|---|---|---|---|---|---|",
    ]
    for k in (None, 64, 16, 4):
        trainer = recipe.compatibility_trainer(
            folder / "compared",
            teacher_cache=str(folder / "cache"),
            teacher_cache_top_k=k,
            num_train_epochs=epochs,
            load_best_model_at_end=False,
            save_strategy="no",
            eval_strategy="no",
        )
        if k is None:
            lines.append(f"| (before training) | | {figures(trainer)} |")
        trainer.train()
        stores = [source.store for source in trainer._step.sources.values()]
        size = sum(file.stat().st_size for store in stores for file in store.folder.glob("rows-*")) / 1e6
        trainer.args.teacher_cache_top_k = None
        trainer._step = make_step(trainer)
        lines.append(f"| {'hidden states' if k is None else f'top {k}'} | {size:.1f} | {figures(trainer)} |")
        print(lines[-1], flush=True)
    return lines


def figures(trainer: MuscleTrainer) -> str:
    found = trainer.evaluate()
    shown = [f"{found[f'eval_{name}']:.4f}" for name in ("loss", "kl_old", "kl_new")]
    return " | ".join([*shown, f"{found['eval_token_accuracy']:.1%}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with data/ and models/")
    parser.add_argument("--tokens", type=int, default=8192, help="of real text, per data set")
    parser.add_argument("--random-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=2.0)
    parser.add_argument("--runs", type=Path, help="folder of the trained runs; without it nothing is trained")
    parser.add_argument("--epochs", type=int, default=3, help="of each of these runs")
    args = parser.parse_args()
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    hush()
    lines = [
        "# The compact teacher cache against the exact one",
        "",
        f"    python benchmarks/cache_compact.py --shared ../shared{' --runs runs' if args.runs else ''}",
        "",
        f"Temperature {args.temperature:g}, seed {SEED}; {where()}. The KL is taken in float64, what is kept",
        "is float32.",
        "",
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
    if args.runs:
        lines += ["", f"## Trained on it: trec, stories260k and its update, 512 tokens, {args.epochs} epochs", ""]
        lines += trained(args.runs, args.epochs)
    publish("cache_compact", lines)


if __name__ == "__main__":
    main()
